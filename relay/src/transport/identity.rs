//! Who somebody is, as a certificate states it.
//!
//! A certificate of this federation carries exactly one subject alternative name of type URI that begins
//! with `seaway://`:
//!
//! | URI | whose |
//! |---|---|
//! | `seaway://FEDERATION/SITE/NODE` | a node's: link and doors |
//! | `seaway://FEDERATION/client/NAME` | a client's: doors only |
//! | `seaway://FEDERATION` | the authority's own |
//!
//! The common name is for people and never believed. No site may be named `client`, so the two kinds
//! cannot be mistaken for each other. DNS names and addresses beside the URI serve clients that dial a
//! door over ordinary TLS; links ignore them, so a node may move without a new certificate.

use std::fmt;

use rustls_pki_types::CertificateDer;
use seaway_federation_proto::ids::{InvalidName, NodeName, Site};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const SCHEME: &str = "seaway://";
/// In place of the site in a client's URI; no site may have this name.
const CLIENT: &str = "client";
/// Longest name of a client, bytes.
const CLIENT_NAME_BYTES_MAX: usize = 64;

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A node.
    Node {
        /// Its federation.
        federation: String,
        /// Its name.
        node: NodeName,
    },
    /// A client of the doors.
    Client {
        /// Its federation.
        federation: String,
        /// Its name: 1 to 64 of letters, digits, `.`, `_`, `-` and `@`.
        name: String,
    },
    /// The federation's authority.
    Authority {
        /// The federation.
        federation: String,
    },
}

/// Why a certificate names nobody of a federation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate at all.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// No `seaway://` name.
    #[error("the certificate has no seaway:// name; issue one with `seaway ca issue`")]
    Missing,
    /// More than one.
    #[error("the certificate has several seaway:// names ({0} and {1}); it must have exactly one")]
    Several(String, String),
    /// A name that breaks the rules.
    #[error(
        "the name {uri:?} in the certificate is not of the form seaway://FEDERATION/SITE/NODE or seaway://FEDERATION/client/NAME: {why}"
    )]
    Invalid {
        /// What stands there.
        uri: String,
        /// Which rule it breaks.
        why: String,
    },
}

/// Checks a federation's name: a DNS label.
pub fn check_federation(text: &str) -> Result<(), InvalidName> {
    text.parse::<Site>().map(drop).map_err(|error| InvalidName { what: "federation", ..error })
}

fn check_client(text: &str) -> Result<(), InvalidName> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-@".contains(&b);
    if text.is_empty() || text.len() > CLIENT_NAME_BYTES_MAX || !text.bytes().all(allowed) {
        return Err(InvalidName {
            what: "client",
            found: text.chars().take(64).collect(),
            rule: "it must be 1 to 64 of letters, digits, '.', '_', '-' and '@'",
        });
    }
    Ok(())
}

impl Identity {
    /// A node's identity. Fails for a federation that is no DNS label, and for a site named `client`.
    pub fn node(federation: &str, node: NodeName) -> Result<Self, InvalidName> {
        check_federation(federation)?;
        if node.site.as_str() == CLIENT {
            return Err(InvalidName {
                what: "site",
                found: CLIENT.to_owned(),
                rule: "in certificates it stands for clients; choose another name for the site",
            });
        }
        Ok(Self::Node { federation: federation.to_owned(), node })
    }

    /// A client's identity.
    pub fn client(federation: &str, name: &str) -> Result<Self, InvalidName> {
        check_federation(federation)?;
        check_client(name)?;
        Ok(Self::Client { federation: federation.to_owned(), name: name.to_owned() })
    }

    /// The authority of a federation.
    pub fn authority(federation: &str) -> Result<Self, InvalidName> {
        check_federation(federation)?;
        Ok(Self::Authority { federation: federation.to_owned() })
    }

    /// The federation.
    pub fn federation(&self) -> &str {
        match self {
            Self::Node { federation, .. } | Self::Client { federation, .. } | Self::Authority { federation } => {
                federation
            }
        }
    }

