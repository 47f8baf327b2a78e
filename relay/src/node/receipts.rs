//! Waiting for other sites: a message that is durable here gets its receipt when the sites asked for state to hold it.
//!
//! Who is asked is decided before the message is appended ([`decide`]): later arrivals do not enter, and a set that cannot be
//! reached is refused while nothing is stored. Statements move one place per site and log, so each waiting message is looked
//! at once per site, not at every statement. A site counts only for what its copy really holds: not for holes, and
//! not below its begin, where `all` goes on without it.
//!
//! Pure: time is an argument, statements come by [`Receipts::handle_held`]. At most [`RECEIPTS_WAITING_MAX`] wait at once; the node
//! sees to that before it accepts a message.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use seaway_federation_proto::{
    ids::{LogName, Place, Site, Topic},
    replication::RemoteHeld,
};
use smallvec::SmallVec;

use super::{Acknowledgement, OnDeadline, PublishError, Receipt, origin::Stored};

/// Most messages that wait for other sites at once.
pub const RECEIPTS_WAITING_MAX: usize = 262_144;
/// Deadlines are looked at in steps of this many milliseconds: a receipt is at most so much late.
const DEADLINE_STEP_MS: u64 = 4;

/// What waits of earlier incarnations is looked at again so often.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Whom a message waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Those that count, in order of name.
    pub sites: Arc<[Site]>,
    /// How many of them must hold it.
    pub count: usize,
    /// Whether it is all of them: then a site whose copy begins above the message is not waited for.
    pub all: bool,
}

/// Decides whom a message waits for, given the sites registered for its topic in order of name. `None`: nobody.
///
/// # Errors
/// [`PublishError::NobodyToAcknowledge`] for an empty set, a number above it, or a name outside it.
pub fn decide(asked: &Acknowledgement, registered: &Arc<[Site]>) -> Result<Option<Need>, PublishError> {
    let nobody = |text: String| Err(PublishError::NobodyToAcknowledge(text));
    match asked {
        Acknowledgement::Local => Ok(None),
        Acknowledgement::All if registered.is_empty() => {
            nobody("no site is registered for this topic, so nobody can acknowledge; publish with --ack local, or let a site want it".to_owned())
        }
        Acknowledgement::All => Ok(Some(Need { sites: registered.clone(), count: registered.len(), all: true })),
        Acknowledgement::Count(count) => {
            let wanted = usize::try_from(*count).unwrap_or(usize::MAX);
            if wanted == 0 {
                return nobody("0 acknowledging sites make no sense; publish with --ack local to wait for none".to_owned());
            }
            if wanted > registered.len() {
                return nobody(format!(
                    "{wanted} other sites are asked to acknowledge, but only {} are registered for this topic; ask for fewer, or let \
                     more sites want it (`seaway site ls` lists them)",
                    registered.len()
                ));
            }
            Ok(Some(Need { sites: registered.clone(), count: wanted, all: false }))
        }
        Acknowledgement::Sites(names) => {
            let mut sites = names.clone();
            sites.sort();
            sites.dedup();
            if sites.is_empty() {
                return nobody("the list of acknowledging sites is empty; publish with --ack local to wait for none".to_owned());
            }
            if let Some(stranger) = sites.iter().find(|s| registered.binary_search(s).is_err()) {
                return nobody(format!(
                    "site {stranger} cannot acknowledge this topic: it is this site itself, has not registered for the topic, or is \
                     left out of the topic's replicate list here; `seaway site ls` lists those that can"
                ));
            }
            let count = sites.len();
            Ok(Some(Need { sites: sites.into(), count, all: false }))
        }
    }
}

/// Told once.
pub type Answer = Box<dyn FnOnce(Result<Receipt, PublishError>) + Send>;

/// Asks the replication machine whether a site holds a place: for places of earlier incarnations.
pub type Holds = Arc<dyn Fn(&Site, &LogName, Place) -> bool + Send + Sync>;

#[derive(Debug, Clone, Default)]
struct Bits(SmallVec<[u64; 1]>);

