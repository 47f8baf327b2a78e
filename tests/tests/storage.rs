//! The commit log under losses of power, kills and flipped bits. Seeds are fixed, so that a run is the same
//! each time; `SEAWAY_SEED` begins elsewhere, and the `crash` command runs as many as one likes.

#![allow(clippy::print_stdout, reason = "a test says its seed")]

use seaway_tests::{damage, faults::FaultDisk, kill, power_loss};

fn first_seed() -> u64 {
    std::env::var("SEAWAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

#[test]
fn two_thousand_losses_of_power_lose_nothing_that_was_certain() {
    let first = first_seed();
    println!("power loss: seeds from {first}");
    let tally = power_loss::run_seeds(first, 2000, 2);
    println!("{tally:#?}");
    // The test must meet what it is about.
    assert!(tally.power_losses > 500 && tally.failures > 50 && tally.kills > 300, "{tally:?}");
    assert!(tally.torn > 50 && tally.rebuilt > 300 && tally.old_index > 50, "{tally:?}");
    assert!(tally.interrupted_openings > 50 && tally.survivors > 100, "{tally:?}");
    assert!(tally.index_syncs > 10_000, "RocksDB's syncs must be seen: {tally:?}");
    assert!(tally.full > 100 && tally.full_openings > 0, "{tally:?}");
    assert!(tally.answered > 10_000, "{tally:?}");
    assert!(tally.moved > 1_000_000 && tally.checkpoints > 1000, "moving and checkpoints must be at work: {tally:?}");
}

#[test]
fn one_seed_is_one_run() {
    // RocksDB's own threads sync and remove files in their own time, so what is left of the index may differ, and with it
    // whether it is rebuilt; everything that the log did, and what its files hold, may not.
    let run = |seed| power_loss::Tally { index_syncs: 0, rebuilt: 0, ..power_loss::run_seed(seed) };
    for seed in first_seed()..first_seed() + 40 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let caught = (1..=30).filter(|seed| {
        let disk = FaultDisk::default();
        disk.lie();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| power_loss::run_on(*seed, disk))).is_err()
    });
    assert!(caught.count() > 10, "a log that loses what it answered must not pass");
}

#[test]
fn a_hundred_kills_lose_no_message_with_a_receipt() {
    let seed = first_seed();
    println!("kill: seed {seed}");
    let tally = kill::run(env!("CARGO_BIN_EXE_crash").as_ref(), seed, 100);
    println!("{tally:#?}");
    assert_eq!((tally.kills, tally.rebuilt), (100, 25));
    assert!(tally.moved > 1_000_000, "moving must be at work: {tally:?}");
    assert!(tally.receipts > 5000 && tally.repeated > 500 && tally.gathered > 500, "{tally:?}");
}

#[test]
fn a_flipped_bit_is_reported_and_fenced_and_never_cut() {
    let (mut fenced, mut harmless) = (0, 0);
    for seed in first_seed()..first_seed() + 60 {
        let met = damage::run_seed(seed, seed % 2 == 0);
        fenced += met.fenced;
        harmless += usize::from(met.harmless);
    }
    println!("{fenced} batches fenced, {harmless} bits in padding or headers");
    assert!(fenced > 20, "the bits must meet batches: {fenced} fenced, {harmless} harmless");
}
