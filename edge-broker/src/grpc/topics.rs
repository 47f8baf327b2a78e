//! Commands that create, change, trim and delete topics, and what `topic show` says of one.

use std::time::Duration;

use seaway_federation_proto::{
    control::Control,
    envelope::Codec,
    ids::{LogName, Place, Queue, Site, Topic},
    limits,
};
use seaway_relay::node::topics::{Set, Source, TopicChange, TopicSettingsView, TrimTo};
use tonic::{Code, Status};

use super::{convert, errors, shared::Shared};
use crate::{
    api::{self, trim_topic_request::To},
    config::values::{FromText, Size},
    engine::Engine,
};

fn topic_of(text: &str) -> Result<Topic, Status> {
    text.parse().map_err(|e: seaway_federation_proto::ids::InvalidName| errors::invalid(e.to_string()))
}

fn sites_of(names: &[String]) -> Result<Vec<Site>, Status> {
    let site = |name: &String| {
        name.parse().map_err(|e: seaway_federation_proto::ids::InvalidName| errors::invalid(e.to_string()))
    };
    names.iter().map(site).collect()
}

/// A change as a client asks for it, within its bounds.
fn change_of(asked: api::TopicChange) -> Result<TopicChange, Status> {
    let mut change = TopicChange::default();
    if let Some(queues) = asked.queues {
        let allowed = u16::try_from(queues).ok().filter(|queues| (1..=limits::QUEUES_MAX).contains(queues));
        let text = || format!("queues is {queues}, but 1 to {} is expected", limits::QUEUES_MAX);
        change.queues = Set::To(allowed.ok_or_else(|| errors::invalid(text()))?);
    }
    if let Some(size) = asked.message_size_max {
        let allowed = usize::try_from(size).ok().filter(|size| (1..=limits::MESSAGE_BYTES_CEILING).contains(size));
        let text = || format!("message-size-max is {size} bytes, but 1 B to 16 MiB is expected");
        change.message_bytes_max = Set::To(allowed.ok_or_else(|| errors::invalid(text()))?);
    }
    if let Some(codec) = asked.compression {
        let found = Codec::from_text(&codec).map_err(|e| errors::invalid(format!("compression: {e}")))?;
        change.codec = Set::To(found);
    }
    if let Some(set) = asked.replicate {
        change.replicate = Set::To(if set.all { None } else { Some(sites_of(&set.sites)?) });
    }
    if let Some(bytes) = asked.retention_size {
        change.retention_bytes = Set::To((bytes > 0).then_some(bytes));
    }
    if let Some(ms) = asked.retention_age_ms {
        change.retention_age = Set::To((ms > 0).then(|| Duration::from_millis(ms)));
    }
    for name in asked.unset {
        unset(&mut change, &name)?;
    }
    Ok(change)
}

fn unset(change: &mut TopicChange, name: &str) -> Result<(), Status> {
    fn one<T>(set: &mut Set<T>, name: &str) -> Result<(), Status> {
        if matches!(set, Set::To(_)) {
            return Err(errors::invalid(format!("{name} is set and unset at once; choose one")));
        }
        *set = Set::Unset;
        Ok(())
    }
    match name {
        "queues" => one(&mut change.queues, name),
        "message-size-max" => one(&mut change.message_bytes_max, name),
        "compression" => one(&mut change.codec, name),
        "replicate" => one(&mut change.replicate, name),
        "retention-size" => one(&mut change.retention_bytes, name),
        "retention-age" => one(&mut change.retention_age, name),
        _ => Err(errors::invalid(format!(
            "there is no setting {name:?}; there are queues, message-size-max, compression, replicate, retention-size and retention-age"
        ))),
    }
}

/// Creates a topic.
pub(super) async fn create<E: Engine>(shared: &Shared<E>, topic: &str, change: api::TopicChange) -> Result<(), Status> {
    let (topic, change) = (topic_of(topic)?, change_of(change)?);
    shared.engine.create_topic(&topic, change).await.map_err(|error| errors::engine_status(&error))
}

