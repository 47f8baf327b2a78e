//! What all services of one door share.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use seaway_relay::{node::queues::Gauge, transport::expiry::CertificateEnd};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::audit::Trail;
use crate::{
    auth::{Grants, tokens::Tokens},
    door::{DoorConfig, DoorError},
    engine::Engine,
    groups::Groups,
    limits::{
        CONNECTIONS_MAX, DECODING_BYTES_MAX, IN_FLIGHT_BYTES_MAX, PARTS_BYTES_MAX, Rates, SUBSCRIPTIONS_MAX, TopicRates,
    },
    metrics::traffic::Traffic,
    steering::Steer,
    subscriptions::{standing::Standings, wants::PassingWants},
};

/// Granularity of the permits for bytes in flight: a semaphore counts at most 2^32 of them.
pub(crate) const PERMIT_BYTES: usize = 256;

/// What the door counts.
#[derive(Debug, Default)]
pub(crate) struct DoorCounters {
    /// Publishes that got a receipt.
    pub(crate) published: AtomicU64,
    /// Publishes that failed.
    pub(crate) failed: AtomicU64,
    /// Calls refused for a missing token, certificate or right.
    pub(crate) not_allowed: AtomicU64,
    /// Messages delivered to subscribers.
    pub(crate) delivered: AtomicU64,
    /// Subscriptions opened.
    pub(crate) subscribers: AtomicU64,
    /// Connections that were one too many.
    pub(crate) connections_refused: AtomicU64,
    /// Admin calls whose record could not be stored.
    pub(crate) audit_failures: AtomicU64,
}

impl DoorCounters {
    /// Counts one more.
    pub(crate) fn count(counter: &AtomicU64) {
        Self::add(counter, 1);
    }

    /// Counts so many more.
    pub(crate) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Relaxed);
    }
}

/// What all services of one door share.
#[derive(Debug)]
pub(crate) struct Shared<E: Engine> {
    /// The engine.
    pub(crate) engine: E,
    /// The door's settings.
    pub(crate) config: DoorConfig,
    /// Clients' rates.
    pub(crate) rates: Rates,
    /// Topics' rates.
    pub(crate) topic_rates: TopicRates,
    /// Rights as configured.
    pub(crate) grants: Arc<ArcSwap<Grants>>,
    /// What steers the process, once it is up.
    pub(crate) steering: OnceLock<Arc<dyn Steer>>,
    /// When certificates in use end, as last looked at.
    pub(crate) ends: ArcSwap<Vec<CertificateEnd>>,
    /// Tokens.
    pub(crate) tokens: Arc<Tokens<E>>,
    /// Durable groups.
    pub(crate) groups: Arc<Groups<E>>,
    /// Plain subscribers' wants.
    pub(crate) wants: Arc<PassingWants<E>>,
    /// Bytes of messages in flight, in permits of [`PERMIT_BYTES`].
    pub(crate) in_flight: Arc<Semaphore>,
    /// Bytes of requests that are being read, in permits of [`PERMIT_BYTES`].
    pub(crate) decoding: Arc<Semaphore>,
    /// The same of what the requests' parts take.
    pub(crate) parts: Arc<Semaphore>,
    /// Bytes of replies that wait for subscribers to read them.
    pub(crate) replies: Arc<Gauge>,
    /// The most that each queue was seen to hold, by name and whose.
    pub(crate) peaks: parking_lot::Mutex<BTreeMap<(&'static str, String), u64>>,
    /// Which plain subscribers keep something waiting.
    pub(crate) standings: Arc<Standings>,
    /// Subscriptions that may still be opened.
    pub(crate) subscriptions: Arc<Semaphore>,
    /// Connections that may still be made.
    pub(crate) connections: Arc<Semaphore>,
    /// Set when the door drains.
    pub(crate) drain: CancellationToken,
    /// The audit trail.
    pub(crate) trail: Trail,
    /// What is counted.
    pub(crate) counters: Arc<DoorCounters>,
    /// Messages and bytes by topic.
    pub(crate) traffic: Traffic,
    /// When the door opened.
    pub(crate) since: Instant,
}

impl<E: Engine> Shared<E> {
    /// Takes over what the engine keeps for doors: tokens, groups, passing wants.
    pub(crate) fn open(engine: E, config: DoorConfig) -> Result<Arc<Self>, DoorError> {
        let drain = CancellationToken::new();
        let tokens = Arc::new(Tokens::open(engine.clone(), config.auth.token_file.as_deref())?);
        let groups = Groups::open(engine.clone(), config.confirm_timeout, drain.clone())?;
        let wants = PassingWants::open(engine.clone(), config.passing_want);
        Ok(Arc::new(Self {
            wants,
            rates: Rates::new(config.limits.clone(), engine.limits().clone()),
            topic_rates: TopicRates::default(),
            grants: Arc::new(ArcSwap::from_pointee(Grants::new(&config.auth))),
            steering: OnceLock::new(),
            ends: ArcSwap::default(),
            tokens,
            groups,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX / PERMIT_BYTES)),
            decoding: Arc::new(Semaphore::new(DECODING_BYTES_MAX / PERMIT_BYTES)),
            parts: Arc::new(Semaphore::new(PARTS_BYTES_MAX / PERMIT_BYTES)),
            replies: Arc::default(),
            peaks: parking_lot::Mutex::default(),
            standings: Arc::default(),
            subscriptions: Arc::new(Semaphore::new(SUBSCRIPTIONS_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            drain,
            trail: Trail::default(),
            counters: Arc::default(),
            traffic: Traffic::default(),
            since: Instant::now(),
            engine,
            config,
        }))
    }

    /// A name for one more subscriber, unique on this node since its start.
    pub(crate) fn next_subscriber(&self) -> String {
        let number = self.counters.subscribers.fetch_add(1, Relaxed).saturating_add(1);
        format!("{}/{number}", self.engine.identity().1)
    }

    /// Counts messages handed to a subscriber.
    pub(crate) fn count_delivered(&self, messages: usize) {
        self.counters.delivered.fetch_add(u64::try_from(messages).unwrap_or(u64::MAX), Relaxed);
    }
}
