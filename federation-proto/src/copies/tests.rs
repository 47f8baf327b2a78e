//! Properties of the rules, over random histories: origins that restart, go back to an old copy of
//! their disk or lose it; holders that are fed anything in any order. Each failure names its seed;
//! `SEAWAY_SEED=n cargo test -p seaway-federation-proto copies` runs that one alone.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use twox_hash::XxHash3_128;

use super::*;

fn seeds(count: u64) -> Box<dyn Iterator<Item = u64>> {
    match std::env::var("SEAWAY_SEED") {
        Ok(seed) => Box::new(std::iter::once(seed.parse().unwrap())),
        Err(_) => Box::new(0..count),
    }
}

fn chain_after(before: Chain, id: u64) -> Chain {
    Chain(XxHash3_128::oneshot(&[before.0.as_slice(), &id.to_le_bytes()].concat()).to_le_bytes())
}

fn place(incarnation: Incarnation, offset: Offset) -> Place {
    Place { incarnation, offset }
}

fn inc(counter: u64, random: u64) -> Incarnation {
    Incarnation { counter, random }
}

/// All batches that ever were: the truth.
type Universe = BTreeMap<Place, Facts>;

/// An origin's disk: where its log ends, if there is one.
#[derive(Clone, Copy, Default)]
struct Disk {
    end: Option<(Place, Chain)>,
}

/// Makes a true history of `steps` batches and mishaps.
fn history(rng: &mut StdRng, steps: usize) -> Universe {
    let mut universe = Universe::new();
    let (mut disk, mut old_copies, mut open) = (Disk::default(), vec![Disk::default()], false);
    for step in 0..steps {
        match rng.random_range(0..20) {
            0 => open = false,
            1 => old_copies.push(disk),
            2 => {
                disk = old_copies[rng.random_range(0..old_copies.len())];
                open = false;
            }
            _ => {
                let (end, chain) = disk.end.unwrap_or((place(inc(0, 0), 0), Chain::default()));
                let begin = if open { end } else { place(inc(end.incarnation.counter + 1, rng.random()), end.offset) };
                let facts = Facts {
                    begin,
                    end: begin.offset + rng.random_range(1..5),
                    first_of_incarnation: !open,
                    previous: disk.end.map(|(end, _)| end).filter(|_| !open),
                    chain_before: chain,
                    chain_after: chain_after(chain, rng.random()),
                    origin_time_us: step as u64,
                    bytes: rng.random_range(100..1000),
                };
                open = true;
                disk.end = Some((place(begin.incarnation, facts.end), facts.chain_after));
                assert!(universe.insert(begin, facts).is_none());
            }
        }
    }
    universe
}

/// What a holder keeps beside the rules: the batches themselves.
#[derive(Default)]
struct Kept(Universe);

impl Boundaries for Kept {
    fn chain_at(&self, at: Place) -> Boundary {
        match self.0.get(&at) {
            Some(facts) => Boundary::Chain(facts.chain_before),
            None => self.floor(at).map_or(Boundary::Unknown, |_| Boundary::Inside),
        }
    }
    fn floor(&self, at: Place) -> Option<Offset> {
        let (begin, facts) = self.0.range(..=at).next_back()?;
        (begin.incarnation == at.incarnation && at.offset < facts.end).then_some(begin.offset)
    }
    fn bytes_in(&self, incarnation: Incarnation, from: Offset, to: Offset) -> u64 {
        self.0.range(place(incarnation, from)..place(incarnation, to)).map(|(_, facts)| facts.bytes).sum()
    }
}

#[derive(Default)]
struct Holder {
    copy: Option<LogCopy>,
    kept: Kept,
    /// Everything that was ever accepted.
    accepted: Universe,
}

impl Holder {
    fn feed(&mut self, facts: &Facts) -> Result<(), AppendRefusal> {
        let accepted = match &mut self.copy {
            Some(copy) => copy.append(facts, &self.kept)?,
            None => {
                self.copy = Some(LogCopy::from_first(facts)?);
                Accepted::default()
            }
        };
        for hole in accepted.dropped {
            let range = place(hole.incarnation, hole.from)..place(hole.incarnation, hole.to);
            self.kept.0.retain(|at, _| !range.contains(at));
            self.accepted.retain(|at, _| !range.contains(at));
        }
        assert!(self.accepted.insert(facts.begin, *facts).is_none(), "{:?} was accepted twice", facts.begin);
        self.kept.0.insert(facts.begin, *facts);
        Ok(())
    }

