//! Two processes under this node's name and certificate, linked with different neighbours: a copied machine, or a second start with
//! another data directory. (Of two at one neighbour, that one refuses the second.)
//!
//! Their records outdo each other: each finds a greater number under its own name, and goes on above it. That alone may be
//! a former start whose clock was ahead; who answers by going above in turn is alive. Two raises of each show it, a few round trips
//! after both are in one federation. The one whose data is older stays, by the rule for two edge brokers of a site; the other
//! answers once more, so that both know, and says no more of itself: all ways lead to the first then. It takes no messages until
//! nobody who can be reached states a link with the first any more.

use std::{collections::BTreeSet, time::Duration};

use super::{Output, Replication, routing::Known};
use crate::ids::{NodeName, Start};

/// Over so long ...
const RAISE_INTERVAL: Duration = Duration::from_secs(60);
/// ... a node goes on above greater numbers of its own name at most so often.
const RAISES_MAX: u32 = 8;
/// Name of the alarm.
const TWO_NODES: &str = "two-nodes-one-name";

/// What was seen of this node's own name.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// Since when `raises` are counted.
    since: Duration,
    raises: u32,
    /// Whether this process ever went above.
    raised: bool,
    /// There is another process of this name.
    there: bool,
    /// Of the two, this one takes no messages: the other's number, as last heard.
    second_to: Option<Start>,
}

impl Replication {
    /// Whether another process of this node's name is in the federation, whose data is older: then this one must take no messages.
    pub fn is_second_of_its_name(&self) -> bool {
        self.routing.twins.second_to.is_some()
    }

    /// Our own name with a greater number: a former start whose clock was ahead, or a second process of this name.
    pub(super) fn meet_own_record(&mut self, known: &Known) {
        if (known.start, known.sequence) <= (self.routing.start, self.routing.sequence) {
            return;
        }
        if let Some(first) = &mut self.routing.twins.second_to {
            *first = (*first).max(known.start);
            return;
        }
        // Whoever went on above what we said after going above him is alive.
        let answers = self.routing.twins.raised && known.start.time_us == self.routing.start.time_us.saturating_add(1);
        if answers && self.has_twin() {
            self.meet_twin(known);
        }
        let twins = &mut self.routing.twins;
        if self.now.saturating_sub(twins.since) >= RAISE_INTERVAL {
            (twins.since, twins.raises) = (self.now, 0);
        }
        if twins.raises >= RAISES_MAX {
            return;
        }
        twins.raises += 1;
        self.routing.sequence = self.routing.sequence.max(known.sequence);
        self.go_above(known.start);
    }

    fn meet_twin(&mut self, known: &Known) {
        let me = self.config.node.clone();
        // Of two copies of one data directory neither is older: then all that matters is that both choose the same.
        let second = (known.since, known.start.random) < (self.routing.since, self.routing.start.random);
        let twins = &mut self.routing.twins;
        twins.there = true;
        twins.second_to = second.then_some(known.start);
        let which = if second {
            "its data is older, so this one takes no messages and is left out of all routes"
        } else {
            "the data of this one is older, so the other one takes no messages"
        };
        let text = format!(
            "another process calls itself {me} too: {which}; stop one of the two, or give it a name and certificate of its own"
        );
        self.report_of(TWO_NODES, "this node elsewhere", text);
    }

    /// Numbers all that this node says above a start of its name.
    fn go_above(&mut self, start: Start) {
        let above = Start { time_us: start.time_us.saturating_add(1), random: self.config.start.random };
        let raise = above > self.routing.start && start > self.routing.start;
        if raise {
            // All that this node numbers goes above, not its record alone: what others know of its former start would
            // outdo its statements, registrations, marks and one-way messages else.
            self.routing.start = above;
            self.config.start = above;
            self.routing.twins.raised = true;
        }
        self.renew_own_record();
        if raise {
            for origin in self.routing.known_sites() {
                self.statements_anew(&origin);
                self.registration_anew(&origin);
            }
            self.ask_about_own();
        }
    }

    /// Whether somebody who can be reached is linked with a node of this name that is not this process.
    fn has_twin(&self) -> bool {
        let linked: BTreeSet<&NodeName> = self.links.values().map(|link| &link.peer.node).collect();
        self.routing.is_linked_elsewhere(&self.config.node, &linked)
    }

    /// The routes changed: the other process of this name may be gone.
    pub(super) fn look_for_twin(&mut self) {
        // One that reaches nobody cannot know.
        if !self.routing.twins.there || self.links.is_empty() || self.has_twin() {
            return;
        }
        self.routing.twins.there = false;
        self.out.push_back(Output::ReportOver(TWO_NODES, "this node elsewhere".to_owned()));
        if let Some(first) = self.routing.twins.second_to.take() {
            self.go_above(first);
        }
    }
}
