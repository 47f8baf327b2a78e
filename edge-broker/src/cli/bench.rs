//! `seaway bench`: figures for people and programs.

use std::path::{Path, PathBuf};

use super::{
    CliError, Exit,
    args::{BenchCommand, Output},
    client::block_on,
    node::interrupted,
    output::{self, Table},
};
use crate::bench::{BenchError, Figure, federation, idle, log, opening, slow_disk, space};

/// Least that is written for a figure of the log, in bytes: less says nothing of a disk.
const LOG_BYTES_MIN: u64 = 1024 * 1024;

/// Least for a figure of space: the proportions of segments want some MiB an hour.
const SPACE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Runs one of its commands.
pub(crate) fn run(command: BenchCommand) -> Result<Exit, CliError> {
    match command {
        BenchCommand::Log { size, dir, output } => {
            let what = Scratch { name: "log", least: LOG_BYTES_MIN, measure: log::run };
            let figures = block_on(what.figures(dir.unwrap_or_else(std::env::temp_dir), size))?;
            print(&figures, output)
        }
        BenchCommand::Space { size, dir, output } => {
            let what = Scratch { name: "space", least: SPACE_BYTES_MIN, measure: space::run };
            let figures = block_on(what.figures(dir.unwrap_or_else(std::env::temp_dir), size))?;
            print(&figures, output)
        }
        BenchCommand::Federation { size, time, dir, output } => {
            let sizes = if size.is_empty() { federation::SIZES.to_vec() } else { size };
            let (binary, parent) = (binary()?, dir.unwrap_or_else(std::env::temp_dir));
            print(&measured(federation::run(binary, &parent, &sizes, time, &mut tell))?, output)
        }
        BenchCommand::Opening { queues, dir, output } => {
            let (binary, parent) = (binary()?, dir.unwrap_or_else(std::env::temp_dir));
            let queues = usize::try_from(queues).unwrap_or(usize::MAX);
            print(&measured(opening::run(binary, &parent, queues, &mut tell))?, output)
        }
        BenchCommand::Idle { dir, output } => {
            let (binary, parent) = (binary()?, dir.unwrap_or_else(std::env::temp_dir));
            print(&measured(idle::run(binary, &parent, &mut tell))?, output)
        }
        BenchCommand::SlowDisk { sync, time, dir, output } => {
            let (binary, parent) = (binary()?, dir.unwrap_or_else(std::env::temp_dir));
            print(&measured(slow_disk::run(binary, &parent, sync, time, &mut tell))?, output)
        }
    }
}

/// This program, which is to be run as nodes.
fn binary() -> Result<PathBuf, CliError> {
    std::env::current_exe().map_err(|e| CliError::failed(format!("cannot find this program: {e}")))
}

/// Runs a measurement; where it is interrupted, its nodes end and its directories go.
fn measured(measuring: impl Future<Output = Result<Vec<Figure>, BenchError>>) -> Result<Vec<Figure>, CliError> {
    block_on(async {
        tokio::select! {
            figures = measuring => figures.map_err(failed),
            () = interrupted() => Err(CliError::failed("interrupted")),
        }
    })
}

/// Measures in a new directory, with about so many bytes; the last is told what goes on.
type Measure = fn(&Path, u64, &mut dyn FnMut(String)) -> Result<Vec<Figure>, BenchError>;

/// A measurement in a directory of its own.
struct Scratch {
    name: &'static str,
    /// Least that must be written for it, in bytes.
    least: u64,
    measure: Measure,
}

impl Scratch {
    /// Measures; nothing stays of the directory, whether it failed, ended or was interrupted.
    async fn figures(self, parent: PathBuf, size: u64) -> Result<Vec<Figure>, CliError> {
        if size < self.least {
            return Err(CliError::usage(format!("--size must be at least {}", output::size(self.least as f64))));
        }
        if !parent.is_dir() {
            return Err(CliError::usage(format!("--dir {} is no directory; make it first", parent.display())));
        }
        let dir = parent.join(format!("seaway-bench-{}-{}", self.name, std::process::id()));
        let (done, figures) = tokio::sync::oneshot::channel();
        let within = dir.clone();
        // A thread that nobody waits for when the process is told to end.
        std::thread::spawn(move || done.send((self.measure)(&within, size, &mut tell)));
        let figures = tokio::select! {
            figures = figures => figures.map_err(|_| CliError::failed("the measurement failed")),
            () = interrupted() => Err(CliError::failed("interrupted")),
        };
        let _ = std::fs::remove_dir_all(&dir);
        figures?.map_err(failed)
    }
}

fn failed(error: BenchError) -> CliError {
    CliError::failed(error.to_string())
}

#[allow(clippy::needless_pass_by_value, reason = "called as a sink of owned text")]
fn tell(text: String) {
    if output::watched() {
        output::note(&text);
    }
}

fn print(figures: &[Figure], how: Output) -> Result<Exit, CliError> {
    match how {
        Output::Json => output::json(&figures)?,
        Output::Table => {
            let mut table = Table::new(&["FIGURE", ">VALUE", "UNIT", ">LIMIT", ">RATIO"]);
            for figure in figures {
                table.row([
                    figure.figure.clone(),
                    number(figure.value),
                    figure.unit.to_string(),
                    figure.limit.map(number).unwrap_or_default(),
                    figure.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
                ]);
            }
            output::bytes(table.render().as_bytes())?;
        }
    }
    Ok(Exit::Done)
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
