//! Which peers are linked now. A node has at most one link to a peer, whichever side dialled.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use quinn::Connection;
use seaway_federation_proto::ids::NodeName;

use super::reason::CLOSE_REFUSED;

/// How often an older connection is looked at while a newer one waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Linked {
    number: u64,
    connection: Connection,
    dialled: bool,
}

#[derive(Debug, Default)]
struct Peers {
    next_number: u64,
    linked: BTreeMap<NodeName, Linked>,
}

/// See the module's documentation. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Mutex<Peers>>);

/// Why a peer cannot be claimed.
#[derive(Debug)]
pub enum Unclaimed {
    /// Another process of the peer's name is linked; a sentence.
    NameTaken(String),
    /// The link stands already, dialled from the other side; a sentence.
    Dialled(String),
}

/// A peer's one link; given up when dropped.
#[derive(Debug)]
pub struct Claim {
    registry: Registry,
    peer: NodeName,
    number: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut peers = self.registry.0.lock();
        if peers.linked.get(&self.peer).is_some_and(|linked| linked.number == self.number) {
            peers.linked.remove(&self.peer);
        }
    }
}

impl Registry {
    /// Claims a peer for a new connection. Where an older connection stands, it is given `patience` to
    /// show a sign of life: if it does, the newer one is refused with the reason; if not, the older one
    /// was of a process that is gone, and is closed.
    pub async fn claim(
        &self,
        peer: &NodeName,
        connection: &Connection,
        dialled: bool,
        patience: Duration,
    ) -> Result<Claim, Unclaimed> {
        loop {
            let Some((older, older_dialled)) = self.older(peer) else {
                if let Some(claim) = self.insert(peer, connection, dialled) {
                    return Ok(claim);
                }
                continue;
            };
            if is_alive(&older, patience).await {
                return Err(refusal(peer, &older, older_dialled, dialled));
            }
            older.close(CLOSE_REFUSED, b"replaced: a newer connection of the same node came, and this one was silent");
        }
    }

    /// Whether the peer is linked now.
    pub fn is_linked(&self, peer: &NodeName) -> bool {
        self.older(peer).is_some()
    }

    /// The connection to a peer that is linked now.
    pub fn connection(&self, peer: &NodeName) -> Option<Connection> {
        self.older(peer).map(|(connection, _)| connection)
    }

    /// All connections that carry links now.
    pub fn connections(&self) -> Vec<Connection> {
        self.0.lock().linked.values().map(|linked| linked.connection.clone()).collect()
    }

    fn older(&self, peer: &NodeName) -> Option<(Connection, bool)> {
        let peers = self.0.lock();
        let linked = peers.linked.get(peer)?;
        linked.connection.close_reason().is_none().then(|| (linked.connection.clone(), linked.dialled))
    }

    /// Fails if a living connection came in the meantime.
    fn insert(&self, peer: &NodeName, connection: &Connection, dialled: bool) -> Option<Claim> {
        let mut peers = self.0.lock();
        if peers.linked.get(peer).is_some_and(|linked| linked.connection.close_reason().is_none()) {
            return None;
        }
        let number = peers.next_number;
        peers.next_number += 1;
        peers.linked.insert(peer.clone(), Linked { number, connection: connection.clone(), dialled });
        Some(Claim { registry: self.clone(), peer: peer.clone(), number })
    }
}

async fn is_alive(connection: &Connection, patience: Duration) -> bool {
    let heard = connection.stats().udp_rx.datagrams;
    let until = tokio::time::Instant::now() + patience;
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(LOOK_INTERVAL).await;
        if connection.close_reason().is_some() {
            return false;
        }
        if connection.stats().udp_rx.datagrams > heard {
            return true;
        }
    }
    false
}

fn refusal(peer: &NodeName, older: &Connection, older_dialled: bool, dialled: bool) -> Unclaimed {
    let address = older.remote_address();
    if older_dialled == dialled {
        Unclaimed::NameTaken(format!(
            "two connections claim to be node {peer}: the one from {address} is alive, so this one is refused; stop one of the two, or give it a name and certificate of its own"
        ))
    } else {
        Unclaimed::Dialled(format!(
            "a link with {peer} stands already ({address}), dialled from the other side; configure `dial` on one side only"
        ))
    }
}
