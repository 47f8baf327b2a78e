//! Two transports on loopback, with a small driver in the session's place.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use seaway_federation_proto::{
    ids::{NodeName, Start},
    session::{Channel, CloseReason, NodeKind, PeerInfo, Transmit},
    wire::link,
};

use super::{
    channels::CHANNELS,
    endpoint::Timing,
    identity::Identity,
    link::{BoxedRead, Drive, ReadDone},
    mailbox::LinkMailbox,
    service::{LinkOpener, Transport, TransportSettings},
    tls_tests::Federation,
};
use crate::{
    ca::CERTIFICATE_LIFETIME,
    link::{
        command::{LinkCommand, Mailbox},
        driver::LinkCounters,
    },
    log::contract::{Outside, Read},
    node::{LinkStatus, LinkTls},
};

const TIMING: Timing = Timing { probe_interval: Duration::from_millis(300), dead_after: Duration::from_secs(10) };
/// Far more than anything here takes, on a busy machine too.
const LONG: Duration = Duration::from_secs(60);

/// What one node's drivers saw.
#[derive(Default)]
struct Seen {
    opened: Vec<NodeName>,
    mailboxes: Vec<LinkMailbox>,
    bytes: [Vec<u8>; 3],
    one_way: Vec<Bytes>,
    reads: usize,
    lost: Vec<String>,
    name_taken: usize,
    twins: Vec<NodeName>,
}

/// Says a word on control at each interval, is up when it hears one; sends what it is told by `Send` on every channel.
struct Small {
    seen: Arc<Mutex<Seen>>,
    peer_name: NodeName,
    peer: Option<PeerInfo>,
    out: [VecDeque<Bytes>; 3],
    one_way: VecDeque<Bytes>,
    reads: Vec<u64>,
    next_beat: Duration,
    closed: Option<CloseReason>,
}

fn at(channel: Channel) -> usize {
    CHANNELS.iter().position(|known| *known == channel).unwrap()
}

impl Drive for Small {
    fn handle_bytes(&mut self, _: Duration, channel: Channel, bytes: Bytes) {
        self.seen.lock().bytes[at(channel)].extend_from_slice(&bytes);
        self.peer = Some(PeerInfo {
            node: self.peer_name.clone(),
            kind: NodeKind::Relay,
            start: Start { time_us: 1, random: 1 },
            version: 1,
            software: "test".into(),
            batch_bytes_max: 1,
            body_versions: vec![1],
            fetches_max: 1000,
            features: Vec::new(),
        });
    }
    fn handle_one_way(&mut self, _: Duration, bytes: Bytes) {
        self.seen.lock().one_way.push(bytes);
    }
    fn handle_command(&mut self, _: Duration, command: LinkCommand) {
        match command {
            LinkCommand::OneWay(message) => {
                self.one_way.push_back(message.body.clone());
            }
            LinkCommand::Serve(number) => self.reads.push(number),
            LinkCommand::Retry => self.out.iter_mut().for_each(|out| out.push_back(Bytes::from(vec![7; 3_000_000]))),
            LinkCommand::Close(reason) => {
                self.out[0].push_back(Bytes::from_static(b"farewell"));
                self.closed = Some(reason);
            }
            _ => {}
        }
    }
    fn handle_read_done(&mut self, _: Duration, (number, _): ReadDone) {
        assert_eq!(number, 5);
        self.seen.lock().reads += 1;
    }
    fn handle_timeout(&mut self, now: Duration) {
        assert!(now >= self.next_beat);
        self.next_beat = now + TIMING.probe_interval;
        self.out[0].push_back(Bytes::from_static(b"."));
    }
    fn handle_lost(&mut self, _: Duration, why: String) {
        self.seen.lock().lost.push(why);
    }
    fn poll_transmit(&mut self, _: Duration, channel: Channel) -> Option<Transmit> {
        let bytes = self.out[at(channel)].pop_front()?;
        Some(Transmit { chunks: vec![bytes], batches: 0 })
    }
    fn poll_one_way(&mut self) -> Option<Bytes> {
        self.one_way.pop_front()
    }
    fn poll_read(&mut self) -> Option<BoxedRead> {
        let number = self.reads.pop()?;
        Some(Box::new(move || (number, Ok(Read::Outside(Outside::NoCopy)))))
    }
    fn poll_timeout(&self) -> Option<Duration> {
        Some(self.next_beat)
    }
    fn closed(&self) -> Option<&CloseReason> {
        self.closed.as_ref()
    }
    fn peer(&self) -> Option<&PeerInfo> {
        self.peer.as_ref()
    }
    fn counters(&self) -> Arc<LinkCounters> {
        Arc::default()
    }
}

