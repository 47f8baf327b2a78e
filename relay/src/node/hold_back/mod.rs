//! Hold-back: what this origin keeps beyond its topics' retention because registered sites have not stated to hold it.
//!
//! Retention alone trims what is old or too much. Hold-back sets a floor below which it does not go: the lowest place that a site
//! needs which registered and counts for the topic (see `seaway_federation_proto::replication::Need`; parts of forks count too). A
//! site is believed: one that was restored and states less is waited for anew. Where a topic has no retention nothing is trimmed, and
//! there is nothing to hold back.
//!
//! It is bounded: as a whole, and by rules for sites and topics in bytes and age. Only what retention would have taken counts.
//! Past a bound the oldest goes first ([`plan`]), the gap is recorded for the site and told (`hold-back-exceeded`); the site finds it
//! as a hole, after everybody else was asked for it. A rule may instead refuse the publishers of its topics until the sites that it
//! names have caught up. So an absent site never stops publishers unless a rule names it.
//!
//! - [`ledger`]: the bytes of a log along its line, so that all this costs no walk through the index;
//! - [`plan`]: one round's decision, which the retention's thread asks for before it trims;
//! - [`records`]: what is kept of it durably: gaps, and when sites were last heard;
//! - [`rates`]: what is published a day, for how long an outage the rest suffices.

mod ledger;
mod plan;
mod rates;
mod records;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use seaway_federation_proto::{
    ids::{LogName, Pattern, Place, Site, Topic},
    replication::{Need, Report},
};

pub use self::records::Gap;
use self::{
    ledger::{Ledger, Part, higher, key, lower},
    plan::{Decision, Own, Pin, Planner, rule_of},
    rates::Rates,
};
use super::retention::{Keep, Now};
use crate::log::contract::{CommitLog, Entry, ReadError};

/// Share of the file system that hold-back may take where no size is configured.
const DISK_SHARE: u64 = 4;
/// And at most this part of what own logs may take.
const OWN_SHARE: u64 = 2;
/// Most slices of all ledgers together: some 20 MB. Beyond it they become coarser.
const ALL_SLICES_MAX: usize = 1 << 18;
/// Most logs given up for a site that an alarm names.
const TOPICS_NAMED_MAX: usize = 8;
/// Alarm: what a registered site needs was given up.
const EXCEEDED: &str = "hold-back-exceeded";
/// Alarm: publishers are refused until a site has caught up.
const REFUSING: &str = "hold-back-refusing";

/// Settings of hold-back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HoldBackConfig {
    /// Bytes kept beyond retention for all sites together; `None`: a quarter of the file system of the data directory, and
    /// no more than half of the share of own logs.
    pub bytes_max: Option<u64>,
    /// Bounds for sites and topics; the first that is about both counts.
    pub rules: Vec<HoldBackRule>,
}

/// Bounds of what is held back for some sites, of some topics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HoldBackRule {
    /// For each of these sites by itself; empty: each that registered.
    pub sites: Vec<Site>,
    /// Of all these topics together; empty: all.
    pub topics: Vec<Pattern>,
    /// Bytes; `None`: no bound but the whole's.
    pub bytes_max: Option<u64>,
    /// By this node's time of storing; `None`: however old.
    pub age_max: Option<Duration>,
    /// Past a bound the topics' publishers are refused, and nothing is given up.
    pub refuse: bool,
}

/// How hold-back stands, as of the last round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HoldBack {
    /// Bytes kept beyond retention for registered sites.
    pub bytes: u64,
    /// Their bound; `None`: none.
    pub bytes_max: Option<u64>,
    /// Bytes a second published to topics that have a retention and registered sites, over up to a day; `None`: not known yet.
    pub rate: Option<f64>,
    /// How long the free part suffices at that rate, beyond what retention keeps; `None`: not known, or without end.
    pub suffices: Option<Duration>,
    /// Each site that registered, in order of name.
    pub sites: Vec<SiteHoldBack>,
    /// Topics whose publishers are refused, with the sentence that they read.
    pub refused: Vec<(Topic, String)>,
    /// When this was found, microseconds since 1970; 0: not yet.
    pub as_of_us: u64,
}

