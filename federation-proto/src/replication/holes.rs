//! Pending holes: ranges that were held and cannot be read any more. They are fetched from the upstream, which for a site's own
//! logs there is not, then from whoever answers a question; what nobody holds is lost, told to people, and final. Until
//! then a hole of the origin's own holds up everybody who has not passed it.

use std::time::Duration;

use super::{Change, Output, Replication, logs::FetchKey, questions::Asked};
use crate::{
    copies::{Hole, HoleKind},
    ids::LogName,
    session::NodeKind,
};

/// A question about a log's pending holes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seeking {
    since: Duration,
    pub(super) asked: Asked,
}

impl Replication {
    /// Whether a range of the copy is to be fetched again.
    pub(super) fn has_pending_hole(&self, log: &LogName) -> bool {
        self.pending_holes(log).next().is_some()
    }

    fn pending_holes<'a>(&'a self, log: &LogName) -> impl Iterator<Item = &'a Hole> + use<'a> {
        let info = self.logs.get(log).and_then(|s| s.submitted.as_ref());
        info.into_iter().flat_map(|i| &i.holes).filter(|h| h.kind == HoleKind::Pending)
    }

    /// The holes of a log changed.
    pub(super) fn holes_changed(&mut self, log: &LogName) {
        if !self.has_pending_hole(log) {
            self.holed.remove(log);
            if let Some(state) = self.logs.get_mut(log) {
                state.seeking = None;
            }
            return;
        }
        self.holed.insert(log.clone());
        if self.config.is_origin_of(&log.origin) {
            self.seek(log);
        }
    }

    /// The upstream does not hold what fills a hole: everybody is asked, once; a cache goes on without.
    pub(super) fn hole_not_upstream(&mut self, log: &LogName) {
        if self.config.kind == NodeKind::Edge {
            self.seek(log);
        } else {
            self.give_up_holes(log, HoleKind::NotWanted);
        }
    }

    fn seek(&mut self, log: &LogName) {
        let since = self.now;
        if let Some(state) = self.logs.get_mut(log) {
            state.seeking.get_or_insert(Seeking { since, asked: None });
        }
    }

    /// Each interval: holes that nobody can fill are stated as lost.
    pub(super) fn check_holes(&mut self) {
        let open: Vec<LogName> = self.holed.iter().cloned().collect();
        for log in open {
            let Some(state) = self.logs.get(&log) else {
                self.holed.remove(&log);
                continue;
            };
            let Some(seeking) = state.seeking else {
                let covers = |h: &Hole| {
                    let edge = state.remote.as_ref().and_then(|r| r.edge(h.incarnation));
                    edge.is_some_and(|e| e.begin <= h.from && h.from < e.end)
                };
                // What the upstream says that it does not hold is not even asked for there.
                if state.remote.is_some() && !self.pending_holes(&log).any(covers) {
                    self.hole_not_upstream(&log);
                }
                continue;
            };
            let filling = state.fetches.keys().any(|key| matches!(key, FetchKey::Hole(_)));
            let waited = self.now.saturating_sub(seeking.since) >= self.config.lost_after;
            if !filling && (waited || (state.offers.is_empty() && self.all_answered(&log.origin, seeking.asked))) {
                self.give_up_holes(&log, HoleKind::Lost);
            }
        }
    }

    fn give_up_holes(&mut self, log: &LogName, kind: HoleKind) {
        let holes: Vec<Hole> = self.pending_holes(log).copied().collect();
        if kind == HoleKind::Lost {
            for hole in &holes {
                let text = format!(
                    "{log}: {} to {} of incarnation {} cannot be read here any more, and is held by no site that can be reached; it is recorded as lost",
                    hole.from, hole.to, hole.incarnation
                );
                self.report_of("range-lost", log, text);
            }
        }
        let rekind =
            |hole: Hole| Change::Rekind { log: log.clone(), hole: Hole { kind, ..hole }, was: HoleKind::Pending };
        self.out.push_back(Output::Store(holes.into_iter().map(rekind).collect()));
        self.holed.remove(log);
        if let Some(state) = self.logs.get_mut(log) {
            state.seeking = None;
        }
    }
}
