//! Invariant 8, at every moment of a run: what a node calls live holds all that its origin held five seconds before, and nothing of
//! it is still to come. Read through status and commit logs alone, by the simulation's own clock.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use seaway_federation_proto::{
    copies::{HoleKind, LogInfo},
    ids::{Incarnation, LogName, Offset},
};

use super::{
    check::Violation,
    node::{OwnEnds, SimNode},
    truth::Truth,
};

/// After so long a copy that lacks something may not be called live any more.
const BOUND: Duration = Duration::from_secs(5);
/// How often status is read.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Lies told of one run are alike: these do.
const VIOLATIONS_MAX: usize = 8;

/// What origins held when.
#[derive(Debug, Default)]
pub struct Honesty {
    held: VecDeque<(Duration, BTreeMap<usize, OwnEnds>)>,
    next: Duration,
    lies: usize,
    /// Copies that were called live when they were looked at.
    pub called_live: u64,
}

fn reaches(info: &LogInfo, incarnation: Incarnation, end: Offset) -> bool {
    let past = info.end.incarnation >= incarnation && info.end.offset >= end;
    past || info.incarnations.iter().any(|i| i.incarnation == incarnation && i.end >= end)
}

impl Honesty {
    /// Reads every edge broker's status, if it is time again.
    pub fn look(&mut self, now: Duration, nodes: &[SimNode], truth: &Truth, found: &mut Vec<Violation>) {
        if now < self.next || self.lies >= VIOLATIONS_MAX {
            return;
        }
        self.next = now + LOOK_INTERVAL;
        let ends = nodes.iter().enumerate().filter(|(_, node)| node.is_edge() && node.is_up());
        self.held.push_back((now, ends.map(|(index, node)| (index, node.own_ends())).collect()));
        while self.held.get(1).is_some_and(|(at, _)| *at + BOUND <= now) {
            self.held.pop_front();
        }
        let before = self.held.front().filter(|(at, _)| *at + BOUND <= now).map(|(_, ends)| ends.clone());
        for node in nodes.iter().filter(|node| node.is_edge() && node.is_up()) {
            for log in node.logs().into_iter().filter(|log| log.origin != node.name().site) {
                if node.status(&log).is_none_or(|status| !status.starts_with("live")) {
                    continue;
                }
                self.called_live += 1;
                if let Some(lacks) = lacks(node, &log, nodes, before.as_ref(), truth) {
                    self.lies += 1;
                    let what = format!("{} calls {log} live at {now:?}, but {lacks}", node.name());
                    found.push(Violation { invariant: 8, what });
                }
            }
        }
    }
}

/// What a copy that is called live lacks.
fn lacks(
    node: &SimNode,
    log: &LogName,
    nodes: &[SimNode],
    before: Option<&BTreeMap<usize, OwnEnds>>,
    truth: &Truth,
) -> Option<String> {
    let info = node.submitted(log)?;
    if let Some(hole) = info.holes.iter().find(|hole| hole.kind == HoleKind::Pending) {
        return Some(format!("{hole:?} is still to come"));
    }
    let (index, origin) = nodes.iter().enumerate().find(|(_, n)| n.is_edge() && n.name().site == log.origin)?;
    // An origin that lost what it held owes it to nobody.
    if truth.losses_of(&origin.name().to_string()) > 0 {
        return None;
    }
    let held = before?.get(&index)?.get(log)?;
    let missing = held.iter().find(|(incarnation, end)| !reaches(&info, **incarnation, **end))?;
    Some(format!("it ends at {}, and its origin held {missing:?} {BOUND:?} before", info.end))
}
