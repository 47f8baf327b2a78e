//! A private authority for a federation that has none: what `seaway ca` does.
//!
//! An authority is a directory with `ca.pem` and `ca.key`. It issues certificates for nodes (both sides
//! of a link, and the doors), for clients, and plain ones for doors; what they state is described in
//! [`crate::transport::identity`]. Keys are ECDSA P-256, written so that only their owner reads them.
//! Nothing is ever overwritten.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use seaway_federation_proto::ids::InvalidName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::transport::identity::{Identity, IdentityError};

/// How long an authority is valid unless told otherwise: ten years.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3653 * 24 * 3600);
/// How long an issued certificate is valid unless told otherwise: one year.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Longest lifetime that can be asked for: a hundred years.
const LIFETIME_MAX: Duration = Duration::from_secs(36_525 * 24 * 3600);
/// Certificates begin so long before they are issued, for clocks that differ.
const BACKDATED: Duration = Duration::from_secs(3600);

const AUTHORITY_CERT: &str = "ca.pem";
const AUTHORITY_KEY: &str = "ca.key";

/// Why an authority cannot be made or used, or a certificate not be issued: one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A name breaks a rule.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A DNS name or address breaks a rule.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Host(String),
    /// The file is there already.
    #[error("{0} exists already, and keys are never overwritten; choose another directory or name, or move it away")]
    Exists(PathBuf),
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The directory holds no authority of a federation.
    #[error("{path} is not the certificate of a Seaway authority: {why}; make one with `seaway ca init`")]
    NotAnAuthority {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Zero or too long, or beyond the authority's own end.
    #[error("{0}")]
    Lifetime(String),
    /// What rcgen says.
    #[error("the certificate cannot be made: {0}")]
    Generation(#[from] rcgen::Error),
}

/// The two files of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Certificate, PEM, readable for all.
    pub cert: PathBuf,
    /// Private key, PEM, mode 0600.
    pub key: PathBuf,
}

/// For whom a certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A node or a client; authorities are made by [`Authority::create`] alone.
    Member(Identity),
    /// A door only (a load balancer, say): a plain server certificate with these names and no identity.
    Server,
}

/// What to issue.
#[derive(Debug, Clone)]
pub struct Request {
    /// For whom.
    pub holder: Holder,
    /// DNS names and IP addresses under which clients dial its doors; at least one for [`Holder::Server`].
    pub hosts: Vec<String>,
    /// How long it is valid from now.
    pub lifetime: Duration,
}

/// An authority of one federation.
#[derive(Debug)]
pub struct Authority {
    federation: String,
    not_after: i64,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes an authority in a directory, which is created if missing. Fails if one is there.
    pub fn create(dir: &Path, federation: &str, lifetime: Duration) -> Result<Issued, CaError> {
        let identity = Identity::authority(federation)?;
        let mut params = params(&identity.to_string(), &format!("Seaway authority of {federation}"), lifetime)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        fs::create_dir_all(dir).map_err(|error| CaError::File { path: dir.to_owned(), error })?;
        let files = Issued { cert: dir.join(AUTHORITY_CERT), key: dir.join(AUTHORITY_KEY) };
        write_pair(&files, &certificate.pem(), &key)?;
        Ok(files)
    }

