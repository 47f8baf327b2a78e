//! Links over QUIC: identity and TLS, the endpoint, channels mapped to streams, dialling and listening.
//!
//! What lives here is the shell around [`crate::link`]: sockets, timers, tasks. What the bytes mean is
//! decided by the session in the protocol crate; what is fetched, by the hub. A link is one tokio task,
//! so that no link waits for another.

pub mod bounds;
pub mod channels;
pub mod dial;
pub mod endpoint;
pub mod expiry;
pub mod identity;
pub mod link;
pub mod listen;
pub mod mailbox;
mod pauses;
pub mod reason;
pub mod registry;
pub mod service;
pub mod status;
pub mod tls;

#[cfg(test)]
mod loopback_tests;
#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod tls_tests;
