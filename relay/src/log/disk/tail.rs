//! Which recent batches stay in memory: the newest, up to a bound in bytes over all logs.
//!
//! The batches themselves are in their log's [`Cell`]; here is only the order in which they go. Batches
//! that are not yet in the index are not counted here: the append queue bounds them.

use std::{collections::VecDeque, sync::Arc};

use seaway_federation_proto::ids::{Incarnation, Offset};

use super::cell::Cell;

/// A batch that is kept.
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
        self.kept.push_back((cell, key, bytes));
        self.bytes += bytes;
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.2;
            gone.push(oldest);
        }
    }
}
