//! Room on the disk: the reserve stays whole whatever is on its way.

use std::sync::{Arc, mpsc};

use super::{DiskConfig, DiskLog, config, gate::Gate};
use crate::log::{
    conformance::fixture::{Origin, log_name},
    contract::{CommitLog, Entry, RejectReason, Role, Unit},
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
