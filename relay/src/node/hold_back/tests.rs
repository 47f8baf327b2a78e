//! What is kept for whom, over the real rules of logs in memory.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stderr, reason = "tests")]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use seaway_federation_proto::{envelope::Batch, replication::Need};

use super::{ledger::Slice, *};
use crate::log::{
    conformance::fixture::{Origin, log_name},
    contract::{Role, Table, Unit},
    memory::{MemoryConfig, MemoryDisk, MemoryLog},
};

const SECOND_US: u64 = 1_000_000;

/// A commit log in memory, durable at once, with a clock that the test moves.
struct Bench {
    log: Arc<MemoryLog>,
    clock: Arc<AtomicU64>,
}

impl Bench {
    fn new() -> Self {
        Self::over(MemoryDisk::default(), 1_000 * SECOND_US)
    }

    fn over(disk: MemoryDisk, now_us: u64) -> Self {
        let clock = Arc::new(AtomicU64::new(now_us));
        let wall = clock.clone();
        let config =
            MemoryConfig { auto: true, wall_us: Arc::new(move || wall.load(Relaxed)), ..MemoryConfig::default() };
        Self { log: MemoryLog::open(disk, config), clock }
    }

    fn now(&self) -> u64 {
        self.clock.load(Relaxed)
    }

    fn time(&self) -> Now {
        Now { us: self.now(), latest_us: self.now() + 100 * SECOND_US }
    }

    fn later(&self, seconds: u64) {
        self.clock.fetch_add(seconds * SECOND_US, Relaxed);
    }

    fn submit(&self, entries: Vec<Entry>) {
        self.log.submit(Unit { entries }, Box::new(|result| result.unwrap())).unwrap();
    }

    fn append(&self, batch: &Batch) {
        self.submit(vec![Entry::Append { role: Role::Own, batch: batch.clone() }]);
    }

    /// Appends batches of about so many bytes, a second apart.
    fn fill(&self, origin: &mut Origin, count: usize, bytes: usize) -> Vec<Batch> {
        let batches: Vec<Batch> = (0..count).map(|_| origin.next(2, bytes / 2)).collect();
        for batch in &batches {
            self.append(batch);
            self.later(1);
        }
        batches
    }

    fn begin(&self, log: &LogName) -> Place {
        self.log.info(log, true).unwrap().begin
    }

    /// One round, and the trims that follow from it.
    fn round(&self, keeper: &Keeper, keep: Keep, needs: Vec<(LogName, Vec<Need>)>) -> Round {
        self.round_with(keeper, keep, needs, None)
    }

    /// The same with so much room for own messages.
    fn round_with(&self, keeper: &Keeper, keep: Keep, needs: Vec<(LogName, Vec<Need>)>, room: Option<i64>) -> Round {
        let told = Told { log: &*self.log, needs, heard: Vec::new(), now: self.time(), room };
        let round = keeper.round(told, |_| keep).unwrap();
        if !round.entries.is_empty() {
            self.submit(round.entries.clone());
        }
        let log: Arc<dyn CommitLog> = self.log.clone();
        let keep_from = |name: &LogName| round.keep_from.get(name).copied();
        crate::node::retention::trim(&log, |_| keep, keep_from, None, self.time()).unwrap();
        round
    }

    fn keeper(&self, config: HoldBackConfig) -> Keeper {
        Keeper::open(config, None, Path::new("/nowhere/at/all"), &*self.log)
    }
}

fn need(site: &str, from: Place) -> Need {
    Need { site: site.parse().unwrap(), from, tip: Some(from) }
}

fn bytes(batches: &[Batch]) -> u64 {
    batches.iter().map(|b| b.len() as u64).sum()
}

const NOTHING: Keep = Keep { bytes_max: Some(0), age_max: None };

fn names(reports: &[Report]) -> Vec<(&'static str, &str)> {
    reports.iter().map(|r| (r.name, r.subject.as_str())).collect()
}

