//! `seaway topic create`, `set`, `trim`, `skip` and `rm`.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{
    CliError, Exit,
    args::{ClientArgs, Output},
    client::Servers,
    json, output,
};
use crate::{
    api::{self, trim_topic_request::To},
    config::values::{FromText, Size, time_us},
};

/// Settings of a topic; what is not given stays as it is.
#[derive(Debug, Args)]
pub(crate) struct SettingArgs {
    /// Queues for what is published at this site; keys keep their order when it changes.
    #[arg(long, value_name = "N")]
    queues: Option<u64>,
    /// Largest message, such as 4MiB: payload, key and headers together.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    message_size_max: Option<u64>,
    /// Compression of what is published at this site: none, lz4 or zstd.
    #[arg(long, value_name = "CODEC")]
    compression: Option<String>,
    /// Sites that count for --ack all, separated by commas; "all": those that register.
    #[arg(long, value_name = "SITES|all", value_delimiter = ',')]
    replicate: Option<Vec<String>>,
    /// How much of each log is kept at this site; "none": all.
    #[arg(long, value_name = "SIZE|none", value_parser = size_or_none)]
    retention_size: Option<u64>,
    /// How long it is kept at this site, such as "7 days"; "none": for ever.
    #[arg(long, value_name = "D|none", value_parser = age_or_none)]
    retention_age: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct TopicCreateArgs {
    /// The topic: the first level of paths.
    topic: String,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    client: ClientArgs,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Args)]
#[command(
    after_help = "What is set here holds until it is unset here, whatever the configuration file says; then the file's first \
    matching section holds again. Queues, message size, compression and replicate are for what is published at this site, and \
    go with the topic to all others; retention is for this site alone."
)]
pub(crate) struct TopicSetArgs {
    /// The topic.
    topic: String,
    #[command(flatten)]
    settings: SettingArgs,
    /// Settings for which the configuration file holds again, separated by commas: queues, message-size-max, compression,
    /// replicate, retention-size, retention-age.
    #[arg(long, value_name = "SETTING", value_delimiter = ',')]
    unset: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct TopicTrimArgs {
    /// The topic.
    topic: String,
    /// Gives up what stands before a place (a position as `sub --output json` gives it) or was published before a time (RFC 3339).
    #[arg(long, value_name = "PLACE|TIME", required_unless_present = "keep_size", conflicts_with = "keep_size")]
    before: Option<String>,
    /// Keeps about so much of each log, the newest.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    keep_size: Option<u64>,
    /// Only of what was published at this site; without it, of all that is held here.
    #[arg(long, value_name = "SITE")]
    origin: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct TopicSkipArgs {
    /// The topic.
    topic: String,
    /// Only of what was published at this site; without it, of all.
    #[arg(long, value_name = "SITE")]
    origin: Option<String>,
    /// Gives it up; without it the command only says what it would give up.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    client: ClientArgs,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct TopicRemoveArgs {
    /// The topic, which must be published at this site.
    topic: String,
    /// Although a group still reads it.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    client: ClientArgs,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,
}

fn size(text: &str) -> Result<u64, String> {
    Size::from_text(text).map(|size| size.0).map_err(|e| format!("{e}; write it with its unit, such as 1GiB"))
}

/// 0 is none; nobody means to keep nothing.
fn size_or_none(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        text => size(text)
            .and_then(|size| if size == 0 { Err("0 keeps nothing; \"none\" keeps all".into()) } else { Ok(size) }),
    }
}

fn age_or_none(text: &str) -> Result<Duration, String> {
    if text == "none" {
        return Ok(Duration::ZERO);
    }
    let age = humantime::parse_duration(text).map_err(|e| format!("{e}; write it with its unit, such as 7days"))?;
    if age < Duration::from_millis(1) {
        Err("so short a time keeps nothing; \"none\" keeps all".into())
    } else {
        Ok(age)
    }
}

impl SettingArgs {
    fn change(self, unset: Vec<String>) -> Result<api::TopicChange, CliError> {
        let replicate = self.replicate.map(|sites| {
            let all = sites.iter().any(|site| site == "all");
            let sites: Vec<String> = sites.into_iter().filter(|site| !site.is_empty() && site != "all").collect();
            if all && !sites.is_empty() {
                return Err(CliError::usage("--replicate names all and some; give \"all\", or the sites"));
            }
            Ok(api::SiteSet { all, sites })
        });
        let ms = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Ok(api::TopicChange {
            queues: self.queues,
            message_size_max: self.message_size_max,
            compression: self.compression,
            replicate: replicate.transpose()?,
            retention_size: self.retention_size,
            retention_age_ms: self.retention_age.map(ms),
            unset,
        })
    }
}

#[derive(Debug, Serialize)]
struct Did<'a> {
    topic: &'a str,
    done: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waiting: Vec<String>,
    /// Sites with copies of what was deleted: what groups there have not confirmed is not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups_unknown_at: Vec<String>,
}

fn say(output: Output, text: &str, did: &Did<'_>) -> Result<Exit, CliError> {
    match output {
        Output::Json => output::json(did)?,
        Output::Table => output::line(text)?,
    }
    Ok(Exit::Done)
}

