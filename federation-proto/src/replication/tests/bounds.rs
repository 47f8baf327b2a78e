//! What the machine keeps stays within its bounds, and people hear of it before they are met.

use super::*;
use crate::{
    copies::{INCARNATIONS_MANY, IncarnationInfo, LogInfo},
    ids::{Incarnation, LogName},
};

fn reports(machine: &mut Replication) -> Vec<Report> {
    let outputs = std::iter::from_fn(|| machine.poll_output());
    outputs.filter_map(|output| if let Output::Report(report) = output { Some(report) } else { None }).collect()
}

/// A log of so many starts, a message each.
fn info(starts: usize) -> LogInfo {
    let place = |n: usize| Place { incarnation: Incarnation { counter: n as u64, random: 7 }, offset: n as u64 };
    let held = |n: usize| IncarnationInfo {
        incarnation: place(n).incarnation,
        previous: (n > 1).then(|| place(n - 1)),
        jumped: false,
        begin: n as u64 - 1,
        end: n as u64,
        chain_at_end: None,
    };
    LogInfo {
        begin: Place { offset: 0, ..place(1) },
        end: place(starts),
        fork_tips: Vec::new(),
        incarnations: (1..=starts).map(held).collect(),
        holes: Vec::new(),
        messages: starts as u64,
        bytes: starts as u64 * 100,
        newest_origin_time_us: 0,
        forgotten: Default::default(),
    }
}

#[test]
fn many_incarnations_are_reported_once_and_long_before_the_bound() {
    for origin in ["a", "b"] {
        let mut net = Net::new(1);
        net.add("a/edge", NodeKind::Edge);
        let machine = &mut net.nodes[0].machine;
        let mut told = Vec::new();
        for starts in [INCARNATIONS_MANY - 1, INCARNATIONS_MANY, INCARNATIONS_MANY + 1] {
            let info = info(starts);
            machine.handle_log(net.now, log("orders", origin, 1), Some(info.clone()), Some(info));
            told.extend(reports(machine).into_iter().map(|report| (starts, report)));
        }
        assert_eq!(told.len(), 1, "{told:?}");
        let (starts, report) = &told[0];
        assert_eq!((*starts, report.name), (INCARNATIONS_MANY, "many-incarnations"));
        assert!(report.text.contains("retention_age"), "{report:?}");
    }
}

#[test]
fn a_log_that_nothing_is_left_of_is_forgotten() {
    let mut net = Net::new(1);
    net.add("a/edge", NodeKind::Edge);
    let (mut now, machine) = (net.now, &mut net.nodes[0].machine);
    let name = |n: u64| log(&format!("t{n}"), ["a", "b", "c"][n as usize % 3], 1);
    for n in 0..3000 {
        machine.handle_log(now, name(n), Some(info(1)), Some(info(1)));
    }
    let mut turns = |machine: &mut Replication| {
        for _ in 0..4 {
            now += Duration::from_secs(1);
            machine.handle_timeout(now, 0);
        }
        machine.logs.count()
    };
    assert_eq!(turns(machine), 3000);
    for n in (0..3000).filter(|n| n % 10 != 0) {
        machine.handle_log(Duration::ZERO, name(n), None, None);
    }
    assert_eq!(turns(machine), 300);
    assert!(machine.logs.get(&name(0)).is_some() && machine.logs.get(&name(1)).is_none());
}

#[test]
fn one_origin_cannot_fill_the_table_with_names() {
    let mut logs = super::super::logs::Logs::default();
    let name = |origin: &str, n: u16| -> LogName { log("t", origin, n) };
    assert_eq!((0..100).filter(|n| logs.entry(&name("bad", *n), 100).is_some()).count(), 50);
    assert_eq!((0..40).filter(|n| logs.entry(&name("good", *n), 100).is_some()).count(), 40);
    assert!(logs.entry(&name("bad", 0), 100).is_some(), "what is known stays so");
    // What is held counts as far as there is any room.
    assert_eq!((0..100).filter(|n| logs.entry_held(&name("bad", *n), 100).is_some()).count(), 60);
    assert!(logs.entry(&name("good", 99), 100).is_none() && logs.count() == 100);
}

/// Gaps in the logs of more origins than others take questions for at once: all are asked about, none too fast.
#[test]
fn no_more_is_asked_than_others_take() {
    use super::super::questions::Gap;
    const ORIGINS: usize = 1000;
    let mut net = Net::new(1);
    net.add("a/edge", NodeKind::Edge);
    net.add("r/relay", NodeKind::Relay);
    net.connect(0, 1);
    net.run(30);
    let start = net.now;
    let machine = &mut net.nodes[0].machine;
    for n in 0..ORIGINS {
        let name = log("t", &format!("o{n}"), 1);
        machine.handle_log(start, name.clone(), Some(info(1)), Some(info(1)));
        let resume = Place { offset: 9, ..info(1).end };
        machine.logs.get_mut(&name).unwrap().gap = Some(Gap::new(resume, start));
        machine.gaps.insert(name);
    }
    let mut hearer = super::super::questions::Questions::default();
    let (mut asked, mut seconds) = (std::collections::BTreeSet::new(), 0);
    while asked.len() < ORIGINS {
        seconds += 1;
        assert!(seconds < 200, "only {} were asked about", asked.len());
        let now = start + Duration::from_secs(seconds);
        machine.now = now;
        let before = machine.questions.answered.last_key_value().map(|(n, _)| *n).unwrap_or(0);
        machine.ask_about_gaps();
        let sent = machine.questions.answered.range(before + 1..).count();
        for _ in 0..sent {
            assert!(hearer.may_ask(None, now), "a question would be dropped after {seconds} s");
        }
        let of_asked = machine.logs.origins().into_iter().flat_map(|o| machine.logs.names_of_origin(&o));
        asked = of_asked
            .filter(|l| machine.logs.get(l).is_some_and(|s| s.gap.as_ref().is_some_and(|g| g.asked.is_some())))
            .collect();
    }
    assert!(seconds > 1, "they do not all go at once");
}
