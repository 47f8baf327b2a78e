//! Link drivers and the hub: the synchronous glue between sessions, replication and the commit log.
//!
//! A [`driver::LinkDriver`] owns one link's session; the [`hub::Hub`] owns the node's one replication
//! machine. Neither knows QUIC, tokio or threads, so the simulation runs exactly this code over its own
//! network; [`crate::transport`] runs it over quinn, one task a link.
//!
//! Data flow: bytes → session → `Batch` → the driver submits it to the commit log → on acceptance the
//! hub is told, on durability the credit goes back (by [`command::LinkCommand::Stored`]). Fetches served: session
//! `Read` → `read_cached`, else a [`driver::ReadJob`] that the shell runs where it may block.
//! Everything one link has to tell another goes as a [`command::LinkCommand`] through that link's mailbox; posting never waits.

pub mod alarms;
pub mod command;
pub mod controls;
pub mod driver;
pub mod hub;
pub mod passing;
pub mod port;
mod stores;
mod storing;

#[cfg(test)]
mod stopped_tests;
