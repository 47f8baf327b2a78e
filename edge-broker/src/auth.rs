//! Who a caller is and what it may do.
//!
//! A caller shows a bearer token or a client certificate; what it may do comes from the configuration, the token file,
//! or the token's own record ([`tokens`]). A caller that shows nothing is let in only where the configuration names
//! rights for it, on loopback, and never to steer.

pub(crate) mod tokens;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use seaway_federation_proto::ids::{Path, Pattern};
use seaway_relay::transport::{expiry::CertificateEnd, identity::Identity};
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

/// How long what a caller showed counts.
#[derive(Debug)]
struct Counts {
    /// Microseconds since 1970; 0: for ever.
    expires_us: u64,
    revoked: CancellationToken,
    /// What is said when it was revoked, and when it has expired.
    says: [&'static str; 2],
}

const TOKEN_ENDED: [&str; 2] = [
    "the token was revoked or changed; connect again with a token that counts",
    "the token has expired; ask for a new one",
];
const RIGHTS_ENDED: [&str; 2] = [
    "the rights of this client were changed; connect again with those that it has now",
    "the client's certificate has expired; connect again with a new one",
];

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
        let [revoked, over] = counts.says;
        tokio::select! {
            () = counts.revoked.cancelled() => unauthenticated(revoked),
            () = expired => unauthenticated(over),
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

/// Rights by name of a certificate, and of those who have none, as configured. They may be replaced while calls are open.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    clients: BTreeMap<String, Grant>,
    others: Option<Grant>,
    anonymous: Option<Grant>,
}

/// Rights, and what ends the calls that were opened with them when they change.
#[derive(Debug, Clone)]
struct Grant {
    rights: Rights,
    changed: CancellationToken,
}

impl Grant {
    fn new(rights: &Rights) -> Self {
        Self { rights: rights.clone(), changed: CancellationToken::new() }
    }

    /// The same grant where nothing changed; otherwise what it opened ends.
    fn carried_over(old: Option<&Self>, new: Option<&Rights>) -> Option<Self> {
        match (old, new) {
            (Some(old), Some(rights)) if old.rights == *rights => Some(old.clone()),
            (old, new) => {
                if let Some(old) = old {
                    old.changed.cancel();
                }
                new.map(Self::new)
            }
        }
    }
}

impl Grants {
    /// As configured.
    pub(crate) fn new(config: &AuthConfig) -> Self {
        Self::default().replaced_by(config)
    }

    /// What follows these; calls that were opened with rights that are gone or differ end.
    pub(crate) fn replaced_by(&self, config: &AuthConfig) -> Self {
        let mut clients = BTreeMap::new();
        for client in &config.clients {
            let grant = Grant::carried_over(self.clients.get(&client.name), Some(&client.rights));
            clients.extend(grant.map(|grant| (client.name.clone(), grant)));
        }
        for (name, grant) in &self.clients {
            if !clients.contains_key(name) {
                grant.changed.cancel();
            }
        }
        // Who came in unnamed may be named now.
        let same_names = self.clients.keys().eq(clients.keys());
        if let Some(others) = self.others.as_ref().filter(|_| !same_names) {
            others.changed.cancel();
        }
        let others = Grant::carried_over(self.others.as_ref().filter(|_| same_names), config.other_clients.as_ref());
        let anonymous = Grant::carried_over(self.anonymous.as_ref(), config.anonymous.as_ref());
        Self { clients, others, anonymous }
    }
}

/// Recognises callers.
#[derive(Debug)]
pub(crate) struct Authenticator<E> {
    federation: String,
    grants: Arc<ArcSwap<Grants>>,
    tokens: Arc<Tokens<E>>,
}

impl<E: Engine> Authenticator<E> {
    /// An authenticator that follows the configuration.
    pub(crate) fn new(config: &AuthConfig, grants: Arc<ArcSwap<Grants>>, tokens: Arc<Tokens<E>>) -> Self {
        Self { federation: config.federation.clone(), grants, tokens }
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
        match &self.grants.load().anonymous {
            Some(Grant { rights, changed }) if loopback => {
                let counts = Some(Counts { expires_us: 0, revoked: changed.clone(), says: RIGHTS_ENDED });
                Ok(Caller { name: "anonymous".into(), rights: rights.clone(), shown: Shown::Nothing, counts })
            }
            _ => Err(unauthenticated(
                "this door wants a token or a client certificate; give one with --token-file or --cert",
            )),
        }
    }

    fn by_token(&self, token: &str) -> Result<Caller, Status> {
        let found = self.tokens.find(token).map_err(unauthenticated)?;
        let counts = Some(Counts { expires_us: found.expires_us, revoked: found.revoked.0, says: TOKEN_ENDED });
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
        let end = CertificateEnd::of("client", certificate).map_or(0, |end| end.expires_us);
        if end != 0 && end <= tokens::now_us() {
            // It was good when the connection was made.
            return Err(unauthenticated(RIGHTS_ENDED[1]));
        }
        let grants = self.grants.load();
        let Some(Grant { rights, changed }) = grants.clients.get(&name).or(grants.others.as_ref()).cloned() else {
            let text = format!("client {name} has no rights here; add it to the clients of the door's configuration");
            return Err(errors::not_allowed(text));
        };
        let counts = Some(Counts { expires_us: end, revoked: changed, says: RIGHTS_ENDED });
        Ok(Caller { name: format!("client:{name}"), rights, shown: Shown::Certificate, counts })
    }
}

fn unauthenticated(text: impl Into<String>) -> Status {
    errors::status(Code::Unauthenticated, "unauthenticated", text)
}
