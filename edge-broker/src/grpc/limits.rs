//! Commands that show, set and forget rates.

use std::num::NonZeroU64;

use seaway_relay::node::limits::{Direction, Limit, LimitSettings, LimitView, OnExceed, Subject};
use tonic::Status;

use super::{errors, shared::Shared};
use crate::{api, engine::Engine};

fn subject_of(asked: Option<api::LimitSubject>) -> Result<Subject, Status> {
    let asked = asked.unwrap_or_default();
    Subject::parse(&asked.kind, &asked.of, &asked.direction).map_err(errors::invalid)
}

fn settings_of(asked: &api::LimitValues) -> Result<LimitSettings, Status> {
    let burst = |name: &str, burst: Option<u64>| {
        let zero = || errors::invalid(format!("{name} is 0, but at least 1 is expected"));
        burst.map(|burst| NonZeroU64::new(burst).ok_or_else(zero)).transpose()
    };
    Ok(LimitSettings {
        messages_per_s: asked.messages_per_s.map(NonZeroU64::new),
        messages_burst: burst("messages-burst", asked.messages_burst)?,
        bytes_per_s: asked.bytes_per_s.map(NonZeroU64::new),
        bytes_burst: burst("bytes-burst", asked.bytes_burst)?,
        on_exceed: match asked.on_exceed.as_deref() {
            None => None,
            Some("delay") => Some(OnExceed::Delay),
            Some("refuse") => Some(OnExceed::Refuse),
            Some(other) => {
                let text = format!("on-exceed is {other:?}, but one of \"delay\", \"refuse\" is expected");
                return Err(errors::invalid(text));
            }
        },
    })
}

/// Sets what is given of a subject's limit.
pub(super) async fn set<E: Engine>(shared: &Shared<E>, asked: api::SetLimitRequest) -> Result<(), Status> {
    let subject = subject_of(asked.subject)?;
    let change = settings_of(&asked.change.unwrap_or_default())?;
    if change.is_empty() {
        return Err(errors::invalid("nothing is to be set; name a rate"));
    }
    let file = shared.rates.file();
    shared.engine.set_limit(&subject, Some(&change), &file).await.map_err(|error| errors::engine_status(&error))
}

/// Forgets what commands set of a subject.
pub(super) async fn remove<E: Engine>(shared: &Shared<E>, asked: Option<api::LimitSubject>) -> Result<(), Status> {
    let subject = subject_of(asked)?;
    let file = shared.rates.file();
    shared.engine.set_limit(&subject, None, &file).await.map_err(|error| errors::engine_status(&error))
}

fn values(settings: &LimitSettings) -> api::LimitValues {
    let rate = |rate: Option<Option<NonZeroU64>>| rate.map(|rate| rate.map_or(0, NonZeroU64::get));
    api::LimitValues {
        messages_per_s: rate(settings.messages_per_s),
        messages_burst: settings.messages_burst.map(NonZeroU64::get),
        bytes_per_s: rate(settings.bytes_per_s),
        bytes_burst: settings.bytes_burst.map(NonZeroU64::get),
        on_exceed: settings.on_exceed.map(|on_exceed| word(on_exceed).to_owned()),
    }
}

fn word(on_exceed: OnExceed) -> &'static str {
    match on_exceed {
        OnExceed::Delay => "delay",
        OnExceed::Refuse => "refuse",
    }
}

fn holds(limit: &Limit) -> api::LimitValues {
    let (messages, bytes) = (limit.messages, limit.bytes);
    api::LimitValues {
        messages_per_s: messages.map(|rate| rate.per_s.get()),
        messages_burst: messages.map(|rate| rate.burst.get()),
        bytes_per_s: bytes.map(|rate| rate.per_s.get()),
        bytes_burst: bytes.map(|rate| rate.burst.get()),
        on_exceed: Some(word(limit.on_exceed).to_owned()),
    }
}

/// All that is set, with a key for pages each.
pub(super) fn list<E: Engine>(shared: &Shared<E>) -> Vec<(String, api::LimitStatus)> {
    let engine = &shared.engine;
    let largest = |topic: &_| u64::try_from(engine.topic_settings(topic).config.message_bytes_max).unwrap_or(u64::MAX);
    let (topics, clients, links) = (shared.topic_rates.held_back(), shared.rates.held_back(), engine.links());
    // Of one that stands for several: of those that have none of their own, which nobody tells apart, all.
    let sum = |held: &[(String, u64, u64)], of: &str| {
        let of_it = held.iter().filter(|(name, ..)| of == "*" || of == "#" || of == "+" || name == of);
        of_it.fold((0, 0), |(delayed, refused), (_, d, r)| (delayed + d, refused + r))
    };
    let status = |view: LimitView| {
        let (of, direction) = (view.subject.of(), view.subject.direction());
        let (delayed, refused) = match &view.subject {
            Subject::Topic(_) => sum(&topics, &of),
            Subject::Client(_) => sum(&clients, &of),
            Subject::Link(peer, direction) => {
                let theirs = links.iter().filter(|link| peer.is_none() || link.peer == *peer);
                let times = |link: &seaway_relay::node::LinkStatus| match direction {
                    Direction::Send => link.send_limited,
                    Direction::Receive => link.receive_limited,
                };
                (theirs.map(times).sum(), 0)
            }
        };
        let key = view.subject.to_string();
        let subject = api::LimitSubject {
            kind: view.subject.kind().to_owned(),
            of,
            direction: direction.map_or_else(String::new, |direction| direction.name().to_owned()),
        };
        let (set, file, holds) = (values(&view.set), values(&view.file), holds(&view.limit));
        (
            key,
            api::LimitStatus {
                subject: Some(subject),
                set: Some(set),
                file: Some(file),
                holds: Some(holds),
                delayed,
                refused,
            },
        )
    };
    engine.limits().list(&shared.rates.file(), largest).into_iter().map(status).collect()
}
