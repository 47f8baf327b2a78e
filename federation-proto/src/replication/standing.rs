//! How a copy stands: `live`, `catching-up`, `stalled` or `down`, why, where, and for how long. Said of the moment at which
//! somebody asks, from what marks, probes and links told before.
//!
//! A copy is `live` while its origin's newest mark is young (three intervals), everything older than that was reached, nothing
//! between its begin and its end is still to come, and the link that feeds it carries what comes. Each way in which it can
//! stand still, and what status says of it (an interval is that of marks, 1 s unless configured otherwise; "link" is what
//! [`crate::session::vitals`] finds within a second):
//!
//! | what happened | what is noticed here | state, place named | within |
//! |---|---|---|---|
//! | the neighbour's line or process stopped, loss either way | the link has trouble | `stalled`: that link; `down` once it is | 1 s |
//! | the neighbour cannot store (relay's disk full, stuck) | it says so on the link | `stalled`: that node and its fault | 1 s |
//! | this node cannot store: disk full, slow | the link says it | `stalled`: this node | 1 s |
//! | this node's commit log stopped | it is known | `stalled`: this node | at once |
//! | a line or node farther away stopped (origin, relay in the middle) | no marks for three intervals; probes to each node of the way | `down`: the last node that answers and the first that does not | 4 s |
//! | the way is gone | no path in the records | `down`: the link that its nodes no longer state | at once |
//! | the origin answers probes and says nothing | no marks | `down`: the origin | 4 s |
//! | data stops while marks come (credit never granted on the way, a neighbour that serves nothing) | a mark unreached for three intervals, and nothing came | `stalled`: the neighbour that it is due from | 4 s |
//! | the log refuses what comes | the fetch ended, with the refusal | `stalled`: the refusal | at once |
//! | the holder refuses or fails | the fetch ended, with its words | `stalled`: who answered, and what | at once |
//! | a damaged or missing range | a pending hole | `catching-up` while it comes, else `stalled`: the range | at once, 3 s |
//! | the origin's retention passed the copy | a gap | `stalled`: the gap | at once |
//! | the copy's bytes are not the origin's | the origin compared the chain value | `stalled`: below which place | at the answer |
//! | marks were lost farther up, while others come | their numbers | `catching-up`, then `stalled`: who is asked | 4 s after the last |
//! | nobody wants it here | no want | `not-wanted` | at once |
//! | a rate limit on the link holds it back, here or at the neighbour | the link's driver says it | `catching-up`: the limit | 1 s |
//! | a copy that cannot be begun | a mark unreached for three intervals | `stalled`: why | 4 s |
//!
//! A copy of an idle topic hears marks that name nothing new, and stays live with lag 0.

use std::time::Duration;

use super::{
    CopyStatus, LinkId, Replication,
    lines::View,
    logs::{FetchKey, LogState},
};
use crate::{
    copies::{HoleKind, LogInfo},
    ids::{LogName, Place, Site},
    session::vitals::{Trouble, lasting},
};

/// A copy is live while the newest mark of its origin is no older than this many intervals.
const LIVE_INTERVALS: u32 = 3;

/// A state, why, and since when.
struct Standing {
    state: &'static str,
    reason: String,
    since: Option<Duration>,
}

impl Standing {
    fn new(state: &'static str, reason: String, since: Duration) -> Self {
        Self { state, reason, since: Some(since) }
    }

    fn fine(state: &'static str) -> Self {
        Self { state, reason: String::new(), since: None }
    }
}

impl Replication {
    /// What a link's driver finds of what comes over it; `None`: it comes.
    pub fn handle_link_condition(&mut self, now: Duration, link: LinkId, trouble: Option<Trouble>) {
        self.now = self.now.max(now);
        if let Some(link) = self.links.get_mut(&link) {
            link.trouble = trouble;
        }
    }

