//! `seaway pub`: reads messages, keeps many on the way, and counts receipts in order.
//!
//! Every stored message carries a producer number, so one that may have been stored when a connection broke is sent
//! again and stored once, at the same site. At another site a retry would be a new message: there the command goes on
//! only with what was surely not stored.

mod input;
mod request;
mod session;

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{
    CliError, Exit,
    args::{Mode, PubArgs},
    client::Servers,
    output::{self, count},
};
use request::Template;
use session::{Publisher, Tally};

/// For how long a lost connection is tried to be made anew.
pub(crate) const RECONNECT_FOR: Duration = Duration::from_secs(30);

/// Runs the command.
pub(crate) async fn run(args: PubArgs) -> Result<Exit, CliError> {
    let template = Template::new(&args)?;
    let servers = Servers::new(&args.connection, args.tls_key.as_ref())?;
    let (batches, length) = input::open(&args)?;
    let progress = progress(length);
    let mut publisher = Publisher::new(servers, template, args.receipts, progress.clone())?;
    let ended = publisher.run(batches).await;
    progress.finish_and_clear();
    let tally = publisher.tally();
    match ended {
        Ok(()) => {
            output::note(&summary(tally, args.mode));
            Ok(if tally.degraded + tally.without > 0 { Exit::Degraded } else { Exit::Done })
        }
        Err(e) => Err(CliError::new(e.exit(), format!("{e}; {}", so_far(tally, args.mode)))),
    }
}

fn summary(tally: &Tally, mode: Mode) -> String {
    if mode == Mode::OneWay {
        return format!("{} handed to the network", count(tally.done, "message"));
    }
    let mut text = format!("{} stored", count(tally.done, "message"));
    if let Some(site) = &tally.site {
        text.push_str(&format!(" at {site}"));
    }
    if !tally.sites.is_empty() {
        let sites: Vec<&str> = tally.sites.iter().map(String::as_str).collect();
        text.push_str(&format!(", held by {}", sites.join(", ")));
    }
    if tally.without > 0 {
        let sites = tally.removed.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let removed = count(tally.without, "message");
        text.push_str(&format!("; {removed} went on without {sites}, removed from the federation meanwhile"));
    }
    if tally.degraded > 0 {
        text.push_str(&format!("; {} not acknowledged as asked before the deadline", count(tally.degraded, "message")));
        if !tally.missing.is_empty() {
            let missing: Vec<&str> = tally.missing.iter().map(String::as_str).collect();
            text.push_str(&format!(" (missing: {})", missing.join(", ")));
        }
    }
    if tally.lost > 0 {
        text.push_str(&format!("; {} may be lost", count(tally.lost, "message")));
    }
    text
}

fn so_far(tally: &Tally, mode: Mode) -> String {
    let mut text = match mode {
        Mode::OneWay => format!("{} handed to the network", count(tally.done, "message")),
        Mode::Sync | Mode::Async => {
            let stored = count(tally.done + tally.unacknowledged, "message");
            match tally.unacknowledged {
                0 => format!("{stored} stored"),
                _ if tally.done == 0 => format!("{stored} stored, but not acknowledged as asked"),
                some => format!("{stored} stored, {some} of them not acknowledged as asked"),
            }
        }
    };
    if tally.in_doubt > 0 {
        text.push_str(&format!(", {} in doubt", tally.in_doubt));
    }
    text
}

fn progress(length: Option<u64>) -> ProgressBar {
    if !output::watched() {
        return ProgressBar::hidden();
    }
    let bar = match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::no_length(),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
    let shape = match length {
        Some(_) => "{bar:30} {bytes}/{total_bytes} {msg} {eta}",
        None => "{spinner} {bytes} {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(shape) {
        bar.set_style(style);
    }
    bar
}
