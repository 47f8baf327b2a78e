//! Rates: what of topics and clients a door takes, and what a link carries, each second.
//!
//! **One rule**, as for topics' settings: a value that a command set holds until a command unsets it; else what the file says; else the
//! default, which is no limit. Of what commands set of topics, the topic's own name goes before `+`, and that before `#`; of the file the first
//! section that matches counts. Of links, a named peer goes before all peers; of clients, a named one before all.
//!
//! This module knows what holds. Who holds to it is elsewhere: doors ([`LimitBook::topic`], [`LimitBook::client`]) and the links' drivers
//! ([`LimitBook::feed`]), which look at [`LimitBook::version`] and so follow each change at once, or within a probe's interval.

mod node;
mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroU64,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::RwLock;
use seaway_federation_proto::{
    ids::{NodeName, Pattern, Topic},
    limits::MESSAGE_BYTES_DEFAULT,
    session::pace::{DirectionRates, LinkRates, RECEIVE_BURST_BYTES_MIN, Rate, SEND_BURST_BYTES_MIN},
};

pub(super) use self::store::PREFIX as LIMIT_KEYS;
use crate::{link::driver::RatesFeed, log::contract::Entry};

/// Most subjects of which commands set a limit.
pub const LIMITS_MAX: usize = 10_000;
/// Burst of a client where none is set: messages, bytes.
pub const CLIENT_MESSAGES_BURST: u64 = 10_000;
/// See above.
pub const CLIENT_BYTES_BURST: u64 = 64 * 1024 * 1024;
/// A burst may be worth no more than what comes in so long, seconds: a hundred years.
const BURST_S_MAX: u64 = 100 * 365 * 86_400;

/// What a limit holds back on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// What this node sends.
    Send,
    /// What it lets the peer send.
    Receive,
}

impl Direction {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }
}

/// What a limit is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// What each client publishes; `None`: every client that has none of its own.
    Client(Option<String>),
    /// What is published here to each topic that this matches.
    Topic(Pattern),
    /// A link, by the peer; `None`: every peer that has none of its own.
    Link(Option<NodeName>, Direction),
}

impl Subject {
    /// `client`, `topic` or `link`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::Topic(_) => "topic",
            Self::Link(..) => "link",
        }
    }

    /// Whom it is about; `*`: all.
    pub fn of(&self) -> String {
        let all = || "*".to_owned();
        match self {
            Self::Client(name) => name.clone().unwrap_or_else(all),
            Self::Topic(pattern) => pattern.to_string(),
            Self::Link(peer, _) => peer.as_ref().map_or_else(all, ToString::to_string),
        }
    }

    /// Of a link.
    pub fn direction(&self) -> Option<Direction> {
        match self {
            Self::Link(_, direction) => Some(*direction),
            Self::Client(_) | Self::Topic(_) => None,
        }
    }

    /// From its kind, whom it is about, and of a link its direction.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub fn parse(kind: &str, of: &str, direction: &str) -> Result<Self, String> {
        let all = of == "*";
        if kind != "link" && !direction.is_empty() {
            return Err(format!("a {kind} has no direction; leave it out"));
        }
        match kind {
            "client" if of.is_empty() || of.len() > 256 || of.chars().any(char::is_control) => {
                Err("a client's name has 1 to 256 bytes and no control characters; '*' is every client".to_owned())
            }
            "client" => Ok(Self::Client((!all).then(|| of.to_owned()))),
            "topic" => {
                let pattern = Pattern::from_str(of).map_err(|error| error.to_string())?;
                if of.contains('/') {
                    return Err(format!("{of:?} has more than one level; limits are for whole topics"));
                }
                Ok(Self::Topic(pattern))
            }
            "link" => {
                let direction = match direction {
                    "send" => Direction::Send,
                    "receive" => Direction::Receive,
                    other => return Err(format!("the direction of a link is \"send\" or \"receive\", not {other:?}")),
                };
                let peer = |error| format!("{error}; write the peer as SITE/NODE, or '*' for every peer");
                let peer = if all { None } else { Some(of.parse::<NodeName>().map_err(peer)?) };
                Ok(Self::Link(peer, direction))
            }
            other => Err(format!("there are limits of a client, a topic and a link, not of {other:?}")),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = self.direction().map(|direction| format!(" {}", direction.name())).unwrap_or_default();
        write!(f, "{} {}{direction}", self.kind(), self.of())
    }
}

/// What a publisher beyond a rate meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExceed {
    /// It is slowed down.
    #[default]
    Delay,
    /// It is refused, and told after how long to try again.
    Refuse,
}

