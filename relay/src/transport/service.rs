//! The transport of a node: its endpoints, the links it dials and those it accepts, as one thing.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use quinn::{Connection, Endpoint, TransportConfig};
use seaway_federation_proto::ids::NodeName;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    dial, endpoint,
    endpoint::Timing,
    expiry::CertificateEnd,
    link::{self, Drive, LinkEnd, LinkParts},
    listen,
    mailbox::{LinkMailbox, mailbox},
    pauses::Pauses,
    reason::{CLOSE_GOODBYE, CLOSE_NAME_TAKEN, CLOSE_PAUSED, CLOSE_REFUSED, Quiet},
    registry::{Registry, Unclaimed},
    status::{LinkBoard, PAUSED},
    tls::Credentials,
};
use crate::node::{LinkStatus, LinkTls, StartError, queues::QueueView};

/// Peers that dialled this node and are remembered for status; those that are down go first.
const ACCEPTED_MAX: usize = 1024;
/// Peers that an error names.
const NAMED_MAX: usize = 16;
/// How long a stop may take: farewells of the links, then of QUIC.
const STOP: Duration = Duration::from_secs(3);

/// What the transport is started with.
#[derive(Debug, Clone)]
pub struct TransportSettings {
    /// The federation's name.
    pub federation: String,
    /// This node.
    pub node: NodeName,
    /// Where to listen for links; `None`: only dials.
    pub listen: Option<SocketAddr>,
    /// Peers to dial: name and `host:port`.
    pub dial: Vec<(NodeName, String)>,
    /// PEM files.
    pub tls: LinkTls,
    /// Probes, and when a link is dead.
    pub timing: Timing,
    /// The moment that the drivers' time is counted from.
    pub epoch: Instant,
}

/// What the node does for its transport: it makes the driver of a link.
pub trait LinkOpener: Send + Sync {
    /// A connection to this peer stands, its certificate checked. Commands for the driver are posted to
    /// the mailbox. `now` is the time since the settings' epoch.
    ///
    /// # Errors
    /// A sentence, if the node takes no links now; the peer reads it.
    fn open_link(
        &self,
        peer: &NodeName,
        dialled: bool,
        mailbox: LinkMailbox,
        now: Duration,
    ) -> Result<Box<dyn Drive>, String>;

    /// An attempt to dial a peer ended, or the link that it made; `name_taken`: the peer refused it, since another process of
    /// this node's name is linked there.
    fn dial_ended(&self, peer: &NodeName, name_taken: bool);

    /// A connection was refused, since another process of the peer's name is linked; `text` says which.
    fn refused_twin(&self, peer: &NodeName, text: &str);
}

