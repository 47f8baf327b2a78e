//! What a statement is taken to say is what its site holds.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::{super::questions::jump, *};
use crate::{
    copies::{Facts, HoleKind, LogCopy, TakenAsGiven},
    ids::Incarnation,
};

fn place(counter: u64, offset: u64) -> Place {
    Place { incarnation: Incarnation { counter, random: 0 }, offset }
}

fn message(at: Place, previous: Option<Place>, before: Chain, number: u8) -> Facts {
    Facts {
        begin: at,
        end: at.offset + 1,
        first_of_incarnation: previous.is_some() || at == place(1, 0),
        previous,
        chain_before: before,
        chain_after: Chain([number; 16]),
        origin_time_us: 0,
        bytes: 1,
    }
}

/// A log whose origin was restored now and then, with all its messages, one in each batch.
pub(in crate::replication) fn origin(rng: &mut SmallRng) -> (LogCopy, Vec<Facts>) {
    let mut log = LogCopy::begin(place(1, 0), Some(Chain::default()));
    let mut messages: Vec<Facts> = Vec::new();
    let mut chains = BTreeMap::from([(place(1, 0), Chain::default())]);
    let mut end = place(1, 0);
    for counter in 1..rng.random_range(2..6) {
        let mut previous = None;
        if counter > 1 {
            // It goes on from its end, or was restored to what it was in the incarnation before.
            let low = messages.iter().rev().take_while(|m| m.begin.incarnation == end.incarnation).last();
            let back = low.map_or(end.offset, |m| m.begin.offset);
            let offset = if rng.random_bool(0.5) { end.offset } else { rng.random_range(back..=end.offset) };
            previous = Some(Place { offset, ..end });
        }
        for _ in 0..rng.random_range(1..5) {
            let at = previous.map_or(end, |p| place(counter, p.offset));
            let before = chains[&previous.unwrap_or(end)];
            let number = u8::try_from(messages.len() + 1).unwrap();
            let next = message(at, previous.take(), before, number);
            if log.append(&next, &TakenAsGiven).is_err() {
                return (log, messages);
            }
            end = Place { offset: next.end, ..at };
            chains.insert(end, next.chain_after);
            chains.entry(at).or_insert(before);
            messages.push(next);
        }
    }
    (log, messages)
}

/// What a site got of it: in any order, with jumps over what it could not have, and trimmed.
pub(in crate::replication) fn site(rng: &mut SmallRng, messages: &[Facts]) -> (LogCopy, BTreeSet<Place>) {
    let first = &messages[rng.random_range(0..messages.len().min(4))];
    let mut copy = LogCopy::begin(first.begin, Some(first.chain_before));
    let mut has = BTreeSet::new();
    for _ in 0..rng.random_range(1..5 * messages.len()) {
        let next = &messages[rng.random_range(0..messages.len())];
        match rng.random_range(0..12) {
            0 => {
                let hole = jump(&copy.info(), next.begin, HoleKind::Lost);
                let _ = hole.map(|hole| copy.hole(hole));
            }
            1 if !has.is_empty() && rng.random_bool(0.2) => {
                let to = *has.iter().nth(rng.random_range(0..has.len())).unwrap();
                if copy.trim(to, &TakenAsGiven).is_ok() {
                    let begin = copy.info();
                    has.retain(|p: &Place| {
                        let held = begin.incarnations.iter().find(|i| i.incarnation == p.incarnation);
                        held.is_some_and(|i| i.begin <= p.offset)
                    });
                }
            }
            _ => {
                if copy.append(next, &TakenAsGiven).is_ok() {
                    has.insert(next.begin);
                }
            }
        }
    }
    (copy, has)
}

/// What a site that holds this states.
pub(in crate::replication) fn stated(held: &LogInfo) -> Stated {
    Stated {
        start: Start { time_us: 1, random: 1 },
        sequence: 1,
        from: held.begin,
        tips: [held.end].into_iter().chain(held.fork_tips.iter().copied()).collect(),
        holes: held.holes.clone(),
        jumps: held.jumps(),
        compared: false,
        proven: None,
        differs: None,
        refused: Refused::default(),
        dirty: false,
    }
}

/// A site was proven equal in the origin's newest incarnation, and comes back with what it had of the one before.
#[test]
fn what_was_proven_counts_only_while_it_is_held() {
    let mut rng = SmallRng::seed_from_u64(1);
    let (log, info) = loop {
        let (log, _) = origin(&mut rng);
        let info = log.info();
        let newest = info.incarnations.last().unwrap();
        if info.incarnations.len() > 1 && newest.previous.is_some_and(|p| p.offset < info.end.offset && p.offset > 0) {
            break (log, info);
        }
    };
    let mut before = stated(&log.info());
    before.proven = Some(info.end);
    let previous = info.incarnations.last().unwrap().previous.unwrap();
    let proven = |tip: Place, found| {
        let still = |place| reaches(&info, &[tip], &[], place);
        proven_by(found, tip, Some(&before), still).0
    };
    assert_eq!(proven(info.end, Found::Unknown), Some(info.end));
    assert_eq!(proven(previous, Found::Unknown), None, "it holds {previous} and was proven up to {}", info.end);
    assert_eq!(proven(previous, Found::Equal), Some(previous));
    let lower = Place { offset: info.end.offset - 1, ..info.end };
    assert_eq!(proven(lower, Found::Unknown), None);
    // What was proven further down is held on.
    before.proven = Some(previous);
    assert_eq!(
        proven_by(Found::Unknown, info.end, Some(&before), |p| reaches(&info, &[info.end], &[], p)).0,
        Some(previous)
    );
}

#[test]
fn no_statement_covers_what_its_site_does_not_hold() {
    let (mut covered, mut missed, mut jumped) = (0, 0, 0);
    for seed in 0..20_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (log, messages) = origin(&mut rng);
        let (copy, has) = site(&mut rng, &messages);
        // The origin may have lost parts itself, and jumped over what it did not get back.
        let whole = rng.random_bool(0.5);
        let own = if whole { log } else { site(&mut rng, &messages).0 };
        let held = copy.info();
        let stated = stated(&held);
        jumped += stated.jumps.len();
        for message in &messages {
            let covers = stated.covers(&own.info(), message.begin);
            assert!(
                !covers || has.contains(&message.begin),
                "seed {seed}: {} is not held: {held:#?} of {:#?}",
                message.begin,
                own.info()
            );
            covered += usize::from(covers);
            missed += usize::from(whole && !covers && has.contains(&message.begin));
        }
    }
    assert!(covered > 20_000 && jumped > 2_000, "{covered} covered, {jumped} jumps");
    // Told too little, a message only waits for longer: that must be rare.
    assert!(missed * 10 < covered, "{missed} of {covered} held and not covered");
}
