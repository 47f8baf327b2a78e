//! `seaway edge` and `seaway relay`: a node in the foreground.

use seaway_relay::node::Node;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{CliError, Exit, args::NodeArgs};
use crate::{
    config::{
        Loaded,
        settings::{Kind, LogFormat},
    },
    door,
};

/// Runs a node until it is told to stop.
pub(crate) fn run(kind: Kind, args: &NodeArgs) -> Result<Exit, CliError> {
    let wrong = |e: crate::config::ConfigError| CliError::failed(e.to_string());
    let loaded = Loaded::load(&args.config, std::env::vars(), &args.set).map_err(wrong)?;
    loaded.expect_kind(kind).map_err(wrong)?;
    let (node, door) = (loaded.node_config().map_err(wrong)?, loaded.door_config().map_err(wrong)?);
    start_logging(&loaded)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("seaway")
        .build()
        .map_err(|e| CliError::failed(format!("cannot start threads: {e}")))?;
    runtime.block_on(serve(node, door))
}

async fn serve(config: seaway_relay::node::NodeConfig, door: Option<door::DoorConfig>) -> Result<Exit, CliError> {
    // Signals first: one that comes while the log is replayed is not missed.
    let mut signals = Signals::new()?;
    let (name, kind) = (config.name.clone(), config.kind);
    // All that may fail comes before anybody sees the node: the data directory, the links' sockets, the door's.
    let opening = async {
        let node = Node::open(config).await.map_err(|e| CliError::failed(e.to_string()))?;
        match open_door(door, &node).await {
            Ok(door) => Ok((node, door)),
            Err(e) => {
                // What keeps the door shut is the error to tell; a log that closes badly is found out by the next start.
                let _ = node.shutdown().await;
                Err(e)
            }
        }
    };
    let (node, door) = tokio::select! {
        opened = opening => opened?,
        () = signals.stop() => return Ok(Exit::Done),
    };
    node.begin_links();
    tracing::info!(node = %name, ?kind, version = env!("CARGO_PKG_VERSION"), "the node is up");
    let served = match door {
        Some(door) => {
            tracing::info!(address = %door.address(), "clients may connect");
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let serving = door.serve(async {
                let _ = stopped.await;
            });
            tokio::pin!(serving);
            tokio::select! {
                served = &mut serving => served,
                () = signals.stop() => {
                    let _ = stop.send(());
                    tokio::select! {
                        served = &mut serving => served,
                        () = signals.stop() => return Err(CliError::failed("stopped at once, by a second signal")),
                    }
                }
            }
            .map_err(|e| CliError::failed(e.to_string()))
        }
        None => {
            signals.stop().await;
            Ok(())
        }
    };
    let stopped = tokio::select! {
        stopped = node.shutdown() => stopped,
        () = signals.stop() => return Err(CliError::failed("stopped at once, by another signal")),
    };
    served?;
    stopped.map_err(CliError::failed)?;
    tracing::info!("the node has stopped");
    Ok(Exit::Done)
}

async fn open_door(config: Option<door::DoorConfig>, node: &Node) -> Result<Option<door::Door<Node>>, CliError> {
    let Some(config) = config else { return Ok(None) };
    door::Door::open(config, node.clone()).await.map(Some).map_err(|e| CliError::failed(e.to_string()))
}

/// The signals that a node heeds.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(|e| CliError::failed(format!("cannot listen for signals: {e}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Resolves when the node is told to stop.
    async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {
                    tracing::info!("SIGTERM: draining");
                    return;
                }
                _ = self.interrupt.recv() => {
                    tracing::info!("SIGINT: draining");
                    return;
                }
                _ = self.hang_up.recv() => {
                    tracing::warn!("SIGHUP: this version does not reload its configuration; restart the node to apply changes");
                }
            }
        }
    }
}

/// What the node logs, from `[logging] level`.
pub(crate) fn log_filter(loaded: &Loaded) -> Result<EnvFilter, CliError> {
    EnvFilter::try_new(&loaded.settings.logging.level).map_err(|e| {
        let text = format!(
            "is not understood ({e}); \"info\", or directives such as \"info,seaway_relay=debug\", are expected"
        );
        CliError::failed(loaded.mistake(&["logging", "level"], &text).to_string())
    })
}

fn start_logging(loaded: &Loaded) -> Result<(), CliError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(log_filter(loaded)?)
        .with_writer(std::io::stderr)
        .with_ansi(super::output::watched());
    let started = match loaded.settings.logging.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|e| CliError::failed(format!("cannot start logging: {e}")))
}

/// Resolves when a client command is interrupted.
pub(crate) async fn interrupted() {
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        // Without handlers the signals end the process, as they do by default.
        _ => std::future::pending().await,
    }
}
