//! Every bound of the doors in one place, and the rates to which each client is held.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use governor::{
    DefaultDirectRateLimiter, Quota,
    clock::{Clock, DefaultClock},
};
use seaway_federation_proto::limits::MESSAGE_BYTES_CEILING;
use tokio::sync::Semaphore;

use crate::{
    api::{Header, publish_batch::Content},
    door::{ClientLimits, OnExceed},
    grpc::shared::PERMIT_BYTES,
};

/// Connections of clients at one time; the next is closed at once and counted.
pub const CONNECTIONS_MAX: usize = 4096;
/// Calls at one time on one connection.
pub const CALLS_PER_CONNECTION_MAX: u32 = 64;
/// Largest request, bytes: the largest message with room for path, headers and the encoding.
pub const REQUEST_BYTES_MAX: usize = MESSAGE_BYTES_CEILING + 64 * 1024;
/// Largest request of a subscriber, bytes: positions of thousands of logs, or as many confirmations.
pub const SUBSCRIBE_REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Parts of one request: messages, headers, named sites, positions, ids. Each takes far more room in memory than on the wire.
pub const REQUEST_PARTS_MAX: usize = 262_144;
/// Bytes of requests of all clients that are being read, each counted whole from its first byte to its last.
pub const DECODING_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes of requests of one client that are being read, or were and wait for room further on: a client that waits holds
/// nothing of the others'.
pub const CLIENT_DECODING_BYTES_MAX: usize = DECODING_BYTES_MAX / 2;
/// Of one client's subscribers: its confirmations do not wait for its publishes.
pub const CLIENT_CONFIRMING_BYTES_MAX: usize = 8 * SUBSCRIBE_REQUEST_BYTES_MAX;
/// What one part of a request takes in memory beyond its bytes: the larger of a message and a header, and as much again since a
/// list grows by doubling.
pub const PART_BYTES: usize = {
    let (message, header) = (size_of::<Content>(), size_of::<Header>());
    2 * if message > header { message } else { header }
};
/// Bytes that the parts of all clients' requests take while they are read.
pub const PARTS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Of these, of one client; a request that finds no room is refused.
pub const CLIENT_PARTS_BYTES_MAX: usize = PARTS_BYTES_MAX / 2;
/// Requests up to this many bytes are not counted there.
pub const DECODING_SMALL_BYTES: usize = 4 * 1024;
/// How long a request may take from its first byte to its last while it is counted there.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);
/// Largest reply, bytes.
pub const REPLY_BYTES_MAX: usize = MESSAGE_BYTES_CEILING + 64 * 1024;
/// Bytes of messages of all clients that wait for room in the engine's append queue.
pub const IN_FLIGHT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Of these, of one client: one that waits for a site that is cut off leaves room for the others.
pub const CLIENT_IN_FLIGHT_BYTES_MAX: usize = IN_FLIGHT_BYTES_MAX / 4;
/// Messages of one client that wait for other sites, over all its streams.
pub const CLIENT_RECEIPTS_MAX: usize = 32_768;
/// Bytes of messages accepted on one stream and not yet answered, [`IN_FLIGHT_OVERHEAD_BYTES`] for each message included; so
/// the number of its answers that wait is bounded too.
pub const STREAM_IN_FLIGHT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Messages in one batch of a publishing stream.
pub const BATCH_MESSAGES_MAX: usize = 16_384;
/// Bytes counted for a message on top of its own, for what is kept about it while it is in flight.
pub const IN_FLIGHT_OVERHEAD_BYTES: usize = 256;
/// Receipts that wait for a client which does not read them.
pub const REPLIES_QUEUED_MAX: usize = 1024;
/// Bytes that one reply to a subscriber gathers, unless one message is larger.
pub const SUBSCRIBE_REPLY_BYTES: usize = 256 * 1024;
/// Replies that wait for a subscriber which does not read them (each of [`SUBSCRIBE_REPLY_BYTES`], or one message).
pub const SUBSCRIBE_REPLIES_MAX: usize = 4;
/// Bytes that a subscription reads from a log at a time, about.
pub const READ_BYTES: usize = 256 * 1024;
/// Most credit that a subscriber can have: messages.
pub const CREDIT_MESSAGES_MAX: u64 = 1_000_000;
/// Most credit that a subscriber can have: bytes.
pub const CREDIT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Subscriptions at one time, of all clients.
pub const SUBSCRIPTIONS_MAX: usize = 16_384;
/// Confirmations of one subscriber that are not yet answered.
pub const CONFIRMS_UNANSWERED_MAX: usize = 256;
/// Message ids in one confirmation.
pub const CONFIRM_IDS_MAX: usize = 16_384;
/// Durable groups of this site.
pub const GROUPS_MAX: usize = 1024;
/// Members of one group at one time.
pub const GROUP_MEMBERS_MAX: usize = 256;
/// Logs that one group covers.
pub const GROUP_LOGS_MAX: usize = 65_536;
/// Messages of one log that a group has out unconfirmed, and so the most ranges that its position can have.
pub const GROUP_UNCONFIRMED_MAX: usize = 4096;
/// Bytes of messages that one group has read and not yet delivered.
pub const GROUP_BUFFER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Origins that a subscription may name.
pub const ORIGINS_MAX: usize = 256;
/// Passing wants of plain subscribers, kept until they expire.
pub const PASSING_WANTS_MAX: usize = 4096;
/// Access tokens.
pub const TOKENS_MAX: usize = 10_000;
/// Clients whose rates are remembered at one time.
pub const RATED_CLIENTS_MAX: usize = 10_000;
/// Largest request to the admin service, bytes.
pub const ADMIN_REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Calls of the admin service at one time, of all callers; with [`ADMIN_REQUEST_BYTES_MAX`] that bounds what they hold.
pub const ADMIN_CALLS_MAX: usize = 256;
/// Of these, of one caller.
pub const CLIENT_ADMIN_CALLS_MAX: usize = 32;
/// How long a call of the admin service may take, from its first byte to its answer.
pub const ADMIN_CALL_TIME_MAX: Duration = Duration::from_secs(120);
/// Bytes of records of admin calls that wait for the commit log; what is beyond is in the node's log alone, and counted.
pub const AUDIT_PENDING_BYTES_MAX: usize = 1024 * 1024;
/// Longest deadline that a publish may ask for.
pub const DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client waits for its rate at most before the limits are looked at again: they may have changed.
const LIMITS_LOOK: Duration = Duration::from_secs(1);
/// How long without a rate being used until it may be forgotten.
const RATE_IDLE: Duration = Duration::from_secs(60);

