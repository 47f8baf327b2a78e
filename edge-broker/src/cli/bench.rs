//! `seaway bench`: figures for people and programs.

use super::{
    CliError, Exit,
    args::{BenchCommand, Output},
    client::block_on,
    output::{self, Table},
};
use crate::bench::{BenchError, Figure, federation, log};

/// Runs one of its commands.
pub(crate) fn run(command: BenchCommand) -> Result<Exit, CliError> {
    match command {
        BenchCommand::Log { size, dir, output } => {
            let parent = dir.unwrap_or_else(std::env::temp_dir);
            let dir = parent.join(format!("seaway-bench-log-{}", std::process::id()));
            let figures = log::run(&dir, size, &mut tell);
            // Whether it failed or not, nothing stays.
            let _ = std::fs::remove_dir_all(&dir);
            print(&figures.map_err(failed)?, output)
        }
        BenchCommand::Federation { size, time, dir, output } => {
            let sizes = if size.is_empty() { federation::SIZES.to_vec() } else { size };
            let binary =
                std::env::current_exe().map_err(|e| CliError::failed(format!("cannot find this program: {e}")))?;
            let parent = dir.unwrap_or_else(std::env::temp_dir);
            let figures =
                block_on(async { federation::run(binary, &parent, &sizes, time, &mut tell).await.map_err(failed) })?;
            print(&figures, output)
        }
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
