//! `seaway edge` and `seaway relay`: a node in the foreground.

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use seaway_relay::node::Node;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{CliError, Exit, args::NodeArgs, memory, service::ServiceManager};
use crate::{
    admin::{AdminPort, Watched},
    config::{
        Loaded,
        settings::{Kind, LogFormat},
    },
    door,
    steering::{
        Steering,
        levels::{self, Levels},
        reload::Reload,
    },
};

/// When starting is over, links and all.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// Runs a node until it is told to stop.
pub(crate) fn run(kind: Kind, args: &NodeArgs) -> Result<Exit, CliError> {
    crate::metrics::collect::note_start();
    let wrong = |e: crate::config::ConfigError| CliError::failed(e.to_string());
    let loaded = Loaded::load(&args.config, std::env::vars(), &args.set).map_err(wrong)?;
    loaded.expect_kind(kind).map_err(wrong)?;
    let (node, door) = (loaded.node_config().map_err(wrong)?, loaded.door_config().map_err(wrong)?);
    let admin = loaded.settings.admin.as_ref().map(|admin| admin.listen.0);
    memory::huge_pages(loaded.settings.node.huge_pages)?;
    let levels = start_logging(&loaded)?;
    stop_on_panic();
    let reload = Reload::of(args.config.clone(), args.set.clone(), &loaded, levels.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("seaway")
        .build()
        .map_err(|e| CliError::failed(format!("cannot start threads: {e}")))?;
    let served = runtime.block_on(serve(node, door, admin, reload, levels));
    // What still runs is abandoned, as in a crash, which is always safe: a log that is being replayed would go on for as long as it takes.
    runtime.shutdown_timeout(ABANDON_AFTER);
    served
}

/// How long threads that are not needed any more may take to end.
const ABANDON_AFTER: Duration = Duration::from_millis(500);

async fn serve(
    config: seaway_relay::node::NodeConfig,
    door: Option<door::DoorConfig>,
    admin: Option<SocketAddr>,
    reload: Arc<Reload>,
    levels: Arc<Levels>,
) -> Result<Exit, CliError> {
    // Signals first: one that comes while the log is replayed is not missed.
    let manager = ServiceManager::of_this_process(|name| std::env::var(name).ok());
    let mut signals = Signals::new(reload.clone(), manager.clone())?;
    let (name, kind) = (config.name.clone(), config.kind);
    // Before the log is opened: that may take long, and somebody waits to know that it goes on.
    let watched = Arc::new(Watched::default());
    open_admin(admin, &watched).await?;
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
        () = manager.opening() => return Ok(Exit::Done), // it never ends
        () = signals.stop() => return Ok(Exit::Done),
    };
    reload.reaches(&node, door.as_ref().map(door::Door::handle));
    if let Some(door) = &door {
        door.handle().steered_by(Arc::new(Steering::new(node.clone(), levels, reload)));
    }
    tokio::spawn(crate::certificates::watch(node.clone(), door.as_ref().map(door::Door::handle)));
    watched.is_up(&node, door.as_ref().map(door::Door::handle));
    node.begin_links();
    manager.is_up(watched);
    tracing::info!(node = %name, ?kind, version = env!("CARGO_PKG_VERSION"), "the node is up");
    tokio::spawn(async {
        tokio::time::sleep(SETTLED_AFTER).await;
        memory::give_back_program();
    });
    let served = match door {
        Some(door) => {
            tracing::info!(address = %door.address(), "clients may connect");
            serve_door(door, &mut signals).await
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

/// Serves clients until the node is told to stop, and drains the door.
async fn serve_door(door: door::Door<Node>, signals: &mut Signals) -> Result<(), CliError> {
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

/// Opens the admin port and lets it answer for the rest of the process's life.
async fn open_admin(address: Option<SocketAddr>, watched: &Arc<Watched>) -> Result<(), CliError> {
    let Some(address) = address else { return Ok(()) };
    let port = AdminPort::open(address).await.map_err(|e| CliError::failed(e.to_string()))?;
    tracing::info!(address = %port.address(), "probes and metrics are answered");
    tokio::spawn(port.serve(watched.clone()));
    Ok(())
}

async fn open_door(config: Option<door::DoorConfig>, node: &Node) -> Result<Option<door::Door<Node>>, CliError> {
    let Some(config) = config else { return Ok(None) };
    door::Door::open(config, node.clone()).await.map(Some).map_err(|e| CliError::failed(e.to_string()))
}

/// A signal that comes again so soon is the same one: `timeout`, for one, sends it to the node and to its process group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// The signals that a node heeds.
struct Signals {
    /// When it was told to stop last.
    told: Option<Instant>,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    reload: Arc<Reload>,
    manager: ServiceManager,
}

impl Signals {
    fn new(reload: Arc<Reload>, manager: ServiceManager) -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(|e| CliError::failed(format!("cannot listen for signals: {e}")));
        Ok(Self {
            told: None,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            reload,
            manager,
        })
    }

    /// Resolves when the node is told to stop.
    async fn stop(&mut self) {
        loop {
            let name = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.hang_up.recv() => {
                    Reload::begin(&self.reload);
                    continue;
                }
            };
            match self.told.map(|at| at.elapsed()) {
                None => tracing::info!("{name}: draining"),
                Some(since) if since < SAME_SIGNAL => continue,
                Some(_) => tracing::info!("{name}: stopping at once"),
            }
            self.manager.stops();
            self.told = Some(Instant::now());
            return;
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
    levels::filter(level).map_err(|e| wrong(&e))
}

/// Where a node logs to: standard error. Its reader may go away, or its disk be full: the node lives on, and says how many lines
/// nobody has as soon as one can be written again.
struct LogOutput;

/// Lines that could not be written.
static UNWRITTEN: AtomicU64 = AtomicU64::new(0);

impl Write for LogOutput {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let mut output = std::io::stderr().lock();
        let unwritten = UNWRITTEN.swap(0, Ordering::Relaxed);
        let told = unwritten == 0
            || writeln!(output, "({unwritten} lines of the log before this could not be written)").is_ok();
        if !told || output.write_all(line).is_err() {
            UNWRITTEN.fetch_add(unwritten.saturating_add(1), Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Starts logging as configured; the levels can be changed later.
fn start_logging(loaded: &Loaded) -> Result<Arc<Levels>, CliError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(log_filter(loaded)?)
        .with_writer(|| LogOutput)
        .with_ansi(super::output::watched());
    let configured = &loaded.settings.logging.level;
    let (started, levels) = match loaded.settings.logging.format {
        LogFormat::Text => {
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let take = move |filter| handle.reload(filter).map_err(|error| error.to_string());
            (builder.try_init(), Levels::new(configured, Box::new(take)))
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            let take = move |filter| handle.reload(filter).map_err(|error| error.to_string());
            (builder.try_init(), Levels::new(configured, Box::new(take)))
        }
    };
    started.map_err(|e| CliError::failed(format!("cannot start logging: {e}")))?;
    Ok(levels)
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
    use std::{
        os::unix::process::ExitStatusExt,
        process::{Command, Output, Stdio},
        sync::atomic::Ordering,
    };

    use super::{LogOutput, UNWRITTEN};

    /// Set in the processes that the tests start, for both end theirs.
    const CHILD: &str = "SEAWAY_TEST_CHILD";

    fn is_child() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    /// Runs one of these tests in a process of its own.
    fn in_child(test: &str, errors: Stdio) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("cli::node::tests::{test}"), "--nocapture"]).env(CHILD, "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap().wait_with_output().unwrap()
    }

    #[test]
    fn a_panic_in_any_thread_ends_the_process() {
        if is_child() {
            super::stop_on_panic();
            let _ = std::thread::spawn(|| panic!("on purpose")).join();
            std::process::exit(0);
        }
        let ran = in_child("a_panic_in_any_thread_ends_the_process", Stdio::piped());
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.signal(), Some(6), "SIGABRT is expected: {:?} {said}", ran.status);
        assert!(said.contains("on purpose"), "{said}");
    }

    #[test]
    fn a_log_that_nobody_takes_stops_no_node() {
        if is_child() {
            super::stop_on_panic();
            tracing_subscriber::fmt().with_writer(|| LogOutput).init();
            tracing::info!("one");
            tracing::info!("two");
            let unwritten = UNWRITTEN.load(Ordering::Relaxed);
            std::process::exit(i32::try_from(unwritten).unwrap());
        }
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ran = in_child("a_log_that_nobody_takes_stops_no_node", full.into());
        assert_eq!(ran.status.code(), Some(2), "{:?}", ran.status);
        let ran = in_child("a_log_that_nobody_takes_stops_no_node", Stdio::piped());
        assert_eq!(ran.status.code(), Some(0), "{:?}", ran.status);
    }
}
