//! The door as clients meet it, over gRPC on loopback, with the engine in memory.

mod audit;
mod groups;
mod lists;
mod publish;
mod real_node;
mod rights;
mod subscribe;
