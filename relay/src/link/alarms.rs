//! What people should know: every report counted and logged, the newest kept; bounded.
//!
//! Of one kind and one subject (a log, a site) the newest text is kept; where a kind has too many subjects, the one not
//! heard of for longest gives way and is only counted.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use seaway_federation_proto::replication::Report;

use crate::node::Alarm;

/// Most alarms kept, of all kinds.
pub const ALARMS_MAX: usize = 256;
/// Lines of one kind in the log within [`LOG_WINDOW_US`].
const LOG_LINES_MAX: u32 = 16;
/// Microseconds.
const LOG_WINDOW_US: u64 = 60_000_000;

#[derive(Debug)]
struct Kept {
    alarm: Alarm,
    /// Order of the last report.
    at: u64,
}

#[derive(Debug, Default)]
struct Logged {
    since_us: u64,
    lines: u32,
    silent: u64,
}

#[derive(Debug, Default)]
struct State {
    kept: BTreeMap<(&'static str, String), Kept>,
    logged: BTreeMap<&'static str, Logged>,
    reports: u64,
}

/// All alarms since the start.
#[derive(Debug, Default)]
pub struct Alarms {
    state: Mutex<State>,
}

impl Alarms {
    /// Counts a report, and logs it: of one kind no more than some lines a minute.
    pub fn raise(&self, report: Report, wall_us: u64) {
        let mut state = self.state.lock();
        state.logged.entry(report.name).or_default().log(&report, wall_us);
        state.keep(report, wall_us);
    }

    /// As [`Alarms::raise`], for what is in the program's log already; answers whether it was not kept yet.
    pub fn note(&self, report: Report, wall_us: u64) -> bool {
        self.state.lock().keep(report, wall_us)
    }

    /// Takes the alarms of a kind away: what they say is over.
    pub fn clear(&self, name: &str) {
        self.state.lock().kept.retain(|(kind, _), _| *kind != name);
    }

    /// Takes the alarm of one subject away.
    pub fn clear_one(&self, name: &'static str, subject: &str) {
        self.state.lock().kept.remove(&(name, subject.to_owned()));
    }

    /// All of them, in order of name.
    pub fn list(&self) -> Vec<Alarm> {
        self.state.lock().kept.values().map(|kept| kept.alarm.clone()).collect()
    }
}

impl Logged {
    fn log(&mut self, report: &Report, wall_us: u64) {
        if wall_us.saturating_sub(self.since_us) >= LOG_WINDOW_US {
            if self.silent > 0 {
                tracing::warn!(alarm = report.name, more = self.silent, "further alarms of this kind were not logged");
            }
            *self = Self { since_us: wall_us, ..Self::default() };
        }
        if self.lines < LOG_LINES_MAX {
            self.lines += 1;
            tracing::warn!(alarm = report.name, "{}", report.text);
        } else {
            self.silent = self.silent.saturating_add(1);
        }
    }
}

impl State {
    /// Answers whether it was not kept yet.
    fn keep(&mut self, report: Report, wall_us: u64) -> bool {
        self.reports = self.reports.saturating_add(1);
        let at = self.reports;
        let subject = if report.subject.is_empty() { &report.text } else { &report.subject };
        let key = (report.name, subject.clone());
        if let Some(known) = self.kept.get_mut(&key) {
            known.alarm.count = known.alarm.count.saturating_add(1);
            known.alarm.report = report;
            known.alarm.last_us = wall_us;
            known.at = at;
            return false;
        }
        if self.kept.len() >= ALARMS_MAX {
            self.make_room();
        }
        self.kept.insert(key, Kept { alarm: Alarm { report, since_us: wall_us, last_us: wall_us, count: 1 }, at });
        true
    }

    /// Of the kind with most alarms the one not heard for longest goes; its count goes on with the next one of its kind.
    fn make_room(&mut self) {
        let mut kinds: BTreeMap<&'static str, usize> = BTreeMap::new();
        for (name, _) in self.kept.keys() {
            *kinds.entry(name).or_default() += 1;
        }
        let Some((largest, _)) = kinds.into_iter().max_by_key(|(_, count)| *count) else { return };
        let of_kind = |state: &Self| {
            let oldest = state.kept.iter().filter(|((name, _), _)| *name == largest).min_by_key(|(_, kept)| kept.at);
            oldest.map(|(key, _)| key.clone())
        };
        let Some(gone) = of_kind(self).and_then(|key| self.kept.remove(&key)) else { return };
        if let Some(next) = of_kind(self).and_then(|key| self.kept.get_mut(&key)) {
            next.alarm.count = next.alarm.count.saturating_add(gone.alarm.count);
            next.alarm.since_us = next.alarm.since_us.min(gone.alarm.since_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_there_were_the_newest_are_kept_and_all_are_counted() {
        let alarms = Alarms::default();
        alarms.raise(Report { name: "range-lost", subject: String::new(), text: "rare".into() }, 1);
        for number in 0..1000 {
            alarms.raise(Report { name: "fork", subject: String::new(), text: format!("at {number}") }, number);
        }
        alarms.raise(Report { name: "range-lost", subject: String::new(), text: "another".into() }, 1001);
        let list = alarms.list();
        let of = |name: &str| list.iter().filter(|a| a.report.name == name).collect::<Vec<_>>();
        assert_eq!(list.len(), ALARMS_MAX);
        assert_eq!(of("range-lost").len(), 2, "a rare kind does not give way to a frequent one");
        assert!(of("fork").iter().any(|a| a.report.text == "at 999"));
        assert_eq!(of("fork").iter().map(|a| a.count).sum::<u64>(), 1000);
        assert_eq!(of("fork").iter().map(|a| a.since_us).min(), Some(0));
        alarms.raise(Report { name: "fork", subject: String::new(), text: "at 999".into() }, 2000);
        assert_eq!(alarms.list().iter().map(|a| a.count).sum::<u64>(), 1003);
    }

    #[test]
    fn of_one_subject_the_newest_text_is_kept() {
        let alarms = Alarms::default();
        let report = |subject: &str, text: &str| Report {
            name: "range-lost",
            subject: subject.to_owned(),
            text: text.to_owned(),
        };
        alarms.raise(report("a log", "up to 5"), 1);
        alarms.raise(report("another log", "up to 7"), 2);
        alarms.raise(report("a log", "up to 9"), 3);
        let list = alarms.list();
        let told: Vec<_> = list.iter().map(|a| (a.report.text.as_str(), a.since_us, a.count)).collect();
        assert_eq!(told, [("up to 9", 1, 2), ("up to 7", 2, 1)]);
    }

    #[test]
    fn what_is_over_is_taken_away_and_told_anew() {
        let alarms = Alarms::default();
        let report = |name, text: &str| Report { name, subject: String::new(), text: text.to_owned() };
        assert!(alarms.note(report("full", "10 bytes free"), 1));
        assert!(!alarms.note(report("full", "10 bytes free"), 2));
        assert!(alarms.note(report("full", "9 bytes free"), 3));
        alarms.raise(report("other", "stays"), 4);
        alarms.clear("full");
        assert_eq!(alarms.list().iter().map(|alarm| alarm.report.name).collect::<Vec<_>>(), ["other"]);
        assert!(alarms.note(report("full", "10 bytes free"), 5), "the next time is a first time");
    }
}