/// What all tasks of the transport share.
pub(super) struct Shared {
    pub(super) settings: TransportSettings,
    pub(super) transport: Arc<TransportConfig>,
    pub(super) credentials: ArcSwap<Credentials>,
    pub(super) opener: Arc<dyn LinkOpener>,
    pub(super) registry: Registry,
    pub(super) pauses: Pauses,
    pub(super) quiet: Quiet,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    accepted: Mutex<BTreeMap<NodeName, Arc<LinkBoard>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Shared {
    /// Runs the link of a connection whose peer is known, from its claim to its end.
    pub(super) async fn run_link(
        &self,
        connection: Connection,
        peer: &NodeName,
        dialled: bool,
        board: Arc<LinkBoard>,
    ) -> LinkEnd {
        let refuse = |reason: String| {
            connection.close(CLOSE_REFUSED, reason.as_bytes());
            LinkEnd::before_it_began(reason)
        };
        if *peer == self.settings.node {
            return refuse(format!("the peer has this node's own name, {peer}; give each node a name of its own"));
        }
        let patience = self.settings.timing.probe_interval * 3;
        let claim = match self.registry.claim(peer, &connection, dialled, patience).await {
            Ok(claim) => claim,
            Err(Unclaimed::Dialled(reason)) => return refuse(reason),
            Err(Unclaimed::NameTaken(reason)) => {
                connection.close(CLOSE_NAME_TAKEN, reason.as_bytes());
                self.opener.refused_twin(peer, &reason);
                return LinkEnd::before_it_began(reason);
            }
        };
        // Only now, when a pause that comes would find the connection.
        if let Some(why) = self.pauses.why(peer) {
            connection.close(CLOSE_PAUSED, why.as_bytes());
            return LinkEnd::before_it_began(why);
        }
        let (sender, receiver) = mailbox();
        let now = self.settings.epoch.elapsed();
        let drive = match self.opener.open_link(peer, dialled, sender.clone(), now) {
            Ok(drive) => drive,
            Err(reason) => return refuse(reason),
        };
        let parts = LinkParts {
            drive,
            mailbox: (sender, receiver),
            epoch: self.settings.epoch,
            board,
            stop: self.stop.clone(),
        };
        let end = link::run(connection.clone(), parts).await;
        drop(claim);
        end
    }

    /// The board of a peer that dials this node, kept over its connections.
    pub(super) fn accepted_board(&self, peer: &NodeName, address: SocketAddr) -> Arc<LinkBoard> {
        let mut accepted = self.accepted.lock();
        if !accepted.contains_key(peer) && accepted.len() >= ACCEPTED_MAX {
            accepted.retain(|_, board| board.status().state != "down");
        }
        let new = || Arc::new(LinkBoard::new(Some(peer.clone()), false, address.to_string()));
        accepted.entry(peer.clone()).or_insert_with(new).clone()
    }
}

/// Certificates, key and authorities that were read and can be used.
#[derive(Debug)]
pub struct FreshTls {
    credentials: Credentials,
    config: quinn::ServerConfig,
}

/// A transport: its sockets are open from [`Transport::open`] on, links come and go from [`Transport::begin`] on.
#[derive(Debug)]
pub struct Transport {
    shared: Arc<Shared>,
    listener: Option<Endpoint>,
    dialler: Option<Endpoint>,
    dialled: Vec<dial::Target>,
    begun: AtomicBool,
}

impl Transport {
    /// Reads the certificates and opens the sockets; nobody is dialled or let in yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Certificates, keys, or an address that cannot be used; one sentence that says what to do.
    pub fn open(settings: TransportSettings, opener: Arc<dyn LinkOpener>) -> Result<Self, StartError> {
        let credentials = Credentials::load(&settings.tls, &settings.federation, &settings.node)
            .map_err(|error| StartError::Tls(error.to_string()))?;
        let transport = Arc::new(endpoint::transport_config(settings.timing));
        let listener = settings.listen.map(|address| endpoint::open(Some(address))).transpose()?;
        if let Some(listener) = &listener {
            let config = endpoint::server_config(&credentials, transport.clone());
            listener.set_server_config(Some(config.map_err(|error| StartError::Tls(error.to_string()))?));
        }
        // Dialled links have a socket of their own, which speaks IPv4 and IPv6 wherever the node listens.
        let dialler = if settings.dial.is_empty() { None } else { Some(endpoint::open(None)?) };
        let shared = Arc::new(Shared {
            settings,
            transport,
            credentials: ArcSwap::from_pointee(credentials),
            opener,
            registry: Registry::default(),
            pauses: Pauses::default(),
            quiet: Quiet::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            accepted: Mutex::default(),
        });
        let target = |(peer, address): &(NodeName, String)| {
            let board = Arc::new(LinkBoard::new(Some(peer.clone()), true, address.clone()));
            dial::Target { peer: peer.clone(), address: address.clone(), board }
        };
        let dialled = shared.settings.dial.iter().map(target).collect();
        Ok(Self { shared, listener, dialler, dialled, begun: AtomicBool::new(false) })
    }

    /// Lets peers in and dials; once, a second call does nothing. Who came before waits in the socket. Must be called within a
    /// tokio runtime.
    pub fn begin(&self) {
        if self.begun.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(endpoint) = &self.listener {
            self.shared.tasks.spawn(listen::run(self.shared.clone(), endpoint.clone()));
        }
        let Some(endpoint) = &self.dialler else { return };
        for target in &self.dialled {
            self.shared.tasks.spawn(dial::run(self.shared.clone(), endpoint.clone(), target.clone()));
        }
    }

    /// The address it listens at; useful where port 0 was asked for.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.listener.as_ref().and_then(|endpoint| endpoint.local_addr().ok())
    }

    /// State of each link: those dialled, in the order of the settings, then those accepted, by name.
    pub fn links(&self) -> Vec<LinkStatus> {
        let accepted: Vec<_> = self.shared.accepted.lock().values().cloned().collect();
        let boards = self.dialled.iter().map(|target| &target.board).chain(&accepted);
        let status = |board: &Arc<LinkBoard>| {
            let mut status = board.status();
            if let Some(why) = status.peer.as_ref().and_then(|peer| self.shared.pauses.why(peer)) {
                status.state = PAUSED;
                status.reason = why;
            }
            status
        };
        boards.map(status).collect()
    }

