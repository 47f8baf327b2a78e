//! What the lists look like as JSON; times are RFC 3339, places `counter.random:offset`.

use super::disk::DiskView;
use serde::Serialize;

use crate::{
    api,
    cli::{
        json::{place_text, position_text},
        sites::HoldBackView,
    },
    config::values::time_text,
};

fn time(time_us: u64) -> Option<String> {
    (time_us > 0).then(|| time_text(time_us))
}

pub(crate) fn place(place: Option<api::Place>) -> Option<String> {
    place.as_ref().map(place_text)
}

fn link_state(state: api::LinkState) -> &'static str {
    match state {
        api::LinkState::Unspecified => "unknown",
        api::LinkState::Connecting => "connecting",
        api::LinkState::Live => "live",
        api::LinkState::CatchingUp => "catching-up",
        api::LinkState::Stalled => "stalled",
        api::LinkState::Down => "down",
        api::LinkState::Paused => "paused",
    }
}

fn topic_state(state: api::TopicState) -> &'static str {
    match state {
        api::TopicState::Unspecified => "unknown",
        api::TopicState::Own => "own",
        api::TopicState::Live => "live",
        api::TopicState::CatchingUp => "catching-up",
        api::TopicState::Stalled => "stalled",
        api::TopicState::Down => "down",
        api::TopicState::NotWanted => "not-wanted",
    }
}

/// A link.
#[derive(Debug, Default, Serialize)]
pub(crate) struct LinkView {
    pub(crate) peer: String,
    pub(crate) peer_kind: String,
    pub(crate) direction: String,
    pub(crate) address: String,
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) state_for_ms: u64,
    pub(crate) heard_ms_ago: Option<u64>,
    pub(crate) rtt_ms: f64,
    pub(crate) loss: f64,
    pub(crate) bytes_per_s_in: f64,
    pub(crate) bytes_per_s_out: f64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) batches_in: u64,
    pub(crate) batches_out: u64,
    pub(crate) up_since: Option<String>,
    pub(crate) reconnects: u64,
    pub(crate) one_way_dropped: u64,
    pub(crate) send_limited: u64,
    pub(crate) receive_limited: u64,
    pub(crate) one_way_limited: u64,
}

impl From<api::LinkStatus> for LinkView {
    fn from(from: api::LinkStatus) -> Self {
        Self {
            state: link_state(from.state()).into(),
            peer: from.peer,
            peer_kind: from.peer_kind,
            direction: from.direction,
            address: from.address,
            reason: from.reason,
            state_for_ms: from.state_for_ms,
            heard_ms_ago: from.heard_ms_ago,
            rtt_ms: from.rtt_ms,
            loss: from.loss,
            bytes_per_s_in: from.bytes_per_s_in,
            bytes_per_s_out: from.bytes_per_s_out,
            bytes_in: from.bytes_in,
            bytes_out: from.bytes_out,
            batches_in: from.batches_in,
            batches_out: from.batches_out,
            up_since: time(from.up_since_us),
            reconnects: from.reconnects,
            one_way_dropped: from.one_way_dropped,
            send_limited: from.send_limited,
            receive_limited: from.receive_limited,
            one_way_limited: from.one_way_limited,
        }
    }
}

/// A topic of one origin.
#[derive(Debug, Default, Serialize)]
pub(crate) struct TopicView {
    pub(crate) topic: String,
    pub(crate) origin: String,
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) state_for_ms: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) lag_known: bool,
    pub(crate) lag_messages: u64,
    pub(crate) lag_bytes: u64,
    pub(crate) lag_s: f64,
    pub(crate) queues: Vec<QueueCopyView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) settings: Vec<SettingView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deleted: Option<DeletedView>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) refused: Vec<String>,
}

/// One value of its settings.
#[derive(Debug, Default, Serialize)]
pub(crate) struct SettingView {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) source: String,
    pub(crate) travels: bool,
}

