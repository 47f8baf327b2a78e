//! What tests share: simulation, fault injection, real processes under test.

pub mod bulk;
pub mod cluster;
pub mod damage;
pub mod faults;
pub mod fuzz;
pub mod index_disk;
pub mod kill;
pub mod power_loss;
pub mod proxy;
pub mod sim;
