//! Every queue and buffer of the node and its door.

use seaway_relay::node::queues::{QueueView, Unit};
use tokio::sync::Semaphore;

use super::shared::{PERMIT_BYTES, Shared};
use crate::{
    admin, api,
    engine::Engine,
    limits::{
        CONFIRMS_UNANSWERED_MAX, CONNECTIONS_MAX, DECODING_BYTES_MAX, GROUP_BUFFER_BYTES_MAX, GROUPS_MAX,
        IN_FLIGHT_BYTES_MAX, PARTS_BYTES_MAX, READ_BYTES, SUBSCRIBE_REQUEST_BYTES_MAX, SUBSCRIBERS_REPLIES_BYTES_MAX,
        SUBSCRIPTIONS_MAX,
    },
};

fn number(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Of a semaphore over permits of so many bytes, or pieces: what is taken.
fn taken(of: &Semaphore, max: usize, each: usize) -> u64 {
    number(max.saturating_sub(of.available_permits().saturating_mul(each)))
}

/// All of them, with the most that each was seen to hold.
pub(crate) fn all<E: Engine>(shared: &Shared<E>) -> Vec<QueueView> {
    let bytes = |name, of: &Semaphore, max, at_bound| {
        QueueView::bytes(name, taken(of, max, PERMIT_BYTES), number(max), at_bound)
    };
    let (connections, subscriptions) = (&shared.connections, &shared.subscriptions);
    let door = [
        bytes("door-requests", &shared.decoding, DECODING_BYTES_MAX, "requests wait to be read, for a minute at most"),
        bytes("door-parts", &shared.parts, PARTS_BYTES_MAX, "a request of many messages is refused"),
        bytes("door-in-flight", &shared.in_flight, IN_FLIGHT_BYTES_MAX, "publishes wait, until their deadline"),
        shared.replies.row(
            "door-replies",
            SUBSCRIBERS_REPLIES_BYTES_MAX,
            "each subscriber has one reply on its way at a time",
        ),
        QueueView::unseen(
            "door-groups",
            number(GROUPS_MAX.saturating_mul(GROUP_BUFFER_BYTES_MAX)),
            "what was read for a group is dropped, and read again",
        ),
        QueueView::unseen(
            "door-reads",
            number(SUBSCRIPTIONS_MAX.saturating_mul(READ_BYTES)),
            "nothing more is read for a subscriber until it has taken that",
        ),
        QueueView::pieces(
            "door-connections",
            taken(connections, CONNECTIONS_MAX, 1),
            number(CONNECTIONS_MAX),
            "the next is closed at once and counted",
        ),
        QueueView::pieces(
            "door-subscriptions",
            taken(subscriptions, SUBSCRIPTIONS_MAX, 1),
            number(SUBSCRIPTIONS_MAX),
            "the next is refused",
        ),
        QueueView::unseen(
            "door-confirmations",
            number(CONFIRMS_UNANSWERED_MAX.saturating_mul(SUBSCRIBE_REQUEST_BYTES_MAX)),
            "a subscriber's next is not read (the bound is of each)",
        ),
        QueueView::unseen(
            "admin-port",
            number(admin::CONNECTIONS_MAX.saturating_mul(admin::HEAD_BYTES_MAX)),
            "the next connection is closed at once",
        ),
    ];
    let mut rows: Vec<QueueView> = shared.engine.queues().into_iter().chain(door).collect();
    let mut peaks = shared.peaks.lock();
    peaks.retain(|(name, of), _| rows.iter().any(|row| row.name == *name && row.of == *of));
    for row in &mut rows {
        let Some(used) = row.used else { continue };
        let peak = peaks.entry((row.name, row.of.clone())).or_default();
        *peak = used.max(*peak).max(row.highest.unwrap_or(0));
        row.highest = Some(*peak);
    }
    rows
}

/// As clients see it.
pub(crate) fn status(row: QueueView) -> api::QueueStatus {
    let pieces = row.unit == Unit::Pieces;
    api::QueueStatus {
        name: if pieces { format!("{} (number)", row.name) } else { row.name.to_owned() },
        bytes: row.used.unwrap_or(0),
        bytes_max: row.bound,
        of: row.of,
        pieces,
        unseen: row.used.is_none(),
        highest: row.highest,
        at_bound: row.at_bound.to_owned(),
    }
}

/// All of them with a key for pages each: the node's own first.
pub(super) fn list<E: Engine>(shared: &Shared<E>) -> Vec<(String, api::QueueStatus)> {
    let mut rows: Vec<_> = all(shared)
        .into_iter()
        .enumerate()
        .map(|(index, row)| (format!("{}\u{1}{index:06}", row.of), status(row)))
        .collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows
}
