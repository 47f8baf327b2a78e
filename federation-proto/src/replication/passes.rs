//! How much of what is read through may be under way: a pool for each link and lane of the askers.
//!
//! A passing fetch of ours may bring only what was reserved for it out of the pool of its asker's link and lane, and what was
//! reserved is free again when it was sent on. So however many logs a neighbour asks for, no more waits here for it than its
//! pool, and few passes are active at a time, each in its turn. A pass that begins at its log's end, or to which nothing came for a
//! while, does not keep others waiting: what it has not used is lent to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    LinkId, Output, Replication,
    serving::{Asker, Mode},
};
use crate::{
    ids::Place,
    session::{FetchNumber, Lane},
};

/// Most bytes that are read through for the fetches of one lane of a link and not yet sent on.
pub const PASS_POOL_BYTES: u64 = 4 * 1024 * 1024;
/// What a pass is given of the pool at a time while others wait, in bytes.
const PASS_STEP_BYTES: u64 = 1024 * 1024;
/// A pass that may still bring something is not given less than this, in bytes.
const PASS_RAISE_BYTES: u64 = 256 * 1024;
/// What a pass that begins at its log's end may bring at once, in bytes; the next batch has room there in any case.
const PASS_AT_END_BYTES: u64 = 16 * 1024;
/// What a pass has not used for so long is lent to those that wait.
const LENT_AFTER: Duration = Duration::from_secs(2);

/// A passing fetch of ours, and what it may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passing {
    /// The next place that its asker is sent, as last heard.
    pub(super) at: Place,
    link: LinkId,
    number: FetchNumber,
    /// Bytes that it may bring in all, that came, and that were sent on.
    allowance: u64,
    arrived: u64,
    passed: u64,
    /// Bytes that its asker has room for beyond what was sent.
    room: u64,
    /// Bytes of the pool that count as taken by it.
    taken: u64,
    /// Its place among those that wait for the pool.
    turn: Option<u64>,
    /// When something last came, and whether what has not come since is lent to others.
    moved: Duration,
    lent: bool,
}

impl Passing {
    /// What it would have, had it the pool for itself.
    fn wanted(&self) -> u64 {
        self.room.min(PASS_POOL_BYTES)
    }

    /// What it was promised and did not yet send on.
    fn promised(&self) -> u64 {
        self.allowance.max(self.arrived).saturating_sub(self.passed)
    }

    /// What counts as taken of the pool.
    fn due(&self) -> u64 {
        if self.lent { self.arrived.saturating_sub(self.passed) } else { self.promised() }
    }
}

/// What the passes of one lane of a link share.
#[derive(Debug, Default)]
struct Pool {
    taken: u64,
    turns: u64,
    waiting: BTreeMap<u64, FetchNumber>,
    passes: BTreeSet<FetchNumber>,
}

impl Pool {
    fn free(&self) -> u64 {
        PASS_POOL_BYTES.saturating_sub(self.taken)
    }

    fn recount(&mut self, pass: &mut Passing) {
        self.taken = self.taken.saturating_sub(pass.taken).saturating_add(pass.due());
        pass.taken = pass.due();
    }
}

/// All pools, by the asker's link and lane.
#[derive(Debug, Default)]
pub(super) struct Pools(BTreeMap<(LinkId, Lane), Pool>);

#[cfg(test)]
impl Pools {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Replication {
    /// A pass begins: it waits for its turn, unless it stands at its log's end.
    pub(super) fn begin_passing(
        &mut self,
        asker: Asker,
        (link, number): (LinkId, FetchNumber),
        at: Place,
        room: u64,
        at_end: bool,
    ) {
        let Some(served) = self.served.get_mut(&asker) else { return };
        // What is sent to a named holder is never taken over.
        if served.order.towards.is_none()
            && let Some(state) = self.logs.get_mut(&served.order.log)
        {
            state.passes.insert(asker);
        }
        let (lane, allowance) = (served.order.lane, if at_end { room.min(PASS_AT_END_BYTES) } else { 0 });
        if allowance > 0 {
            self.out.push_back(Output::RaiseAllowance(link, number, allowance));
        }
        served.mode = Mode::Pass(Passing {
            at,
            link,
            number,
            allowance,
            arrived: 0,
            passed: 0,
            room,
            taken: 0,
            turn: None,
            moved: self.now,
            lent: allowance > 0,
        });
        self.pools.0.entry((asker.0, lane)).or_default().passes.insert(asker.1);
        if allowance == 0 {
            self.queue_pass(asker);
            self.grant((asker.0, lane));
        }
    }

