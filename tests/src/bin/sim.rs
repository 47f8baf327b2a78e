//! Runs the simulation for as many seeds as one likes, or one seed again.

#![allow(clippy::print_stdout, reason = "a command's output")]

use std::process::ExitCode;

use clap::Parser;
use seaway_tests::sim::{self, Disasters, Scenario};

/// Simulates whole federations under faults and checks the invariants.
#[derive(Parser)]
struct Arguments {
    /// Run just this seed, and print what happened.
    #[arg(long)]
    seed: Option<u64>,
    /// First seed of a series.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Number of seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// Let no origin's disk be lost in a run in which retention or damage takes ranges away.
    #[arg(long)]
    apart: bool,
    /// Let topics be changed, deleted and created anew.
    #[arg(long)]
    topics: bool,
}

fn run(seed: u64, disasters: Disasters, topics: bool, verbose: bool) -> bool {
    let scenario = Scenario::random_with(seed, disasters);
    let scenario = if topics { scenario.with_topics() } else { scenario };
    if verbose {
        println!("{scenario:#?}");
    }
    let outcome = sim::run(scenario);
    let good = outcome.violations.is_empty();
    if verbose || !good {
        println!(
            "seed {seed}: {} published ({} tried again), {} receipts ({} of other sites), {} deaths, {} events in {:?} simulated, fingerprint {:016x}, alarms {:?}",
            outcome.published,
            outcome.tried_again,
            outcome.receipts,
            outcome.remote_receipts,
            outcome.deaths,
            outcome.events,
            outcome.time,
            outcome.fingerprint,
            outcome.alarms
        );
    }
    if verbose && !good {
        for line in &outcome.holdings {
            println!("{line}");
        }
    }
    for violation in outcome.violations.iter().take(10) {
        println!("seed {seed}: invariant {} broken: {}", violation.invariant, violation.what);
    }
    good
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let disasters = if arguments.apart { Disasters::Apart } else { Disasters::Together };
    let (seeds, verbose) = match arguments.seed {
        Some(seed) => (seed..seed.saturating_add(1), true),
        None => (arguments.from..arguments.from.saturating_add(arguments.seeds), false),
    };
    let bad: Vec<u64> = seeds.filter(|seed| !run(*seed, disasters, arguments.topics, verbose)).collect();
    if bad.is_empty() {
        println!("all invariants held");
        return ExitCode::SUCCESS;
    }
    println!("{} seeds failed: {bad:?}; run one again with --seed", bad.len());
    ExitCode::FAILURE
}
