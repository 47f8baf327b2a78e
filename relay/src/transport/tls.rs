//! TLS of links: a node's own certificate and key, the authorities it trusts, and the checks of the peer.
//!
//! Chain, validity and purpose are checked by rustls' own verifiers. On top, both sides require that the
//! peer's certificate names a node ([`Identity`]) of the same federation, and the dialling side that it
//! is the very node it was told to dial. Each refusal is one sentence, which goes to the peer too (as the
//! reason of the closed connection), so that both ends can log it.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use seaway_federation_proto::ids::NodeName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    expiry::CertificateEnd,
    identity::{Identity, IdentityError},
};
use crate::node::LinkTls;

/// ALPN of links; the digit is the version of how channels are mapped to streams.
pub const ALPN: &[u8] = b"seaway-link/1";

/// Most bytes of a PEM file that are read.
const PEM_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Why a node's own TLS files cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl TlsError {
    pub(super) fn new(error: &dyn std::error::Error) -> Self {
        Self(format!("TLS for links cannot be set up: {error}"))
    }
}

/// Why a peer's certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRefused {
    /// It names nobody.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// Its time is over.
    #[error("the certificate of {who} expired at {at}; issue a new one with `seaway ca issue`")]
    Expired {
        /// Whom it names.
        who: String,
        /// When it ended.
        at: String,
    },
    /// Its time has not come.
    #[error("the certificate of {who} is valid only from {at}; check the clocks of both machines")]
    NotYetValid {
        /// Whom it names.
        who: String,
        /// When it begins.
        at: String,
    },
    /// Another authority's.
    #[error("the certificate of {who} was issued by {issuer}, which is not among the authorities configured here")]
    ForeignAuthority {
        /// Whom it names.
        who: String,
        /// By whom.
        issuer: String,
    },
    /// Another federation's.
    #[error("the certificate of {who} belongs to federation {found}, not to {expected}")]
    OtherFederation {
        /// Whom it names.
        who: String,
        /// Its federation.
        found: String,
        /// This node's.
        expected: String,
    },
    /// Not the node that was dialled.
    #[error("the node that answered is {found}, not {expected}; check the address of the peer")]
    WrongName {
        /// Whom the certificate names.
        found: NodeName,
        /// Whom the configuration names.
        expected: NodeName,
    },
    /// A client's or an authority's.
    #[error("{0} is not a node; links need a certificate of `seaway ca issue`")]
    NotANode(Identity),
    /// Anything else that rustls says.
    #[error("the certificate of {who} is refused: {why}")]
    Other {
        /// Whom it names.
        who: String,
        /// In rustls' words.
        why: String,
    },
}

/// The one provider of cryptography; everything in Seaway that speaks TLS uses it.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Certificate, key and authorities of one node, read and checked. Cheap to clone; made anew to reload.
#[derive(Clone)]
pub struct Credentials {
    federation: String,
    node: NodeName,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    ends: Vec<CertificateEnd>,
    provider: Arc<CryptoProvider>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, {})", self.federation, self.node)
    }
}

impl Credentials {
    /// Reads the PEM files and checks that they fit each other and the configured names. The sentence of
    /// an error names the file and what to do.
    pub fn load(files: &LinkTls, federation: &str, node: &NodeName) -> Result<Self, TlsError> {
        let identity = Identity::node(federation, node.clone()).map_err(|error| TlsError(error.to_string()))?;
        let chain = read_certificates(&files.cert)?;
        let provider = provider();
        let leaf = chain.first().ok_or_else(|| no_certificate(&files.cert))?;
        let found =
            Identity::of_certificate(leaf).map_err(|error| TlsError(format!("{}: {error}", files.cert.display())))?;
        if found != identity {
            return Err(TlsError(format!(
                "{} is the certificate of {found}, but this node is {identity}; issue one with `seaway ca issue` or change the node's name",
                files.cert.display(),
            )));
        }
        check_own_time(&files.cert, leaf)?;
        let key = read_key(&files.key)?;
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| {
            TlsError(format!(
                "the key {} does not fit the certificate {}: {error}",
                files.key.display(),
                files.cert.display()
            ))
        })?;
        let roots = read_authorities(&files.ca)?;
        let own = certified.cert.first().and_then(|leaf| CertificateEnd::of("link", leaf));
        let authorities = read_certificates(&files.ca)?;
        let authorities = authorities.iter().filter_map(|ca| CertificateEnd::of("link-authority", ca));
        let ends = own.into_iter().chain(authorities).collect();
        Ok(Self {
            ends,
            federation: federation.to_owned(),
            node: node.clone(),
            certified: Arc::new(certified),
            roots: Arc::new(roots),
            provider,
        })
    }

    /// When these certificates end.
    pub fn ends(&self) -> Vec<CertificateEnd> {
        self.ends.clone()
    }

    /// TLS for accepting links.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let fail = |error: String| TlsError(format!("TLS for links cannot be set up: {error}"));
        let inner = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), self.provider.clone())
            .build()
            .map_err(|error| fail(error.to_string()))?;
        let verifier = NodeClientVerifier { inner, federation: self.federation.clone() };
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| fail(error.to_string()))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No resumption: a resumed session would skip the checks of the certificate.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// TLS for dialling this peer.
    pub fn client_config(&self, peer: &NodeName) -> Result<ClientConfig, TlsError> {
        let verifier = NodeServerVerifier {
            roots: self.roots.clone(),
            provider: self.provider.clone(),
            federation: self.federation.clone(),
            peer: peer.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError(format!("TLS for links cannot be set up: {error}")))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// The name sent in the clear when dialling: for routers and logs on the way, never believed.
    pub fn server_name(&self, peer: &NodeName) -> String {
        format!("{}.{}.{}", peer.node, peer.site, self.federation)
    }
}

