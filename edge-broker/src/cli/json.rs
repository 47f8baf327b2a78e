//! Messages as JSON, one object a line: what `sub --output json` writes and `pub --input json` reads.
//!
//! Bytes that are UTF-8 stand as text; others stand in base64, under a name that ends in `_base64`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use seaway_federation_proto::ids::{Incarnation, LogName, Place, Queue};
use serde::{Deserialize, Serialize};

use crate::api;

/// One message.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<HeaderLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    // What follows is for readers; publishing again leaves it aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    late: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    deliveries: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    one_way: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderLine {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn text_or_base64(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_string()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

fn bytes_of(what: &str, text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, String> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(format!("{what} and {what}_base64 are both there; one is expected")),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(text)) => {
            let bytes = STANDARD.decode(&text).map_err(|e| format!("{what}_base64 is not base64: {e}"))?;
            Ok(Some(bytes.into()))
        }
        (None, None) => Ok(None),
    }
}

impl From<&api::Message> for Line {
    fn from(message: &api::Message) -> Self {
        let (payload, payload_base64) = text_or_base64(&message.payload);
        let (key, key_base64) = message.key.as_deref().map_or((None, None), text_or_base64);
        let header = |header: &api::Header| {
            let (value, value_base64) = text_or_base64(&header.value);
            HeaderLine { name: header.name.clone(), value, value_base64 }
        };
        Line {
            path: Some(message.path.clone()),
            key,
            key_base64,
            headers: message.headers.iter().map(header).collect(),
            payload,
            payload_base64,
            origin: Some(message.origin.clone()),
            time: Some(crate::config::values::time_text(message.time_us)),
            position: message.id.as_ref().map(position_text),
            late: message.late,
            deliveries: message.deliveries,
            one_way: message.one_way,
        }
    }
}

impl Line {
    /// Reads one line.
    pub(crate) fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|e| e.to_string())
    }

    /// What a publish takes of it: key, headers, payload.
    #[allow(clippy::type_complexity, reason = "three fields of a request")]
    pub(crate) fn content(self) -> Result<(Option<Bytes>, Vec<api::Header>, Bytes), String> {
        let key = bytes_of("key", self.key, self.key_base64)?;
        let payload =
            bytes_of("payload", self.payload, self.payload_base64)?.ok_or("payload (or payload_base64) is missing")?;
        let headers = self.headers.into_iter().map(|header| {
            let value = bytes_of("value", header.value, header.value_base64)?;
            Ok(api::Header { name: header.name, value: value.ok_or("a header's value is missing")? })
        });
        Ok((key, headers.collect::<Result<_, String>>()?, payload))
    }
}

/// A position as text: `topic@origin#queue=counter.random:offset`.
pub(crate) fn position_text(id: &api::MessageId) -> String {
    let place = id.place.as_ref().map(place_text).unwrap_or_default();
    format!("{}@{}#{}={place}", id.topic, id.origin, id.queue)
}

/// A place as text, in the form that [`Place`] reads.
pub(crate) fn place_text(place: &api::Place) -> String {
    let incarnation = Incarnation { counter: place.incarnation, random: place.incarnation_random };
    Place { incarnation, offset: place.offset }.to_string()
}

/// Reads what [`position_text`] writes.
pub(crate) fn parse_position(text: &str) -> Option<api::Position> {
    let (log, place) = text.rsplit_once('=')?;
    let (log, queue) = log.rsplit_once('#')?;
    let (topic, origin) = log.rsplit_once('@')?;
    let log = LogName { topic: topic.parse().ok()?, origin: origin.parse().ok()?, queue: Queue(queue.parse().ok()?) };
    let place: Place = place.parse().ok()?;
    Some(api::Position {
        topic: log.topic.to_string(),
        origin: log.origin.to_string(),
        queue: u32::from(log.queue.0),
        place: Some(api::Place {
            incarnation: place.incarnation.counter,
            incarnation_random: place.incarnation.random,
            offset: place.offset,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some_bytes() -> impl Strategy<Value = Bytes> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
            ".{0,20}".prop_map(Bytes::from),
        ]
    }

    proptest! {
        #[test]
        fn a_message_goes_round_unchanged(
            payload in some_bytes(),
            key in proptest::option::of(some_bytes()),
            headers in proptest::collection::vec((".{0,9}", some_bytes()), 0..4),
        ) {
            let headers: Vec<_> =
                headers.into_iter().map(|(name, value)| api::Header { name, value }).collect();
            let message = api::Message {
                path: "a/b".into(), key: key.clone(), headers: headers.clone(), payload: payload.clone(),
                ..Default::default()
            };
            let text = serde_json::to_string(&Line::from(&message)).unwrap();
            prop_assert!(!text.contains('\n'));
            let line = Line::parse(text.as_bytes()).unwrap();
            prop_assert_eq!(line.path.as_deref(), Some("a/b"));
            prop_assert_eq!(line.content().unwrap(), (key, headers, payload));
        }

        #[test]
        fn a_position_goes_round(counter: u64, random: u64, offset: u64, queue: u16) {
            let place = api::Place { incarnation: counter, incarnation_random: random, offset };
            let id = api::MessageId {
                topic: "a=b@c#d".into(), origin: "eu".into(), queue: queue.into(), place: Some(place),
            };
            // '#' may not stand in a topic.
            prop_assert!(parse_position(&position_text(&id)).is_none());
            let id = api::MessageId { topic: "a=b@c".into(), ..id };
            let back = parse_position(&position_text(&id)).unwrap();
            prop_assert_eq!((back.topic, back.origin, back.queue, back.place), (id.topic, id.origin, id.queue, id.place));
        }

        #[test]
        fn any_line_gets_an_answer(text in "[{}\":a-z_0-9,\\[\\]]{0,80}") {
            if let Ok(line) = Line::parse(text.as_bytes()) { let _ = line.content(); }
            let _ = parse_position(&text);
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = Line::parse(br#"{"payload":"x","pyload":"y"}"#).expect_err("unknown");
        assert!(error.contains("pyload"), "{error}");
    }
}
