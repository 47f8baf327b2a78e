//! For the doors' tests: an engine over the commit log's twin in memory, and a door with clients around it.

mod engine;
mod harness;

pub(crate) use self::{engine::TestEngine, harness::*};