    /// What the links that are up hold.
    pub fn queues(&self) -> Vec<QueueView> {
        let accepted: Vec<_> = self.shared.accepted.lock().values().cloned().collect();
        self.dialled.iter().map(|target| &target.board).chain(&accepted).flat_map(|board| board.queues()).collect()
    }

    /// Closes the link with a peer and keeps it closed, until [`Transport::resume`] or the end of the process; `by` says who wants
    /// that. What the link carried is asked for again, on another way or later.
    ///
    /// # Errors
    /// The peer is neither dialled nor has it dialled since the start; the sentence names those that are known.
    pub fn pause(&self, peer: &NodeName, by: &str) -> Result<(), String> {
        self.check_known(peer)?;
        let why = format!("paused: by {by} at {}", self.shared.settings.node);
        self.shared.pauses.pause(peer, why.clone());
        if let Some(connection) = self.shared.registry.connection(peer) {
            connection.close(CLOSE_PAUSED, why.as_bytes());
        }
        Ok(())
    }

    /// Lets a paused link come up again; whether it was paused here.
    ///
    /// # Errors
    /// As [`Transport::pause`].
    pub fn resume(&self, peer: &NodeName) -> Result<bool, String> {
        self.check_known(peer)?;
        Ok(self.shared.pauses.resume(peer))
    }

    fn check_known(&self, peer: &NodeName) -> Result<(), String> {
        let accepted = self.shared.accepted.lock();
        let mut known = self.dialled.iter().map(|target| &target.peer).chain(accepted.keys());
        if known.any(|name| name == peer) {
            return Ok(());
        }
        let names: std::collections::BTreeSet<_> =
            self.dialled.iter().map(|target| &target.peer).chain(accepted.keys()).map(ToString::to_string).collect();
        let names = names.into_iter().take(NAMED_MAX).collect::<Vec<_>>().join(", ");
        Err(match names.as_str() {
            "" => format!("there is no link with {peer}, and none with anybody else"),
            names => format!("there is no link with {peer}; the peers known here are {names}"),
        })
    }

    /// When the certificates end that the links use: this node's, its authorities', those of the peers that are linked.
    pub fn certificates(&self) -> Vec<CertificateEnd> {
        let mut ends = self.shared.credentials.load().ends();
        ends.extend(self.shared.registry.connections().iter().filter_map(|connection| {
            let chain =
                connection.peer_identity()?.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>().ok()?;
            CertificateEnd::of("peer", chain.first()?)
        }));
        ends
    }

    /// Reads certificates, key and authorities anew; links that stand are not touched, later ones use the
    /// new ones. On an error all stays as it was.
    ///
    /// # Errors
    /// One sentence that names the file and what to do.
    pub fn reload(&self) -> Result<(), StartError> {
        let fresh = self.read_again(&self.shared.settings.tls)?;
        self.use_from_now(fresh);
        Ok(())
    }

    /// Reads and checks certificates, key and authorities, and changes nothing yet.
    ///
    /// # Errors
    /// One sentence that names the file and what to do.
    pub fn read_again(&self, files: &LinkTls) -> Result<FreshTls, StartError> {
        let settings = &self.shared.settings;
        let fail = |error: super::tls::TlsError| StartError::Tls(error.to_string());
        let credentials = Credentials::load(files, &settings.federation, &settings.node).map_err(fail)?;
        let config = endpoint::server_config(&credentials, self.shared.transport.clone()).map_err(fail)?;
        Ok(FreshTls { credentials, config })
    }

    /// Uses these for every connection from now on; those that stand are not touched.
    pub fn use_from_now(&self, fresh: FreshTls) {
        if let Some(listener) = &self.listener {
            listener.set_server_config(Some(fresh.config));
        }
        self.shared.credentials.store(Arc::new(fresh.credentials));
    }

    /// Closes all links in peace, then the sockets; takes about three seconds at most.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(STOP, self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("some links did not end in time; their peers will notice by themselves");
        }
        for endpoint in self.listener.iter().chain(&self.dialler) {
            endpoint.close(CLOSE_GOODBYE, b"the node is stopping");
            // The peer hears of it or times out; there is nothing more to do here.
            let _ = tokio::time::timeout(STOP, endpoint.wait_idle()).await;
        }
    }
}