#[derive(Clone, Default)]
struct Opener(Arc<Mutex<Seen>>);

impl LinkOpener for Opener {
    fn open_link(
        &self,
        peer: &NodeName,
        _: bool,
        mailbox: LinkMailbox,
        now: Duration,
    ) -> Result<Box<dyn Drive>, String> {
        let mut seen = self.0.lock();
        seen.opened.push(peer.clone());
        seen.mailboxes.push(mailbox);
        let mut out: [VecDeque<Bytes>; 3] = Default::default();
        out[0].push_back(Bytes::from_static(b"hello"));
        Ok(Box::new(Small {
            seen: self.0.clone(),
            peer_name: peer.clone(),
            peer: None,
            out,
            one_way: VecDeque::new(),
            reads: Vec::new(),
            next_beat: now,
            closed: None,
        }))
    }

    fn dial_ended(&self, _: &NodeName, name_taken: bool) {
        self.0.lock().name_taken += usize::from(name_taken);
    }

    fn refused_twin(&self, peer: &NodeName, _: &str) {
        self.0.lock().twins.push(peer.clone());
    }
}

struct Running {
    transport: Transport,
    seen: Arc<Mutex<Seen>>,
}

impl Running {
    fn start(federation: &Federation, name: &str, listen: Option<SocketAddr>, dial: &[(&str, SocketAddr)]) -> Self {
        Self::start_for(federation, name, listen, dial, CERTIFICATE_LIFETIME)
    }

    /// With a certificate that is valid for so long.
    fn start_for(
        federation: &Federation,
        name: &str,
        listen: Option<SocketAddr>,
        dial: &[(&str, SocketAddr)],
        lifetime: Duration,
    ) -> Self {
        let node: NodeName = name.parse().unwrap();
        let file = format!("{}-{}", name.replace('/', "-"), getrandom::u64().unwrap());
        let issued = federation.issue_for(Identity::node(federation.name, node.clone()).unwrap(), &file, lifetime);
        let settings = TransportSettings {
            federation: federation.name.into(),
            node,
            listen,
            dial: dial.iter().map(|(peer, address)| (peer.parse().unwrap(), address.to_string())).collect(),
            tls: LinkTls { cert: issued.cert, key: issued.key, ca: federation.roots() },
            timing: TIMING,
            epoch: Instant::now(),
        };
        let opener = Opener::default();
        let transport = Transport::open(settings, Arc::new(opener.clone())).unwrap();
        transport.begin();
        Self { transport, seen: opener.0 }
    }

    fn address(&self) -> SocketAddr {
        self.transport.local_address().unwrap()
    }