/// Its deletion.
#[derive(Debug, Default, Serialize)]
pub(crate) struct DeletedView {
    pub(crate) time: String,
    pub(crate) confirmed: Vec<String>,
    pub(crate) unconfirmed: Vec<String>,
}

impl From<api::TopicStatus> for TopicView {
    fn from(from: api::TopicStatus) -> Self {
        Self {
            state: topic_state(from.state()).into(),
            topic: from.topic,
            origin: from.origin,
            reason: from.reason,
            state_for_ms: from.state_for_ms,
            messages: from.messages,
            bytes: from.bytes,
            lag_known: from.lag_known,
            lag_messages: from.lag_messages,
            lag_bytes: from.lag_bytes,
            lag_s: from.lag_s,
            queues: from.queues.into_iter().map(Into::into).collect(),
            settings: from
                .settings
                .into_iter()
                .map(|s| SettingView { name: s.name, value: s.value, source: s.source, travels: s.travels })
                .collect(),
            refused: from.refused,
            deleted: (from.deleted_us > 0).then(|| DeletedView {
                time: crate::config::values::time_text(from.deleted_us),
                confirmed: from.confirmed,
                unconfirmed: from.unconfirmed,
            }),
        }
    }
}

/// A queue of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct QueueCopyView {
    pub(crate) queue: u32,
    pub(crate) begin: Option<String>,
    pub(crate) end: Option<String>,
    pub(crate) origin_end: Option<String>,
    pub(crate) holes: Vec<HoleView>,
    pub(crate) holes_total: u32,
    pub(crate) forks: Vec<String>,
    pub(crate) chain: String,
    pub(crate) verified: Option<String>,
}

impl From<api::QueueCopy> for QueueCopyView {
    fn from(from: api::QueueCopy) -> Self {
        Self {
            queue: from.queue,
            begin: place(from.begin),
            end: place(from.end),
            origin_end: place(from.origin_end),
            holes: from.holes.into_iter().map(Into::into).collect(),
            holes_total: from.holes_total,
            forks: from.forks.iter().map(place_text).collect(),
            chain: from.chain,
            verified: place(from.verified),
        }
    }
}

/// A range that this copy lacks.
#[derive(Debug, Default, Serialize)]
pub(crate) struct HoleView {
    pub(crate) from: Option<String>,
    pub(crate) to_offset: u64,
    pub(crate) kind: String,
}

impl From<api::Hole> for HoleView {
    fn from(from: api::Hole) -> Self {
        let kind = match from.why() {
            api::HoleReason::Unspecified => "unknown",
            api::HoleReason::Pending => "pending",
            api::HoleReason::NotWanted => "not-wanted",
            api::HoleReason::Lost => "lost",
        };
        Self { from: place(from.from), to_offset: from.to_offset, kind: kind.into() }
    }
}

/// A durable subscription.
#[derive(Debug, Default, Serialize)]
pub(crate) struct GroupView {
    pub(crate) name: String,
    pub(crate) pattern: String,
    pub(crate) members: u32,
    pub(crate) lag_messages: u64,
    pub(crate) unconfirmed: u64,
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) state_for_ms: u64,
    pub(crate) positions: Vec<GroupPositionView>,
}

/// A plain subscriber that something waits for.
#[derive(Debug, Default, Serialize)]
pub(crate) struct SubscriberView {
    pub(crate) subscriber: u64,
    pub(crate) client: String,
    pub(crate) pattern: String,
    pub(crate) state: String,
    pub(crate) reason: String,
    pub(crate) state_for_ms: u64,
}

impl From<api::SubscriberStatus> for SubscriberView {
    fn from(from: api::SubscriberStatus) -> Self {
        Self {
            state: topic_state(from.state()).into(),
            subscriber: from.subscriber,
            client: from.client,
            pattern: from.pattern,
            reason: from.reason,
            state_for_ms: from.state_for_ms,
        }
    }
}

