//! Fuzzes one decoder, or all in turn: `fuzz TARGET|all [--seconds N] [--seed S]`, `fuzz TARGET --input FILE` repeats a
//! saved failure, `fuzz list` names the targets.

use std::{
    io::Write as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use seaway_tests::fuzz::{self, Failure, TARGETS, Target};

const USAGE: &str = "usage: fuzz TARGET|all|list [--seconds N] [--seed S] [--input FILE]";

struct Options {
    target: String,
    seconds: u64,
    seed: u64,
    input: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut args = std::env::args().skip(1);
    let target = args.next().ok_or("name a target")?;
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let mut options = Options { target, seconds: 10, seed: clock, input: None };
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| format!("{flag} needs a value"))?;
        let number = || value.parse().map_err(|_| format!("{flag} takes a number, not {value:?}"));
        match flag.as_str() {
            "--seconds" => options.seconds = number()?,
            "--seed" => options.seed = number()?,
            "--input" => options.input = Some(value.into()),
            _ => return Err(format!("unknown option {flag}")),
        }
    }
    Ok(options)
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            say(&format!("{why}; {USAGE}"));
            return ExitCode::from(2);
        }
    };
    if options.target == "list" {
        TARGETS.iter().for_each(|t| say(t.name));
        return ExitCode::SUCCESS;
    }
    let targets: Vec<Target> =
        TARGETS.iter().filter(|t| [t.name, "all"].contains(&&*options.target)).copied().collect();
    if targets.is_empty() {
        say(&format!("there is no target {:?}; 'fuzz list' names them", options.target));
        return ExitCode::from(2);
    }
    if let Some(path) = &options.input {
        return repeat(&targets, path);
    }
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = false;
    for target in targets {
        failed |= !fuzz_one(target, &options);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn repeat(targets: &[Target], path: &PathBuf) -> ExitCode {
    let input = match std::fs::read(path) {
        Ok(input) => input,
        Err(error) => {
            say(&format!("cannot read {}: {error}", path.display()));
            return ExitCode::from(2);
        }
    };
    for target in targets {
        if let Err(why) = fuzz::attempt(*target, &input) {
            say(&format!("{}: fails: {why}", target.name));
            return ExitCode::FAILURE;
        }
        say(&format!("{}: passes", target.name));
    }
    ExitCode::SUCCESS
}

fn fuzz_one(target: Target, options: &Options) -> bool {
    let (name, seed) = (target.name, options.seed);
    let end = Instant::now() + Duration::from_secs(options.seconds);
    match fuzz::run(target, seed, |_| Instant::now() < end) {
        Ok(inputs) => {
            let memory = peak_memory().unwrap_or_else(|| "unknown".to_owned());
            say(&format!("{name}: {inputs} inputs passed in {} s, seed {seed}, peak memory {memory}", options.seconds));
            true
        }
        Err(Failure { input, why, inputs }) => {
            let path = std::env::temp_dir().join(format!("seaway-fuzz-{name}-{seed}.bin"));
            let saved = std::fs::write(&path, &input);
            say(&format!("{name}: FAILED at input {inputs} of seed {seed}: {why}"));
            match saved {
                Ok(()) => {
                    say(&format!("  {} bytes saved; repeat: fuzz {name} --input {}", input.len(), path.display()))
                }
                Err(error) => say(&format!("  the input could not be saved in {}: {error}", path.display())),
            }
            false
        }
    }
}

/// The process's greatest resident memory so far.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.trim_start_matches("VmHWM:").trim().to_owned())
}
