//! `seaway sub`: messages to standard output.
//!
//! Messages are written as they come and flushed whenever no more are at hand; of a group, a message is confirmed once
//! it is written, and the command ends only when its confirmations are answered. Credit is what the server may send
//! ahead; with `--count` never more than is still wanted, so that a group's other members get the rest. A connection that
//! breaks is made anew where it is certain where to go on: in a group, and after `--from earliest` or positions.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    time::Duration,
};

use seaway_federation_proto::ids::{Pattern, Site};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{
    CliError, Exit,
    args::{SubArgs, SubOutput},
    client::{Servers, messages},
    json::{Line, parse_position},
    output,
    publish::RECONNECT_FOR,
};
use crate::{
    api::{
        GapReason, Message, MessageId, Place, Position, SubscribeReply, SubscribeRequest,
        subscribe_reply::{Gap, Kind},
        subscribe_request::{self, Confirm, Credit, Open, Positions, open::From},
    },
    config::values::time_us,
};

/// What the server may send ahead of us, in messages and bytes.
const CREDIT_MESSAGES: u32 = 16_384;
const CREDIT_BYTES: u64 = 16 << 20;
/// Ranges that are missing are told apart up to so many.
const MISSING_KEPT_MAX: usize = 65_536;
/// Between two attempts to connect again.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Runs the command.
pub(crate) async fn run(args: SubArgs) -> Result<Exit, CliError> {
    let open = open(&args)?;
    let servers = Servers::of(&args.client)?;
    let listening = listen_on(&args, open, &servers);
    match args.timeout {
        None => listening.await,
        Some(timeout) => tokio::time::timeout(timeout, listening).await.unwrap_or_else(|_| {
            let text = format!("the time of {} is over", humantime::format_duration(timeout));
            Err(CliError::new(Exit::TimedOut, text))
        }),
    }
}