    /// Opens the authority of a directory.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let path = dir.join(AUTHORITY_CERT);
        let cert_pem = read_text(&path)?;
        let wrong = |why: String| CaError::NotAnAuthority { path: path.clone(), why };
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let federation = match Identity::of_certificate(&der) {
            Ok(Identity::Authority { federation }) => federation,
            Ok(other) => return Err(wrong(format!("it names {other}"))),
            Err(error @ (IdentityError::Malformed(_) | IdentityError::Invalid { .. } | IdentityError::Several(..))) => {
                return Err(wrong(error.to_string()));
            }
            Err(IdentityError::Missing) => return Err(wrong("it has no seaway:// name".to_owned())),
        };
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| wrong(error.to_string()))?;
        let not_after = parsed.validity().not_after.timestamp();
        let key_path = dir.join(AUTHORITY_KEY);
        let key = KeyPair::from_pem(&read_text(&key_path)?)
            .map_err(|error| CaError::NotAnAuthority { path: key_path, why: error.to_string() })?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(wrong(format!("its key is not the one in {AUTHORITY_KEY}")));
        }
        Ok(Self { federation, not_after, issuer: Issuer::from_ca_cert_pem(&cert_pem, key)? })
    }

    /// The federation it speaks for.
    pub fn federation(&self) -> &str {
        &self.federation
    }

    /// Issues a certificate into `NAME.pem` and `NAME.key` of a directory, which is created if missing.
    pub fn issue(&self, request: &Request, dir: &Path, name: &str) -> Result<Issued, CaError> {
        let mut params = self.params_of(request)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        for host in &request.hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::create_dir_all(dir).map_err(|error| CaError::File { path: dir.to_owned(), error })?;
        let files = Issued { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
        write_pair(&files, &certificate.pem(), &key)?;
        Ok(files)
    }

    fn params_of(&self, request: &Request) -> Result<CertificateParams, CaError> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let (uri, title, purposes) = match &request.holder {
            Holder::Member(identity @ Identity::Node { node, .. }) => {
                (Some(identity), format!("Seaway node {node}"), vec![ServerAuth, ClientAuth])
            }
            Holder::Member(identity @ Identity::Client { name, .. }) => {
                (Some(identity), format!("Seaway client {name}"), vec![ClientAuth])
            }
            Holder::Member(identity @ Identity::Authority { .. }) => {
                return Err(InvalidName {
                    what: "holder",
                    found: identity.to_string(),
                    rule: "an authority issues for nodes, clients and servers, not for authorities",
                }
                .into());
            }
            Holder::Server => {
                let first = request.hosts.first().ok_or_else(|| CaError::Host(String::new()))?;
                (None, format!("Seaway door {first}"), vec![ServerAuth])
            }
        };
        if let Some(identity) = uri.filter(|identity| identity.federation() != self.federation) {
            return Err(CaError::Name(InvalidName {
                what: "federation",
                found: identity.federation().to_owned(),
                rule: "it must be the authority's own",
            }));
        }
        let uri = uri.map(ToString::to_string).unwrap_or_default();
        let mut params = params(&uri, &title, request.lifetime)?;
        if params.not_after.unix_timestamp() > self.not_after {
            return Err(CaError::Lifetime(
                "the certificate would outlive its authority; ask for a shorter lifetime or make a new authority"
                    .to_owned(),
            ));
        }
        params.extended_key_usages = purposes;
        Ok(params)
    }
}

fn params(uri: &str, title: &str, lifetime: Duration) -> Result<CertificateParams, CaError> {
    if lifetime < Duration::from_secs(1) || lifetime > LIFETIME_MAX {
        return Err(CaError::Lifetime("a lifetime must be at least a second and at most a hundred years".to_owned()));
    }
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, title);
    if !uri.is_empty() {
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    Ok(params)
}

fn host_name(host: &str) -> Result<SanType, CaError> {
    if let Ok(address) = host.parse() {
        return Ok(SanType::IpAddress(address));
    }
    // The wildcard is allowed as a first label.
    let plain = host.strip_prefix("*.").unwrap_or(host);
    rustls_pki_types::DnsName::try_from(plain).map_err(|_| CaError::Host(host.to_owned()))?;
    Ok(SanType::DnsName(host.try_into()?))
}

fn read_text(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|error| CaError::File { path: path.to_owned(), error })
}

/// Writes key, then certificate, each only if it is not there yet; leaves none behind if one fails.
fn write_pair(files: &Issued, certificate: &str, key: &KeyPair) -> Result<(), CaError> {
    if files.cert.exists() {
        return Err(CaError::Exists(files.cert.clone()));
    }
    write_new(&files.key, &key.serialize_pem(), 0o600)?;
    write_new(&files.cert, certificate, 0o644).inspect_err(|_| {
        // The key alone is of no use, and it is ours: it was just made.
        let _ = fs::remove_file(&files.key);
    })
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => CaError::Exists(path.to_owned()),
            _ => CaError::File { path: path.to_owned(), error },
        })?;
    let write = |file: &mut File| file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    write(&mut file).map_err(|error| {
        let _ = fs::remove_file(path);
        CaError::File { path: path.to_owned(), error }
    })
}