impl Bits {
    fn set(&mut self, index: usize, value: bool) {
        if self.0.len() <= index / 64 {
            self.0.resize(index / 64 + 1, 0);
        }
        if let Some(word) = self.0.get_mut(index / 64) {
            let bit = 1_u64 << (index % 64);
            *word = if value { *word | bit } else { *word & !bit };
        }
    }

    fn get(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word & (1_u64 << (index % 64)) != 0)
    }

    fn count(&self) -> usize {
        self.0.iter().map(|w| usize::try_from(w.count_ones()).unwrap_or(64)).sum()
    }
}

struct Waiter {
    need: Need,
    holds: Bits,
    /// Sites whose copy begins above the message.
    excused: Bits,
    /// Sites that were removed from the federation meanwhile: it goes on without them.
    removed: Bits,
    deadline_step: u64,
    on_deadline: OnDeadline,
    repeated: bool,
    answer: Answer,
}

impl Waiter {
    fn is_met(&self) -> bool {
        let excused = if self.need.all { self.excused.count() } else { 0 };
        let left = self.need.sites.len().saturating_sub(self.removed.count());
        self.holds.count() + excused >= self.need.count.min(left)
    }

    fn names(&self, wanted: impl Fn(&Self, usize) -> bool) -> Vec<Site> {
        let all = self.need.sites.iter().enumerate();
        all.filter(|(index, _)| wanted(self, *index)).map(|(_, site)| site.clone()).collect()
    }

    fn holders(&self) -> Vec<Site> {
        self.names(|w, index| w.holds.get(index))
    }

    fn missing(&self) -> Vec<Site> {
        self.names(|w, index| !(w.holds.get(index) || w.removed.get(index) || (w.need.all && w.excused.get(index))))
    }

    fn gone(&self) -> Vec<Site> {
        self.names(|w, index| w.removed.get(index))
    }

    /// A site was removed: what it holds already counts, and nothing else is waited for.
    fn remove(&mut self, index: usize) {
        if !self.holds.get(index) {
            self.removed.set(index, true);
            self.excused.set(index, false);
        }
    }

    fn meet(self, log: &LogName, place: Place) {
        let (sites, removed, log, repeated) = (self.holders(), self.gone(), log.clone(), self.repeated);
        (self.answer)(Ok(Receipt { log, place, sites, degraded: false, missing: Vec::new(), removed, repeated }));
    }

    fn expire(self, log: &LogName, place: Place) {
        let (sites, missing, log) = (self.holders(), self.missing(), log.clone());
        match self.on_deadline {
            OnDeadline::Degrade => {
                let (removed, repeated) = (self.gone(), self.repeated);
                (self.answer)(Ok(Receipt { log, place, sites, degraded: true, missing, removed, repeated }));
            }
            OnDeadline::Fail => {
                let missing = self.lacking();
                (self.answer)(Err(PublishError::Deadline { log, place, missing }));
            }
        }
    }

    /// The node stops: whatever the policy, the deadline has not passed.
    fn stop(self, log: &LogName, place: Place) {
        let missing = self.lacking();
        (self.answer)(Err(PublishError::Stopping { log: log.clone(), place, missing }));
    }

    /// Who is missing, in words.
    fn lacking(&self) -> String {
        let missing = self.missing();
        let names = missing.iter().map(Site::as_str).collect::<Vec<_>>().join(", ");
        let lacking = self.need.count.saturating_sub(self.holders().len());
        if lacking < missing.len() { format!("{lacking} of {names}") } else { names }
    }
}

type WaiterKey = (Place, u64);

#[derive(Default)]
struct LogWaiters {
    waiting: BTreeMap<WaiterKey, Waiter>,
    /// Those below an incarnation in which some site stands already, for which the machine is asked.
    older: BTreeMap<WaiterKey, Waiter>,
    held: BTreeMap<Site, RemoteHeld>,
}

