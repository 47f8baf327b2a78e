//! What the admin port and the watchdog see of a node: from before its commit log is opened until its end.

use std::{pin::Pin, sync::OnceLock};

use seaway_relay::node::Node;

use super::Probed;
use crate::{door::DoorHandle, metrics::collect::Collector};

/// A node under watch. It is not there yet at first.
#[derive(Default)]
pub(crate) struct Watched {
    up: OnceLock<Up>,
}

struct Up {
    node: Node,
    door: Option<DoorHandle<Node>>,
    collector: Collector,
}

impl Watched {
    /// The node is up, and its door open.
    pub(crate) fn is_up(&self, node: &Node, door: Option<DoorHandle<Node>>) {
        let up = Up { node: node.clone(), door, collector: Collector::default() };
        // It comes up once.
        drop(self.up.set(up));
    }
}

impl Probed for Watched {
    /// While the commit log is opened, that the process answers says it all: a replay takes its time.
    fn live(&self) -> Result<(), String> {
        self.up.get().map_or(Ok(()), |up| up.node.liveness())
    }

    fn started(&self) -> Result<(), String> {
        self.up.get().map(drop).ok_or_else(|| "the commit log is being opened and replayed".to_owned())
    }

    fn ready(&self) -> Result<(), String> {
        self.started()?;
        let Some(up) = self.up.get() else { return Ok(()) };
        if up.door.as_ref().is_some_and(DoorHandle::is_draining) {
            return Err("the node is stopping".to_owned());
        }
        up.node.readiness()
    }

    fn metrics(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
        Box::pin(async {
            match self.up.get() {
                Some(up) => up.collector.page(&up.node, up.door.as_ref(), self.ready().is_ok()).await,
                // What can be said of a process alone.
                None => Collector::process_page(),
            }
        })
    }
}
