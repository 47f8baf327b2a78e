//! What a call that changes a node is about, in the words of its record in the audit trail: names and new values, never a secret.
//!
//! Every request that the admin service lets steer has to say it, or it does not compile; a test holds that none says nothing.

use crate::api;

/// A request that changes the node.
pub(crate) trait Told {
    /// What it is about.
    fn told(&self) -> String;

    /// Whether it changes nothing after all, as a request that only asks what would come of it: such a call leaves no record.
    fn only_looks(&self) -> bool {
        false
    }
}

/// The settings that a change names, and those it takes back.
fn change(change: Option<&api::TopicChange>) -> String {
    let Some(change) = change else { return "as configured".to_owned() };
    let api::TopicChange { queues, message_size_max, compression, replicate, retention_size, retention_age_ms, unset } =
        change;
    let sites = |set: &api::SiteSet| if set.all { "all".to_owned() } else { set.sites.join(",") };
    let set = [
        queues.map(|queues| format!("queues={queues}")),
        message_size_max.map(|bytes| format!("message-size-max={bytes}")),
        compression.as_ref().map(|codec| format!("compression={codec}")),
        replicate.as_ref().map(|set| format!("replicate={}", sites(set))),
        retention_size.map(|bytes| format!("retention-size={bytes}")),
        retention_age_ms.map(|ms| format!("retention-age={ms}ms")),
    ];
    let unset = unset.iter().map(|name| format!("unset {name}"));
    let parts: Vec<String> = set.into_iter().flatten().chain(unset).collect();
    if parts.is_empty() { "as configured".to_owned() } else { parts.join(" ") }
}

/// What is limited, and what a change of it says.
fn limit(subject: Option<&api::LimitSubject>, change: Option<&api::LimitValues>) -> String {
    let subject = subject.cloned().unwrap_or_default();
    let mut text = format!("{} {} {}", subject.kind, subject.of, subject.direction).trim_end().to_owned();
    let Some(change) = change else { return text };
    let numbers = [
        ("messages-per-s", change.messages_per_s),
        ("messages-burst", change.messages_burst),
        ("bytes-per-s", change.bytes_per_s),
        ("bytes-burst", change.bytes_burst),
    ];
    for (name, number) in numbers.into_iter().filter_map(|(name, number)| Some((name, number?))) {
        text.push_str(&format!(" {name}={}", if number == 0 { "none".to_owned() } else { number.to_string() }));
    }
    change.on_exceed.iter().for_each(|on_exceed| text.push_str(&format!(" on-exceed={on_exceed}")));
    text
}

impl Told for api::SetLimitRequest {
    fn told(&self) -> String {
        format!("limit of {}", limit(self.subject.as_ref(), self.change.as_ref()))
    }
}

impl Told for api::RemoveLimitRequest {
    fn told(&self) -> String {
        format!("limit of {}", limit(self.subject.as_ref(), None))
    }
}

impl Told for api::RemoveSiteRequest {
    fn told(&self) -> String {
        format!("site {}{}", self.site, if self.yes { "" } else { ", asked only what would be lost" })
    }

    fn only_looks(&self) -> bool {
        !self.yes
    }
}

impl Told for api::CreateTopicRequest {
    fn told(&self) -> String {
        format!("topic {}: {}", self.topic, change(self.change.as_ref()))
    }
}

impl Told for api::SetTopicRequest {
    fn told(&self) -> String {
        format!("topic {}: {}", self.topic, change(self.change.as_ref()))
    }
}

impl Told for api::TrimTopicRequest {
    fn told(&self) -> String {
        use api::trim_topic_request::To;
        let to = match &self.to {
            Some(To::Before(at)) => {
                let place = at.place.as_ref().map(|p| format!("{}/{}", p.incarnation, p.offset)).unwrap_or_default();
                format!("origin {} queue {} before {place}", at.origin, at.queue)
            }
            Some(To::BeforeUs(time_us)) => format!("before {time_us} us since 1970"),
            Some(To::KeepSize(bytes)) => format!("to {bytes} bytes"),
            None => "to nothing that is said".to_owned(),
        };
        let origin = if self.origin.is_empty() { String::new() } else { format!(" of origin {}", self.origin) };
        format!("topic {}{origin}: {to}", self.topic)
    }
}

