//! The commit log: a node's one append-only sequence in which all logs' batches and all state
//! changes are interleaved.
//!
//! This module is the contract. [`disk`] is the implementation that ships, [`memory`] its
//! fault-injecting twin for simulation; one conformance suite runs on both.

pub(crate) mod ages;
pub mod bench;
pub mod conformance;
pub mod contract;
pub mod disk;
pub mod files;
pub mod memory;
pub mod sync_times;