/// What is said of one subject; `None`: nothing, so that the next source counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitSettings {
    /// Messages a second (`None` within: no limit).
    pub messages_per_s: Option<Option<NonZeroU64>>,
    /// Messages above that at once.
    pub messages_burst: Option<NonZeroU64>,
    /// Bytes a second (`None` within: no limit).
    pub bytes_per_s: Option<Option<NonZeroU64>>,
    /// Bytes above that at once.
    pub bytes_burst: Option<NonZeroU64>,
    /// What happens beyond; links always delay.
    pub on_exceed: Option<OnExceed>,
}

impl LimitSettings {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Says of `self` what it leaves open.
    pub fn or(&mut self, next: &Self) {
        self.messages_per_s = self.messages_per_s.or(next.messages_per_s);
        self.messages_burst = self.messages_burst.or(next.messages_burst);
        self.bytes_per_s = self.bytes_per_s.or(next.bytes_per_s);
        self.bytes_burst = self.bytes_burst.or(next.bytes_burst);
        self.on_exceed = self.on_exceed.or(next.on_exceed);
    }

    /// What follows for a subject through which messages of up to `largest` bytes go.
    ///
    /// # Errors
    /// A value that contradicts another: its name, and what is wrong with it.
    pub fn check(&self, subject: &Subject, largest: u64) -> Result<Limit, Contradiction> {
        if subject.direction().is_some() && self.on_exceed == Some(OnExceed::Refuse) {
            let text = "is \"refuse\", but a link only delays (one-way messages are dropped and counted)";
            return Err(Contradiction { key: "on_exceed", text: text.to_owned() });
        }
        let (least, why) = match subject.direction() {
            None => (largest, "the largest message"),
            Some(Direction::Send) => {
                (SEND_BURST_BYTES_MIN, "what a link needs for one largest batch of each of its two lanes")
            }
            Some(Direction::Receive) => (
                RECEIVE_BURST_BYTES_MIN,
                "what a link needs for the credit of one largest message on each of its two lanes",
            ),
        };
        let rates = self.effective(subject, largest);
        let of = |key, per_s: Option<Option<NonZeroU64>>, burst: Option<NonZeroU64>, rate: Option<Rate>| {
            let text = match (per_s.flatten(), burst, rate) {
                (None, Some(_), _) => {
                    "has no effect without a rate; set the rate beside it, or leave it out".to_owned()
                }
                (Some(per_s), Some(burst), _) if burst.get() / per_s.get() > BURST_S_MAX => {
                    format!("is {burst}, more than a hundred years of {per_s} a second")
                }
                _ => return Ok(()),
            };
            Err(Contradiction { key, text })
        };
        of("messages_burst", self.messages_per_s, self.messages_burst, rates.messages)?;
        of("bytes_burst", self.bytes_per_s, self.bytes_burst, rates.bytes)?;
        match self.bytes_burst.filter(|burst| burst.get() < least) {
            Some(burst) => {
                let text = format!(
                    "is {burst} bytes, less than {why} ({least} bytes), which could never pass as it should; raise it"
                );
                Err(Contradiction { key: "bytes_burst", text })
            }
            None => Ok(rates),
        }
    }

    fn effective(&self, subject: &Subject, largest: u64) -> Limit {
        let least = match subject {
            Subject::Client(_) | Subject::Topic(_) => largest,
            Subject::Link(_, Direction::Send) => SEND_BURST_BYTES_MIN,
            Subject::Link(_, Direction::Receive) => RECEIVE_BURST_BYTES_MIN,
        };
        let least = NonZeroU64::new(least).unwrap_or(NonZeroU64::MIN);
        let of_client = |burst| NonZeroU64::new(burst).filter(|_| matches!(subject, Subject::Client(_)));
        let rate = |per_s: Option<Option<NonZeroU64>>, burst: Option<NonZeroU64>, default, least: NonZeroU64| {
            let burst = burst.or(of_client(default));
            per_s.flatten().map(|per_s| Rate { per_s, burst: burst.unwrap_or(per_s).max(least) })
        };
        Limit {
            messages: rate(self.messages_per_s, self.messages_burst, CLIENT_MESSAGES_BURST, NonZeroU64::MIN),
            bytes: rate(self.bytes_per_s, self.bytes_burst, CLIENT_BYTES_BURST, least),
            on_exceed: self.on_exceed.unwrap_or_default(),
        }
    }
}

/// Two values of a limit that cannot both hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {text}")]
pub struct Contradiction {
    /// The value's name as the file has it.
    pub key: &'static str,
    /// What is wrong, as the rest of the sentence.
    pub text: String,
}

/// What holds for a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// Messages.
    pub messages: Option<Rate>,
    /// Bytes.
    pub bytes: Option<Rate>,
    /// What happens beyond.
    pub on_exceed: OnExceed,
}