#[test]
fn a_ledger_tells_what_a_walk_through_the_log_would() {
    for seed in 0..60 {
        eprintln!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let bench = Bench::new();
        let mut origin = Origin::new(log_name("t", "home", 1), 1);
        let name = origin.log().clone();
        let (mut ledger, mut batches): (Ledger, Vec<Batch>) = (Ledger::default(), Vec::new());
        for _ in 0..rng.random_range(2..12) {
            if rng.random_bool(0.2) {
                origin.restart();
            }
            // Large ones close a slice by themselves.
            let size = if rng.random_bool(0.3) { 600_000 } else { 300 };
            let (before, count) = (batches.len(), rng.random_range(0..6));
            // A clock that stands wrong for a moment.
            let leap = if rng.random_bool(0.2) { 10_000 } else { 0 };
            bench.later(leap);
            batches.extend(bench.fill(&mut origin, count, size));
            bench.clock.fetch_sub(leap * SECOND_US, Relaxed);
            if batches.is_empty() {
                continue;
            }
            let came = ledger.follow(&*bench.log, &name, bench.begin(&name)).unwrap();
            assert!(came == 0 || came == bytes(&batches[before..]), "seed {seed}");
            if rng.random_bool(0.3) {
                ledger.coarsen();
            }
            if rng.random_bool(0.4) {
                let to = batches[rng.random_range(0..batches.len())].begin();
                if key(bench.begin(&name)) < key(to) {
                    bench.submit(vec![Entry::Trim { log: name.clone(), to }]);
                    ledger.follow(&*bench.log, &name, bench.begin(&name)).unwrap();
                }
            }
            let begin = bench.begin(&name);
            let held: Vec<&Batch> = batches.iter().filter(|b| key(begin) <= key(b.begin())).collect();
            let all: Vec<Slice> = slices(&ledger, &bench, &name);
            assert_eq!(all.iter().map(|s| s.bytes).sum::<u64>(), held.iter().map(|b| b.len() as u64).sum::<u64>());
            for _ in 0..10 {
                let Some(from) = held.get(rng.random_range(0..held.len().max(1))) else { continue };
                let Some(to) = held.get(rng.random_range(0..held.len())) else { continue };
                let within = |b: &&&Batch| key(from.begin()) <= key(b.begin()) && key(b.begin()) < key(to.begin());
                let sum: u64 = held.iter().filter(within).map(|b| b.len() as u64).sum();
                let part = ledger.between(&*bench.log, &name, from.begin(), to.begin()).unwrap();
                assert_eq!(part.bytes, sum, "seed {seed}: {} to {}", from.begin(), to.begin());
                let total = bench.log.info(&name, true).unwrap().bytes;
                let keep = Keep {
                    bytes_max: rng.random_bool(0.6).then(|| rng.random_range(0..=total + 1)),
                    age_max: rng.random_bool(0.6).then(|| Duration::from_secs(rng.random_range(0..60))),
                };
                let retention = keep.at(bench.time());
                let trims = bench.log.trim_target(&name, retention).unwrap();
                let target = ledger.retained_from(&*bench.log, &name, keep, total, bench.time()).unwrap();
                // The end of one incarnation and the begin of the next are one place.
                let offset = |place: Option<Place>| place.map(|p| p.offset);
                assert_eq!(offset(target), offset(trims), "seed {seed}: {keep:?}");
            }
        }
    }
}

fn slices(ledger: &Ledger, bench: &Bench, name: &LogName) -> Vec<Slice> {
    let info = bench.log.info(name, true).unwrap();
    let mut all = Vec::new();
    ledger.pieces(&*bench.log, name, info.begin, info.end, |slice| all.push(slice)).unwrap();
    all
}

#[test]
fn what_a_site_needs_stays_and_goes_once_it_has_it() {
    let bench = Bench::new();
    let mut origin = Origin::new(log_name("t", "home", 1), 1);
    let name = origin.log().clone();
    let batches = bench.fill(&mut origin, 6, 1000);
    let keeper = bench.keeper(HoldBackConfig::default());
    let place = batches[2].begin();
    let round =
        bench.round(&keeper, NOTHING, vec![(name.clone(), vec![need("us", place), need("eu", origin.end().unwrap())])]);
    assert_eq!(bench.begin(&name), place, "retention alone would have taken all");
    assert!(round.raise.is_empty() && round.entries.is_empty());
    let shown = keeper.shown();
    assert_eq!(shown.bytes, bytes(&batches[2..]));
    let us = shown.sites.iter().find(|s| s.site == "us").unwrap();
    assert_eq!((us.bytes, us.behind_bytes, us.topics.len()), (bytes(&batches[2..]), bytes(&batches[2..]), 1));
    assert_eq!(us.oldest_us, Some(1_002 * SECOND_US));
    let eu = shown.sites.iter().find(|s| s.site == "eu").unwrap();
    assert_eq!((eu.bytes, eu.behind_bytes), (0, 0));
    // A restored site states less: it is believed, as far as there is anything left.
    bench.round(&keeper, NOTHING, vec![(name.clone(), vec![need("us", batches[4].begin())])]);
    assert_eq!(bench.begin(&name), batches[4].begin());
    bench.round(&keeper, NOTHING, vec![(name.clone(), vec![need("us", batches[4].begin())])]);
    assert_eq!(bench.begin(&name), batches[4].begin());
    bench.round(&keeper, NOTHING, vec![(name.clone(), vec![need("us", origin.end().unwrap())])]);
    assert_eq!(bench.log.info(&name, true).unwrap().bytes, 0);
    assert_eq!(keeper.shown().bytes, 0);
    // One needs less than the other, and is restored: the lower place that it states counts again, above what it stated first.
    let more = bench.fill(&mut origin, 6, 1000);
    let both = |eu: &Batch, us: &Batch| vec![(name.clone(), vec![need("eu", eu.begin()), need("us", us.begin())])];
    bench.round(&keeper, NOTHING, both(&more[2], &more[5]));
    assert_eq!(bench.begin(&name), more[2].begin());
    bench.round(&keeper, NOTHING, both(&more[5], &more[3]));
    assert_eq!(bench.begin(&name), more[3].begin(), "us stated a lower place than before");
    assert_eq!(keeper.shown().bytes, bytes(&more[3..]));
    bench.round(&keeper, NOTHING, vec![(name.clone(), vec![need("us", origin.end().unwrap())])]);
    // Nobody counts: nothing is held back.
    let batches = bench.fill(&mut origin, 2, 1000);
    bench.round(&keeper, NOTHING, vec![(name.clone(), vec![])]);
    assert_eq!(bench.begin(&name), batches[1].end());
}

