//! Sites as the node's own threads and its operators deal with them: what is held back for them, and taking one out for ever.

use std::collections::HashMap;

use prost::Message as _;
use seaway_federation_proto::{
    ids::{LogName, Place, Site},
    replication::{Need, Removal},
    wire::link::SiteRemoval,
};

use super::{
    PublishError,
    clock::Clock,
    hold_back::Told,
    inner::NodeInner,
    retention::{self, Keep},
};
use crate::log::contract::{Entry, RejectReason, Table};

/// Logs that are asked about under one lock of the hub's.
const LOGS_AT_ONCE: usize = 256;

impl NodeInner {
    /// Up to where retention may trim which own log; `None`: nothing can be trimmed now, there is no room to write down what that
    /// takes from whom. Waits on the disk.
    pub(super) fn hold_back_round(
        &self,
        keep: impl Fn(&LogName) -> Keep,
    ) -> Result<Option<HashMap<LogName, Place>>, String> {
        let Some(keeper) = &self.hold_back else { return Ok(Some(HashMap::new())) };
        let mut needs: Vec<(LogName, Vec<Need>)> = Vec::new();
        loop {
            let more = self.hub.still_needed(needs.last().map(|(log, _)| log), LOGS_AT_ONCE);
            if more.is_empty() {
                break;
            }
            needs.extend(more);
        }
        let wall_us = self.clock.wall_us();
        let at = |ago: std::time::Duration| wall_us.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX));
        let heard = self.hub.last_heard(self.clock.now()).into_iter().map(|(site, ago)| (site, at(ago)));
        let told = Told { log: &*self.log, needs, heard: heard.collect(), wall_us };
        let round = keeper.round(told, keep).map_err(|error| error.to_string())?;
        round.raise.into_iter().for_each(|report| self.hub.report(report, self.clock.wall_us()));
        round.over.iter().for_each(|(name, subject)| self.hub.clear_one(name, subject));
        match retention::submit(&self.log, round.entries.clone()) {
            Ok(()) => Ok(Some(round.keep_from)),
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
        let removed = self.hub.removals().into_iter().any(|Removal { site: gone, .. }| gone == *site);
        let known =
            || self.hub.sites().iter().any(|s| s.site == *site) || self.log.logs().iter().any(|l| l.origin == *site);
        if !removed && !known() {
            let text = format!("no site {site} was ever heard of here; `seaway site ls` lists those that were");
            return Err(PublishError::Invalid(text));
        }
        if removed {
            return Ok(());
        }
        let at_us = self.clock.wall_us();
        let removal = SiteRemoval { site: site.to_string(), by: self.config.name.to_string(), at_us };
        let key = site.as_str().as_bytes().to_vec().into();
        self.store(vec![Entry::Put { table: Table::Removed, key, value: removal.encode_to_vec().into() }]).await?;
        self.hub.remove_site(self.clock.now(), site, at_us).map_err(PublishError::Invalid)
    }
}
