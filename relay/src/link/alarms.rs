//! What people should know: every report counted, with its first time; bounded.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use seaway_federation_proto::replication::Report;

use crate::node::Alarm;

/// Most alarms told apart by their text; further ones of a kind are counted together.
pub const ALARMS_MAX: usize = 256;

/// All alarms since the start.
#[derive(Debug, Default)]
pub struct Alarms {
    by_text: Mutex<BTreeMap<(&'static str, String), Alarm>>,
}

impl Alarms {
    /// Counts a report; its first time is logged.
    pub fn raise(&self, report: Report, wall_us: u64) {
        let (name, text) = (report.name, report.text.clone());
        if self.note(report, wall_us) {
            tracing::warn!(alarm = name, "{text}");
        }
    }

    /// As [`Alarms::raise`], for what is in the program's log already; answers whether this is its first time.
    pub fn note(&self, report: Report, wall_us: u64) -> bool {
        let mut alarms = self.by_text.lock();
        let mut key = (report.name, report.text.clone());
        if alarms.len() >= ALARMS_MAX && !alarms.contains_key(&key) {
            key.1.clear();
        }
        if let Some(known) = alarms.get_mut(&key) {
            known.count += 1;
            known.report = report;
            return false;
        }
        alarms.insert(key, Alarm { report, since_us: wall_us, count: 1 });
        true
    }

    /// Takes the alarms of a kind away: what they say is over.
    pub fn clear(&self, name: &str) {
        self.by_text.lock().retain(|(kind, _), _| *kind != name);
    }

    /// All of them, in order of name.
    pub fn list(&self) -> Vec<Alarm> {
        self.by_text.lock().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_taken_away_and_told_anew() {
        let alarms = Alarms::default();
        let report = |name, text: &str| Report { name, text: text.to_owned() };
        assert!(alarms.note(report("full", "10 bytes free"), 1));
        assert!(!alarms.note(report("full", "10 bytes free"), 2));
        assert!(alarms.note(report("full", "9 bytes free"), 3));
        alarms.raise(report("other", "stays"), 4);
        alarms.clear("full");
        assert_eq!(alarms.list().iter().map(|alarm| alarm.report.name).collect::<Vec<_>>(), ["other"]);
        assert!(alarms.note(report("full", "10 bytes free"), 5), "the next time is a first time");
    }
}
