//! Serving what neighbours fetch: from the own copy where it holds the place, else read through from further towards the origin.
//!
//! A fetch that is read through is fed by a *passing* fetch of ours, which nobody stores and which may bring only as much
//! as its asker has room for, and as its link's pool has ([`super::passes`]). It ends where the own copy can take over.
//! "Not here" is only ever the origin's answer.

use std::collections::BTreeMap;

use super::{
    Change, LinkId, Output, Replication,
    fetching::FetchOwner,
    lines::{self, Where},
    logs::LogState,
    passes::Passing,
};
use crate::{
    copies::{Hole, HoleKind},
    ids::{LogName, Offset, Place},
    session::{FetchEnded, FetchLine, FetchNumber, FetchOrder, NodeKind},
    wire::link::FetchEnd,
};

/// What a passing fetch may bring before its asker's room is known.
const PASS_FIRST_BYTES: u64 = 1024 * 1024;

pub(super) type Asker = (LinkId, FetchNumber);

#[derive(Debug)]
pub(super) struct Served {
    pub(super) order: FetchOrder,
    pub(super) mode: Mode,
    /// Where it was last served from the own copy: what runs outside there again is not served from it once more.
    tried: Option<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// From our copy.
    Own,
    /// Until our copy begins.
    Waiting,
    /// Read through by this fetch of ours.
    Pass(Passing),
}

pub(super) type ServedFetches = BTreeMap<Asker, Served>;

impl Replication {
    pub(super) fn fetch_requested(&mut self, from: LinkId, order: FetchOrder) {
        if !self.links.contains_key(&from) {
            return;
        }
        let asker = (from, order.number);
        let at = order.from;
        let room = if order.passing { order.allowance } else { PASS_FIRST_BYTES };
        self.served.insert(asker, Served { order, mode: Mode::Waiting, tried: None });
        self.decide(asker, at, room);
    }

    pub(super) fn served_outside(&mut self, asker: Asker, next: Place, room: u64) {
        if self.served.contains_key(&asker) {
            self.decide(asker, next, room);
        }
    }

    pub(super) fn served_room(&mut self, asker: Asker, next: Place, passed: u64, room: u64) {
        let Some(served) = self.served.get_mut(&asker) else { return };
        let Mode::Pass(pass) = &mut served.mode else { return };
        pass.at = next;
        if self.take_over(asker) {
            return;
        }
        let Some(served) = self.served.get(&asker) else { return };
        let at_end = self.is_at_known_end(&served.order.log, next);
        self.pass_went_on(asker, passed, room, at_end);
    }

    /// Serves from the own copy what is read through, if the copy holds its place by now, or goes on from it.
    fn take_over(&mut self, asker: Asker) -> bool {
        let Some(Served { order, mode: Mode::Pass(pass), tried }) = self.served.get(&asker) else { return false };
        let at = pass.at;
        let takes = order.towards.is_none() && *tried != Some(at) && self.readable(&order.log, at, order.line, true);
        if takes {
            self.stop_passing(asker);
            self.serve(asker, Some(at));
        }
        takes
    }

    /// Our copy grew: it may have come to where somebody reads through it, who would else go on so until more is sent to him, and
    /// for good where each batch comes here after it came there.
    pub(super) fn take_over_passes(&mut self, log: &LogName) {
        let passes: Vec<Asker> = self.logs.get(log).map(|s| s.passes.iter().copied().collect()).unwrap_or_default();
        for asker in passes {
            self.take_over(asker);
        }
    }

    pub(super) fn served_over(&mut self, asker: Asker) {
        self.stop_passing(asker);
        self.forget_served(asker);
    }

    fn forget_served(&mut self, asker: Asker) -> bool {
        let Some(served) = self.served.remove(&asker) else { return false };
        if served.mode == Mode::Waiting
            && let Some(state) = self.logs.get_mut(&served.order.log)
        {
            state.waiting.retain(|(waiting, _)| *waiting != asker);
        }
        true
    }

    pub(super) fn served_link_down(&mut self, link: LinkId) {
        let gone: Vec<Asker> = self.served.range((link, 0)..=(link, u64::MAX)).map(|(k, _)| *k).collect();
        for asker in gone {
            self.served_over(asker);
        }
    }

