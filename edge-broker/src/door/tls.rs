//! The door's own certificate, and which clients' certificates it believes: read from files, and again when told to.

use std::{fmt, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use seaway_relay::transport::{expiry::CertificateEnd, tls::provider};

use super::{DoorError, DoorTls};

/// What the door shows and believes from the next connection on.
pub(super) struct Certificates {
    files: DoorTls,
    current: ArcSwap<Secured>,
}

/// What was read of the files.
#[derive(Debug, Clone)]
pub(super) struct Secured {
    config: Arc<ServerConfig>,
    ends: Vec<CertificateEnd>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the files.
    pub(super) fn open(files: DoorTls) -> Result<Arc<Self>, DoorError> {
        let current = ArcSwap::from_pointee(read(&files)?);
        Ok(Arc::new(Self { files, current }))
    }

    /// Uses this for connections from now on; those that stand are not touched.
    pub(super) fn use_from_now(&self, secured: Secured) {
        self.current.store(Arc::new(secured));
    }

    /// When the certificates in use end.
    pub(super) fn ends(&self) -> Vec<CertificateEnd> {
        self.current.load().ends.clone()
    }

    /// For the next connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load().config.clone()
    }
}

/// Reads the files and checks that they fit each other. Client certificates are optional: a token serves as well.
pub(super) fn read(files: &DoorTls) -> Result<Secured, DoorError> {
    let chain = certificates(&files.cert, "certificate")?;
    let mut ends: Vec<_> = chain.first().and_then(|leaf| CertificateEnd::of("door", leaf)).into_iter().collect();
    let key = PrivateKeyDer::from_pem_slice(&bytes(&files.key, "key")?)
        .map_err(|error| bad(&files.key, &format!("holds no private key in PEM form: {error}")))?;
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(&files.cert, &format!("cannot be used: {error}")))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path, "clients' authority")? {
                ends.extend(CertificateEnd::of("door-authority", &authority));
                roots.add(authority).map_err(|error| bad(path, &format!("holds no authority: {error}")))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|error| bad(path, &format!("cannot be used: {error}")))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| bad(&files.cert, &format!("cannot be used with the key {}: {error}", files.key.display())))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Secured { config: Arc::new(config), ends })
}

fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, DoorError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes(path, what)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(bad(path, "holds no certificate in PEM form")),
        Err(error) => Err(bad(path, &format!("holds no certificate in PEM form: {error}"))),
    }
}

fn bytes(path: &Path, what: &str) -> Result<Vec<u8>, DoorError> {
    std::fs::read(path).map_err(|error| bad(path, &format!("({what}) cannot be read: {error}")))
}

fn bad(path: &Path, why: &str) -> DoorError {
    DoorError::Tls(format!("the door's file {} {why}", path.display()))
}