    /// Which rate limit holds back what comes over a link, as its driver finds; `None`: none does.
    pub fn handle_link_limited(&mut self, now: Duration, link: LinkId, limited: Option<String>) {
        self.now = self.now.max(now);
        if let Some(link) = self.links.get_mut(&link) {
            link.limited = limited;
        }
    }

    pub(super) fn status_of(&self, now: Duration, log: &LogName) -> Option<CopyStatus> {
        let state = self.logs.get(log)?;
        if self.config.is_origin_of(&log.origin) {
            return Some(CopyStatus {
                state: "own",
                reason: String::new(),
                lasting: Duration::ZERO,
                origin_end: state.durable.as_ref().map(|i| i.end),
                lag_messages: Some(0),
                lag_bytes: Some(0),
                lag: Some(Duration::ZERO),
                proven: None,
            });
        }
        let newest = state.marked.newest();
        let end = state.end();
        let heard = self.marks.heard.get(&log.origin);
        let lag_messages = match (newest, end) {
            (Some(point), Some(end)) => Some(point.end.offset.saturating_sub(end.offset)),
            _ => None,
        };
        let standing = self.stands(now, log, state);
        Some(CopyStatus {
            state: standing.state,
            reason: standing.reason,
            lasting: standing.since.map_or(Duration::ZERO, |since| now.saturating_sub(since)),
            origin_end: newest.map(|p| p.end).or_else(|| state.remote.as_ref().map(View::tip)),
            lag_messages,
            lag_bytes: end.and_then(|end| state.marked.bytes_behind(end.offset)),
            lag: newest.and(heard).map(|heard| lag(state, heard.time_us)),
            proven: state.proven,
        })
    }

    fn stands(&self, now: Duration, log: &LogName, state: &LogState) -> Standing {
        if let Some(why) = self.refusals.reason(log).filter(|_| self.is_refused(log)) {
            let since = self.refusals.since(log).unwrap_or(now);
            return Standing::new("stalled", format!("refused here: {why}"), since);
        }
        if !self.is_wanted(log) {
            return Standing { reason: "no want covers this log here".to_owned(), ..Standing::fine("not-wanted") };
        }
        let cut_off = self.stopped_standing().or_else(|| self.way_stands(now, &log.origin));
        cut_off.or_else(|| self.gap_stands(now, log, state)).unwrap_or_else(|| self.end_stands(now, log, state))
    }

    fn stopped_standing(&self) -> Option<Standing> {
        let (why, since) = self.stopped.as_ref()?;
        Some(Standing::new("stalled", why.clone(), *since))
    }

    /// Whether anything can be heard of the origin, and if not, where the way to it ends.
    fn way_stands(&self, now: Duration, origin: &Site) -> Option<Standing> {
        let Some(link) = self.routing.upstream(origin) else {
            let (since, why) = self.routing.lost_way(origin);
            return Some(Standing::new("down", format!("there is no way to {origin} at present{why}"), since));
        };
        let neighbour = self.links.get(&link);
        let silent = neighbour.and_then(|l| Some((&l.peer.node, l.trouble.as_ref().filter(|t| t.silent)?)));
        if let Some((peer, trouble)) = silent {
            let reason = format!("the link to {peer} is stalled: {}", trouble.words(now));
            return Some(Standing::new("stalled", reason, trouble.since));
        }
        let place = || self.trace_place(now, origin).map(|place| format!("; {place}")).unwrap_or_default();
        match self.marks.heard.get(origin) {
            None => {
                let reason = format!("nothing was heard of {origin} yet{}", place());
                return Some(Standing::new("down", reason, Duration::ZERO));
            }
            Some(heard) if now.saturating_sub(heard.at) > self.young() => {
                let silent = lasting(now.saturating_sub(heard.at));
                let reason = format!("nothing was heard of {origin} for {silent}{}", place());
                return Some(Standing::new("down", reason, heard.at));
            }
            Some(_) => {}
        }
        let (since, failed) = self.trace_trouble(now, origin)?;
        Some(Standing::new("down", failed, since))
    }