#[test]
fn past_the_whole_s_bound_the_oldest_goes_first_over_all_logs_with_a_record_and_an_alarm() {
    let bench = Bench::new();
    let (mut one, mut two) = (Origin::new(log_name("a", "home", 1), 1), Origin::new(log_name("b", "home", 1), 2));
    let (first, second) = (bench.fill(&mut one, 3, 1000), bench.fill(&mut two, 3, 1000));
    let third = bench.fill(&mut one, 3, 1000);
    let (a, b) = (one.log().clone(), two.log().clone());
    // Room for all but the two oldest batches.
    let max = bytes(&first[2..]) + bytes(&second) + bytes(&third);
    let keeper = bench.keeper(HoldBackConfig { bytes_max: Some(max), rules: Vec::new() });
    let needs =
        || vec![(a.clone(), vec![need("us", first[0].begin())]), (b.clone(), vec![need("us", second[0].begin())])];
    let round = bench.round(&keeper, NOTHING, needs());
    assert_eq!((bench.begin(&a), bench.begin(&b)), (first[2].begin(), second[0].begin()));
    assert_eq!(names(&round.raise), [(EXCEEDED, "us")]);
    let text = &round.raise[0].text;
    assert!(text.contains("4 messages") && text.contains(" of a that site us") && text.contains("in all"), "{text}");
    let gaps = keeper.shown().sites[0].gaps.clone();
    assert_eq!(gaps.len(), 1);
    assert_eq!((gaps[0].from, gaps[0].to, gaps[0].messages), (first[0].begin(), first[2].begin(), 4));
    assert_eq!(gaps[0].bytes, bytes(&first[..2]));
    assert_eq!(keeper.shown().bytes, max);
    // More is published: the next oldest goes, and the record grows. Topic b is not touched before it is b's turn.
    let fourth = bench.fill(&mut two, 2, 1000);
    let after =
        || vec![(a.clone(), vec![need("us", first[2].begin())]), (b.clone(), vec![need("us", second[0].begin())])];
    bench.round(&keeper, NOTHING, after());
    assert_eq!((bench.begin(&a), bench.begin(&b)), (third[0].begin(), second[1].begin()));
    assert!(bytes(&fourth) > 0);
    // It survives a restart, is told again, and is over once the site has come past it.
    let bench = Bench::over(bench.log.disk_copy(), bench.now());
    let keeper = bench.keeper(HoldBackConfig { bytes_max: Some(max), rules: Vec::new() });
    let still = vec![
        (a.clone(), vec![Need { tip: Some(first[0].begin()), ..need("us", third[0].begin()) }]),
        (b.clone(), vec![Need { tip: None, ..need("us", second[1].begin()) }]),
    ];
    let round = bench.round(&keeper, NOTHING, still);
    assert_eq!(names(&round.raise), [(EXCEEDED, "us")]);
    assert_eq!(keeper.shown().sites[0].gaps.len(), 2);
    let back =
        vec![(a.clone(), vec![need("us", one.end().unwrap())]), (b.clone(), vec![need("us", two.end().unwrap())])];
    let round = bench.round(&keeper, NOTHING, back);
    assert_eq!(round.over, [(EXCEEDED, "us".to_owned())]);
    assert!(bench.log.scan(Table::HoldBack, b"gap\0").is_empty());
}

