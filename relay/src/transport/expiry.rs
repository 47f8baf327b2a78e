//! When certificates end: what is known of a node's own, of its authorities, and of the peers it is linked with.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// When a certificate ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CertificateEnd {
    /// What it is for: `link`, `link-authority`, `peer`, `door`, `door-authority`.
    pub role: &'static str,
    /// Whom it names.
    pub holder: String,
    /// The end of its validity, microseconds since 1970.
    pub expires_us: u64,
}

impl CertificateEnd {
    /// Reads it from a certificate; `None` where that cannot be read.
    pub fn of(role: &'static str, certificate: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let named = super::identity::Identity::of_certificate(&CertificateDer::from(certificate));
        let holder = named.map_or_else(|_| parsed.subject().to_string(), |identity| identity.to_string());
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        Some(Self { role, holder, expires_us: seconds.saturating_mul(1_000_000) })
    }
}
