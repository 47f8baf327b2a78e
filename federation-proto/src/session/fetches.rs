//! The fetches that this side asked for: what may come for them, and in which order.
//!
//! Inside a fetch the first batch holds the place asked for, and each later one follows the one before by place
//! and chain value, over incarnations too. Anything else is a fault of the peer. What still comes for a fetch
//! that was stopped is dropped until the peer's answer says that nothing more follows.

use std::collections::BTreeMap;

use super::{Fault, FetchLine, FetchNumber, FetchOrder, Lane};
use crate::{
    envelope::{Batch, Chain},
    ids::Place,
};

/// Stopped fetches whose end the peer has not yet stated; one that lets so many gather does not answer at all.
const STOPPING_MAX: usize = 65_536;

#[derive(Debug)]
struct Asked {
    order: FetchOrder,
    stopping: bool,
    /// The end of the last batch and the chain value there.
    follows: Option<(Place, Chain)>,
    received: u64,
    allowance: u64,
}

/// What becomes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is the next of an open fetch.
    Next { passing: bool },
    /// Its fetch was stopped.
    Dropped,
}

/// All fetches asked on a link.
#[derive(Debug, Default)]
pub(super) struct Asking {
    fetches: BTreeMap<FetchNumber, Asked>,
    stopping: usize,
}

impl Asking {
    pub(super) fn start(&mut self, order: FetchOrder) {
        let asked = Asked { stopping: false, follows: None, received: 0, allowance: order.allowance, order };
        self.fetches.insert(asked.order.number, asked);
    }

    /// Whether the peer is to be told.
    pub(super) fn raise(&mut self, number: FetchNumber, total: u64) -> bool {
        let fetch = self.fetches.get_mut(&number).filter(|f| f.order.passing && !f.stopping && total > f.allowance);
        fetch.map(|f| f.allowance = total).is_some()
    }

    /// Whether the peer is to be told.
    pub(super) fn stop(&mut self, number: FetchNumber) -> bool {
        let Some(fetch) = self.fetches.get_mut(&number).filter(|f| !f.stopping) else { return false };
        fetch.stopping = true;
        self.stopping += 1;
        true
    }

    /// Whether so many stops are unanswered that the peer cannot be keeping to the protocol.
    pub(super) fn is_stuck(&self) -> bool {
        self.stopping > STOPPING_MAX
    }

    /// A batch came.
    pub(super) fn take(&mut self, lane: Lane, number: FetchNumber, batch: &Batch) -> Result<Taken, Fault> {
        let fetch = find(&mut self.fetches, lane, number)?;
        if fetch.stopping {
            return Ok(Taken::Dropped);
        }
        if batch.header().log != fetch.order.log {
            return Err(Fault::protocol(format!(
                "a batch of {} came for fetch {number}, which is for {}",
                batch.header().log,
                fetch.order.log
            )));
        }
        if fetch.order.passing && fetch.received >= fetch.allowance {
            return Err(Fault::protocol(format!("fetch {number} was sent more than its allowance")));
        }
        if fetch.order.until.is_some_and(|until| batch.begin().offset >= until) {
            return Err(Fault::protocol(format!("fetch {number} ran past where it was to end")));
        }
        check_order(fetch, batch)?;
        fetch.follows = Some((batch.end(), batch.chain_after()));
        fetch.received = fetch.received.saturating_add(batch.len() as u64);
        Ok(Taken::Next { passing: fetch.order.passing })
    }

    /// The peer ended a fetch; whether that is news.
    pub(super) fn end(&mut self, lane: Lane, number: FetchNumber) -> Result<bool, Fault> {
        find(&mut self.fetches, lane, number)?;
        let stopping = self.fetches.remove(&number).is_some_and(|f| f.stopping);
        if stopping {
            self.stopping = self.stopping.saturating_sub(1);
        }
        Ok(!stopping)
    }
}

fn find(fetches: &mut BTreeMap<FetchNumber, Asked>, lane: Lane, number: FetchNumber) -> Result<&mut Asked, Fault> {
    let fetch = fetches
        .get_mut(&number)
        .ok_or_else(|| Fault::protocol(format!("something came for fetch {number}, which is not open")))?;
    if fetch.order.lane != lane {
        return Err(Fault::protocol(format!("something of fetch {number} came on another lane than its own")));
    }
    Ok(fetch)
}

/// Whether a batch stands at `place`, or begins the incarnation that goes on from there.
pub(super) fn follows(batch: &Batch, place: Place, line: FetchLine) -> bool {
    batch.begin() == place || (line == FetchLine::Main && batch.header().previous == Some(place))
}

/// Whether a batch holds the message at `place`.
pub(super) fn contains(batch: &Batch, place: Place) -> bool {
    let begin = batch.begin();
    begin.incarnation == place.incarnation && begin.offset <= place.offset && place.offset < batch.end_offset()
}

fn check_order(fetch: &Asked, batch: &Batch) -> Result<(), Fault> {
    let (number, line) = (fetch.order.number, fetch.order.line);
    match fetch.follows {
        None if contains(batch, fetch.order.from) || follows(batch, fetch.order.from, line) => Ok(()),
        None => Err(Fault::protocol(format!(
            "fetch {number} is from {} but began with the batch {} to {}",
            fetch.order.from,
            batch.begin(),
            batch.end()
        ))),
        Some((end, _)) if !follows(batch, end, line) => {
            Err(Fault::protocol(format!("fetch {number} jumped from {end} to {}", batch.begin())))
        }
        Some((end, chain)) if chain != batch.header().chain_before => {
            Err(Fault::protocol(format!("the chain of fetch {number} is broken at {end}")))
        }
        Some(_) => Ok(()),
    }
}
