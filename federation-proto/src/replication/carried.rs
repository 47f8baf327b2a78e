//! What one node says to others over nodes between: addressed, passed on as its author encoded it, and handed to whom it
//! concerns.
//!
//! A message is read wholly before it is passed on, so that what is malformed ends at the first node that meets it: the author's
//! own neighbour closes the author's link, anybody else drops and counts it, for the peer that passed it on is innocent.
//! Kinds that this build does not know are passed on by their address alone. A message to a site or node is believed only
//! on a link that leads to its author by a shortest way: nobody beside the way can speak for somebody else.

use bytes::Bytes;
use prost::Message as _;

use super::{
    LinkId, Output, Replication,
    announce::view_from,
    convert::{self, Checked},
    find::Found,
    lines::View,
    refusals::Refused,
};
use crate::{
    ids::{LogName, NodeName, Pattern, Place, Site, Start},
    wire::{
        self, WireError,
        link::{self, carried_body},
    },
};

pub(super) use carried_body::Kind;

/// Encoded bytes at which a list is cut and goes on in another message.
pub(super) const LIST_BYTES: usize = 256 * 1024;
/// Nodes that one message may list as passed.
const WAY_MAX: usize = 64;

/// The number under which a node flooded something.
pub(super) type FloodKey = (NodeName, Start, u64);

/// Where a message goes.
#[derive(Debug, Clone)]
pub(super) enum To {
    Site(Site),
    Node(NodeName),
    All(u64),
    Wanting(Site),
    Back(FloodKey),
}

/// Who says it, and to whom.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) author: NodeName,
    pub(super) start: Start,
    to: To,
    note_way: bool,
}

#[cfg(test)]
impl Head {
    pub(super) fn of(author: NodeName, start: Start) -> Self {
        Self { author, start, to: To::All(0), note_way: false }
    }
}

/// A point of a log in a mark.
#[derive(Debug, Clone)]
pub(super) struct MarkedPoint {
    pub(super) log: LogName,
    pub(super) end: Place,
    pub(super) bytes_total: u64,
    pub(super) messages_total: u64,
}

/// What is said, checked.
#[derive(Debug)]
pub(super) enum Content {
    Held {
        sequence: u64,
        /// With whether the topic is taken.
        logs: Vec<(wire::HeldLog, Refused)>,
    },
    HeldSeen {
        start: Start,
        sequences: Vec<u64>,
        /// What was compared by chain value: up to where, and whether it differs.
        compared: Vec<(LogName, Place, bool)>,
    },
    Register {
        sequence: u64,
        patterns: Vec<Pattern>,
        withdraw: bool,
    },
    Registered {
        start: Start,
        sequence: u64,
        refused: String,
    },
    Mark {
        sequence: u64,
        time_us: u64,
        logs: Vec<MarkedPoint>,
    },
    Question {
        origin: Site,
        known: Vec<wire::HeldLog>,
        patterns: Vec<Pattern>,
    },
    /// What its author holds, and whether another part follows.
    Answer(Vec<(LogName, View)>, bool),
    /// Where is this message?
    Find {
        log: LogName,
        place: Place,
    },
    Found(Box<Found>),
    TraceProbe(u64),
    TraceReply {
        number: u64,
        failed: String,
    },
    /// Of a newer node's.
    Unknown,
}

fn read_head(body: &link::CarriedBody) -> Checked<Head> {
    use carried_body::To as Wire;
    let to = match body.to.as_ref().ok_or(WireError::Missing("carried.to"))? {
        Wire::Site(site) => To::Site(convert::site_from(site)?),
        Wire::Node(node) => To::Node(convert::node_from(Some(node))?),
        Wire::All(number) => To::All(*number),
        Wire::Wanting(origin) => To::Wanting(convert::site_from(origin)?),
        Wire::Back(back) => {
            To::Back((convert::node_from(back.node.as_ref())?, convert::start_from(back.start)?, back.number))
        }
    };
    Ok(Head {
        author: convert::node_from(body.author.as_ref())?,
        start: convert::start_from(body.start)?,
        to,
        note_way: body.note_way,
    })
}

