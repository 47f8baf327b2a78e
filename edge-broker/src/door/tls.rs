//! The door's own certificate, and which clients' certificates it believes.

use std::{error::Error, path::Path};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::{DoorError, DoorTls};
use crate::limits::HANDSHAKE_TIMEOUT;

/// A server that speaks TLS as configured. Client certificates are optional: a token serves as well.
pub(super) fn apply(server: Server, tls: &DoorTls) -> Result<Server, DoorError> {
    let certificate = read(&tls.cert, "certificate")?;
    check_certificates(&tls.cert, &certificate)?;
    let key = read(&tls.key, "key")?;
    PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| bad(&tls.key, &format!("holds no private key in PEM form: {error}")))?;
    let mut config = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)).timeout(HANDSHAKE_TIMEOUT);
    if let Some(path) = &tls.client_ca {
        let authorities = read(path, "clients' authority")?;
        check_certificates(path, &authorities)?;
        config = config.client_ca_root(Certificate::from_pem(authorities)).client_auth_optional(true);
    }
    server.tls_config(config).map_err(|error| {
        let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        bad(&tls.cert, &format!("cannot be used with the key {}: {why}", tls.key.display()))
    })
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, DoorError> {
    std::fs::read(path).map_err(|error| bad(path, &format!("({what}) cannot be read: {error}")))
}

fn check_certificates(path: &Path, pem: &[u8]) -> Result<(), DoorError> {
    match CertificateDer::pem_slice_iter(pem).next() {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(bad(path, &format!("holds no certificate in PEM form: {error}"))),
        None => Err(bad(path, "holds no certificate in PEM form")),
    }
}

fn bad(path: &Path, why: &str) -> DoorError {
    DoorError::Tls(format!("the door's file {} {why}", path.display()))
}
