//! Room for messages on their way: bytes until they are durable here, receipts while they wait for other sites.
//!
//! A site that is cut off keeps what waits for it until its deadline. So that this stops nobody else, what waits for one site
//! may take [`RECEIPTS_SHARE`] of the receipts, no more; and nobody holds room while waiting for more of it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use seaway_federation_proto::ids::Site;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    PublishError,
    origin::WAITING_BYTES_MAX,
    receipts::{Need, RECEIPTS_WAITING_MAX},
};

/// Most messages that wait for one site, or for any of the same sites, at once.
pub(super) const RECEIPTS_SHARE: usize = RECEIPTS_WAITING_MAX / 4;
/// Past so many shares those that nobody uses are dropped.
const SHARES_KEPT: usize = 4_096;

/// Whose share a waiting message takes of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Share {
    /// It waits for this site, perhaps among others.
    Site(Site),
    /// It waits for some of these.
    SomeOf(Arc<[Site]>),
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Room {
    bytes: Arc<Semaphore>,
    receipts: Arc<Semaphore>,
    shares: Mutex<HashMap<Share, Arc<Semaphore>>>,
}

/// Room of messages that wait for other sites.
#[derive(Debug)]
pub(super) struct ReceiptRoom(Vec<OwnedSemaphorePermit>);

impl ReceiptRoom {
    /// Takes the room of `count` messages out of it; `None` if there is not so much.
    pub(super) fn split(&mut self, count: usize) -> Option<Self> {
        self.0.iter_mut().map(|permit| permit.split(count)).collect::<Option<Vec<_>>>().map(Self)
    }
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bytes: Arc::new(Semaphore::new(WAITING_BYTES_MAX)),
            receipts: Arc::new(Semaphore::new(RECEIPTS_WAITING_MAX)),
            shares: Mutex::default(),
        }
    }
}

fn permits(amount: usize) -> u32 {
    u32::try_from(amount).unwrap_or(u32::MAX)
}

fn closed<E>(_: E) -> PublishError {
    PublishError::Unavailable("the node is shutting down".to_owned())
}

impl Room {
    /// Room for so many bytes until they are durable; fair.
    pub(super) async fn bytes(&self, amount: usize) -> Result<OwnedSemaphorePermit, PublishError> {
        self.bytes.clone().acquire_many_owned(permits(amount.min(WAITING_BYTES_MAX))).await.map_err(closed)
    }

    /// Room for so many messages that wait for other sites.
    pub(super) async fn receipts(&self, need: &Need, count: usize) -> Result<ReceiptRoom, PublishError> {
        let count = permits(count.min(RECEIPTS_SHARE));
        let mut wanted = self.shares_of(need);
        wanted.push(self.receipts.clone());
        loop {
            let mut taken = Vec::with_capacity(wanted.len());
            let lacking =
                wanted.iter().find(|semaphore| match Semaphore::try_acquire_many_owned(Arc::clone(semaphore), count) {
                    Ok(permit) => {
                        taken.push(permit);
                        false
                    }
                    Err(_) => true,
                });
            let Some(lacking) = lacking else { return Ok(ReceiptRoom(taken)) };
            drop(taken);
            // Not kept: the others' room may be gone by then, and who needs only this must not wait for it.
            drop(lacking.acquire_many(count).await.map_err(closed)?);
        }
    }

    fn shares_of(&self, need: &Need) -> Vec<Arc<Semaphore>> {
        let keys = if need.count >= need.sites.len() {
            need.sites.iter().cloned().map(Share::Site).collect()
        } else {
            vec![Share::SomeOf(need.sites.clone())]
        };
        let mut shares = self.shares.lock();
        if shares.len() > SHARES_KEPT {
            shares.retain(|_, share| Arc::strong_count(share) > 1);
        }
        let of = |key| shares.entry(key).or_insert_with(|| Arc::new(Semaphore::new(RECEIPTS_SHARE))).clone();
        keys.into_iter().map(of).collect()
    }

    /// What is taken now, and the bounds: bytes, then receipts.
    pub(super) fn taken(&self) -> [(u64, u64); 2] {
        let of = |semaphore: &Semaphore, max: usize| {
            let number = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            (number(max.saturating_sub(semaphore.available_permits())), number(max))
        };
        [of(&self.bytes, WAITING_BYTES_MAX), of(&self.receipts, RECEIPTS_WAITING_MAX)]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn need(sites: &[&str], count: usize) -> Need {
        Need { sites: sites.iter().map(|s| s.parse().unwrap()).collect(), count, all: count == sites.len() }
    }

    async fn at_once(room: &Room, need: &Need, count: usize) -> Option<ReceiptRoom> {
        tokio::time::timeout(Duration::ZERO, room.receipts(need, count)).await.ok().map(Result::unwrap)
    }

    #[tokio::test]
    async fn a_site_that_is_cut_off_stops_only_what_waits_for_it() {
        let room = Room::default();
        let cut_off = need(&["b"], 1);
        let mut held = Vec::new();
        while let Some(more) = at_once(&room, &cut_off, 1_000).await {
            held.push(more);
        }
        assert!(held.len() <= RECEIPTS_SHARE / 1_000);
        assert!(at_once(&room, &need(&["a", "b"], 2), 1_000).await.is_none(), "it waits for b too");
        assert!(at_once(&room, &need(&["a"], 1), RECEIPTS_SHARE).await.is_some(), "and takes nothing of a's meanwhile");
        assert!(at_once(&room, &need(&["a", "b"], 1), 1_000).await.is_some(), "any one of the two will do");
        let given_back = held[0].split(400).unwrap();
        assert!(at_once(&room, &cut_off, 1_000).await.is_none());
        drop((given_back, held.pop()));
        assert!(at_once(&room, &cut_off, 1_000).await.is_some());
        drop(held);
        assert_eq!(room.taken()[1].0, 0);
    }
}
