//! Between the client protocol's messages and the engine's types.

use std::time::Duration;

use bytes::Bytes;
use seaway_federation_proto::{
    ids::{Incarnation, InvalidName, LogName, Path, Place, Queue, Site},
    limits,
    message::{Message, ProducerStamp},
};
use seaway_relay::node::{
    Acknowledgement, OnDeadline, OneWayMessage, OwnMessage, Publish, PublishError, PublishRun, Receipt,
};

use crate::{
    api::{self, publish_batch::Content},
    limits::DEADLINE_MAX,
};

/// A place as clients see it.
pub(crate) fn place(place: Place) -> api::Place {
    let Place { incarnation, offset } = place;
    api::Place { incarnation: incarnation.counter, incarnation_random: incarnation.random, offset }
}

/// A place as a client gave it.
pub(crate) fn place_of(place: api::Place) -> Place {
    let incarnation = Incarnation { counter: place.incarnation, random: place.incarnation_random };
    Place { incarnation, offset: place.offset }
}

/// The name of a message.
pub(crate) fn message_id(log: &LogName, at: Place) -> api::MessageId {
    api::MessageId {
        topic: log.topic.to_string(),
        origin: log.origin.to_string(),
        queue: u32::from(log.queue.0),
        place: Some(place(at)),
    }
}

/// A log as a client names it.
pub(crate) fn log_of(topic: &str, origin: &str, queue: u32) -> Result<LogName, InvalidName> {
    let queue = u16::try_from(queue).map_err(|_| InvalidName {
        what: "queue",
        found: queue.to_string(),
        rule: "it must be at most 65535",
    })?;
    Ok(LogName { topic: topic.parse()?, origin: origin.parse()?, queue: Queue(queue) })
}

/// A message's name as a client gave it.
pub(crate) fn message_id_of(id: api::MessageId) -> Result<(LogName, Place), String> {
    let log = log_of(&id.topic, &id.origin, id.queue).map_err(|error| error.to_string())?;
    let place = id.place.ok_or_else(|| format!("the message id in {log} has no place; give ids back as they came"))?;
    Ok((log, place_of(place)))
}

/// A stored message as a subscriber gets it.
pub(crate) fn message(log: &LogName, at: Place, message: Message, late: bool, deliveries: u32) -> api::Message {
    let mut shown = bare_message(&log.origin, message);
    shown.id = Some(message_id(log, at));
    shown.late = late;
    shown.deliveries = deliveries;
    shown
}

/// A one-way message as a subscriber gets it.
pub(crate) fn one_way_message(message: OneWayMessage) -> api::Message {
    let mut shown = bare_message(&message.origin, message.message);
    shown.one_way = true;
    shown.deliveries = 1;
    shown
}

fn bare_message(origin: &Site, message: Message) -> api::Message {
    let header = |(name, value)| api::Header { name, value };
    api::Message {
        id: None,
        path: message.path.to_string(),
        key: message.key,
        headers: message.headers.into_iter().map(header).collect(),
        payload: message.payload,
        time_us: message.time_us,
        late: false,
        deliveries: 0,
        origin: origin.to_string(),
        one_way: false,
    }
}

/// Bytes for which a message counts against a subscriber's credit: payload, key and headers.
pub(crate) fn message_bytes(message: &Message) -> usize {
    let headers = message.headers.iter().map(|(n, v)| n.len().saturating_add(v.len())).sum();
    content_bytes(&message.payload, message.key.as_ref(), headers)
}

/// Bytes of the payloads, keys and headers of a batch: what limits and bounds count.
pub(crate) fn batch_bytes(batch: &api::PublishBatch) -> usize {
    let bytes = |content: &Content| {
        let headers = content.headers.iter().map(|h| h.name.len().saturating_add(h.value.len())).sum();
        content_bytes(&content.payload, content.key.as_ref(), headers).saturating_add(content.path.len())
    };
    batch.messages.iter().map(bytes).sum()
}

