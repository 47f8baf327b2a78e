//! What the machine believes of a place is what a read of it answers.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::{
    copies::{Facts, HoleKind, Located, LogCopy, OnLine, TakenAsGiven},
    envelope::Chain,
};

fn place(counter: u64, offset: u64) -> Place {
    Place { incarnation: Incarnation { counter, random: 0 }, offset }
}

/// A copy that jumped, forked, lost ranges and was trimmed.
fn copy(rng: &mut SmallRng) -> LogCopy {
    let mut copy = LogCopy::begin(place(1, 0), Some(Chain::default()));
    for counter in 1..rng.random_range(2..8) {
        let info = copy.info();
        if rng.random_range(0..4) == 0 {
            let end = copy.end().offset;
            let from = rng.random_range(info.incarnations.last().unwrap().begin..=end);
            let to = end + rng.random_range(0..4);
            let hole = Hole { incarnation: place(counter, 0).incarnation, from, to, kind: HoleKind::Lost };
            let _ = copy.hole(hole);
        }
        for _ in 0..rng.random_range(0..5) {
            let held = copy.range_of(place(counter, 0).incarnation);
            let before = &info.incarnations[rng.random_range(0..info.incarnations.len())];
            let previous = Place {
                incarnation: before.incarnation,
                offset: if rng.random_range(0..3) == 0 {
                    rng.random_range(before.begin..=before.end)
                } else {
                    before.end
                },
            };
            let begin = held.map_or(previous.offset, |(_, end)| end);
            let facts = Facts {
                begin: place(counter, begin),
                end: begin + rng.random_range(1..4),
                first_of_incarnation: held.is_none() || begin == 0,
                previous: Some(previous).filter(|_| held.is_none()),
                chain_before: copy.known_chain(place(counter, begin)).unwrap_or_default(),
                chain_after: Chain([1; 16]),
                origin_time_us: 0,
                bytes: 1,
            };
            let _ = copy.append(&facts, &TakenAsGiven);
        }
        if let Some((begin, end)) = copy.range_of(place(counter, 0).incarnation)
            && end > begin
            && rng.random_range(0..3) == 0
        {
            let from = rng.random_range(begin..end);
            let to = rng.random_range(from..end) + 1;
            let hole = Hole { incarnation: place(counter, 0).incarnation, from, to, kind: HoleKind::Pending };
            let _ = copy.damage(hole, None, None, 0);
        }
    }
    if rng.random_range(0..3) == 0 {
        let at = copy.info().incarnations[0].incarnation;
        let (begin, end) = copy.range_of(at).unwrap();
        copy.trim(Place { incarnation: at, offset: rng.random_range(begin..=end) }, &TakenAsGiven).unwrap();
    }
    copy
}

#[test]
fn what_is_believed_of_a_place_is_what_a_read_answers() {
    let mut met = [0; 4];
    for seed in 0..3000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let copy = copy(&mut rng);
        let info = copy.info();
        for counter in 0..9 {
            for offset in 0..40 {
                let at = place(counter, offset);
                for (line, reads) in [(FetchLine::Main, OnLine::Main), (FetchLine::Incarnation, OnLine::Incarnation)] {
                    let (believed, kind) = match locate(&info, at, line) {
                        Where::Held => ("held", 0),
                        Where::AtEnd => ("at end", 1),
                        Where::Hole(_) => ("hole", 2),
                        Where::Outside => ("outside", 3),
                    };
                    met[kind] += 1;
                    let read = match copy.locate(at, reads) {
                        Located::Held { .. } => "held",
                        Located::AtEnd(_) => "at end",
                        Located::Hole { .. } => "hole",
                        Located::Below(_) | Located::Above(_) | Located::UnknownIncarnation => "outside",
                    };
                    assert_eq!(believed, read, "seed {seed}: {at} on {line:?} of {info:#?}");
                }
            }
        }
    }
    assert!(met.iter().all(|n| *n > 1000), "{met:?}");
}

/// A log whose origin restarted so often, a message each time.
fn restarted(times: u64) -> LogCopy {
    let mut copy = LogCopy::begin(place(1, 0), Some(Chain::default()));
    for n in 0..times {
        let facts = Facts {
            begin: place(n + 1, n),
            end: n + 1,
            first_of_incarnation: true,
            previous: (n > 0).then(|| place(n, n)),
            chain_before: if n == 0 { Chain::default() } else { Chain([1; 16]) },
            chain_after: Chain([1; 16]),
            origin_time_us: 0,
            bytes: 1,
        };
        copy.append(&facts, &TakenAsGiven).unwrap();
    }
    copy
}

