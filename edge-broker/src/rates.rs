//! The rates to which publishers are held: each client's, and each topic's.
//!
//! What holds is the engine's [`LimitBook`](seaway_relay::node::limits::LimitBook) (what commands set, and the file's limits of topics) and
//! the door's configuration (the file's limits of clients); here stand the buckets, which follow every change at once, for those who wait too.
//! A publish passes its client's buckets first and its topic's after; who is refused by the second has used up the first.

mod bucket;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use seaway_relay::node::limits::{Limit, LimitBook, LimitSettings, OnExceed};
use tokio::sync::Semaphore;

use self::bucket::Bucket;
use crate::{
    door::ClientLimits,
    engine::Engine,
    grpc::shared::PERMIT_BYTES,
    limits::{
        CLIENT_ADMIN_CALLS_MAX, CLIENT_CONFIRMING_BYTES_MAX, CLIENT_DECODING_BYTES_MAX, CLIENT_IN_FLIGHT_BYTES_MAX,
        CLIENT_PARTS_BYTES_MAX, RATED_CLIENTS_MAX,
    },
};

/// How long a publish waits for a rate at most before the limits are looked at again: they may have changed.
const LIMITS_LOOK: Duration = Duration::from_secs(1);
/// How long without a rate being used until it may be forgotten.
const RATE_IDLE: Duration = Duration::from_secs(60);

/// A publish is beyond a rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limited {
    /// Which rate, in words.
    pub(crate) what: &'static str,
    /// Whose.
    pub(crate) whose: String,
    /// When the same call can succeed.
    pub(crate) retry_after: Duration,
}

/// How often publishes were held back.
#[derive(Debug, Default)]
pub(crate) struct RateCounters {
    /// Publishes that waited.
    pub(crate) delayed: AtomicU64,
    /// Publishes that were refused.
    pub(crate) refused: AtomicU64,
}

/// What one limit is made of; replaced as a whole when the limit changes.
#[derive(Debug)]
struct Buckets {
    limit: Limit,
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Buckets {
    fn new(limit: Limit) -> Self {
        Self { limit, messages: limit.messages.map(Bucket::new), bytes: limit.bytes.map(Bucket::new) }
    }
}

/// How far a message has come through a gate.
#[derive(Debug, Default)]
pub(crate) struct Passage {
    message: bool,
    bytes: bool,
}

/// The rate of one client or topic.
#[derive(Debug)]
pub(crate) struct Gate {
    whose: String,
    buckets: ArcSwap<Buckets>,
    /// Its own, and those of all of its kind.
    pub(crate) counters: RateCounters,
    all: Arc<RateCounters>,
}

impl Gate {
    fn new(whose: String, limit: Limit, all: Arc<RateCounters>) -> Self {
        Self { whose, buckets: ArcSwap::from_pointee(Buckets::new(limit)), counters: RateCounters::default(), all }
    }

    /// Another limit from now on, which begins with its whole burst; one that is the same goes on as it stands.
    fn replace(&self, limit: Limit) {
        if self.buckets.load().limit != limit {
            self.buckets.store(Arc::new(Buckets::new(limit)));
        }
    }

    /// Whether there is a rate to keep to.
    pub(crate) fn is_limited(&self) -> bool {
        self.buckets.load().limit.is_limited()
    }

    /// Takes room for one message of so many bytes, as far as there is some now.
    pub(crate) fn try_pass(&self, passage: &mut Passage, bytes: usize) -> Result<(), Limited> {
        let buckets = self.buckets.load();
        let limited = |what, retry_after| Limited { what, whose: self.whose.clone(), retry_after };
        let take = |done: &mut bool, bucket: &Option<Bucket>, amount, what| {
            if !*done {
                bucket.as_ref().map_or(Ok(()), |bucket| bucket.take(amount)).map_err(|wait| limited(what, wait))?;
                *done = true;
            }
            Ok(())
        };
        take(&mut passage.message, &buckets.messages, 1, "messages a second")?;
        take(&mut passage.bytes, &buckets.bytes, bytes, "bytes a second")
    }

    /// Takes room for the rest of a passage: waits for it, or refuses, as configured.
    pub(crate) async fn pass(&self, passage: &mut Passage, bytes: usize) -> Result<(), Limited> {
        let mut waited = false;
        loop {
            // Those of now: the limits may have changed while it waited.
            let Err(limited) = self.try_pass(passage, bytes) else { return Ok(()) };
            if self.buckets.load().limit.on_exceed == OnExceed::Refuse {
                self.counters.refused.fetch_add(1, Relaxed);
                self.all.refused.fetch_add(1, Relaxed);
                return Err(limited);
            }
            if !std::mem::replace(&mut waited, true) {
                self.counters.delayed.fetch_add(1, Relaxed);
                self.all.delayed.fetch_add(1, Relaxed);
            }
            tokio::time::sleep(limited.retry_after.min(LIMITS_LOOK)).await;
        }
    }

