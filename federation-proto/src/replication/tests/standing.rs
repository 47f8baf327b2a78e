//! What is said of a copy, at exact times.

use super::{
    net::{Net, log, want},
    *,
};
use crate::session::vitals::Trouble;

/// Site a publishes, b wants all; two relays between.
fn chain() -> Net {
    let mut net = Net::new(5);
    for (name, kind) in
        [("a/edge", NodeKind::Edge), ("r/one", NodeKind::Relay), ("r/two", NodeKind::Relay), ("b/edge", NodeKind::Edge)]
    {
        net.add(name, kind);
    }
    for node in 0..3 {
        net.connect(node, node + 1);
    }
    net.want(3, want("w", "t", WantStart::Earliest));
    net.publish(0, "t", 1, 5);
    net.run(5);
    net
}

fn status_at(net: &Net, now: Duration) -> CopyStatus {
    net.nodes[3].machine.copy_status(now, &log("t", "a", 1)).unwrap()
}

fn status(net: &Net) -> CopyStatus {
    status_at(net, net.now)
}

#[test]
fn an_idle_copy_is_live_with_lag_0_for_as_long_as_marks_come() {
    let mut net = chain();
    for _ in 0..30 {
        let status = status(&net);
        assert_eq!(
            (status.state, status.lag_messages, status.lag),
            ("live", Some(0), Some(Duration::ZERO)),
            "{status:?}"
        );
        assert_eq!((status.reason.as_str(), status.lasting), ("", Duration::ZERO));
        net.run(1);
    }
    // Three intervals after the last mark it is not, at whatever moment somebody asks.
    let at = |ms| status_at(&net, net.now + Duration::from_millis(ms));
    let last_live = (0..4000).rev().find(|ms| at(*ms).state == "live").unwrap();
    assert!((2000..=3000).contains(&last_live), "{last_live}");
    assert!((0..last_live).all(|ms| at(ms).state == "live") && (last_live + 1..4000).all(|ms| at(ms).state == "down"));
    assert!(at(3500).reason.starts_with("nothing was heard of a for 3"), "{}", at(3500).reason);
}

#[test]
fn the_way_that_broke_is_named_wherever_it_is() {
    for (a, b, says) in [
        (0, 1, ": the link between r/one and a/edge is down"),
        (1, 2, ": the link between r/two and r/one is down"),
        (2, 3, ": the link to r/two is down"),
    ] {
        let mut net = chain();
        net.cut(a, b);
        net.run(1);
        let status = status(&net);
        assert_eq!(status.state, "down", "{status:?}");
        assert!(status.reason.ends_with(says), "{}", status.reason);
        assert!(status.lasting <= Duration::from_secs(1), "{status:?}");
        net.connect(a, b);
        net.run(4);
        assert_eq!(self::status(&net).state, "live", "{:?}", self::status(&net));
    }
}

#[test]
fn a_stalled_link_stalls_what_comes_over_it_at_once_and_is_named() {
    let mut net = chain();
    let link = net.link_of(3, 2);
    let now = net.now;
    let trouble = Trouble { since: now, what: "nothing was heard of the peer".into(), silent: true };
    net.nodes[3].machine.handle_link_condition(now, link, Some(trouble));
    let stalled = status_at(&net, now + Duration::from_millis(600));
    assert_eq!((stalled.state, stalled.lasting), ("stalled", Duration::from_millis(600)));
    assert_eq!(stalled.reason, "the link to r/two is stalled: nothing was heard of the peer, for 600 ms");
    // Who stores nothing stalls only what lacks something.
    let full = Trouble::storing(now, "the peer stores nothing that comes: its disk is nearly full".into());
    net.nodes[3].machine.handle_link_condition(now, link, Some(full));
    assert_eq!(status(&net).state, "live");
    net.nodes[3].machine.handle_link_condition(now, link, None);
    assert_eq!(status(&net).state, "live");
}

#[test]
fn a_copy_that_lacks_a_range_is_not_live_and_names_it() {
    let mut net = chain();
    net.publish(0, "t", 1, 5);
    net.run(3);
    // Nobody else is there to give it back.
    net.cut(2, 3);
    net.run(1);
    let name = log("t", "a", 1);
    let end = net.info(3, &name).unwrap().end;
    net.damage(3, &name, crate::ids::Place { offset: 0, ..end }, 5);
    net.run(1);
    assert_ne!(status(&net).state, "live");
    net.connect(2, 3);
    assert!(net.run_until(60, |net| status(net).state == "live"), "{:?}", status(&net));
    assert!(net.info(3, &name).unwrap().holes.is_empty(), "live before the range was back");
}

#[test]
fn what_nobody_wants_is_said_to_be_so_and_nothing_else() {
    let mut net = chain();
    let now = net.now;
    net.nodes[3].machine.handle_want_removed(now, "w");
    net.run(10);
    let status = status(&net);
    assert_eq!(status.state, "not-wanted", "{status:?}");
}

