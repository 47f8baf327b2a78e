//! Marks that did not come: noticed by their numbers, and made up for by asking the neighbour to say all of it again.
//!
//! A mark names what changed since the one before it. Where one is lost (with a link farther up, say), what it named is not known here
//! although marks go on coming. So a node that misses one asks its upstream (`MarksAsk`), which says how far the logs go and then that
//! this was all (`MarksTold`); a relay that misses marks itself says so only once it was told. Until then what is due counts from
//! the first mark that was missed, and a copy is no longer called live than if that mark had come and was not reached.
//!
//! A neighbour that does not know the question (feature 220) is not asked: what it says counts as all.

use std::{collections::BTreeMap, time::Duration};

use super::{
    LinkId, Replication,
    announce::Say,
    convert::{self, Checked},
};
use crate::{
    ids::{Pattern, Site},
    session::FEATURE_MARKS_TOLD,
    wire::link,
};

/// A question without an answer is asked again after so many mark intervals.
const ASK_AGAIN_INTERVALS: u32 = 2;

/// What is not known of how far an origin's logs go.
#[derive(Debug)]
pub(super) struct Missing {
    /// When it was noticed.
    pub(super) noticed: Duration,
    /// What the missed marks named has been due since then.
    pub(super) due: Duration,
    /// Nothing was heard of the origin before.
    pub(super) blank: bool,
    /// On which link it was asked, under which number, and when.
    asked: Option<(LinkId, u64, Duration)>,
}

/// All that concerns missed marks.
#[derive(Debug, Default)]
pub(super) struct Missed {
    missing: BTreeMap<Site, Missing>,
    /// Neighbours that asked and were not answered yet, with the number of their newest question.
    waiting: BTreeMap<(Site, LinkId), u64>,
    number: u64,
}

impl Missed {
    pub(super) fn of(&self, origin: &Site) -> Option<&Missing> {
        self.missing.get(origin)
    }

    /// Nothing of the origin is wanted any more, or its marks come from who cannot be asked.
    pub(super) fn forget(&mut self, origin: &Site) {
        self.missing.remove(origin);
    }

    pub(super) fn link_down(&mut self, link: LinkId) {
        self.waiting.retain(|(_, asker), _| *asker != link);
    }
}

impl Replication {
    /// Marks of an origin come from a new upstream, which was just told what is wanted and says by itself how far that goes.
    pub(super) fn marks_begin(&mut self, origin: &Site) {
        self.miss_marks(origin, false);
    }

    /// A mark's number shows that others before it did not come.
    pub(super) fn marks_missed(&mut self, origin: &Site) {
        self.miss_marks(origin, true);
    }

    fn miss_marks(&mut self, origin: &Site, again: bool) {
        let asks = self.routing.upstream(origin).and_then(|link| self.links.get(&link));
        if asks.is_none_or(|link| !link.peer.features.contains(&FEATURE_MARKS_TOLD)) {
            return self.marks.missed.forget(origin);
        }
        let next = self.marks.heard.get(origin).map(|h| h.at.saturating_add(self.config.mark_interval));
        let due = next.unwrap_or(self.now).min(self.now);
        let anew = Missing { noticed: self.now, due, blank: next.is_none(), asked: None };
        let missing = self.marks.missed.missing.entry(origin.clone()).or_insert(anew);
        missing.due = missing.due.min(due);
        self.ask_marks(origin, again);
    }

    fn ask_marks(&mut self, origin: &Site, again: bool) {
        let Some(upstream) = self.routing.upstream(origin) else { return };
        let missed = &mut self.marks.missed;
        let Some(missing) = missed.missing.get_mut(origin) else { return };
        missed.number = missed.number.saturating_add(1);
        let number = missed.number;
        missing.asked = Some((upstream, number, self.now));
        let ask = link::MarksAsk { number, origin: origin.to_string(), again };
        self.send(upstream, link::control::Kind::MarksAsk(ask));
    }

    /// Each interval: what was not answered is asked again, and neighbours are answered for whom nothing is missed any more.
    pub(super) fn ask_marks_again(&mut self) {
        let again = self.config.mark_interval.saturating_mul(ASK_AGAIN_INTERVALS);
        let stale = |origin: &Site, missing: &Missing| {
            let upstream = self.routing.upstream(origin);
            let asked = missing.asked.filter(|(link, ..)| Some(*link) == upstream);
            asked.is_none_or(|(_, _, at)| self.now.saturating_sub(at) >= again)
        };
        let due = self.marks.missed.missing.iter().filter(|(origin, missing)| stale(origin, missing));
        for origin in due.map(|(origin, _)| origin.clone()).collect::<Vec<_>>() {
            self.ask_marks(&origin, true);
        }
        let waiting: Vec<(Site, LinkId)> = self.marks.missed.waiting.keys().cloned().collect();
        for (origin, link) in waiting {
            self.answer_marks_asked(&origin, link);
        }
    }

    /// A neighbour missed marks of an origin, or begins to hear them.
    pub(super) fn handle_marks_ask(&mut self, from: LinkId, ask: &link::MarksAsk) -> Checked<()> {
        let origin = convert::site_from(&ask.origin)?;
        let wants = self.wants.peers.get(&origin).and_then(|links| links.get(&from));
        // Who wants nothing of it is told nothing: so there are no more questions than wants.
        let Some(wants) = wants else { return Ok(()) };
        let patterns: Vec<Pattern> = wants.values().cloned().collect();
        self.marks.missed.waiting.insert((origin.clone(), from), ask.number);
        if ask.again && !self.says_marks(from, &origin) {
            for pattern in patterns {
                self.say_behind(from, Say::Marks { origin: origin.clone(), pattern, from: 0 });
            }
        }
        self.answer_marks_asked(&origin, from);
        Ok(())
    }

    /// Whether nothing of how far an origin's logs go is missed here.
    fn knows_marks(&self, origin: &Site) -> bool {
        if self.config.is_origin_of(origin) {
            return self.wall_us > 0;
        }
        self.routing.upstream(origin).is_some() && self.marks.missed.of(origin).is_none()
    }

    fn answer_marks_asked(&mut self, origin: &Site, to: LinkId) {
        if self.knows_marks(origin) && self.marks.missed.waiting.contains_key(&(origin.clone(), to)) {
            self.say_marks_told(to, origin);
        }
    }

    /// All marks of the origin that the neighbour wants were said before this.
    pub(super) fn send_marks_told(&mut self, to: LinkId, origin: Site) {
        if !self.knows_marks(&origin) {
            return;
        }
        let told = origin.to_string();
        if let Some(number) = self.marks.missed.waiting.remove(&(origin, to)) {
            self.send(to, link::control::Kind::MarksTold(link::MarksTold { number, origin: told }));
        }
    }

    /// The upstream has said how far all its logs go.
    pub(super) fn handle_marks_told(&mut self, from: LinkId, told: &link::MarksTold) -> Checked<()> {
        let origin = convert::site_from(&told.origin)?;
        let asked = self.marks.missed.of(&origin).and_then(|m| m.asked);
        let answers = asked.is_some_and(|(link, number, _)| link == from && number == told.number);
        if !answers || self.routing.upstream(&origin) != Some(from) {
            return Ok(());
        }
        self.marks.missed.forget(&origin);
        for link in self.wants.links_for(&origin) {
            self.answer_marks_asked(&origin, link);
        }
        Ok(())
    }
}
