//! Whom to tell what became of messages.

use std::sync::Arc;

use super::{Stored, Tell, TellRun};
use crate::node::PublishError;

/// The publisher of one message, or of neighbours in one run.
pub(super) enum Teller {
    /// Of one message.
    One(Tell),
    /// Of `count` messages from `first` on of a run.
    Run { run: Arc<dyn TellRun>, first: u32, count: u32 },
}

impl Teller {
    /// Of how many messages.
    pub(super) fn count(&self) -> u32 {
        match self {
            Self::One(_) => 1,
            Self::Run { count, .. } => *count,
        }
    }

    /// The result is that of the first message; the others follow it.
    pub(super) fn tell(self, result: Result<Stored, PublishError>) {
        match self {
            Self::One(tell) => tell(result),
            Self::Run { run, first, count } => run.tell(first, count, result),
        }
    }

    /// Takes `next` in, if it is of the messages that follow in the same run; else gives it back.
    pub(super) fn join(&mut self, next: Teller) -> Option<Teller> {
        match (&mut *self, next) {
            (Self::Run { run, first, count }, Self::Run { run: other, first: next, count: more })
                if Arc::ptr_eq(run, &other) && first.checked_add(*count) == Some(next) =>
            {
                *count += more;
                None
            }
            (_, next) => Some(next),
        }
    }
}