/// What b's machine states is changed on its way to a: another chain value.
#[test]
fn a_statement_whose_chain_value_does_not_fit_is_an_alarm_at_both_ends_and_counts_for_nothing() {
    let mut net = Net::new(6);
    net.add("a/edge", NodeKind::Edge);
    net.add("b/edge", NodeKind::Edge);
    net.connect(0, 1);
    net.want(1, want("w", "t", WantStart::Earliest));
    net.publish(0, "t", 1, 5);
    net.run(3);
    let (name, site): (_, Site) = (log("t", "a", 1), "b".parse().unwrap());
    let end = net.info(0, &name).unwrap().end;
    let last = Place { offset: end.offset - 1, ..end };
    let proven = |net: &Net| {
        let sites = net.nodes[0].machine.sites();
        let found = sites.into_iter().find(|s| s.site == site).unwrap().proven;
        found.into_iter().find(|(log, ..)| *log == name).map(|(_, at, differs)| (at, differs))
    };
    let at_b = |net: &Net| net.nodes[1].machine.copy_status(net.now, &name).unwrap();
    assert_eq!(proven(&net), Some((Some(end), false)));
    assert_eq!((at_b(&net).proven, at_b(&net).state), (Some(end), "live"));
    assert!(net.nodes[0].machine.site_holds(&site, &name, last));

    let held = |chain: Vec<u8>| link::HeldLog {
        log: Some((&name).into()),
        below: Some(end.into()),
        from: Some(Place { offset: 0, ..end }.into()),
        chain: chain.into(),
        ..Default::default()
    };
    let say = |net: &mut Net, sequence: u64, held: link::HeldLog| {
        let statement = super::super::carried::Kind::Held(link::Held { sequence, logs: vec![held] });
        let carried = net.nodes[1].machine.authored(&super::super::carried::To::Site("a".parse().unwrap()), statement);
        let (link, now) = (net.link_of(0, 1), net.now);
        net.nodes[0].machine.handle_message(now, link, link::control::Kind::Carried(carried));
        net.run(1);
    };
    say(&mut net, 1000, held(vec![7; 16]));
    assert_eq!(proven(&net), Some((Some(end), true)));
    assert!(!net.nodes[0].machine.site_holds(&site, &name, last), "what differs is named in no receipt");
    for node in [0, 1] {
        assert!(net.nodes[node].reports.iter().any(|r| r.name == "broken-chain"), "node {node} tells nobody");
    }
    let told = at_b(&net);
    assert_eq!(told.state, "stalled");
    assert!(told.reason.starts_with("a holds other bytes than this copy below"), "{}", told.reason);
    // One that says nothing of it changes nothing; the right one does.
    say(&mut net, 1001, held(Vec::new()));
    assert!(!net.nodes[0].machine.site_holds(&site, &name, last));
    let chain = net.info(0, &name).unwrap().incarnations.last().unwrap().chain_at_end.unwrap();
    say(&mut net, 1002, held(chain.0.to_vec()));
    assert!(net.nodes[0].machine.site_holds(&site, &name, last));
    assert_eq!(proven(&net), Some((Some(end), false)));
    assert_eq!(at_b(&net).state, "live");
}

/// A mark of a's says more than comes: told to b at an exact time, over the link that feeds it.
#[test]
fn a_mark_that_is_not_reached_is_due_for_three_intervals_and_then_named_with_who_owes_it() {
    let mut net = chain();
    let name = log("t", "a", 1);
    let end = net.info(0, &name).unwrap().end;
    let owed = Place { offset: end.offset + 7, ..end };
    let mark = link::Mark {
        sequence: 1_000_000,
        time_us: u64::MAX / 2,
        logs: vec![link::MarkedLog {
            log: Some((&name).into()),
            end: Some(owed.into()),
            bytes_total: 1_000,
            messages_total: owed.offset,
        }],
    };
    let (to, kind) =
        (super::super::carried::To::Wanting("a".parse().unwrap()), super::super::carried::Kind::Mark(mark.clone()));
    let carried = net.nodes[0].machine.authored(&to, kind);
    let (heard, from) = (net.now, net.link_of(3, 2));
    net.nodes[3].machine.handle_message(heard, from, link::control::Kind::Carried(carried));
    let at = |net: &Net, ms| status_at(net, heard + Duration::from_millis(ms));
    assert_eq!((at(&net, 0).state, at(&net, 0).lag_messages), ("live", Some(7)), "what is young is not due yet");
    // Later marks name nothing new: only what is due stands still.
    for (after, state) in [(1_000, "live"), (2_000, "live"), (3_000, "live"), (3_001, "stalled"), (4_500, "stalled")] {
        let next = link::Mark { sequence: 1_000_000 + after, logs: Vec::new(), ..mark.clone() };
        let carried = net.nodes[0].machine.authored(&to, super::super::carried::Kind::Mark(next));
        let now = heard + Duration::from_millis(after);
        net.nodes[3].machine.handle_message(now, from, link::control::Kind::Carried(carried));
        let said = at(&net, after);
        assert_eq!(said.state, state, "after {after} ms: {said:?}");
        if state == "stalled" {
            assert!(said.reason.starts_with("it is due from r/two, but nothing has come for "), "{}", said.reason);
            assert_eq!(said.lasting, Duration::from_millis(after));
        }
    }
    // A neighbour that says that it stores nothing is named at once.
    let full = Trouble::storing(heard, "the peer stores nothing that comes: its disk is nearly full".into());
    let now = net.now;
    net.nodes[3].machine.handle_link_condition(now, from, Some(full));
    let said = at(&net, 500);
    assert_eq!(said.state, "stalled", "{said:?}");
    assert!(said.reason.contains("on the link to r/two, the peer stores nothing"), "{}", said.reason);
}