    /// What is missing between the copy's begin and its end, or has gone at its origin.
    fn gap_stands(&self, now: Duration, log: &LogName, state: &LogState) -> Option<Standing> {
        if let Some(gap) = &state.gap {
            return Some(Standing::new("stalled", gap.words(log), gap.since));
        }
        if let Some(at) = state.differs {
            let reason = format!("{} holds other bytes than this copy below {at}", log.origin);
            return Some(Standing::new("stalled", reason, state.moved_at));
        }
        let info = state.submitted.as_ref()?;
        let first = info.holes.iter().find(|h| h.kind == HoleKind::Pending)?;
        let missing = LogState::pending(Some(info));
        let range = format!("{missing} messages are missing here from {}:{} on", first.incarnation, first.from);
        let comes = state.fetches.keys().any(|key| matches!(key, FetchKey::Hole(_)));
        let since = self.sought_since(log).unwrap_or(state.filled_at);
        // That the end grows says nothing of what lies below it.
        if comes && now.saturating_sub(state.filled_at) <= self.young() {
            return Some(Standing::new("catching-up", format!("{range}, and are being fetched"), since));
        }
        let why =
            state.trouble.as_deref().unwrap_or("no node that can be reached has given them; others are being asked");
        Some(Standing::new("stalled", format!("{range}: {why}"), since))
    }

    /// How the copy's end stands to what its origin marked, and whether all that it marked is known.
    fn end_stands(&self, now: Duration, log: &LogName, state: &LogState) -> Standing {
        let standing = self.known_end_stands(now, log, state);
        if standing.state != "live" {
            return standing;
        }
        self.missed_stands(now, &log.origin).unwrap_or(standing)
    }

    /// Marks were missed, and nobody has made up for them yet.
    fn missed_stands(&self, now: Duration, origin: &Site) -> Option<Standing> {
        let missing = self.marks.missed.of(origin)?;
        if !missing.blank && now.saturating_sub(missing.due) <= self.young() {
            return None;
        }
        let peer = self.routing.upstream(origin).and_then(|link| self.links.get(&link)).map(|l| &l.peer.node);
        let peer = peer.map(ToString::to_string).unwrap_or_default();
        let what = if missing.blank { "is not known yet" } else { "is not known, since marks were missed" };
        let asked = now.saturating_sub(missing.noticed);
        let (state, since) = match asked > self.young() {
            true => ("stalled", format!(", and has not told for {}", lasting(asked))),
            false => ("catching-up", String::new()),
        };
        Some(Standing::new(state, format!("how far {origin} goes {what}; {peer} is asked{since}"), missing.due))
    }

    fn known_end_stands(&self, now: Duration, log: &LogName, state: &LogState) -> Standing {
        let info = state.submitted.as_ref();
        let recent = &state.marked.recent;
        let missed = recent.iter().find(|p| !reaches(info, p.end));
        let Some(missed) = missed else {
            let announced = || state.remote.as_ref().is_some_and(|remote| reaches(info, remote.tip()));
            if !recent.is_empty() || announced() || state.is_as_blank_as_there() {
                return Standing::fine("live");
            }
            return self.unmarked_stands(now, log, state);
        };
        let waited = now.saturating_sub(missed.heard);
        let reached_before = recent.front().is_some_and(|p| reaches(info, p.end));
        let fails =
            (state.fetches.is_empty() && state.trouble.is_some()) || self.not_stored(now, &log.origin).is_some();
        if waited <= self.young() && reached_before && !fails {
            return Standing::fine("live");
        }
        self.behind_stands(now, log, state, missed.heard)
    }

    /// A copy of which no mark has said anything yet.
    fn unmarked_stands(&self, now: Duration, log: &LogName, state: &LogState) -> Standing {
        let since = state.moved_at;
        self.behind_stands(now, log, state, since)
    }