/// What is kept for one site.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SiteHoldBack {
    /// The site's name.
    pub site: String,
    /// Bytes kept beyond retention that it needs (others may need them too).
    pub bytes: u64,
    /// Bytes that it does not hold yet, whether retention keeps them or not.
    pub behind_bytes: u64,
    /// When the oldest of what is held back for it was stored here, microseconds since 1970.
    pub oldest_us: Option<u64>,
    /// When it was last heard of, microseconds since 1970; `None`: never since this is written down.
    pub last_heard_us: Option<u64>,
    /// How long an outage of this site the bounds still allow at today's rate, beyond what retention keeps; `None`: not known, or
    /// without end.
    pub suffices: Option<Duration>,
    /// By topic, those of which it lacks something.
    pub topics: Vec<TopicHoldBack>,
    /// What was given up.
    pub gaps: Vec<Gap>,
}

/// What is kept of one topic for one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicHoldBack {
    /// The topic.
    pub topic: Topic,
    /// See [`SiteHoldBack::bytes`].
    pub bytes: u64,
    /// See [`SiteHoldBack::behind_bytes`].
    pub behind_bytes: u64,
    /// See [`SiteHoldBack::oldest_us`].
    pub oldest_us: Option<u64>,
}

/// What one round decided.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Retention must not trim these logs at or above the place.
    pub(super) keep_from: HashMap<LogName, Place>,
    /// To be stored before anything is trimmed.
    pub(super) entries: Vec<Entry>,
    pub(super) raise: Vec<Report>,
    pub(super) over: Vec<(&'static str, String)>,
}

#[derive(Debug, Default)]
struct State {
    ledgers: HashMap<LogName, Ledger>,
    rates: Rates,
    gaps: BTreeMap<(Site, LogName), Gap>,
    heard: BTreeMap<Site, u64>,
    /// Sites for which [`EXCEEDED`], and for which [`REFUSING`], was raised.
    exceeded: BTreeSet<Site>,
    refusing: BTreeSet<Site>,
    /// Of the last round, for want of room.
    not_stored: Vec<Entry>,
}

/// The hold-back of a node's own logs.
#[derive(Debug)]
pub(super) struct Keeper {
    config: HoldBackConfig,
    bytes_max: Option<u64>,
    state: Mutex<State>,
    shown: ArcSwap<HoldBack>,
    refused: ArcSwap<HashMap<Topic, String>>,
}

/// What a round is told.
pub(super) struct Told<'a> {
    pub(super) log: &'a dyn CommitLog,
    pub(super) needs: Vec<(LogName, Vec<Need>)>,
    /// When sites were last heard, since the process began.
    pub(super) heard: Vec<(Site, u64)>,
    pub(super) now: Now,
    /// Room for own messages, bytes; negative: so much is lacking. `None`: not known.
    pub(super) room: Option<i64>,
}