    /// Ends the pass that feeds a fetch, if there is one; its part of the pool goes to others.
    pub(super) fn stop_passing(&mut self, asker: Asker) {
        let Some(served) = self.served.get_mut(&asker) else { return };
        let Mode::Pass(pass) = served.mode else { return };
        served.mode = Mode::Waiting;
        let key = (asker.0, served.order.lane);
        if let Some(state) = self.logs.get_mut(&served.order.log) {
            state.passes.remove(&asker);
        }
        self.stop_fetch(pass.link, pass.number);
        let Some(pool) = self.pools.0.get_mut(&key) else { return };
        pool.taken = pool.taken.saturating_sub(pass.taken);
        pool.passes.remove(&asker.1);
        if let Some(turn) = pass.turn {
            pool.waiting.remove(&turn);
        }
        if pool.passes.is_empty() {
            self.pools.0.remove(&key);
        } else {
            self.grant(key);
        }
    }

    /// A batch came for a pass.
    pub(super) fn pass_arrived(&mut self, asker: Asker, bytes: u64) {
        let now = self.now;
        let Some(served) = self.served.get_mut(&asker) else { return };
        let Mode::Pass(pass) = &mut served.mode else { return };
        pass.arrived = pass.arrived.saturating_add(bytes);
        (pass.moved, pass.lent) = (now, false);
        if let Some(pool) = self.pools.0.get_mut(&(asker.0, served.order.lane)) {
            pool.recount(pass);
        }
    }

    /// Its asker was sent more, or has more room. One that has given all that is known to be there is lent at once, and may
    /// always bring a little more: however many logs trickle, none waits for another's turn.
    pub(super) fn pass_went_on(&mut self, asker: Asker, passed: u64, room: u64, at_end: bool) {
        let Some(served) = self.served.get_mut(&asker) else { return };
        let key = (asker.0, served.order.lane);
        let Mode::Pass(pass) = &mut served.mode else { return };
        pass.passed = pass.passed.max(passed);
        pass.room = room;
        if at_end {
            pass.lent = true;
            let more = room.min(PASS_AT_END_BYTES).saturating_sub(pass.promised());
            if more > 0 {
                pass.allowance = pass.allowance.max(pass.arrived).saturating_add(more);
                self.out.push_back(Output::RaiseAllowance(pass.link, pass.number, pass.allowance));
            }
        }
        if let Some(pool) = self.pools.0.get_mut(&key) {
            pool.recount(pass);
        }
        self.queue_pass(asker);
        self.grant(key);
    }

    /// Puts a pass that could use more behind those that wait.
    fn queue_pass(&mut self, asker: Asker) {
        let Some(served) = self.served.get_mut(&asker) else { return };
        let Mode::Pass(pass) = &mut served.mode else { return };
        let more = pass.wanted().saturating_sub(pass.promised());
        let worth = more > 0 && (pass.promised() == 0 || more >= PASS_RAISE_BYTES);
        if pass.turn.is_some() || !worth {
            return;
        }
        if let Some(pool) = self.pools.0.get_mut(&(asker.0, served.order.lane)) {
            pass.turn = Some(pool.turns);
            pool.waiting.insert(pool.turns, asker.1);
            pool.turns += 1;
        }
    }

    /// Gives what is free to those that wait, in turn.
    fn grant(&mut self, key: (LinkId, Lane)) {
        let Some(pool) = self.pools.0.get_mut(&key) else { return };
        while pool.free() >= PASS_RAISE_BYTES
            && let Some((_, number)) = pool.waiting.pop_first()
        {
            let Some(served) = self.served.get_mut(&(key.0, number)) else { continue };
            let Mode::Pass(pass) = &mut served.mode else { continue };
            pass.turn = None;
            let most = if pool.waiting.is_empty() { pass.wanted() } else { pass.wanted().min(PASS_STEP_BYTES) };
            let more = most.saturating_sub(pass.promised()).min(pool.free());
            if more == 0 {
                continue;
            }
            pass.allowance = pass.allowance.max(pass.arrived).saturating_add(more);
            (pass.moved, pass.lent) = (self.now, false);
            pool.recount(pass);
            self.out.push_back(Output::RaiseAllowance(pass.link, pass.number, pass.allowance));
        }
    }

    /// Each interval: what idle passes have not used is lent to those that wait. It counts again as soon as something comes.
    pub(super) fn lend_idle_passes(&mut self) {
        let waited: Vec<(LinkId, Lane)> =
            self.pools.0.iter().filter(|(_, pool)| !pool.waiting.is_empty()).map(|(key, _)| *key).collect();
        for key in waited {
            let Some(pool) = self.pools.0.get_mut(&key) else { continue };
            for number in pool.passes.clone() {
                let Some(served) = self.served.get_mut(&(key.0, number)) else { continue };
                let Mode::Pass(pass) = &mut served.mode else { continue };
                pass.lent |= self.now.saturating_sub(pass.moved) >= LENT_AFTER;
                pool.recount(pass);
            }
            self.grant(key);
        }
    }
}