impl Told for api::SkipTopicRequest {
    fn told(&self) -> String {
        let origin = if self.origin.is_empty() { String::new() } else { format!(" of {}", self.origin) };
        format!("topic {}{origin}, what its copies wait for", self.topic)
    }

    fn only_looks(&self) -> bool {
        !self.really
    }
}

impl Told for api::RemoveTopicRequest {
    fn told(&self) -> String {
        format!("topic {}{}", self.topic, if self.force { ", by force" } else { "" })
    }
}

impl Told for api::DeleteGroupRequest {
    fn told(&self) -> String {
        format!("group {}", self.group)
    }
}

impl Told for api::CreateTokenRequest {
    fn told(&self) -> String {
        let rights = self.rights.clone().unwrap_or_default();
        let expires =
            if self.expires_us == 0 { String::new() } else { format!(", until {} us since 1970", self.expires_us) };
        format!(
            "token {}: publish {:?}, subscribe {:?}, admin {}{expires}",
            self.name, rights.publish, rights.subscribe, rights.admin
        )
    }
}

impl Told for api::RevokeTokenRequest {
    fn told(&self) -> String {
        format!("token {}", self.name)
    }
}

impl Told for api::DrainRequest {
    fn told(&self) -> String {
        if self.undo { "undo" } else { "this node" }.to_owned()
    }
}

impl Told for api::PauseLinkRequest {
    fn told(&self) -> String {
        format!("link with {}", self.peer)
    }
}

impl Told for api::ResumeLinkRequest {
    fn told(&self) -> String {
        format!("link with {}", self.peer)
    }
}

impl Told for api::ReloadConfigRequest {
    fn told(&self) -> String {
        "this node's files".to_owned()
    }
}

impl Told for api::SetLogLevelRequest {
    fn told(&self) -> String {
        let target = if self.target.is_empty() { "all" } else { &self.target };
        match self.level.as_str() {
            "" => format!("{target} as configured"),
            level => format!("{target}={level} for {} ms", self.for_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_what_it_sets_and_what_it_takes_back() {
        let set = api::TopicChange {
            queues: Some(4),
            replicate: Some(api::SiteSet { all: false, sites: vec!["us".into(), "eu".into()] }),
            unset: vec!["compression".into()],
            ..api::TopicChange::default()
        };
        let told = api::SetTopicRequest { topic: "orders".into(), change: Some(set) }.told();
        assert_eq!(told, "topic orders: queues=4 replicate=us,eu unset compression");
        let told = api::CreateTopicRequest { topic: "orders".into(), change: None }.told();
        assert_eq!(told, "topic orders: as configured");
    }

    #[test]
    fn what_only_asks_is_told_from_what_removes() {
        let asks = api::RemoveSiteRequest { site: "us".into(), yes: false };
        let removes = api::RemoveSiteRequest { site: "us".into(), yes: true };
        assert!(asks.only_looks() && !removes.only_looks());
        assert_eq!(removes.told(), "site us");
        assert_ne!(asks.told(), removes.told());
        assert_eq!(api::RemoveTopicRequest { topic: "a".into(), force: true }.told(), "topic a, by force");
    }

    #[test]
    fn not_even_an_empty_request_says_nothing() {
        let told: Vec<String> = vec![
            api::RemoveSiteRequest::default().told(),
            api::CreateTopicRequest::default().told(),
            api::SetTopicRequest::default().told(),
            api::TrimTopicRequest::default().told(),
            api::SkipTopicRequest::default().told(),
            api::RemoveTopicRequest::default().told(),
            api::DeleteGroupRequest::default().told(),
            api::CreateTokenRequest::default().told(),
            api::RevokeTokenRequest::default().told(),
            api::DrainRequest::default().told(),
            api::PauseLinkRequest::default().told(),
            api::ResumeLinkRequest::default().told(),
            api::ReloadConfigRequest::default().told(),
            api::SetLogLevelRequest::default().told(),
            api::SetLimitRequest::default().told(),
            api::RemoveLimitRequest::default().told(),
        ];
        assert!(told.iter().all(|text| !text.is_empty()), "{told:?}");
    }
}
