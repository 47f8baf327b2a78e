//! SIGHUP: certificates, keys, authorities and tokens are read anew, whole or not at all. Links and clients that stand are not
//! touched; what the configuration says otherwise takes a restart.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use seaway_relay::node::{Node, StartError};

use super::args::NodeArgs;
use crate::{
    config::Loaded,
    door::{DoorError, DoorHandle},
};

/// What SIGHUP reaches.
pub(super) struct Reload {
    config: PathBuf,
    set: Vec<String>,
    /// The settings at the start, as text.
    started_with: Option<String>,
    reached: OnceLock<(Node, Option<DoorHandle<Node>>)>,
    turn: Mutex<Turn>,
}

/// Files are read by one thread at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Idle,
    Reading,
    /// Told again meanwhile: what is read may be older than that.
    Again,
}

/// Which files cannot be used.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error(transparent)]
    Links(#[from] StartError),
}

impl Reload {
    /// For a node that starts with these settings.
    pub(super) fn of(args: &NodeArgs, loaded: &Loaded) -> Self {
        let (config, set) = (args.config.clone(), args.set.clone());
        Self { config, set, started_with: text(loaded), reached: OnceLock::new(), turn: Mutex::new(Turn::Idle) }
    }

    /// The node is up.
    pub(super) fn reaches(&self, node: &Node, door: Option<DoorHandle<Node>>) {
        // It comes up once.
        let _ = self.reached.set((node.clone(), door));
    }

    /// Reads the files on a thread of its own, which nothing waits for: a file may lie on a file system that does not answer, and
    /// the node must still be told to stop.
    pub(super) fn begin(reload: &Arc<Self>) {
        let before = {
            let mut turn = reload.turn.lock();
            let before = *turn;
            *turn = if before == Turn::Idle { Turn::Reading } else { Turn::Again };
            before
        };
        if before != Turn::Idle {
            tracing::warn!("SIGHUP: the files are being read at present, and will be read again after that");
            return;
        }
        let (this, runtime) = (reload.clone(), tokio::runtime::Handle::current());
        let read = move || {
            let _runtime = runtime.enter();
            loop {
                this.run();
                let mut turn = this.turn.lock();
                *turn = if *turn == Turn::Again { Turn::Reading } else { Turn::Idle };
                if *turn == Turn::Idle {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("reload".into()).spawn(read) {
            *reload.turn.lock() = Turn::Idle;
            tracing::error!(%error, "SIGHUP: nothing was changed: no thread could be started; send it again");
        }
    }

    /// Reads the files and logs what came of it.
    fn run(&self) {
        let Some((node, door)) = self.reached.get() else {
            tracing::warn!("SIGHUP: the node is not up yet, and nothing was read anew; send it again later");
            return;
        };
        let links = || node.reload_tls().map_err(ReloadError::from);
        let reloaded = match door {
            Some(door) => door.reload(links),
            None => links(),
        };
        match reloaded {
            Ok(()) => tracing::info!(
                "SIGHUP: certificates, keys, authorities and tokens were read anew and hold for new connections"
            ),
            Err(error) => tracing::error!("SIGHUP: nothing was changed: {error}"),
        }
        match Loaded::load(&self.config, std::env::vars(), &self.set) {
            Ok(loaded) if text(&loaded) == self.started_with => {}
            Ok(_) => tracing::warn!(
                "SIGHUP: {} is not as it was at the start; its files' contents were read anew, but any setting changed there \
                 takes a restart",
                self.config.display()
            ),
            Err(error) => {
                tracing::warn!("SIGHUP: the configuration has a mistake, and the node would not start again: {error}")
            }
        }
    }
}

fn text(loaded: &Loaded) -> Option<String> {
    serde_json::to_string(&loaded.settings).ok()
}
