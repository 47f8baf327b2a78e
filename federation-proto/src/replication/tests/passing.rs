//! What is read through for a neighbour: little at a time however much is asked for, and all of it in the end.

use std::collections::BTreeMap;

use super::{
    super::*,
    net::{log, want},
    three,
};
use crate::{
    ids::Incarnation,
    session::{FetchLine, Lane},
};

const MIB: u64 = 1024 * 1024;

fn order(number: FetchNumber, log: LogName, from: Place) -> FetchOrder {
    FetchOrder {
        number,
        lane: Lane::Backlog,
        log,
        from,
        line: FetchLine::Main,
        passing: false,
        hops: 0,
        allowance: 0,
        until: None,
        no_wait: false,
        towards: None,
    }
}

#[derive(Default)]
struct Through {
    asker: FetchNumber,
    allowance: u64,
    arrived: u64,
    passed: u64,
}

/// What the machine asks for, by its own fetches.
fn drain(machine: &mut Replication, passes: &mut BTreeMap<FetchNumber, Through>) {
    while let Some(output) = machine.poll_output() {
        match output {
            Output::StartFetch(_, order) => assert!(order.passing && order.allowance == 0),
            Output::Pass((_, ours), (_, asker)) => {
                passes.insert(ours, Through { asker, ..Through::default() });
            }
            Output::RaiseAllowance(_, ours, total) => passes.get_mut(&ours).unwrap().allowance = total,
            _ => {}
        }
    }
}

#[test]
fn however_much_is_asked_for_little_is_read_through_at_a_time_and_all_in_the_end() {
    const LOGS: u64 = 200;
    const EACH: u64 = 3 * MIB + 1000;
    let mut net = three(1);
    net.run(3);
    let (from, mut now) = (net.link_of(1, 2), net.now);
    let at = Place { incarnation: Incarnation { counter: 1, random: 1 }, offset: 0 };
    let machine = &mut net.nodes[1].machine;
    for number in 1..=LOGS {
        machine.handle_fetch_requested(now, from, order(number, log(&format!("t{number}"), "a", 1), at));
    }
    let mut passes = BTreeMap::new();
    drain(machine, &mut passes);
    assert_eq!(passes.len() as u64, LOGS);
    let promised =
        |passes: &BTreeMap<FetchNumber, Through>| passes.values().map(|p| p.allowance - p.passed).sum::<u64>();
    assert_eq!(promised(&passes), PASS_POOL_BYTES);
    // What is promised comes, and the asker, who is slow, takes it a quarter of a MiB at a time.
    let mut quiet = 0;
    while quiet < 20 {
        let mut moved = false;
        for ours in passes.keys().copied().collect::<Vec<_>>() {
            let pass = passes.get_mut(&ours).unwrap();
            let comes = pass.allowance.min(EACH).saturating_sub(pass.arrived);
            if comes > 0 {
                pass.arrived += comes;
                machine.handle_pass_arrived(now, from, pass.asker, comes);
            }
            let goes = (pass.arrived - pass.passed).min(MIB / 4);
            if goes > 0 {
                moved = true;
                pass.passed += goes;
                let next = Place { offset: pass.passed, ..at };
                machine.handle_served_room(now, from, pass.asker, next, pass.passed, 2 * MIB);
                drain(machine, &mut passes);
            }
            let here: u64 = passes.values().map(|p| p.arrived - p.passed).sum();
            assert!(here <= PASS_POOL_BYTES, "{here} bytes are here");
        }
        // Those that stand at their log's end keep nobody waiting for long.
        quiet = if moved { 0 } else { quiet + 1 };
        if !moved {
            now += Duration::from_secs(1);
            machine.handle_timeout(now, 1);
            drain(machine, &mut passes);
        }
    }
    let short: Vec<_> = passes.values().filter(|p| p.passed < EACH).map(|p| (p.asker, p.passed)).collect();
    assert!(short.is_empty(), "{short:?}");
    // Over: nothing is kept of them.
    for number in 1..=LOGS {
        machine.handle_served_over(now, from, number);
    }
    assert!(machine.pools.is_empty());
}

