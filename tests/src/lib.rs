//! What tests share: simulation, fault injection, real processes under test.

pub mod sim;