/// Subscribes, and again when the connection breaks, as long as it is certain where to go on.
async fn listen_on(args: &SubArgs, mut open: Open, servers: &Servers) -> Result<Exit, CliError> {
    let mut subscriber = Subscriber::new(args);
    let mut broken: Option<(CliError, Instant)> = None;
    let mut pause = RETRY_MIN;
    loop {
        let written = subscriber.written;
        let ended = match subscribe(&open, servers).await {
            Ok((to_server, replies)) => subscriber.listen(to_server, replies).await,
            Err(e) if broken.is_some() => Err(Ended::Broken(e)),
            Err(e) => return Err(e),
        };
        let why = match ended {
            Ok(exit) => return Ok(exit),
            Err(Ended::Failed(e)) => return Err(e),
            Err(Ended::Broken(why)) => why,
        };
        let text = format!("after {}: {why}", output::count(subscriber.written, "message"));
        if !subscriber.go_on_in(&mut open) {
            return Err(CliError::new(why.exit(), text));
        }
        if subscriber.written > written || broken.is_none() {
            output::note(&format!("seaway: {text}; connecting again"));
            (broken, pause) = (Some((CliError::new(why.exit(), text), Instant::now())), RETRY_MIN);
        }
        if let Some((first, since)) = &broken
            && since.elapsed() >= RECONNECT_FOR
        {
            return Err(first.clone());
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = super::node::interrupted() => return Ok(Exit::Done),
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}

type Opened = (mpsc::Sender<SubscribeRequest>, tonic::Streaming<SubscribeReply>);

async fn subscribe(open: &Open, servers: &Servers) -> Result<Opened, CliError> {
    let (_, door) = servers.connect(0).await?;
    let (to_server, requests) = mpsc::channel(64);
    let _ = to_server.send(SubscribeRequest { kind: Some(subscribe_request::Kind::Open(open.clone())) }).await;
    let replies = messages(door).subscribe(ReceiverStream::new(requests)).await?.into_inner();
    Ok((to_server, replies))
}

/// How a subscription ended before it was done.
enum Ended {
    /// The connection, or the node: another may be made.
    Broken(CliError),
    /// For good.
    Failed(CliError),
}

impl std::convert::From<CliError> for Ended {
    fn from(error: CliError) -> Self {
        Self::Failed(error)
    }
}

fn open(args: &SubArgs) -> Result<Open, CliError> {
    let pattern: Pattern = args.pattern.parse().map_err(|e| CliError::usage(format!("{e}")))?;
    if let Some(group) = &args.group {
        crate::groups::check_name(group).map_err(CliError::usage)?;
    }
    for origin in &args.origin {
        origin.parse::<Site>().map_err(|e| CliError::usage(format!("{e}")))?;
    }
    let from = match args.last {
        Some(last) => Some(From::Last(last)),
        None => from(&args.from)?,
    };
    let wanted =
        args.count.map_or(CREDIT_MESSAGES, |count| u32::try_from(count).unwrap_or(u32::MAX).min(CREDIT_MESSAGES));
    Ok(Open {
        pattern: pattern.to_string(),
        group: args.group.clone().unwrap_or_default(),
        origins: args.origin.clone(),
        credit: Some(Credit { messages: wanted, bytes: CREDIT_BYTES }),
        until_end: args.until_end,
        // One-way messages are not stored: they belong to nobody's position and have no end.
        one_way: args.group.is_none() && !args.until_end,
        from,
    })
}

fn from(texts: &[String]) -> Result<Option<From>, CliError> {
    let positions: Option<Vec<_>> = texts.iter().map(|text| parse_position(text)).collect();
    match (texts, positions) {
        ([], _) => Ok(None),
        (_, Some(positions)) => Ok(Some(From::Positions(Positions { positions }))),
        ([one], None) if one == "earliest" => Ok(Some(From::Earliest(true))),
        ([one], None) if one == "latest" => Ok(Some(From::Latest(true))),
        ([one], None) if time_us(one).is_some() => Ok(time_us(one).map(From::TimeUs)),
        _ => Err(CliError::usage(format!(
            "--from {:?} is not understood; earliest, latest, a time such as 2026-03-01T12:00:00Z, or positions such as \
             orders@eu#1=1.00000000000000ff:7 are expected",
            texts.join(",")
        ))),
    }
}

/// A subscription while it runs.
struct Subscriber {
    to_server: mpsc::Sender<SubscribeRequest>,
    output: SubOutput,
    in_group: bool,
    /// Messages still wanted; `None`: without end.
    left: Option<u64>,
    /// Messages that credit was given for beyond those that came.
    ahead: u64,
    used: Credit,
    confirmations: u64,
    unanswered: u64,
    written: u64,
    /// The place after the last message written of each log, where the start makes it certain that no more is needed
    /// to go on: from the begin of what is there, or positions.
    reached: Option<BTreeMap<(String, String, u32), Position>>,
    /// Where it is to end at the end: the begins of ranges that did not come and may yet. So much is kept of them.
    missing: Option<BTreeSet<String>>,
}

impl Subscriber {
    fn new(args: &SubArgs) -> Self {
        let ahead = args.count.map_or(u64::from(CREDIT_MESSAGES), |count| count.min(CREDIT_MESSAGES.into()));
        let begins = match from(&args.from) {
            Ok(Some(From::Earliest(_))) => Some(Vec::new()),
            Ok(Some(From::Positions(given))) => Some(given.positions),
            _ => None,
        };
        let key = |p: &Position| (p.topic.clone(), p.origin.clone(), p.queue);
        Self {
            // Replaced as soon as there is a stream.
            to_server: mpsc::channel(1).0,
            output: args.output,
            in_group: args.group.is_some(),
            left: args.count,
            ahead,
            used: Credit::default(),
            confirmations: 0,
            unanswered: 0,
            written: 0,
            reached: begins.map(|positions| positions.into_iter().map(|p| (key(&p), p)).collect()),
            missing: args.until_end.then(BTreeSet::new),
        }
    }

    /// Changes `open` so that it goes on after what was written; `false` where that is not certain.
    fn go_on_in(&mut self, open: &mut Open) -> bool {
        let wanted = self.left.unwrap_or(u64::MAX).min(CREDIT_MESSAGES.into());
        self.ahead = wanted;
        self.unanswered = 0;
        self.used = Credit::default();
        open.credit = Some(Credit { messages: u32::try_from(wanted).unwrap_or(CREDIT_MESSAGES), bytes: CREDIT_BYTES });
        if self.in_group {
            // The group knows; what was written and not yet confirmed comes again.
            return true;
        }
        let Some(reached) = &self.reached else { return false };
        let positions: Vec<Position> = reached.values().cloned().collect();
        if !positions.is_empty() {
            open.from = Some(From::Positions(Positions { positions }));
        }
        true
    }

    async fn listen(
        &mut self,
        to_server: mpsc::Sender<SubscribeRequest>,
        mut replies: tonic::Streaming<SubscribeReply>,
    ) -> Result<Exit, Ended> {
        self.to_server = to_server;
        let mut at_end = false;
        let mut interrupted = std::pin::pin!(super::node::interrupted());
        while !self.is_done(at_end) {
            let reply = tokio::select! {
                reply = replies.message() => reply,
                () = &mut interrupted => return Ok(Exit::Done),
            };
            let reply = reply.map_err(|status| self.ended_by(status))?;
            match reply.and_then(|reply| reply.kind) {
                Some(Kind::Opened(opened)) => {
                    opened.notes.iter().for_each(|note| output::note(&format!("seaway: {note}")));
                }
                Some(Kind::Messages(batch)) => self.take(batch.messages).await?,
                Some(Kind::Confirmed(answer)) => {
                    self.unanswered = self.unanswered.saturating_sub(1);
                    if !answer.refused.is_empty() {
                        output::note(&format!("seaway: a confirmation was refused: {}", answer.refused));
                    }
                }
                Some(Kind::Gap(gap)) => self.note_gap(&gap),
                Some(Kind::AtEnd(_)) => at_end = true,
                None => return Err(Ended::Broken(CliError::failed("the server ended the subscription"))),
            }
        }
        match self.missing.as_ref().filter(|_| at_end).map_or(0, |missing| missing.len() as u64) {
            0 => Ok(Exit::Done),
            some => Err(Ended::Failed(CliError::failed(format!(
                "{} written, and {} could not be read now (see above); subscribe again to get what is missing",
                output::count(self.written, "message"),
                output::count(some, "range"),
            )))),
        }
    }

    /// Tells of a gap, and keeps that something is missing where it is not for good.
    fn note_gap(&mut self, gap: &Gap) {
        let from = gap.from.as_ref().map(super::json::position_text).unwrap_or_default();
        let to = gap.to.unwrap_or_default();
        output::note(&format!("seaway: a gap: from {from} to offset {}: {}", to.offset, gap.text));
        let for_good =
            matches!(gap.why(), GapReason::NotWanted | GapReason::Lost | GapReason::Retention | GapReason::Deleted);
        if let Some(missing) = self.missing.as_mut().filter(|missing| !for_good && missing.len() < MISSING_KEPT_MAX) {
            missing.insert(from);
        }
    }

    fn ended_by(&self, status: tonic::Status) -> Ended {
        let code = status.code();
        let error = CliError::from(status);
        match code {
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled => Ended::Broken(error),
            _ => {
                let text = format!("after {}: {error}", output::count(self.written, "message"));
                Ended::Failed(CliError::new(error.exit(), text))
            }
        }
    }

    fn is_done(&self, at_end: bool) -> bool {
        (at_end || self.left == Some(0)) && self.unanswered == 0
    }

    async fn take(&mut self, mut messages: Vec<Message>) -> Result<(), CliError> {
        if let Some(left) = self.left {
            messages.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            self.left = Some(left.saturating_sub(messages.len() as u64));
        }
        let bytes = messages.iter().map(message_bytes).sum();
        self.write(&messages)?;
        self.written += messages.len() as u64;
        if let Some(reached) = &mut self.reached {
            // A fork's messages, marked late, are no place to go on from: they may come again.
            for id in messages.iter().filter(|m| !m.late).filter_map(|m| m.id.as_ref()) {
                let place = id.place.map(|p| Place { offset: p.offset.saturating_add(1), ..p });
                let next = Position { topic: id.topic.clone(), origin: id.origin.clone(), queue: id.queue, place };
                reached.insert((id.topic.clone(), id.origin.clone(), id.queue), next);
            }
        }
        if self.in_group && !messages.is_empty() {
            let ids: Vec<MessageId> = messages.iter().filter_map(|m| m.id.clone()).collect();
            let confirm = Confirm { number: self.confirmations, ids, up_to: false };
            self.confirmations += 1;
            self.unanswered += 1;
            self.send(subscribe_request::Kind::Confirm(confirm)).await;
        }
        self.give_credit(messages.len() as u64, bytes).await;
        Ok(())
    }

    fn write(&self, messages: &[Message]) -> Result<(), CliError> {
        let mut text = Vec::with_capacity(messages.iter().map(|m| m.payload.len() + 1).sum());
        for message in messages {
            match self.output {
                SubOutput::Raw => text.extend_from_slice(&message.payload),
                SubOutput::Json => serde_json::to_writer(&mut text, &Line::from(message))
                    .map_err(|e| CliError::failed(format!("cannot write a message as JSON: {e}")))?,
            }
            text.push(b'\n');
        }
        let mut out = std::io::stdout().lock();
        out.write_all(&text).and_then(|()| out.flush()).map_err(|e| CliError::write(&e))
    }

    async fn give_credit(&mut self, messages: u64, bytes: u64) {
        self.ahead = self.ahead.saturating_sub(messages);
        let wanted = self.left.unwrap_or(u64::MAX).min(CREDIT_MESSAGES.into());
        self.used.bytes += bytes;
        let more = wanted.saturating_sub(self.ahead);
        let low = more > 0 && self.ahead < u64::from(CREDIT_MESSAGES / 2);
        if low || self.used.bytes >= CREDIT_BYTES / 2 {
            let messages = u32::try_from(more).unwrap_or(CREDIT_MESSAGES);
            let credit = Credit { messages, bytes: std::mem::take(&mut self.used.bytes) };
            self.ahead += u64::from(messages);
            self.send(subscribe_request::Kind::Credit(credit)).await;
        }
    }

    /// A server that went away is noticed by its replies ending.
    async fn send(&self, kind: subscribe_request::Kind) {
        let _ = self.to_server.send(SubscribeRequest { kind: Some(kind) }).await;
    }
}

/// At least what a door counts for a message.
fn message_bytes(message: &Message) -> u64 {
    let headers: usize = message.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
    let key = message.key.as_ref().map_or(0, bytes::Bytes::len);
    (message.payload.len() + message.path.len() + headers + key) as u64
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    #[test]
    fn ranges_that_may_come_yet_are_counted_once_where_the_end_is_waited_for() {
        for (more, expected) in [(&["--until-end"][..], Some(2)), (&[], None)] {
            let Command::Sub(args) = Cli::parse_from([&["seaway", "sub", "a"], more].concat()).command else {
                panic!("another command");
            };
            let mut subscriber = Subscriber::new(&args);
            let reasons = [
                GapReason::Pending,
                GapReason::Lost,
                GapReason::NotWanted,
                GapReason::Retention,
                GapReason::Damaged,
                GapReason::Deleted,
            ];
            for offset in (0..6).chain(0..6) {
                let place = Some(Place { offset, ..Place::default() });
                let from = Some(MessageId { topic: "a".into(), place, ..MessageId::default() });
                let why = reasons[offset as usize].into();
                subscriber.note_gap(&Gap { from, why, ..Gap::default() });
            }
            assert_eq!(subscriber.missing.map(|missing| missing.len()), expected);
        }
    }
}