fn read_content(kind: Option<Kind>, Head { to, author, .. }: &Head) -> Checked<Content> {
    Ok(match kind {
        None => Content::Unknown,
        Some(Kind::Held(m)) => Content::Held { sequence: m.sequence, logs: statements(m.logs)? },
        Some(Kind::HeldSeen(m)) => {
            let compared = |c: &link::Compared| {
                Ok((convert::log_from(c.log.as_ref())?, convert::place_from(c.at.as_ref())?, c.differs))
            };
            Content::HeldSeen {
                start: convert::start_from(m.start)?,
                sequences: m.sequences,
                compared: m.compared.iter().map(compared).collect::<Checked<_>>()?,
            }
        }
        Some(Kind::Register(m)) => {
            Content::Register { sequence: m.sequence, patterns: patterns_from(&m.patterns)?, withdraw: m.withdraw }
        }
        Some(Kind::Registered(m)) => Content::Registered {
            start: convert::start_from(m.start)?,
            sequence: m.sequence,
            refused: m.refused.chars().take(512).collect(),
        },
        Some(Kind::Mark(m)) => {
            let To::Wanting(origin) = to else { return Err(WireError::Missing("mark: carried.wanting")) };
            let logs = m.logs.iter().map(|l| marked_from(origin, l)).collect::<Checked<_>>()?;
            Content::Mark { sequence: m.sequence, time_us: m.time_us, logs }
        }
        Some(Kind::Question(m)) => Content::Question {
            origin: convert::site_from(&m.origin)?,
            known: wire::all(m.known)?,
            patterns: patterns_from(&m.patterns)?,
        },
        Some(Kind::Answer(m)) => {
            let log = |a: &link::Announce| Ok((convert::log_from(a.log.as_ref())?, view_from(a)?));
            Content::Answer(m.logs.iter().map(log).collect::<Checked<_>>()?, m.more)
        }
        Some(Kind::Find(m)) => {
            Content::Find { log: convert::log_from(m.log.as_ref())?, place: convert::place_from(m.place.as_ref())? }
        }
        Some(Kind::Found(m)) => Content::Found(Box::new(found_from(author, &m)?)),
        Some(Kind::TraceProbe(m)) => Content::TraceProbe(m.number),
        Some(Kind::TraceReply(m)) => {
            Content::TraceReply { number: m.number, failed: m.failed.chars().take(512).collect() }
        }
    })
}

/// A state that this build does not know is taken as unknown.
fn found_from(author: &NodeName, found: &link::Found) -> Checked<Found> {
    Ok(Found {
        node: author.clone(),
        state: found.state(),
        lag_messages: found.lag_messages,
        text: found.text.clone(),
        way: found.way.iter().take(WAY_MAX).map(|node| convert::node_from(Some(node))).collect::<Checked<_>>()?,
    })
}

fn patterns_from(patterns: &[String]) -> Checked<Vec<Pattern>> {
    patterns.iter().map(|p| convert::pattern_from(p)).collect()
}

fn marked_from(origin: &Site, marked: &link::MarkedLog) -> Checked<MarkedPoint> {
    let log = convert::log_from(marked.log.as_ref())?;
    if log.origin != *origin {
        return Err(WireError::Missing("a mark names another origin's log; its own logs"));
    }
    let end = convert::place_from(marked.end.as_ref())?;
    Ok(MarkedPoint { log, end, bytes_total: marked.bytes_total, messages_total: marked.messages_total })
}

fn to_wire(to: &To) -> carried_body::To {
    use carried_body::To as Wire;
    match to {
        To::Site(site) => Wire::Site(site.to_string()),
        To::Node(node) => Wire::Node(node.into()),
        To::All(number) => Wire::All(*number),
        To::Wanting(origin) => Wire::Wanting(origin.to_string()),
        To::Back((node, start, number)) => {
            Wire::Back(link::Back { node: Some(node.into()), start: Some((*start).into()), number: *number })
        }
    }
}

