//! Real `seaway` processes under test: a federation on free ports, commands against it, everything bounded in time.
//!
//! The binary is the one beside the test binary (`cargo build --release --workspace` makes it); clusters of one test
//! binary run one after the other, since each is several processes.

#![allow(clippy::expect_used, clippy::panic, reason = "a harness of tests: what fails here fails the test")]

use std::{
    io::Write,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use seaway_edge_broker::bench::cluster::{Cluster, Kind};

/// Longest time that any one command or wait may take; generous, since machines are loaded.
pub const PATIENCE: Duration = Duration::from_secs(180);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A federation of real processes.
#[derive(Debug)]
pub struct Federation {
    /// The processes.
    pub cluster: Cluster,
    _turn: MutexGuard<'static, ()>,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ran {
    /// Panics unless it ended with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stderr: {}\nstdout: {:.400}", self.err, self.out);
        self
    }

    /// Panics unless it ended with this code and said this.
    #[track_caller]
    pub fn failed(self, code: i32, says: &str) -> Self {
        assert_eq!(self.code, code, "stderr: {}\nstdout: {:.400}", self.err, self.out);
        assert!(self.err.contains(says), "{says:?} is not in: {}", self.err);
        self
    }
}

/// The `seaway` binary beside this test.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("this test's own path");
    let path = test.parent().and_then(|deps| deps.parent()).expect("a target directory").join("seaway");
    assert!(path.exists(), "{} is missing; run: cargo build --release --workspace", path.display());
    path
}

impl Federation {
    /// No nodes yet.
    pub fn empty() -> Self {
        let turn = ONE_AT_A_TIME.lock();
        let cluster = Cluster::new(binary(), &std::env::temp_dir()).expect("a cluster");
        Self { cluster, _turn: turn }
    }

    /// Sites eu and us, which dial the relay hub/relay; all running and joined.
    pub fn two_sites_and_a_relay() -> Self {
        let mut federation = Self::empty();
        federation.cluster.add("hub/relay", Kind::Relay, &[], "").expect("relay");
        federation.cluster.add("eu/edge", Kind::Edge, &["hub/relay"], "").expect("eu");
        federation.cluster.add("us/edge", Kind::Edge, &["hub/relay"], "").expect("us");
        for node in ["hub/relay", "eu/edge", "us/edge"] {
            federation.cluster.start(node).expect("start");
        }
        federation.join("eu/edge", "us");
        federation.join("us/edge", "eu");
        federation
    }

    /// One edge, running.
    pub fn one_edge(more: &str) -> Self {
        let mut federation = Self::empty();
        federation.cluster.add("eu/edge", Kind::Edge, &[], more).expect("eu");
        federation.cluster.start("eu/edge").expect("start");
        federation.wait_up("eu/edge");
        federation
    }

    /// Waits until a node answers.
    pub fn wait_up(&mut self, node: &str) {
        self.until(node, &format!("{node} answers"), |federation| federation.run(node, &["status"]).code == 0);
    }

    /// Waits until what is published at a node is acknowledged by another site.
    pub fn join(&mut self, node: &str, site: &str) {
        let ack = format!("sites={site}");
        let what = format!("{site} acknowledges what is published at {node}");
        self.until(node, &what, |federation| {
            federation.run(node, &["pub", "test-join", "--ack", &ack, "--deadline", "5s", "hello"]).code == 0
        });
    }

    /// Waits until a node's log says something, behind the first `from` bytes of it; answers what is there.
    pub fn wait_logged(&mut self, node: &str, from: usize, part: &str) -> String {
        let logged = |federation: &Self| federation.cluster.member(node).expect("node").logged().split_off(from);
        self.until(node, &format!("{node} logs {part:?}"), |federation| logged(federation).contains(part));
        logged(self)
    }

    fn until(&mut self, node: &str, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            let member = self.cluster.member_mut(node).expect("node");
            assert!(member.is_running(), "{node} has ended: {}", member.logged());
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}\n{}", member.logged());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Runs a client command at a node.
    pub fn run(&self, node: &str, args: &[&str]) -> Ran {
        self.run_with(node, args, b"")
    }

    /// Runs a client command at a node, with this on its standard input.
    pub fn run_with(&self, node: &str, args: &[&str], input: &[u8]) -> Ran {
        finish(self.spawn(node, args, input), args)
    }

    /// Starts a client command at a node.
    pub fn spawn(&self, node: &str, args: &[&str], input: &[u8]) -> Child {
        spawn(self.cluster.command(node, args).expect("node"), input)
    }

    /// Starts a client command at a node that reads numbered lines for as long as the feed runs: whatever happens meanwhile
    /// happens while it is at work.
    pub fn feed(&self, node: &str, args: &[&str], tag: &str) -> (Child, Feed) {
        let mut command = self.cluster.command(node, args).expect("node");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start a command");
        let mut stdin = child.stdin.take().expect("piped");
        let (stop, tag) = (Arc::new(AtomicBool::new(false)), tag.to_string());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut sent = String::new();
            for number in 0_u64.. {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let line = format!("{tag} line {number}\n");
                sent.push_str(&line);
                if stdin.write_all(line.as_bytes()).is_err() {
                    break; // the command has ended
                }
                if number % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            sent
        });
        (child, Feed { stop, thread })
    }

    /// Writes a file into the federation's directory.
    pub fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.cluster.dir.join(name);
        std::fs::write(&path, content).expect("write a file");
        path.display().to_string()
    }
}

/// Lines on their way into a command.
#[derive(Debug)]
pub struct Feed {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<String>,
}

impl Feed {
    /// Panics unless the command is at work.
    #[track_caller]
    pub fn assert_running(&self, child: &mut Child) {
        let ended = child.try_wait().expect("a command's state");
        assert!(ended.is_none() && !self.thread.is_finished(), "the command has ended too early: {ended:?}");
    }

    /// Ends the input; what was written, of which the command may have read the beginning only if it has ended.
    pub fn stop(self) -> String {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the feed")
    }
}

/// Starts a command with this on its standard input.
pub fn spawn(mut command: Command, input: &[u8]) -> Child {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start a command");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    std::thread::spawn(move || {
        // A command that ends early closes its input.
        let _ = stdin.write_all(&input);
    });
    child
}

/// Runs `seaway` with arguments that need no node.
pub fn seaway(args: &[&str]) -> Ran {
    let mut command = Command::new(binary());
    command.args(args);
    finish(spawn(command, b""), args)
}

/// Waits for a command, and kills it when that takes too long.
pub fn finish(child: Child, args: &[&str]) -> Ran {
    let pid = child.id().to_string();
    let (done, watch) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if watch.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
    });
    let Output { status, stdout, stderr } = child.wait_with_output().expect("a command's end");
    drop(done);
    watchdog.join().expect("watchdog");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (out, err) = (text(stdout), text(stderr));
    let code = status.code().unwrap_or_else(|| panic!("{args:?} did not end within {PATIENCE:?}: {err}"));
    Ran { code, out, err }
}

/// Numbered lines: each is different, so order and repeats show.
pub fn lines(count: usize, tag: &str) -> String {
    (0..count).map(|number| format!("{tag} line {number}\n")).collect()
}
