//! Opens the listening socket, joins the services, and serves until the door is drained.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use seaway_federation_proto::session::NodeKind;
use seaway_relay::transport::expiry::CertificateEnd;
use tokio::net::TcpListener;
use tonic::{
    Request, Status,
    service::interceptor::InterceptedService,
    transport::{Server, server::Router},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    DoorConfig, DoorError,
    decoding::Metered,
    incoming,
    tls::{self, Certificates, Secured},
};
use crate::{
    api::{self, admin_server::AdminServer, messages_server::MessagesServer},
    auth::{Authenticator, tokens::Token},
    engine::Engine,
    grpc::{
        admin::AdminService,
        audit::{self, Audited},
        messages::MessagesService,
        queues,
        shared::{DoorCounters, Shared},
        status,
    },
    limits::{ADMIN_REQUEST_BYTES_MAX, CALLS_PER_CONNECTION_MAX, REPLY_BYTES_MAX, REQUEST_BYTES_MAX},
    steering::Steer,
};

/// How often the health service looks whether the node takes publishes.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);
/// Silence after which a client's connection is probed, and how long its answer may take.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// HTTP/2 window of a stream, bytes.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// HTTP/2 window of a connection, bytes.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How long receipts that wait for other sites may come while draining, at most; then they end with "this node is
/// stopping", so that the client learns it while it can still be told.
const RECEIPTS_WHILE_DRAINING: Duration = Duration::from_secs(2);
/// Services whose health follows the node's readiness; the empty name stands for the whole.
const HEALTH_NAMES: [&str; 3] = ["", "seaway.v1.Messages", "seaway.v1.Admin"];

/// An open door: clients can connect, and are served once [`Door::serve`] runs.
#[derive(Debug)]
pub struct Door<E: Engine> {
    listener: TcpListener,
    address: SocketAddr,
    certificates: Option<Arc<Certificates>>,
    shared: Arc<Shared<E>>,
}

/// Files that were read anew and can be used.
#[derive(Debug)]
pub(crate) struct Fresh {
    tokens: Vec<Token>,
    tls: Option<Secured>,
}

/// Reaches a door while it serves.
#[derive(Debug, Clone)]
pub struct DoorHandle<E: Engine> {
    certificates: Option<Arc<Certificates>>,
    shared: Arc<Shared<E>>,
}

impl<E: Engine> DoorHandle<E> {
    /// Reads and checks certificate, key, clients' authorities and the token file, as this configuration names them, and changes
    /// nothing yet.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub(crate) fn read_again(&self, config: &DoorConfig) -> Result<Fresh, DoorError> {
        let tokens = self.shared.tokens.read(config.auth.token_file.as_deref())?;
        let secured = self.certificates.as_ref().zip(config.tls.as_ref());
        let tls = secured.map(|(_, files)| tls::read(files)).transpose()?;
        Ok(Fresh { tokens, tls })
    }

    /// Uses what was read, and the rights and limits of this configuration, from now on: for new connections, and for calls whose
    /// token or right is gone or differs, which end.
    pub(crate) fn use_from_now(&self, config: &DoorConfig, fresh: Fresh) {
        if let (Some(certificates), Some(tls)) = (&self.certificates, fresh.tls) {
            certificates.use_from_now(tls);
        }
        self.shared.tokens.replace(fresh.tokens);
        let grants = self.shared.grants.load().replaced_by(&config.auth);
        self.shared.grants.store(Arc::new(grants));
        self.shared.rates.replace(config.limits.clone());
    }

    /// Both in one.
    #[cfg(test)]
    pub(crate) fn reload(&self, config: &DoorConfig) -> Result<(), DoorError> {
        self.read_again(config).map(|fresh| self.use_from_now(config, fresh))
    }

    /// When the certificates of the door end.
    pub(crate) fn certificates(&self) -> Vec<CertificateEnd> {
        self.certificates.as_ref().map(|certificates| certificates.ends()).unwrap_or_default()
    }

    /// Lets the admin service reach what steers the process.
    pub(crate) fn steered_by(&self, steering: Arc<dyn Steer>) {
        // Once, when the process is up.
        drop(self.shared.steering.set(steering));
    }

    /// Whether the door takes nothing new, since the node stops.
    pub(crate) fn is_draining(&self) -> bool {
        self.shared.drain.is_cancelled()
    }

    /// What the door's services share.
    pub(crate) fn shared(&self) -> &Arc<Shared<E>> {
        &self.shared
    }

    /// The node's state as the admin service gives it, for metrics and local use.
    pub fn status(&self) -> api::StatusReply {
        status::status(&self.shared)
    }
}