/// Cuts a list so that no part is much more than [`LIST_BYTES`] encoded (one item may be larger by itself); at least one part.
pub(super) fn parts<T: prost::Message>(list: Vec<T>) -> Vec<Vec<T>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0usize;
    for item in list {
        // Its field's number and length.
        let len = item.encoded_len().saturating_add(8);
        if bytes > 0 && bytes.saturating_add(len) > LIST_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes = bytes.saturating_add(len);
        if let Some(part) = parts.last_mut() {
            part.push(item);
        }
    }
    parts
}

impl Replication {
    /// A message of this node's own.
    pub(super) fn authored(&self, to: &To, kind: Kind) -> link::Carried {
        self.authored_as(&self.config.node, self.config.start, to, kind)
    }

    /// A message in another's words: what was heard of an origin, for a want that is new.
    pub(super) fn authored_as(&self, author: &NodeName, start: Start, to: &To, kind: Kind) -> link::Carried {
        let note_way = matches!(kind, Kind::TraceProbe(_));
        let body = link::CarriedBody {
            author: Some(author.into()),
            start: Some(start.into()),
            note_way,
            to: Some(to_wire(to)),
            kind: Some(kind),
        };
        let way = if note_way { vec![author.into()] } else { Vec::new() };
        link::Carried { body: body.encode_to_vec().into(), hops: self.config.hops, way }
    }

    /// Says something to a site's edge broker, if there is a way.
    pub(super) fn tell_site(&mut self, site: &Site, kind: Kind) {
        if let Some(way) = self.routing.upstream(site) {
            let carried = self.authored(&To::Site(site.clone()), kind);
            self.send(way, link::control::Kind::Carried(carried));
        }
    }

    /// The same, once all that was asked to be stored before it is durable.
    pub(super) fn promise_site(&mut self, site: &Site, kind: Kind) {
        if let Some(way) = self.routing.upstream(site) {
            let carried = Box::new(link::control::Kind::Carried(self.authored(&To::Site(site.clone()), kind)));
            self.out.push_back(Output::SendDurable(way, carried));
        }
    }

    /// A carried message came.
    pub(super) fn handle_carried(&mut self, from: LinkId, mut carried: link::Carried) {
        carried.hops = carried.hops.min(self.config.hops);
        let Ok(body) = link::CarriedBody::decode(carried.body.clone()) else {
            return self.count("carried_dropped_unreadable");
        };
        let Ok(head) = read_head(&body) else {
            return self.count("carried_dropped_unreadable");
        };
        if head.author == self.config.node {
            return;
        }
        match read_content(body.kind, &head) {
            Ok(content) => self.route_carried(from, carried, &head, content),
            Err(why) if self.is_peer(from, &head.author) => {
                self.out.push_back(Output::CloseLink(from, link::RefuseReason::Protocol, why.to_string()));
            }
            Err(_) => self.count("carried_dropped_malformed"),
        }
    }

    fn is_peer(&self, link: LinkId, node: &NodeName) -> bool {
        self.links.get(&link).is_some_and(|l| l.peer.node == *node)
    }

    fn route_carried(&mut self, from: LinkId, carried: link::Carried, head: &Head, content: Content) {
        let direct = matches!(head.to, To::Site(_) | To::Node(_));
        if direct && !self.is_peer(from, &head.author) && !self.routing.leads_to(from, &head.author) {
            return self.count("carried_dropped_not_from_its_author");
        }
        match head.to.clone() {
            To::Site(site) if self.config.is_origin_of(&site) => {
                self.take_carried(from, carried, head, content);
            }
            To::Site(site) => match self.routing.upstream(&site).filter(|l| *l != from) {
                Some(way) => self.pass_on(&[way], carried, head, &content),
                None => self.no_way(&site, head, &content),
            },
            To::Node(node) if node == self.config.node => self.take_carried(from, carried, head, content),
            To::Node(node) => {
                if let Some(way) = self.routing.towards(&node).filter(|l| *l != from) {
                    self.pass_on(&[way], carried, head, &content);
                }
            }
            To::All(number) => {
                if self.questions.first_time((head.author.clone(), head.start, number), from) {
                    let known = self.routing.known_nodes().any(|n| *n == head.author);
                    if !self.questions.may_ask(known.then_some(&head.author), self.now) {
                        return self.count("carried_dropped_too_many");
                    }
                    let others: Vec<LinkId> = self.links.keys().copied().filter(|l| *l != from).collect();
                    self.pass_on(&others, carried.clone(), head, &content);
                    self.take_carried(from, carried, head, content);
                }
            }
            To::Wanting(origin) => {
                let own = self.config.is_origin_of(&origin);
                if own || head.author.site != origin || self.routing.upstream(&origin) != Some(from) {
                    return self.count("carried_dropped_not_from_upstream");
                }
                let wanting: Vec<LinkId> = self.wants.links_for(&origin).into_iter().filter(|l| *l != from).collect();
                self.pass_on(&wanting, carried.clone(), head, &content);
                self.take_carried(from, carried, head, content);
            }
            To::Back(asked) if asked.0 == self.config.node => self.take_carried(from, carried, head, content),
            To::Back(asked) => {
                if let Some(way) = self.questions.came_from(&asked).filter(|l| *l != from) {
                    self.pass_on(&[way], carried, head, &content);
                }
            }
        }
    }