    /// Waits until some link satisfies the condition.
    async fn wait(&self, what: impl Fn(&LinkStatus) -> bool) -> LinkStatus {
        let until = Instant::now() + LONG;
        loop {
            let links = self.transport.links();
            if let Some(link) = links.iter().find(|link| what(link)) {
                return link.clone();
            }
            assert!(Instant::now() < until, "{links:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn eventually(what: impl Fn() -> bool) {
    let until = Instant::now() + LONG;
    while !what() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn anywhere() -> Option<SocketAddr> {
    Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

#[tokio::test]
async fn a_link_comes_up_carries_everything_and_ends_in_peace() {
    let acme = Federation::new("acme");
    let relay = Running::start(&acme, "tokyo/relay", anywhere(), &[]);
    let edge = Running::start(&acme, "berlin/edge", None, &[("tokyo/relay", relay.address())]);
    let up = edge.wait(|link| link.state == "live").await;
    assert!(up.dials && up.rtt.is_some() && up.up_since_us.is_some() && up.peer_kind == Some(NodeKind::Relay));
    let up = relay.wait(|link| link.state == "live").await;
    assert_eq!(up.peer, Some("berlin/edge".parse().unwrap()));

    let mailbox = edge.seen.lock().mailboxes[0].clone();
    mailbox.post(LinkCommand::Retry);
    mailbox.post(LinkCommand::Serve(5));
    let payload = Bytes::from_static(b"one-way");
    mailbox.post(LinkCommand::OneWay(Box::new(link::OneWay { body: payload.clone(), hops: 0 })));
    eventually(|| {
        let seen = relay.seen.lock();
        seen.bytes.iter().all(|bytes| bytes.len() >= 3_000_000) && seen.one_way == [payload.clone()]
    })
    .await;
    eventually(|| edge.seen.lock().reads == 1).await;

    edge.transport.shutdown().await;
    let down = relay.wait(|link| link.state == "down").await;
    assert_eq!(down.reason, "the peer closed the link: the node is stopping");
    assert!(relay.seen.lock().bytes[0].ends_with(b"farewell"), "the last frames came before the end");
    assert_eq!(relay.seen.lock().lost, [down.reason]);
}

#[tokio::test]
async fn a_link_is_made_anew_after_the_peer_was_away() {
    let acme = Federation::new("acme");
    let relay = Running::start(&acme, "tokyo/relay", anywhere(), &[]);
    let address = relay.address();
    let edge = Running::start(&acme, "berlin/edge", None, &[("tokyo/relay", address)]);
    edge.wait(|link| link.state == "live").await;
    relay.transport.shutdown().await;
    drop(relay);
    edge.wait(|link| link.state != "live").await;
    // The port is free once the old endpoint's task has ended.
    eventually(|| std::net::UdpSocket::bind(address).is_ok()).await;
    let _relay = Running::start(&acme, "tokyo/relay", Some(address), &[]);
    let up = edge.wait(|link| link.state == "live").await;
    assert_eq!(up.reconnects, 1);
}

#[tokio::test]
async fn two_nodes_of_one_name_are_told_apart_and_the_newer_is_refused() {
    let acme = Federation::new("acme");
    let relay = Running::start(&acme, "tokyo/relay", anywhere(), &[]);
    let first = Running::start(&acme, "berlin/edge", None, &[("tokyo/relay", relay.address())]);
    relay.wait(|link| link.state == "live").await;
    let second = Running::start(&acme, "berlin/edge", None, &[("tokyo/relay", relay.address())]);
    let refused = second.wait(|link| link.reason.contains("two connections claim to be node berlin/edge")).await;
    assert!(refused.reason.starts_with("the peer refused the link: "), "{}", refused.reason);
    assert_eq!(first.transport.links()[0].state, "live");
    assert_eq!(relay.transport.links()[0].state, "live");
    assert_eq!(relay.seen.lock().opened.len(), 1);
    // Both the second one and who refused it are told.
    eventually(|| second.seen.lock().name_taken >= 1).await;
    assert_eq!(relay.seen.lock().twins[0].to_string(), "berlin/edge");
    assert_eq!(first.seen.lock().name_taken, 0);
}

#[tokio::test]
async fn a_node_that_meets_its_own_name_or_another_than_configured_says_so() {
    let acme = Federation::new("acme");
    let relay = Running::start(&acme, "tokyo/relay", anywhere(), &[]);
    let twin = Running::start(&acme, "tokyo/relay", None, &[("tokyo/relay", relay.address())]);
    twin.wait(|link| link.reason.contains("own name, tokyo/relay")).await;
    let edge = Running::start(&acme, "berlin/edge", None, &[("paris/relay", relay.address())]);
    edge.wait(|link| {
        link.reason == "the node that answered is tokyo/relay, not paris/relay; check the address of the peer"
    })
    .await;
    assert!(relay.seen.lock().opened.is_empty());
}

#[tokio::test]
async fn both_sides_dialling_makes_one_link_and_a_hint() {
    let acme = Federation::new("acme");
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let edge = Running::start(&acme, "berlin/edge", Some(free), &[]);
    let relay = Running::start(&acme, "tokyo/relay", anywhere(), &[("berlin/edge", free)]);
    edge.wait(|link| link.state == "live").await;
    edge.transport.shutdown().await;
    drop(edge);
    eventually(|| std::net::UdpSocket::bind(free).is_ok()).await;
    let edge = Running::start(&acme, "berlin/edge", Some(free), &[("tokyo/relay", relay.address())]);
    edge.wait(|link| link.state == "live").await;
    relay.wait(|link| link.state == "live").await;
    let told = |link: &LinkStatus| link.reason.contains("configure `dial` on one side only");
    eventually(|| edge.transport.links().iter().chain(&relay.transport.links()).any(told)).await;
    let live = edge.transport.links().iter().filter(|link| link.state == "live").count();
    assert_eq!(live, 1, "{:?}", edge.transport.links());
}

#[tokio::test]
async fn certificates_are_reloaded_without_dropping_links() {
    let acme = Federation::new("acme");
    let relay = Running::start(&acme, "tokyo/relay", anywhere(), &[]);
    let edge = Running::start(&acme, "berlin/edge", None, &[("tokyo/relay", relay.address())]);
    edge.wait(|link| link.state == "live").await;
    relay.transport.reload().unwrap();
    edge.transport.reload().unwrap();
    std::fs::write(acme.roots(), "nothing").unwrap();
    let error = relay.transport.reload().unwrap_err().to_string();
    assert!(error.contains("holds no certificate"), "{error}");
    assert_eq!(edge.transport.links()[0].state, "live");
}

#[tokio::test]
async fn a_paused_link_is_shown_so_at_both_ends_and_comes_back_when_resumed() {
    let acme = Federation::new("acme");
    let relay = Running::start(&acme, "tokyo/relay", anywhere(), &[]);
    let edge = Running::start(&acme, "berlin/edge", None, &[("tokyo/relay", relay.address())]);
    let (tokyo, berlin): (NodeName, NodeName) = ("tokyo/relay".parse().unwrap(), "berlin/edge".parse().unwrap());
    edge.wait(|link| link.state == "live").await;
    let unknown = edge.transport.pause(&"paris/relay".parse().unwrap(), "x").unwrap_err();
    assert_eq!(unknown, "there is no link with paris/relay; the peers known here are tokyo/relay");
    // From either side, the one that dials and the one that listens.
    for (here, there, peer) in [(&edge, &relay, &tokyo), (&relay, &edge, &berlin)] {
        relay.wait(|link| link.state == "live").await;
        here.transport.pause(peer, "client:me").unwrap();
        let why = format!("paused: by client:me at {}", if *peer == tokyo { &berlin } else { &tokyo });
        here.wait(|link| link.state == "paused" && link.reason == why).await;
        there.wait(|link| link.state == "paused" && link.reason == why).await;
        // It stays so, although one side would dial.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((here.transport.links()[0].state, there.transport.links()[0].state), ("paused", "paused"));
        assert_eq!(here.transport.resume(peer), Ok(true));
        assert_eq!(here.transport.resume(peer), Ok(false));
        edge.wait(|link| link.state == "live").await;
    }
}

#[tokio::test]
async fn a_certificate_that_expires_while_the_link_is_up_ends_no_link_and_makes_no_new_one() {
    let acme = Federation::new("acme");
    let relay = Running::start(&acme, "tokyo/relay", anywhere(), &[]);
    let address = relay.address();
    let edge = Running::start_for(&acme, "berlin/edge", None, &[("tokyo/relay", address)], Duration::from_secs(4));
    let up = edge.wait(|link| link.state == "live").await;
    let ends = |running: &Running, role| {
        let found = running.transport.certificates().into_iter().find(|c| c.role == role).unwrap();
        (found.holder, Duration::from_micros(found.expires_us))
    };
    let (holder, end) = ends(&edge, "link");
    assert_eq!((&holder, ends(&relay, "peer")), (&"seaway://acme/berlin/edge".to_owned(), (holder.clone(), end)));
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    while now() < end + Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // It carries on: nobody is cut off by a date.
    edge.seen.lock().mailboxes[0].post(LinkCommand::Retry);
    eventually(|| relay.seen.lock().bytes[1].len() >= 3_000_000).await;
    let still = edge.wait(|link| link.state == "live").await;
    assert_eq!((still.up_since_us, still.reconnects), (up.up_since_us, 0));
    // But once it is down it stays down, and both ends say why.
    relay.transport.pause(&"berlin/edge".parse().unwrap(), "x").unwrap();
    edge.wait(|link| link.state == "paused").await;
    relay.transport.resume(&"berlin/edge".parse().unwrap()).unwrap();
    let down = edge.wait(|link| link.reason.contains("expired at")).await;
    assert!(down.reason.contains("berlin/edge") && down.reason.contains("seaway ca issue"), "{}", down.reason);
    let error = edge.transport.reload().unwrap_err().to_string();
    assert!(error.contains("expired at"), "{error}");
}

#[tokio::test]
async fn a_mailbox_over_its_bound_closes_the_link_with_the_reason() {
    let acme = Federation::new("acme");
    let relay = Running::start(&acme, "tokyo/relay", anywhere(), &[]);
    let edge = Running::start(&acme, "berlin/edge", None, &[("tokyo/relay", relay.address())]);
    edge.wait(|link| link.state == "live").await;
    let mailbox = edge.seen.lock().mailboxes[0].clone();
    // In one go, so that the link's task cannot take any of it.
    let body = Bytes::from(vec![0; 1024 * 1024]);
    for _ in 0..70 {
        let record = link::Record { body: body.clone(), ..Default::default() };
        mailbox.post(LinkCommand::Send(Box::new(link::control::Kind::Record(record))));
    }
    relay.wait(|link| link.reason.contains("bytes of commands waited for the link")).await;
}