/// Changes its settings.
pub(super) async fn set<E: Engine>(shared: &Shared<E>, topic: &str, change: api::TopicChange) -> Result<(), Status> {
    let (topic, change) = (topic_of(topic)?, change_of(change)?);
    if change.is_empty() {
        return Err(errors::invalid("nothing is to be set; name a setting"));
    }
    shared.engine.set_topic(&topic, change).await.map_err(|error| errors::engine_status(&error))
}

/// Deletes it, unless a group still reads it.
pub(super) async fn remove<E: Engine>(
    shared: &Shared<E>,
    topic: &str,
    force: bool,
) -> Result<api::RemoveTopicReply, Status> {
    let topic = topic_of(topic)?;
    let here = shared.engine.identity().1.site;
    // Of what is not this site's, or deleted already, that is what is to be said.
    let lives = shared.engine.topic_settings(&topic).own.is_some_and(|own| own.deleted.is_none());
    let active = match force || !lives {
        true => Vec::new(),
        false => shared.groups.active_on(topic.as_str(), here.as_str()).await,
    };
    if !active.is_empty() {
        let text = format!(
            "topic {topic} is read by group {} of this site, which has members or has not confirmed all of it (groups at other sites are not \
             known here); end it first, or delete the topic with --force",
            active.join(" and ")
        );
        return Err(errors::status(Code::ResourceExhausted, "topic-in-use", text));
    }
    shared.engine.delete_topic(&topic).await.map_err(|error| errors::engine_status(&error))?;
    let (_, waiting) = shared.engine.deletion_confirmed(&topic);
    Ok(api::RemoveTopicReply { waiting: waiting.iter().map(ToString::to_string).collect() })
}

/// Trims what is held of it here.
pub(super) async fn trim<E: Engine>(
    shared: &Shared<E>,
    request: api::TrimTopicRequest,
) -> Result<api::TrimTopicReply, Status> {
    let topic = topic_of(&request.topic)?;
    let origin = (!request.origin.is_empty()).then_some(request.origin.as_str());
    let of_topic = |log: &LogName| {
        log.topic == topic && log.queue != Queue::CONTROL && origin.is_none_or(|origin| log.origin.as_str() == origin)
    };
    let logs: Vec<LogName> = shared.engine.logs().into_iter().filter(of_topic).collect();
    let (logs, to) = match request.to {
        Some(To::Before(position)) => {
            let id = api::MessageId {
                topic: position.topic,
                origin: position.origin,
                queue: position.queue,
                place: position.place,
            };
            let (log, place) = convert::message_id_of(id).map_err(errors::invalid)?;
            if !logs.contains(&log) {
                return Err(errors::not_found(format!("{log} is no log of topic {topic} that is held here")));
            }
            (vec![log], TrimTo::Place(place))
        }
        Some(To::BeforeUs(time_us)) => (logs, TrimTo::Time(time_us)),
        Some(To::KeepSize(bytes)) => (logs, TrimTo::KeepBytes(bytes)),
        None => return Err(errors::invalid("it is not said what is to be trimmed; give a place, a time or a size")),
    };
    if logs.is_empty() {
        return Err(errors::not_found(format!(
            "there is nothing of topic {topic} here; `seaway topic ls` lists topics"
        )));
    }
    let mut reply = api::TrimTopicReply::default();
    for log in logs {
        let begin = shared.engine.trim_log(&log, to).await.map_err(|error| errors::engine_status(&error))?;
        if let Some(begin) = begin {
            reply.logs.push(api::TrimmedLog {
                origin: log.origin.to_string(),
                queue: u32::from(log.queue.0),
                begin: Some(convert::place(begin)),
            });
        }
    }
    Ok(reply)
}

