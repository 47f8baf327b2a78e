//! From what the command line says of every message, and one message's own content, to what is sent.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use seaway_federation_proto::{
    ids::{Path, Site},
    limits::MESSAGE_BYTES_CEILING,
};

use super::input::Item;
use crate::{
    api::{self, publish_batch::Content},
    cli::{
        CliError, Exit,
        args::{Mode, OnDeadline, PubArgs},
    },
};

/// What holds for every message of a command.
#[derive(Debug)]
pub(crate) struct Template {
    path: Option<Path>,
    key: Option<Bytes>,
    headers: Vec<api::Header>,
    batch: api::PublishBatch,
    pub(crate) mode: Mode,
    /// `--deadline`, where it is given.
    pub(crate) deadline: Option<Duration>,
}

impl Template {
    /// Checks the arguments.
    pub(crate) fn new(args: &PubArgs) -> Result<Self, CliError> {
        let path =
            args.path.as_deref().map(str::parse::<Path>).transpose().map_err(|e| CliError::usage(e.to_string()))?;
        if path.is_none() && args.input != Some(crate::cli::args::Input::Json) {
            return Err(CliError::usage("a PATH is needed; only with --input json does each message name its own"));
        }
        let acknowledgement = acknowledgement(&args.ack)?;
        if args.mode != Mode::Sync && args.ack != "local" {
            return Err(CliError::usage("--ack waits for other sites, which only --mode sync does"));
        }
        if args.mode == Mode::OneWay && args.deadline.is_some() {
            return Err(CliError::usage("--deadline has no meaning with --mode one-way, which waits for nobody"));
        }
        let headers = args.header.iter().map(|header| {
            let (name, value) = header.split_once('=').ok_or_else(|| {
                CliError::usage(format!("the header {header:?} has no '='; write --header NAME=VALUE"))
            })?;
            Ok(api::Header { name: name.to_string(), value: Bytes::from(value.to_string()) })
        });
        let deadline_ms = match args.deadline {
            None => 0,
            Some(deadline) => u64::try_from(deadline.as_millis())
                .ok()
                .filter(|ms| *ms > 0)
                .ok_or_else(|| CliError::usage("--deadline must be at least 1 ms"))?,
        };
        let mode = match args.mode {
            Mode::Sync => api::Mode::Sync,
            Mode::Async => api::Mode::Async,
            Mode::OneWay => api::Mode::OneWay,
        };
        let on_deadline = match args.on_deadline {
            OnDeadline::Fail => api::OnDeadline::Fail,
            OnDeadline::Degrade => api::OnDeadline::Degrade,
        };
        Ok(Self {
            path,
            key: args.key.clone().map(Bytes::from),
            headers: headers.collect::<Result<_, CliError>>()?,
            batch: api::PublishBatch {
                mode: mode.into(),
                acknowledgement: Some(acknowledgement),
                deadline_ms,
                on_deadline: on_deadline.into(),
                ..Default::default()
            },
            mode: args.mode,
            deadline: args.deadline,
        })
    }

    /// A batch without messages, and what holds for all that come into it.
    pub(crate) fn batch(&self) -> api::PublishBatch {
        self.batch.clone()
    }

    /// One message, with its topic.
    pub(crate) fn content(&self, item: Item) -> Result<(String, Content), CliError> {
        let path = match (&self.path, &item.path) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => path.parse().map_err(|e| CliError::failed(format!("{e}")))?,
            (None, None) => {
                return Err(CliError::failed("a message of the input names no path, and the command gives none"));
            }
        };
        let mut headers = item.headers;
        headers.extend(self.headers.iter().cloned());
        let key = item.key.or_else(|| self.key.clone());
        let content = Content { path: path.to_string(), key, headers, payload: item.payload };
        let bytes = content_bytes(&content);
        if bytes > MESSAGE_BYTES_CEILING {
            // The server would refuse the whole request, and with it what is on the way beside this message.
            return Err(CliError::new(
                Exit::Refused,
                format!(
                    "a message of {bytes} bytes (payload, key and headers) is larger than the {MESSAGE_BYTES_CEILING} that any \
                     topic takes; cut it into smaller ones"
                ),
            ));
        }
        Ok((path.topic().to_string(), content))
    }
}

/// Payload, key and headers, as the limit of a message counts them.
pub(crate) fn content_bytes(content: &Content) -> usize {
    let headers: usize = content.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
    content.payload.len() + content.key.as_ref().map_or(0, Bytes::len) + headers
}

fn acknowledgement(text: &str) -> Result<api::Acknowledgement, CliError> {
    use api::acknowledgement::Of;
    let of = match text {
        "local" => Of::Local(true),
        "all" => Of::All(true),
        _ => match (text.strip_prefix("sites="), text.parse::<u32>()) {
            (Some(list), _) => {
                let sites: Vec<String> = list.split(',').map(|site| site.trim().to_string()).collect();
                for site in &sites {
                    site.parse::<Site>().map_err(|e| CliError::usage(format!("--ack: {e}")))?;
                }
                Of::Sites(api::SiteList { sites })
            }
            (None, Ok(0)) => return Err(CliError::usage("--ack 0 asks for nobody; write --ack local")),
            (None, Ok(number)) => Of::Count(number),
            (None, Err(_)) => {
                return Err(CliError::usage(format!(
                    "--ack {text:?} is not understood; local, all, a number of other sites, or sites=a,b is expected"
                )));
            }
        },
    };
    Ok(api::Acknowledgement { of: Some(of) })
}

/// The producer that this process is: new with each, so a second run is never taken for a retry.
#[derive(Debug)]
pub(crate) struct Producer {
    id: Bytes,
    epoch: u32,
    next: BTreeMap<String, u64>,
}

impl Producer {
    /// A producer that no site knows yet.
    pub(crate) fn new() -> Result<Self, CliError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| CliError::failed(format!("the system gives no random numbers: {e}")))?;
        Ok(Self { id: Bytes::copy_from_slice(&id), epoch: 1, next: BTreeMap::new() })
    }

    /// The stamp of a topic's next message.
    pub(crate) fn stamp(&mut self, topic: &str) -> api::ProducerStamp {
        let next = self.next.entry(topic.to_string()).or_insert(0);
        let sequence = *next;
        *next += 1;
        api::ProducerStamp { id: self.id.clone(), epoch: self.epoch, sequence }
    }

    /// Begins a new epoch: all that was stamped before is settled or will be stamped anew.
    pub(crate) fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.next.clear();
    }
}