    /// The author's bytes, to these links.
    fn pass_on(&mut self, links: &[LinkId], mut carried: link::Carried, head: &Head, content: &Content) {
        if links.is_empty() {
            return;
        }
        if carried.hops == 0 || carried.way.len() >= WAY_MAX {
            self.count("carried_dropped_hops");
            return self.trace_failed(head, content, "the way is too long".to_owned());
        }
        if matches!(content, Content::Unknown) {
            self.count("carried_passed_unknown");
        }
        carried.hops -= 1;
        if head.note_way {
            carried.way.push((&self.config.node).into());
        }
        for link in links {
            self.send(*link, link::control::Kind::Carried(carried.clone()));
        }
    }

    fn no_way(&mut self, site: &Site, head: &Head, content: &Content) {
        self.count("carried_dropped_no_way");
        let text = format!("{} has no way to {site}", self.config.node);
        self.trace_failed(head, content, text);
    }

    fn take_carried(&mut self, from: LinkId, carried: link::Carried, head: &Head, content: Content) {
        if self.routing.is_edge(&head.author) {
            self.note_heard(&head.author.site, std::time::Duration::ZERO);
        }
        match content {
            Content::Held { sequence, logs } => self.hear_statement(head, sequence, logs),
            Content::HeldSeen { start, sequences, compared } => self.hear_seen(head, start, sequences, compared),
            Content::Register { sequence, patterns, withdraw } => {
                self.hear_registration(head, sequence, patterns, withdraw);
            }
            Content::Registered { start, sequence, refused } => self.hear_registered(head, start, sequence, refused),
            Content::Mark { sequence, time_us, logs } => self.hear_mark(head, sequence, time_us, logs),
            Content::Question { origin, known, patterns } => {
                if let To::All(number) = head.to {
                    let asked = (head.author.clone(), head.start, number);
                    self.answer_question(from, asked, &origin, known, &patterns);
                }
            }
            Content::Answer(logs, more) => {
                if let To::Back((_, start, number)) = &head.to {
                    self.hear_answer(head, (*start, *number), logs, !more);
                }
            }
            Content::Find { log, place } => {
                if let To::All(number) = head.to {
                    self.answer_find(from, (head.author.clone(), head.start, number), &log, place);
                }
            }
            Content::Found(found) => {
                if let To::Back((_, start, number)) = &head.to
                    && *start == self.config.start
                {
                    self.hear_found(head, *number, *found);
                }
            }
            Content::TraceProbe(number) => self.answer_trace(head, number, carried.way, String::new()),
            Content::TraceReply { number, failed } => self.hear_trace_reply(number, failed),
            Content::Unknown => self.count("carried_dropped_unknown"),
        }
    }
}

/// An encoded body, for values that are kept.
pub(super) fn encoded(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

fn statements(logs: Vec<link::HeldLog>) -> Result<Vec<(wire::HeldLog, Refused)>, WireError> {
    let one = |mut log: link::HeldLog| {
        let refused = Refused::from_wire(&mut log);
        Ok((log.try_into()?, refused))
    };
    logs.into_iter().map(one).collect()
}