impl Keeper {
    /// With what was kept by the processes before.
    pub(super) fn open(
        config: HoldBackConfig,
        own_bytes_max: Option<u64>,
        data_dir: &Path,
        log: &dyn CommitLog,
    ) -> Self {
        let share = || {
            let disk = rustix::fs::statvfs(data_dir).ok().map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize));
            [disk.map(|bytes| bytes / DISK_SHARE), own_bytes_max.map(|bytes| bytes / OWN_SHARE)]
                .into_iter()
                .flatten()
                .min()
        };
        let (gaps, heard) = records::restore(log);
        let state = State { gaps, heard, ..State::default() };
        Self {
            bytes_max: config.bytes_max.or_else(share),
            config,
            state: Mutex::new(state),
            shown: ArcSwap::default(),
            refused: ArcSwap::default(),
        }
    }

    /// How it stands.
    pub(super) fn shown(&self) -> Arc<HoldBack> {
        self.shown.load_full()
    }

    /// Why publishers of a topic are refused, if they are.
    pub(super) fn refuses(&self, topic: &Topic) -> Option<String> {
        let refused = self.refused.load();
        if refused.is_empty() { None } else { refused.get(topic).cloned() }
    }

    /// The smallest bound: how much may come between two rounds is measured by it.
    pub(super) fn smallest_bound(&self) -> Option<u64> {
        let rules = self.config.rules.iter().filter_map(|rule| rule.bytes_max);
        rules.chain(self.bytes_max).min()
    }

    /// What a round wanted stored was not; nothing was trimmed either.
    pub(super) fn not_stored(&self, entries: Vec<Entry>) {
        self.state.lock().not_stored.extend(entries);
    }

    /// Decides what retention may trim now. Waits on the disk.
    pub(super) fn round(&self, told: Told<'_>, keep: impl Fn(&LogName) -> Keep) -> Result<Round, ReadError> {
        let mut state = self.state.lock();
        let mut round = Round { entries: std::mem::take(&mut state.not_stored), ..Round::default() };
        let Told { log, needs, heard, now, room } = told;
        let wall_us = now.us;
        state.note_heard(heard, &mut round);
        state.follow(log, &needs, &keep, wall_us)?;
        let mut logs = Vec::new();
        for (name, needs) in needs.iter().filter(|(_, needs)| !needs.is_empty()) {
            let Some(ledger) = state.ledgers.get(name) else { continue };
            let target = ledger.retained_from(log, name, keep(name), log.bytes(name).unwrap_or(0), now)?;
            let pin = |need: &Need| Pin {
                rule: rule_of(&self.config.rules, &need.site, &name.topic),
                from: need.from,
                need: need.clone(),
            };
            logs.push(Own { name, ledger, target, pins: needs.iter().map(pin).collect() });
        }
        let lacking = room.map_or(0, |room| u64::try_from(room.saturating_neg()).unwrap_or(0));
        let planner = Planner { log, config: &self.config, bytes_max: self.bytes_max, now, lacking };
        let decision = planner.decide(&mut logs)?;
        for own in &logs {
            let floor = own.pins.iter().map(|pin| pin.from).reduce(lower);
            round.keep_from.extend(floor.map(|floor| (own.name.clone(), floor)));
        }
        let (given_up, sites) = (given_up(log, &logs, &state.gaps, wall_us)?, self.sites(log, &logs)?);
        drop(logs);
        self.record(&mut state, given_up, &needs, &decision, &mut round);
        let left = room.map(|room| u64::try_from(room).unwrap_or(0));
        self.show(&mut state, Shown { sites, left, wall_us }, &decision, &mut round);
        Ok(round)
    }

    /// What each site pins and lacks.
    fn sites(&self, log: &dyn CommitLog, logs: &[Own<'_>]) -> Result<BTreeMap<Site, SiteParts>, ReadError> {
        let mut sites: BTreeMap<Site, SiteParts> = BTreeMap::new();
        for own in logs {
            let end = log.info(own.name, true).map(|info| info.end);
            for pin in &own.pins {
                let site = sites.entry(pin.need.site.clone()).or_default();
                site.topics_all.insert(own.name.topic.clone());
                let Some(end) = end.filter(|end| key(pin.need.from) < key(*end)) else { continue };
                let behind = own.ledger.between(log, own.name, pin.need.from, end)?;
                let topic = site.topics.entry(own.name.topic.clone()).or_default();
                topic.1 = topic.1.saturating_add(behind.bytes);
                if let Some(target) = own.target.filter(|target| key(pin.from) < key(*target)) {
                    let part = own.ledger.between(log, own.name, pin.from, target)?;
                    topic.0.join(part);
                    if let Some(rule) = pin.rule {
                        site.rules.entry(rule).or_default().join(part);
                    }
                }
                if let Some(rule) = pin.rule {
                    site.rules.entry(rule).or_default();
                }
            }
        }
        Ok(sites)
    }

    /// Writes down what goes for good, and what is over.
    fn record(
        &self,
        state: &mut State,
        given_up: Vec<(Site, LogName, Gap)>,
        needs: &[(LogName, Vec<Need>)],
        decision: &Decision,
        round: &mut Round,
    ) {
        let mut told: BTreeMap<Site, BTreeSet<Topic>> = BTreeMap::new();
        for (site, log, gap) in given_up {
            told.entry(site.clone()).or_default().insert(log.topic.clone());
            let known = state.gaps.entry((site.clone(), log.clone())).or_insert_with(|| gap.clone());
            known.extend(&gap);
            round.entries.push(records::put_gap(&site, &log, known));
        }
        let by_log: HashMap<&LogName, &Vec<Need>> = needs.iter().map(|(log, needs)| (log, needs)).collect();
        let over = |(site, log): &(Site, LogName), gap: &Gap| {
            let need = by_log.get(log).and_then(|needs| needs.iter().find(|need| need.site == *site));
            // Gone for good (the site, or the log), or the site has come past it.
            need.is_none_or(|need| need.tip.is_some_and(|tip| key(tip) >= key(gap.to)))
        };
        let done: Vec<(Site, LogName)> =
            state.gaps.iter().filter(|(at, gap)| over(at, gap)).map(|(at, _)| at.clone()).collect();
        for (site, log) in done {
            round.entries.push(records::delete_gap(&site, &log));
            state.gaps.remove(&(site, log));
        }
        // Those of a former process are told again.
        for (site, log) in state.gaps.keys().filter(|(site, _)| !state.exceeded.contains(site)) {
            told.entry(site.clone()).or_default().insert(log.topic.clone());
        }
        for (site, topics) in told {
            let text = exceeded_text(&site, &topics, decision.bounds.get(&site), &state.gaps);
            round.raise.push(Report { name: EXCEEDED, subject: site.to_string(), text });
            state.exceeded.insert(site);
        }
        let open: BTreeSet<Site> = state.gaps.keys().map(|(site, _)| site.clone()).collect();
        for site in state.exceeded.difference(&open) {
            round.over.push((EXCEEDED, site.to_string()));
        }
        state.exceeded.retain(|site| open.contains(site));
    }

    fn show(&self, state: &mut State, shown: Shown, decision: &Decision, round: &mut Round) {
        let Shown { sites, left, wall_us } = shown;
        let sentence = |refusal: &plan::Refusal| {
            format!(
                "this topic waits for site {}, for which {} of hold-back are reached; publish again when it has caught up, or remove it \
                 with `seaway site remove {}`",
                refusal.site, refusal.bound, refusal.site
            )
        };
        let refused: HashMap<Topic, String> =
            decision.refused.iter().map(|(topic, refusal)| (topic.clone(), sentence(refusal))).collect();
        let mut by_site: BTreeMap<Site, Vec<&str>> = BTreeMap::new();
        for (topic, refusal) in &decision.refused {
            by_site.entry(refusal.site.clone()).or_default().push(topic.as_str());
        }
        for (site, topics) in &by_site {
            let text = format!(
                "publishers of {} are refused until site {site} has caught up, as its rule of hold-back says; bring it back, raise the \
                 bound, or remove it with `seaway site remove {site}`",
                listed(topics.iter().copied())
            );
            if state.refusing.insert(site.clone()) {
                round.raise.push(Report { name: REFUSING, subject: site.to_string(), text });
            }
        }
        for site in state.refusing.iter().filter(|site| !by_site.contains_key(*site)) {
            round.over.push((REFUSING, site.to_string()));
        }
        state.refusing.retain(|site| by_site.contains_key(site));
        let bound = self.bytes_max.map(|max| max.saturating_sub(decision.bytes));
        let whole = [bound, left].into_iter().flatten().min();
        let rate = state.rates.all(wall_us);
        let shown = sites.into_iter().map(|(site, parts)| parts.show(&self.config, state, whole, site, wall_us));
        let mut refused_list: Vec<(Topic, String)> = refused.iter().map(|(t, s)| (t.clone(), s.clone())).collect();
        refused_list.sort();
        self.shown.store(Arc::new(HoldBack {
            bytes: decision.bytes,
            bytes_max: self.bytes_max,
            rate,
            suffices: whole.and_then(|free| lasts(free, rate?)),
            sites: shown.collect(),
            refused: refused_list,
            as_of_us: wall_us,
        }));
        self.refused.store(Arc::new(refused));
    }
}

