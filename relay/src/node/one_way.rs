//! One-way messages at a node: made for the network, and given to local subscribers, each with a bound in bytes. What does not
//! fit is dropped and counted: the newest, so that what a subscriber gets has no gaps of its own making before it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use parking_lot::RwLock;
use seaway_federation_proto::{
    ids::Pattern,
    message::Message,
    wire::link::{Header, OneWayBody},
};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{OneWayMessage, origin::OwnMessage};

/// Bytes of one-way messages that wait for one subscriber.
pub const SUBSCRIBER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// And their number.
pub const SUBSCRIBER_MESSAGES_MAX: usize = 8 * 1024;
/// Counted for each message on top of its content.
const MESSAGE_BYTES: usize = 256;

/// Bytes of a subscriber's bound that a waiting message takes.
#[derive(Debug)]
pub(super) struct Charge {
    bytes: usize,
    of: Arc<AtomicUsize>,
}

impl Charge {
    pub(super) fn nothing() -> Self {
        Self { bytes: 0, of: Arc::default() }
    }

    fn take(of: &Arc<AtomicUsize>, bytes: usize) -> Option<Arc<Self>> {
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= SUBSCRIBER_BYTES_MAX || held == 0);
        of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Arc::new(Self { bytes, of: of.clone() }))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Subscriber {
    pattern: Pattern,
    sender: mpsc::Sender<OneWayMessage>,
    bytes: Arc<AtomicUsize>,
}

/// The local subscribers.
#[derive(Debug, Default)]
pub(super) struct OneWaySubscribers {
    all: RwLock<Vec<Subscriber>>,
    /// A subscriber's room was full.
    dropped_full: AtomicU64,
    /// It came over a link and is not a message.
    dropped_malformed: AtomicU64,
    delivered: AtomicU64,
}

impl OneWaySubscribers {
    pub(super) fn subscribe(&self, pattern: Pattern) -> mpsc::Receiver<OneWayMessage> {
        let (sender, receiver) = mpsc::channel(SUBSCRIBER_MESSAGES_MAX);
        let mut all = self.all.write();
        all.retain(|s| !s.sender.is_closed());
        all.push(Subscriber { pattern, sender, bytes: Arc::default() });
        receiver
    }

    pub(super) fn deliver(&self, message: OneWayBody) {
        let Some((origin, message)) = message_of(message) else {
            self.dropped_malformed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = MESSAGE_BYTES + message.payload.len() + headers + message.key.as_ref().map_or(0, bytes::Bytes::len);
        for subscriber in self.all.read().iter().filter(|s| s.pattern.matches(&message.path)) {
            let sent = Charge::take(&subscriber.bytes, bytes).is_some_and(|charge| {
                let message = OneWayMessage { origin: origin.clone(), message: message.clone(), charge };
                !matches!(subscriber.sender.try_send(message), Err(TrySendError::Full(_)))
            });
            let counter = if sent { &self.delivered } else { &self.dropped_full };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counters: name, and value.
    pub(super) fn counters(&self) -> [(&'static str, u64); 3] {
        [
            ("one_way_delivered", self.delivered.load(Ordering::Relaxed)),
            ("one_way_dropped_subscriber_full", self.dropped_full.load(Ordering::Relaxed)),
            ("one_way_dropped_malformed", self.dropped_malformed.load(Ordering::Relaxed)),
        ]
    }

    /// Bytes waiting, and their bound over all subscribers.
    pub(super) fn waiting(&self) -> (u64, u64) {
        let all = self.all.read();
        let bytes = all.iter().map(|s| s.bytes.load(Ordering::Relaxed)).sum::<usize>();
        let bound = SUBSCRIBER_BYTES_MAX.saturating_mul(all.len());
        (u64::try_from(bytes).unwrap_or(u64::MAX), u64::try_from(bound).unwrap_or(u64::MAX))
    }
}

/// As it travels; origin, start and sequence are the replication machine's to set.
pub(super) fn one_way_of(message: OwnMessage, time_us: u64) -> OneWayBody {
    OneWayBody {
        path: message.path.to_string(),
        has_key: message.key.is_some(),
        key: message.key.unwrap_or_default(),
        headers: message.headers.into_iter().map(|(name, value)| Header { name, value }).collect(),
        time_us,
        payload: message.payload,
        ..OneWayBody::default()
    }
}

fn message_of(message: OneWayBody) -> Option<(seaway_federation_proto::ids::Site, Message)> {
    let origin = message.origin.parse().ok()?;
    let message = Message {
        path: message.path.parse().ok()?,
        key: message.has_key.then_some(message.key),
        headers: message.headers.into_iter().map(|h| (h.name, h.value)).collect(),
        time_us: message.time_us,
        producer: None,
        payload: message.payload,
    };
    Some((origin, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(path: &str, bytes: usize) -> OneWayBody {
        OneWayBody { origin: "a".into(), path: path.into(), payload: vec![1; bytes].into(), ..OneWayBody::default() }
    }

    #[test]
    fn a_full_subscriber_drops_the_newest_and_counts_and_has_room_again_when_read() {
        let subscribers = OneWaySubscribers::default();
        let mut receiver = subscribers.subscribe("t/#".parse().unwrap());
        subscribers.deliver(message("other", 10));
        for _ in 0..3 {
            subscribers.deliver(message("t/x", SUBSCRIBER_BYTES_MAX / 2 - MESSAGE_BYTES));
        }
        assert_eq!(subscribers.counters()[..2], [("one_way_delivered", 2), ("one_way_dropped_subscriber_full", 1)]);
        let first = receiver.try_recv().unwrap();
        assert_eq!(first.message.path.as_str(), "t/x");
        subscribers.deliver(message("t/x", 1000));
        assert_eq!(subscribers.counters()[1].1, 2, "a message that is read but still held counts");
        drop(first);
        subscribers.deliver(message("t/x", 1000));
        assert_eq!(subscribers.counters()[0].1, 3);
        assert!(receiver.try_recv().is_ok() && receiver.try_recv().is_ok() && receiver.try_recv().is_err());
        assert_eq!(subscribers.waiting().0, 0);
    }

    #[test]
    fn what_is_not_a_message_is_counted() {
        let subscribers = OneWaySubscribers::default();
        subscribers.deliver(message("", 1));
        assert_eq!(subscribers.counters()[2].1, 1);
    }
}
