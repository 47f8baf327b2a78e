//! What a process has used, from /proc.

/// Clock ticks a second in /proc/PID/stat: the same on every architecture that Linux runs on today.
const TICKS_PER_S: f64 = 100.0;

/// CPU time that a process has used so far, user and system, in seconds.
pub(crate) fn cpu_s(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces: count from behind it. utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / TICKS_PER_S)
}

/// Most memory that a process has held at once, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib * 1024.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_uses_something() {
        let own = std::process::id();
        assert!(super::cpu_s(own).is_some());
        assert!(super::peak_memory(own).unwrap() > 1024.0);
    }
}
