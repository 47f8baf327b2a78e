//! One-way messages: nothing is stored, so freedom from loops comes from routing. Accepted only from the upstream of
//! their origin, with a hop limit and a sliding window of sequence numbers; every drop is counted.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use super::{
    LinkId, Output, Replication,
    convert::{self, Checked},
};
use crate::{
    ids::{Path, Site, Start, Topic},
    session::NodeKind,
    wire::{WireError, link},
};

/// Sequence numbers below the greatest that can still be told apart.
const WINDOW: u64 = 1024;
const WORDS: usize = 16;

/// Which of an origin's last sequence numbers came.
#[derive(Debug)]
struct Window {
    start: Start,
    greatest: u64,
    seen: [u64; WORDS],
}

impl Window {
    fn bit(sequence: u64) -> (usize, u64) {
        let slot = sequence % WINDOW;
        (usize::try_from(slot / 64).unwrap_or(0), 1 << (slot % 64))
    }

    /// Whether this number is new; then it is noted.
    fn note(&mut self, sequence: u64) -> bool {
        if sequence.saturating_add(WINDOW) <= self.greatest {
            return false;
        }
        if sequence > self.greatest {
            if sequence - self.greatest >= WINDOW {
                self.seen = [0; WORDS];
            } else {
                for passed in self.greatest + 1..=sequence {
                    let (word, bit) = Self::bit(passed);
                    if let Some(word) = self.seen.get_mut(word) {
                        *word &= !bit;
                    }
                }
            }
            self.greatest = sequence;
        }
        let (word, bit) = Self::bit(sequence);
        let Some(word) = self.seen.get_mut(word) else { return false };
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// All that concerns one-way messages.
#[derive(Debug, Default)]
pub(super) struct OneWays {
    sequence: u64,
    windows: BTreeMap<Site, Window>,
}

impl Replication {
    pub(super) fn publish_one_way(&mut self, mut message: link::OneWayBody) -> Checked<()> {
        self.one_ways.sequence += 1;
        message.origin = self.config.node.site.to_string();
        message.start = Some(self.config.start.into());
        message.sequence = self.one_ways.sequence;
        let topic = message.path.parse::<Path>()?.topic();
        let origin = self.config.node.site.clone();
        let carried = link::OneWay { body: message.encode_to_vec().into(), hops: self.config.hops };
        self.spread(None, &origin, &topic, carried, message);
        Ok(())
    }

    /// What cannot be read is dropped and counted: the peer that passed it on need not be at fault.
    pub(super) fn receive_one_way(&mut self, from: LinkId, mut carried: link::OneWay) {
        carried.hops = carried.hops.min(self.config.hops);
        match read(&carried.body) {
            Ok((origin, start, topic, message)) => self.take_one_way(from, origin, start, &topic, carried, message),
            Err(_) => self.count("one_way_dropped_malformed"),
        }
    }

    fn take_one_way(
        &mut self,
        from: LinkId,
        origin: Site,
        start: Start,
        topic: &Topic,
        carried: link::OneWay,
        message: link::OneWayBody,
    ) {
        if self.routing.upstream(&origin) != Some(from) {
            self.count("one_way_dropped_not_from_upstream");
            return;
        }
        if carried.hops == 0 {
            self.count("one_way_dropped_hops");
            return;
        }
        if !self.one_ways.windows.contains_key(&origin) {
            let window = Window { start, greatest: 0, seen: [0; WORDS] };
            self.one_ways.windows.insert(origin.clone(), window);
        }
        let Some(window) = self.one_ways.windows.get_mut(&origin) else { return };
        let former = self.routing.is_former(&origin, start, window.start);
        if start != window.start && !former {
            *window = Window { start, greatest: 0, seen: [0; WORDS] };
        }
        if former || !window.note(message.sequence) {
            self.count("one_way_dropped_repeat");
            return;
        }
        self.spread(Some(from), &origin, topic, carried, message);
    }

    /// Delivers here, and forwards the origin's bytes to the neighbours whose wants cover the topic.
    fn spread(
        &mut self,
        from: Option<LinkId>,
        origin: &Site,
        topic: &Topic,
        carried: link::OneWay,
        message: link::OneWayBody,
    ) {
        let links: Vec<LinkId> = self
            .wants
            .links_for(origin)
            .into_iter()
            .filter(|l| Some(*l) != from && self.wants.peer_covers(*l, origin, topic))
            .collect();
        if !links.is_empty() {
            let on = link::OneWay { hops: carried.hops.saturating_sub(1), body: carried.body };
            self.out.push_back(Output::OneWay(Box::new(on), links));
        }
        if self.config.kind == NodeKind::Edge {
            self.out.push_back(Output::DeliverOneWay(Box::new(message)));
        }
    }
}

fn read(body: &Bytes) -> Checked<(Site, Start, Topic, link::OneWayBody)> {
    let message = link::OneWayBody::decode(body.clone()).map_err(|_| WireError::Undecodable)?;
    let topic = message.path.parse::<Path>()?.topic();
    Ok((convert::site_from(&message.origin)?, convert::start_from(message.start)?, topic, message))
}