    /// Whether bookkeeping and what is kept agree, and a reader meets all of the main line in order.
    fn check(&self) {
        let Some(copy) = &self.copy else { return };
        let messages: u64 = self.kept.0.values().map(|f| f.end - f.begin.offset).sum();
        assert_eq!(copy.messages(), messages);
        assert_eq!(copy.bytes(), self.kept.0.values().map(|f| f.bytes).sum::<u64>());
        let mut bytes = Vec::new();
        copy.encode(&mut bytes);
        assert_eq!(LogCopy::decode(&bytes).as_ref(), Ok(copy));
        let info = copy.info();
        let ranges: u64 = info.incarnations.iter().map(|i| i.end - i.begin).sum();
        assert_eq!(ranges - info.holes.iter().map(|h| h.to - h.from).sum::<u64>(), messages);
        let (mut at, mut chain) = (info.begin, None);
        loop {
            match copy.locate(at, OnLine::Main) {
                Located::Held { at: found, .. } => {
                    let facts = self.kept.0.get(&found).expect("a held place is a kept batch's begin");
                    assert!(chain.is_none_or(|chain| chain == facts.chain_before), "the chain breaks at {found}");
                    chain = Some(facts.chain_after);
                    at = place(found.incarnation, facts.end);
                }
                Located::Hole { at: found, hole } => {
                    assert!(found.offset >= hole.from && found.offset < hole.to);
                    at = place(hole.incarnation, hole.to);
                    chain = None;
                }
                Located::AtEnd(end) => {
                    assert_eq!(end, info.end);
                    break;
                }
                other => panic!("the main line stops at {at}: {other:?}"),
            }
        }
    }
}

/// Feeds all batches in random order again and again until nothing more is accepted.
fn feed_all(holder: &mut Holder, universe: &Universe, rng: &mut StdRng) {
    let mut all: Vec<&Facts> = universe.values().collect();
    loop {
        all.shuffle(rng);
        if all.iter().filter(|facts| holder.feed(facts).is_ok()).count() == 0 {
            return;
        }
    }
}

#[test]
fn holders_fed_in_any_order_end_equal_and_whole() {
    for seed in seeds(400) {
        let mut rng = StdRng::seed_from_u64(seed);
        println!("seed {seed}");
        let steps = rng.random_range(1..80);
        let universe = history(&mut rng, steps);
        let mut holders = [Holder::default(), Holder::default()];
        for holder in &mut holders {
            feed_all(holder, &universe, &mut rng);
            holder.check();
            assert_eq!(holder.accepted, universe);
        }
        assert_eq!(holders[0].copy, holders[1].copy);
    }
}

#[test]
fn a_batch_of_another_history_is_never_accepted() {
    for seed in seeds(300) {
        let mut rng = StdRng::seed_from_u64(seed);
        println!("seed {seed}");
        let universe = history(&mut rng, 40);
        let mut holder = Holder::default();
        for facts in universe.values().cycle().take(universe.len() * 4) {
            let forged = Facts { chain_before: Chain(rng.random()), chain_after: Chain(rng.random()), ..*facts };
            let before = holder.copy.clone();
            holder.feed(&forged).unwrap_err();
            assert_eq!(holder.copy, before, "a refused batch changed the copy");
            let _ = holder.feed(facts);
        }
        assert_eq!(holder.accepted, universe);
    }
}

#[test]
fn nothing_comes_back_over_trims_holes_and_begun_copies() {
    for seed in seeds(600) {
        let mut rng = StdRng::seed_from_u64(seed);
        println!("seed {seed}");
        let universe = history(&mut rng, 60);
        let all: Vec<Facts> = universe.values().copied().collect();
        if all.is_empty() {
            continue;
        }
        let mut holder = Holder::default();
        if rng.random_bool(0.5) {
            let first = all[rng.random_range(0..all.len())];
            holder.copy = Some(LogCopy::begin(first.begin, Some(first.chain_before).filter(|_| rng.random())));
        }
        for _ in 0..400 {
            let facts = all[rng.random_range(0..all.len())];
            match rng.random_range(0..40) {
                0 => trim(&mut holder, &mut rng),
                1 => hole(&mut holder, &universe, &mut rng),
                _ => _ = holder.feed(&facts),
            }
            holder.check();
        }
    }
}

