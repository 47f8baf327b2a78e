//! What the machine knows, as it is asked from outside.

use super::*;

impl Hub {
    /// The sites registered for a topic of this origin, in order of name.
    pub fn registered(&self, topic: &Topic) -> Vec<Site> {
        self.core.lock().machine.registered(topic)
    }

    /// Whether a site has stated to hold the message at this place of a log of this origin.
    pub fn site_holds(&self, site: &Site, log: &LogName, place: Place) -> bool {
        self.core.lock().machine.site_holds(site, log, place)
    }

    /// See [`Replication::still_needed`].
    pub fn still_needed(&self, after: Option<&LogName>, count: usize) -> Vec<(LogName, Vec<Need>)> {
        self.core.lock().machine.still_needed(after, count)
    }

    /// See [`Replication::last_heard`].
    pub fn last_heard(&self, now: Duration) -> Vec<(Site, Duration)> {
        self.core.lock().machine.last_heard(now)
    }

    /// See [`Replication::removals`].
    pub fn removals(&self) -> Vec<Removal> {
        self.core.lock().machine.removals()
    }

    /// See [`Replication::removed`].
    pub fn removed(&self, site: &Site) -> Option<String> {
        self.core.lock().machine.removed(site)
    }

    /// See [`Replication::only_there`].
    pub fn only_there(&self, site: &Site) -> Vec<OnlyThere> {
        self.core.lock().machine.only_there(site)
    }

    /// Whether a site was ever heard of; see [`Replication::knows_site`].
    pub fn knows_site(&self, site: &Site) -> bool {
        self.core.lock().machine.knows_site(site)
    }

    /// State of a log.
    pub fn copy_status(&self, now: Duration, log: &LogName) -> Option<CopyStatus> {
        self.core.lock().machine.copy_status(now, log)
    }

    /// See [`Replication::find`].
    ///
    /// # Errors
    /// A sentence: too much is asked already.
    pub fn find(&self, now: Duration, log: &LogName, place: Place) -> Result<u64, String> {
        let mut asked = Err(String::new());
        self.act(|core| asked = core.machine.find(now, log, place));
        asked
    }

    /// See [`Replication::found`].
    pub fn found(&self, number: u64, log: &LogName) -> Option<Finding> {
        self.core.lock().machine.found(number, log)
    }

    /// See [`Replication::find_over`].
    pub fn find_over(&self, number: u64) {
        self.core.lock().machine.find_over(number);
    }

    /// See [`Replication::topology`].
    pub fn topology(&self, now: Duration) -> (Vec<KnownNode>, Vec<KnownLink>) {
        self.core.lock().machine.topology(now)
    }

    /// See [`Replication::explain_way`].
    ///
    /// # Errors
    /// A sentence: a site is not known here.
    pub fn explain_way(&self, from: &Site, to: &Site) -> Result<ExplainedWay, String> {
        self.core.lock().machine.explain_way(from, to)
    }

    /// The sites known.
    pub fn sites(&self) -> Vec<SiteStatus> {
        self.core.lock().machine.sites()
    }

    /// Counters by cause.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let core = self.core.lock();
        let mut all = core.machine.counters();
        all.push(("one_way_without_link", core.one_way_dropped));
        drop(core);
        all.push(("changes_dropped", self.stores.dropped()));
        all
    }

    /// Changes, and what waits behind them, waiting for the commit log, and their bound, in bytes.
    pub fn waiting(&self) -> (u64, u64) {
        (self.stores.waiting(), Stores::waiting_max())
    }

    /// The edge broker that counts for this node's site, where it is another one; see [`Replication::outdone_by`].
    pub fn outdone_by(&self) -> Option<NodeName> {
        self.core.lock().machine.outdone_by()
    }

    /// See [`Replication::is_second_of_its_name`].
    pub fn is_second_of_its_name(&self) -> bool {
        self.core.lock().machine.is_second_of_its_name()
    }

    /// Whether a session with this neighbour is up.
    pub fn is_linked_with(&self, node: &NodeName) -> bool {
        self.core.lock().machine.is_linked_with(node)
    }

    /// Whether a session with any neighbour is up.
    pub fn is_linked(&self) -> bool {
        self.core.lock().machine.is_linked()
    }

    /// Alarms since the start.
    pub fn alarms(&self) -> Vec<Alarm> {
        self.alarms.list()
    }
}
