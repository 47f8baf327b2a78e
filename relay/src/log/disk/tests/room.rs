//! Room on the disk: the reserve stays whole whatever is on its way.

use std::{
    fs,
    path::Path,
    sync::{Arc, mpsc},
};

use parking_lot::Mutex;

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

/// Counts what this thread logs as a warning or worse.
#[derive(Default)]
struct Logged(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl tracing::Subscriber for Logged {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().push(text.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_failure_is_logged_once() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::new();
    // Without a thread of its own, all of it is logged here.
    let settings = DiskConfig { files: Arc::new(gate.clone()), stepped: true, ..config(dir.path()) };
    let (log, _) = DiskLog::open(settings).unwrap();
    let logged = Logged::default();
    let texts = Arc::clone(&logged.0);
    tracing::subscriber::with_default(logged, || {
        gate.fail_next_sync();
        let put = |key: &'static str| Entry::Put { table: Table::Node, key: key.into(), value: "v".into() };
        let (tell, told) = mpsc::channel();
        log.submit(Unit { entries: vec![put("a")] }, Box::new(move |done| tell.send(done).unwrap())).unwrap();
        log.step(true);
        told.recv().unwrap().unwrap_err();
        assert!(log.submit(Unit { entries: vec![put("b")] }, Box::new(|_| {})).is_err());
        assert!(log.reclaim().is_err());
        log.close().unwrap_err();
    });
    let texts = texts.lock();
    assert!(texts.len() == 1 && texts[0].contains("the gate is shut"), "{texts:?}");
}
