//! A batch on its way from one link to another, and the room it takes.
//!
//! What is read through for a link's fetches is counted in that link's pool. While it fits, the credit of the link on which
//! it came goes back at once, so that a slow asker slows nobody; beyond that it goes back when the bytes have left. So what
//! waits in this node is bounded by the pools and the credit granted, whatever peers do.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use seaway_federation_proto::{replication::PASS_POOL_BYTES, session::Lane};

use super::command::{LinkCommand, Mailbox};

/// Bytes read through that wait for one lane of a link.
pub(super) type PassPool = Arc<AtomicU64>;

enum Held {
    Pool(PassPool, u64),
    Credit(Arc<dyn Mailbox>, Lane, u64),
    Nothing,
}

/// The room that a batch takes until it has left; gives it back when dropped.
pub struct PassTicket(Held);

impl std::fmt::Debug for PassTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PassTicket")
    }
}

impl PassTicket {
    /// For a batch of `bytes` that came on the link of `from` and took `credit` of its lane.
    pub(super) fn take(pool: &PassPool, bytes: u64, from: Arc<dyn Mailbox>, lane: Lane, credit: u64) -> Self {
        let before = pool.fetch_add(bytes, Ordering::AcqRel);
        if before.saturating_add(bytes) <= PASS_POOL_BYTES {
            from.post(LinkCommand::Stored(lane, credit));
            return Self(Held::Pool(pool.clone(), bytes));
        }
        pool.fetch_sub(bytes, Ordering::AcqRel);
        Self(Held::Credit(from, lane, credit))
    }

    /// For a batch that takes nobody's room.
    pub fn free() -> Self {
        Self(Held::Nothing)
    }
}

impl Drop for PassTicket {
    fn drop(&mut self) {
        match &self.0 {
            Held::Pool(pool, bytes) => drop(pool.fetch_sub(*bytes, Ordering::AcqRel)),
            Held::Credit(from, lane, credit) => from.post(LinkCommand::Stored(*lane, *credit)),
            Held::Nothing => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Credit(Mutex<u64>);

    impl Mailbox for Credit {
        fn post(&self, command: LinkCommand) {
            if let LinkCommand::Stored(_, credit) = command {
                *self.0.lock() += credit;
            }
        }
    }

    #[test]
    fn beyond_the_pool_the_credit_goes_back_when_the_bytes_have_left() {
        let (pool, credit) = (PassPool::default(), Arc::new(Credit::default()));
        let take = |bytes| PassTicket::take(&pool, bytes, credit.clone(), Lane::Live, bytes);
        let inside = take(PASS_POOL_BYTES - 10);
        assert_eq!(*credit.0.lock(), PASS_POOL_BYTES - 10);
        let beyond = take(11);
        assert_eq!(*credit.0.lock(), PASS_POOL_BYTES - 10);
        let fits = take(10);
        assert_eq!(*credit.0.lock(), PASS_POOL_BYTES);
        drop(beyond);
        assert_eq!(*credit.0.lock(), PASS_POOL_BYTES + 11);
        drop((inside, fits));
        assert_eq!((*credit.0.lock(), pool.load(Ordering::Relaxed)), (PASS_POOL_BYTES + 11, 0));
    }
}