fn trim(holder: &mut Holder, rng: &mut StdRng) {
    let Some(copy) = &mut holder.copy else { return };
    let info = copy.info();
    let chosen = info.incarnations[rng.random_range(0..info.incarnations.len())].clone();
    let to = place(chosen.incarnation, rng.random_range(chosen.begin..=chosen.end));
    let trimmed = copy.trim(to, &holder.kept).unwrap();
    assert!(trimmed.begin <= to);
    let before = holder.kept.bytes_all();
    holder.kept.0.retain(|at, _| *at >= trimmed.begin);
    assert_eq!(before - holder.kept.bytes_all(), trimmed.bytes);
}

impl Kept {
    fn bytes_all(&self) -> u64 {
        self.0.values().map(|facts| facts.bytes).sum()
    }
}

fn hole(holder: &mut Holder, universe: &Universe, rng: &mut StdRng) {
    let Some(copy) = &mut holder.copy else { return };
    let end = copy.end();
    let above: Vec<Offset> = universe
        .values()
        .filter(|f| f.begin.incarnation == end.incarnation && f.end > end.offset)
        .map(|f| f.end)
        .collect();
    if let Some(to) = above.get(rng.random_range(0..above.len().max(1))) {
        let hole = Hole { incarnation: end.incarnation, from: end.offset, to: *to, kind: HoleKind::Pending };
        copy.hole(hole).unwrap();
    }
}

#[test]
fn holes_of_a_true_history_close_without_a_trace() {
    for seed in seeds(400) {
        let mut rng = StdRng::seed_from_u64(seed);
        println!("seed {seed}");
        let universe = history(&mut rng, 60);
        let all: Vec<Facts> = universe.values().copied().collect();
        let (mut holey, mut plain) = (Holder::default(), Holder::default());
        for _ in 0..200 {
            match all.get(rng.random_range(0..all.len().max(1))) {
                Some(_) if rng.random_bool(0.1) => hole(&mut holey, &universe, &mut rng),
                Some(facts) => _ = holey.feed(facts),
                None => {}
            }
            holey.check();
        }
        feed_all(&mut holey, &universe, &mut rng);
        feed_all(&mut plain, &universe, &mut rng);
        assert_eq!(holey.copy, plain.copy);
    }
}

/// Batches of two messages each, one after the other, in one incarnation.
fn line(incarnation: Incarnation, previous: Option<(Place, Chain)>, count: u64) -> Vec<Facts> {
    let (mut offset, mut chain) = previous.map_or((0, Chain::default()), |(p, chain)| (p.offset, chain));
    (0..count)
        .map(|n| {
            let facts = Facts {
                begin: place(incarnation, offset),
                end: offset + 2,
                first_of_incarnation: n == 0,
                previous: previous.map(|(p, _)| p).filter(|_| n == 0),
                chain_before: chain,
                chain_after: chain_after(chain, n ^ incarnation.random),
                origin_time_us: n,
                bytes: 100,
            };
            (offset, chain) = (facts.end, facts.chain_after);
            facts
        })
        .collect()
}

fn holding(batches: &[Facts]) -> Holder {
    let mut holder = Holder::default();
    batches.iter().for_each(|facts| holder.feed(facts).unwrap());
    holder
}

