//! Links that somebody paused: closed, not dialled, and refused to the peer, with the name of who did it, until they are resumed or
//! the process ends. A pause that outlived the process would be one that nobody remembers.
//!
//! The peer reads the same sentence in the closing of the connection, under a code of its own, so both ends show the link as paused.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use seaway_federation_proto::ids::NodeName;
use tokio::sync::Notify;

/// The paused links, by peer.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    paused: Mutex<BTreeMap<NodeName, String>>,
    resumed: Notify,
}

impl Pauses {
    /// Pauses; `why` is the sentence that both ends show. An older pause's stays.
    pub(super) fn pause(&self, peer: &NodeName, why: String) {
        self.paused.lock().entry(peer.clone()).or_insert(why);
    }

    /// Ends a pause; whether there was one.
    pub(super) fn resume(&self, peer: &NodeName) -> bool {
        let was = self.paused.lock().remove(peer).is_some();
        self.resumed.notify_waiters();
        was
    }

    /// Why a link is paused, if it is.
    pub(super) fn why(&self, peer: &NodeName) -> Option<String> {
        self.paused.lock().get(peer).cloned()
    }

    /// Resolves when the link is not paused.
    pub(super) async fn until_resumed(&self, peer: &NodeName) {
        loop {
            let resumed = self.resumed.notified();
            if self.why(peer).is_none() {
                return;
            }
            resumed.await;
        }
    }
}