/// Whether the statement says that the site holds a place of the incarnation in which it ends, or of a fork's.
fn holds(held: &RemoteHeld, place: Place) -> bool {
    let within = |tip: &Place| tip.incarnation == place.incarnation && place.offset < tip.offset;
    let lacks = held.holes.iter().any(|h| h.contains(place))
        || held.jumps.iter().any(|j| j.incarnation == place.incarnation && place.offset < j.begin);
    (within(&held.below) || held.fork_tips.iter().any(within)) && !is_below(held, place) && !lacks
}

fn is_below(held: &RemoteHeld, place: Place) -> bool {
    let (from, at) = (held.from, place);
    at.incarnation.counter < from.incarnation.counter || (at.incarnation == from.incarnation && at.offset < from.offset)
}

#[derive(Default)]
struct Inner {
    logs: HashMap<LogName, LogWaiters>,
    /// By step and number: exactly those that wait.
    deadlines: BTreeMap<(u64, u64), (LogName, Place)>,
    next: u64,
    waiting: usize,
    /// Logs that may have some of earlier incarnations, and when those were looked at.
    older: BTreeSet<LogName>,
    looked: Duration,
    /// The node stops: nothing begins to wait any more.
    stopping: bool,
    /// Sites that were removed: who was to wait for one goes on without it.
    removed: BTreeSet<Site>,
}

impl Inner {
    fn ended(&mut self, met: &[(WaiterKey, Waiter)]) {
        for ((_, number), waiter) in met {
            self.deadlines.remove(&(waiter.deadline_step, *number));
        }
        self.waiting = self.waiting.saturating_sub(met.len());
    }
}

/// All messages that wait for other sites.
pub struct Receipts {
    inner: Mutex<Inner>,
    machine: Holds,
}

impl std::fmt::Debug for Receipts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receipts").field("waiting", &self.len()).finish_non_exhaustive()
    }
}

fn step(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX) / DEADLINE_STEP_MS
}

impl Receipts {
    /// Nothing waits yet.
    pub fn new(machine: Holds) -> Self {
        Self { inner: Mutex::default(), machine }
    }

    /// A message is durable here and waits for others from now on, until `deadline`.
    pub fn wait(&self, stored: Stored, need: Need, deadline: Duration, on_deadline: OnDeadline, answer: Answer) {
        let Stored { log, place, repeated } = stored;
        let sites = need.sites.clone();
        let deadline_step = step(deadline).saturating_add(1);
        let (holding, excused, removed) = (Bits::default(), Bits::default(), Bits::default());
        let mut waiter =
            Waiter { need, holds: holding, excused, removed, deadline_step, on_deadline, repeated, answer };
        let mut inner = self.inner.lock();
        inner.next += 1;
        let key = (place, inner.next);
        let stopping = inner.stopping;
        for (index, _) in sites.iter().enumerate().filter(|(_, site)| inner.removed.contains(*site)) {
            waiter.remove(index);
        }
        let at = inner.logs.entry(log.clone()).or_default();
        for (index, site) in sites.iter().enumerate() {
            if let Some(held) = at.held.get(site) {
                waiter.holds.set(index, holds(held, place));
                waiter.excused.set(index, is_below(held, place));
            }
        }
        if waiter.is_met() {
            drop(inner);
            return waiter.meet(&log, place);
        }
        if stopping {
            drop(inner);
            return waiter.stop(&log, place);
        }
        // Of an earlier incarnation only the machine knows what followed it.
        let goes_on = |held: &RemoteHeld| held.below.incarnation > place.incarnation;
        let older = repeated || sites.iter().any(|site| at.held.get(site).is_some_and(goes_on));
        let line = if older { &mut at.older } else { &mut at.waiting };
        line.insert(key, waiter);
        inner.waiting += 1;
        if older {
            inner.older.insert(log.clone());
        }
        inner.deadlines.insert((deadline_step, key.1), (log.clone(), place));
        drop(inner);
        if older {
            self.ask_machine(&log, |waiter, _| *waiter == key);
        }
    }