    /// Whether our copy answers for this place: it holds it, or the place is its end and the copy goes on.
    /// `held_only`: only what is held, or an end that is fed at present.
    fn readable(&self, log: &LogName, at: Place, line: FetchLine, held_only: bool) -> bool {
        let Some(state) = self.logs.get(log) else { return false };
        let own = self.config.is_origin_of(&log.origin);
        let info = if own { &state.durable } else { &state.submitted };
        let Some(info) = info else { return false };
        match lines::locate(info, at, line) {
            // Nothing will come there before the origin has something.
            Where::AtEnd if state.is_as_blank_as_there() && !own => false,
            Where::Held => true,
            Where::Hole(_) | Where::Outside => false,
            Where::AtEnd if own => true,
            // The end of an incarnation that is not the main line's end does not grow by the main fetch.
            Where::AtEnd if line == FetchLine::Incarnation => !held_only,
            Where::AtEnd => {
                (at == info.end || info.is_blank())
                    && (self.needs(log) || (!held_only && self.routing.upstream(&log.origin).is_none()))
            }
        }
    }

    /// How a peer's fetch that stands at `at` goes on.
    fn decide(&mut self, asker: Asker, at: Place, room: u64) {
        let Some(served) = self.served.get(&asker) else { return };
        let order = served.order.clone();
        let untried = served.tried != Some(at);
        self.stop_passing(asker);
        // What is sent to a named holder is answered by nobody else: the asker wants all that this one has.
        let named_me = order.towards.as_ref() == Some(&self.config.node);
        if self.deleted_here(&order.log, at) {
            return self.end_served(asker, FetchEnd::Deleted, None, "the topic was deleted here");
        }
        if (named_me || order.towards.is_none()) && untried && self.readable(&order.log, at, order.line, false) {
            return self.serve(asker, Some(at));
        }
        if self.config.is_origin_of(&order.log.origin) && (order.towards.is_none() || named_me) {
            return self.answer_as_origin(asker, &order, at);
        }
        if named_me && let Some(hole) = self.hole_at(&order.log, at, order.line) {
            let above = Some(Place { incarnation: hole.incarnation, offset: hole.to });
            return if hole.kind == HoleKind::Pending {
                self.end_served(asker, FetchEnd::NotHere, above, "it is missing here too")
            } else {
                self.end_served(asker, FetchEnd::Lost, above, "it is not held here either, and will not be")
            };
        }
        if named_me {
            let end = self.logs.get(&order.log).and_then(|s| s.end()).unwrap_or(at);
            return self.end_served(asker, FetchEnd::AtEnd, Some(end), "");
        }
        let way = match &order.towards {
            Some(node) => self.routing.towards(node),
            None => self.routing.upstream(&order.log.origin),
        };
        let Some(way) = way.filter(|l| *l != asker.0) else {
            let text = format!("there is no way to {} from {}", order.log.origin, self.config.node);
            return self.end_served(asker, FetchEnd::CannotReach, None, &text);
        };
        if let Some(begin) = self.may_begin_cache(&order, at) {
            return self.begin_cache(asker, &order.log, begin, at);
        }
        if self.comes_anyway(&order, at) {
            return self.wait(asker, &order.log, at);
        }
        self.pass(asker, &order, at, way, room);
    }

    /// The hole of our copy in which a reader stands.
    fn hole_at(&self, log: &LogName, at: Place, line: FetchLine) -> Option<Hole> {
        let info = self.logs.get(log)?.submitted.as_ref()?;
        match lines::locate(info, at, line) {
            Where::Hole(hole) => Some(hole),
            Where::Held | Where::AtEnd | Where::Outside => None,
        }
    }

    fn serve(&mut self, asker: Asker, at: Option<Place>) {
        if let Some(served) = self.served.get_mut(&asker) {
            served.mode = Mode::Own;
            served.tried = at;
            self.out.push_back(Output::Serve(asker.0, asker.1));
        }
    }

    pub(super) fn end_served(&mut self, asker: Asker, end: FetchEnd, at: Option<Place>, text: &str) {
        self.stop_passing(asker);
        if self.forget_served(asker) {
            let answered_by = self.config.node.site.to_string();
            let ended = FetchEnded { number: asker.1, end, at, answered_by, text: text.to_owned() };
            self.out.push_back(Output::EndServed(asker.0, ended));
        }
    }

