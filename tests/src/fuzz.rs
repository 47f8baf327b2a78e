//! Fuzzing of every decoder, on stable Rust: `cargo run --release -p seaway-tests --bin fuzz -- TARGET --seconds N`.
//!
//! A target is a name, a function that must not panic (nor run for a minute) whatever bytes it is given, and a corpus of
//! valid encodings to start from; add one as a line in [`TARGETS`]. The runner changes corpus entries at random ([`mutate`]),
//! from a seed that it prints, so that a run is repeated exactly. A failing input is cut down and saved.
//!
//! There is no coverage feedback here, so targets repair what a blind change always breaks (checksums) and try both.

mod batches;
mod configuration;
mod copies;
mod links;
mod mutate;
mod replication;
mod segments;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::SmallRng};

/// One decoder under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Must not panic for any bytes.
    pub run: fn(&[u8]),
    /// Valid encodings.
    pub corpus: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "envelope", run: batches::envelope, corpus: batches::envelopes },
    Target { name: "body", run: batches::body, corpus: batches::bodies },
    Target { name: "control", run: links::control, corpus: links::controls },
    Target { name: "session", run: links::session, corpus: links::sessions },
    Target { name: "replication", run: replication::run, corpus: replication::corpus },
    Target { name: "copy", run: copies::run, corpus: copies::corpus },
    Target { name: "segment", run: segments::segment, corpus: segments::segments },
    Target { name: "configuration", run: configuration::run, corpus: configuration::corpus },
];

/// Longest input that is made, in bytes.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// One input may take this long, on a loaded machine too; longer is a failure.
const INPUT_TIME_MAX: Duration = Duration::from_secs(60);
/// Attempts at cutting a failing input down.
const CUTS_MAX: usize = 400;

/// A target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|t| t.name == name).copied()
}

/// An input that makes a target fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The input, cut down as far as it still fails.
    pub input: Vec<u8>,
    /// What the target said.
    pub why: String,
    /// After how many inputs it came.
    pub inputs: u64,
}

/// Tries inputs until `go_on` (told how many there were) says no, or one fails. Answers how many were tried.
///
/// # Errors
/// The first input that fails.
pub fn run(target: Target, seed: u64, mut go_on: impl FnMut(u64) -> bool) -> Result<u64, Failure> {
    let corpus = (target.corpus)();
    let mut rng = SmallRng::seed_from_u64(seed);
    let fail = |input: &[u8], why, inputs| Failure { input: cut_down(target, input), why, inputs };
    let mut inputs = 0;
    for input in &corpus {
        inputs += 1;
        attempt(target, input).map_err(|why| fail(input, why, inputs))?;
    }
    while go_on(inputs) {
        let input = mutate::next(&mut rng, &corpus, INPUT_BYTES_MAX);
        inputs += 1;
        attempt(target, &input).map_err(|why| fail(&input, why, inputs))?;
    }
    Ok(inputs)
}

/// Runs a target once.
///
/// # Errors
/// What it said when it panicked, or that it took too long.
pub fn attempt(target: Target, input: &[u8]) -> Result<(), String> {
    let began = Instant::now();
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
    })?;
    let took = began.elapsed();
    if took > INPUT_TIME_MAX {
        return Err(format!("one input of {} bytes took {took:?}", input.len()));
    }
    Ok(())
}

/// Removes what the failure does not need: halves, quarters and so on.
fn cut_down(target: Target, input: &[u8]) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut attempts = 0;
    let mut piece = best.len() / 2;
    while piece > 0 && attempts < CUTS_MAX {
        let mut at = 0;
        while at + piece <= best.len() && attempts < CUTS_MAX {
            attempts += 1;
            let mut shorter = best.clone();
            shorter.drain(at..at + piece);
            if attempt(target, &shorter).is_err() {
                best = shorter;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_bears_some_thousand_inputs() {
        for target in TARGETS {
            assert!((target.corpus)().len() >= 3, "the corpus of {} is poor", target.name);
            let tried = run(*target, 7, |inputs| inputs < 3000);
            assert_eq!(tried, Ok(3000), "{}", target.name);
        }
    }

    #[test]
    fn a_planted_fault_is_found_cut_down_and_found_again_by_its_seed() {
        let planted = Target {
            name: "planted",
            run: |input| assert!(!input.windows(2).any(|w| w == [0xff, 0x7f]), "planted"),
            corpus: || vec![vec![0; 100], b"some text".to_vec()],
        };
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let found = run(planted, 1, |inputs| inputs < 1_000_000);
        let again = run(planted, 1, |inputs| inputs < 1_000_000);
        std::panic::set_hook(hook);
        let failure = found.clone().unwrap_err();
        assert_eq!((failure.input.as_slice(), failure.why.as_str()), (&[0xff, 0x7f][..], "planted"));
        assert_eq!(found, again);
    }
}
