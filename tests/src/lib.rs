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
pub mod small_disk;

/// Says that something could not be tested on this machine: on standard error, and in the file that `SEAWAY_SKIPPED` names, from
/// which `tests/run.sh` counts it.
pub fn skipped(what: &str) {
    use std::io::Write;
    let line = format!("SKIPPED: {what}\n");
    // Where neither can be written, nobody listens.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("SEAWAY_SKIPPED")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
}
