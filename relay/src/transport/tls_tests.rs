//! Certificates of `seaway ca`, and handshakes with good and bad ones, both ends looked at.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};

use rustls::{ClientConnection, Connection, ServerConnection, time_provider::TimeProvider};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use seaway_federation_proto::ids::NodeName;

use super::{
    identity::{ClientRefused, Identity, client_of_certificate},
    tls::{Credentials, sentence},
};
use crate::{
    ca::{AUTHORITY_LIFETIME, Authority, CERTIFICATE_LIFETIME, CaError, Holder, Issued, Request},
    node::LinkTls,
};

pub(super) struct Federation {
    pub(super) dir: tempfile::TempDir,
    pub(super) name: &'static str,
    authority: Authority,
}

impl Federation {
    pub(super) fn new(name: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), name, AUTHORITY_LIFETIME).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        Self { dir, name, authority }
    }

    pub(super) fn issue(&self, identity: Identity, file: &str) -> Issued {
        self.issue_for(identity, file, CERTIFICATE_LIFETIME)
    }

    pub(super) fn issue_for(&self, identity: Identity, file: &str, lifetime: std::time::Duration) -> Issued {
        let request = Request { holder: Holder::Member(identity), hosts: vec!["localhost".into()], lifetime };
        self.authority.issue(&request, self.dir.path(), file).unwrap()
    }

    /// Credentials of a node that trusts the authorities in `roots`.
    pub(super) fn node(&self, name: &str, roots: &Path) -> Credentials {
        let node: NodeName = name.parse().unwrap();
        let issued = self.issue(Identity::node(self.name, node.clone()).unwrap(), &name.replace('/', "-"));
        let files = LinkTls { cert: issued.cert, key: issued.key, ca: roots.to_owned() };
        Credentials::load(&files, self.name, &node).unwrap()
    }

    pub(super) fn roots(&self) -> std::path::PathBuf {
        self.dir.path().join("ca.pem")
    }
}

#[derive(Debug)]
struct Later(Duration);

impl TimeProvider for Later {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + self.0))
    }
}

/// Runs a handshake in memory; what dialler and listener say of it. `later`: how far ahead the clocks of (dialler, listener) are.
fn handshake(
    dialler: &Credentials,
    listener: &Credentials,
    peer: &str,
    later: (Duration, Duration),
) -> (Result<(), String>, Result<(), String>) {
    let peer: NodeName = peer.parse().unwrap();
    let mut client = dialler.client_config(&peer).unwrap();
    client.time_provider = Arc::new(Later(later.0));
    let mut server = listener.server_config().unwrap();
    server.time_provider = Arc::new(Later(later.1));
    let name = dialler.server_name(&peer).try_into().unwrap();
    let mut client: Connection = ClientConnection::new(Arc::new(client), name).unwrap().into();
    let mut server: Connection = ServerConnection::new(Arc::new(server)).unwrap().into();
    let mut results = (Ok(()), Ok(()));
    for _ in 0..10 {
        results.1 = results.1.and_then(|()| carry(&mut client, &mut server));
        results.0 = results.0.and_then(|()| carry(&mut server, &mut client));
    }
    if results == (Ok(()), Ok(())) {
        assert!(!client.is_handshaking() && !server.is_handshaking());
    }
    results
}

fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), String> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets().map_err(|error| sentence(&error.to_string()).to_owned())?;
    }
    Ok(())
}

const NOW: (Duration, Duration) = (Duration::ZERO, Duration::ZERO);

#[test]
fn nodes_of_one_authority_meet() {
    let acme = Federation::new("acme");
    let a = acme.node("berlin/edge", &acme.roots());
    let b = acme.node("tokyo/relay", &acme.roots());
    assert_eq!(handshake(&a, &b, "tokyo/relay", NOW), (Ok(()), Ok(())));
}

#[test]
fn an_expired_certificate_is_named_with_its_end_on_the_side_that_notices() {
    let acme = Federation::new("acme");
    let a = acme.node("berlin/edge", &acme.roots());
    let b = acme.node("tokyo/relay", &acme.roots());
    let late = CERTIFICATE_LIFETIME + Duration::from_secs(60);
    let (dialler, _) = handshake(&a, &b, "tokyo/relay", (late, Duration::ZERO));
    let said = dialler.unwrap_err();
    assert!(said.starts_with("the certificate of seaway://acme/tokyo/relay expired at "), "{said}");
    let (_, listener) = handshake(&a, &b, "tokyo/relay", (Duration::ZERO, late));
    let said = listener.unwrap_err();
    assert!(said.starts_with("the certificate of seaway://acme/berlin/edge expired at "), "{said}");
}

#[test]
fn a_foreign_authority_is_named_even_if_it_has_the_same_name() {
    let acme = Federation::new("acme");
    let other = Federation::new("acme");
    let a = acme.node("berlin/edge", &acme.roots());
    let foreign = other.node("tokyo/relay", &acme.roots());
    let expected = |who: &str| {
        format!(
            "the certificate of seaway://acme/{who} was issued by CN=Seaway authority of acme, which is not among the authorities configured here"
        )
    };
    let (dialler, _) = handshake(&a, &foreign, "tokyo/relay", NOW);
    assert_eq!(dialler.unwrap_err(), expected("tokyo/relay"));
    let (_, listener) = handshake(&foreign, &a, "berlin/edge", NOW);
    assert_eq!(listener.unwrap_err(), expected("tokyo/relay"));
}

