//! Whom to tell what became of messages.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Stored, Tell, TellRun};
use crate::node::PublishError;

/// The publisher of `count` neighbours of a run, from its message `first` on.
pub(super) struct Teller {
    pub(super) run: Arc<dyn TellRun>,
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Teller {
    /// The result is that of the first message; the others follow it.
    pub(super) fn tell(self, result: Result<Stored, PublishError>) {
        self.run.tell(self.first, self.count, result);
    }

    /// Takes `next` in, if it is of the messages that follow in the same run; else gives it back.
    pub(super) fn join(&mut self, next: Teller) -> Option<Teller> {
        if Arc::ptr_eq(&self.run, &next.run) && self.first.checked_add(self.count) == Some(next.first) {
            self.count += next.count;
            return None;
        }
        Some(next)
    }
}

/// Whoever waits for one message.
pub(super) struct TellOnce(Mutex<Option<Tell>>);

impl TellOnce {
    pub(super) fn new(tell: Tell) -> Self {
        Self(Mutex::new(Some(tell)))
    }
}

impl TellRun for TellOnce {
    fn tell(&self, _first: u32, _count: u32, result: Result<Stored, PublishError>) {
        let tell = self.0.lock().take();
        if let Some(tell) = tell {
            tell(result);
        }
    }
}
