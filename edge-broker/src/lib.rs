//! What clients meet: doors, subscriptions, groups, quotas, the command line.

pub mod admin;
mod auth;
pub mod bench;
pub mod certificates;
pub mod cli;
pub mod config;
pub mod door;
pub mod engine;
mod groups;
pub mod grpc;
pub mod limits;
pub mod metrics;
mod rates;
mod steering;
mod subscriptions;
#[cfg(test)]
mod testing;

/// The client protocol as generated from `seaway/v1/seaway.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod api {
    tonic::include_proto!("seaway.v1");
    /// For the reflection service.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("seaway_descriptor");
}
