//! What the shell had no room to carry out: changes and fetches that were given back are planned anew, so that nothing
//! waits for ever for what will not come.

use prost::Message as _;

use super::{Change, LinkId, Replication, StateTable};
use crate::{
    ids::{LogName, Site},
    session::{FetchEnded, FetchNumber, NodeKind},
    wire::{link, link::FetchEnd},
};

/// What is told to those who wait, and shown as a copy's trouble.
const NO_ROOM: &str = "too much waits for the commit log here; it is asked again";

impl Change {
    /// Whether it keeps what another site said, and says again until it is answered: statements and registrations.
    pub fn is_said_again(&self) -> bool {
        let (Self::Put { table, .. } | Self::Delete { table, .. }) = self else { return false };
        matches!(table, StateTable::Held | StateTable::Sites)
    }

    /// The copy that it changes.
    pub fn log(&self) -> Option<&LogName> {
        match self {
            Self::BeginCopy { log, .. }
            | Self::Drop { log }
            | Self::Trim { log, .. }
            | Self::Hole { log, .. }
            | Self::Rekind { log, .. } => Some(log),
            Self::Put { .. } | Self::Delete { .. } => None,
        }
    }

    /// Length of its key and value.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len().saturating_add(value.len()),
            Self::Delete { key, .. } => key.len(),
            Self::BeginCopy { .. }
            | Self::Drop { .. }
            | Self::Trim { .. }
            | Self::Hole { .. }
            | Self::Rekind { .. } => 0,
        }
    }
}

impl Replication {
    /// These changes were not carried out, for want of room, nor will they be: what they were for is planned anew.
    pub fn handle_not_stored(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.count("changes_given_back");
            match change {
                Change::Put { table: StateTable::Held, value, .. } => self.statement_not_stored(&value),
                // A registration is repeated, since it is not answered.
                Change::Put { .. } | Change::Delete { .. } => {}
                Change::BeginCopy { log, .. } => self.not_begun(&log),
                Change::Drop { log } | Change::Trim { log, .. } | Change::Hole { log, .. } => {
                    self.retry_later(&log, Some(NO_ROOM.to_owned()))
                }
                Change::Rekind { log, .. } => self.holes_changed(&log),
            }
        }
    }

    /// A fetch of ours was not begun, for want of room.
    pub fn handle_not_started(&mut self, link: LinkId, number: FetchNumber) {
        self.count("fetches_given_back");
        let (end, answered_by) = (FetchEnd::Failed, self.config.node.site.to_string());
        self.fetch_ended(link, FetchEnded { number, end, at: None, answered_by, text: NO_ROOM.to_owned() });
    }

    fn not_begun(&mut self, log: &LogName) {
        let own = self.config.is_origin_of(&log.origin);
        let Some(state) = self.logs.get_mut(log) else { return };
        state.beginning = false;
        let waiting = std::mem::take(&mut state.waiting);
        for (asker, _) in waiting {
            self.end_served(asker, FetchEnd::CannotReach, None, NO_ROOM);
        }
        if own {
            self.regaining.insert(log.clone(), 0);
        } else if self.config.kind == NodeKind::Edge {
            self.retry_later(log, Some(NO_ROOM.to_owned()));
        }
    }

    /// It is stored with the next ones, and not answered before.
    fn statement_not_stored(&mut self, value: &[u8]) {
        let Ok(by) = link::StoredHeld::decode(value) else { return };
        let (Ok(site), Some(log)) = (by.site.parse::<Site>(), by.log.and_then(|l| l.log)) else { return };
        if let Ok(log) = LogName::try_from(log) {
            self.held.keep_again(log, site);
        }
    }
}
