//! Who a caller is and what it may do.
//!
//! A caller shows a bearer token or a client certificate; what it may do comes from the configuration, the token file,
//! or the token's own record ([`tokens`]). A caller that shows nothing is let in only where the configuration names
//! rights for it, on loopback, and never to steer.

pub(crate) mod tokens;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rustls_pki_types::CertificateDer;
use seaway_federation_proto::ids::{Path, Pattern};
use seaway_relay::transport::identity::Identity;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Extensions, Request, Status, metadata::MetadataMap};

use self::tokens::Tokens;
use crate::{
    door::{AuthConfig, Rights},
    engine::Engine,
    grpc::errors,
    subscriptions::filter::contains,
};

/// How a caller was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Nothing.
    Nothing,
    /// A bearer token.
    Token,
    /// A certificate.
    Certificate,
}

/// A caller, for the length of a call.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Its name: `token:NAME`, `client:NAME`, or `anonymous`.
    pub(crate) name: String,
    /// What it may do.
    rights: Rights,
    shown: Shown,
    /// Until when its token counts.
    counts: Option<Counts>,
}

/// How long a token counts.
#[derive(Debug)]
struct Counts {
    /// Microseconds since 1970; 0: for ever.
    expires_us: u64,
    revoked: CancellationToken,
}

/// The longest time that is slept before the clock is looked at again: it may be set meanwhile.
const CLOCK_LOOK: Duration = Duration::from_secs(30);

impl Caller {
    /// Resolves when what the caller showed no longer counts: calls that are open end then.
    pub(crate) async fn ended(&self) -> Status {
        let Some(counts) = &self.counts else { return std::future::pending().await };
        let expired = async {
            loop {
                let left = Duration::from_micros(counts.expires_us.saturating_sub(tokens::now_us()));
                match counts.expires_us {
                    0 => std::future::pending().await,
                    _ if left.is_zero() => return,
                    _ => tokio::time::sleep(left.min(CLOCK_LOOK)).await,
                }
            }
        };
        tokio::select! {
            () = counts.revoked.cancelled() => unauthenticated("the token was revoked or changed; connect again with a token that counts"),
            () = expired => unauthenticated("the token has expired; ask for a new one"),
        }
    }
    /// The caller that the interceptor recognised.
    pub(crate) fn of(extensions: &Extensions) -> Result<Arc<Caller>, Status> {
        extensions
            .get::<Arc<Caller>>()
            .cloned()
            .ok_or_else(|| unauthenticated("this call shows no token or certificate"))
    }

    /// Whether it may publish to a path; otherwise the sentence that says what is missing.
    pub(crate) fn check_publish(&self, path: &Path) -> Result<(), String> {
        if self.rights.may_publish(path) {
            return Ok(());
        }
        Err(format!("{} lacks the right to publish to {path}; ask for a token or grant that includes it", self.name))
    }

    /// Whether it may subscribe to a pattern.
    pub(crate) fn check_subscribe(&self, pattern: &Pattern) -> Result<(), Status> {
        if self.rights.subscribe.iter().any(|right| contains(right, pattern)) {
            return Ok(());
        }
        let name = &self.name;
        let text =
            format!("{name} lacks the right to subscribe to {pattern}; ask for a token or grant that includes it");
        Err(errors::not_allowed(text))
    }

    /// Whether it may see the node's state. Whoever is let in without showing anything may, if its rights say so.
    pub(crate) fn check_see(&self) -> Result<(), Status> {
        if self.rights.admin {
            return Ok(());
        }
        Err(errors::not_allowed(format!("{} lacks the admin right, which seeing the node's state needs", self.name)))
    }

    /// Whether it may steer the node: never without a token or certificate.
    pub(crate) fn check_steer(&self) -> Result<(), Status> {
        if self.shown == Shown::Nothing {
            let text = "this changes the node and is never done for unknown callers; show a token or certificate with the admin right";
            return Err(unauthenticated(text));
        }
        if self.rights.admin {
            return Ok(());
        }
        Err(errors::not_allowed(format!("{} lacks the admin right, which this call needs", self.name)))
    }
}

/// Recognises callers.
#[derive(Debug)]
pub(crate) struct Authenticator<E> {
    federation: String,
    clients: BTreeMap<String, Rights>,
    other_clients: Option<Rights>,
    anonymous: Option<Rights>,
    tokens: Arc<Tokens<E>>,
}

impl<E: Engine> Authenticator<E> {
    /// An authenticator that follows the configuration.
    pub(crate) fn new(config: &AuthConfig, tokens: Arc<Tokens<E>>) -> Self {
        Self {
            federation: config.federation.clone(),
            clients: config.clients.iter().map(|c| (c.name.clone(), c.rights.clone())).collect(),
            other_clients: config.other_clients.clone(),
            anonymous: config.anonymous.clone(),
            tokens,
        }
    }

    /// Puts the caller into the request, or refuses it.
    pub(crate) fn intercept(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let loopback = request.remote_addr().is_some_and(|address| address.ip().to_canonical().is_loopback());
        let certificates = request.peer_certs();
        let certificate = certificates.as_deref().and_then(|certs| certs.first());
        let caller = self.recognise(request.metadata(), certificate, loopback)?;
        request.extensions_mut().insert(Arc::new(caller));
        Ok(request)
    }

    fn recognise(
        &self,
        metadata: &MetadataMap,
        certificate: Option<&CertificateDer<'_>>,
        loopback: bool,
    ) -> Result<Caller, Status> {
        if let Some(value) = metadata.get("authorization") {
            let token =
                value.to_str().ok().and_then(|v| v.strip_prefix("Bearer ").or_else(|| v.strip_prefix("bearer ")));
            let token =
                token.ok_or_else(|| unauthenticated("the authorization header is not of the form 'Bearer TOKEN'"))?;
            return self.by_token(token.trim());
        }
        if let Some(certificate) = certificate {
            return self.by_certificate(certificate);
        }
        match &self.anonymous {
            Some(rights) if loopback => {
                Ok(Caller { name: "anonymous".into(), rights: rights.clone(), shown: Shown::Nothing, counts: None })
            }
            _ => Err(unauthenticated(
                "this door wants a token or a client certificate; give one with --token-file or --cert",
            )),
        }
    }

    fn by_token(&self, token: &str) -> Result<Caller, Status> {
        let found = self.tokens.find(token).map_err(unauthenticated)?;
        let counts = Some(Counts { expires_us: found.expires_us, revoked: found.revoked.0 });
        Ok(Caller { name: format!("token:{}", found.name), rights: found.rights, shown: Shown::Token, counts })
    }

    fn by_certificate(&self, certificate: &CertificateDer<'_>) -> Result<Caller, Status> {
        let identity = Identity::of_certificate(certificate).map_err(|error| unauthenticated(error.to_string()))?;
        let Identity::Client { federation, name } = identity else {
            return Err(unauthenticated("the certificate is not a client's; issue one for a client with `seaway ca`"));
        };
        if federation != self.federation {
            let own = &self.federation;
            return Err(unauthenticated(format!(
                "the certificate is of federation {federation}, this node is of {own}"
            )));
        }
        let Some(rights) = self.clients.get(&name).or(self.other_clients.as_ref()).cloned() else {
            let text = format!("client {name} has no rights here; add it to the clients of the door's configuration");
            return Err(errors::not_allowed(text));
        };
        Ok(Caller { name: format!("client:{name}"), rights, shown: Shown::Certificate, counts: None })
    }
}

fn unauthenticated(text: impl Into<String>) -> Status {
    errors::status(Code::Unauthenticated, "unauthenticated", text)
}
