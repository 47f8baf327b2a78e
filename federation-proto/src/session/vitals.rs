//! Whether a link carries what it should, judged from what its session wrote down: pure, with time as an argument, so that
//! whoever asks gets the truth of that very moment and not of the session's last look.
//!
//! A link is `live` only while probes come back and what is due goes on. Each way in which it can stand still, and what notices
//! it (`patience` is two probe intervals and the last round trip, 400 ms and it unless configured otherwise):
//!
//! | what happened | what notices it | within |
//! |---|---|---|
//! | the line is black-holed; the peer's process stopped | no probe is answered, nothing is heard | patience and one interval |
//! | loss towards the peer only | the peer is heard, no probe is answered | the same |
//! | loss from the peer only | as black-holed: nothing is heard; the other end sees the row above | the same |
//! | the peer grants no credit | a batch is due and the lane's credit does not hold it | the same, and one interval |
//! | the line takes probes and no batches | a batch is due, has credit, and none was taken, of no lane | the same |
//! | live traffic takes all there is | a batch of the backlog is due, and live ones go: `catching-up` | the same |
//! | the own disk does not give what the peer asked for | a read is out and nothing came | the same |
//! | this node cannot store what comes (disk full, stuck, commit log stopped) | the driver says it ([`Vitals::here`]) | patience |
//! | the peer cannot store what it is sent | it says so (`Condition`), be the credit used up or not | that and half a round trip |
//! | this node itself does not run | the session has not looked for a second | a second |
//!
//! What a rate limit holds back (here, or credit at the peer, which says so by `Condition`) is none of these: the link is `catching-up`,
//! with `limited` in its reason, while something waits for longer than patience.
//!
//! Beyond `dead_after` (2 s unless configured otherwise) without a sign of the peer the session ends: the link is `down`.

use std::time::Duration;

/// A session looks at itself with each probe; one that has not for so long does not run.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// What keeps that which is due to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The peer's credit.
    Credit,
    /// The line takes nothing.
    Line,
    /// This node's own disk.
    Disk,
    /// This node's own rate limit.
    Limit,
}

/// Something that lasts: since when, and what, in words that stay the same while it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: Duration,
    /// What.
    pub what: String,
    /// Whether nothing can be heard at all, rather than batches not be stored.
    pub silent: bool,
}

impl Trouble {
    /// Batches that come are not stored.
    #[must_use]
    pub fn storing(since: Duration, what: String) -> Self {
        Self { since, what, silent: false }
    }

    fn silent(since: Duration, what: &str) -> Self {
        Self { since, what: what.to_owned(), silent: true }
    }

    /// With how long it has lasted.
    #[must_use]
    pub fn words(&self, now: Duration) -> String {
        format!("{}, for {}", self.what, lasting(now.saturating_sub(self.since)))
    }
}

/// A duration as people read it.
#[must_use]
pub fn lasting(time: Duration) -> String {
    match time.as_millis() {
        ms if ms < 10_000 => format!("{ms} ms"),
        _ => format!("{} s", time.as_secs()),
    }
}

/// What a session knows of its liveness; times since the session's own moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// When this was written down.
    pub looked: Duration,
    /// How long anything that is due may take.
    pub patience: Duration,
    /// When the oldest probe that has no answer yet was sent.
    pub unanswered: Option<Duration>,
    /// When anything came from the peer last.
    pub heard: Duration,
    /// Since when something is due to the peer and nothing went, and why.
    pub waits: Option<(Duration, Wait)>,
    /// When the oldest of what is due to the peer came here.
    pub oldest: Option<Duration>,
    /// Whether a lane that something is due on gets nothing because another goes first.
    pub yields: bool,
    /// Bytes that the peer has granted and that are not used, by lane in the order of [`super::LANES`].
    pub credit: [u64; super::LANES.len()],
    /// Why this node stores nothing of what the peer sends.
    pub here: Option<Trouble>,
    /// The same of the peer, as it says.
    pub there: Option<Trouble>,
    /// Rates by which this node holds back what it sends, or lets the peer send; in words, while they do.
    pub limited: Limits,
    /// The same of the peer, as it says.
    pub limited_there: Limits,
}

/// Rates that hold something back at one end of a link, in words; empty for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// What it sends at most.
    pub sends: String,
    /// What it takes at most.
    pub takes: String,
    /// Since when they do.
    pub since: Duration,
}

/// How a link stands that is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Probes pass, and what is due moves.
    Live,
    /// It moves, but more slowly than it comes.
    CatchingUp,
    /// It does not.
    Stalled,
}

/// What [`Vitals::judge`] finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// How the link stands.
    pub standing: Standing,
    /// Since when; `None` for live.
    pub since: Option<Duration>,
    /// Why, in words; empty for live.
    pub reason: String,
}

