//! Accepting links, within limits: nothing is spent on strangers before their address is proven when
//! many come at once, and nothing is kept for those whose certificate does not hold.

use std::{sync::Arc, time::Duration};

use quinn::{Connecting, Endpoint, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    bounds::HANDSHAKES_MAX,
    reason::{CLOSE_REFUSED, describe},
    service::Shared,
    tls::peer_of_connection,
};

/// Longest time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Accepts until the transport stops.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let incoming = tokio::select! {
            () = shared.stop.cancelled() => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        admit(&shared, &handshakes, incoming);
    }
}

/// Begins a handshake, or asks for proof of the address, or refuses.
fn admit(shared: &Arc<Shared>, handshakes: &Arc<Semaphore>, incoming: Incoming) {
    let remote = incoming.remote_address();
    if handshakes.available_permits() < HANDSHAKES_MAX / 2
        && incoming.may_retry()
        && !incoming.remote_address_validated()
    {
        // Fails only for one that was validated already.
        let _ = incoming.retry();
        return;
    }
    let Ok(permit) = handshakes.clone().try_acquire_owned() else {
        if shared.quiet.admits("handshakes") {
            tracing::warn!(
                "{HANDSHAKES_MAX} handshakes are under way; further connections are refused, {remote} first"
            );
        }
        incoming.refuse();
        return;
    };
    match incoming.accept() {
        Ok(connecting) => {
            shared.tasks.spawn(serve(shared.clone(), connecting, permit));
        }
        Err(error) => {
            let reason = describe(&error, remote);
            if shared.quiet.admits(&reason) {
                tracing::warn!(%remote, "connection refused: {reason}");
            }
        }
    }
}

async fn serve(shared: Arc<Shared>, connecting: Connecting, permit: OwnedSemaphorePermit) {
    let remote = connecting.remote_address();
    let handshake = tokio::select! {
        () = shared.stop.cancelled() => return,
        handshake = tokio::time::timeout(HANDSHAKE, connecting) => handshake,
    };
    drop(permit);
    let refused = |reason: &str| {
        if shared.quiet.admits(&format!("{}: {reason}", remote.ip())) {
            tracing::warn!(%remote, "connection refused: {reason}");
        }
    };
    let connection = match handshake {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return refused(&describe(&error, remote)),
        Err(_) => return refused("the handshake took too long"),
    };
    let peer = match peer_of_connection(&connection, &shared.settings.federation) {
        Ok(peer) => peer,
        Err(error) => {
            let reason = error.to_string();
            connection.close(CLOSE_REFUSED, reason.as_bytes());
            return refused(&reason);
        }
    };
    let board = shared.accepted_board(&peer, remote);
    let end = shared.run_link(connection, &peer, false, board).await;
    if !shared.stop.is_cancelled() && shared.quiet.admits(&format!("{peer}: {}", end.reason)) {
        tracing::warn!(%peer, %remote, "link is down: {}", end.reason);
    }
}