    fn behind_stands(&self, now: Duration, log: &LogName, state: &LogState, since: Duration) -> Standing {
        let not_stored = self.not_stored(now, &log.origin);
        let late = not_stored.is_some() || now.saturating_sub(since.max(state.moved_at)) > self.young();
        let trouble = not_stored.or_else(|| state.trouble.clone());
        if state.submitted.is_none() {
            let why = trouble.unwrap_or_else(|| "its start is not resolved, or not announced".to_owned());
            let name = if late { "stalled" } else { "catching-up" };
            return Standing::new(name, format!("the copy is not begun yet: {why}"), since);
        }
        let peer = |link: &LinkId| self.links.get(link).map(|l| l.peer.node.to_string()).unwrap_or_default();
        let from = state.fetches.get(&FetchKey::Main).or_else(|| state.fetches.values().next()).map(|f| peer(&f.link));
        let Some(from) = from else {
            let way = self.routing.upstream(&log.origin).map(|link| peer(&link)).unwrap_or_default();
            let why = trouble.unwrap_or_else(|| "nothing of it was announced that joins this copy".to_owned());
            return Standing::new("stalled", format!("it is not being fetched from {way}: {why}"), since);
        };
        if let Some(limited) = self.limited_towards(&log.origin).filter(|_| trouble.is_none()) {
            return Standing::new("catching-up", format!("it comes from {from}, {limited} (limited)"), since);
        }
        if late {
            let silent = lasting(now.saturating_sub(since.max(state.moved_at)));
            let why = trouble.map(|why| format!(" ({why})")).unwrap_or_default();
            return Standing::new(
                "stalled",
                format!("it is due from {from}, but nothing has come for {silent}{why}"),
                since,
            );
        }
        Standing::new("catching-up", format!("it comes from {from}"), since)
    }

    /// Why what is due over the link towards an origin is not stored, here or at the neighbour.
    fn not_stored(&self, now: Duration, origin: &Site) -> Option<String> {
        let link = self.links.get(&self.routing.upstream(origin)?)?;
        let trouble = link.trouble.as_ref()?;
        Some(format!("on the link to {}, {}", link.peer.node, trouble.words(now)))
    }

    /// Which rate limit holds back what comes over the link towards an origin.
    fn limited_towards(&self, origin: &Site) -> Option<&str> {
        self.links.get(&self.routing.upstream(origin)?)?.limited.as_deref()
    }

    /// How old the newest mark of a live copy may be.
    pub(super) fn young(&self) -> Duration {
        self.config.mark_interval.saturating_mul(LIVE_INTERVALS)
    }
}

/// Whether an end has reached a place (by offset where the incarnations differ: offsets go on counting over them).
fn past(end: Place, place: Place) -> bool {
    end.offset >= place.offset && end.incarnation >= place.incarnation || end == place
}

/// Whether a copy has reached a place: its main line went past it, or it reaches it in that place's own incarnation, which a
/// later lost part of the origin's history may have left behind.
pub(super) fn reaches(info: Option<&LogInfo>, place: Place) -> bool {
    let Some(info) = info else { return false };
    let holds = || info.incarnations.iter().any(|i| i.incarnation == place.incarnation && i.end >= place.offset);
    past(info.end, place) || holds()
}

/// Whether the copy has reached the newest mark.
pub(super) fn reached(state: &LogState) -> bool {
    state.marked.newest().is_some_and(|point| reaches(state.submitted.as_ref(), point.end))
}

fn lag(state: &LogState, newest_us: u64) -> Duration {
    if reached(state) {
        return Duration::ZERO;
    }
    let info = state.submitted.as_ref();
    let by_marks = state.marked.reached_us(|place| reaches(info, place));
    let by_batch = info.map_or(0, |i| i.newest_origin_time_us);
    Duration::from_micros(newest_us.saturating_sub(by_marks.max(by_batch)))
}