impl Vitals {
    /// How the link stands at this moment, which may be later than the last look.
    #[must_use]
    pub fn judge(&self, now: Duration) -> Judgement {
        let found = |standing, trouble: &Trouble| Judgement {
            standing,
            since: Some(trouble.since),
            reason: trouble.words(now),
        };
        if let Some(trouble) = self.incoming(now).or_else(|| self.outgoing(now)) {
            return found(Standing::Stalled, &trouble);
        }
        // What a limit holds back is read no further ahead, and so does not grow old here.
        if let Some((limit, since)) = self.limit_out().filter(|_| self.waits.is_some()) {
            let what = format!("limited: {limit}: more waits for it");
            return found(Standing::CatchingUp, &Trouble::storing(since, what));
        }
        match self.oldest.filter(|at| self.is_late(now, *at)) {
            Some(since) => {
                let what = match self.yields {
                    true => "live traffic goes first: the backlog waits for it",
                    false => "the line or the peer takes less than comes: the oldest batch for it waits",
                };
                found(Standing::CatchingUp, &Trouble::storing(since, what.to_owned()))
            }
            None => Judgement { standing: Standing::Live, since: None, reason: String::new() },
        }
    }

    /// Why what comes over this link does not arrive, or not all of it: what concerns the copies that are fed by it.
    #[must_use]
    pub fn incoming(&self, now: Duration) -> Option<Trouble> {
        if now.saturating_sub(self.looked) > SILENT_MAX.max(self.patience) {
            let what = "this link's own task has not run; this node is overloaded or was stopped";
            return Some(Trouble::silent(self.looked, what));
        }
        if let Some(sent) = self.unanswered.filter(|sent| self.is_late(now, *sent)) {
            return Some(if self.is_late(now, self.heard) {
                Trouble::silent(self.heard, "nothing was heard of the peer; it has stopped, or the line is broken")
            } else {
                let what = "the peer is heard but answers no probe; what this node sends does not reach it, or it is overloaded";
                Trouble::silent(sent, what)
            });
        }
        let lasts = |trouble: &&Trouble| self.is_late(now, trouble.since);
        if let Some(here) = self.here.as_ref().filter(lasts) {
            let what = format!("this node stores nothing that comes: {}", here.what);
            return Some(Trouble::storing(here.since, what));
        }
        let there = self.there.as_ref()?;
        Some(Trouble::storing(there.since, format!("the peer stores nothing that comes: {}", there.what)))
    }

    /// Which rate limit holds back what is due to the peer, and since when.
    fn limit_out(&self) -> Option<(String, Duration)> {
        let of = |limit: &str, who, since| (!limit.is_empty()).then(|| (format!("{who} at most {limit}"), since));
        let here = of(&self.limited.sends, "this node sends it", self.limited.since);
        here.or_else(|| of(&self.limited_there.takes, "the peer takes", self.limited_there.since))
    }

    /// Which rate limit holds back what comes, in words.
    #[must_use]
    pub fn limit_in(&self) -> Option<String> {
        let of = |limit: &str, who| (!limit.is_empty()).then(|| format!("{who} at most {limit}"));
        let there = of(&self.limited_there.sends, "which sends");
        there.or_else(|| of(&self.limited.takes, "of which this node takes"))
    }

    /// Why what is due to the peer does not go.
    fn outgoing(&self, now: Duration) -> Option<Trouble> {
        let (since, wait) = self.waits.filter(|(since, _)| self.is_late(now, *since))?;
        let what = match wait {
            Wait::Limit => return None,
            Wait::Credit if !self.limited_there.takes.is_empty() => return None,
            Wait::Credit => "the peer has granted no room; its disk may be full or slow",
            Wait::Line => "the line takes no batches, though probes pass",
            Wait::Disk => "this node's disk has not given what the peer asked for",
        };
        Some(Trouble::storing(since, what.to_owned()))
    }

