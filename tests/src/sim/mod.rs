//! The simulation: whole federations under one seed, over a network, disks and clocks of its own.
//!
//! What runs is what ships: sessions, replication machines, link drivers, hubs, publish paths and receipts. In place of quinn stands
//! [`net`], in place of the disk the commit log's twin in memory. A run has a phase with faults, then one without, in which the federation must
//! become whole. [`check`] looks at the disks and at what was promised ([`truth`]), and shares no code with the rest.
//!
//! A failing seed prints itself; `cargo run --release -p seaway-tests --bin sim -- --seed N` replays it exactly.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::cast_possible_truncation,
    reason = "a test's own code may stop the test"
)]

pub mod check;
pub mod crossings;
pub mod honest;
pub mod net;
pub mod node;
pub mod sabotage;
pub mod scenario;
pub mod topics;
pub mod truth;
pub mod workload;
pub mod world;

pub use scenario::{Disasters, Sabotage, Scenario};
pub use world::{Outcome, World};

/// Runs a scenario to its end.
pub fn run(scenario: Scenario) -> Outcome {
    World::new(scenario).run()
}
