//! Whole federations under one seed: trees of up to five nodes under loss, delay, reordering, cuts, crashes, restarts with the disk,
//! without it and with an old copy of it. A failing seed prints itself; `sim --seed N` replays it.

#![allow(clippy::panic, reason = "tests")]

use std::time::Duration;

use seaway_tests::sim::{self, Outcome, Sabotage, Scenario};

/// Seeds of the normal run. More by `cargo run --release -p seaway-tests --bin sim -- --seeds N`.
const SEEDS: u64 = 300;

/// Seeds that once failed, kept for ever.
const KEPT: &[u64] = &[13, 101, 180, 278, 307, 727, 771, 932, 941];

fn check(seed: u64, outcome: &Outcome) -> Result<(), String> {
    match outcome.violations.first() {
        None => Ok(()),
        Some(first) => Err(format!(
            "seed {seed}: {} violations, the first of invariant {}: {}; replay: cargo run --release -p seaway-tests --bin sim -- --seed {seed}",
            outcome.violations.len(),
            first.invariant,
            first.what
        )),
    }
}

#[test]
fn trees_under_faults_keep_the_invariants_and_become_whole() {
    let mut deaths = 0;
    let mut remote_receipts = 0;
    let mut bad = Vec::new();
    for seed in KEPT.iter().copied().chain(1..=SEEDS) {
        let outcome = sim::run(Scenario::random(seed));
        deaths += outcome.deaths;
        remote_receipts += outcome.remote_receipts;
        bad.extend(check(seed, &outcome).err());
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(deaths > SEEDS / 4, "the faults must really come: {deaths} deaths");
    assert!(remote_receipts > 1000, "receipts of other sites must really be given: {remote_receipts}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 278, 932] {
        let (first, second) = (sim::run(Scenario::random(seed)), sim::run(Scenario::random(seed)));
        assert_eq!(first.fingerprint, second.fingerprint, "seed {seed} does not replay");
        assert_eq!(first.events, second.events, "seed {seed} does not replay");
    }
}

/// Runs seeds with a deliberate fault until one is caught; the same seeds without it are clean.
fn caught(sabotage: Sabotage) -> (u64, u8) {
    for seed in 1..=60 {
        let mut scenario = Scenario { sabotage: Some(sabotage), ..Scenario::random(seed) };
        if sabotage == Sabotage::AcknowledgeEarly {
            // What is said too early shows only when the node dies before it becomes true.
            scenario.sync_delay = Duration::from_millis(500);
            scenario.faults.crash = 1.0;
        }
        if let Some(first) = sim::run(scenario).violations.first() {
            return (seed, first.invariant);
        }
    }
    panic!("60 seeds with {sabotage:?} and nobody noticed");
}

#[test]
fn acknowledging_too_early_is_caught() {
    assert_eq!(caught(Sabotage::AcknowledgeEarly).1, 1);
}

#[test]
fn another_content_under_one_place_is_caught() {
    assert_eq!(caught(Sabotage::ForgeBatch).1, 2);
}

#[test]
fn a_batch_that_vanishes_is_caught() {
    assert_eq!(caught(Sabotage::LoseSilently).1, 2);
}

#[test]
fn a_message_stored_twice_is_caught() {
    assert_eq!(caught(Sabotage::AppendTwice).1, 3);
}

#[test]
fn a_node_that_serves_nothing_is_caught() {
    assert_eq!(caught(Sabotage::ServeNothing).1, 5);
}