/// A client is beyond its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limited {
    /// Which rate, in words.
    pub(crate) what: &'static str,
    /// When the same call can succeed.
    pub(crate) retry_after: Duration,
}

/// The rates of one client.
#[derive(Debug)]
pub(crate) struct ClientRate {
    buckets: ArcSwap<Buckets>,
    counters: Arc<RateCounters>,
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

/// How often clients were held back.
#[derive(Debug, Default)]
pub(crate) struct RateCounters {
    /// Publishes that waited.
    pub(crate) delayed: AtomicU64,
    /// Publishes that were refused.
    pub(crate) refused: AtomicU64,
}

/// What a client's rate is made of; replaced as a whole when the limits change.
#[derive(Debug)]
struct Buckets {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    on_exceed: OnExceed,
}

impl Buckets {
    fn new(limits: &ClientLimits) -> Self {
        Self {
            messages: Bucket::new("messages a second", limits.messages_per_s, limits.messages_burst),
            bytes: Bucket::new("bytes a second", limits.bytes_per_s, limits.bytes_burst),
            on_exceed: limits.on_exceed,
        }
    }
}

#[derive(Debug)]
struct Bucket {
    what: &'static str,
    burst: NonZeroU32,
    limiter: DefaultDirectRateLimiter,
}

impl Bucket {
    fn new(what: &'static str, per_s: Option<u32>, burst: u32) -> Option<Self> {
        let per_s = NonZeroU32::new(per_s?)?;
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(per_s).allow_burst(burst);
        Some(Self { what, burst, limiter: DefaultDirectRateLimiter::direct(quota) })
    }

    /// Takes `amount` (what is above the burst counts as the burst, so that every message can pass).
    fn take(&self, amount: usize) -> Result<(), Limited> {
        let amount = u32::try_from(amount).unwrap_or(u32::MAX).min(self.burst.get());
        let Some(amount) = NonZeroU32::new(amount) else { return Ok(()) };
        match self.limiter.check_n(amount) {
            Ok(Ok(())) | Err(_) => Ok(()), // an amount above the burst cannot come here
            Ok(Err(until)) => {
                let wait = until.wait_time_from(DefaultClock::default().now());
                Err(Limited { what: self.what, retry_after: wait.max(Duration::from_millis(1)) })
            }
        }
    }
}

impl ClientRate {
    fn new(limits: &ClientLimits, counters: Arc<RateCounters>) -> Self {
        Self {
            buckets: ArcSwap::from_pointee(Buckets::new(limits)),
            counters,
            decoding: Arc::new(Semaphore::new(CLIENT_DECODING_BYTES_MAX / PERMIT_BYTES)),
            confirming: Arc::new(Semaphore::new(CLIENT_CONFIRMING_BYTES_MAX / PERMIT_BYTES)),
            parts: Arc::new(Semaphore::new(CLIENT_PARTS_BYTES_MAX / PERMIT_BYTES)),
            in_flight: Arc::new(Semaphore::new(CLIENT_IN_FLIGHT_BYTES_MAX / PERMIT_BYTES)),
            admin: Arc::new(Semaphore::new(CLIENT_ADMIN_CALLS_MAX)),
            receipts: Arc::new(Semaphore::new(limits.receipts_max)),
            receipts_max: limits.receipts_max,
        }
    }

    /// Whether there is a rate to keep to.
    pub(crate) fn is_limited(&self) -> bool {
        let buckets = self.buckets.load();
        buckets.messages.is_some() || buckets.bytes.is_some()
    }

