//! Retention: raises the begins of logs as their topics' settings, or a relay's bound for its cache, ask.
//!
//! Ages are by this node's own time of appending. Of this site's own logs nothing goes that hold-back keeps for registered sites
//! (`hold_back`); for others that have not fetched yet and for groups that have not read yet retention does not wait: what it takes
//! away shows at them as a reported gap.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use seaway_federation_proto::{
    ids::{LogName, Place, Queue, Site, Topic},
    replication::tombstone_key,
};

use crate::log::contract::{CommitLog, Entry, RejectReason, Retention, Table, Unit};

/// Most trims in one unit.
const TRIMS_PER_UNIT: usize = 64;
/// How long one round waits for room in the append queue; the next goes on where it ended.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(20);

/// What holds for one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Keep {
    pub(super) bytes_max: Option<u64>,
    pub(super) age_max: Option<Duration>,
}

impl Keep {
    /// The same as what the commit log is asked.
    pub(super) fn at(self, now: Now) -> Retention {
        let before = |age: Duration| now.us.saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
        Retention {
            bytes_max: self.bytes_max,
            appended_before_us: self.age_max.map(before),
            not_after_us: Some(now.latest_us),
            keep_from: None,
        }
    }
}

/// What time it is, as it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Now {
    /// Microseconds since 1970.
    pub(super) us: u64,
    /// What claims to be later than this was stored by a clock that stood wrong.
    pub(super) latest_us: u64,
}

/// Trims what is past its retention. Waits on the disk and for room. Answers a sentence if that was not possible; a queue
/// that stays full is none, the next round goes on.
pub(super) fn trim(
    log: &Arc<dyn CommitLog>,
    keep: impl Fn(&LogName) -> Keep,
    keep_from: impl Fn(&LogName) -> Option<Place>,
    cache_bytes_max: Option<u64>,
    now: Now,
) -> Result<(), String> {
    let held: Vec<(LogName, u64)> = log.logs().into_iter().filter_map(|n| Some((n.clone(), log.bytes(&n)?))).collect();
    let share = cache_bytes_max.and_then(|max| share(&held.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(), max));
    let mut entries = Vec::new();
    for (name, bytes) in held {
        let keep = keep(&name);
        let bytes_max = [keep.bytes_max, share].into_iter().flatten().min();
        let retention = Retention { bytes_max, keep_from: keep_from(&name), ..keep.at(now) };
        let nothing_to_do = bytes_max.is_none_or(|max| bytes <= max) && retention.appended_before_us.is_none();
        if nothing_to_do {
            continue;
        }
        if let Some(to) = log.trim_target(&name, retention).map_err(|e| e.to_string())? {
            entries.push(Entry::Trim { log: name, to });
        }
        if entries.len() >= TRIMS_PER_UNIT {
            let full = submit(log, std::mem::take(&mut entries));
            if full == Err(RejectReason::Busy) {
                return Ok(());
            }
            full.map_err(|reason| reason.to_string())?;
        }
    }
    match submit(log, entries) {
        Ok(()) | Err(RejectReason::Busy) => Ok(()),
        Err(reason) => Err(reason.to_string()),
    }
}

/// What is left of removed sites where all their messages of a topic are gone: the control queue, which says nothing more, and the
/// empty logs that it was for. A deleted topic's stays until its tombstone goes.
pub(super) fn over_with_their_site(log: &dyn CommitLog, removed: &BTreeSet<Site>) -> Vec<Entry> {
    let mut topics: BTreeMap<(Topic, Site), Vec<LogName>> = BTreeMap::new();
    for name in log.logs().into_iter().filter(|name| removed.contains(&name.origin)) {
        topics.entry((name.topic.clone(), name.origin.clone())).or_default().push(name);
    }
    topics.retain(|(topic, origin), logs| {
        let empty = |name: &LogName| name.queue == Queue::CONTROL || log.bytes(name) == Some(0);
        logs.iter().all(empty) && log.get(Table::Deleted, &tombstone_key(origin, topic)).is_none()
    });
    topics.into_values().flatten().map(|log| Entry::Drop { log }).collect()
}

