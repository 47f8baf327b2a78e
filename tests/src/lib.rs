//! What tests share: simulation, fault injection, real processes under test.

pub mod cluster;
pub mod bulk;
pub mod fuzz;
pub mod proxy;
pub mod sim;