#[test]
fn each_refusal_says_what_is_wrong() {
    let one = line(inc(1, 7), None, 5);
    let mut holder = holding(&one[..2]);
    assert_eq!(holder.feed(&one[0]), Err(AppendRefusal::Repeat(one[0].begin)));
    let gap = AppendRefusal::Gap { found: one[3].begin, expected: one[2].begin };
    assert_eq!(holder.feed(&one[3]), Err(gap));
    let broken = Facts { chain_before: Chain([1; 16]), ..one[2] };
    assert_eq!(holder.feed(&broken), Err(AppendRefusal::BrokenChain { at: one[2].begin }));
    let wide = Facts { begin: one[1].begin, end: 6, ..one[1] };
    assert_eq!(holder.feed(&wide), Err(AppendRefusal::Overlap(one[1].begin)));
    let inside = line(inc(2, 1), Some((place(inc(1, 7), 3), one[1].chain_before)), 1);
    assert!(matches!(holder.feed(&inside[0]), Err(AppendRefusal::NotFollowing { .. })));
    let other = line(inc(2, 1), Some((place(inc(1, 7), 2), Chain([9; 16]))), 1);
    assert!(matches!(holder.feed(&other[0]), Err(AppendRefusal::BrokenChain { .. })));
    let back = line(inc(1, 9), Some((place(inc(1, 7), 4), one[1].chain_after)), 1);
    assert!(matches!(holder.feed(&back[0]), Err(AppendRefusal::NotFollowing { .. })));
    let ahead = line(inc(2, 1), Some((place(inc(1, 7), 8), one[3].chain_after)), 1);
    let gap = AppendRefusal::Gap { found: ahead[0].begin, expected: one[2].begin };
    assert_eq!(holder.feed(&ahead[0]), Err(gap));
    assert!(Holder::default().feed(&one[1]).is_err(), "a copy begins with the very first batch only");
}

#[test]
fn a_fork_is_kept_and_shown_and_read_apart() {
    let one = line(inc(1, 7), None, 5);
    let two = line(inc(2, 1), Some((place(inc(1, 7), 4), one[1].chain_after)), 3);
    let mut holder = holding(&one[..4]);
    holder.feed(&two[0]).unwrap();
    holder.feed(&two[1]).unwrap();
    holder.feed(&one[4]).unwrap(); // the fork grows
    let copy = holder.copy.as_ref().unwrap();
    assert_eq!(copy.fork_tips(), [place(inc(1, 7), 10)]);
    assert_eq!(copy.end(), place(inc(2, 1), 8));
    let held = Located::Held { at: place(inc(1, 7), 0), until: 4 };
    assert_eq!(copy.locate(place(inc(1, 7), 0), OnLine::Main), held);
    let next = Located::Held { at: place(inc(2, 1), 4), until: 8 };
    assert_eq!(copy.locate(place(inc(1, 7), 4), OnLine::Main), next);
    let fork = Located::Held { at: place(inc(1, 7), 4), until: 10 };
    assert_eq!(copy.locate(place(inc(1, 7), 4), OnLine::Incarnation), fork);
    assert_eq!(copy.locate(place(inc(3, 0), 4), OnLine::Main), Located::UnknownIncarnation);
    assert_eq!(copy.locate(place(inc(2, 1), 9), OnLine::Main), Located::Above(place(inc(2, 1), 8)));
}

#[test]
fn a_hole_whose_upper_edge_does_not_match_takes_the_part_above_with_it() {
    let one = line(inc(1, 7), None, 6);
    let mut holder = holding(&one[..2]);
    let hole = Hole { incarnation: inc(1, 7), from: 4, to: 8, kind: HoleKind::Pending };
    holder.copy.as_mut().unwrap().hole(hole).unwrap();
    let wrong = Facts { chain_before: Chain([3; 16]), ..one[4] };
    holder.feed(&wrong).unwrap(); // taken as given
    holder.feed(&one[2]).unwrap();
    holder.feed(&one[3]).unwrap(); // closes the hole; what is above contradicts it
    holder.check();
    let copy = holder.copy.as_ref().unwrap();
    let pending = Hole { incarnation: inc(1, 7), from: 8, to: 10, kind: HoleKind::Pending };
    assert_eq!(copy.holes().collect::<Vec<_>>(), [pending]);
    holder.feed(&one[4]).unwrap();
    holder.feed(&one[5]).unwrap();
    assert_eq!(holder.copy, holding(&one).copy);
}