    #[cfg(test)]
    async fn admit(&self, bytes: usize) -> Result<(), Limited> {
        self.pass(&mut Passage::default(), bytes).await
    }
}

/// What one client may take.
#[derive(Debug)]
pub(crate) struct ClientRate {
    /// Its rate.
    pub(crate) gate: Gate,
    /// Its share of the bytes that are read, in permits of [`PERMIT_BYTES`].
    pub(crate) decoding: Arc<Semaphore>,
    /// The same of its subscribers' requests.
    pub(crate) confirming: Arc<Semaphore>,
    /// The same of what the requests' parts take.
    pub(crate) parts: Arc<Semaphore>,
    /// Its share of the bytes in flight, in permits of [`PERMIT_BYTES`].
    pub(crate) in_flight: Arc<Semaphore>,
    /// Its share of calls to the admin service.
    pub(crate) admin: Arc<Semaphore>,
    /// Its share of messages that wait for other sites.
    pub(crate) receipts: Arc<Semaphore>,
    /// Size of that share.
    pub(crate) receipts_max: usize,
}

impl ClientRate {
    fn new(gate: Gate, receipts_max: usize) -> Self {
        Self {
            gate,
            decoding: Arc::new(Semaphore::new(CLIENT_DECODING_BYTES_MAX / PERMIT_BYTES)),
            confirming: Arc::new(Semaphore::new(CLIENT_CONFIRMING_BYTES_MAX / PERMIT_BYTES)),
            parts: Arc::new(Semaphore::new(CLIENT_PARTS_BYTES_MAX / PERMIT_BYTES)),
            in_flight: Arc::new(Semaphore::new(CLIENT_IN_FLIGHT_BYTES_MAX / PERMIT_BYTES)),
            admin: Arc::new(Semaphore::new(CLIENT_ADMIN_CALLS_MAX)),
            receipts: Arc::new(Semaphore::new(receipts_max)),
            receipts_max,
        }
    }
}

/// What the door's configuration says of clients, as a limit's settings.
pub(crate) fn file_of_clients(limits: &ClientLimits) -> LimitSettings {
    let number = |n: Option<u32>| n.and_then(|n| NonZeroU64::new(n.into()));
    let (messages_per_s, bytes_per_s) = (number(limits.messages_per_s), number(limits.bytes_per_s));
    LimitSettings {
        messages_per_s: messages_per_s.map(Some),
        messages_burst: messages_per_s.and_then(|_| number(Some(limits.messages_burst))),
        bytes_per_s: bytes_per_s.map(Some),
        bytes_burst: bytes_per_s.and_then(|_| number(Some(limits.bytes_burst))),
        on_exceed: (limits.on_exceed == crate::door::OnExceed::Refuse).then_some(OnExceed::Refuse),
    }
}

/// The rates of all clients, by name.
#[derive(Debug)]
pub(crate) struct Rates {
    limits: ArcSwap<ClientLimits>,
    book: Arc<LimitBook>,
    /// Of the book, when the rates were last brought in line with it.
    version: AtomicU64,
    clients: Mutex<BTreeMap<String, (Arc<ClientRate>, Instant)>>,
    counters: Arc<RateCounters>,
}

impl Rates {
    /// Rates that follow `limits`, and what commands say beside them.
    pub(crate) fn new(limits: ClientLimits, book: Arc<LimitBook>) -> Self {
        let version = book.version().into();
        let limits = ArcSwap::from_pointee(limits);
        Self { limits, book, version, clients: Mutex::default(), counters: Arc::default() }
    }

    fn limit(&self, client: &str) -> Limit {
        let file = file_of_clients(&self.limits.load());
        self.book.client(client, &file)
    }

    /// Other rates, from now on and for every client.
    pub(crate) fn replace(&self, limits: ClientLimits) {
        self.limits.store(Arc::new(limits));
        self.follow();
    }

    fn follow(&self) {
        let clients = self.clients.lock();
        for (client, (rate, _)) in &*clients {
            rate.gate.replace(self.limit(client));
        }
    }

    /// What the configuration says.
    pub(crate) fn file(&self) -> LimitSettings {
        file_of_clients(&self.limits.load())
    }

    /// How often clients were held back.
    pub(crate) fn counters(&self) -> &RateCounters {
        &self.counters
    }

    /// Clients that were held back, with how often they waited and were refused since they were last remembered.
    pub(crate) fn held_back(&self) -> Vec<(String, u64, u64)> {
        held_back(self.clients.lock().iter().map(|(name, (rate, _))| (name, &rate.gate)))
    }

