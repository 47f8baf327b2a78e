//! `seaway limit ls`, `set` and `rm`.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::{
    CliError, Exit,
    args::{ClientArgs, ListArgs, Output},
    client::Servers,
    output::{self, Table, short, size},
    show::all,
};
use crate::{
    api::{self, LimitSubject, LimitValues, ListLimitsRequest, RemoveLimitRequest, SetLimitRequest},
    config::values::{FromText, Size},
};

#[derive(Debug, Subcommand)]
pub(crate) enum LimitCommand {
    /// Every limit: what holds, where it comes from, how often it held back.
    Ls(ListArgs),
    /// Set a limit, live and for good.
    Set(LimitSetArgs),
    /// Forget what `limit set` said; then the configuration file's holds again.
    Rm(LimitRemoveArgs),
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LimitKind {
    /// What is published at this site to a topic.
    Topic,
    /// What goes over a link, in one direction.
    Link,
    /// What a client publishes.
    Client,
}

/// Which way over a link, as the node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LimitDirection {
    /// What the node sends to the peer.
    Send,
    /// What it lets the peer send.
    Receive,
}

#[derive(Debug, Args)]
pub(crate) struct SubjectArgs {
    /// topic, link or client.
    #[arg(value_enum)]
    kind: LimitKind,
    /// A topic, or '#' for each topic; the peer of a link as SITE/NODE; a client; '*' for every peer or client that has no limit of its own.
    of: String,
    /// Of a link: which way.
    #[arg(long, value_enum, required_if_eq("kind", "link"))]
    direction: Option<LimitDirection>,
}

impl SubjectArgs {
    fn subject(&self) -> LimitSubject {
        let kind = match self.kind {
            LimitKind::Topic => "topic",
            LimitKind::Link => "link",
            LimitKind::Client => "client",
        };
        let direction = match self.direction {
            Some(LimitDirection::Send) => "send",
            Some(LimitDirection::Receive) => "receive",
            None => "",
        };
        LimitSubject { kind: kind.to_owned(), of: self.of.clone(), direction: direction.to_owned() }
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "What is not given stays as it is; what no command set, the configuration file says. Beyond a rate publishers are slowed \
    down, or with --on-exceed refuse refused (exit code 5); links are slowed down always, and drop one-way messages, which is counted."
)]
pub(crate) struct LimitSetArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Messages a second, on average; "none": no limit.
    #[arg(long, value_name = "N|none", value_parser = number_or_none, allow_negative_numbers = true)]
    messages_per_s: Option<u64>,
    /// Messages above the average at once; as many as come in a second unless set.
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true)]
    messages_burst: Option<u64>,
    /// Bytes a second, on average, such as 1MiB; "none": no limit.
    #[arg(long, value_name = "SIZE|none", value_parser = size_or_none, allow_negative_numbers = true)]
    bytes_per_s: Option<u64>,
    /// Bytes above the average at once; as many as come in a second, or the largest message, unless set.
    #[arg(long, value_name = "SIZE", value_parser = some_size, allow_negative_numbers = true)]
    bytes_burst: Option<u64>,
    /// What a publisher beyond the rate meets.
    #[arg(long, value_parser = ["delay", "refuse"])]
    on_exceed: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct LimitRemoveArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    #[command(flatten)]
    client: ClientArgs,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

fn number(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(0) => Err("0 lets nothing pass; at least 1 is expected".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("a whole number from 1 to {} is expected", u64::MAX)),
    }
}

/// 0 is no limit; nobody means to let nothing pass.
fn number_or_none(text: &str) -> Result<u64, String> {
    if text == "none" { Ok(0) } else { number(text).map_err(|why| format!("{why}; \"none\" is no limit")) }
}

fn some_size(text: &str) -> Result<u64, String> {
    match Size::from_text(text) {
        Ok(Size(0)) => Err("0 lets nothing pass; at least 1B is expected".to_owned()),
        Ok(Size(bytes)) => Ok(bytes),
        Err(why) => Err(format!("{why}; write it with its unit, such as 1MiB")),
    }
}

fn size_or_none(text: &str) -> Result<u64, String> {
    if text == "none" { Ok(0) } else { some_size(text).map_err(|why| format!("{why}; \"none\" is no limit")) }
}

#[derive(Debug, Serialize)]
struct Did {
    #[serde(flatten)]
    subject: SubjectView,
    done: &'static str,
}

#[derive(Debug, Serialize)]
struct SubjectView {
    kind: String,
    of: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    direction: String,
}

impl From<LimitSubject> for SubjectView {
    fn from(from: LimitSubject) -> Self {
        Self { kind: from.kind, of: from.of, direction: from.direction }
    }
}

fn say(output: Output, subject: LimitSubject, done: &'static str) -> Result<Exit, CliError> {
    let SubjectView { kind, of, direction } = SubjectView::from(subject.clone());
    let way = if direction.is_empty() { String::new() } else { format!(" ({direction})") };
    match output {
        Output::Json => output::json(&Did { subject: subject.into(), done })?,
        Output::Table => output::line(&format!("the limit of {kind} {of}{way} is {done}"))?,
    }
    Ok(Exit::Done)
}