impl Limit {
    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        self.messages.is_some() || self.bytes.is_some()
    }
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitsConfig {
    /// Topics by pattern of the topic name, each with its section's largest message in bytes; the first match counts.
    pub topics: Vec<(Pattern, LimitSettings, u64)>,
    /// Links.
    pub links: BTreeMap<(Option<NodeName>, Direction), LimitSettings>,
}

/// A subject of which something is set, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitView {
    /// Of what.
    pub subject: Subject,
    /// What commands set of it.
    pub set: LimitSettings,
    /// What the file says of it.
    pub file: LimitSettings,
    /// What holds.
    pub limit: Limit,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct LimitBook {
    file: RwLock<LimitsConfig>,
    set: RwLock<BTreeMap<Subject, LimitSettings>>,
    version: AtomicU64,
}

impl LimitBook {
    /// With what the file says.
    pub fn new(file: LimitsConfig) -> Self {
        Self { file: RwLock::new(file), set: RwLock::default(), version: AtomicU64::new(1) }
    }

    /// Brings back what commands set, from the rows of the node's table; the keys of those that cannot be read.
    pub fn restore(&self, rows: impl IntoIterator<Item = (Bytes, Bytes)>) -> Vec<String> {
        let mut unreadable = Vec::new();
        let mut set = self.set.write();
        for (key, value) in rows {
            match store::decode(&key, &value) {
                Some((subject, settings)) => drop(set.insert(subject, settings)),
                None => unreadable.push(String::from_utf8_lossy(&key).replace('\0', " ")),
            }
        }
        drop(set);
        self.changed();
        unreadable
    }

    /// Grows with each change.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// What the file says from now on.
    pub fn replace_file(&self, file: LimitsConfig) {
        *self.file.write() = file;
        self.changed();
    }

    /// The row that makes a change durable, to be stored before [`LimitBook::apply`]; `None`: what commands set of it is to be
    /// forgotten.
    ///
    /// # Errors
    /// A contradiction with what holds beside it, or there are too many; one sentence.
    pub fn plan(
        &self,
        subject: &Subject,
        change: Option<&LimitSettings>,
        file_of_client: &LimitSettings,
        largest: u64,
    ) -> Result<(Option<LimitSettings>, Entry), String> {
        let set = self.set.read();
        let Some(change) = change else {
            if !set.contains_key(subject) {
                return Err(format!("no command set a limit of {subject}; `seaway limit ls` lists what holds"));
            }
            return Ok((None, store::entry(subject, None)));
        };
        if set.len() >= LIMITS_MAX && !set.contains_key(subject) {
            return Err(format!("commands set {LIMITS_MAX} limits already, the most that may be; remove some"));
        }
        let mut new = change.clone();
        if let Some(before) = set.get(subject) {
            new.or(before);
        }
        // A rate that is taken away takes its burst along.
        if new.messages_per_s == Some(None) {
            new.messages_burst = change.messages_burst;
        }
        if new.bytes_per_s == Some(None) {
            new.bytes_burst = change.bytes_burst;
        }
        drop(set);
        let mut whole = new.clone();
        whole.or(&self.beside(subject, file_of_client));
        if whole.messages_per_s == Some(None) && new.messages_burst.is_none() {
            whole.messages_burst = None;
        }
        if whole.bytes_per_s == Some(None) && new.bytes_burst.is_none() {
            whole.bytes_burst = None;
        }
        whole.check(subject, largest).map_err(|wrong| wrong.to_string().replace('_', "-"))?;
        Ok((Some(new.clone()), store::entry(subject, Some(&new))))
    }

    /// What a change that is durable says from now on.
    pub fn apply(&self, subject: &Subject, settings: Option<LimitSettings>) {
        let mut set = self.set.write();
        match settings {
            Some(settings) => drop(set.insert(subject.clone(), settings)),
            None => drop(set.remove(subject)),
        }
        drop(set);
        self.changed();
    }

    /// What is said of a subject by all that comes after its own command.
    fn beside(&self, subject: &Subject, file_of_client: &LimitSettings) -> LimitSettings {
        let (set, file) = (self.set.read(), self.file.read());
        let mut beside = LimitSettings::default();
        let mut command = |subject: Subject| set.get(&subject).into_iter().for_each(|next| beside.or(next));
        match subject {
            Subject::Client(None) => beside.or(file_of_client),
            Subject::Client(Some(_)) => {
                command(Subject::Client(None));
                beside.or(file_of_client);
            }
            Subject::Topic(pattern) => {
                let wider = ["+", "#"].into_iter().skip(usize::from(pattern.as_str() == "+"));
                wider
                    .filter(|_| pattern.as_str() != "#")
                    .filter_map(|p| p.parse().ok())
                    .for_each(|p| command(Subject::Topic(p)));
                let topic = pattern.as_str().parse::<Topic>();
                let of = |(p, ..): &&(Pattern, LimitSettings, u64)| match &topic {
                    Ok(topic) => p.touches(topic),
                    Err(_) => p == pattern,
                };
                file.topics.iter().find(of).into_iter().for_each(|(_, settings, _)| beside.or(settings));
            }
            Subject::Link(peer, direction) => {
                if peer.is_some() {
                    command(Subject::Link(None, *direction));
                    file.links.get(&(peer.clone(), *direction)).into_iter().for_each(|next| beside.or(next));
                }
                file.links.get(&(None, *direction)).into_iter().for_each(|next| beside.or(next));
            }
        }
        beside
    }