#[test]
fn a_rule_bounds_each_of_its_sites_by_bytes_and_age_and_leaves_the_others_alone() {
    let bench = Bench::new();
    let mut origin = Origin::new(log_name("t", "home", 1), 1);
    let name = origin.log().clone();
    let batches = bench.fill(&mut origin, 10, 1000);
    let rule = |bytes_max, age_max| HoldBackRule {
        sites: vec!["us".parse().unwrap()],
        bytes_max,
        age_max,
        ..HoldBackRule::default()
    };
    let all = batches[0].begin();
    let config = |rule| HoldBackConfig { bytes_max: None, rules: vec![rule] };
    // eu still needs it, so nothing goes; us alone is given up, and would get it all the same.
    let keeper = bench.keeper(config(rule(Some(bytes(&batches[6..])), None)));
    let round = bench.round(&keeper, NOTHING, vec![(name.clone(), vec![need("eu", all), need("us", all)])]);
    assert_eq!(bench.begin(&name), all);
    assert!(round.raise.is_empty());
    let round =
        bench.round(&keeper, NOTHING, vec![(name.clone(), vec![need("eu", batches[8].begin()), need("us", all)])]);
    assert_eq!(bench.begin(&name), batches[6].begin(), "as much as the rule allows");
    assert_eq!(names(&round.raise), [(EXCEEDED, "us")]);
    // By age: what was stored more than two seconds ago.
    let keeper = bench.keeper(config(rule(None, Some(Duration::from_secs(2)))));
    let needs = vec![(name.clone(), vec![need("us", batches[6].begin())])];
    bench.round(&keeper, NOTHING, needs);
    assert_eq!(bench.begin(&name), batches[8].begin());
}

#[test]
fn a_rule_that_refuses_gives_nothing_up_and_lets_publishers_go_on_when_the_site_is_back() {
    let bench = Bench::new();
    let (mut one, mut two) = (Origin::new(log_name("a", "home", 1), 1), Origin::new(log_name("b", "home", 1), 2));
    let (first, second) = (bench.fill(&mut one, 4, 1000), bench.fill(&mut two, 4, 1000));
    let (a, b) = (one.log().clone(), two.log().clone());
    let rule = HoldBackRule {
        sites: vec!["us".parse().unwrap()],
        topics: vec!["a".parse().unwrap()],
        bytes_max: Some(bytes(&first)),
        refuse: true,
        ..HoldBackRule::default()
    };
    let config = HoldBackConfig { bytes_max: Some(bytes(&first) + bytes(&second[2..])), rules: vec![rule] };
    let keeper = bench.keeper(config);
    let needs = |one, two| vec![(a.clone(), vec![need("us", one)]), (b.clone(), vec![need("us", two)])];
    let round = bench.round(&keeper, NOTHING, needs(first[0].begin(), second[0].begin()));
    // a's rule is at its bound: refused, and kept; the whole is past its own, so b's oldest go although a's are older.
    assert_eq!((bench.begin(&a), bench.begin(&b)), (first[0].begin(), second[2].begin()));
    assert_eq!(names(&round.raise), [(EXCEEDED, "us"), (REFUSING, "us")]);
    let why = keeper.refuses(&"a".parse().unwrap()).unwrap();
    assert!(why.contains("site us") && why.contains("bytes"), "{why}");
    assert_eq!(keeper.refuses(&"b".parse().unwrap()), None);
    let round = bench.round(&keeper, NOTHING, needs(first[1].begin(), two.end().unwrap()));
    assert!(round.over.contains(&(REFUSING, "us".to_owned())));
    assert_eq!(keeper.refuses(&"a".parse().unwrap()), None);
    // Only what must not be given up is left, and it is more than the whole's bound: refused too.
    let config = HoldBackConfig {
        bytes_max: Some(10),
        rules: vec![HoldBackRule { bytes_max: Some(1 << 30), ..keeper.config.rules[0].clone() }],
    };
    let keeper = bench.keeper(config);
    bench.round(&keeper, NOTHING, needs(first[1].begin(), two.end().unwrap()));
    assert_eq!(bench.begin(&a), first[1].begin());
    assert!(keeper.refuses(&"a".parse().unwrap()).unwrap().contains("in all"));
}