    /// Parses what [`fmt::Display`] writes.
    pub fn parse(uri: &str) -> Result<Self, IdentityError> {
        let invalid = |why: String| IdentityError::Invalid { uri: uri.chars().take(256).collect(), why };
        let rest = uri.strip_prefix(SCHEME).ok_or_else(|| invalid(format!("it does not begin with {SCHEME}")))?;
        let parts: Vec<&str> = rest.split('/').collect();
        let parsed = match parts.as_slice() {
            [federation] => Self::authority(federation),
            [federation, CLIENT, name] => Self::client(federation, name),
            [federation, site, node] => {
                site.parse().and_then(|site| NodeName::new(site, node)).and_then(|name| Self::node(federation, name))
            }
            _ => return Err(invalid("it must have one or three parts".to_owned())),
        };
        parsed.map_err(|error| invalid(error.to_string()))
    }

    /// Whom a certificate names. Says nothing about whether the certificate is to be trusted.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| IdentityError::Malformed(error.to_string()))?;
        let names = parsed.subject_alternative_name().map_err(|error| IdentityError::Malformed(error.to_string()))?;
        let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        let uri = uris.next().ok_or(IdentityError::Missing)?;
        match uris.next() {
            Some(second) => Err(IdentityError::Several(uri.to_owned(), second.to_owned())),
            None => Self::parse(uri),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { federation, node } => write!(f, "{SCHEME}{federation}/{node}"),
            Self::Client { federation, name } => write!(f, "{SCHEME}{federation}/{CLIENT}/{name}"),
            Self::Authority { federation } => write!(f, "{SCHEME}{federation}"),
        }
    }
}

/// The client named by a certificate that a door accepted (its chain and validity are already checked by
/// TLS): its name, if it belongs to this federation. Nodes and authorities are not clients.
pub fn client_of_certificate(certificate: &CertificateDer<'_>, federation: &str) -> Result<String, ClientRefused> {
    match Identity::of_certificate(certificate)? {
        Identity::Client { federation: found, name } if found == federation => Ok(name),
        Identity::Client { federation: found, .. } => {
            Err(ClientRefused::OtherFederation { found, expected: federation.to_owned() })
        }
        other => Err(ClientRefused::NotAClient(other)),
    }
}

/// Why a certificate is not one of a client of this federation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientRefused {
    /// It names nobody.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It names a node or the authority.
    #[error("{0} is not a client; issue a certificate with `seaway ca client`")]
    NotAClient(Identity),
    /// It is of another federation.
    #[error("the certificate belongs to federation {found}, and this node to {expected}")]
    OtherFederation {
        /// The certificate's.
        found: String,
        /// This node's.
        expected: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_being_written_and_parsed() {
        for identity in [
            Identity::node("acme", "berlin/edge-1".parse().unwrap()).unwrap(),
            Identity::client("acme", "Till.2@host_x").unwrap(),
            Identity::authority("acme").unwrap(),
        ] {
            assert_eq!(Identity::parse(&identity.to_string()), Ok(identity));
        }
    }

    #[test]
    fn a_client_cannot_pass_for_a_node() {
        assert!(Identity::node("acme", "client/x".parse().unwrap()).is_err());
        assert!(matches!(Identity::parse("seaway://acme/client/x"), Ok(Identity::Client { .. })));
    }

    #[test]
    fn malformed_names_are_refused() {
        for uri in [
            "",
            "seaway:/acme/a/b",
            "seaway://",
            "seaway://acme/",
            "seaway://acme/a",
            "seaway://acme/a/b/c",
            "seaway://acme/A/b",
            "seaway://acme/client/",
            "seaway://acme/client/a b",
            "seaway://acme/a/b?x",
            "seaway://Acme/a/b",
        ] {
            assert!(Identity::parse(uri).is_err(), "{uri}");
        }
        assert!(matches!(
            Identity::of_certificate(&CertificateDer::from(vec![0x30, 0x03, 1, 2])),
            Err(IdentityError::Malformed(_))
        ));
    }
}
