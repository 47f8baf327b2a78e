//! Names and positions: sites, nodes, topics, paths, queues, logs, incarnations, offsets and places.
//!
//! Every type here is checked when it is made, so a value that exists is valid. Text parses with
//! [`str::parse`]; what a user meets when it does not is [`InvalidName`].

use std::{fmt, str::FromStr, sync::Arc};

use crate::limits;

/// A name that breaks one of the rules for names; the sentence says which, and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {found:?} is not allowed: {rule}")]
pub struct InvalidName {
    /// What kind of name was meant: `site`, `topic`, `path` …
    pub what: &'static str,
    /// What was found, cut to 64 characters.
    pub found: String,
    /// The rule it breaks.
    pub rule: &'static str,
}

impl InvalidName {
    fn new(what: &'static str, found: &str, rule: &'static str) -> Self {
        Self { what, found: found.chars().take(64).collect(), rule }
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                $check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A region, data centre or edge location: a DNS label, unique in the federation for ever.
    Site, check_site
);
name_type!(
    /// The unit of storage and policy: the first level of a [`Path`].
    Topic, check_topic
);
name_type!(
    /// The whole name of a message's subject, `topic/tag…`, at most [`limits::PATH_BYTES_MAX`] bytes.
    Path, check_path
);

fn check_label(what: &'static str, text: &str) -> Result<(), InvalidName> {
    const RULE: &str = "it must be a DNS label: 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'";
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    let edge = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
    if bytes.len() > 63 || !bytes.iter().all(inner) || !edge(bytes.first()) || !edge(bytes.last()) {
        return Err(InvalidName::new(what, text, RULE));
    }
    Ok(())
}

fn check_site(text: &str) -> Result<(), InvalidName> {
    check_label("site", text)
}

fn check_path(text: &str) -> Result<(), InvalidName> {
    let fail = |rule| Err(InvalidName::new("path", text, rule));
    if text.is_empty() {
        return fail("it must not be empty");
    }
    if text.len() > limits::PATH_BYTES_MAX {
        return fail("it must be at most 1024 bytes long");
    }
    if text.chars().any(char::is_control) {
        return fail("it must not contain control characters");
    }
    if text.contains(['+', '#']) {
        return fail("'+' and '#' are wildcards and belong to patterns only");
    }
    if text.split('/').any(str::is_empty) {
        return fail("it must not have an empty level (no leading, trailing or double '/')");
    }
    Ok(())
}

fn check_topic(text: &str) -> Result<(), InvalidName> {
    if text.contains('/') {
        return Err(InvalidName::new("topic", text, "a topic is the first level of a path and has no '/'"));
    }
    check_path(text).map_err(|e| InvalidName { what: "topic", ..e })
}

impl Path {
    /// The first level: the unit of storage and policy.
    pub fn topic(&self) -> Topic {
        Topic(self.0.split('/').next().unwrap_or_default().into())
    }

