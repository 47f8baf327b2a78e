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
        let mut alarms = self.by_text.lock();
        let mut key = (report.name, report.text.clone());
        if alarms.len() >= ALARMS_MAX && !alarms.contains_key(&key) {
            key.1.clear();
        }
        if let Some(known) = alarms.get_mut(&key) {
            known.count += 1;
            known.report = report;
            return;
        }
        tracing::warn!(alarm = report.name, "{}", report.text);
        alarms.insert(key, Alarm { report, since_us: wall_us, count: 1 });
    }

    /// All of them, in order of name.
    pub fn list(&self) -> Vec<Alarm> {
        self.by_text.lock().values().cloned().collect()
    }
}