/// Gives up what copies of it wait for here.
pub(super) fn skip<E: Engine>(
    shared: &Shared<E>,
    request: api::SkipTopicRequest,
) -> Result<api::SkipTopicReply, Status> {
    let topic = topic_of(&request.topic)?;
    let origin = (!request.origin.is_empty()).then_some(request.origin.as_str());
    let of_topic = |log: &LogName| log.topic == topic && origin.is_none_or(|origin| log.origin.as_str() == origin);
    let logs: Vec<LogName> = shared.engine.logs().into_iter().filter(of_topic).collect();
    if logs.is_empty() {
        return Err(errors::not_found(format!(
            "there is nothing of topic {topic} here; `seaway topic ls` lists topics"
        )));
    }
    let mut reply = api::SkipTopicReply::default();
    for log in logs {
        match shared.engine.skip_log(&log, request.really) {
            Ok(holes) => reply.ranges.extend(holes.into_iter().map(|hole| {
                let from = Place { incarnation: hole.incarnation, offset: hole.from };
                api::SkippedRange { from: Some(convert::message_id(&log, from)), to: hole.to }
            })),
            Err(error) => reply.kept.push(error.to_string()),
        }
    }
    Ok(reply)
}

/// Says what holds of a topic of an origin, and where it comes from.
pub(super) fn describe<E: Engine>(engine: &E, topic: &Topic, origin: &Site, status: &mut api::TopicStatus) {
    let view = engine.topic_settings(topic);
    let own = engine.identity().1.site == *origin;
    let control = engine.control(topic, origin);
    if let Some(deleted) = control.as_ref().filter(|c| c.is_deleted()).and_then(|c| c.deleted.as_ref()) {
        status.deleted_us = deleted.time_us;
        if own {
            let names = |sites: Vec<Site>| sites.iter().map(ToString::to_string).collect();
            let (confirmed, unconfirmed) = engine.deletion_confirmed(topic);
            (status.confirmed, status.unconfirmed) = (names(confirmed), names(unconfirmed));
        }
    }
    if own {
        status.refused = engine.refused_by(topic).into_iter().map(|(site, why)| format!("{site}: {why}")).collect();
    }
    status.settings = settings(&view, control.as_deref(), own, origin);
}

fn settings(view: &TopicSettingsView, control: Option<&Control>, own: bool, origin: &Site) -> Vec<api::TopicSetting> {
    let mut all = Vec::new();
    let setting = |name: &str, value: String, source: String, travels| api::TopicSetting {
        name: name.to_owned(),
        value,
        source,
        travels,
    };
    let source = |by_command: bool| if by_command { Source::Command } else { view.rest.clone() }.to_string();
    let set = &view.overrides;
    if let Some((_, stated)) = control.and_then(|control| control.settings.as_ref()) {
        let by_commands =
            [set.queues.is_some(), set.message_bytes_max.is_some(), set.codec.is_some(), set.replicate.is_some()];
        let replicate = stated
            .replicate
            .as_ref()
            .map_or_else(|| "all".to_owned(), |sites| sites.iter().map(Site::as_str).collect::<Vec<_>>().join(","));
        let values = [
            ("queues", stated.queues.to_string()),
            ("message-size-max", Size(stated.message_bytes_max).to_text()),
            ("compression", codec_text(stated.codec)),
            ("replicate", replicate),
        ];
        for ((name, value), by_command) in values.into_iter().zip(by_commands) {
            let from = if own { source(by_command) } else { format!("origin {origin}") };
            all.push(setting(name, value, from, true));
        }
    }
    let size = view.config.retention_bytes.map_or_else(|| "none".to_owned(), |bytes| Size(bytes).to_text());
    all.push(setting("retention-size", size, source(set.retention_bytes.is_some()), false));
    let age = view.config.retention_age.map_or_else(|| "none".to_owned(), |age| age.to_text());
    all.push(setting("retention-age", age, source(set.retention_age.is_some()), false));
    all
}

fn codec_text(codec: Codec) -> String {
    match codec {
        Codec::Unknown(number) => format!("codec {number}, unknown to this build"),
        known => known.to_text(),
    }
}
