//! The door's own certificate, and which clients' certificates it believes: read from files, and again when told to.

use std::{fmt, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use seaway_relay::transport::tls::provider;

use super::{DoorError, DoorTls};

/// What the door shows and believes from the next connection on.
pub(super) struct Certificates {
    files: DoorTls,
    current: ArcSwap<ServerConfig>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the files.
    pub(super) fn open(files: DoorTls) -> Result<Arc<Self>, DoorError> {
        let current = ArcSwap::new(read(&files)?);
        Ok(Arc::new(Self { files, current }))
    }

    /// What the files say now.
    pub(super) fn read_again(&self) -> Result<Arc<ServerConfig>, DoorError> {
        read(&self.files)
    }

    /// Uses this for connections from now on; those that stand are not touched.
    pub(super) fn use_from_now(&self, config: Arc<ServerConfig>) {
        self.current.store(config);
    }

    /// For the next connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

/// Reads the files and checks that they fit each other. Client certificates are optional: a token serves as well.
pub(super) fn read(files: &DoorTls) -> Result<Arc<ServerConfig>, DoorError> {
    let chain = certificates(&files.cert, "certificate")?;
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
    Ok(Arc::new(config))
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
