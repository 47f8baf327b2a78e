//! Room on the disk: the reserve stays whole whatever is on its way.

use std::{
    fs,
    path::Path,
    sync::{Arc, mpsc},
};

use super::{DiskConfig, DiskLog, config, gate::Gate, store};
use crate::log::{
    conformance::fixture::{Origin, log_name},
    contract::{CommitLog, Entry, RejectReason, Role, Table, Unit},
};

#[test]
fn what_is_on_its_way_counts_against_the_reserve() {
    const RESERVE: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::new();
    // Room for two batches of 100 KiB and not for three, as far as the last look at the disk tells.
    gate.set_free(RESERVE + 250 * 1024);
    let settings = DiskConfig {
        files: Arc::new(gate.clone()),
        queue_bytes_max: 64 << 20,
        reserve_bytes: RESERVE,
        ..config(dir.path())
    };
    let (log, _) = DiskLog::open(settings).unwrap();
    gate.hold(true);
    let mut origin = Origin::new(log_name("orders", "west", 1), 1);
    let (tell, told) = mpsc::channel();
    let mut accepted = 0;
    let refused = loop {
        let batch = origin.next(1, 100 * 1024);
        let tell = tell.clone();
        let unit = Unit { entries: vec![Entry::Append { role: Role::Own, batch }] };
        match log.submit(unit, Box::new(move |done| tell.send(done).unwrap())) {
            Ok(()) => accepted += 1,
            Err(rejected) => break *rejected,
        }
        assert!(accepted < 64, "nothing stops a fast publisher");
    };
    assert!(matches!(refused.reason, RejectReason::DiskFull { .. }), "{}", refused.reason);
    assert_eq!(accepted, 2);
    assert!(log.stats().disk_full, "status tells it at once");
    gate.hold(false);
    for _ in 0..accepted {
        told.recv().unwrap().unwrap();
    }
    // It goes on by itself once there is room.
    gate.set_free(u64::MAX);
    let mut unit = refused.unit;
    for _ in 0..6000 {
        let tell = tell.clone();
        match log.submit(unit, Box::new(move |done| tell.send(done).unwrap())) {
            Ok(()) => return told.recv().unwrap().unwrap(),
            Err(rejected) => unit = rejected.unit,
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("there is room, and nothing is taken");
}

#[test]
fn only_the_segment_that_is_written_has_a_direct_opening() {
    let dir = crate::log::files::direct_directory();
    let (log, _) = DiskLog::open(config(dir.path())).unwrap();
    for n in 0..40_u32 {
        let value = vec![n as u8; 8192].into();
        store(&*log, vec![Entry::Put { table: Table::Node, key: n.to_le_bytes().to_vec().into(), value }]).unwrap();
    }
    let segments = fs::read_dir(dir.path().join("segments")).unwrap().count();
    assert!(segments > 4, "{segments}");
    let direct = rustix::fs::OFlags::DIRECT.bits();
    let is_direct = |info: &str| {
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        u32::from_str_radix(flags, 8).unwrap() & direct != 0
    };
    let mut open = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let ours = fs::read_link(entry.path()).is_ok_and(|path| path.starts_with(dir.path()));
        let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
        open += usize::from(ours && fs::read_to_string(info).is_ok_and(|info| is_direct(&info)));
    }
    assert_eq!(open, 1, "of {segments} segments");
}
