//! Which recent batches stay in memory: the newest, up to a bound in bytes over all logs.
//!
//! The batches themselves are in their log's [`Cell`]; here is only the order in which they go. Batches
//! that are not yet in the index are not counted here: the append queue bounds them.

use std::{collections::VecDeque, sync::Arc};

use seaway_federation_proto::ids::{Incarnation, Offset};

use super::cell::Cell;

/// What a kept batch takes beside its bytes, about: names, tags, its places in two maps. Small batches would otherwise take
/// several times the bound.
const KEPT_OVERHEAD_BYTES: usize = 512;

/// A batch that is kept, with what it counts.
type Kept = (Arc<Cell>, (Incarnation, Offset), usize);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Tail {
    kept: VecDeque<Kept>,
    bytes: usize,
    bytes_max: usize,
}

impl Tail {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { kept: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds a batch; answers those that must go for it.
    pub(crate) fn keep(&mut self, cell: Arc<Cell>, key: (Incarnation, Offset), bytes: usize, gone: &mut Vec<Kept>) {
        let bytes = bytes + KEPT_OVERHEAD_BYTES;
        self.kept.push_back((cell, key, bytes));
        self.bytes += bytes;
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.2;
            gone.push(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{conformance::fixture::log_name, contract::Role};

    #[test]
    fn small_batches_count_what_they_take_and_the_oldest_go_first() {
        let cell = Cell::new(log_name("t", "home", 1), Role::Own);
        let key = |n: u64| (Incarnation { counter: 1, random: 1 }, n);
        let mut tail = Tail::new(100 * (KEPT_OVERHEAD_BYTES + 10));
        let mut gone = Vec::new();
        for n in 0..150 {
            tail.keep(Arc::clone(&cell), key(n), 10, &mut gone);
        }
        assert_eq!(gone.iter().map(|(_, key, _)| key.1).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
        // One that is larger than all of it goes too, with all before it.
        tail.keep(cell, key(150), 1 << 20, &mut gone);
        assert_eq!((gone.len(), tail.kept.len(), tail.bytes), (151, 0, 0));
    }
}