/// Marks of a's that name nothing new, told to b at an exact time.
fn mark(net: &mut Net, number: u64, now: Duration) {
    use super::super::carried::{Kind, To};
    let mark = link::Mark { sequence: 1_000_000 + number, time_us: u64::MAX / 2, logs: Vec::new() };
    let carried = net.nodes[0].machine.authored(&To::Wanting("a".parse().unwrap()), Kind::Mark(mark));
    let from = net.link_of(3, 2);
    net.nodes[3].machine.handle_message(now, from, link::control::Kind::Carried(carried));
}

/// Neither does a copy's growing end fill a hole below it, nor does a hole that fills make the end grow.
#[test]
fn whether_a_hole_is_filled_is_judged_by_the_hole() {
    let mut net = chain();
    net.publish(0, "t", 20, 20);
    net.run(3);
    let (name, start) = (log("t", "a", 1), net.now);
    let whole = net.info(3, &name).unwrap();
    let at = |ms| start + Duration::from_millis(ms);
    let tell = |net: &mut Net, ms, from: u64, grown: u64| {
        let mut info = whole.clone();
        let newest = info.incarnations.last_mut().unwrap();
        newest.end += grown;
        info.end.offset += grown;
        info.holes =
            vec![Hole { incarnation: newest.incarnation, from, to: 5, kind: crate::copies::HoleKind::Pending }];
        net.nodes[3].machine.handle_log(at(ms), name.clone(), Some(info.clone()), Some(info));
    };
    let state = |net: &Net, ms| status_at(net, at(ms)).state;
    mark(&mut net, 0, at(0));
    tell(&mut net, 0, 0, 0);
    assert_eq!(state(&net, 2_900), "catching-up", "{:?}", status_at(&net, at(2_900)));
    // It fills, and the end stands.
    for second in 1..=4 {
        mark(&mut net, second, at(second * 1000));
        tell(&mut net, second * 1000, second, 0);
    }
    assert_eq!((state(&net, 6_900), state(&net, 7_000)), ("catching-up", "catching-up"));
    // It stands, and the end grows.
    for second in 5..=8 {
        mark(&mut net, second, at(second * 1000));
        tell(&mut net, second * 1000, 4, second);
    }
    let stalled = status_at(&net, at(8_100));
    assert_eq!(stalled.state, "stalled", "{stalled:?}");
    assert!(stalled.reason.starts_with("1 messages are missing here from "), "{}", stalled.reason);
}

#[test]
fn a_site_that_holds_other_bytes_is_kept_for_and_named_also_after_a_restart() {
    let mut net = Net::new(5);
    net.add("a/edge", NodeKind::Edge);
    net.add("b/edge", NodeKind::Edge);
    net.nodes[0].config.replicate = vec![("#".parse().unwrap(), None)];
    let config = net.nodes[0].config.replicate.clone();
    net.nodes[0].machine.handle_replicate(net.now, config);
    net.connect(0, 1);
    net.want(1, want("w", "t", WantStart::Earliest));
    net.publish(0, "t", 1, 5);
    net.run(5);
    let name = log("t", "a", 1);
    let needs = |net: &Net| -> Vec<(String, u64)> {
        let all = net.nodes[0].machine.still_needed(None, 10);
        let of_log = all.into_iter().find(|(log, _)| *log == name);
        of_log.into_iter().flat_map(|(_, needs)| needs).map(|need| (need.site.to_string(), need.from.offset)).collect()
    };
    let kept_from = |offset: u64| vec![("b".to_owned(), offset)];
    assert_eq!(needs(&net), kept_from(5));
    // From here on what b holds is not what a holds, as far as the chain values tell.
    net.publish(0, "t", 1, 5);
    let end = net.info(0, &name).unwrap().end;
    net.nodes[0].machine.held.boundary(&name, end, Some(crate::envelope::Chain([9; 16])));
    net.run(5);
    let differs =
        |net: &Net| net.nodes[0].reports.iter().any(|r| r.name == "broken-chain" && r.subject.starts_with("b "));
    assert!(differs(&net), "{:?}", net.nodes[0].reports);
    assert_eq!(needs(&net), kept_from(5), "its word was taken for what does not fit");
    let disk = net.nodes[0].disk.clone();
    net.restart(0, disk);
    assert_eq!(needs(&net), kept_from(5), "after a restart");
    assert!(differs(&net), "nobody is told after a restart");
}
