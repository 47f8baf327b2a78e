//! Metrics in Prometheus' text format.
//!
//! [`table`] defines every metric once: name, type, labels, help. From it come the exposition, the documented list
//! (`seaway metrics ls`) and the check of dashboards and alert rules; a sample of a metric that is not in it cannot be made.
//! [`collect`] takes the figures from the snapshots that status uses, at the time of the scrape: a metric costs nothing
//! in between.
//!
//! Names begin with `seaway_`, units are seconds and bytes, counters end in `_total`. Of labels that have as many values as
//! there are topics, peers or groups, the first so many are told apart and the rest is summed as `_other`; who was told
//! apart once stays so while it exists.

pub(crate) mod collect;
pub(crate) mod exposition;
mod process;
pub mod table;
pub(crate) mod traffic;

/// The label value under which what is past a bound is summed.
pub const OTHER: &str = "_other";
/// Topics whose traffic is told apart.
pub const TOPICS_MAX: usize = 200;
/// Pairs of topic and origin that are told apart.
pub const COPIES_MAX: usize = 400;
/// Peers that are told apart.
pub const PEERS_MAX: usize = 200;
/// Certificates that are told apart.
pub const CERTIFICATES_MAX: usize = 250;
/// Clients that are told apart.
pub const CLIENTS_MAX: usize = 200;
/// Groups that are told apart.
pub const GROUPS_MAX: usize = 200;
