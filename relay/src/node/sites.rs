//! Sites as the node's own threads and its operators deal with them: what is held back for them, and taking one out for ever.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use seaway_federation_proto::{
    ids::{LogName, Place, Site},
    replication::Need,
};
use tokio::sync::oneshot;

use super::{
    PublishError,
    clock::Clock,
    hold_back::Told,
    inner::NodeInner,
    retention::{self, Keep, Now},
    space::own_room,
};
use crate::log::contract::RejectReason;

/// Logs that are asked about under one lock of the hub's.
const LOGS_AT_ONCE: usize = 256;
/// How long a command waits until a removal is durable.
const STORED_WITHIN: Duration = Duration::from_secs(30);

/// What a round of hold-back decided.
#[derive(Debug, Default)]
pub(super) struct Decided {
    /// The site whose logs are held back; `None`: nothing is.
    own: Option<Site>,
    /// The logs that it was about.
    decided: HashSet<LogName>,
    keep_from: HashMap<LogName, Place>,
}

impl Decided {
    /// Whether it is an own log of which nothing is decided.
    pub(super) fn is_open(&self, log: &LogName) -> bool {
        self.own.as_ref() == Some(&log.origin) && !self.decided.contains(log)
    }

    /// Where retention stops.
    pub(super) fn keep_from(&self, log: &LogName) -> Option<Place> {
        self.keep_from.get(log).copied()
    }
}

impl NodeInner {
    /// Up to where retention may trim which own log; `None`: nothing can be trimmed now, there is no room to write down what that
    /// takes from whom. Waits on the disk.
    pub(super) fn hold_back_round(&self, keep: impl Fn(&LogName) -> Keep, now: Now) -> Result<Option<Decided>, String> {
        let Some(keeper) = &self.hold_back else { return Ok(Some(Decided::default())) };
        let mut needs: Vec<(LogName, Vec<Need>)> = Vec::new();
        loop {
            let more = self.hub.still_needed(needs.last().map(|(log, _)| log), LOGS_AT_ONCE);
            if more.is_empty() {
                break;
            }
            needs.extend(more);
        }
        let decided = needs.iter().map(|(log, _)| log.clone()).collect();
        // Of a deleted topic nobody needs anything: what was given up of it is over.
        needs.retain(|(log, _)| !self.origin.as_ref().is_some_and(|origin| origin.is_deleted(&log.topic)));
        let stats = self.log.stats();
        let at = |ago: std::time::Duration| now.us.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX));
        // What room there is left is for what makes more: when a site was heard is written down later.
        let heard = if stats.disk_full { Vec::new() } else { self.hub.last_heard(self.clock.now()) };
        let heard = heard.into_iter().map(|(site, ago)| (site, at(ago))).collect();
        let told = Told { log: &*self.log, needs, heard, now, room: own_room(&stats) };
        let round = keeper.round(told, keep).map_err(|error| error.to_string())?;
        let raise = round.raise.into_iter().map(|report| self.with_untaken(report));
        raise.for_each(|report| self.hub.report(report, self.clock.wall_us()));
        round.over.iter().for_each(|(name, subject)| self.hub.clear_one(name, subject));
        match retention::submit(&self.log, round.entries.clone()) {
            Ok(()) => {
                let own = self.config.name.site.clone();
                Ok(Some(Decided { own: Some(own), decided, keep_from: round.keep_from }))
            }
            Err(reason) => {
                keeper.not_stored(round.entries);
                if reason == RejectReason::Busy { Ok(None) } else { Err(reason.to_string()) }
            }
        }
    }

    /// See [`super::Node::remove_site`].
    pub(super) async fn remove_site(&self, site: &Site) -> Result<(), PublishError> {
        if *site == self.config.name.site {
            let text = format!("{site} is this node's own site; remove it at a node of another site");
            return Err(PublishError::Invalid(text));
        }
        let removed = self.hub.removed(site).is_some();
        if !removed && !self.hub.knows_site(site) && !self.log.logs().iter().any(|log| log.origin == *site) {
            let text = format!("no site {site} was ever heard of here; `seaway site ls` lists those that were");
            return Err(PublishError::Invalid(text));
        }
        // All that follows from it becomes durable as one: a crash leaves the site whole, or gone.
        let (sender, stored) = oneshot::channel();
        let told = Box::new(move || _ = sender.send(()));
        self.hub.remove_site(self.clock.now(), site, self.clock.wall_us(), told).map_err(PublishError::Invalid)?;
        if matches!(tokio::time::timeout(STORED_WITHIN, stored).await, Ok(Ok(()))) {
            return Ok(());
        }
        Err(PublishError::Unavailable(format!(
            "site {site} counts no more and all nodes that can be reached are told, but the commit log takes nothing at present and would \
             not know it after a restart; see `seaway status`, and remove it again when that is over"
        )))
    }
}

#[cfg(test)]
#[path = "sites_tests.rs"]
mod tests;
