//! What the service manager is told: that the node is up, that it stops, and, as long as it is alive, a beat for the watchdog.
//!
//! systemd's protocol (`sd_notify(3)`): datagrams to the socket that `NOTIFY_SOCKET` names. Without one, nothing is said. Beats come
//! from a task, so they say that the runtime turns; and only while [`Probed::live`] says the same of the node's threads and its
//! storage. A node that is stuck is then stopped and started by its manager, from a log that holds what has a receipt.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
    time::Duration,
};

use crate::admin::Probed;

/// While the commit log is opened, the manager is asked for more time so often, and for so much.
const EXTEND_EVERY: Duration = Duration::from_secs(10);
const EXTEND_BY: Duration = Duration::from_secs(60);

/// The way to the service manager, if there is one.
#[derive(Debug, Clone)]
pub(crate) struct ServiceManager {
    socket: Option<Arc<(UnixDatagram, SocketAddr)>>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// As the environment says. One that cannot be used is told of and left alone: no node stays down for that.
    pub(crate) fn of_this_process(env: impl Fn(&str) -> Option<String>) -> Self {
        let named = env("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = named.and_then(|name| match open(&name) {
            Ok(socket) => Some(Arc::new(socket)),
            Err(error) => {
                tracing::warn!("the service manager's socket {name} cannot be used, and it is told nothing: {error}");
                None
            }
        });
        let own = std::process::id().to_string();
        let for_us = env("WATCHDOG_PID").is_none_or(|pid| pid == own);
        let watchdog = env("WATCHDOG_USEC").and_then(|us| us.parse().ok()).filter(|us| for_us && *us > 0);
        Self { socket, watchdog: watchdog.map(Duration::from_micros) }
    }

    fn tell(&self, state: &str) {
        let Some((socket, address)) = self.socket.as_deref() else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::warn!("the service manager could not be told {state:?}: {error}");
        }
    }

    /// Asks for more time for as long as it is polled.
    pub(crate) async fn opening(&self) {
        loop {
            self.tell(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS=opening the commit log", EXTEND_BY.as_micros()));
            tokio::time::sleep(EXTEND_EVERY).await;
        }
    }

    /// The node is up; from now on it beats while it is alive.
    pub(crate) fn is_up(&self, probed: Arc<dyn Probed>) {
        self.tell("READY=1\nSTATUS=up");
        let (Some(interval), Some(_)) = (self.watchdog, &self.socket) else { return };
        tokio::spawn(self.clone().beat(interval / 3, probed));
    }

    async fn beat(self, every: Duration, probed: Arc<dyn Probed>) {
        let mut stuck = false;
        loop {
            match probed.live() {
                Ok(()) => {
                    stuck = false;
                    self.tell("WATCHDOG=1");
                }
                Err(why) if !std::mem::replace(&mut stuck, true) => {
                    tracing::error!("the service manager is not told that the node is alive: {why}");
                    self.tell(&format!("STATUS=stuck: {why}"));
                }
                Err(_) => {}
            }
            tokio::time::sleep(every).await;
        }
    }

    /// The node drains and stops.
    pub(crate) fn stops(&self) {
        self.tell("STOPPING=1\nSTATUS=draining");
    }
}

fn open(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up a node.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    struct Fake(AtomicBool);

    impl Probed for Fake {
        fn live(&self) -> Result<(), String> {
            if self.0.load(Ordering::Relaxed) { Ok(()) } else { Err("thread x has not turned".into()) }
        }
        fn started(&self) -> Result<(), String> {
            Ok(())
        }
        fn ready(&self) -> Result<(), String> {
            Ok(())
        }
        fn metrics(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
            Box::pin(async { String::new() })
        }
    }

    fn manager(socket: &str, pid: &str) -> ServiceManager {
        ServiceManager::of_this_process(|name| match name {
            "NOTIFY_SOCKET" => Some(socket.to_owned()),
            "WATCHDOG_USEC" => Some("30000".to_owned()),
            "WATCHDOG_PID" => Some(pid.to_owned()),
            _ => None,
        })
    }

    fn next(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_manager_hears_ready_beats_while_alive_and_stopping() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let manager = manager(path.to_str().unwrap(), &std::process::id().to_string());
        let fake = Arc::new(Fake(AtomicBool::new(true)));
        manager.is_up(fake.clone());
        assert_eq!(next(&socket), "READY=1\nSTATUS=up");
        assert_eq!([next(&socket), next(&socket)], ["WATCHDOG=1", "WATCHDOG=1"]);
        fake.0.store(false, Ordering::Relaxed);
        while next(&socket) == "WATCHDOG=1" {}
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(socket.recv(&mut [0; 1]).is_err(), "who is stuck does not beat");
        fake.0.store(true, Ordering::Relaxed);
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(next(&socket), "WATCHDOG=1");
        manager.stops();
        while next(&socket) != "STOPPING=1\nSTATUS=draining" {}
    }

    #[tokio::test]
    async fn without_a_manager_or_for_another_process_nothing_is_said() {
        let name = format!("seaway-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let manager = manager(&format!("@{name}"), "1");
        assert_eq!(manager.watchdog, None, "the watchdog is another process's");
        manager.tell("STATUS=x");
        assert_eq!(next(&socket), "STATUS=x");
        let none = ServiceManager::of_this_process(|_| None);
        assert!(none.socket.is_none() && none.watchdog.is_none());
        none.stops();
        let gone = ServiceManager::of_this_process(|name| (name == "NOTIFY_SOCKET").then(|| "/nowhere/notify".into()));
        gone.stops();
    }
}