    /// The second level, where there is one.
    pub fn tag(&self) -> Option<&str> {
        self.0.split('/').nth(1)
    }
}

impl Topic {
    /// Whether the topic is one of Seaway's own (begins with `_` or `$`), closed to clients.
    pub fn is_internal(&self) -> bool {
        self.0.starts_with(['_', '$'])
    }
}

/// A subscription or want pattern over paths, with MQTT's wildcards: `+` is one level, a final `#`
/// is all levels from there on (and none). Wildcards at the first level do not match topics that
/// begin with `_` or `$`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a message with this path is meant.
    pub fn matches(&self, path: &Path) -> bool {
        let mut levels = path.as_str().split('/');
        for (depth, level) in self.0.split('/').enumerate() {
            let wild = level == "#" || level == "+";
            if level == "#" && !(depth == 0 && path.as_str().starts_with(['_', '$'])) {
                return true;
            }
            match levels.next() {
                Some(found) if wild => {
                    if depth == 0 && found.starts_with(['_', '$']) {
                        return false;
                    }
                }
                Some(found) if found == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }

    /// Whether some path in this topic can match: what decides which logs a want covers.
    pub fn touches(&self, topic: &Topic) -> bool {
        match self.0.split('/').next() {
            Some("#" | "+") => !topic.is_internal(),
            Some(first) => first == topic.as_str(),
            None => false,
        }
    }
}

impl FromStr for Pattern {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let fail = |rule| Err(InvalidName::new("pattern", text, rule));
        if text.is_empty() {
            return fail(
                "it is empty; to match everything write '#', in quotes, since a bare # begins a comment in a shell",
            );
        }
        if text.len() > limits::PATH_BYTES_MAX {
            return fail("it must be at most 1024 bytes long");
        }
        if text.chars().any(char::is_control) {
            return fail("it must not contain control characters");
        }
        let count = text.split('/').count();
        for (depth, level) in text.split('/').enumerate() {
            if level.is_empty() {
                return fail("it must not have an empty level");
            }
            if level.contains('#') && (level != "#" || depth + 1 != count) {
                return fail("'#' must stand alone as the last level");
            }
            if level.contains('+') && level != "+" {
                return fail("'+' must stand alone in its level");
            }
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node's name: its site, and a label that is unique in the site.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName {
    /// The site the node stands in.
    pub site: Site,
    /// The node's own label.
    pub node: Arc<str>,
}

impl NodeName {
    /// Makes a name; `node` must be a DNS label.
    pub fn new(site: Site, node: &str) -> Result<Self, InvalidName> {
        check_label("node", node)?;
        Ok(Self { site, node: node.into() })
    }
}

impl FromStr for NodeName {
    type Err = InvalidName;
    /// Parses `site/node`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (site, node) =
            text.split_once('/').ok_or_else(|| InvalidName::new("node", text, "it must be written site/node"))?;
        Self::new(site.parse()?, node)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.site, self.node)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A topic's unit of order at its origin. Queue 0 is the control queue; messages go to 1 and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queue(pub u16);

impl Queue {
    /// The queue of a topic's settings, deletion and registrations.
    pub const CONTROL: Queue = Queue(0);
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a log: only its origin appends to it, and every copy of it is identical.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogName {
    /// The topic.
    pub topic: Topic,
    /// The site that appends.
    pub origin: Site,
    /// The queue of the topic at that site.
    pub queue: Queue,
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.topic, self.origin, self.queue)
    }
}

impl fmt::Debug for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One opening of a log for appending: a counter and 64 random bits. Nothing is ever appended to
/// an older incarnation of a log once a newer one exists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// One more than the incarnation before it; the first is 1.
    pub counter: u64,
    /// What tells two incarnations of one counter apart (a restored or cloned origin).
    pub random: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:016x}", self.counter, self.random)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A number of messages from the start of a log. Offsets go on counting over incarnations.
pub type Offset = u64;

/// Where a message stands in its log, or where the next one will: the same at every site.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The incarnation that holds the message.
    pub incarnation: Incarnation,
    /// The message's offset.
    pub offset: Offset,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.incarnation, self.offset)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Place {
    type Err = InvalidName;
    /// Parses what [`fmt::Display`] writes: `counter.random:offset`, random in hexadecimal.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let parse = || {
            let (incarnation, offset) = text.split_once(':')?;
            let (counter, random) = incarnation.split_once('.')?;
            Some(Place {
                incarnation: Incarnation {
                    counter: counter.parse().ok()?,
                    random: u64::from_str_radix(random, 16).ok()?,
                },
                offset: offset.parse().ok()?,
            })
        };
        parse().ok_or_else(|| InvalidName::new("place", text, "it must be written COUNTER.RANDOM:OFFSET"))
    }
}

/// One start of a node's process: when it began (microseconds since 1970) and random bits. What a
/// node numbers is numbered by its start and a sequence, so a restarted node is never mistaken for
/// its former self. Later starts compare greater as long as the clock does not go back; a node that
/// meets a greater start of its own name goes on above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Start {
    /// Microseconds since 1970 by the node's wall clock when the process began, raised above the last start the node remembers.
    pub time_us: u64,
    /// Random bits.
    pub random: u64,
}