    /// The rate of a client. Where too many are remembered, those idle are forgotten first; if all are in use, the
    /// client shares one rate with the others that are one too many.
    pub(crate) fn of(&self, client: &str, now: Instant) -> Arc<ClientRate> {
        let version = self.book.version();
        if self.version.swap(version, AcqRel) != version {
            self.follow();
        }
        let mut clients = self.clients.lock();
        if let Some((rate, used)) = clients.get_mut(client) {
            *used = now;
            return rate.clone();
        }
        if clients.len() >= RATED_CLIENTS_MAX {
            // Who has something on the way is not idle: what it holds counts.
            let idle = |rate: &Arc<ClientRate>, used: &Instant| {
                Arc::strong_count(rate) == 1 && now.saturating_duration_since(*used) >= RATE_IDLE
            };
            clients.retain(|_, (rate, used)| !idle(rate, used));
        }
        let name = if clients.len() >= RATED_CLIENTS_MAX { "" } else { client };
        let fresh = || {
            let gate = Gate::new("this client".to_owned(), self.limit(client), self.counters.clone());
            (Arc::new(ClientRate::new(gate, self.limits.load().receipts_max)), now)
        };
        clients.entry(name.to_owned()).or_insert_with(fresh).0.clone()
    }
}

fn held_back<'a>(gates: impl Iterator<Item = (&'a String, &'a Gate)>) -> Vec<(String, u64, u64)> {
    let of = |(name, gate): (&String, &Gate)| {
        let (delayed, refused) = (gate.counters.delayed.load(Relaxed), gate.counters.refused.load(Relaxed));
        (delayed + refused > 0).then(|| (name.clone(), delayed, refused))
    };
    let mut held: Vec<_> = gates.filter_map(of).collect();
    held.sort();
    held
}

/// A topic's rate, if it has one, and when it was used last.
type Rated = (Option<Arc<Gate>>, Instant);

/// The rates of topics, by name.
#[derive(Debug, Default)]
pub(crate) struct TopicRates {
    /// Of the book, when the rates were last brought in line with it; and whether it says anything of topics.
    version: AtomicU64,
    any: AtomicBool,
    topics: Mutex<HashMap<String, Rated>>,
    counters: Arc<RateCounters>,
}

impl TopicRates {
    /// The rate of a topic, if it has one.
    pub(crate) fn of<E: Engine>(&self, engine: &E, topic: &str, now: Instant) -> Option<Arc<Gate>> {
        self.follow(engine);
        if !self.any.load(Acquire) {
            return None;
        }
        let mut topics = self.topics.lock();
        if let Some((gate, used)) = topics.get_mut(topic) {
            *used = now;
            return gate.clone();
        }
        if topics.len() >= RATED_CLIENTS_MAX {
            topics.retain(|_, (_, used)| now.saturating_duration_since(*used) < RATE_IDLE);
        }
        // Those that are one too many share one rate.
        let name = if topics.len() >= RATED_CLIENTS_MAX { "" } else { topic };
        let limit = limit_of(engine, topic);
        let gate = || Arc::new(Gate::new(format!("topic {topic}"), limit, self.counters.clone()));
        topics.entry(name.to_owned()).or_insert_with(|| (limit.is_limited().then(gate), now)).0.clone()
    }

    /// Whether any topic may have a rate.
    pub(crate) fn any<E: Engine>(&self, engine: &E) -> bool {
        self.follow(engine);
        self.any.load(Acquire)
    }

    fn follow<E: Engine>(&self, engine: &E) {
        let version = engine.limits().version();
        if self.version.load(Acquire) == version {
            return;
        }
        let mut topics = self.topics.lock();
        self.any.store(engine.limits().has_topics(), Relaxed);
        for (topic, (gate, _)) in &mut *topics {
            let limit = limit_of(engine, topic);
            match gate {
                // Who waits for one that is gone passes.
                Some(gate) => gate.replace(limit),
                None if limit.is_limited() => {
                    *gate = Some(Arc::new(Gate::new(format!("topic {topic}"), limit, self.counters.clone())));
                }
                None => {}
            }
        }
        self.version.store(version, std::sync::atomic::Ordering::Release);
    }

    /// Topics whose publishers were held back, with how often they waited and were refused since the topic was last remembered.
    pub(crate) fn held_back(&self) -> Vec<(String, u64, u64)> {
        held_back(self.topics.lock().iter().filter_map(|(name, (gate, _))| Some((name, gate.as_deref()?))))
    }
}

fn limit_of<E: Engine>(engine: &E, topic: &str) -> Limit {
    let Ok(topic) = topic.parse() else { return Limit::default() };
    let largest = engine.topic_settings(&topic).config.message_bytes_max;
    engine.limits().topic(&topic, u64::try_from(largest).unwrap_or(u64::MAX))
}