impl From<api::Group> for GroupView {
    fn from(from: api::Group) -> Self {
        Self {
            state: topic_state(from.state()).into(),
            reason: from.reason,
            state_for_ms: from.state_for_ms,
            name: from.name,
            pattern: from.pattern,
            members: from.members,
            lag_messages: from.lag_messages,
            unconfirmed: from.unconfirmed,
            positions: from.positions.into_iter().map(Into::into).collect(),
        }
    }
}

/// What a site states to hold of our logs.
#[derive(Debug, Default, Serialize)]
pub(crate) struct HeldView {
    pub(crate) topic: String,
    pub(crate) queue: u32,
    pub(crate) below: Option<String>,
    pub(crate) lag_messages: u64,
    pub(crate) registered: bool,
    pub(crate) verified: bool,
    pub(crate) verified_to: Option<String>,
    pub(crate) differs: bool,
}

impl From<api::SiteHeld> for HeldView {
    fn from(from: api::SiteHeld) -> Self {
        Self {
            topic: from.topic,
            queue: from.queue,
            below: place(from.below),
            lag_messages: from.lag_messages,
            registered: from.registered,
            verified: from.verified,
            verified_to: place(from.verified_to),
            differs: from.differs,
        }
    }
}

/// The commit log.
#[derive(Debug, Default, Serialize)]
pub(crate) struct LogView {
    pub(crate) segments: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) live_bytes: u64,
    pub(crate) index_bytes: u64,
    pub(crate) disk_free: u64,
    pub(crate) disk_full: bool,
    pub(crate) poisoned: String,
    pub(crate) groups: u64,
    pub(crate) syncs: u64,
    pub(crate) written_bytes: u64,
    pub(crate) accepted_bytes: u64,
    pub(crate) torn_bytes: u64,
    pub(crate) moved_bytes: u64,
    pub(crate) index_written_bytes: u64,
    pub(crate) damage: Vec<String>,
}

impl From<api::LogStatus> for LogView {
    fn from(from: api::LogStatus) -> Self {
        Self {
            segments: from.segments,
            segment_bytes: from.segment_bytes,
            live_bytes: from.live_bytes,
            index_bytes: from.index_bytes,
            disk_free: from.disk_free,
            disk_full: from.disk_full,
            poisoned: from.poisoned,
            groups: from.groups,
            syncs: from.syncs,
            written_bytes: from.written_bytes,
            accepted_bytes: from.accepted_bytes,
            torn_bytes: from.torn_bytes,
            moved_bytes: from.moved_bytes,
            index_written_bytes: from.index_written_bytes,
            damage: from.damage,
        }
    }
}

/// Something that people should know.
#[derive(Debug, Default, Serialize)]
pub(crate) struct AlarmView {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) since: String,
    pub(crate) last: String,
    pub(crate) count: u64,
}

impl From<api::Alarm> for AlarmView {
    fn from(from: api::Alarm) -> Self {
        let (since, last) = (time_text(from.since_us), time_text(from.last_us));
        Self { name: from.name, text: from.text, since, last, count: from.count }
    }
}

/// A counter.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CounterView {
    pub(crate) name: String,
    pub(crate) label: String,
    pub(crate) value: u64,
}

impl From<api::Counter> for CounterView {
    fn from(from: api::Counter) -> Self {
        Self { name: from.name, label: from.label, value: from.value }
    }
}

/// A queue of the program, in bytes.
#[derive(Debug, Default, Serialize)]
pub(crate) struct QueueView {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) bytes_max: u64,
}

impl From<api::QueueStatus> for QueueView {
    fn from(from: api::QueueStatus) -> Self {
        Self { name: from.name, bytes: from.bytes, bytes_max: from.bytes_max }
    }
}