    fn is_late(&self, now: Duration, at: Duration) -> bool {
        now.saturating_sub(at) > self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Probes each 200 ms, answered within 20.
    fn calm(now: Duration) -> Vitals {
        Vitals { looked: now, patience: 420 * MS, heard: now, ..Vitals::default() }
    }

    fn at(vitals: &Vitals, ms: u32) -> (Standing, String) {
        let judged = vitals.judge(ms * MS);
        (judged.standing, judged.reason)
    }

    #[test]
    fn a_black_hole_is_noticed_at_the_very_moment_at_which_somebody_asks() {
        let vitals = Vitals { unanswered: Some(10_200 * MS), heard: 10_050 * MS, ..calm(10_400 * MS) };
        assert_eq!(at(&vitals, 10_620), (Standing::Live, String::new()));
        let (standing, reason) = at(&vitals, 10_621);
        assert_eq!(standing, Standing::Stalled);
        assert_eq!(reason, "nothing was heard of the peer; it has stopped, or the line is broken, for 571 ms");
        assert_eq!(vitals.judge(10_621 * MS).since, Some(10_050 * MS));
    }

    #[test]
    fn loss_one_way_is_told_from_silence() {
        let vitals = Vitals { unanswered: Some(10_200 * MS), heard: 10_600 * MS, ..calm(10_600 * MS) };
        let (standing, reason) = at(&vitals, 10_700);
        assert_eq!(standing, Standing::Stalled);
        assert!(reason.starts_with("the peer is heard but answers no probe"), "{reason}");
    }

    #[test]
    fn what_is_due_and_does_not_go_is_stalled_and_what_goes_too_slowly_is_behind() {
        for (wait, says) in
            [(Wait::Credit, "granted no room"), (Wait::Line, "no batches"), (Wait::Disk, "this node's disk")]
        {
            let vitals = Vitals { waits: Some((10_000 * MS, wait)), ..calm(10_400 * MS) };
            assert_eq!(at(&vitals, 10_420).0, Standing::Live);
            let (standing, reason) = at(&vitals, 10_421);
            assert_eq!(standing, Standing::Stalled);
            assert!(reason.contains(says) && reason.ends_with(", for 421 ms"), "{reason}");
        }
        let vitals = Vitals { oldest: Some(8_000 * MS), ..calm(10_400 * MS) };
        let (standing, reason) = at(&vitals, 10_400);
        assert_eq!(standing, Standing::CatchingUp);
        assert!(reason.contains("takes less than comes") && reason.ends_with(", for 2400 ms"), "{reason}");
        // What does not go at all is worse.
        let vitals = Vitals { waits: Some((8_000 * MS, Wait::Line)), ..vitals };
        assert_eq!(at(&vitals, 10_400).0, Standing::Stalled);
    }

    #[test]
    fn what_a_rate_holds_back_is_not_stalled_and_says_so() {
        let limits =
            |sends: &str, takes: &str| Limits { sends: sends.to_owned(), takes: takes.to_owned(), since: 10_000 * MS };
        let waits = |wait| Vitals { waits: Some((8_000 * MS, wait)), oldest: Some(8_000 * MS), ..calm(10_400 * MS) };
        let here = Vitals { limited: limits("5 bytes a second", ""), ..waits(Wait::Limit) };
        let (standing, reason) = at(&here, 10_400);
        assert_eq!(standing, Standing::CatchingUp);
        assert_eq!(reason, "limited: this node sends it at most 5 bytes a second: more waits for it, for 400 ms");
        let idle = Vitals { waits: None, oldest: None, ..here.clone() };
        assert_eq!(at(&idle, 10_400).0, Standing::Live, "nothing is held back any more");
        let there = Vitals { limited_there: limits("", "7 bytes a second"), ..waits(Wait::Credit) };
        assert!(at(&there, 10_400).1.starts_with("limited: the peer takes at most 7 bytes a second"));
        assert_eq!(there.limit_in(), None);
        let line = Vitals { limited: limits("5 bytes a second", ""), ..waits(Wait::Line) };
        assert_eq!(at(&line, 10_400).0, Standing::Stalled, "a limit excuses nothing else");
        let unsaid = Vitals { limited: limits("5 bytes a second", ""), ..waits(Wait::Credit) };
        assert_eq!(at(&unsaid, 10_400).0, Standing::Stalled);
    }

    #[test]
    fn either_end_that_stores_nothing_stalls_the_link_and_says_where() {
        let trouble = |ms: u32| Some(Trouble::storing(ms * MS, "its disk is nearly full".into()));
        let here = Vitals { here: trouble(10_000), ..calm(10_400 * MS) };
        assert_eq!(at(&here, 10_420).0, Standing::Live, "a moment's wait for room is no fault");
        assert!(at(&here, 10_421).1.starts_with("this node stores nothing that comes: its disk is nearly full"));
        let there = Vitals { there: trouble(10_399), ..calm(10_400 * MS) };
        assert!(at(&there, 10_400).1.starts_with("the peer stores nothing that comes: its disk is nearly full"));
    }

    #[test]
    fn a_session_that_does_not_run_is_not_live() {
        assert_eq!(at(&calm(10_000 * MS), 11_000).0, Standing::Live);
        let (standing, reason) = at(&calm(10_000 * MS), 11_001);
        assert_eq!(standing, Standing::Stalled);
        assert!(reason.contains("has not run"), "{reason}");
    }
}