#[test]
fn the_wrong_node_and_the_wrong_federation_are_refused() {
    let acme = Federation::new("acme");
    let umbrella = Federation::new("umbrella");
    let both = acme.dir.path().join("both.pem");
    let pems = [acme.roots(), umbrella.roots()].map(|path| fs::read_to_string(path).unwrap()).concat();
    fs::write(&both, pems).unwrap();
    let a = acme.node("berlin/edge", &both);
    let b = acme.node("tokyo/relay", &both);
    let (dialler, _) = handshake(&a, &b, "tokyo/other", NOW);
    assert_eq!(
        dialler.unwrap_err(),
        "the node that answered is tokyo/relay, not tokyo/other; check the address of the peer"
    );
    let c = umbrella.node("tokyo/relay", &both);
    let (dialler, _) = handshake(&a, &c, "tokyo/relay", NOW);
    assert_eq!(
        dialler.unwrap_err(),
        "the certificate of seaway://umbrella/tokyo/relay belongs to federation umbrella, not to acme"
    );
    let (_, listener) = handshake(&c, &a, "berlin/edge", NOW);
    assert!(listener.is_err() || handshake(&c, &a, "berlin/edge", NOW).0.is_err());
}

#[test]
fn a_client_certificate_opens_no_link() {
    let acme = Federation::new("acme");
    let a = acme.node("berlin/edge", &acme.roots());
    let issued = acme.issue(Identity::client("acme", "alice").unwrap(), "alice");
    let files = LinkTls { cert: issued.cert.clone(), key: issued.key, ca: acme.roots() };
    let error = Credentials::load(&files, "acme", &"tokyo/relay".parse().unwrap()).unwrap_err().to_string();
    assert!(
        error.contains("is the certificate of seaway://acme/client/alice, but this node is seaway://acme/tokyo/relay"),
        "{error}"
    );
    let der = CertificateDer::from_pem_file(&issued.cert).unwrap();
    assert_eq!(client_of_certificate(&der, "acme"), Ok("alice".to_owned()));
    assert!(matches!(client_of_certificate(&der, "other"), Err(ClientRefused::OtherFederation { .. })));
    drop(a);
}

#[test]
fn keys_are_private_and_nothing_is_overwritten() {
    let acme = Federation::new("acme");
    let node = Identity::node("acme", "berlin/edge".parse().unwrap()).unwrap();
    let issued = acme.issue(node.clone(), "edge");
    for key in [&issued.key, &acme.dir.path().join("ca.key")] {
        assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let before = fs::read(&issued.key).unwrap();
    let request = Request { holder: Holder::Member(node), hosts: Vec::new(), lifetime: CERTIFICATE_LIFETIME };
    assert!(matches!(acme.authority.issue(&request, acme.dir.path(), "edge"), Err(CaError::Exists(_))));
    fs::remove_file(&issued.cert).unwrap();
    assert!(matches!(acme.authority.issue(&request, acme.dir.path(), "edge"), Err(CaError::Exists(_))));
    assert_eq!(fs::read(&issued.key).unwrap(), before);
    assert!(matches!(Authority::create(acme.dir.path(), "acme", AUTHORITY_LIFETIME), Err(CaError::Exists(_))));
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let acme = Federation::new("acme");
    let issue = |holder, hosts: &[&str], lifetime| {
        let hosts = hosts.iter().map(ToString::to_string).collect();
        acme.authority.issue(&Request { holder, hosts, lifetime }, acme.dir.path(), "x").map(drop)
    };
    let member = |federation: &str| Holder::Member(Identity::client(federation, "x").unwrap());
    assert!(matches!(issue(Holder::Server, &[], CERTIFICATE_LIFETIME), Err(CaError::Host(_))));
    assert!(matches!(issue(Holder::Server, &["no good"], CERTIFICATE_LIFETIME), Err(CaError::Host(_))));
    assert!(matches!(issue(member("other"), &[], CERTIFICATE_LIFETIME), Err(CaError::Name(_))));
    assert!(matches!(issue(member("acme"), &[], AUTHORITY_LIFETIME * 2), Err(CaError::Lifetime(_))));
    assert!(matches!(issue(member("acme"), &[], Duration::ZERO), Err(CaError::Lifetime(_))));
    issue(Holder::Server, &["door.example.com", "*.example.com", "127.0.0.1", "::1"], CERTIFICATE_LIFETIME).unwrap();
}

#[test]
fn unreadable_files_are_named() {
    let acme = Federation::new("acme");
    let node: NodeName = "berlin/edge".parse().unwrap();
    let issued = acme.issue(Identity::node("acme", node.clone()).unwrap(), "edge");
    let other = acme.issue(Identity::node("acme", "tokyo/edge".parse().unwrap()).unwrap(), "other");
    let load = |cert: &Path, key: &Path, ca: &Path| {
        let files = LinkTls { cert: cert.to_owned(), key: key.to_owned(), ca: ca.to_owned() };
        Credentials::load(&files, "acme", &node).unwrap_err().to_string()
    };
    assert!(load(Path::new("/nowhere"), &issued.key, &acme.roots()).starts_with("/nowhere cannot be read"));
    assert!(load(&issued.key, &issued.key, &acme.roots()).contains("holds no certificate"));
    assert!(load(&issued.cert, &issued.cert, &acme.roots()).contains("holds no private key"));
    assert!(load(&issued.cert, &other.key, &acme.roots()).contains("does not fit the certificate"));
}