    /// A place of our own log that we do not hold: only the origin may say so.
    fn answer_as_origin(&mut self, asker: Asker, order: &FetchOrder, at: Place) {
        let info = self.logs.get(&order.log).and_then(|s| s.durable.as_ref());
        let Some(info) = info else {
            return self.end_served(asker, FetchEnd::UnknownPlace, None, "the origin has no such log");
        };
        let begin = info.begin;
        if let Where::Hole(hole) = lines::locate(info, at, order.line) {
            let after = Place { incarnation: hole.incarnation, offset: hole.to };
            return if hole.kind == HoleKind::Pending {
                self.end_served(asker, FetchEnd::Failed, Some(after), "the origin asks others for what it lost there")
            } else {
                self.end_served(
                    asker,
                    FetchEnd::Lost,
                    Some(after),
                    "the origin lost it, and nobody had it when it asked",
                )
            };
        }
        let known = info.incarnations.iter().find(|i| i.incarnation == at.incarnation);
        let older = at.incarnation < begin.incarnation && at.offset <= begin.offset;
        match known {
            Some(own) if at.offset < own.begin => {
                let begin = Place { incarnation: own.incarnation, offset: own.begin };
                self.end_served(asker, FetchEnd::NotHere, Some(begin), "");
            }
            None if older => self.end_served(asker, FetchEnd::NotHere, Some(begin), ""),
            Some(own) => {
                let end = Place { incarnation: own.incarnation, offset: own.end };
                self.end_served(asker, FetchEnd::UnknownPlace, Some(end), "the origin's incarnation ends before");
            }
            None => self.end_served(asker, FetchEnd::UnknownPlace, Some(begin), "the origin knows no such incarnation"),
        }
    }

    /// A relay's copy begins at the first place that a neighbour asks for in order to store it, if the upstream announced
    /// it: nobody may make it stand where the origin never was. A place above the announced end of the newest incarnation
    /// may well be true, but is not known here yet: then the copy begins at that end.
    fn may_begin_cache(&self, order: &FetchOrder, at: Place) -> Option<Place> {
        let storing = !order.passing && !order.no_wait && order.towards.is_none() && order.line == FetchLine::Main;
        if self.config.kind != NodeKind::Relay || !storing || !self.needs(&order.log) {
            return None;
        }
        let state = self.logs.get(&order.log).filter(|s| s.submitted.is_none())?;
        let remote = state.remote.as_ref()?;
        let edge = remote.edge(at.incarnation)?;
        if at.offset < edge.begin {
            return None;
        }
        let newest = remote.tip().incarnation == at.incarnation;
        (newest || at.offset <= edge.end).then(|| Place { offset: at.offset.min(edge.end), ..at })
    }

    /// Whether this is the very place from which our copy goes on by itself: what follows is about to come into it, so that
    /// it is not read through besides.
    fn comes_anyway(&self, order: &FetchOrder, at: Place) -> bool {
        let plain = !order.passing && !order.no_wait && order.towards.is_none() && order.line == FetchLine::Main;
        if !plain || self.stopped.is_some() || !self.needs(&order.log) {
            return false;
        }
        let Some(state) = self.logs.get(&order.log) else { return false };
        let (Some(info), Some(remote), None) = (&state.submitted, &state.remote, &state.gap) else { return false };
        // What our copy cannot take may well be read through.
        if state.refuses || state.none_there {
            return false;
        }
        let missing = match lines::locate(info, at, FetchLine::Main) {
            Where::AtEnd => true,
            Where::Outside => info.incarnations.iter().all(|i| i.incarnation != at.incarnation),
            Where::Held | Where::Hole(_) => false,
        };
        missing && remote.continue_main(&state.edges()) == Some(at)
    }

    /// Each interval: those who wait at the end of a blank copy of ours learn what we learned, that the origin has no such log.
    pub(super) fn tell_none_there(&mut self) {
        if !std::mem::take(&mut self.none_to_tell) {
            return;
        }
        let blank = |log: &LogName| self.logs.get(log).is_some_and(LogState::is_as_blank_as_there);
        let waits = |served: &Served| served.mode == Mode::Own && blank(&served.order.log);
        let waiting: Vec<Asker> = self.served.iter().filter(|(_, s)| waits(s)).map(|(asker, _)| *asker).collect();
        for asker in waiting {
            self.end_served(asker, FetchEnd::UnknownPlace, None, "the origin has no such log");
        }
    }