    /// Takes room for one message of so many bytes: waits for it, or refuses, as configured.
    pub(crate) async fn admit(&self, bytes: usize) -> Result<(), Limited> {
        self.pass(|buckets| buckets.messages.as_ref(), 1).await?;
        self.pass(|buckets| buckets.bytes.as_ref(), bytes).await
    }

    async fn pass(&self, bucket: fn(&Buckets) -> Option<&Bucket>, amount: usize) -> Result<(), Limited> {
        let mut waited = false;
        loop {
            // Those of now: the limits may have changed while it waited.
            let (taken, on_exceed) = {
                let buckets = self.buckets.load();
                (bucket(&buckets).map_or(Ok(()), |bucket| bucket.take(amount)), buckets.on_exceed)
            };
            let Err(limited) = taken else { return Ok(()) };
            if on_exceed == OnExceed::Refuse {
                self.counters.refused.fetch_add(1, Relaxed);
                return Err(limited);
            }
            if !std::mem::replace(&mut waited, true) {
                self.counters.delayed.fetch_add(1, Relaxed);
            }
            tokio::time::sleep(limited.retry_after.min(LIMITS_LOOK)).await;
        }
    }
}

/// The rates of all clients, by name.
#[derive(Debug)]
pub(crate) struct Rates {
    limits: ArcSwap<ClientLimits>,
    clients: parking_lot::Mutex<BTreeMap<String, (Arc<ClientRate>, Instant)>>,
    counters: Arc<RateCounters>,
}

impl Rates {
    /// Rates that follow `limits`.
    pub(crate) fn new(limits: ClientLimits) -> Self {
        let limits = ArcSwap::from_pointee(limits);
        Self { limits, clients: parking_lot::Mutex::default(), counters: Arc::default() }
    }

    /// Other rates, from now on and for every client; each begins with its whole burst.
    pub(crate) fn replace(&self, limits: ClientLimits) {
        let clients = self.clients.lock();
        for (rate, _) in clients.values() {
            rate.buckets.store(Arc::new(Buckets::new(&limits)));
        }
        self.limits.store(Arc::new(limits));
    }

    /// How often clients were held back.
    pub(crate) fn counters(&self) -> &RateCounters {
        &self.counters
    }

    /// The rate of a client. Where too many are remembered, those idle are forgotten first; if all are in use, the
    /// client shares one rate with the others that are one too many.
    pub(crate) fn of(&self, client: &str, now: Instant) -> Arc<ClientRate> {
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
        let fresh = || (Arc::new(ClientRate::new(&self.limits.load(), self.counters.clone())), now);
        clients.entry(name.to_owned()).or_insert_with(fresh).0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(on_exceed: OnExceed) -> ClientLimits {
        ClientLimits {
            messages_per_s: Some(1),
            messages_burst: 2,
            bytes_per_s: Some(10),
            bytes_burst: 100,
            on_exceed,
            ..ClientLimits::default()
        }
    }

    #[tokio::test]
    async fn beyond_the_burst_a_client_is_refused_and_told_when_to_come_back() {
        let rates = Rates::new(limits(OnExceed::Refuse));
        let rate = rates.of("a", Instant::now());
        rate.admit(1).await.unwrap();
        rate.admit(1).await.unwrap();
        let limited = rate.admit(1).await.unwrap_err();
        assert_eq!(limited.what, "messages a second");
        assert!(limited.retry_after <= Duration::from_secs(1) && !limited.retry_after.is_zero());
        assert_eq!(rates.counters().refused.load(Relaxed), 1);
        rates.of("b", Instant::now()).admit(1).await.unwrap();
    }

    #[tokio::test]
    async fn other_limits_hold_at_once_for_those_who_wait_too() {
        let rates = Rates::new(ClientLimits { messages_burst: 1, ..limits(OnExceed::Delay) });
        let rate = rates.of("a", Instant::now());
        rate.admit(1).await.unwrap();
        rates.replace(limits(OnExceed::Refuse));
        rate.admit(1).await.unwrap();
        rate.admit(1).await.unwrap();
        assert!(rate.admit(1).await.is_err());
        rates.replace(ClientLimits::default());
        assert!(!rate.is_limited() && !rates.of("b", Instant::now()).is_limited());
        rate.admit(1).await.unwrap();
    }

    #[tokio::test]
    async fn bytes_count_too_and_a_message_above_the_burst_still_passes_once() {
        let rates = Rates::new(ClientLimits { messages_per_s: None, ..limits(OnExceed::Refuse) });
        let rate = rates.of("a", Instant::now());
        rate.admit(1_000_000).await.unwrap();
        assert_eq!(rate.admit(50).await.unwrap_err().what, "bytes a second");
    }

    #[tokio::test]
    async fn with_delay_every_message_passes_in_the_end() {
        let rates =
            Rates::new(ClientLimits { messages_per_s: Some(100), messages_burst: 1, ..limits(OnExceed::Delay) });
        let rate = rates.of("a", Instant::now());
        for _ in 0..3 {
            rate.admit(1).await.unwrap();
        }
        assert!(rates.counters().delayed.load(Relaxed) >= 1);
    }
}