/// Waits for room: under full load the queue is full most of the time, and just then a cache must be held to its bound.
pub(super) fn submit(log: &Arc<dyn CommitLog>, entries: Vec<Entry>) -> Result<(), RejectReason> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut unit = Unit { entries };
    let until = Instant::now() + ROOM_WAIT_MAX;
    loop {
        let rejected = match log.submit(unit, Box::new(|_| {})) {
            Ok(()) => return Ok(()),
            Err(rejected) => *rejected,
        };
        let left = until.saturating_duration_since(Instant::now());
        if rejected.reason != RejectReason::Busy || left.is_zero() {
            return Err(rejected.reason);
        }
        let (wake, woken) = mpsc::sync_channel(1);
        log.ready(rejected.unit.room_bytes(), Box::new(move || _ = wake.try_send(())));
        // Whether it came or the time is over, it is tried once more.
        let _ = woken.recv_timeout(left);
        unit = rejected.unit;
    }
}

/// The most bytes that each log may keep so that all together keep `max`: the small ones keep all they have. `None`: all fit.
fn share(sizes: &[u64], max: u64) -> Option<u64> {
    let total: u64 = sizes.iter().fold(0, |sum, size| sum.saturating_add(*size));
    if total <= max {
        return None;
    }
    let mut ascending = sizes.to_vec();
    ascending.sort_unstable();
    let mut left = max;
    let mut logs = u64::try_from(ascending.len()).unwrap_or(u64::MAX);
    for size in ascending {
        let even = left / logs.max(1);
        if size > even {
            return Some(even);
        }
        left -= size;
        logs -= 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::{
        contract::Role,
        disk::{DiskConfig, DiskLog},
        memory::{MemoryConfig, MemoryDisk, MemoryLog},
    };

    use seaway_federation_proto::{
        envelope::{Batch, Chain, Codec, Placement},
        ids::Incarnation,
        message::{BodyBuilder, Message},
    };

    const NOW: Now = Now { us: 1, latest_us: u64::MAX };

    fn batch(offset: u64, chain_before: Chain, bytes: usize) -> Batch {
        let mut builder = BodyBuilder::default();
        let payload = vec![7; bytes].into();
        let path = "t".parse().unwrap();
        builder.push(&Message { path, key: None, headers: Vec::new(), time_us: 1, producer: None, payload });
        let log = LogName { topic: "t".parse().unwrap(), origin: "a".parse().unwrap(), queue: Queue(1) };
        let placement = Placement {
            log: &log,
            begin: Place { incarnation: Incarnation { counter: 1, random: 1 }, offset },
            first_of_incarnation: offset == 0,
            previous: None,
            origin_time_us: 1,
            chain_before,
        };
        Batch::seal(&placement, builder.finish(Codec::None).unwrap()).unwrap()
    }

    /// A small cache under a steady stream stays near its size on the disk, too.
    #[test]
    fn a_small_cache_takes_little_disk() {
        const CACHE: u64 = 16 << 20;
        let dir = tempfile::tempdir().unwrap();
        let start = seaway_federation_proto::ids::Start { time_us: 1, random: 1 };
        let mut config = DiskConfig::new(dir.path().to_path_buf(), "test", "r/relay".parse().unwrap(), start);
        config.reserve_bytes = 0;
        (config.segment_bytes, config.checkpoint_bytes) = super::super::start::cache_bounds(256 << 20, CACHE);
        let (log, _) = DiskLog::open(config).unwrap();
        let log: Arc<dyn CommitLog> = log;
        let (mut offset, mut chain) = (0, Chain::default());
        let mut most = 0;
        for _ in 0..20 {
            for _ in 0..16 {
                let batch = batch(offset, chain, 512 << 10);
                (offset, chain) = (offset + 1, batch.chain_after());
                let unit = Unit { entries: vec![Entry::Append { role: Role::Copy, batch }] };
                let (done, stored) = mpsc::channel();
                log.submit(unit, Box::new(move |result| done.send(result).unwrap())).unwrap();
                stored.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
            }
            trim(&log, |_| Keep::default(), |_| None, Some(CACHE), NOW).unwrap();
            log.reclaim().unwrap();
            most = most.max(log.stats().segment_bytes);
        }
        assert!(most <= 2 * CACHE + (64 << 20), "a cache of {CACHE} bytes took {most}");
    }

    #[test]
    fn what_is_left_of_a_removed_site_goes_when_its_messages_have() {
        let memory = MemoryLog::open(MemoryDisk::default(), MemoryConfig { auto: true, ..MemoryConfig::default() });
        let log: Arc<dyn CommitLog> = memory.clone();
        let place = Place { incarnation: Incarnation { counter: 1, random: 1 }, offset: 0 };
        let begin = |topic: &str, origin: &str| {
            let (topic, origin) = (topic.parse().unwrap(), origin.parse().unwrap());
            Entry::BeginCopy { log: LogName { topic, origin, queue: Queue::CONTROL }, at: place, chain: None }
        };
        let put = |key| Entry::Put { table: Table::Deleted, key, value: b"x".as_slice().into() };
        let entries = vec![
            begin("t", "a"),
            Entry::Append { role: Role::Copy, batch: batch(0, Chain::default(), 100) },
            begin("deleted", "a"),
            put(tombstone_key(&"a".parse().unwrap(), &"deleted".parse().unwrap())),
            begin("t", "b"),
        ];
        submit(&log, entries).unwrap();
        let removed: BTreeSet<Site> = ["a".parse().unwrap()].into();
        assert!(over_with_their_site(&*log, &removed).is_empty(), "a message is left");
        let keep = |_: &LogName| Keep { bytes_max: Some(0), age_max: None };
        trim(&log, keep, |_| None, None, NOW).unwrap();
        let over = over_with_their_site(&*log, &removed);
        assert_eq!(over.len(), 2);
        submit(&log, over).unwrap();
        let left: Vec<String> = log.logs().iter().map(ToString::to_string).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(log.logs().iter().all(|name| name.origin.as_str() == "b" || name.topic.as_str() == "deleted"));
    }

    #[test]
    fn a_trim_waits_for_room_and_is_not_lost() {
        let config = MemoryConfig { queued_bytes_max: 4_000, ..MemoryConfig::default() };
        let memory = MemoryLog::open(MemoryDisk::default(), config);
        let log: Arc<dyn CommitLog> = memory.clone();
        let unit = Unit { entries: vec![Entry::Append { role: Role::Copy, batch: batch(0, Chain::default(), 1_000) }] };
        log.submit(unit, Box::new(|_| {})).unwrap();
        memory.sync_now();
        // Full: nothing more is taken until something is durable.
        let put = |n: u8| Entry::Put { table: Table::Node, key: vec![n].into(), value: vec![0; 700].into() };
        while log.submit(Unit { entries: vec![put(1)] }, Box::new(|_| {})).is_ok() {}
        let keep = |_: &LogName| Keep { bytes_max: Some(0), age_max: None };
        let (theirs, (done, finished)) = (log.clone(), mpsc::channel());
        let thread = std::thread::spawn(move || done.send(trim(&theirs, keep, |_| None, None, NOW)).unwrap());
        assert!(finished.recv_timeout(Duration::from_millis(100)).is_err(), "it does not give up on a full queue");
        memory.sync_now();
        assert_eq!(finished.recv_timeout(Duration::from_secs(60)), Ok(Ok(())));
        thread.join().unwrap();
        memory.sync_now();
        assert!(log.logs().iter().all(|name| log.info(name, true).unwrap().bytes == 0));
    }

    #[test]
    fn small_logs_keep_all_and_large_ones_share_the_rest() {
        assert_eq!(share(&[10, 20, 30], 60), None);
        assert_eq!(share(&[10, 100, 100], 110), Some(50));
        assert_eq!(share(&[100, 100], 100), Some(50));
    }

    proptest! {
        #[test]
        fn the_sum_stays_within_the_bound(sizes in proptest::collection::vec(0_u64..10_000, 0..50), max in 0_u64..100_000) {
            let each = share(&sizes, max).unwrap_or(u64::MAX);
            prop_assert!(sizes.iter().map(|s| (*s).min(each)).sum::<u64>() <= max);
        }
    }
}