fn content_bytes(payload: &Bytes, key: Option<&Bytes>, headers: usize) -> usize {
    payload.len().saturating_add(key.map_or(0, Bytes::len)).saturating_add(headers)
}

/// A receipt as its publisher gets it.
pub(crate) fn receipt(receipt: Receipt) -> api::Receipt {
    let names = |sites: Vec<Site>| sites.iter().map(Site::to_string).collect();
    api::Receipt {
        id: Some(message_id(&receipt.log, receipt.place)),
        sites: names(receipt.sites),
        degraded: receipt.degraded,
        missing: names(receipt.missing),
        removed: names(receipt.removed),
        repeated: receipt.repeated,
    }
}

/// What holds for all messages of a batch.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// The mode.
    pub(crate) mode: api::Mode,
    acknowledgement: Acknowledgement,
    deadline: Duration,
    on_deadline: OnDeadline,
}

impl Terms {
    /// Whom it waits for beyond this node.
    pub(crate) fn acknowledgement(&self) -> &Acknowledgement {
        &self.acknowledgement
    }

    /// How long a publisher waits.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether other sites are waited for.
    pub(crate) fn waits_for_others(&self) -> bool {
        self.acknowledgement != Acknowledgement::Local
    }

    /// Messages to be published on these terms, of whose time so much is left.
    pub(crate) fn run(&self, messages: Vec<OwnMessage>, deadline: Duration) -> PublishRun {
        let Self { acknowledgement, on_deadline, .. } = self.clone();
        PublishRun { messages, acknowledgement, deadline, on_deadline }
    }

    /// One message to be published on these terms.
    pub(crate) fn publish(&self, message: OwnMessage) -> Publish {
        let Self { acknowledgement, deadline, on_deadline, .. } = self.clone();
        let OwnMessage { path, key, headers, payload, producer } = message;
        Publish { path, key, headers, payload, producer, acknowledgement, deadline, on_deadline }
    }
}

/// A call for one message as a batch of one.
pub(crate) fn batch_of_one(request: api::PublishRequest) -> api::PublishBatch {
    let api::PublishRequest { path, key, headers, payload, mode, acknowledgement, deadline_ms, on_deadline, producer } =
        request;
    let messages = vec![Content { path, key, headers, payload }];
    api::PublishBatch { messages, mode, acknowledgement, deadline_ms, on_deadline, producer }
}

/// What a publisher asks for, checked as far as the door can: names, bounds, and that mode and acknowledgement fit.
/// Each message stands for itself.
pub(crate) fn batch(
    batch: api::PublishBatch,
    deadline_default: Duration,
) -> Result<(Terms, Vec<Result<OwnMessage, PublishError>>), PublishError> {
    let mode = api::Mode::try_from(batch.mode).map_err(|_| invalid(format!("mode {} is unknown", batch.mode)))?;
    let acknowledgement = acknowledgement(mode, batch.acknowledgement)?;
    let on_deadline = match api::OnDeadline::try_from(batch.on_deadline) {
        Ok(api::OnDeadline::Fail) => OnDeadline::Fail,
        Ok(api::OnDeadline::Degrade) => OnDeadline::Degrade,
        Err(_) => return Err(invalid(format!("the policy {} for the deadline is unknown", batch.on_deadline))),
    };
    let deadline = match batch.deadline_ms {
        0 => deadline_default,
        ms => Duration::from_millis(ms).min(DEADLINE_MAX),
    };
    let mut producer = batch.producer.map(producer).transpose()?;
    if mode == api::Mode::OneWay && producer.is_some() {
        return Err(invalid("one-way messages are not stored, so a producer's sequence means nothing; leave it out"));
    }
    let mut before: Option<Path> = None;
    let messages = batch.messages.into_iter().map(|content| {
        let stamp = producer;
        if let Some(next) = &mut producer {
            next.sequence = next.sequence.saturating_add(1);
        }
        message_of(content, stamp, &mut before)
    });
    Ok((Terms { mode, acknowledgement, deadline, on_deadline }, messages.collect()))
}

