//! The replication machine under control messages that only pass the decoder.

use std::time::Duration;

use prost::Message as _;
use seaway_federation_proto::{
    ids::Start,
    replication::{LinkId, Replication, ReplicationConfig, Want, WantStart},
    session::{FetchOrder, NodeKind, PeerInfo},
    wire::link::{self, control::Kind},
};

use super::links;

/// Outputs that one input may lead to: what a peer sends must not be amplified without bound.
const OUTPUTS_MAX: usize = 1_000_000;

fn machine(now: Duration) -> Option<Replication> {
    let config = ReplicationConfig {
        node: "b/1".parse().ok()?,
        kind: NodeKind::Edge,
        start: Start { time_us: 5, random: 6 },
        mark_interval: Duration::from_secs(1),
        hops: 8,
        replicate: Vec::new(),
        lost_after: Duration::from_secs(60),
        costs: Vec::new(),
        logs_max: 100,
        wants_max: 100,
        sites_max: 100,
        body_versions: vec![1],
        no_transit: false,
    };
    let mut machine = Replication::new(config, now);
    machine.restore(Vec::new(), Vec::new());
    let pattern = "#".parse().ok()?;
    let want = Want { id: "w".into(), pattern, origins: Vec::new(), start: WantStart::Earliest, registers: true };
    machine.handle_want(now, want);
    for (number, name) in [(1, "a/1"), (2, "c/1")] {
        let peer = PeerInfo {
            node: name.parse().ok()?,
            kind: NodeKind::Relay,
            start: Start { time_us: 1, random: number },
            version: 1,
            software: String::new(),
            batch_bytes_max: 1 << 20,
            body_versions: vec![1],
            fetches_max: 1000,
            features: Vec::new(),
        };
        machine.handle_link_up(now, LinkId(number), peer);
    }
    Some(machine)
}

/// A sequence of: u8 link and time, u16 length, control message.
pub(super) fn run(input: &[u8]) {
    let mut now = Duration::from_secs(10);
    let Some(mut machine) = machine(now) else { return };
    let mut rest = input;
    while let Some((step, message)) = links::take_step(&mut rest) {
        let link = LinkId(u64::from(step & 3));
        if step & 0x80 != 0 {
            now += Duration::from_millis(u64::from(step) * 20);
            machine.handle_timeout(now, 1_700_000_000_000_000);
        }
        match link::Control::decode(message).ok().and_then(|c| c.kind) {
            Some(Kind::Fetch(fetch)) => {
                if let Ok(order) = FetchOrder::try_from(fetch) {
                    machine.handle_fetch_requested(now, link, order);
                }
            }
            Some(kind) => machine.handle_message(now, link, kind),
            None => {
                if let Ok(message) = link::OneWay::decode(message) {
                    machine.handle_one_way(now, link, message);
                }
            }
        }
        let outputs = std::iter::from_fn(|| machine.poll_output()).take(OUTPUTS_MAX).count();
        assert!(outputs < OUTPUTS_MAX, "one message led to {outputs} outputs");
    }
    let _ = machine.sites();
    let _ = machine.counters();
}

pub(super) fn corpus() -> Vec<Vec<u8>> {
    let messages = links::controls();
    let step = |step: u8, message: &Vec<u8>| {
        let mut bytes = vec![step];
        bytes.extend_from_slice(&(message.len() as u16).to_le_bytes());
        bytes.extend_from_slice(message);
        bytes
    };
    let all: Vec<u8> = messages.iter().enumerate().flat_map(|(n, m)| step(1 + (n as u8 % 2), m)).collect();
    let late: Vec<u8> = messages.iter().flat_map(|m| step(0x81, m)).collect();
    let twice = [all.clone(), late.clone()].concat();
    vec![all, late, twice]
}
