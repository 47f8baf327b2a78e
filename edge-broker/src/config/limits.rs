//! Rates of topics (`limits` in `[[topic]]`) and links (`send_rate`, `receive_rate` in `[link]` and `[[link.peer]]`).

use std::num::NonZeroU64;

use seaway_relay::node::limits::{self, Contradiction, Direction, LimitSettings, LimitsConfig, Subject};
use serde::{Deserialize, Serialize};

use super::{
    ConfigError, Loaded,
    settings::OnExceed,
    values::{FromText, Given, Size},
};

/// A whole number that is not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(pub NonZeroU64);

impl FromText for Count {
    const EXPECTED: &'static str = "a whole number of at least 1 and at most 64 bits";

    fn from_text(text: &str) -> Result<Self, String> {
        text.trim().parse().map(Self).map_err(|_| String::new())
    }

    fn to_text(&self) -> String {
        self.0.to_string()
    }

    fn from_number(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }
}

/// A rate: of a topic, or of one direction of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "rates such as { bytes_per_s = \"1 MiB\" }")]
pub struct RateSection {
    /// Messages a second, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_s: Option<Given<Count>>,
    /// Messages above the average at once; without it, as many as come in a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_burst: Option<Given<Count>>,
    /// Bytes a second, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<Given<Size>>,
    /// Bytes above the average at once; without it, as many as come in a second, or the largest message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<Given<Size>>,
    /// What a publisher beyond the rate meets; a link delays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_exceed: Option<OnExceed>,
}

impl Loaded {
    /// Rates of topics and links, each checked by itself.
    pub(super) fn limits_config(&self) -> Result<LimitsConfig, ConfigError> {
        let mut config = LimitsConfig::default();
        for (index, topic) in self.settings.topic.iter().enumerate() {
            let largest = topic.message_size_max.0.0;
            let subject = Subject::Topic(topic.pattern.0.clone());
            let key = ["topic", &index.to_string(), "limits"];
            let settings = self.rate(&key, topic.limits.as_ref(), &subject, largest)?;
            config.topics.push((topic.pattern.0.clone(), settings, largest));
        }
        let link = &self.settings.link;
        let mut sides = vec![(vec!["link".to_owned()], None, &link.send_rate, &link.receive_rate)];
        for (index, peer) in link.peer.iter().enumerate() {
            let path = vec!["link".to_owned(), "peer".to_owned(), index.to_string()];
            sides.push((path, Some(peer.node.0.clone()), &peer.send_rate, &peer.receive_rate));
        }
        for (path, peer, send, receive) in sides {
            let of = [("send_rate", send, Direction::Send), ("receive_rate", receive, Direction::Receive)];
            for (name, given, direction) in of {
                let key: Vec<&str> = path.iter().map(String::as_str).chain([name]).collect();
                let subject = Subject::Link(peer.clone(), direction);
                let settings = self.rate(&key, given.as_ref(), &subject, 0)?;
                if !settings.is_empty() {
                    config.links.insert((peer.clone(), direction), settings);
                }
            }
        }
        Ok(config)
    }

    fn rate(
        &self,
        key: &[&str],
        given: Option<&RateSection>,
        subject: &Subject,
        largest: u64,
    ) -> Result<LimitSettings, ConfigError> {
        let Some(given) = given else { return Ok(LimitSettings::default()) };
        let wrong = |name: &str, text: &str| {
            let key: Vec<&str> = key.iter().copied().chain([name]).collect();
            self.mistake(&key, text)
        };
        let size = |name: &str, size: Option<&Given<Size>>| {
            let Some(Given(Size(bytes))) = size else { return Ok(None) };
            let none = || wrong(name, "is 0, but at least \"1 B\" is expected; for no limit, leave it out");
            NonZeroU64::new(*bytes).map(Some).ok_or_else(none)
        };
        let count = |count: Option<&Given<Count>>| count.map(|given| given.0.0);
        let settings = LimitSettings {
            messages_per_s: count(given.messages_per_s.as_ref()).map(Some),
            messages_burst: count(given.messages_burst.as_ref()),
            bytes_per_s: size("bytes_per_s", given.bytes_per_s.as_ref())?.map(Some),
            bytes_burst: size("bytes_burst", given.bytes_burst.as_ref())?,
            on_exceed: given.on_exceed.map(|on_exceed| match on_exceed {
                OnExceed::Delay => limits::OnExceed::Delay,
                OnExceed::Refuse => limits::OnExceed::Refuse,
            }),
        };
        let contradiction = |Contradiction { key, text }| wrong(key, &text);
        settings.check(subject, largest).map_err(contradiction)?;
        Ok(settings)
    }
}
