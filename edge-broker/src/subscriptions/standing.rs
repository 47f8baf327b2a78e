//! Which subscribers stand still: one that grants no credit, or does not read what it granted, holds up nobody but itself, and is
//! named by status as long as something waits for it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use seaway_federation_proto::session::vitals::lasting;

use crate::api::{self, TopicState};

/// A subscriber that takes nothing for so long stands still; before that it is merely at work.
pub(crate) const STANDS_AFTER: Duration = Duration::from_secs(1);
/// Subscribers that status names, those that have waited longest.
const SHOWN_MAX: usize = 64;

/// What a subscriber keeps waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// Messages, for credit.
    Credit,
    /// Replies, for being read.
    Reading,
}

/// One subscriber.
#[derive(Debug)]
pub(crate) struct Standing {
    number: u64,
    client: String,
    pattern: String,
    waits: Mutex<Option<(Instant, Waits)>>,
    all: Arc<Standings>,
}

impl Standing {
    /// What waits for it from now on; `None`: nothing.
    pub(crate) fn set(&self, waits: Option<Waits>) {
        let mut known = self.waits.lock();
        if known.map(|(_, waits)| waits) != waits {
            *known = waits.map(|waits| (Instant::now(), waits));
        }
    }

    /// Whether something is known to wait for it.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waits.lock().is_some()
    }

    fn shown(&self) -> Option<(Duration, api::SubscriberStatus)> {
        let (since, waits) = (*self.waits.lock())?;
        let waited = since.elapsed();
        let why = match waits {
            Waits::Credit => "it grants no credit for what is there",
            Waits::Reading => "it does not read what it was sent",
        };
        let state = if waited > STANDS_AFTER { TopicState::Stalled } else { TopicState::CatchingUp };
        let status = api::SubscriberStatus {
            subscriber: self.number,
            client: self.client.clone(),
            pattern: self.pattern.clone(),
            state: state.into(),
            reason: format!("{why}, for {}", lasting(waited)),
            state_for_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        };
        Some((waited, status))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.all.known.lock().remove(&self.number);
    }
}

/// All plain subscribers of a door.
#[derive(Debug, Default)]
pub(crate) struct Standings {
    known: Mutex<BTreeMap<u64, std::sync::Weak<Standing>>>,
    next: std::sync::atomic::AtomicU64,
}

impl Standings {
    /// One more; it is forgotten when dropped.
    pub(crate) fn add(self: &Arc<Self>, client: &str, pattern: &str) -> Arc<Standing> {
        let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (client, pattern) = (client.to_owned(), pattern.to_owned());
        let standing = Arc::new(Standing { number, client, pattern, waits: Mutex::default(), all: self.clone() });
        self.known.lock().insert(number, Arc::downgrade(&standing));
        standing
    }

    /// Those that something waits for, the longest first.
    pub(crate) fn list(&self) -> Vec<api::SubscriberStatus> {
        let known: Vec<Arc<Standing>> = self.known.lock().values().filter_map(std::sync::Weak::upgrade).collect();
        let mut waiting: Vec<_> = known.iter().filter_map(|standing| standing.shown()).collect();
        waiting.sort_by_key(|(waited, _)| std::cmp::Reverse(*waited));
        waiting.into_iter().take(SHOWN_MAX).map(|(_, status)| status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_something_waits_for_are_named_and_only_while_they_are_there() {
        let all: Arc<Standings> = Arc::default();
        let (slow, fine) = (all.add("client:slow", "orders/#"), all.add("client:fine", "#"));
        slow.set(Some(Waits::Credit));
        slow.set(Some(Waits::Credit));
        let listed = all.list();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].client.as_str(), listed[0].state()), ("client:slow", TopicState::CatchingUp));
        *slow.waits.lock() = Some((Instant::now() - 2 * STANDS_AFTER, Waits::Reading));
        let listed = all.list();
        assert_eq!(listed[0].state(), TopicState::Stalled);
        assert!(listed[0].reason.starts_with("it does not read"), "{}", listed[0].reason);
        slow.set(None);
        assert!(all.list().is_empty());
        drop((slow, fine));
        assert!(all.known.lock().is_empty());
    }
}
