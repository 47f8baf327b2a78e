//! What a node's queues and buffers hold, for status, metrics and `seaway queues`: each with its bound, and what happens there.
//!
//! Every place where something waits, or is kept for a moment, has a row. A bound is of bytes unless the row counts pieces, and those are
//! of what has a size of its own beside it. What one place holds by itself is not known to this process (quinn's buffers, the index's): those
//! rows have a bound alone.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a row counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Pieces: messages, connections …
    Pieces,
}

/// One queue, as it is at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueView {
    /// Its name, the same for all of a kind.
    pub name: &'static str,
    /// Which of a kind: the peer of a link; empty where there is one.
    pub of: String,
    /// What it counts.
    pub unit: Unit,
    /// What it holds; `None`: not known.
    pub used: Option<u64>,
    /// What it may hold.
    pub bound: u64,
    /// The most that it held since the start, where that is counted.
    pub highest: Option<u64>,
    /// What happens at the bound.
    pub at_bound: &'static str,
}

impl QueueView {
    /// A row of bytes.
    pub fn bytes(name: &'static str, used: u64, bound: u64, at_bound: &'static str) -> Self {
        let (of, unit, highest) = (String::new(), Unit::Bytes, None);
        Self { name, of, unit, used: Some(used), bound, highest, at_bound }
    }

    /// A row of pieces.
    pub fn pieces(name: &'static str, used: u64, bound: u64, at_bound: &'static str) -> Self {
        Self { unit: Unit::Pieces, ..Self::bytes(name, used, bound, at_bound) }
    }

    /// A row of which only the bound is known.
    pub fn unseen(name: &'static str, bound: u64, at_bound: &'static str) -> Self {
        Self { used: None, ..Self::bytes(name, 0, bound, at_bound) }
    }

    /// Of this one of its kind.
    #[must_use]
    pub fn of(self, of: &str) -> Self {
        Self { of: of.to_owned(), ..self }
    }
}

/// What something holds, and the most that it ever held.
#[derive(Debug, Default)]
pub struct Gauge {
    used: AtomicU64,
    highest: AtomicU64,
}

impl Gauge {
    /// More is held.
    pub fn add(&self, more: u64) {
        let used = self.used.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        self.highest.fetch_max(used, Ordering::Relaxed);
    }

    /// Less is.
    pub fn sub(&self, less: u64) {
        self.used.fetch_sub(less, Ordering::Relaxed);
    }

    /// So much is.
    pub fn set(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
        self.highest.fetch_max(used, Ordering::Relaxed);
    }

    /// What is held now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// As a row.
    pub fn row(&self, name: &'static str, bound: u64, at_bound: &'static str) -> QueueView {
        let highest = Some(self.highest.load(Ordering::Relaxed));
        QueueView { highest, ..QueueView::bytes(name, self.used(), bound, at_bound) }
    }
}
