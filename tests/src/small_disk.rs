//! A node on a disk of its own that is small, in a mount namespace, so that nothing stays behind.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a harness of tests: what fails here fails the test"
)]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::cluster::{Federation, PATIENCE};

/// What the script ends with where it may not mount a disk. Where the namespace itself is not allowed, it does not even begin.
const NO_DISK: i32 = 77;

/// The node's process; told to end when dropped: a test that fails leaves no node behind.
#[derive(Debug)]
pub struct SmallDisk(Child);

impl SmallDisk {
    /// Runs a node on a disk of 64 MiB, which becomes one of 512 MiB once the file `room` exists in the federation's directory.
    /// `None`, with the reason on standard error, where the machine allows no such thing; a node that does not come up is a failure.
    pub fn run(federation: &Federation, node: &str) -> Option<Self> {
        let script = "mkdir -p \"$1\" && mount -t tmpfs -o size=64m none \"$1\" || exit 77
            : > \"$5\"
            \"$2\" edge --config \"$3\" --set node.data_dir=\"$1/data\" & node=$!
            trap 'kill $node; wait $node; exit' TERM
            while [ ! -e \"$4\" ] && kill -0 $node; do sleep 0.1; done
            mount -o remount,size=512m none \"$1\"
            wait $node";
        let member = federation.cluster.member(node).unwrap();
        let path = |name: &str| federation.cluster.dir.join(name).display().to_string();
        let mut child = Command::new("unshare")
            .args(["--mount", "--map-root-user", "sh", "-c", script, "sh"])
            .args([&path("small"), &federation.cluster.binary.display().to_string()])
            .args([&member.config().display().to_string(), &path("room"), &path("begun")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("small.log")).unwrap())
            .spawn()
            .ok()?;
        let said = || std::fs::read_to_string(path("small.log")).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while federation.run(node, &["status"]).code != 0 {
            if let Some(ended) = child.try_wait().unwrap() {
                let nowhere = ended.code() == Some(NO_DISK) || !std::path::Path::new(&path("begun")).exists();
                assert!(nowhere, "the node ended with {ended}: {}", said());
                eprintln!("no disk of its own here: {}", said());
                return None;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("the node does not come up: {}", said());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(Self(child))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
            let deadline = Instant::now() + PATIENCE;
            while self.0.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(100));
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