/// `before` is the path of the message before it in the batch.
fn message_of(
    content: Content,
    producer: Option<ProducerStamp>,
    before: &mut Option<Path>,
) -> Result<OwnMessage, PublishError> {
    let path = match before.take() {
        Some(path) if content.path.is_empty() => path,
        before => {
            let path: Path = content.path.parse().map_err(|error: InvalidName| invalid(error.to_string()))?;
            if path.topic().is_internal() {
                return Err(PublishError::Internal(path.topic()));
            }
            if producer.is_some() && before.is_some_and(|before| before.topic() != path.topic()) {
                return Err(invalid("a producer's batch has messages of several topics; a sequence is one topic's"));
            }
            path
        }
    };
    *before = Some(path.clone());
    check_key_and_headers(&content)?;
    let headers = content.headers.into_iter().map(|h| (h.name, h.value)).collect();
    Ok(OwnMessage { path, key: content.key, headers, payload: content.payload, producer })
}

fn invalid(text: impl Into<String>) -> PublishError {
    PublishError::Invalid(text.into())
}

fn check_key_and_headers(request: &Content) -> Result<(), PublishError> {
    let key = request.key.as_ref().map_or(0, Bytes::len);
    if key > limits::KEY_BYTES_MAX {
        return Err(invalid(format!("the key has {key} bytes; at most {} are allowed", limits::KEY_BYTES_MAX)));
    }
    let headers = request.headers.len();
    if headers > limits::HEADERS_MAX {
        return Err(invalid(format!("{headers} headers are too many; at most {} are allowed", limits::HEADERS_MAX)));
    }
    if request.headers.iter().any(|h| h.name.is_empty() || h.name.chars().any(char::is_control)) {
        return Err(invalid("a header's name must not be empty or contain control characters"));
    }
    Ok(())
}

fn acknowledgement(mode: api::Mode, asked: Option<api::Acknowledgement>) -> Result<Acknowledgement, PublishError> {
    use api::acknowledgement::Of;
    let acknowledgement = match asked.and_then(|a| a.of) {
        None | Some(Of::Local(_)) => Acknowledgement::Local,
        Some(Of::All(_)) => Acknowledgement::All,
        Some(Of::Count(0)) => return Err(invalid("a count of 0 waits for nobody; ask for local instead")),
        Some(Of::Count(count)) => Acknowledgement::Count(count),
        Some(Of::Sites(list)) => named_sites(&list)?,
    };
    if mode != api::Mode::Sync && acknowledgement != Acknowledgement::Local {
        return Err(invalid("only sync mode waits for other sites; use it, or ask for local"));
    }
    Ok(acknowledgement)
}

fn named_sites(list: &api::SiteList) -> Result<Acknowledgement, PublishError> {
    let sites: Result<Vec<Site>, InvalidName> = list.sites.iter().map(|site| site.parse()).collect();
    let mut sites = sites.map_err(|error| invalid(error.to_string()))?;
    sites.sort();
    sites.dedup();
    if sites.is_empty() {
        let text = "no site is named to acknowledge; name one or ask for local";
        return Err(PublishError::NobodyToAcknowledge(text.into()));
    }
    Ok(Acknowledgement::Sites(sites))
}

fn producer(stamp: api::ProducerStamp) -> Result<ProducerStamp, PublishError> {
    let id: Result<[u8; 16], _> = stamp.id.as_ref().try_into();
    let id = id.map_err(|_| invalid(format!("a producer's id has 16 bytes, not {}", stamp.id.len())))?;
    Ok(ProducerStamp { id: u128::from_be_bytes(id), epoch: stamp.epoch, sequence: stamp.sequence })
}
