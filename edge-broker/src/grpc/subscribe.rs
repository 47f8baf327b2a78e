//! Subscribing: the opening request is checked, then a plain subscriber or a member of a group is served.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use seaway_federation_proto::ids::{InvalidName, LogName, Pattern, Place, Site};
use seaway_relay::node::AUDIT_TOPIC;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::{
    convert, errors,
    shared::{DoorCounters, Shared},
};
use crate::{
    api::{
        SubscribeReply, SubscribeRequest,
        subscribe_reply::{Kind, Opened},
        subscribe_request::{self, Open, open::From},
    },
    auth::Caller,
    engine::Engine,
    groups::{Joining, Member, actor::Command},
    limits::{CONFIRMS_UNANSWERED_MAX, ORIGINS_MAX, SUBSCRIPTIONS_MAX},
    metrics::traffic::topic_of,
    subscriptions::{
        credit::Credit,
        filter::Filter,
        plain::{Plain, PlainOpen},
        replies::{Replies, replies},
        standing::Standing,
        start::StartAt,
    },
};

/// What a subscriber is sent.
pub(crate) type ReplyStream = Pin<Box<dyn Stream<Item = Result<SubscribeReply, Status>> + Send>>;

/// Requests that were read ahead of a subscriber.
const REQUESTS_QUEUED_MAX: usize = 16;

/// Opens a subscription.
pub(crate) async fn subscribe<E: Engine>(
    shared: Arc<Shared<E>>,
    caller: Arc<Caller>,
    mut requests: Streaming<SubscribeRequest>,
) -> Result<ReplyStream, Status> {
    if shared.drain.is_cancelled() {
        return Err(errors::draining());
    }
    let first = requests.message().await?.and_then(|request| request.kind);
    let Some(subscribe_request::Kind::Open(open)) = first else {
        return Err(errors::invalid("the first request of a subscription must open it"));
    };
    let filter = filter(&open)?;
    let allowed = match is_audit(&filter.pattern) {
        true => caller.check_steer(),
        false => caller.check_subscribe(&filter.pattern),
    };
    allowed.inspect_err(|_| DoorCounters::count(&shared.counters.not_allowed))?;
    let slot = shared.subscriptions.clone().try_acquire_owned().map_err(|_| {
        errors::too_many(format!("there are {SUBSCRIPTIONS_MAX} subscriptions already; close some or try again later"))
    })?;
    let (replies, stream) = replies(&shared.replies);
    if open.group.is_empty() {
        let standing = shared.standings.add(&caller.name, filter.pattern.as_str());
        let notes = open_plain(&shared, filter, open, requests, replies, (slot, standing)).await?;
        return Ok(while_caller_counts(caller, counted(shared, notes, stream)));
    }
    let answers = open_group(&shared, filter, open, requests, replies, slot).await?;
    Ok(while_caller_counts(caller, counted(shared, Vec::new(), stream.merge(ReceiverStream::new(answers)))))
}

/// Ends the stream with the reason once the caller's token is revoked or expires.
fn while_caller_counts(caller: Arc<Caller>, replies: ReplyStream) -> ReplyStream {
    let ended: Pin<Box<dyn Future<Output = Status> + Send>> = Box::pin(async move { caller.ended().await });
    Box::pin(WhileCallerCounts { replies: Some(replies), ended })
}

struct WhileCallerCounts {
    /// Dropped at the end, so that whoever fills it leaves too.
    replies: Option<ReplyStream>,
    ended: Pin<Box<dyn Future<Output = Status> + Send>>,
}

impl Stream for WhileCallerCounts {
    type Item = Result<SubscribeReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { replies, ended } = &mut *self;
        let Some(open) = replies else { return Poll::Ready(None) };
        if let Poll::Ready(status) = ended.as_mut().poll(context) {
            *replies = None;
            return Poll::Ready(Some(Err(status)));
        }
        open.as_mut().poll_next(context)
    }
}

/// Puts "opened" in front and counts what is delivered.
fn counted<E: Engine>(
    shared: Arc<Shared<E>>,
    notes: Vec<String>,
    stream: impl Stream<Item = Result<SubscribeReply, Status>> + Send + 'static,
) -> ReplyStream {
    let opened = Kind::Opened(Opened { subscriber: shared.next_subscriber(), notes });
    let first = tokio_stream::once(Ok(SubscribeReply { kind: Some(opened) }));
    let stream = stream.map(move |reply| {
        if let Ok(SubscribeReply { kind: Some(Kind::Messages(messages)) }) = &reply {
            shared.count_delivered(messages.messages.len());
            shared.traffic.delivered(&messages.messages);
        }
        reply
    });
    Box::pin(first.chain(stream))
}

async fn open_plain<E: Engine>(
    shared: &Arc<Shared<E>>,
    filter: Filter,
    open: Open,
    requests: Streaming<SubscribeRequest>,
    replies: Replies,
    (slot, standing): (OwnedSemaphorePermit, Arc<Standing>),
) -> Result<Vec<String>, Status> {
    let start = start(open.from)?;
    let want = shared.wants.keep(&filter, start.for_want()).await.map_err(|error| errors::engine_status(&error))?;
    let (until_end, one_way) = (open.until_end, open.one_way);
    let open = PlainOpen { filter, start, credit: credit(open.credit), until_end, one_way };
    let plain = Plain::open(shared.engine.clone(), open, replies, standing).await?;
    let notes = plain.notes();
    let (forward, forwarded) = mpsc::channel(REQUESTS_QUEUED_MAX);
    tokio::spawn(forward_requests(requests, forward));
    let drain = shared.drain.clone();
    tokio::spawn(async move {
        plain.run(forwarded, drain).await;
        drop((want, slot));
    });
    Ok(notes)
}

