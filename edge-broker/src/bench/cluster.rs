//! A federation of real processes on this machine, for measurements and end-to-end tests: certificates, configurations,
//! free ports, start, kill, stop.
//!
//! The doors speak plain text on loopback and let anybody publish, subscribe and see; what else a node is to have is
//! given as further TOML. Processes end with the cluster, and so does its directory.

use std::{
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use seaway_federation_proto::ids::NodeName;
use seaway_relay::{
    ca::{AUTHORITY_LIFETIME, Authority, CERTIFICATE_LIFETIME, Holder, Request},
    transport::identity::Identity,
};

use super::BenchError;

/// How long a node may take to end by itself before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(30);

fn failed(what: &str, error: impl std::fmt::Display) -> BenchError {
    BenchError(format!("{what}: {error}"))
}

/// The kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An edge broker that wants everything.
    Edge,
    /// A relay.
    Relay,
}

/// A node and, while it runs, its process.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its door's port.
    pub door_port: u16,
    /// Its link port.
    pub link_port: u16,
    kind: Kind,
    config: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

impl Member {
    /// Its door.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.door_port)
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.config.with_extension("data")
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What it has logged.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts its process.
    pub fn start(&mut self, binary: &Path) -> Result<(), BenchError> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.map_err(|e| failed("cannot write a node's log", e))?;
        let verb = if self.kind == Kind::Edge { "edge" } else { "relay" };
        let child = Command::new(binary)
            .arg(verb)
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|e| failed(&format!("cannot start {}", binary.display()), e))?;
        self.process = Some(child);
        Ok(())
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to stop (SIGTERM), and gives its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.terminate();
        self.wait()
    }

    /// Sends SIGTERM and does not wait.
    pub fn terminate(&self) {
        if let Some(pid) = self.pid() {
            // By the command: the standard library only knows SIGKILL.
            let _ = Command::new("kill").arg(pid.to_string()).status();
        }
    }

    /// Waits until it has ended; kills it when that takes too long. Gives its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let mut child = self.process.take()?;
        let until = Instant::now() + STOP_WITHIN;
        while Instant::now() < until {
            if let Ok(Some(status)) = child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// Whether its process still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes of one federation.
#[derive(Debug)]
pub struct Cluster {
    /// Where all its files are; removed with it.
    pub dir: PathBuf,
    /// The `seaway` binary.
    pub binary: PathBuf,
    members: Vec<Member>,
    authority: Authority,
}

impl Cluster {
    /// An empty federation named `bench`, in a new directory below `parent`.
    pub fn new(binary: PathBuf, parent: &Path) -> Result<Self, BenchError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|e| failed("the system gives no random numbers", e))?;
        let dir = parent.join(format!("seaway-{:016x}", u64::from_le_bytes(random)));
        std::fs::create_dir_all(&dir).map_err(|e| failed(&format!("cannot make {}", dir.display()), e))?;
        let ca = dir.join("ca");
        Authority::create(&ca, "bench", AUTHORITY_LIFETIME).map_err(|e| failed("cannot make an authority", e))?;
        let authority = Authority::open(&ca).map_err(|e| failed("cannot open the authority", e))?;
        Ok(Self { dir, binary, members: Vec::new(), authority })
    }

    /// Adds a node named `SITE/NODE` that dials these nodes, which must be there already; `more` is further TOML.
    /// It is not started yet.
    pub fn add(&mut self, name: &str, kind: Kind, dials: &[&str], more: &str) -> Result<(), BenchError> {
        let name: NodeName = name.parse().map_err(|e| failed("a node's name", e))?;
        let files = format!("{}-{}", name.site, name.node);
        let identity = Identity::node("bench", name.clone()).map_err(|e| failed("a node's name", e))?;
        let request = Request {
            holder: Holder::Member(identity),
            hosts: vec!["localhost".into(), "127.0.0.1".into()],
            lifetime: CERTIFICATE_LIFETIME,
        };
        self.authority.issue(&request, &self.dir, &files).map_err(|e| failed("cannot issue a certificate", e))?;
        let (door_port, link_port) = (free_port(true)?, free_port(false)?);
        let config = self.dir.join(format!("{files}.toml"));
        let text = self.config(&name, kind, dials, (door_port, link_port), more)?;
        std::fs::write(&config, text).map_err(|e| failed("cannot write a configuration", e))?;
        let log = self.dir.join(format!("{files}.log"));
        self.members.push(Member { name, door_port, link_port, kind, config, log, process: None });
        Ok(())
    }

    fn config(
        &self,
        name: &NodeName,
        kind: Kind,
        dials: &[&str],
        (door_port, link_port): (u16, u16),
        more: &str,
    ) -> Result<String, BenchError> {
        let files = format!("{}-{}", name.site, name.node);
        let kind_name = if kind == Kind::Edge { "edge" } else { "relay" };
        let mut text = format!(
            "[node]\nkind = \"{kind_name}\"\nfederation = \"bench\"\nsite = \"{}\"\nname = \"{}\"\ndata_dir = \"{files}.data\"\n\n\
             [link]\nlisten = \"127.0.0.1:{link_port}\"\ncert_file = \"{files}.pem\"\nkey_file = \"{files}.key\"\nca_file = \"ca/ca.pem\"\n\n",
            name.site, name.node
        );
        for peer in dials {
            let member = self.member(peer)?;
            text.push_str(&format!(
                "[[link.peer]]\nnode = \"{peer}\"\naddress = \"localhost:{}\"\n\n",
                member.link_port
            ));
        }
        text.push_str(&format!("[door]\nlisten = \"127.0.0.1:{door_port}\"\n\n[door.anonymous]\nsee = true\n"));
        match kind {
            Kind::Edge => text.push_str(
                "publish = [\"#\"]\nsubscribe = [\"#\"]\n\n[[want]]\nname = \"everything\"\npattern = \"#\"\n\n",
            ),
            Kind::Relay => text.push_str("\n[cache]\nsize = \"256 MiB\"\n\n"),
        }
        text.push_str(more);
        Ok(text)
    }

    /// A node by its name.
    pub fn member(&self, name: &str) -> Result<&Member, BenchError> {
        self.members
            .iter()
            .find(|member| member.name.to_string() == name)
            .ok_or_else(|| BenchError(format!("there is no node {name}")))
    }

    /// A node by its name, to change it.
    pub fn member_mut(&mut self, name: &str) -> Result<&mut Member, BenchError> {
        self.members
            .iter_mut()
            .find(|member| member.name.to_string() == name)
            .ok_or_else(|| BenchError(format!("there is no node {name}")))
    }

    /// Starts a node.
    pub fn start(&mut self, name: &str) -> Result<(), BenchError> {
        let binary = self.binary.clone();
        self.member_mut(name)?.start(&binary)
    }

    /// Issues a client's certificate `NAME.pem` and `NAME.key` into the cluster's directory.
    pub fn issue_client(&self, name: &str) -> Result<(), BenchError> {
        let identity = Identity::client("bench", name).map_err(|e| failed("a client's name", e))?;
        let request = Request { holder: Holder::Member(identity), hosts: Vec::new(), lifetime: CERTIFICATE_LIFETIME };
        self.authority.issue(&request, &self.dir, name).map(drop).map_err(|e| failed("cannot issue a certificate", e))
    }

    /// A client command at a node's door.
    pub fn command(&self, name: &str, args: &[&str]) -> Result<Command, BenchError> {
        let mut command = Command::new(&self.binary);
        command.args(args).arg("--server").arg(self.member(name)?.url());
        Ok(command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.members.clear();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A port that nobody uses now; the next that asks the system is given another.
fn free_port(tcp: bool) -> Result<u16, BenchError> {
    let any = "127.0.0.1:0";
    let found = if tcp {
        TcpListener::bind(any).and_then(|socket| socket.local_addr())
    } else {
        UdpSocket::bind(any).and_then(|socket| socket.local_addr())
    };
    found.map(|address| address.port()).map_err(|e| failed("no free port", e))
}