    fn wait(&mut self, asker: Asker, log: &LogName, at: Place) {
        let Some(state) = self.logs.get_mut(log) else { return };
        state.waiting.push((asker, at));
        if let Some(served) = self.served.get_mut(&asker) {
            (served.mode, served.tried) = (Mode::Waiting, None);
        }
    }

    fn begin_cache(&mut self, asker: Asker, log: &LogName, begin: Place, at: Place) {
        self.wait(asker, log, at);
        let Some(state) = self.logs.get_mut(log) else { return };
        if !state.beginning {
            state.beginning = true;
            self.out.push_back(Output::Store(vec![Change::BeginCopy { log: log.clone(), at: begin, chain: None }]));
        }
    }

    /// Our copy is there now, or what feeds it changed: those who waited for it are decided anew.
    pub(super) fn decide_waiting(&mut self, log: &LogName) {
        // One that is to begin may never do so once nothing is stored any more.
        let stopped = self.stopped.is_some();
        let state = self.logs.get_mut(log).filter(|s| stopped || !s.beginning);
        let waiting = state.map(|s| std::mem::take(&mut s.waiting)).unwrap_or_default();
        for (asker, at) in waiting {
            if self.served.get(&asker).is_some_and(|served| served.mode == Mode::Waiting) {
                self.decide(asker, at, PASS_FIRST_BYTES);
            }
        }
    }

    fn pass(&mut self, asker: Asker, order: &FetchOrder, at: Place, way: LinkId, room: u64) {
        let hops = if order.passing { order.hops } else { self.config.hops };
        if hops == 0 {
            return self.end_served(asker, FetchEnd::Hops, Some(at), "the way is too long, or the routes are changing");
        }
        let Some(number) = self.next_fetch(way, FetchOwner::Pass(asker.0, asker.1)) else {
            return self.end_served(
                asker,
                FetchEnd::CannotReach,
                None,
                "too many fetches are open on the way; ask again",
            );
        };
        let until = match (order.until, self.takes_over_at(order, at)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        // It may bring nothing before the pool allows it.
        let (hops, allowance) = (hops - 1, 0);
        let through = FetchOrder { number, from: at, passing: true, hops, allowance, until, ..order.clone() };
        self.out.push_back(Output::StartFetch(way, through));
        self.out.push_back(Output::Pass((way, number), asker));
        let at_end = self.is_at_known_end(&order.log, at);
        self.begin_passing(asker, (way, number), at, room, at_end);
    }

    /// Whether the upstream has announced nothing above this place.
    fn is_at_known_end(&self, log: &LogName, at: Place) -> bool {
        let tip = self.logs.get(log).and_then(|s| s.remote.as_ref()).map(|r| r.tip());
        tip.is_some_and(|tip| tip.incarnation == at.incarnation && tip.offset <= at.offset)
    }

    /// Where our own copy can take over from a fetch that stands below its begin, on the main line.
    fn takes_over_at(&self, order: &FetchOrder, at: Place) -> Option<Offset> {
        if order.line != FetchLine::Main || order.towards.is_some() {
            return None;
        }
        let info = self.logs.get(&order.log)?.submitted.as_ref()?;
        (at.offset < info.begin.offset && at.incarnation <= info.begin.incarnation).then_some(info.begin.offset)
    }

    /// A passing fetch of ours ended: the fetch that it fed goes on another way, or gets the answer.
    pub(super) fn pass_ended(&mut self, asker: Asker, ended: &FetchEnded) {
        self.stop_passing(asker);
        let Some(served) = self.served.get_mut(&asker) else { return };
        if served.order.until.is_some()
            && ended.end == FetchEnd::Done
            && ended.at.map(|p| p.offset) >= served.order.until
        {
            return self.end_served(asker, FetchEnd::Done, ended.at, "");
        }
        if ended.end == FetchEnd::Done {
            // Our copy takes over; where it was trimmed meanwhile, reading there leads back here.
            return self.serve(asker, ended.at);
        }
        if self.served.remove(&asker).is_some() {
            let passed_on = FetchEnded { number: asker.1, ..ended.clone() };
            self.out.push_back(Output::EndServed(asker.0, passed_on));
        }
    }

    /// The link of a passing fetch is gone: its asker asks again from its own end.
    pub(super) fn pass_lost(&mut self, asker: Asker) {
        let text = format!("{} lost the link on which it read this through", self.config.node);
        self.end_served(asker, FetchEnd::CannotReach, None, &text);
    }
}
