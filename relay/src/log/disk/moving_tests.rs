use proptest::prelude::*;

use super::*;

#[test]
fn the_pace_is_kept_whatever_the_clock_does() {
    let rate = 8 << 20;
    let mut pace = Pace::new(rate);
    let mut now = 1_000_000_000;
    let mut used = 0_u64;
    while pace.allows(now) {
        pace.spend(UNIT_BYTES as u64);
        used += UNIT_BYTES as u64;
    }
    assert_eq!(used, rate / 2, "at once no more than half a second's worth");
    for _ in 0..100 {
        now += 100_000;
        while pace.allows(now) {
            pace.spend(UNIT_BYTES as u64);
            used += UNIT_BYTES as u64;
        }
    }
    assert!((rate * 10..rate * 11 + UNIT_BYTES as u64).contains(&used), "{used} bytes in 10 s");
    // A clock that leaps gives half a second's worth, one that goes back nothing, and both go on from there.
    let mut at_once = |now| {
        let mut used = 0;
        while pace.allows(now) {
            pace.spend(1 << 10);
            used += 1 << 10;
        }
        used
    };
    assert!(at_once(now + 4_000_000_000_000_000) <= rate / 2 + (1 << 10));
    assert_eq!(at_once(1), 0);
    assert!(at_once(500_001) > rate / 3);
}

#[test]
fn a_pace_without_bound_never_ends() {
    let mut pace = Pace::new(u64::MAX);
    for _ in 0..1000 {
        assert!(pace.allows(7));
        pace.spend(1 << 40);
    }
}

fn segments() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (1..1_000_000_u64, 0..=100_u64);
    proptest::collection::vec(one, 0..30).prop_map(|found| {
        let of = |(number, (bytes, part)): (u64, (u64, u64))| Candidate { number, bytes, live: bytes * part / 100 };
        (1..).zip(found).map(of).collect()
    })
}

fn sums(segments: &[Candidate]) -> (u64, u64) {
    (segments.iter().map(|s| s.bytes).sum(), segments.iter().map(Candidate::dead).sum())
}

proptest! {
    #[test]
    fn the_choice_yields_most_and_nothing_is_chosen_below_the_bound(old in segments(), share in 0.05..0.95_f64) {
        let (bytes, dead) = sums(&old);
        match choose(&old, share, false, u64::MAX) {
            None => prop_assert!(dead as f64 <= bytes as f64 * share),
            Some(number) => {
                prop_assert!(dead as f64 > bytes as f64 * share);
                let chosen = old.iter().find(|s| s.number == number).unwrap();
                prop_assert!(!old.iter().any(|s| s.yields_more(chosen)));
                // Written for what is given back: never worse than the bound promises.
                prop_assert!(chosen.live as f64 * share <= chosen.dead() as f64 * (1.0 - share) + 1.0);
            }
        }
    }

    #[test]
    fn moving_comes_to_an_end_below_the_bound(old in segments(), share in 0.05..0.95_f64, short: bool) {
        let mut left = old.clone();
        let (mut written, mut freed) = (0, 0);
        while let Some(number) = choose(&left, share, short, u64::MAX) {
            let at = left.iter().position(|s| s.number == number).unwrap();
            let gone = left.remove(at);
            prop_assert!(gone.dead() > 0, "moving what is alive wholly gives nothing");
            (written, freed) = (written + gone.live, freed + gone.dead());
        }
        prop_assert!(!past_bound(&left, share));
        if !short {
            prop_assert!(written as f64 * share <= freed as f64 * (1.0 - share) + old.len() as f64);
        }
    }

    #[test]
    fn what_does_not_fit_into_the_room_is_not_begun(old in segments(), room in 0..1_000_000_u64) {
        if let Some(number) = choose(&old, 0.1, true, room) {
            let chosen = old.iter().find(|s| s.number == number).unwrap();
            prop_assert!(chosen.live + HEADER_BYTES <= room);
        }
    }
}
