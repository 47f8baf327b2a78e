//! What a process has used, from /proc.

use std::{collections::BTreeMap, path::Path};

/// Clock ticks a second in /proc/PID/stat: the same on every architecture that Linux runs on today.
const TICKS_PER_S: f64 = 100.0;

/// CPU time used so far, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Cpu {
    /// In the process's own code.
    pub(crate) user: f64,
    /// In the kernel on its behalf.
    pub(crate) system: f64,
}

impl Cpu {
    pub(crate) fn sum(self) -> f64 {
        self.user + self.system
    }

    pub(crate) fn plus(self, other: Cpu) -> Cpu {
        Cpu { user: self.user + other.user, system: self.system + other.system }
    }

    /// What was used since; a thread that ended meanwhile takes what it used with it.
    pub(crate) fn since(self, before: Cpu) -> Cpu {
        Cpu { user: (self.user - before.user).max(0.0), system: (self.system - before.system).max(0.0) }
    }
}

/// What a process or a thread has used, from its `stat`, with its name.
fn used(stat: &Path) -> Option<(String, Cpu)> {
    let stat = std::fs::read_to_string(stat).ok()?;
    // The name, in parentheses, may hold spaces and parentheses: count from behind it. utime and stime are fields 14 and 15.
    let (head, tail) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let seconds = |index: usize| fields.get(index)?.parse::<f64>().ok().map(|ticks| ticks / TICKS_PER_S);
    Some((name, Cpu { user: seconds(11)?, system: seconds(12)? }))
}

/// CPU time that a process has used so far, user and system, in seconds.
pub(crate) fn cpu_s(pid: u32) -> Option<f64> {
    used(Path::new(&format!("/proc/{pid}/stat"))).map(|(_, cpu)| cpu.sum())
}

/// CPU time that a process's threads have used so far, by their names.
pub(crate) fn cpu_of_threads(pid: u32) -> Option<BTreeMap<String, Cpu>> {
    let mut threads: BTreeMap<String, Cpu> = BTreeMap::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        if let Some((name, cpu)) = used(&thread.path().join("stat")) {
            let known = threads.entry(name).or_default();
            *known = known.plus(cpu);
        }
    }
    Some(threads)
}

/// Bytes that a process has given to disks so far.
pub(crate) fn written(pid: u32) -> Option<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.trim().parse().ok()
}

/// Most memory that a process has held at once, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Option<f64> {
    memory_line(pid, "VmHWM:")
}

/// Memory that a process holds now, in bytes: its own, and the pages of files that it has mapped, its program above all.
pub(crate) fn memory(pid: u32) -> Option<f64> {
    memory_line(pid, "VmRSS:")
}

/// What of it is the process's own, not a file's, in bytes.
pub(crate) fn own_memory(pid: u32) -> Option<f64> {
    memory_line(pid, "RssAnon:")
}

fn memory_line(pid: u32, name: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib * 1024.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_uses_something() {
        let own = std::process::id();
        assert!(super::cpu_s(own).is_some());
        // The test's own thread bears the test's name, as far as the kernel keeps it.
        let threads = super::cpu_of_threads(own).unwrap();
        assert!(threads.keys().any(|name| name.starts_with("bench::")), "{threads:?}");
        let (now, own_now) = (super::memory(own).unwrap(), super::own_memory(own).unwrap());
        assert!(super::peak_memory(own).unwrap() >= 1024.0 && now >= own_now && own_now > 0.0);
        assert!(super::written(own).is_some());
    }
}