/// A node.
#[derive(Debug, Default, Serialize)]
pub(crate) struct StatusView {
    pub(crate) federation: String,
    pub(crate) site: String,
    pub(crate) node: String,
    pub(crate) kind: String,
    pub(crate) version: String,
    pub(crate) uptime_s: u64,
    pub(crate) state: String,
    pub(crate) log: LogView,
    pub(crate) disk: DiskView,
    pub(crate) links: Vec<LinkView>,
    pub(crate) topics: Vec<TopicView>,
    pub(crate) topics_left_out: bool,
    pub(crate) alarms: Vec<AlarmView>,
    pub(crate) subscribers: Vec<SubscriberView>,
    pub(crate) counters: Vec<CounterView>,
    pub(crate) queues: Vec<QueueView>,
    pub(crate) hold_back: Option<HoldBackView>,
    pub(crate) certificates: Vec<CertificateView>,
}

/// When a certificate ends.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CertificateView {
    pub(crate) role: String,
    pub(crate) holder: String,
    pub(crate) expires: Option<String>,
}

impl From<api::CertificateStatus> for CertificateView {
    fn from(from: api::CertificateStatus) -> Self {
        Self { role: from.role, holder: from.holder, expires: time(from.expires_us) }
    }
}

impl From<api::StatusReply> for StatusView {
    fn from(from: api::StatusReply) -> Self {
        Self {
            federation: from.federation,
            site: from.site,
            node: from.node,
            kind: from.kind,
            version: from.version,
            uptime_s: from.uptime_s,
            state: from.state,
            log: from.log.map(LogView::from).unwrap_or_default(),
            disk: from.disk.map(DiskView::from).unwrap_or_default(),
            links: from.links.into_iter().map(Into::into).collect(),
            topics: from.topics.into_iter().map(Into::into).collect(),
            topics_left_out: from.topics_left_out,
            alarms: from.alarms.into_iter().map(Into::into).collect(),
            subscribers: from.subscribers.into_iter().map(Into::into).collect(),
            counters: from.counters.into_iter().map(Into::into).collect(),
            queues: from.queues.into_iter().map(Into::into).collect(),
            certificates: from.certificates.into_iter().map(Into::into).collect(),
            hold_back: from.hold_back.map(Into::into),
        }
    }
}

impl TopicView {
    /// Sum of the ends of its message queues' copies.
    pub(crate) fn end(&self) -> u64 {
        self.message_queues().filter_map(|queue| offset(queue.end.as_deref())).sum()
    }

    /// Sum of the origin's ends, if all are known.
    pub(crate) fn origin_end(&self) -> Option<u64> {
        self.message_queues().map(|queue| offset(queue.origin_end.as_deref())).sum()
    }

    fn message_queues(&self) -> impl Iterator<Item = &QueueCopyView> {
        self.queues.iter().filter(|queue| queue.queue > 0)
    }
}

fn offset(place: Option<&str>) -> Option<u64> {
    place?.rsplit_once(':')?.1.parse().ok()
}

/// Where a group stands in a log.
#[derive(Debug, Default, Serialize)]
pub(crate) struct GroupPositionView {
    pub(crate) position: String,
    pub(crate) ranges_above: u32,
    pub(crate) end_offset: u64,
}

impl From<api::GroupPosition> for GroupPositionView {
    fn from(from: api::GroupPosition) -> Self {
        let id = from.position.map(|position| api::MessageId {
            topic: position.topic,
            origin: position.origin,
            queue: position.queue,
            place: position.place,
        });
        Self {
            position: id.as_ref().map(position_text).unwrap_or_default(),
            ranges_above: from.ranges_above,
            end_offset: from.end_offset,
        }
    }
}

/// A token, without its secret.
#[derive(Debug, Default, Serialize)]
pub(crate) struct TokenView {
    pub(crate) name: String,
    pub(crate) publish: Vec<String>,
    pub(crate) subscribe: Vec<String>,
    pub(crate) admin: bool,
    pub(crate) expires: Option<String>,
    pub(crate) from: String,
}

impl From<api::TokenInfo> for TokenView {
    fn from(from: api::TokenInfo) -> Self {
        let rights = from.rights.unwrap_or_default();
        Self {
            name: from.name,
            publish: rights.publish,
            subscribe: rights.subscribe,
            admin: rights.admin,
            expires: time(from.expires_us),
            from: from.from,
        }
    }
}
