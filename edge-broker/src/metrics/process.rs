//! What the system says of the process, from `/proc`; where that is missing, the metrics are left out.

use std::time::Duration;

use super::{
    exposition::Page,
    table::{CPU, MAX_FDS, OPEN_FDS, RESIDENT, THREADS},
};

/// Adds the process's figures.
pub(super) fn add(page: &mut Page) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(kib) = field(&status, "VmRSS:") {
        page.count(&RESIDENT, &[], kib.saturating_mul(1024));
    }
    if let Some(threads) = field(&status, "Threads:") {
        page.count(&THREADS, &[], threads);
    }
    if let Some(cpu) = cpu_time() {
        page.add(&CPU, &[], cpu.as_secs_f64());
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        page.count(&OPEN_FDS, &[], u64::try_from(open.count()).unwrap_or(u64::MAX));
    }
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let max = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    if let Some(max) = max.and_then(|line| line.split_whitespace().next()?.parse().ok()) {
        page.count(&MAX_FDS, &[], max);
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// The process's CPU time.
fn cpu_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, which may hold anything: state is field 3, utime 14, stime 15, in ticks of 10 ms (USER_HZ).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()?.saturating_add(fields.next()?.parse().ok()?);
    Some(Duration::from_millis(ticks.saturating_mul(10)))
}