/// Hands a plain subscriber's requests on until either side goes.
async fn forward_requests(
    mut requests: Streaming<SubscribeRequest>,
    forward: mpsc::Sender<Result<subscribe_request::Kind, Status>>,
) {
    loop {
        let request = tokio::select! {
            () = forward.closed() => return,
            request = requests.message() => request,
        };
        let request = match request {
            Ok(Some(SubscribeRequest { kind: Some(kind) })) => Ok(kind),
            Ok(Some(SubscribeRequest { kind: None })) => continue, // of a newer client
            Ok(None) => return,
            Err(status) => Err(status),
        };
        if forward.send(request).await.is_err() {
            return;
        }
    }
}

async fn open_group<E: Engine>(
    shared: &Arc<Shared<E>>,
    filter: Filter,
    open: Open,
    requests: Streaming<SubscribeRequest>,
    replies: Replies,
    slot: OwnedSemaphorePermit,
) -> Result<mpsc::Receiver<Result<SubscribeReply, Status>>, Status> {
    if open.until_end || open.one_way {
        return Err(errors::invalid(
            "until_end and one_way belong to plain subscribers; leave them out or leave the group out",
        ));
    }
    let (start, credit) = (start(open.from)?, credit(open.credit));
    let joining = Joining { group: open.group, filter, start, credit, replies: replies.clone() };
    let member = shared.groups.join(joining).await?;
    let (answers, answered) = mpsc::channel(CONFIRMS_UNANSWERED_MAX);
    tokio::spawn(async move {
        serve_member(&member, requests, &replies, &answers).await;
        let _ = member.commands.send(Command::Leave(member.id)).await; // the group may be gone already
        drop(slot);
    });
    Ok(answered)
}

/// Hands a member's requests to its group until either side goes.
async fn serve_member(
    member: &Member,
    mut requests: Streaming<SubscribeRequest>,
    replies: &Replies,
    answers: &mpsc::Sender<Result<SubscribeReply, Status>>,
) {
    let mut requests_open = true;
    loop {
        let request = tokio::select! {
            () = replies.closed() => return,
            () = member.commands.closed() => return,
            request = requests.message(), if requests_open => request,
        };
        let command = match request {
            Ok(Some(SubscribeRequest { kind: Some(subscribe_request::Kind::Credit(credit)) })) => {
                Command::Credit(member.id, credit.messages.into(), credit.bytes)
            }
            Ok(Some(SubscribeRequest { kind: Some(subscribe_request::Kind::Confirm(confirm)) })) => {
                // Room for the answer first: who does not read answers cannot confirm on and on.
                let Ok(answer) = answers.clone().reserve_owned().await else { return };
                Command::Confirm { member: member.id, confirm, answer }
            }
            Ok(Some(SubscribeRequest { kind: Some(subscribe_request::Kind::Open(_)) })) => {
                let _ = answers.send(Err(errors::invalid("the subscription is open already"))).await;
                return;
            }
            Ok(Some(SubscribeRequest { kind: None })) => continue, // of a newer client
            Ok(None) => {
                requests_open = false; // it reads on as far as its credit goes
                continue;
            }
            Err(_) => return,
        };
        if member.commands.send(command).await.is_err() {
            return;
        }
    }
}

/// Whether a pattern is within the audit trail, which those who may steer the node may read.
fn is_audit(pattern: &Pattern) -> bool {
    topic_of(pattern.as_str()) == AUDIT_TOPIC
}

fn filter(open: &Open) -> Result<Filter, Status> {
    let invalid = |error: InvalidName| errors::invalid(error.to_string());
    let pattern: Pattern = open.pattern.parse().map_err(invalid)?;
    if pattern.as_str().starts_with(['_', '$']) && !is_audit(&pattern) {
        return Err(errors::not_allowed(format!(
            "{pattern} is Seaway's own and closed to clients; subscribe to another topic"
        )));
    }
    if open.origins.len() > ORIGINS_MAX {
        return Err(errors::invalid(format!(
            "{} origins are too many; at most {ORIGINS_MAX} can be named",
            open.origins.len()
        )));
    }
    let origins: Result<Vec<Site>, InvalidName> = open.origins.iter().map(|origin| origin.parse()).collect();
    let mut origins = origins.map_err(invalid)?;
    origins.sort();
    origins.dedup();
    Ok(Filter { pattern, origins })
}

fn credit(given: Option<subscribe_request::Credit>) -> Credit {
    let mut credit = Credit::default();
    if let Some(given) = given {
        credit.add(given.messages.into(), given.bytes);
    }
    credit
}

fn start(from: Option<From>) -> Result<StartAt, Status> {
    Ok(match from {
        None | Some(From::Latest(_)) => StartAt::Latest,
        Some(From::Earliest(_)) => StartAt::Earliest,
        Some(From::TimeUs(time_us)) => StartAt::Time(time_us),
        Some(From::Last(count)) => StartAt::Last(count),
        Some(From::Positions(positions)) => StartAt::Positions(positions_of(positions)?),
    })
}

fn positions_of(positions: subscribe_request::Positions) -> Result<BTreeMap<LogName, Place>, Status> {
    let mut parsed = BTreeMap::new();
    for position in positions.positions {
        let log = convert::log_of(&position.topic, &position.origin, position.queue);
        let log = log.map_err(|error| errors::invalid(error.to_string()))?;
        let place = position.place.ok_or_else(|| errors::invalid(format!("the position in {log} has no place")))?;
        parsed.insert(log, convert::place_of(place));
    }
    Ok(parsed)
}