    /// A site's statement.
    pub fn handle_held(&self, held: RemoteHeld) {
        let (log, site) = (held.log.clone(), held.site.clone());
        let mut inner = self.inner.lock();
        let at = inner.logs.entry(log.clone()).or_default();
        let met = at.apply(held);
        let ask = !at.older.is_empty();
        if ask {
            inner.older.insert(log.clone());
        }
        inner.ended(&met);
        drop(inner);
        for ((place, _), waiter) in met {
            waiter.meet(&log, place);
        }
        if ask {
            self.ask_machine(&log, |_, of| *of == site);
        }
    }

    /// Looks at what waits of a log's earlier incarnations. Not under the lock: the machine has its own.
    fn ask_machine(&self, log: &LogName, asked: impl Fn(&WaiterKey, &Site) -> bool) {
        let mut questions: Vec<(WaiterKey, usize, Arc<[Site]>)> = Vec::new();
        if let Some(at) = self.inner.lock().logs.get(log) {
            for (key, waiter) in &at.older {
                let sites = waiter.need.sites.iter().enumerate().filter(|(_, site)| asked(key, site));
                questions.extend(sites.map(|(index, _)| (*key, index, waiter.need.sites.clone())));
            }
        }
        let answer = |(key, index, sites): (WaiterKey, usize, Arc<[Site]>)| {
            let holds = sites.get(index).is_some_and(|site| (self.machine)(site, log, key.0));
            (key, index, holds)
        };
        let answers: Vec<(WaiterKey, usize, bool)> = questions.into_iter().map(answer).collect();
        let mut met = Vec::new();
        let mut inner = self.inner.lock();
        let Some(at) = inner.logs.get_mut(log) else { return };
        for (key, index, holds) in answers {
            let Some(waiter) = at.older.get_mut(&key) else { continue };
            waiter.holds.set(index, holds);
            if waiter.is_met() {
                met.extend(at.older.remove_entry(&key));
            }
        }
        inner.ended(&met);
        drop(inner);
        for ((place, _), waiter) in met {
            waiter.meet(log, place);
        }
    }

    /// Sites that were removed before this process began.
    pub fn remove_all(&self, sites: impl IntoIterator<Item = Site>) {
        self.inner.lock().removed.extend(sites);
    }

    /// A site was removed from the federation: what waits for it goes on without it.
    pub fn remove_site(&self, site: &Site) {
        let mut met: Vec<(LogName, WaiterKey, Waiter)> = Vec::new();
        let mut inner = self.inner.lock();
        inner.removed.insert(site.clone());
        for (log, at) in &mut inner.logs {
            at.held.remove(site);
            for line in [&mut at.waiting, &mut at.older] {
                let mut done = Vec::new();
                for (key, waiter) in line.iter_mut() {
                    let Ok(index) = waiter.need.sites.binary_search(site) else { continue };
                    waiter.remove(index);
                    if waiter.is_met() {
                        done.push(*key);
                    }
                }
                let ended = done.into_iter().filter_map(|key| line.remove_entry(&key));
                met.extend(ended.map(|(key, waiter)| (log.clone(), key, waiter)));
            }
        }
        for (_, (_, number), waiter) in &met {
            inner.deadlines.remove(&(waiter.deadline_step, *number));
        }
        inner.waiting = inner.waiting.saturating_sub(met.len());
        drop(inner);
        for (log, (place, _), waiter) in met {
            waiter.meet(&log, place);
        }
    }

    /// Now and then: what the machine learned of our own log since a site spoke may decide what waits of earlier incarnations.
    pub fn look_again(&self, now: Duration) {
        let logs: Vec<LogName> = {
            let mut inner = self.inner.lock();
            if inner.older.is_empty() || now.saturating_sub(inner.looked) < LOOK_INTERVAL {
                return;
            }
            inner.looked = now;
            let Inner { older, logs, .. } = &mut *inner;
            older.retain(|log| logs.get(log).is_some_and(|at| !at.older.is_empty()));
            older.iter().cloned().collect()
        };
        for log in logs {
            self.ask_machine(&log, |_, _| true);
        }
    }

    /// Ends the waits whose deadline has passed.
    pub fn handle_timeout(&self, now: Duration) {
        self.take_due(now).into_iter().for_each(|(log, place, waiter)| waiter.expire(&log, place));
    }