#[test]
fn what_is_held_back_makes_room_for_publishers_unless_a_rule_refuses_them() {
    let bench = Bench::new();
    let (mut one, mut two) = (Origin::new(log_name("a", "home", 1), 1), Origin::new(log_name("b", "home", 1), 2));
    let (first, second) = (bench.fill(&mut one, 4, 1000), bench.fill(&mut two, 4, 1000));
    let (a, b) = (one.log().clone(), two.log().clone());
    let rule = HoldBackRule {
        sites: vec!["us".parse().unwrap()],
        topics: vec!["a".parse().unwrap()],
        bytes_max: Some(1 << 30),
        refuse: true,
        ..HoldBackRule::default()
    };
    let keeper = bench.keeper(HoldBackConfig { bytes_max: Some(1 << 30), rules: vec![rule] });
    let needs =
        || vec![(a.clone(), vec![need("us", first[0].begin())]), (b.clone(), vec![need("us", second[0].begin())])];
    let round = bench.round_with(&keeper, NOTHING, needs(), Some(1));
    assert!(round.raise.is_empty(), "there is room");
    assert_eq!((bench.begin(&a), bench.begin(&b)), (first[0].begin(), second[0].begin()));
    let lacking = i64::try_from(bytes(&second[..2])).unwrap();
    let round = bench.round_with(&keeper, NOTHING, needs(), Some(-lacking));
    assert_eq!((bench.begin(&a), bench.begin(&b)), (first[0].begin(), second[2].begin()), "as much as is lacking");
    assert_eq!(names(&round.raise), [(EXCEEDED, "us")]);
    assert!(round.raise[0].text.contains("what is left of the disk"), "{}", round.raise[0].text);
    let behind =
        || vec![(a.clone(), vec![need("us", first[0].begin())]), (b.clone(), vec![need("us", second[2].begin())])];
    bench.round_with(&keeper, NOTHING, behind(), Some(i64::MIN));
    assert_eq!((bench.begin(&a), bench.begin(&b)), (first[0].begin(), second[3].end()), "all that may be given up");
    assert_eq!(keeper.refuses(&"a".parse().unwrap()), None, "the disk itself refuses then");
}

#[test]
fn how_long_it_suffices_follows_from_what_is_published_a_day() {
    let bench = Bench::new();
    let mut origin = Origin::new(log_name("t", "home", 1), 1);
    let name = origin.log().clone();
    let batches = bench.fill(&mut origin, 1, 1000);
    let keeper = bench.keeper(HoldBackConfig { bytes_max: Some(1_000_000), rules: Vec::new() });
    let needs = || vec![(name.clone(), vec![need("us", batches[0].begin())])];
    bench.round(&keeper, Keep { bytes_max: Some(1 << 40), age_max: None }, needs());
    assert_eq!((keeper.shown().rate, keeper.shown().suffices), (None, None), "too early to say");
    let more = bench.fill(&mut origin, 100, 1000);
    bench.round(&keeper, Keep { bytes_max: Some(1 << 40), age_max: None }, needs());
    let shown = keeper.shown();
    let rate = bytes(&more) as f64 / 100.0;
    assert!((shown.rate.unwrap() - rate).abs() < rate / 20.0, "{:?} for {rate}", shown.rate);
    let seconds = shown.suffices.unwrap().as_secs_f64();
    assert!((seconds - 1_000_000.0 / rate).abs() < seconds / 10.0, "{seconds}");
    assert_eq!(shown.sites[0].suffices.map(|s| s.as_secs()), shown.suffices.map(|s| s.as_secs()));
}

/// Of a deleted topic nobody needs anything: its gap is over, and so is the alarm, however far the site came.
#[test]
fn a_gap_is_over_when_nobody_needs_anything_of_the_log_any_more() {
    let bench = Bench::new();
    let mut origin = Origin::new(log_name("t", "home", 1), 1);
    let name = origin.log().clone();
    let batches = bench.fill(&mut origin, 4, 1000);
    let keeper = bench.keeper(HoldBackConfig { bytes_max: Some(bytes(&batches[3..])), rules: Vec::new() });
    let needs = || vec![(name.clone(), vec![need("us", batches[0].begin())])];
    let round = bench.round(&keeper, NOTHING, needs());
    assert_eq!(names(&round.raise), [(EXCEEDED, "us")]);
    let round = bench.round(&keeper, NOTHING, needs());
    assert!(round.over.is_empty(), "it is still away");
    let round = bench.round(&keeper, NOTHING, Vec::new());
    assert_eq!(round.over, [(EXCEEDED, "us".to_owned())]);
    assert!(bench.log.scan(Table::HoldBack, b"gap\0").is_empty());
}
