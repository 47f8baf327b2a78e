//! Crashes commit logs for as long as one likes: `power-loss` under a disk in memory that forgets, `kill`
//! with a real process on a real disk.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use seaway_tests::{damage, kill, power_loss};

/// Crashes commit logs and checks what is left.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Losses of power, failed writes and kills over a disk in memory.
    PowerLoss {
        /// First seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of seeds.
        #[arg(long, default_value_t = 2000)]
        seeds: u64,
        /// Threads.
        #[arg(long, default_value_t = 2)]
        threads: u64,
    },
    /// Kills of a publishing process.
    Kill {
        /// Seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of kills.
        #[arg(long, default_value_t = 100)]
        rounds: u64,
    },
    /// One flipped bit in the middle of a log, for each seed.
    FlippedBit {
        /// First seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of seeds.
        #[arg(long, default_value_t = 200)]
        seeds: u64,
    },
    /// The process that is killed; not for people.
    #[command(hide = true)]
    Child {
        /// Data directory.
        dir: PathBuf,
        /// Seed.
        seed: u64,
        /// First sequence of each publisher.
        next: Vec<u64>,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().what {
        What::PowerLoss { seed, seeds, threads } => {
            let tally = power_loss::run_seeds(seed, seeds, threads.max(1));
            println!("seeds {seed} to {}: nothing lost, altered or twice", seed + seeds - 1);
            println!("{tally:#?}");
        }
        What::Kill { seed, rounds } => {
            let binary = match std::env::current_exe() {
                Ok(binary) => binary,
                Err(e) => {
                    eprintln!("this program cannot find itself: {e}");
                    return ExitCode::FAILURE;
                }
            };
            println!("kill: seed {seed}, {rounds} rounds");
            let tally = kill::run(&binary, seed, rounds);
            println!("{tally:#?}");
        }
        What::FlippedBit { seed, seeds } => {
            println!("flipped bit: seeds from {seed}");
            let met: Vec<damage::Met> =
                (seed..seed + seeds).map(|seed| damage::run_seed(seed, seed % 2 == 0)).collect();
            let fenced: usize = met.iter().map(|met| met.fenced).sum();
            let harmless = met.iter().filter(|met| met.harmless).count();
            println!("{fenced} batches fenced; {harmless} bits in padding or headers cost nothing");
        }
        What::Child { dir, seed, next } => {
            if let Err(e) = kill::child(&dir, seed, &next) {
                eprintln!("the child failed: {e}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
