//! Two processes under this node's name and certificate, linked with different neighbours: a copied machine, or a second start with
//! another data directory. (Of two at one neighbour, that one refuses the second.)
//!
//! Their records outdo each other: each finds a greater number under its own name, and goes on above it. That alone may be
//! a former start whose clock was ahead; who answers by going above in turn is alive. Two raises of each show it, a few round trips
//! after both are in one federation. The one whose data is older stays, by the rule for two edge brokers of a site; the other
//! says in one last record that it stands back, so that both know, and no more: all ways lead to the first then. It takes no
//! messages until nobody who can be reached states a link with the first any more, for longer than a restart takes. Who is told
//! that the other stands back stays, whatever their data: a restart gives nobody's place away.
//!
//! At most once a minute would be enough against a former start; finding out a living one within seconds takes some more.

use std::{collections::BTreeSet, time::Duration};

use super::{Output, Replication, routing::Known};
use crate::ids::{NodeName, Start};

/// Over so long ...
const RAISE_INTERVAL: Duration = Duration::from_secs(60);
/// ... a node goes on above greater numbers of its own name at most so often.
const RAISES_MAX: u32 = 16;
/// What was not seen of the other process for so long is gone; a restart takes less.
const GONE_AFTER: Duration = Duration::from_secs(60);
/// Name of the alarm, and its subject.
const TWO_NODES: &str = "two-nodes-one-name";
const ELSEWHERE: &str = "this node elsewhere";

/// What was seen of this node's own name.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// Since when `raises` are counted.
    since: Duration,
    raises: u32,
    /// Whether this process ever went above.
    raised: bool,
    /// When the other process was last known to be there.
    seen: Option<Duration>,
    second: Option<Second>,
}

/// Of two processes of this name, this one stands back.
#[derive(Debug)]
struct Second {
    /// The first one's number, as last heard.
    first: Start,
    /// With whom it is linked.
    neighbours: BTreeSet<NodeName>,
    /// The first one has not been told yet.
    untold: bool,
    told_at: Duration,
}

impl Twins {
    pub(super) fn stands_back(&self) -> bool {
        self.second.is_some()
    }

    /// Whether there is another process of this name, and this one was found to be the one that counts.
    pub(super) fn counts(&self) -> bool {
        self.seen.is_some() && self.second.is_none()
    }
}

impl Replication {
    /// Whether another process of this node's name is in the federation, and counts: then this one must take no messages.
    pub fn is_second_of_its_name(&self) -> bool {
        self.routing.twins.stands_back()
    }

    /// Our own name with a greater number: a former start whose clock was ahead, or a second process of this name.
    pub(super) fn meet_own_record(&mut self, known: &Known) {
        if (known.start, known.sequence) <= (self.routing.start, self.routing.sequence) {
            return;
        }
        self.routing.sequence = self.routing.sequence.max(known.sequence);
        if self.routing.twins.second.is_some() {
            return self.meet_first(known);
        }
        // Whoever went on above what we said after going above him is alive.
        let answers = self.routing.twins.raised && known.start.time_us == self.routing.start.time_us.saturating_add(1);
        if (answers || known.stands_back) && self.has_twin() {
            // Of two copies of one data directory neither is older: then all that matters is that both choose the same.
            let younger = (known.since, known.start.random) < (self.routing.since, self.routing.start.random);
            let second = match (self.routing.twins.counts(), known.counts) {
                // One of the two was found to count before: a restart of the other changes nothing.
                (true, false) => false,
                (false, true) => true,
                _ => younger && !known.stands_back,
            };
            self.tell_of_twin(second);
            if second {
                self.routing.twins.second =
                    Some(Second { first: known.start, neighbours: BTreeSet::new(), untold: true, told_at: self.now });
                return self.meet_first(known);
            }
        }
        let (now, twins) = (self.now, &mut self.routing.twins);
        if now.saturating_sub(twins.since) >= RAISE_INTERVAL {
            (twins.since, twins.raises) = (now, 0);
        }
        if twins.raises >= RAISES_MAX {
            return;
        }
        twins.raises += 1;
        if twins.raises == RAISES_MAX {
            twins.seen = Some(now);
            let me = &self.config.node;
            let text = format!(
                "somebody goes on numbering what {me} says above this node; see whether another process has its name"
            );
            self.report_of(TWO_NODES, ELSEWHERE, text);
        }
        self.go_above(known.start);
    }

    /// The first of two processes of this name spoke.
    fn meet_first(&mut self, known: &Known) {
        let Some(second) = &mut self.routing.twins.second else { return };
        // A third one that stands back as we do: who is linked with it is not the first's any more.
        if known.stands_back {
            second.neighbours.retain(|node| !known.neighbours.contains_key(node));
            return;
        }
        // A new process has not been told.
        let untold = second.untold || second.first.random != known.start.random;
        second.first = second.first.max(known.start);
        second.neighbours = known.neighbours.keys().cloned().collect();
        second.untold = false;
        if untold {
            second.told_at = self.now;
            self.go_above(known.start);
        }
    }

    fn tell_of_twin(&mut self, second: bool) {
        self.routing.twins.seen = Some(self.now);
        let which = if second { "this one stands back and takes" } else { "the other one stands back and takes" };
        let text = format!(
            "another process calls itself {} too: {which} no messages (the one whose data is older counts); stop one of the two, or give \
             it a name and certificate of its own",
            self.config.node
        );
        self.report_of(TWO_NODES, ELSEWHERE, text);
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
        if raise && !self.is_second_of_its_name() {
            self.say_all_anew();
        }
    }

    fn say_all_anew(&mut self) {
        for origin in self.routing.known_sites() {
            self.statements_anew(&origin);
            self.registration_anew(&origin);
        }
        self.ask_about_own();
    }

    /// A link came up: the first of two processes may have forgotten of the other, if that was away for as long. Not at each of a
    /// line's flaps: until the first answers, what is told stands in the way of those who go to it.
    pub(super) fn tell_first(&mut self) {
        let now = self.now;
        if let Some(second) = &mut self.routing.twins.second
            && now.saturating_sub(second.told_at) >= GONE_AFTER / 2
        {
            (second.untold, second.told_at) = (false, now);
            let first = second.first;
            self.go_above(first);
        }
    }

    /// Whether somebody who can be reached is linked with a process of this name that is not this one; with the first, if this one
    /// is the second.
    fn has_twin(&self) -> bool {
        let linked: BTreeSet<&NodeName> = self.links.values().map(|link| &link.peer.node).collect();
        let neighbours = self.routing.twins.second.as_ref().map(|second| &second.neighbours);
        let counts = |node: &NodeName| !linked.contains(node) && neighbours.is_none_or(|all| all.contains(node));
        self.routing.is_linked_with_any(&self.config.node, counts)
    }

    /// Each interval: the other process of this name may be gone.
    pub(super) fn look_for_twin(&mut self) {
        let Some(seen) = self.routing.twins.seen else { return };
        // One that reaches nobody cannot know.
        if self.links.is_empty() || self.has_twin() {
            self.routing.twins.seen = Some(self.now);
            return;
        }
        if self.now.saturating_sub(seen) < GONE_AFTER {
            return;
        }
        self.routing.twins.seen = None;
        self.out.push_back(Output::ReportOver(TWO_NODES, ELSEWHERE.to_owned()));
        if let Some(second) = self.routing.twins.second.take() {
            self.go_above(second.first);
            self.say_all_anew();
        }
    }
}