impl<E: Engine> Door<E> {
    /// Listens, reads the certificates, and takes over the tokens, groups and passing wants that the engine keeps: all that may
    /// keep a door shut. Clients that connect wait until [`Door::serve`] runs.
    pub async fn open(config: DoorConfig, engine: E) -> Result<Self, DoorError> {
        let addr = config.listen;
        if config.tls.is_none() && !addr.ip().to_canonical().is_loopback() && !config.allow_plain_text {
            return Err(DoorError::Unsafe(format!(
                "the door at {addr} would speak plain text beyond loopback; give it a certificate, or allow plain text by name"
            )));
        }
        let listen = |error: io::Error| DoorError::Listen { addr, error };
        let listener = TcpListener::bind(addr).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let certificates = config.tls.clone().map(Certificates::open).transpose()?;
        let shared = Shared::open(engine, config)?;
        Ok(Self { listener, address, certificates, shared })
    }

    /// The address in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reaches the door while it serves.
    pub fn handle(&self) -> DoorHandle<E> {
        DoorHandle { certificates: self.certificates.clone(), shared: self.shared.clone() }
    }

    /// Serves until `shutdown` resolves; then refuses new publishes, lets receipts that are out finish (at most
    /// [`DoorConfig::drain_timeout`]), and ends streams with a clear status.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), DoorError> {
        let Self { listener, certificates, shared, .. } = self;
        let server = Server::builder()
            .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE));
        let drain = shared.drain.clone();
        let (reporter, health) = tonic_health::server::health_reporter();
        let reporting = tokio::spawn(report_health(shared.clone(), reporter));
        let draining = drain.clone();
        let (engine, grace) = (shared.engine.clone(), shared.config.drain_timeout / 2);
        let waiting = tokio::spawn(async move {
            tokio::select! {
                () = shutdown => draining.cancel(),
                () = draining.cancelled() => {}
            }
            tokio::time::sleep(grace.min(RECEIPTS_WHILE_DRAINING)).await;
            engine.stop_waiting();
        });
        let router = add_services(server, &shared)?.add_service(health);
        let connections = incoming::connections(listener, shared.connections.clone(), shared.counters.clone());
        let drained = drain.clone().cancelled_owned();
        let serving = async {
            match certificates {
                Some(certificates) => {
                    let secured = incoming::secured(connections, certificates, drain.clone());
                    router.serve_with_incoming_shutdown(secured, drained).await
                }
                None => router.serve_with_incoming_shutdown(connections, drained).await,
            }
        };
        let result = tokio::select! {
            result = serving => result.map_err(|error| DoorError::Serve(error.to_string())),
            () = cut_off(&shared) => Ok(()),
        };
        drain.cancel();
        audit::sum_up(&shared, None).await;
        waiting.abort();
        reporting.abort();
        result
    }
}

/// Resolves when draining has taken too long.
async fn cut_off<E: Engine>(shared: &Shared<E>) {
    shared.drain.cancelled().await;
    tokio::time::sleep(shared.config.drain_timeout).await;
    tracing::warn!(waited = ?shared.config.drain_timeout, "some calls did not end while draining and were cut");
}

fn add_services<E: Engine>(mut server: Server, shared: &Arc<Shared<E>>) -> Result<Router, DoorError> {
    let authenticator = Arc::new(Authenticator::new(&shared.config.auth, shared.grants.clone(), shared.tokens.clone()));
    let counters = shared.counters.clone();
    let intercept = move |request: Request<()>| -> Result<Request<()>, Status> {
        let result = authenticator.intercept(request);
        if result.is_err() {
            DoorCounters::count(&counters.not_allowed);
        }
        result
    };
    // A relay has no clients: its door is for seeing and steering alone.
    let messages = (shared.engine.identity().2 == NodeKind::Edge).then(|| {
        let messages = MessagesServer::new(MessagesService { shared: shared.clone() })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(REPLY_BYTES_MAX);
        // Behind the interceptor: only callers who are known take room.
        InterceptedService::new(Metered { inner: messages, shared: shared.clone() }, intercept.clone())
    });
    let admin = AdminServer::new(AdminService { shared: shared.clone() })
        .max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX)
        .max_encoding_message_size(REPLY_BYTES_MAX);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(api::DESCRIPTORS)
        .build_v1()
        .map_err(|error| DoorError::Serve(format!("the reflection service does not start: {error}")))?;
    Ok(server
        // Behind the interceptor: strangers leave no records.
        .add_service(InterceptedService::new(Audited { inner: admin, shared: shared.clone() }, intercept.clone()))
        .add_optional_service(messages)
        .add_service(InterceptedService::new(reflection, intercept)))
}

/// Keeps the health service saying whether the node takes publishes.
async fn report_health<E: Engine>(shared: Arc<Shared<E>>, reporter: HealthReporter) {
    loop {
        // So often the queues are looked at, for the most that they held.
        drop(queues::all(&shared));
        let serving = !shared.drain.is_cancelled() && shared.engine.readiness().is_ok();
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for name in HEALTH_NAMES {
            reporter.set_service_status(name, status).await;
        }
        if shared.drain.is_cancelled() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(HEALTH_INTERVAL) => {}
            () = shared.drain.cancelled() => {}
        }
    }
}
