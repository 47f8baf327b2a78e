//! Seaway's engine: commit log, transport, link drivers, replication, and the node that joins them.

pub mod ca;
pub mod link;
pub mod log;
pub mod node;
pub mod transport;