    fn take_due(&self, now: Duration) -> Vec<(LogName, Place, Waiter)> {
        let mut expired = Vec::new();
        let mut inner = self.inner.lock();
        while let Some(first) = inner.deadlines.first_entry().filter(|first| first.key().0 <= step(now)) {
            let ((_, number), (log, place)) = first.remove_entry();
            let key = (place, number);
            let at = inner.logs.get_mut(&log);
            let waiter = at.and_then(|at| at.waiting.remove(&key).or_else(|| at.older.remove(&key)));
            expired.extend(waiter.map(|w| (log, place, w)));
        }
        inner.waiting = inner.waiting.saturating_sub(expired.len());
        expired
    }

    /// When to call [`Receipts::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Duration> {
        let inner = self.inner.lock();
        inner
            .deadlines
            .first_key_value()
            .map(|((step, _), _)| Duration::from_millis(step.saturating_mul(DEADLINE_STEP_MS)))
    }

    /// The node stops: all waits end with [`PublishError::Stopping`], now and from now on.
    pub fn stop(&self) {
        self.inner.lock().stopping = true;
        self.take_due(Duration::MAX).into_iter().for_each(|(log, place, waiter)| waiter.stop(&log, place));
    }

    /// A topic of this origin was deleted: all waits for its messages end with [`PublishError::Deleted`].
    pub fn topic_deleted(&self, topic: &Topic) {
        let mut inner = self.inner.lock();
        let mut ended = Vec::new();
        let logs: Vec<LogName> = inner.logs.keys().filter(|log| log.topic == *topic).cloned().collect();
        for log in logs {
            let Some(waiters) = inner.logs.remove(&log) else { continue };
            let all: Vec<_> = waiters.waiting.into_iter().chain(waiters.older).collect();
            inner.ended(&all);
            inner.older.remove(&log);
            ended.extend(all);
        }
        drop(inner);
        for (_, waiter) in ended {
            (waiter.answer)(Err(PublishError::Deleted(topic.clone())));
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.inner.lock().waiting
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl LogWaiters {
    /// Takes a statement in; answers whose wait it ends, in order of place.
    fn apply(&mut self, held: RemoteHeld) -> Vec<(WaiterKey, Waiter)> {
        let before = self.held.insert(held.site.clone(), held.clone());
        // Usually only the place moved up: then only what it passed is looked at.
        let plain = before.filter(|b| {
            let shape =
                b.from == held.from && b.holes == held.holes && b.fork_tips == held.fork_tips && b.jumps == held.jumps;
            shape && b.below.incarnation == held.below.incarnation && b.below.offset <= held.below.offset
        });
        let range = match plain {
            Some(before) => (Bound::Included((before.below, 0)), Bound::Excluded((held.below, 0))),
            None => (Bound::Unbounded, Bound::Unbounded),
        };
        // The log goes on in a new incarnation: of what waits below only the machine knows.
        let first = Place { incarnation: held.below.incarnation, offset: 0 };
        if self.waiting.first_key_value().is_some_and(|(key, _)| *key < (first, 0)) {
            let above = self.waiting.split_off(&(first, 0));
            self.older.append(&mut std::mem::replace(&mut self.waiting, above));
        }
        let mut met = Vec::new();
        for (key, waiter) in self.waiting.range_mut(range) {
            let Ok(index) = waiter.need.sites.binary_search(&held.site) else { continue };
            waiter.holds.set(index, holds(&held, key.0));
            waiter.excused.set(index, is_below(&held, key.0));
            if waiter.is_met() {
                met.push(*key);
            }
        }
        met.into_iter().filter_map(|key| self.waiting.remove_entry(&key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    };

    use seaway_federation_proto::{
        copies::{Hole, HoleKind},
        ids::{Incarnation, Queue},
    };

    use super::*;

    const INCARNATION: Incarnation = Incarnation { counter: 3, random: 9 };

    fn log() -> LogName {
        LogName { topic: "t".parse().unwrap(), origin: "home".parse().unwrap(), queue: Queue(1) }
    }

    fn place(offset: u64) -> Place {
        Place { incarnation: INCARNATION, offset }
    }

    fn sites(names: &[&str]) -> Arc<[Site]> {
        names.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn held(site: &str, from: u64, below: u64, holes: &[(u64, u64)]) -> RemoteHeld {
        let hole =
            |(from, to): &(u64, u64)| Hole { incarnation: INCARNATION, from: *from, to: *to, kind: HoleKind::Pending };
        RemoteHeld {
            site: site.parse().unwrap(),
            log: log(),
            from: place(from),
            below: place(below),
            holes: holes.iter().map(hole).collect(),
            fork_tips: Vec::new(),
            jumps: Vec::new(),
        }
    }

    type Outcome = (u64, Result<Receipt, PublishError>);

    fn wait(
        r: &Receipts,
        to: &mpsc::Sender<Outcome>,
        offset: u64,
        asked: &Acknowledgement,
        registered: &[&str],
        ms: u64,
        end: OnDeadline,
    ) {
        let need = decide(asked, &sites(registered)).unwrap().unwrap();
        let to = to.clone();
        let stored = Stored { log: log(), place: place(offset), repeated: false };
        r.wait(
            stored,
            need,
            Duration::from_millis(ms),
            end,
            Box::new(move |result| to.send((offset, result)).unwrap()),
        );
    }

    fn names(receipt: &Receipt) -> Vec<&str> {
        receipt.sites.iter().map(Site::as_str).collect()
    }

    #[test]
    fn what_cannot_be_reached_is_refused_before_anything_is_stored() {
        let registered = sites(&["a", "b"]);
        let refused = |asked| matches!(decide(&asked, &registered), Err(PublishError::NobodyToAcknowledge(_)));
        assert!(refused(Acknowledgement::Count(3)));
        assert!(refused(Acknowledgement::Count(0)));
        assert!(refused(Acknowledgement::Sites(vec![])));
        assert!(refused(Acknowledgement::Sites(vec!["c".parse().unwrap()])));
        assert!(matches!(decide(&Acknowledgement::All, &sites(&[])), Err(PublishError::NobodyToAcknowledge(_))));
        assert_eq!(decide(&Acknowledgement::Local, &sites(&[])), Ok(None));
        assert_eq!(decide(&Acknowledgement::All, &registered).unwrap().unwrap().count, 2);
    }

    #[test]
    fn all_waits_for_every_site_and_names_them() {
        let (to, from) = mpsc::channel();
        let r = Receipts::new(Arc::new(|_, _, _| false));
        for offset in 0..3 {
            wait(&r, &to, offset, &Acknowledgement::All, &["a", "b"], 1000, OnDeadline::Fail);
        }
        r.handle_held(held("a", 0, 3, &[]));
        assert!(from.try_recv().is_err());
        r.handle_held(held("b", 0, 2, &[]));
        for expected in 0..2 {
            let (offset, receipt) = from.try_recv().unwrap();
            assert_eq!((offset, names(&receipt.unwrap())), (expected, vec!["a", "b"]));
        }
        assert!(from.try_recv().is_err());
        assert_eq!(r.len(), 1);
        r.handle_held(held("b", 0, 3, &[]));
        assert_eq!(from.try_recv().unwrap().0, 2);
    }

    #[test]
    fn a_hole_does_not_count_until_it_is_filled() {
        let (to, from) = mpsc::channel();
        let r = Receipts::new(Arc::new(|_, _, _| false));
        wait(&r, &to, 5, &Acknowledgement::Count(1), &["a", "b"], 1000, OnDeadline::Fail);
        r.handle_held(held("a", 0, 10, &[(4, 6)]));
        assert!(from.try_recv().is_err());
        r.handle_held(held("a", 0, 10, &[]));
        assert_eq!(names(&from.try_recv().unwrap().1.unwrap()), vec!["a"]);
    }

    #[test]
    fn all_goes_on_without_a_site_that_begins_above_but_does_not_name_it() {
        let (to, from) = mpsc::channel();
        let r = Receipts::new(Arc::new(|_, _, _| false));
        wait(&r, &to, 5, &Acknowledgement::All, &["a", "b"], 1000, OnDeadline::Fail);
        r.handle_held(held("a", 7, 10, &[]));
        assert!(from.try_recv().is_err());
        r.handle_held(held("b", 0, 10, &[]));
        assert_eq!(names(&from.try_recv().unwrap().1.unwrap()), vec!["b"]);
    }

    #[test]
    fn at_the_deadline_it_fails_or_degrades_as_asked() {
        let (to, from) = mpsc::channel();
        let r = Receipts::new(Arc::new(|_, _, _| false));
        wait(&r, &to, 1, &Acknowledgement::All, &["a", "b"], 50, OnDeadline::Fail);
        wait(&r, &to, 2, &Acknowledgement::All, &["a", "b"], 50, OnDeadline::Degrade);
        r.handle_held(held("b", 0, 10, &[]));
        r.handle_timeout(Duration::from_millis(49));
        assert!(from.try_recv().is_err());
        let at = r.poll_timeout().unwrap();
        r.handle_timeout(at);
        let failed = from.try_recv().unwrap().1;
        assert_eq!(failed, Err(PublishError::Deadline { log: log(), place: place(1), missing: "a".to_owned() }));
        let degraded = from.try_recv().unwrap().1.unwrap();
        assert!(degraded.degraded);
        assert_eq!((names(&degraded), degraded.missing.clone()), (vec!["b"], vec!["a".parse().unwrap()]));
        assert!(r.is_empty() && r.poll_timeout().is_none());
    }

    #[test]
    fn a_stop_is_told_apart_from_a_deadline_whatever_the_policy() {
        let (to, from) = mpsc::channel();
        let r = Receipts::new(Arc::new(|_, _, _| false));
        wait(&r, &to, 1, &Acknowledgement::All, &["a", "b"], 60_000, OnDeadline::Degrade);
        r.handle_held(held("b", 0, 2, &[]));
        r.stop();
        let stopping =
            |offset| Err(PublishError::Stopping { log: log(), place: place(offset), missing: "a".to_owned() });
        assert_eq!(from.try_recv().unwrap(), (1, stopping(1)));
        // What becomes durable after that does not begin to wait; what is met already has its receipt.
        r.handle_held(held("b", 0, 4, &[]));
        wait(&r, &to, 3, &Acknowledgement::All, &["a", "b"], 60_000, OnDeadline::Fail);
        assert_eq!(from.try_recv().unwrap(), (3, stopping(3)));
        wait(&r, &to, 3, &Acknowledgement::Count(1), &["a", "b"], 60_000, OnDeadline::Fail);
        assert_eq!(names(&from.try_recv().unwrap().1.unwrap()), vec!["b"]);
        assert!(r.is_empty() && r.poll_timeout().is_none());
    }

    #[test]
    fn a_site_that_went_back_no_longer_counts() {
        let (to, from) = mpsc::channel();
        let r = Receipts::new(Arc::new(|_, _, _| false));
        wait(&r, &to, 5, &Acknowledgement::All, &["a", "b"], 1000, OnDeadline::Fail);
        r.handle_held(held("a", 0, 10, &[]));
        r.handle_held(held("a", 0, 3, &[]));
        r.handle_held(held("b", 0, 10, &[]));
        assert!(from.try_recv().is_err());
        r.handle_held(held("a", 0, 6, &[]));
        assert_eq!(names(&from.try_recv().unwrap().1.unwrap()), vec!["a", "b"]);
    }

    /// A restored origin goes on above a fork that it met: what it stored before is held, though the sites' tips lie higher.
    #[test]
    fn what_waits_of_an_incarnation_is_met_after_the_log_went_on_in_a_newer_one() {
        let (to, from) = mpsc::channel();
        let known = Arc::new(AtomicU64::new(8));
        let below = known.clone();
        let holds = move |_: &Site, _: &LogName, p: Place| {
            p.incarnation == INCARNATION && p.offset < below.load(Ordering::Relaxed)
        };
        let r = Receipts::new(Arc::new(holds));
        wait(&r, &to, 5, &Acknowledgement::All, &["a", "b"], 1000, OnDeadline::Fail);
        wait(&r, &to, 9, &Acknowledgement::All, &["a", "b"], 1000, OnDeadline::Fail);
        r.handle_held(held("a", 0, 6, &[]));
        let newer = |site| {
            let mut held = held(site, 0, 20, &[]);
            held.below.incarnation.counter += 1;
            held
        };
        r.handle_held(newer("a"));
        assert!(from.try_recv().is_err(), "b has not spoken");
        r.handle_held(newer("b"));
        let (offset, receipt) = from.try_recv().unwrap();
        assert_eq!((offset, names(&receipt.unwrap())), (5, vec!["a", "b"]));
        assert!(from.try_recv().is_err());
        // And one whose batch of the earlier incarnation became durable only now.
        wait(&r, &to, 7, &Acknowledgement::All, &["a", "b"], 1000, OnDeadline::Fail);
        assert_eq!(from.try_recv().unwrap().0, 7);
        assert_eq!(r.len(), 1);
        // The machine hears of our own log after the sites spoke.
        known.store(10, Ordering::Relaxed);
        r.look_again(LOOK_INTERVAL);
        assert_eq!(from.try_recv().unwrap().0, 9);
    }

    #[test]
    fn a_removed_site_is_not_waited_for_and_the_receipt_says_so() {
        let (to, from) = mpsc::channel();
        let r = Receipts::new(Arc::new(|_, _, _| false));
        wait(&r, &to, 1, &Acknowledgement::All, &["a", "b"], 60_000, OnDeadline::Fail);
        wait(&r, &to, 2, &Acknowledgement::Sites(sites(&["b"]).to_vec()), &["a", "b"], 60_000, OnDeadline::Fail);
        wait(&r, &to, 3, &Acknowledgement::Count(2), &["a", "b", "c"], 60_000, OnDeadline::Fail);
        r.handle_held(held("a", 0, 10, &[]));
        assert!(from.try_recv().is_err());
        r.remove_site(&"b".parse().unwrap());
        let mut answered: Vec<(u64, Receipt)> = from.try_iter().map(|(at, receipt)| (at, receipt.unwrap())).collect();
        answered.sort_by_key(|(at, _)| *at);
        let removed: Vec<Site> = sites(&["b"]).to_vec();
        assert_eq!(answered.iter().map(|(at, r)| (*at, names(r))).collect::<Vec<_>>(), [(1, vec!["a"]), (2, vec![])]);
        assert!(answered.iter().all(|(_, r)| r.removed == removed && !r.degraded));
        // Two of three that are two now: both.
        r.handle_held(held("c", 0, 10, &[]));
        let (_, receipt) = from.try_recv().unwrap();
        let receipt = receipt.unwrap();
        assert_eq!((names(&receipt), &receipt.removed), (vec!["a", "c"], &removed));
        // Decided before the removal, stored after it.
        wait(&r, &to, 4, &Acknowledgement::All, &["a", "b"], 60_000, OnDeadline::Fail);
        assert_eq!(from.try_recv().unwrap().1.unwrap().removed, removed);
        assert!(r.is_empty() && r.poll_timeout().is_none());
    }

    #[test]
    fn a_retry_of_an_earlier_incarnation_asks_the_machine() {
        let (to, from) = mpsc::channel();
        let r = Receipts::new(Arc::new(|site, _, place| site.as_str() == "a" && place.incarnation.counter == 2));
        let earlier = Place { incarnation: Incarnation { counter: 2, random: 1 }, offset: 4 };
        let need = decide(&Acknowledgement::All, &sites(&["a"])).unwrap().unwrap();
        let stored = Stored { log: log(), place: earlier, repeated: true };
        let answer: Answer = Box::new(move |result| to.send(result).unwrap());
        r.wait(stored, need, Duration::from_secs(1), OnDeadline::Fail, answer);
        let receipt = from.try_recv().unwrap().unwrap();
        assert!(receipt.repeated);
        assert_eq!(names(&receipt), vec!["a"]);
    }
}