/// What a round found, to be shown.
struct Shown {
    sites: BTreeMap<Site, SiteParts>,
    /// Room for own messages, bytes.
    left: Option<u64>,
    wall_us: u64,
}

/// What a site pins by topic (beyond retention, and in all), and by rule.
#[derive(Debug, Default)]
struct SiteParts {
    topics: BTreeMap<Topic, (Part, u64)>,
    rules: BTreeMap<usize, Part>,
    /// All topics that it counts for.
    topics_all: BTreeSet<Topic>,
}

impl SiteParts {
    fn show(
        self,
        config: &HoldBackConfig,
        state: &State,
        whole: Option<u64>,
        site: Site,
        wall_us: u64,
    ) -> SiteHoldBack {
        let rate = state.rates.of(self.topics_all.iter(), wall_us);
        let free = |(rule, part): (&usize, &Part)| {
            let max = config.rules.get(*rule)?.bytes_max?;
            Some(max.saturating_sub(part.bytes))
        };
        let free = self.rules.iter().filter_map(free).chain(whole).min();
        let mut shown = SiteHoldBack {
            last_heard_us: state.heard.get(&site).copied(),
            suffices: free.and_then(|free| lasts(free, rate?)),
            gaps: state.gaps.iter().filter(|((of, _), _)| *of == site).map(|(_, gap)| gap.clone()).collect(),
            site: site.to_string(),
            ..SiteHoldBack::default()
        };
        let mut whole = Part::default();
        for (topic, (part, behind_bytes)) in self.topics {
            whole.join(part);
            shown.behind_bytes = shown.behind_bytes.saturating_add(behind_bytes);
            shown.topics.push(TopicHoldBack { topic, bytes: part.bytes, behind_bytes, oldest_us: part.oldest_us });
        }
        (shown.bytes, shown.oldest_us) = (whole.bytes, whole.oldest_us);
        shown
    }
}