/// A relay whose commit log stopped reads the live ends of many logs through at once: none waits for another's turn.
#[test]
fn what_stands_at_its_logs_end_is_read_through_at_once_however_much_there_is() {
    const LOGS: u64 = 300;
    let mut net = three(1);
    net.want(2, want("w", "#", WantStart::Earliest));
    for number in 1..=LOGS {
        net.publish(0, &format!("t{number}"), 1, 1);
    }
    net.run(20);
    let (from, now) = (net.link_of(1, 2), net.now);
    let ends: Vec<Place> =
        (1..=LOGS).map(|number| net.info(0, &log(&format!("t{number}"), "a", 1)).unwrap().end).collect();
    let machine = &mut net.nodes[1].machine;
    machine.handle_stopped(now, "the disk failed");
    let mut passes = BTreeMap::new();
    for (number, end) in (1..=LOGS).zip(ends) {
        machine.handle_fetch_requested(now, from, order(1000 + number, log(&format!("t{number}"), "a", 1), end));
    }
    drain(machine, &mut passes);
    let asked = passes.values().filter(|p| p.asker > 1000);
    assert_eq!(asked.clone().count() as u64, LOGS);
    assert!(asked.clone().all(|p| p.allowance > 0));
    // What comes counts again, and is given more room in its turn.
    let (ours, asker) = passes.iter().map(|(ours, p)| (*ours, p.asker)).find(|(_, asker)| *asker > 1000).unwrap();
    machine.handle_pass_arrived(now, from, asker, 20_000);
    machine.handle_served_room(now, from, asker, Place { offset: 2, ..at_zero() }, 20_000, 2 * MIB);
    drain(machine, &mut passes);
    assert!(passes[&ours].allowance > 20_000);
}

/// A batch a second in each of many logs, for minutes: none ever stands because of another.
#[test]
fn logs_that_trickle_do_not_wait_for_each_other() {
    const LOGS: u64 = 200;
    const BATCH: u64 = 5000;
    let mut net = three(1);
    net.want(2, want("w", "#", WantStart::Earliest));
    for number in 1..=LOGS {
        net.publish(0, &format!("t{number}"), 1, 1);
    }
    net.run(20);
    let (from, mut now) = (net.link_of(1, 2), net.now);
    let name = |number: u64| log(&format!("t{number}"), "a", 1);
    let ends: Vec<Place> = (1..=LOGS).map(|number| net.info(0, &name(number)).unwrap().end).collect();
    let machine = &mut net.nodes[1].machine;
    machine.handle_stopped(now, "the disk failed");
    let mut passes = BTreeMap::new();
    for (number, end) in (1..=LOGS).zip(&ends) {
        machine.handle_fetch_requested(now, from, order(1000 + number, name(number), *end));
    }
    drain(machine, &mut passes);
    for second in 1..=180 {
        now += Duration::from_secs(1);
        machine.handle_timeout(now, 1);
        for (ours, asker) in
            passes.iter().map(|(ours, p)| (*ours, p.asker)).filter(|(_, a)| *a > 1000).collect::<Vec<_>>()
        {
            drain(machine, &mut passes);
            let pass = passes.get_mut(&ours).unwrap();
            assert!(pass.allowance > pass.arrived, "log {} stands in second {second}", asker - 1000);
            pass.arrived += BATCH;
            machine.handle_pass_arrived(now, from, asker, BATCH);
            let arrived = pass.arrived;
            let next = Place { offset: 1 + second, ..ends[(asker - 1001) as usize] };
            machine.handle_served_room(now, from, asker, next, arrived, 2 * MIB);
        }
    }
}

fn at_zero() -> Place {
    Place { incarnation: Incarnation { counter: 1, random: 1 }, offset: 0 }
}

/// A peer cannot make a relay's cache stand where the origin never was.
#[test]
fn a_cache_begins_only_where_the_origin_is_known_to_have_been() {
    let mut net = three(3);
    net.publish(0, "t", 1, 5);
    net.want(2, want("w", "other", WantStart::Earliest));
    net.run(3);
    let name = log("t", "a", 1);
    let end = net.info(0, &name).unwrap().end;
    let upstream = net.link_of(1, 0);
    let from = net.link_of(1, 2);
    let now = net.now;
    let machine = &mut net.nodes[1].machine;
    let want = link::WantPut { key: 77, origin: "a".to_owned(), pattern: "t".to_owned() };
    machine.handle_message(now, from, link::control::Kind::WantPut(want));
    net.run(1);
    let machine = &mut net.nodes[1].machine;
    let mut began = |number, from_place| {
        machine.handle_fetch_requested(now, from, order(number, name.clone(), from_place));
        let mut began = None;
        while let Some(output) = machine.poll_output() {
            match output {
                Output::Store(changes) => {
                    for change in changes {
                        if let Change::BeginCopy { at, .. } = change {
                            began = Some(at);
                        }
                    }
                }
                Output::StartFetch(link, _) => assert_eq!(link, upstream),
                _ => {}
            }
        }
        began
    };
    let invented = Incarnation { counter: u64::MAX, random: 3 };
    assert_eq!(began(101, Place { incarnation: invented, offset: 0 }), None);
    // Above what was announced: at what was announced.
    assert_eq!(began(102, Place { offset: 500, ..end }), Some(end));
}