fn no_certificate(path: &Path) -> TlsError {
    TlsError(format!("{} holds no certificate; it must be a PEM file with a CERTIFICATE section", path.display()))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, TlsError> {
    let fail = |why: String| TlsError(format!("{} cannot be read: {why}", path.display()));
    let length = fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
    if length > PEM_BYTES_MAX {
        return Err(fail(format!("it has {length} bytes, and a PEM file has at most {PEM_BYTES_MAX}")));
    }
    fs::read(path).map_err(|error| fail(error.to_string()))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(&read_bounded(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError(format!("{} is not a PEM file: {error}", path.display())))?;
    if chain.is_empty() { Err(no_certificate(path)) } else { Ok(chain) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read_bounded(path)?)
        .map_err(|error| TlsError(format!("{} holds no private key in PEM form: {error}", path.display())))
}

fn read_authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| {
            TlsError(format!("{} holds a certificate that cannot be an authority: {error}", path.display()))
        })?;
    }
    Ok(roots)
}

fn check_own_time(path: &Path, leaf: &CertificateDer<'_>) -> Result<(), TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| TlsError(format!("{}: {error}", path.display())))?;
    let now = UnixTime::now().as_secs();
    let validity = parsed.validity();
    if i128::from(validity.not_after.timestamp()) < i128::from(now) {
        return Err(TlsError(format!(
            "the certificate {} expired at {}; issue a new one with `seaway ca issue`",
            path.display(),
            validity.not_after
        )));
    }
    if i128::from(validity.not_before.timestamp()) > i128::from(now) {
        return Err(TlsError(format!(
            "the certificate {} is valid only from {}; check this machine's clock",
            path.display(),
            validity.not_before
        )));
    }
    Ok(())
}

/// What the checks that come before the name made of a certificate, in a sentence.
fn explain(certificate: &CertificateDer<'_>, error: &rustls::Error) -> PeerRefused {
    let parsed = match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => parsed,
        Err(error) => return PeerRefused::Identity(IdentityError::Malformed(error.to_string())),
    };
    let who = match Identity::of_certificate(certificate) {
        Ok(identity) => identity.to_string(),
        Err(_) => parsed.subject().to_string(),
    };
    let rustls::Error::InvalidCertificate(cause) = error else {
        return PeerRefused::Other { who, why: error.to_string() };
    };
    match cause {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            PeerRefused::Expired { who, at: parsed.validity().not_after.to_string() }
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            PeerRefused::NotYetValid { who, at: parsed.validity().not_before.to_string() }
        }
        // Two authorities of one name but different keys fail by the signature.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            PeerRefused::ForeignAuthority { who, issuer: parsed.issuer().to_string() }
        }
        other => PeerRefused::Other { who, why: other.to_string() },
    }
}

/// The node that a certificate names, if it is of this federation.
fn node_of_certificate(certificate: &CertificateDer<'_>, expected: &str) -> Result<NodeName, PeerRefused> {
    let identity = Identity::of_certificate(certificate)?;
    if identity.federation() != expected {
        return Err(PeerRefused::OtherFederation {
            who: identity.to_string(),
            found: identity.federation().to_owned(),
            expected: expected.to_owned(),
        });
    }
    match identity {
        Identity::Node { node, .. } => Ok(node),
        other => Err(PeerRefused::NotANode(other)),
    }
}

/// The node at the other end of an accepted or dialled connection, from the certificate that the
/// verifiers here have passed.
pub fn peer_of_connection(connection: &quinn::Connection, federation: &str) -> Result<NodeName, PeerRefused> {
    let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = chain.as_deref().and_then(|chain| chain.first()).ok_or(IdentityError::Missing)?;
    node_of_certificate(leaf, federation)
}

fn refuse(reason: PeerRefused) -> rustls::Error {
    // As `CertificateError::Other` it would be written with Debug, and the peer would read that.
    rustls::Error::Other(OtherError(Arc::new(reason)))
}

/// What of a handshake's failure is said to people: without the layers' own prefixes.
pub fn sentence(reason: &str) -> &str {
    reason.strip_prefix("other error: ").unwrap_or(reason)
}

#[derive(Debug)]
struct NodeClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    federation: String,
}

impl ClientCertVerifier for NodeClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a peer with another authority shall present its certificate all the same, so that the refusal can name it.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)
            .map_err(|error| refuse(explain(end_entity, &error)))?;
        node_of_certificate(end_entity, &self.federation).map_err(refuse)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct NodeServerVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    federation: String,
    peer: NodeName,
}

impl ServerCertVerifier for NodeServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // The DNS name is of no account on a link; the URI name below takes its place.
        let parsed = ParsedCertificate::try_from(end_entity).map_err(|error| refuse(explain(end_entity, &error)))?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )
        .map_err(|error| refuse(explain(end_entity, &error)))?;
        let found = node_of_certificate(end_entity, &self.federation).map_err(refuse)?;
        if found != self.peer {
            return Err(refuse(PeerRefused::WrongName { found, expected: self.peer.clone() }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
