//! The gRPC services: what clients call, checked and handed to the engine, subscriptions and groups.

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod convert;
pub(crate) mod disk;
pub mod errors;
pub(crate) mod federation;
pub(crate) mod limits;
pub(crate) mod messages;
pub(crate) mod pages;
pub(crate) mod publish;
pub(crate) mod queues;
pub(crate) mod refusals;
pub(crate) mod shared;
pub(crate) mod sites;
pub(crate) mod status;
pub(crate) mod subscribe;
pub(crate) mod told;
pub(crate) mod topics;
