//! Holds logs back where a change of their topic's queue count asks for it, so that keys keep their order: all before the change is
//! delivered before anything after it. What a change means is in [`seaway_federation_proto::control::order`]; here is what a subscription
//! makes of it, and for how long it waits.
//!
//! A queue that has no copy here, or whose copy ends below the change although it has all that its origin holds, is not waited for
//! longer than [`WAIT_MAX`]: what will never come holds nothing back for ever.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use seaway_federation_proto::{
    control::{
        Control,
        order::{self, is_past},
    },
    ids::{LogName, Offset, Place},
};

use crate::engine::Engine;

/// How long a log waits for one that does not come.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);

/// How far a log may be read on now.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    limit: Option<Place>,
    control: Option<Arc<Control>>,
    /// What the control queue does not say yet is not waited for (any more).
    trusting: bool,
}

impl Gate {
    /// One that holds nothing back.
    #[cfg(test)]
    pub(crate) fn open() -> Self {
        Self { limit: None, control: None, trusting: true }
    }

    /// The part of a stretch of the main line that may be read; `None`: nothing.
    pub(crate) fn clip(&self, from: Place, until: Offset) -> Option<Offset> {
        match self.limit {
            None => Some(until),
            Some(limit) if is_past(from, limit) => None,
            Some(limit) => Some(until.min(limit.offset)),
        }
    }

    /// Whether it is known behind what a batch stands that names this entry.
    pub(crate) fn knows(&self, entry: Place) -> bool {
        self.trusting || order::knows(self.control.as_deref(), entry)
    }
}

/// Logs of a subscription that are held back, and since when.
#[derive(Debug, Default)]
pub(crate) struct Held(BTreeMap<LogName, Instant>);

impl Held {
    /// How far a log may be read; `done` says of another of the subscription's logs whether all below a place was delivered, `None`
    /// where there is no such log. `once`: nothing is waited for that is not here now.
    pub(crate) fn gate<E: Engine>(
        &self,
        engine: &E,
        log: &LogName,
        once: bool,
        done: impl Fn(&LogName, Place) -> Option<bool>,
    ) -> Gate {
        let control = engine.control(&log.topic, &log.origin);
        let waited = self.0.get(log).is_some_and(|since| since.elapsed() >= WAIT_MAX);
        let is_done = |queue, end| {
            let other = LogName { queue, ..log.clone() };
            match done(&other, end) {
                Some(true) => true,
                Some(false) if !waited => false,
                Some(false) => engine
                    .copy_status(&other)
                    .is_none_or(|status| matches!(status.state, "own" | "live" | "not-wanted")),
                None => once || waited,
            }
        };
        let limit = control.as_ref().and_then(|control| order::limit(&control.changes, log.queue, is_done));
        Gate { limit, control, trusting: once || waited }
    }

    /// A log cannot be read on.
    pub(crate) fn hold(&mut self, log: &LogName) {
        if !self.0.contains_key(log) {
            self.0.insert(log.clone(), Instant::now());
        }
    }

    /// It was read on.
    pub(crate) fn went_on(&mut self, log: &LogName) {
        self.0.remove(log);
    }

    /// Whether none is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that may wait for this one.
    pub(crate) fn behind(&self, log: &LogName) -> Vec<LogName> {
        let same = |held: &&LogName| held.topic == log.topic && held.origin == log.origin && *held != log;
        self.0.keys().filter(same).cloned().collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<LogName> {
        self.0.keys().cloned().collect()
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
