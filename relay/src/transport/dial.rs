//! Dialling one peer, again and again: with backoff and jitter, and its name resolved anew each time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt};
use quinn::{Connection, ConnectionError, Endpoint};
use seaway_federation_proto::ids::NodeName;

use super::{endpoint, link::LinkEnd, reason::describe, service::Shared, status::LinkBoard, tls::peer_of_connection};

/// Longest time for one attempt, all addresses together.
const ATTEMPT: Duration = Duration::from_secs(10);
/// The next address of a name is tried beside the first after this.
const STAGGER: Duration = Duration::from_millis(300);
/// Addresses of one name that are tried in an attempt.
const ADDRESSES_MAX: usize = 6;
/// First and longest time between attempts.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A link that was up so long did well: the next attempt comes soon.
const LIVED_WELL: Duration = Duration::from_secs(5);

/// Whom to dial.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) peer: NodeName,
    pub(super) address: String,
    pub(super) board: Arc<LinkBoard>,
}

/// How long to wait before the next attempt. The waits double; each is shortened by up to half at random, so
/// that the peers of a node that comes back do not all dial at once.
#[derive(Debug)]
struct Backoff {
    next: Duration,
}

impl Backoff {
    fn new() -> Self {
        Self { next: BACKOFF_FIRST }
    }

    /// `random`: any number.
    fn after(&mut self, lived: Option<Duration>, random: u64) -> Duration {
        if lived.is_some_and(|lived| lived >= LIVED_WELL) {
            self.next = BACKOFF_FIRST;
        }
        let half_us = u64::try_from(self.next.as_micros() / 2).unwrap_or(u64::MAX);
        let wait = self.next - Duration::from_micros(random % (half_us + 1));
        self.next = (self.next * 2).min(BACKOFF_MAX);
        wait
    }
}

/// Dials until the transport stops.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint, target: Target) {
    let mut backoff = Backoff::new();
    while !shared.stop.is_cancelled() {
        tokio::select! {
            () = shared.stop.cancelled() => break,
            () = shared.pauses.until_resumed(&target.peer) => {}
        }
        let end = tokio::select! {
            biased;
            () = shared.stop.cancelled() => break,
            connected = connect(&shared, &endpoint, &target) => match connected {
                Ok(connection) => shared.run_link(connection, &target.peer, true, target.board.clone()).await,
                Err(reason) => LinkEnd::before_it_began(reason),
            },
        };
        target.board.failed(end.reason.clone(), end.paused);
        shared.opener.dial_ended(&target.peer, end.name_taken);
        if shared.stop.is_cancelled() {
            break;
        }
        // Without a source of randomness all wait alike; that is no reason not to dial.
        let wait = backoff.after(end.lived, getrandom::u64().unwrap_or(0));
        if shared.quiet.admits(&format!("{}: {}", target.peer, end.reason)) {
            tracing::warn!(peer = %target.peer, address = %target.address, "link is down: {}", end.reason);
        }
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn connect(shared: &Shared, endpoint: &Endpoint, target: &Target) -> Result<Connection, String> {
    if shared.registry.is_linked(&target.peer) {
        return Err(format!("{} dials this node already; configure `dial` on one side only", target.peer));
    }
    target.board.connecting(target.address.clone());
    let attempt = async {
        let addresses = resolve(&target.address).await?;
        connect_any(shared, endpoint, target, addresses).await
    };
    tokio::time::timeout(ATTEMPT, attempt).await.unwrap_or_else(|_| {
        Err(format!(
            "no answer from {} within {} s; check that the peer runs and listens there and that UDP passes both ways",
            target.address,
            ATTEMPT.as_secs()
        ))
    })
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host(address).await.map_err(|error| {
        format!("{address} cannot be resolved: {error}; it must be host:port with a name known to DNS")
    })?;
    let found: Vec<_> = found.take(ADDRESSES_MAX).collect();
    if found.is_empty() { Err(format!("{address} has no address in DNS")) } else { Ok(found) }
}

/// Dials all addresses of a name, each a little after the one before; the first that answers wins.
async fn connect_any(
    shared: &Shared,
    endpoint: &Endpoint,
    target: &Target,
    addresses: Vec<SocketAddr>,
) -> Result<Connection, String> {
    let mut attempts = FuturesUnordered::new();
    for (delay, address) in (0u32..).zip(addresses) {
        attempts.push(async move {
            tokio::time::sleep(STAGGER * delay).await;
            connect_one(shared, endpoint, target, address).await
        });
    }
    let mut failed = None;
    while let Some(result) = attempts.next().await {
        match result {
            Ok(connection) => return Ok(connection),
            // One that answered says more than one that did not.
            Err((silent, reason)) if failed.is_none() || !silent => failed = Some(reason),
            Err(_) => {}
        }
    }
    Err(failed.unwrap_or_else(|| format!("{} has no address in DNS", target.address)))
}

/// On failure: whether nobody answered, and the reason.
async fn connect_one(
    shared: &Shared,
    endpoint: &Endpoint,
    target: &Target,
    address: SocketAddr,
) -> Result<Connection, (bool, String)> {
    let credentials = shared.credentials.load_full();
    let config = endpoint::client_config(&credentials, &target.peer, shared.transport.clone())
        .map_err(|error| (false, error.to_string()))?;
    let connecting = endpoint
        .connect_with(config, address, &credentials.server_name(&target.peer))
        .map_err(|error| (false, format!("{address} cannot be dialled: {error}")))?;
    let connection =
        connecting.await.map_err(|error| (matches!(error, ConnectionError::TimedOut), describe(&error, address)))?;
    match peer_of_connection(&connection, &shared.settings.federation) {
        Ok(_) => Ok(connection),
        Err(error) => Err((false, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_a_good_link() {
        let mut backoff = Backoff::new();
        let waits: Vec<_> = (0..10).map(|_| backoff.after(None, 0)).collect();
        assert_eq!(waits[..3], [BACKOFF_FIRST, BACKOFF_FIRST * 2, BACKOFF_FIRST * 4]);
        assert_eq!(waits[9], BACKOFF_MAX);
        assert_eq!(backoff.after(Some(Duration::from_secs(1)), 0), BACKOFF_MAX);
        assert_eq!(backoff.after(Some(LIVED_WELL), 0), BACKOFF_FIRST);
    }

    #[test]
    fn jitter_takes_at_most_half() {
        for random in [0, 1, 99_999, 100_000, u64::MAX] {
            let wait = Backoff::new().after(None, random);
            assert!(wait >= BACKOFF_FIRST / 2 && wait <= BACKOFF_FIRST, "{wait:?}");
        }
    }

    #[tokio::test]
    async fn an_address_without_a_port_is_explained() {
        let error = resolve("localhost").await.unwrap_err();
        assert!(error.contains("must be host:port"), "{error}");
    }
}
