//! `seaway log`: looks into the data directory of a stopped node; it takes the directory's lock and changes nothing.

use seaway_federation_proto::{limits::BODY_BYTES_READ_MAX, message::decode_messages};
use seaway_relay::log::disk::{DumpFilter, DumpLine, VerifyReport, dump, verify};
use serde::Serialize;

use super::{
    CliError, Exit,
    args::{LogCommand, Output},
    json::Line,
    output,
};
use crate::{api, config::values::time_text};

/// Largest body that is read when messages are shown: a batch that compressed well.
const BODY_BYTES_MAX: usize = BODY_BYTES_READ_MAX;

/// Runs one of its commands.
pub(crate) fn run(command: LogCommand) -> Result<Exit, CliError> {
    match command {
        LogCommand::Verify { data_dir, output } => {
            let report = verify(&data_dir).map_err(|e| CliError::failed(e.to_string()))?;
            show(&report, output)
        }
        LogCommand::Dump { data_dir, topic, origin, segment, groups, messages, output } => {
            let filter = DumpFilter { topic, origin, segment, groups };
            let mut ended = Ok(());
            let each = &mut |line: DumpLine| {
                ended = write(&line, output, messages);
                ended.is_ok()
            };
            dump(&data_dir, &filter, each).map_err(|e| CliError::failed(e.to_string()))?;
            ended.map(|()| Exit::Done)
        }
    }
}

#[derive(Serialize)]
struct DamageView<'a> {
    file: &'a str,
    from: u64,
    to: u64,
    what: &'a str,
}

#[derive(Serialize)]
struct VerifyView<'a> {
    owner: &'a str,
    segments: u64,
    bytes: u64,
    units: u64,
    batches: u64,
    messages: u64,
    logs: u64,
    torn_bytes: u64,
    torn_at: Option<String>,
    damage: Vec<DamageView<'a>>,
}

fn show(report: &VerifyReport, how: Output) -> Result<Exit, CliError> {
    let damage = report.damage.iter().map(|d| DamageView { file: &d.file, from: d.from, to: d.to, what: &d.detail });
    let view = VerifyView {
        owner: &report.owner,
        segments: report.segments,
        bytes: report.bytes,
        units: report.units,
        batches: report.batches,
        messages: report.messages,
        logs: report.logs,
        torn_bytes: report.torn_bytes,
        torn_at: report.torn_at.as_ref().map(|(file, at)| format!("{file}:{at}")),
        damage: damage.collect(),
    };
    match how {
        Output::Json => output::json(&view)?,
        Output::Table => output::bytes(text(&view).as_bytes())?,
    }
    if view.damage.is_empty() {
        return Ok(Exit::Done);
    }
    Err(CliError::failed(format!(
        "{} found in the files; start the node to have what was there fetched again from another site ('seaway topic show' \
         tells in HOLES what is still missing then; the files stay as they are until retention takes them)",
        output::count(view.damage.len() as u64, "damaged range")
    )))
}

fn text(view: &VerifyView<'_>) -> String {
    let mut text = format!(
        "{}: {} of {} in {}, {} in {} of {}\n",
        view.owner,
        output::count(view.units, "unit"),
        output::size(view.bytes as f64),
        output::count(view.segments, "segment"),
        output::count(view.messages, "message"),
        output::count(view.batches, "batch").replace("batchs", "batches"),
        output::count(view.logs, "log"),
    );
    if let Some(at) = &view.torn_at {
        text.push_str(&format!(
            "torn at {at}: the next start cuts {}, of which nothing was acknowledged unless the files were cut short\n",
            output::size(view.torn_bytes as f64)
        ));
    }
    for damage in &view.damage {
        text.push_str(&format!("damage in {}, bytes {} to {}: {}\n", damage.file, damage.from, damage.to, damage.what));
    }
    if view.damage.is_empty() {
        text.push_str("no damage\n");
    }
    text
}

#[derive(Serialize)]
struct RecordView<'a> {
    segment: u64,
    at: u64,
    stored: String,
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
    detail: &'a str,
}

fn write(line: &DumpLine, how: Output, messages: bool) -> Result<(), CliError> {
    let json = |e: serde_json::Error| CliError::failed(e.to_string());
    let view = RecordView {
        segment: line.segment,
        at: line.at,
        stored: time_text(line.stored_at_us),
        kind: line.kind,
        log: line.log.as_ref().map(ToString::to_string),
        place: line.place.map(|place| place.to_string()),
        detail: &line.detail,
    };
    let mut text = match how {
        Output::Json => serde_json::to_string(&view).map_err(json)?,
        Output::Table => format!(
            "{:>5} {:>12} {} {:<16} {} {} {}",
            view.segment,
            view.at,
            view.stored,
            view.kind,
            view.log.as_deref().unwrap_or("-"),
            view.place.as_deref().unwrap_or("-"),
            view.detail
        ),
    };
    text.push('\n');
    if let Some(batch) = line.batch.as_ref().filter(|_| messages) {
        match decode_messages(batch, BODY_BYTES_MAX) {
            Err(e) => output::note(&format!("seaway: {e}")),
            Ok(found) => {
                for message in found {
                    let origin = line.log.as_ref().map(|log| log.origin.to_string()).unwrap_or_default();
                    text.push_str(&serde_json::to_string(&Line::from(&api_message(message, origin))).map_err(json)?);
                    text.push('\n');
                }
            }
        }
    }
    output::bytes(text.as_bytes())
}

fn api_message(message: seaway_federation_proto::message::Message, origin: String) -> api::Message {
    let headers = message.headers.into_iter().map(|(name, value)| api::Header { name, value });
    api::Message {
        path: message.path.to_string(),
        key: message.key,
        headers: headers.collect(),
        payload: message.payload,
        time_us: message.time_us,
        origin,
        ..Default::default()
    }
}