    fn whole(&self, subject: &Subject, file_of_client: &LimitSettings) -> LimitSettings {
        let mut whole = self.set.read().get(subject).cloned().unwrap_or_default();
        whole.or(&self.beside(subject, file_of_client));
        whole
    }

    /// Whether anything is said of topics.
    pub fn has_topics(&self) -> bool {
        self.set.read().keys().any(|subject| matches!(subject, Subject::Topic(_)))
            || self.file.read().topics.iter().any(|(_, settings, _)| !settings.is_empty())
    }

    /// What holds for what is published here to a topic whose messages have up to `largest` bytes.
    pub fn topic(&self, topic: &Topic, largest: u64) -> Limit {
        if topic.is_internal() {
            return Limit::default();
        }
        let Ok(pattern) = topic.as_str().parse::<Pattern>() else { return Limit::default() };
        let subject = Subject::Topic(pattern);
        self.whole(&subject, &LimitSettings::default()).effective(&subject, largest)
    }

    /// The burst that is set for a topic, bytes, if one is.
    pub fn topic_burst(&self, topic: &Topic) -> Option<NonZeroU64> {
        let pattern = topic.as_str().parse::<Pattern>().ok()?;
        let whole = self.whole(&Subject::Topic(pattern), &LimitSettings::default());
        whole.bytes_per_s.flatten().and(whole.bytes_burst)
    }

    /// What holds for a client; `file`: what its door's configuration says of all clients.
    pub fn client(&self, client: &str, file: &LimitSettings) -> Limit {
        let subject = Subject::Client(Some(client.to_owned()));
        self.whole(&subject, file).effective(&subject, 1)
    }

    /// What holds for the link with a peer.
    pub fn link(&self, peer: &NodeName) -> LinkRates {
        let of = |direction| {
            let subject = Subject::Link(Some(peer.clone()), direction);
            let Limit { messages, bytes, .. } = self.whole(&subject, &LimitSettings::default()).effective(&subject, 0);
            DirectionRates { bytes, messages }
        };
        LinkRates { send: of(Direction::Send), receive: of(Direction::Receive) }
    }

    /// The rates of the link with a peer, for its driver.
    pub fn feed(self: &Arc<Self>, peer: NodeName) -> RatesFeed {
        let (book, mut seen) = (self.clone(), 0);
        Box::new(move || {
            let version = book.version();
            (std::mem::replace(&mut seen, version) != version).then(|| book.link(&peer))
        })
    }

    /// All subjects of which the file or a command says something. `file_of_clients`: what the door's file says of all clients;
    /// `largest`: a topic's largest message, bytes.
    pub fn list(&self, file_of_clients: &LimitSettings, largest: impl Fn(&Topic) -> u64) -> Vec<LimitView> {
        let mut subjects: BTreeMap<Subject, LimitSettings> =
            self.set.read().keys().map(|subject| (subject.clone(), LimitSettings::default())).collect();
        let file = self.file.read().clone();
        for (pattern, settings, _) in file.topics.iter().rev().filter(|(_, settings, _)| !settings.is_empty()) {
            subjects.insert(Subject::Topic(pattern.clone()), settings.clone());
        }
        for ((peer, direction), settings) in file.links.iter().filter(|(_, settings)| !settings.is_empty()) {
            subjects.insert(Subject::Link(peer.clone(), *direction), settings.clone());
        }
        if !file_of_clients.is_empty() {
            subjects.insert(Subject::Client(None), file_of_clients.clone());
        }
        let view = |(subject, file): (Subject, LimitSettings)| {
            let set = self.set.read().get(&subject).cloned().unwrap_or_default();
            let largest = match &subject {
                Subject::Topic(pattern) => {
                    pattern.as_str().parse::<Topic>().map_or(MESSAGE_BYTES_DEFAULT as u64, |topic| largest(&topic))
                }
                Subject::Client(_) | Subject::Link(..) => 1,
            };
            let limit = self.whole(&subject, file_of_clients).effective(&subject, largest);
            LimitView { subject, set, file, limit }
        };
        subjects.into_iter().map(view).collect()
    }
}