#[test]
fn what_is_lost_is_not_filled_and_kinds_change_in_parts() {
    let one = line(inc(1, 7), None, 6);
    let mut holder = holding(&one[..1]);
    let copy = holder.copy.as_mut().unwrap();
    let hole = |from, to, kind| Hole { incarnation: inc(1, 7), from, to, kind };
    copy.hole(hole(2, 8, HoleKind::Lost)).unwrap();
    assert!(copy.hole(hole(4, 12, HoleKind::Lost)).is_err(), "it must begin at the end");
    assert!(holder.feed(&one[1]).is_err());
    let copy = holder.copy.as_mut().unwrap();
    assert!(copy.rekind(hole(2, 4, HoleKind::Pending), HoleKind::NotWanted).is_err());
    copy.rekind(hole(2, 4, HoleKind::Pending), HoleKind::Lost).unwrap();
    let split = [hole(2, 4, HoleKind::Pending), hole(4, 8, HoleKind::Lost)];
    assert_eq!(copy.holes().collect::<Vec<_>>(), split);
    holder.feed(&one[1]).unwrap();
    holder.feed(&one[4]).unwrap();
    holder.check();
}

#[test]
fn a_copy_jumps_over_what_nobody_has() {
    let one = line(inc(1, 7), None, 2);
    let two = line(inc(2, 1), Some((place(inc(1, 7), 10), Chain([5; 16]))), 4);
    let mut holder = holding(&one);
    let copy = holder.copy.as_mut().unwrap();
    copy.hole(Hole { incarnation: inc(2, 1), from: 4, to: 12, kind: HoleKind::Lost }).unwrap();
    assert_eq!(copy.end(), place(inc(2, 1), 12));
    holder.feed(&two[1]).unwrap();
    holder.check();
    let info = holder.copy.as_ref().unwrap().info();
    assert_eq!(info.begin, place(inc(1, 7), 0));
    assert!(info.fork_tips.is_empty());
}

/// An origin that started twice since, and trimmed all of the incarnation between.
#[test]
fn a_copy_jumps_to_the_first_batch_of_an_incarnation() {
    let one = line(inc(1, 7), None, 2);
    let between = (place(inc(2, 1), 12), Chain([5; 16]));
    let three = line(inc(3, 9), Some(between), 3);
    for from in [4, 12] {
        let mut holder = holding(&one);
        if from == 12 {
            // It holds more of the first than the second went on from.
            line(inc(1, 7), None, 6)[2..].iter().for_each(|facts| holder.feed(facts).unwrap());
        }
        let copy = holder.copy.as_mut().unwrap();
        copy.hole(Hole { incarnation: inc(3, 9), from, to: 12, kind: HoleKind::Lost }).unwrap();
        three.iter().for_each(|facts| holder.feed(facts).unwrap());
        holder.check();
        let copy = holder.copy.as_mut().unwrap();
        assert_eq!(copy.end(), place(inc(3, 9), 18));
        assert_eq!(copy.known_chain(place(inc(3, 9), 4)), None);
        let joined = if from == 4 { place(inc(1, 7), 4) } else { place(inc(2, 1), 12) };
        assert_eq!(copy.info().incarnations[1].previous, Some(joined), "what it jumped from, if it left a hole");
        assert_eq!(holder.feed(&three[0]), Err(AppendRefusal::Repeat(three[0].begin)));
        // Damaged later, it is fetched again.
        let copy = holder.copy.as_mut().unwrap();
        let first = Hole { incarnation: inc(3, 9), from: 12, to: 14, kind: HoleKind::Pending };
        copy.damage(first, None, None, 100).unwrap();
        holder.kept.0.remove(&three[0].begin);
        holder.accepted.remove(&three[0].begin);
        holder.feed(&three[0]).unwrap();
        holder.check();
    }
}

#[test]
fn a_first_batch_does_not_come_a_second_time_further_up() {
    let one = line(inc(1, 7), None, 2);
    let two = line(inc(2, 1), Some((place(inc(1, 7), 4), one[1].chain_after)), 2);
    let mut holder = holding(&one);
    two.iter().for_each(|facts| holder.feed(facts).unwrap());
    let again = Facts { begin: place(inc(2, 1), 8), end: 9, chain_before: two[1].chain_after, ..two[0] };
    assert!(matches!(holder.feed(&again), Err(AppendRefusal::NotFollowing { .. })));
    let copy = holder.copy.as_mut().unwrap();
    copy.hole(Hole { incarnation: inc(2, 1), from: 8, to: 10, kind: HoleKind::Lost }).unwrap();
    let again = Facts { begin: place(inc(2, 1), 10), end: 11, previous: Some(place(inc(1, 7), 10)), ..two[0] };
    assert!(matches!(holder.feed(&again), Err(AppendRefusal::NotFollowing { .. })));
    holder.check();
}