#[test]
fn as_many_incarnations_as_there_may_be_make_one_line() {
    let max = crate::copies::INCARNATIONS_MAX as u64;
    let copy = restarted(max);
    let info = copy.info();
    assert_eq!((info.fork_tips.len(), info.begin, info.end), (0, place(1, 0), place(max, max)));
    let view = View::of(&info);
    assert_eq!(view.main_line().len() as u64, max);
    // A copy that is far behind goes on at its end, and an empty one at the first.
    let behind = edges_of(&restarted(2).info());
    assert_eq!(view.continue_main(&behind), Some(place(2, 2)));
    assert_eq!(view.continue_main(&[]), Some(place(1, 0)));
    assert!(view.missing_beside(&behind).is_empty());
    assert_eq!(view.missing_anywhere(&behind), [place(3, 2)]);
    assert!(covers(&info, &[place(max, max)], &[], place(1, 0)));
    assert_eq!(locate(&info, place(1, 1), FetchLine::Main), Where::Held);
    // One more is refused, and says what to do.
    let more = Facts {
        begin: place(max + 1, max),
        end: max + 1,
        first_of_incarnation: true,
        previous: Some(place(max, max)),
        chain_before: Chain([1; 16]),
        chain_after: Chain([1; 16]),
        origin_time_us: 0,
        bytes: 1,
    };
    let refused = copy.clone().append(&more, &TakenAsGiven).unwrap_err();
    assert!(refused.to_string().contains("trim the log"), "{refused}");
    // Forks are found among them, the last one's own end aside.
    let mut forked = restarted(20);
    let facts = Facts { begin: place(7, 7), end: 9, first_of_incarnation: false, previous: None, ..more };
    forked.append(&facts, &TakenAsGiven).unwrap();
    assert_eq!(forked.info().fork_tips, [place(7, 9)]);
    assert_eq!(View::of(&forked.info()).missing_beside(&edges_of(&restarted(20).info())), [place(7, 7)]);
}

/// Where a holder jumped, nobody else comes into what is above: that names another predecessor, which the holder does not have.
#[test]
fn a_jump_of_its_holder_is_no_way_for_others() {
    let edge = |counter, previous, jumped, begin, end| Edge {
        incarnation: place(counter, 0).incarnation,
        previous,
        jumped,
        begin,
        end,
    };
    let jumped = edge(3, Some(place(2, 3)), true, 3, 10);
    let view = View {
        begin: place(2, 0),
        tips: vec![place(3, 10)],
        edges: vec![edge(2, None, false, 0, 6), jumped],
        facts: Bytes::new(),
    };
    assert_eq!(view.main_line(), [(jumped, None)]);
    assert_eq!(view.line_begin(), place(3, 3));
    for end in [2, 3, 6] {
        let own = [edge(2, None, false, 0, end)];
        assert_eq!(view.continue_main(&own), None, "it joins from {end}");
        // What stands below is fetched as what lies beside.
        let missing = if end < 6 { vec![place(2, end)] } else { Vec::new() };
        assert_eq!((view.missing_beside(&own), view.missing_anywhere(&own)), (missing.clone(), missing));
    }
    // Whoever began above it does not want what is below; whoever holds nothing yet and is offered it takes it.
    let above = [edge(3, None, true, 5, 7)];
    assert_eq!(view.missing_beside(&above), []);
    assert_eq!(view.missing_anywhere(&above), [place(2, 0), place(3, 7)]);
    // Whoever is there already goes on.
    let there = [edge(2, None, false, 0, 6), edge(3, None, true, 5, 7)];
    assert_eq!(view.continue_main(&there), Some(place(3, 7)));
    // Where nobody jumped, it is a way.
    let seam = View { edges: vec![edge(2, None, false, 0, 6), Edge { jumped: false, ..jumped }], ..view };
    assert_eq!(seam.continue_main(&[edge(2, None, false, 0, 6)]), Some(place(3, 3)));
    assert_eq!(seam.line_begin(), place(2, 0));
}
