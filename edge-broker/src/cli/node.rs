//! `seaway edge` and `seaway relay`: a node in the foreground.

use std::sync::Arc;

use seaway_relay::node::Node;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{CliError, Exit, args::NodeArgs, reload::Reload};
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
    stop_on_panic();
    let reload = Reload::of(args, &loaded);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("seaway")
        .build()
        .map_err(|e| CliError::failed(format!("cannot start threads: {e}")))?;
    runtime.block_on(serve(node, door, reload))
}

async fn serve(
    config: seaway_relay::node::NodeConfig,
    door: Option<door::DoorConfig>,
    reload: Reload,
) -> Result<Exit, CliError> {
    // Signals first: one that comes while the log is replayed is not missed.
    let reload = Arc::new(reload);
    let mut signals = Signals::new(reload.clone())?;
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
    reload.reaches(&node, door.as_ref().map(door::Door::handle));
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
    reload: Arc<Reload>,
}

impl Signals {
    fn new(reload: Arc<Reload>) -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(|e| CliError::failed(format!("cannot listen for signals: {e}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            reload,
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
                    let reload = self.reload.clone();
                    // It reads files. Whatever comes of it is logged there.
                    let _ = tokio::task::spawn_blocking(move || reload.run()).await;
                }
            }
        }
    }
}

/// A panic in any thread or task stops the process: a node with a part missing looks healthy and is not, and a start from the
/// commit log is always safe. The service manager starts it again.
fn stop_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!("the node stops after a panic, please report it: {panic}");
        usual(panic); // with a backtrace, where the environment asks for one
        std::process::abort();
    }));
}

/// What the node logs, from `[logging] level`.
pub(crate) fn log_filter(loaded: &Loaded) -> Result<EnvFilter, CliError> {
    let level = &loaded.settings.logging.level;
    let wrong = |why: &str| {
        let text = format!(
            "is not understood ({why}); \"info\", or directives such as \"info,seaway_relay=debug\", are expected"
        );
        CliError::failed(loaded.mistake(&["logging", "level"], &text).to_string())
    };
    // A word alone would be taken for the name of a module, of which then everything is logged, and of all others nothing.
    for word in level.split(',').map(str::trim) {
        if !word.contains(['=', '[']) && word.parse::<LevelFilter>().is_err() {
            return Err(wrong(&format!("{word:?} is no level: error, warn, info, debug, trace or off")));
        }
    }
    EnvFilter::try_new(level).map_err(|e| wrong(&e.to_string()))
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    const CHILD: &str = "SEAWAY_TEST_PANICS";

    /// Runs in a process of its own: the hook ends the process.
    #[test]
    fn a_panic_in_any_thread_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            super::stop_on_panic();
            let _ = std::thread::spawn(|| panic!("on purpose")).join();
            std::process::exit(0);
        }
        let ran = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cli::node::tests::a_panic_in_any_thread_ends_the_process", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.signal(), Some(6), "SIGABRT is expected: {:?} {said}", ran.status);
        assert!(said.contains("on purpose"), "{said}");
    }
}