#[test]
fn a_trimmed_log_goes_on_and_its_forgotten_incarnations_stay_away() {
    let one = line(inc(1, 7), None, 3);
    let two = line(inc(2, 1), Some((place(inc(1, 7), 6), one[2].chain_after)), 3);
    let mut holder = holding(&one);
    two.iter().for_each(|facts| holder.feed(facts).unwrap());
    let end = holder.copy.as_ref().unwrap().end();
    let trimmed = holder.copy.as_mut().unwrap().trim(end, &holder.kept).unwrap();
    holder.kept.0.clear();
    assert_eq!((trimmed.begin, trimmed.forgotten), (end, vec![inc(1, 7)]));
    holder.check();
    assert_eq!(holder.feed(&one[0]), Err(AppendRefusal::Repeat(one[0].begin)));
    assert_eq!(holder.feed(&two[1]), Err(AppendRefusal::Repeat(two[1].begin)));
    let copy = holder.copy.as_ref().unwrap();
    assert_eq!(copy.locate(place(inc(1, 7), 0), OnLine::Main), Located::Below(end));
    // An origin that went back below all that is retained is followed all the same.
    let back = line(inc(2, 9), Some((place(inc(1, 7), 2), one[0].chain_after)), 1);
    holder.feed(&back[0]).unwrap();
    holder.check();
}

#[test]
fn bytes_that_are_not_a_copy_are_refused() {
    let one = line(inc(1, 7), None, 3);
    let mut bytes = Vec::new();
    holding(&one).copy.unwrap().encode(&mut bytes);
    for len in 0..bytes.len() {
        assert!(LogCopy::decode(&bytes[..len]).is_err());
    }
    for seed in seeds(2000) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bad = bytes.clone();
        let at = rng.random_range(0..bad.len());
        bad[at] ^= 1 << rng.random_range(0..8);
        if let Ok(copy) = LogCopy::decode(&bad) {
            copy.info();
        }
    }
}

/// Two incarnations, a fork, holes of two kinds, with chain values and without.
fn copy_with_everything() -> LogCopy {
    let chain = |n| Chain([n; 16]);
    let mut copy = LogCopy::begin(place(inc(1, 7), 5), None);
    let facts = |begin, end, previous: Option<Place>, before, after| Facts {
        begin,
        end,
        first_of_incarnation: previous.is_some(),
        previous,
        chain_before: before,
        chain_after: after,
        origin_time_us: 1_700_000_000_000_000,
        bytes: 100,
    };
    let mut append = |facts: Facts| copy.append(&facts, &TakenAsGiven).map(drop).unwrap();
    append(facts(place(inc(1, 7), 5), 10, None, chain(1), chain(2)));
    append(facts(place(inc(2, 8), 10), 20, Some(place(inc(1, 7), 10)), chain(2), chain(3)));
    append(facts(place(inc(1, 7), 10), 12, None, chain(2), chain(4)));
    let hole = |from, to, kind| Hole { incarnation: inc(2, 8), from, to, kind };
    copy.hole(hole(20, 25, HoleKind::NotWanted)).unwrap();
    copy.append(&facts(place(inc(2, 8), 25), 30, None, chain(5), chain(6)), &TakenAsGiven).unwrap();
    copy.hole(hole(30, 31, HoleKind::Pending)).unwrap();
    copy
}

/// The format is permanent: checkpoints of any version may have to be read.
#[test]
fn the_encoding_stays_as_it_is() {
    let copy = copy_with_everything();
    let mut bytes = Vec::new();
    copy.encode(&mut bytes);
    let found: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/copies/golden.hex");
    let expected = std::fs::read_to_string(path).unwrap();
    assert_eq!(found, expected.trim());
    assert_eq!(LogCopy::decode(&bytes), Ok(copy));
}