pub(crate) async fn create(args: TopicCreateArgs) -> Result<Exit, CliError> {
    let change = args.settings.change(Vec::new())?;
    let mut admin = Servers::of(&args.client)?.admin().await?;
    admin.create_topic(api::CreateTopicRequest { topic: args.topic.clone(), change: Some(change) }).await?;
    let did = Did { topic: &args.topic, done: "created", waiting: Vec::new(), groups_unknown_at: Vec::new() };
    say(args.output, &format!("topic {} is created", args.topic), &did)
}

pub(crate) async fn set(args: TopicSetArgs) -> Result<Exit, CliError> {
    let change = args.settings.change(args.unset)?;
    if change == api::TopicChange::default() {
        return Err(CliError::usage("nothing is to be set; give --queues, --retention-age …, or --unset"));
    }
    let mut admin = Servers::of(&args.client)?.admin().await?;
    admin.set_topic(api::SetTopicRequest { topic: args.topic.clone(), change: Some(change) }).await?;
    let did = Did { topic: &args.topic, done: "set", waiting: Vec::new(), groups_unknown_at: Vec::new() };
    say(args.output, &format!("topic {} is set", args.topic), &did)
}

pub(crate) async fn remove(args: TopicRemoveArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let request = api::RemoveTopicRequest { topic: args.topic.clone(), force: args.force };
    let waiting = admin.remove_topic(request).await?.into_inner().waiting;
    let more = match waiting.is_empty() {
        true => String::new(),
        false => format!(
            "; {} will drop it when it hears of it; groups at other sites are not known here, and what they had not confirmed is gone",
            waiting.join(", ")
        ),
    };
    let text = format!("topic {} is deleted{more}", args.topic);
    let groups_unknown_at = waiting.clone();
    say(args.output, &text, &Did { topic: &args.topic, done: "deleted", waiting, groups_unknown_at })
}

#[derive(Debug, Serialize)]
struct TrimmedView {
    origin: String,
    queue: u32,
    begin: String,
}

pub(crate) async fn trim(args: TopicTrimArgs) -> Result<Exit, CliError> {
    let to = match (&args.before, args.keep_size) {
        (Some(text), _) => match (json::parse_position(text), time_us(text)) {
            (Some(position), _) => To::Before(position),
            (None, Some(time_us)) => To::BeforeUs(time_us),
            (None, None) => {
                let text = format!("--before {text:?} is neither a position nor a time such as 2030-01-31T12:00:00Z");
                return Err(CliError::usage(text));
            }
        },
        (None, Some(bytes)) => To::KeepSize(bytes),
        (None, None) => return Err(CliError::usage("give --before or --keep-size")),
    };
    let request =
        api::TrimTopicRequest { topic: args.topic.clone(), origin: args.origin.unwrap_or_default(), to: Some(to) };
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let logs = admin.trim_topic(request).await?.into_inner().logs;
    let views: Vec<TrimmedView> = logs
        .into_iter()
        .map(|log| {
            let id = api::MessageId {
                topic: args.topic.clone(),
                origin: log.origin.clone(),
                queue: log.queue,
                place: log.begin,
            };
            TrimmedView { origin: log.origin, queue: log.queue, begin: json::position_text(&id) }
        })
        .collect();
    match args.output {
        Output::Json => output::json(&views)?,
        Output::Table if views.is_empty() => {
            output::line(&format!("nothing of topic {} was to be trimmed", args.topic))?
        }
        Output::Table => {
            for view in &views {
                output::line(&format!("queue {} of {} begins at {} now", view.queue, view.origin, view.begin))?;
            }
        }
    }
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct SkippedView {
    origin: String,
    queue: u32,
    from: String,
    /// Up to this offset, exclusive.
    to: u64,
    messages: u64,
}

#[derive(Debug, Serialize)]
struct Skipped<'a> {
    topic: &'a str,
    done: &'static str,
    ranges: Vec<SkippedView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kept: Vec<String>,
}

pub(crate) async fn skip(args: TopicSkipArgs) -> Result<Exit, CliError> {
    let mut admin = Servers::of(&args.client)?.admin().await?;
    let request =
        api::SkipTopicRequest { topic: args.topic.clone(), origin: args.origin.unwrap_or_default(), really: args.yes };
    let api::SkipTopicReply { ranges, kept } = admin.skip_topic(request).await?.into_inner();
    let view = |range: api::SkippedRange| {
        let from = range.from?;
        let first = from.place?.offset;
        let (origin, queue) = (from.origin.clone(), from.queue);
        let messages = range.to.saturating_sub(first);
        Some(SkippedView { origin, queue, from: json::position_text(&from), to: range.to, messages })
    };
    let ranges: Vec<SkippedView> = ranges.into_iter().filter_map(view).collect();
    if args.output == Output::Json {
        let done = if args.yes { "skipped" } else { "nothing" };
        output::json(&Skipped { topic: &args.topic, done, ranges, kept })?;
        return Ok(Exit::Done);
    }
    for range in &ranges {
        let SkippedView { origin, queue, from, to, messages } = range;
        let count = output::count(*messages, "message");
        let done = if args.yes {
            "given up and stated as lost"
        } else {
            "waited for, and nobody who can be reached gives them"
        };
        output::line(&format!("queue {queue} of {origin}: {count} from {from} to offset {to}: {done}"))?;
    }
    for why in &kept {
        output::line(why)?;
    }
    match (ranges.is_empty(), args.yes) {
        (true, _) => output::line(&format!("nothing of topic {} is waited for that could be given up", args.topic))?,
        (false, false) => output::line("--yes gives them up, for ever, here only")?,
        (false, true) => {}
    }
    Ok(Exit::Done)
}
