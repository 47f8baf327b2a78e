//! What a site needs is what it lacks and may still take.

#![allow(clippy::unwrap_used, reason = "tests")]

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use super::{
    super::held::tests::{origin, site, stated},
    *,
};

/// Whether a site that lacks a message of ours will still ask for it: it lies above where its copy begins, and it did not pass it by.
fn may_take(held: &LogInfo, own: &LogInfo, at: Place) -> bool {
    let pending = held.holes.iter().any(|h| h.kind == HoleKind::Pending && h.contains(at));
    let in_hole = held.holes.iter().any(|h| h.contains(at));
    let below = at.incarnation <= held.begin.incarnation && at.offset < held.begin.offset;
    // It came past it, on the way that our incarnations take or by its own jumps.
    let passed = reached(own, &stated(held)).get(&at.incarnation).is_some_and(|reached| at.offset < *reached);
    pending || (!below && !in_hole && !passed)
}

#[test]
fn nothing_that_a_site_lacks_and_may_take_lies_below_what_it_needs() {
    let (mut lacking, mut whole, mut rests) = (0, 0, 0);
    for seed in 0..20_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (own, messages) = origin(&mut rng);
        let own = own.info();
        let (copy, has) = site(&mut rng, &messages);
        let mut held = copy.info();
        if rng.random_bool(0.3) {
            held.holes.iter_mut().for_each(|hole| hole.kind = HoleKind::Pending);
        }
        let need = needed_from(&own, Some(&stated(&held)));
        let key = |p: Place| (p.incarnation, p.offset);
        for message in messages.iter().filter(|m| !has.contains(&m.begin)) {
            if may_take(&held, &own, message.begin) {
                assert!(key(need) <= key(message.begin), "seed {seed}: {} of {own:#?}\n{held:#?}", message.begin);
                lacking += 1;
            }
        }
        let has_all = messages.iter().all(|m| has.contains(&m.begin));
        if has_all && held.holes.iter().all(|hole| hole.kind != HoleKind::Pending) {
            assert_eq!(need, own.end, "seed {seed}: it holds all and needs {need}");
            whole += 1;
        }
        rests += usize::from(need != own.end);
    }
    assert!(lacking > 10_000 && whole > 500 && rests > 5_000, "{lacking} lacking, {whole} whole, {rests} not at rest");
}

#[test]
fn of_what_does_not_fit_everything_is_kept_above_where_it_fitted_last() {
    let (mut kept, mut proven) = (0, 0);
    for seed in 0..5_000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (own, messages) = origin(&mut rng);
        let own = own.info();
        let (copy, _) = site(&mut rng, &messages);
        let believed = stated(&copy.info());
        let mut differs = believed.clone();
        differs.differs = Some(own.end);
        let key = |p: Place| (p.incarnation, p.offset);
        let need = needed_from(&own, Some(&differs));
        let from = believed.from;
        let counts = |at: Place| at.incarnation > from.incarnation || at.offset >= from.offset;
        for message in messages.iter().filter(|m| counts(m.begin)) {
            assert!(key(need) <= key(message.begin), "seed {seed}: {} is given up, {need} {own:#?}", message.begin);
            kept += 1;
        }
        if own.fork_tips.is_empty() && believed.holes.is_empty() {
            (differs.proven, differs.jumps) = (Some(own.end), Vec::new());
            assert_eq!(needed_from(&own, Some(&differs)), own.end, "seed {seed}");
            proven += 1;
        }
    }
    assert!(kept > 10_000 && proven > 50, "{kept} kept, {proven} proven");
}
