//! The Seaway protocol, pure: what nodes say to each other and what follows from it.
//!
//! Nothing in this crate opens a socket or a file, reads a clock, draws a random number or runs on
//! an async runtime; time and randomness come in as arguments. That is what lets the simulation
//! drive exactly the code that ships.

pub mod control;
pub mod copies;
pub mod envelope;
pub mod ids;
pub mod limits;
pub mod message;
pub mod replication;
pub mod session;
pub mod wire;