pub(crate) async fn set(args: LimitSetArgs) -> Result<Exit, CliError> {
    let change = LimitValues {
        messages_per_s: args.messages_per_s,
        messages_burst: args.messages_burst,
        bytes_per_s: args.bytes_per_s,
        bytes_burst: args.bytes_burst,
        on_exceed: args.on_exceed,
    };
    if change == LimitValues::default() {
        return Err(CliError::usage("nothing is to be set; give --messages-per-s, --bytes-per-s … or --on-exceed"));
    }
    let subject = args.subject.subject();
    let mut admin = Servers::of(&args.client)?.admin().await?;
    admin.set_limit(SetLimitRequest { subject: Some(subject.clone()), change: Some(change) }).await?;
    say(args.output, subject, "set")
}

pub(crate) async fn remove(args: LimitRemoveArgs) -> Result<Exit, CliError> {
    let subject = args.subject.subject();
    let mut admin = Servers::of(&args.client)?.admin().await?;
    admin.remove_limit(RemoveLimitRequest { subject: Some(subject.clone()) }).await?;
    say(args.output, subject, "forgotten")
}

/// What a source says; `null`: nothing; a rate of 0: no limit.
#[derive(Debug, Serialize)]
struct ValuesView {
    messages_per_s: Option<u64>,
    messages_burst: Option<u64>,
    bytes_per_s: Option<u64>,
    bytes_burst: Option<u64>,
    on_exceed: Option<String>,
}

impl ValuesView {
    fn of(from: Option<LimitValues>) -> Self {
        let from = from.unwrap_or_default();
        Self {
            messages_per_s: from.messages_per_s,
            messages_burst: from.messages_burst,
            bytes_per_s: from.bytes_per_s,
            bytes_burst: from.bytes_burst,
            on_exceed: from.on_exceed,
        }
    }
}

#[derive(Debug, Serialize)]
struct LimitView {
    #[serde(flatten)]
    subject: SubjectView,
    holds: ValuesView,
    by_command: ValuesView,
    in_file: ValuesView,
    delayed: u64,
    refused: u64,
    #[serde(skip)]
    from: String,
}

impl From<api::LimitStatus> for LimitView {
    fn from(from: api::LimitStatus) -> Self {
        let said =
            |values: &Option<LimitValues>| values.as_ref().is_some_and(|values| *values != LimitValues::default());
        let sources = [(said(&from.set), "limit set"), (said(&from.file), "file")];
        let sources: Vec<_> = sources.into_iter().filter_map(|(is, name)| is.then_some(name)).collect();
        Self {
            subject: from.subject.unwrap_or_default().into(),
            holds: ValuesView::of(from.holds),
            by_command: ValuesView::of(from.set),
            in_file: ValuesView::of(from.file),
            delayed: from.delayed,
            refused: from.refused,
            from: sources.join(", "),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
pub(crate) async fn list(args: ListArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let limits = all(async |page_token| {
        let reply = admin.list_limits(ListLimitsRequest { page_size: 0, page_token }).await?.into_inner();
        Ok((reply.limits, reply.next_page_token))
    })
    .await?;
    let views: Vec<LimitView> = limits.into_iter().map(LimitView::from).collect();
    if args.output == Output::Json {
        output::json(&views)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&[
        "KIND",
        "OF",
        "DIR",
        ">MESSAGES/S",
        ">BURST",
        ">BYTES/S",
        ">BURST",
        "BEYOND",
        "FROM",
        ">DELAYED",
        ">REFUSED",
    ]);
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), |bytes| size(bytes as f64));
    for view in &views {
        let (subject, holds) = (&view.subject, &view.holds);
        table.row([
            subject.kind.clone(),
            short(&subject.of),
            subject.direction.clone(),
            number(holds.messages_per_s),
            number(holds.messages_burst),
            bytes(holds.bytes_per_s),
            bytes(holds.bytes_burst),
            holds.on_exceed.clone().unwrap_or_default(),
            view.from.clone(),
            view.delayed.to_string(),
            view.refused.to_string(),
        ]);
    }
    output::bytes(table.render().as_bytes())?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_rate_is_refused_in_words() {
        for wrong in ["0", "-1", "18446744073709551616", "1.5", "", "many"] {
            assert!(number_or_none(wrong).unwrap_err().contains("\"none\" is no limit"), "{wrong}");
            assert!(number(wrong).is_err(), "{wrong}");
        }
        for wrong in ["0", "0 MiB", "-1", "18446744073709551616", "17179869184 GiB", "1.5 MiB", "fast"] {
            assert!(size_or_none(wrong).is_err() && some_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!((number_or_none("none"), size_or_none("none")), (Ok(0), Ok(0)));
        assert_eq!((number("18446744073709551615"), some_size("1MiB")), (Ok(u64::MAX), Ok(1 << 20)));
    }
}
