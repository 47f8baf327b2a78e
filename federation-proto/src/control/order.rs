//! What a change of the queue count means for the order of delivery.
//!
//! While the count stands, messages with one key are in one queue, and a queue is read in order. A change moves keys between
//! queues, so all that stands before the change, in whatever queue, is delivered before anything that stands after it. A
//! change lists where each queue ended ([`QueueChange::ends`]): from those places alone follows which side a message is on. A queue's
//! first batch after a change names the change's entry besides, so that a reader whose copy of the control queue has not
//! come so far does not take it for one from before.
//!
//! Nothing here waits for ever by itself: what is lost, not wanted or trimmed is passed by like what was read, and it is
//! the reader who says, by `is_past`, how long a queue that has no copy is waited for.

use super::{Control, QueueChange};
use crate::ids::{Incarnation, Place, Queue};

/// Below everything: nothing of the queue may be delivered yet.
pub const NOTHING: Place = Place { incarnation: Incarnation { counter: 0, random: 0 }, offset: 0 };

/// Whether a reader that stands at `at` on a queue's main line is past a place of that line: offsets go on from incarnation to
/// incarnation, and whoever stands in a later one has left the earlier ones.
#[must_use]
pub fn is_past(at: Place, end: Place) -> bool {
    at.offset >= end.offset || at.incarnation > end.incarnation
}

/// How far a queue may be read on now: up to the place (exclusive) at which it must wait for others, `None` where it need not. `done`
/// says of another queue whether all below a place was delivered, or never will be.
#[must_use]
pub fn limit(changes: &[QueueChange], queue: Queue, done: impl Fn(Queue, Place) -> bool) -> Option<Place> {
    let waits = |change: &&QueueChange| {
        change.ends.iter().any(|(other, end)| *other != queue && end.offset > 0 && !done(*other, *end))
    };
    changes.iter().find(waits).map(|change| change.ends.get(&queue).copied().unwrap_or(NOTHING))
}

/// Whether what was read of a control queue says what a batch that names this entry stands behind.
#[must_use]
pub fn knows(control: Option<&Control>, entry: Place) -> bool {
    control.and_then(|c| c.read_to).is_some_and(|to| to.offset > entry.offset || to.incarnation > entry.incarnation)
}
