//! Questions about the federation that doors ask: where a message is, which nodes and links there are, which way leads where.

use std::time::Duration;

use seaway_federation_proto::{
    ids::{LogName, Place, Site},
    replication::{ExplainedWay, Finding, KnownLink, KnownNode},
};

use super::{Node, clock::Clock};

/// How often answers are looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Forgets the question when dropped: a caller that left is of no more interest.
struct Open<'a>(&'a Node, u64);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.inner.hub.find_over(self.1);
    }
}

impl Node {
    /// Asks all sites where a message is, and waits until each that can be reached has answered, at most until the deadline.
    ///
    /// # Errors
    /// A sentence: too many such questions are open.
    pub async fn find(&self, log: &LogName, place: Place, deadline: Duration) -> Result<Finding, String> {
        let hub = &self.inner.hub;
        let begun = self.inner.clock.now();
        let number = hub.find(begun, log, place)?;
        let _open = Open(self, number);
        loop {
            let finding = hub.found(number, log).ok_or("the question was given up; ask again")?;
            if !finding.open || self.inner.clock.now().saturating_sub(begun) >= deadline {
                return Ok(finding);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// The nodes ever heard of, and the links that their records state.
    pub fn topology(&self) -> (Vec<KnownNode>, Vec<KnownLink>) {
        self.inner.hub.topology(self.inner.clock.now())
    }

    /// The way from one site to another, as the records tell.
    ///
    /// # Errors
    /// A sentence: a site is not known here.
    pub fn explain_way(&self, from: &Site, to: &Site) -> Result<ExplainedWay, String> {
        self.inner.hub.explain_way(from, to)
    }
}
