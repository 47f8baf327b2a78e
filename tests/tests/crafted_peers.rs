//! Peers that hold a good certificate and break the protocol, against a real node: each is cut off with a reason that
//! both ends can read, and the node lives on. What the session refuses batch by batch (checksums, chains, places) is
//! shown beside it, in `seaway-federation-proto` (`session/tests/faults.rs`).

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "tests")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use quinn::{Connection, Endpoint};
use seaway_edge_broker::bench::cluster::Kind;
use seaway_federation_proto::{
    limits,
    wire::link::{self, control::Kind as Control},
};
use seaway_relay::{
    node::LinkTls,
    transport::{
        endpoint::{self, Timing},
        tls::Credentials,
    },
};
use seaway_tests::cluster::{Federation, PATIENCE};

/// Kinds of channels and of frames on the wire.
const CONTROL: u8 = 1;
const LIVE: u8 = 2;
const BATCH: u8 = 2;

/// A frame whose length is what it claims to be.
fn frame(claimed: usize, kind: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.extend_from_slice(&u32::try_from(claimed).unwrap().to_le_bytes());
    out.extend_from_slice(&[kind]);
    out.extend_from_slice(body);
    out.freeze()
}

fn control(kind: Control) -> Bytes {
    let body = link::Control { kind: Some(kind) }.encode_to_vec();
    frame(body.len() + 1, CONTROL, &body)
}

fn hello(change: impl FnOnce(&mut link::Hello)) -> Bytes {
    let lane = |lane| link::LaneCredit { lane, bytes: 32 << 20 };
    let mut hello = link::Hello {
        fetches_max: 9,
        features: vec![],
        version_min: 1,
        version_max: 1,
        federation: "bench".into(),
        node: Some(link::NodeName { site: "bad".into(), node: "edge".into() }),
        kind: link::NodeKind::Edge.into(),
        start: Some(link::Start { time_us: 1, random: 2 }),
        batch_bytes_max: limits::BATCH_BYTES_MAX as u64,
        credit: vec![lane(1), lane(2)],
        software: "a crafted peer".into(),
        body_versions: vec![1],
    };
    change(&mut hello);
    control(Control::Hello(hello))
}

struct Peer {
    connection: Connection,
    _endpoint: Endpoint,
}

impl Peer {
    async fn dial(federation: &Federation) -> Self {
        let path = |name: &str| federation.cluster.dir.join(name);
        let files = LinkTls { cert: path("bad-edge.pem"), key: path("bad-edge.key"), ca: path("ca/ca.pem") };
        let credentials = Credentials::load(&files, "bench", &"bad/edge".parse().unwrap()).unwrap();
        let timing = Timing { probe_interval: Duration::from_millis(200), dead_after: Duration::from_secs(60) };
        let transport = Arc::new(endpoint::transport_config(timing));
        let node = "eu/edge".parse().unwrap();
        let dialler = endpoint::open(Some(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        let config = endpoint::client_config(&credentials, &node, transport).unwrap();
        let port = federation.cluster.member("eu/edge").unwrap().link_port;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let connecting = dialler.connect_with(config, address, &credentials.server_name(&node)).unwrap();
        Self { connection: connecting.await.unwrap(), _endpoint: dialler }
    }

    /// Sends bytes as the first stream of a channel.
    async fn send(&self, channel: u8, parts: &[Bytes]) {
        let mut stream = self.connection.open_uni().await.unwrap();
        // A node that cuts the peer off does so while this is being sent.
        let _ = stream.write_all(&[&[channel][..], &0_u64.to_le_bytes()].concat()).await;
        for part in parts {
            if stream.write_all(part).await.is_err() {
                return;
            }
        }
        let _ = stream.finish();
        let _ = stream.stopped().await;
    }

    /// Waits until the node closes the connection.
    async fn closed(&self) -> String {
        tokio::time::timeout(PATIENCE, self.connection.closed()).await.unwrap().to_string()
    }
}

#[test]
fn a_peer_that_breaks_the_protocol_is_cut_off_with_the_reason_and_the_node_lives_on() {
    let mut federation = Federation::one_edge("");
    // Its certificate is good; it never runs as a process.
    federation.cluster.add("bad/edge", Kind::Edge, &[], "").unwrap();
    let good = || hello(|_| {});
    // 40 MiB where 32 MiB were granted, for a fetch that nobody opened: the first frame ends it.
    let mut filler = vec![0; (1 << 20) - 10];
    filler[0] = 7;
    let flood: Vec<Bytes> = (0..40).map(|_| frame((1 << 20) - 9, BATCH, &filler)).collect();
    let cases: Vec<(&str, u8, Vec<Bytes>)> = vec![
        // What it says, on which channel it goes on after the hello, and what it sends there.
        ("speaks protocol versions 7 to 9", CONTROL, vec![hello(|h| (h.version_min, h.version_max) = (7, 9))]),
        ("belongs to federation \"other\"", CONTROL, vec![hello(|h| h.federation = "other".into())]),
        (
            "names us/edge, but its certificate bad/edge",
            CONTROL,
            vec![hello(|h| h.node = Some(link::NodeName { site: "us".into(), node: "edge".into() }))],
        ),
        ("claims 4294967295 bytes", CONTROL, vec![good(), frame(u32::MAX as usize, CONTROL, &[0; 64])]),
        ("claims 0 bytes", CONTROL, vec![good(), frame(0, CONTROL, &[0; 64])]),
        ("cannot be decoded", CONTROL, vec![good(), frame(3, CONTROL, &[0xff, 0xff])]),
        ("does not belong", LIVE, vec![frame(5, CONTROL, &[0; 4])]),
        ("does not begin with SWB1", LIVE, vec![frame(64, BATCH, &[0; 63])]),
        ("a batch of fetch 7 is not valid", LIVE, flood),
        ("lowered a lane's credit", CONTROL, {
            vec![good(), control(Control::Credit(link::Credit { lane: 1, granted_total: 1 }))]
        }),
        ("never asked for", CONTROL, vec![good(), control(Control::FetchStop(link::FetchStop { number: 4 }))]),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (part, channel, bytes) in cases {
        let before = federation.cluster.member("eu/edge").unwrap().logged().len();
        let told = runtime.block_on(async {
            let peer = Peer::dial(&federation).await;
            if channel != CONTROL {
                peer.send(CONTROL, &[good()]).await;
            }
            peer.send(channel, &bytes).await;
            peer.closed().await
        });
        let logged = federation.wait_logged("eu/edge", before, part);
        assert!(told.contains("closed"), "{part}: {told}");
        println!("{part:50} | the peer: {told} | the node: {}", logged.trim());
        assert!(federation.cluster.member_mut("eu/edge").unwrap().is_running(), "{part}");
        federation.run("eu/edge", &["pub", "orders", part]).ok();
    }
    let all = ["sub", "orders", "--from", "earliest", "--until-end", "--timeout", "120s"];
    assert_eq!(federation.run("eu/edge", &all).ok().out.lines().count(), 11);
}
