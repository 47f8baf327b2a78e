//! Measurements that a user can repeat: figures with stable names, as a table or as JSON.
//!
//! Nothing here is a test: no figure fails anything.

pub mod cluster;
pub mod federation;
pub mod idle;
mod listener;
mod load;
pub mod log;
mod machine;
pub mod opening;
mod process;
pub mod slow_disk;
pub mod space;

use serde::Serialize;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Its stable name.
    pub figure: String,
    /// Its value.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What the machine itself can do, measured in the same run, where there is such a thing.
    pub limit: Option<f64>,
    /// `value` over `limit`.
    pub ratio: Option<f64>,
}

impl Figure {
    /// A figure without a limit.
    pub fn new(figure: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { figure: figure.into(), value, unit, limit: None, ratio: None }
    }

    /// A figure beside what the machine can do.
    pub fn limited(figure: impl Into<String>, value: f64, unit: &'static str, limit: f64) -> Self {
        let ratio = (limit > 0.0).then(|| value / limit);
        Self { figure: figure.into(), value, unit, limit: Some(limit), ratio }
    }
}

/// Why a measurement did not come about: one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BenchError(pub String);