/// How long so many bytes last; `None`: without end.
fn lasts(bytes: u64, rate: f64) -> Option<Duration> {
    let seconds = bytes as f64 / rate;
    (rate > 0.0 && seconds < 1e10).then(|| Duration::from_secs_f64(seconds))
}

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(TOPICS_NAMED_MAX);
    let named = names.take(TOPICS_NAMED_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{named} and {more} more topics") } else { named }
}

fn exceeded_text(
    site: &Site,
    topics: &BTreeSet<Topic>,
    bound: Option<&String>,
    gaps: &BTreeMap<(Site, LogName), Gap>,
) -> String {
    let (mut messages, mut bytes) = (0_u64, 0_u64);
    for (_, gap) in gaps.iter().filter(|((of, _), _)| of == site) {
        (messages, bytes) = (messages.saturating_add(gap.messages), bytes.saturating_add(gap.bytes));
    }
    let names: Vec<&str> = topics.iter().map(Topic::as_str).collect();
    let bound = bound.map_or_else(|| "the bound of hold-back".to_owned(), |bound| format!("its bound, {bound}"));
    format!(
        "hold-back reached {bound}: {messages} messages ({bytes} bytes) of {} that site {site} does not hold are not kept for it any \
         longer; what no other site has it will lack. Bring it back, raise the bound, or remove it with `seaway site remove {site}`",
        listed(names.iter().copied())
    )
}

/// What retention will now take although a site needs it.
fn given_up(
    log: &dyn CommitLog,
    logs: &[Own<'_>],
    known: &BTreeMap<(Site, LogName), Gap>,
    wall_us: u64,
) -> Result<Vec<(Site, LogName, Gap)>, ReadError> {
    let mut gone = Vec::new();
    for own in logs {
        let (Some(target), Some(floor)) = (own.target, own.pins.iter().map(|pin| pin.from).reduce(lower)) else {
            continue;
        };
        let to = lower(floor, target);
        for pin in &own.pins {
            // What was written down and could not be trimmed at once is not counted twice.
            let written = known.get(&(pin.need.site.clone(), own.name.clone())).map(|gap| gap.to);
            let from = written.map_or(pin.need.from, |written| higher(written, pin.need.from));
            if key(to) <= key(from) {
                continue;
            }
            let (mut messages, mut bytes) = (0_u64, 0_u64);
            log.survey(own.name, Some(from), &mut |batch| {
                let goes = key(batch.end) <= key(to);
                if goes {
                    messages = messages.saturating_add(batch.end.offset.saturating_sub(batch.begin.offset));
                    bytes = bytes.saturating_add(batch.bytes);
                }
                goes
            })?;
            let gap = Gap { log: own.name.clone(), from, to, messages, bytes, since_us: wall_us, last_us: wall_us };
            gone.push((pin.need.site.clone(), own.name.clone(), gap));
        }
    }
    Ok(gone)
}

impl State {
    /// Brings the ledgers in line with the logs of which a site needs something, or that have a retention.
    fn follow(
        &mut self,
        log: &dyn CommitLog,
        needs: &[(LogName, Vec<Need>)],
        keep: impl Fn(&LogName) -> Keep,
        wall_us: u64,
    ) -> Result<(), ReadError> {
        let mut followed = BTreeSet::new();
        for (name, needs) in needs.iter().filter(|(_, needs)| !needs.is_empty()) {
            let Some(info) = log.info(name, true) else { continue };
            let retained = keep(name) != Keep::default();
            if !retained && needs.iter().all(|need| key(need.from) >= key(info.end)) {
                continue;
            }
            let ledger = self.ledgers.entry(name.clone()).or_default();
            let came = ledger.follow(log, name, info.begin)?;
            followed.insert(name.clone());
            if retained {
                self.rates.count(&name.topic, came, wall_us);
            }
        }
        self.ledgers.retain(|name, _| followed.contains(name));
        while self.ledgers.values().map(Ledger::len).sum::<usize>() > ALL_SLICES_MAX.max(self.ledgers.len()) {
            self.ledgers.values_mut().for_each(Ledger::coarsen);
        }
        Ok(())
    }

    fn note_heard(&mut self, heard: Vec<(Site, u64)>, round: &mut Round) {
        for (site, at) in heard {
            let known = self.heard.get(&site).copied().unwrap_or(0);
            // Often enough to tell how long a site has been away.
            if at >= known.saturating_add(records::HEARD_STEP_US) {
                round.entries.push(records::put_heard(&site, at));
            }
            if at >= known.saturating_add(records::HEARD_STEP_US) || known == 0 {
                self.heard.insert(site, at);
            }
        }
    }
}
