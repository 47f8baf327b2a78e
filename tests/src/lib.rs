//! What tests share: simulation, fault injection, real processes under test.

pub mod bulk;
pub mod cluster;
pub mod fuzz;
pub mod proxy;
pub mod sim;
