//! What changes a running node beside its messages: draining, pausing links, reading the configuration anew, log levels.
//!
//! The admin service checks rights and speaks the protocol; behind it stands [`Steer`], which only a whole process has: a door in a
//! test has none, and says so. What is set here lasts until it is undone or the process ends, and never longer: a restart brings the
//! node back as its configuration says.

pub(crate) mod levels;
pub(crate) mod reload;

use std::{fmt, pin::Pin, sync::Arc};

use seaway_federation_proto::ids::NodeName;
use seaway_relay::node::Node;
use tonic::Status;

use self::{levels::Levels, reload::Reload};
use crate::{api, grpc::errors};

/// What the admin service asks of the process. `by` names who asked.
pub(crate) trait Steer: fmt::Debug + Send + Sync {
    /// Takes the node out of use, or back into it.
    fn drain(&self, undo: bool, by: &str) -> api::DrainReply;
    /// Pauses a link.
    fn pause_link(&self, peer: &str, by: &str) -> Result<(), Status>;
    /// Resumes one; whether it was paused.
    fn resume_link(&self, peer: &str) -> Result<bool, Status>;
    /// Reads the configuration anew, whole or not at all.
    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<api::ReloadConfigReply, Status>> + Send + '_>>;
    /// Sets a log level for a limited time.
    fn set_level(&self, request: &api::SetLogLevelRequest, by: &str) -> Result<api::LogLevels, Status>;
    /// Log levels that hold.
    fn levels(&self) -> api::LogLevels;
}

/// Steers the node of this process.
pub(crate) struct Steering {
    node: Node,
    levels: Arc<Levels>,
    reload: Arc<Reload>,
}

impl fmt::Debug for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steering").finish_non_exhaustive()
    }
}

impl Steering {
    /// Over a node that is up.
    pub(crate) fn new(node: Node, levels: Arc<Levels>, reload: Arc<Reload>) -> Self {
        Self { node, levels, reload }
    }
}

fn peer_of(text: &str) -> Result<NodeName, Status> {
    text.parse()
        .map_err(|error| errors::invalid(format!("{error}; write the peer as SITE/NODE, as `seaway link ls` does")))
}

impl Steer for Steering {
    fn drain(&self, undo: bool, by: &str) -> api::DrainReply {
        let drained_before = if undo { self.node.undrain() } else { self.node.drain(by) };
        match (undo, drained_before) {
            (false, false) => tracing::info!(by, "the node is drained: it takes no new messages until that is undone"),
            (true, true) => tracing::info!(by, "the node is in use again"),
            _ => {}
        }
        api::DrainReply { drained_before, receipts_waiting: self.node.receipts_waiting() }
    }

    fn pause_link(&self, peer: &str, by: &str) -> Result<(), Status> {
        let peer = peer_of(peer)?;
        self.node.pause_link(&peer, by).map_err(errors::not_found)?;
        tracing::info!(%peer, by, "the link is paused");
        Ok(())
    }

    fn resume_link(&self, peer: &str) -> Result<bool, Status> {
        let peer = peer_of(peer)?;
        let was_paused = self.node.resume_link(&peer).map_err(errors::not_found)?;
        if was_paused {
            tracing::info!(%peer, "the link is resumed");
        }
        Ok(was_paused)
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Result<api::ReloadConfigReply, Status>> + Send + '_>> {
        Box::pin(async {
            let reloaded = self.reload.ask().await;
            let done = reloaded.map_err(|why| errors::failed_precondition(format!("nothing was changed: {why}")))?;
            Ok(api::ReloadConfigReply { applied: done.applied, needs_restart: done.needs_restart })
        })
    }

    fn set_level(&self, request: &api::SetLogLevelRequest, by: &str) -> Result<api::LogLevels, Status> {
        let time = std::time::Duration::from_millis(request.for_ms);
        let set = match request.level.as_str() {
            "" => self.levels.fall_back(&request.target),
            level => Levels::raise(&self.levels, &request.target, level, time, by),
        };
        set.map_err(errors::invalid)?;
        Ok(self.levels.show())
    }

    fn levels(&self) -> api::LogLevels {
        self.levels.show()
    }
}
