//! What a copy waits for, given up by command: ranges that nobody who can be reached gives are stated as lost at once, instead of when
//! everybody who was ever heard of has answered, or after `lost_after`. For whoever knows that the only holder will not be back.
//!
//! What somebody who can be reached holds is not given up, whoever asks: it comes.

use std::time::Duration;

use super::{Replication, logs::FetchKey, questions::offered_above};
use crate::{
    copies::{Hole, HoleKind},
    ids::LogName,
    session::NodeKind,
};

impl Replication {
    /// The ranges of a log that its copy here waits for and nobody who can be reached gives; with `really` they are lost from now on,
    /// reported, and the copy goes on above. None: it waits for nothing of that kind.
    ///
    /// # Errors
    /// A sentence: why what is missing is not given up.
    pub fn skip(&mut self, now: Duration, log: &LogName, really: bool) -> Result<Vec<Hole>, String> {
        self.at(now);
        let Some(state) = self.logs.get(log).filter(|_| self.config.kind == NodeKind::Edge) else {
            return Ok(Vec::new());
        };
        if let Some((why, _)) = &self.stopped {
            return Err(format!("nothing can be given up here: {why}"));
        }
        let mut skipped = Vec::new();
        if let Some((gap, info)) = state.gap.clone().zip(state.submitted.clone()) {
            if self.config.is_origin_of(&log.origin) {
                return Err(format!("this site lost a part of its own {log}, and still asks who holds it"));
            }
            let joins = |offer: &super::questions::Offer| {
                self.routing.towards(&offer.holder).is_some() && !state.missing_anywhere(&offer.view).is_empty()
            };
            if !state.fetches.is_empty() || state.offers.iter().any(joins) {
                return Err(format!("what is missing of {log} is held by others, and comes from there"));
            }
            let reachable = state.offers.iter().filter(|o| self.routing.towards(&o.holder).is_some());
            let resume = offered_above(reachable, &info, &gap).unwrap_or(gap.resume);
            skipped.extend(state.jump(resume, HoleKind::Lost));
            if really {
                self.count("ranges_skipped");
                self.lose(log, &info, &gap);
            }
        }
        if self.has_pending_hole(log) {
            let state = self.logs.get(log);
            let sought = state.is_some_and(|s| s.seeking.is_some());
            let filling = state.is_some_and(|s| s.fetches.keys().any(|key| matches!(key, FetchKey::Hole(_))));
            if filling || !sought {
                return Err(format!("what is missing of {log} is held by others, and comes from there"));
            }
            let parts = self.lost_parts(log, true);
            if really {
                self.count("ranges_skipped");
                self.give_up_holes(log, parts.clone(), HoleKind::Lost);
            }
            skipped.extend(parts);
        }
        skipped.retain(|hole| hole.from < hole.to);
        Ok(skipped)
    }
}
