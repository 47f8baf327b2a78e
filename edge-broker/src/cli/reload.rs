//! SIGHUP: certificates, keys, authorities and tokens are read anew, whole or not at all. Links and clients that stand are not
//! touched; what the configuration says otherwise takes a restart.

use std::{path::PathBuf, sync::OnceLock};

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
        Self { config, set, started_with: text(loaded), reached: OnceLock::new() }
    }

    /// The node is up.
    pub(super) fn reaches(&self, node: &Node, door: Option<DoorHandle<Node>>) {
        // It comes up once.
        let _ = self.reached.set((node.clone(), door));
    }

    /// Reads the files and logs what came of it.
    pub(super) fn run(&self) {
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
