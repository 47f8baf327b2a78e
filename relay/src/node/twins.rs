//! Two processes under one node's name and certificate: a copied machine, or a second start with another data directory.
//!
//! Each neighbour keeps the link of whichever came first while that is alive, and refuses the other, which learns it by the
//! code with which it is refused. A process that was just restarted may be refused once, while its neighbour still hears its
//! predecessor's last datagrams; so only what was refused twice running counts.
//!
//! Pure: time is an argument.

use std::{collections::BTreeMap, time::Duration};

use seaway_federation_proto::{ids::NodeName, replication::Report};

/// Refusals running after which a name is held to be used twice.
const REFUSALS: u32 = 2;
/// A neighbour's second process that did not try again for this long is gone; its waits between two attempts are shorter.
const QUIET: Duration = Duration::from_secs(60);
/// Most neighbours of which two processes are remembered; each has a certificate of the federation's.
const PEERS_MAX: usize = 1024;

/// Name of the alarm.
pub(super) const TWO_NODES: &str = "two-nodes-one-name";

#[derive(Debug)]
struct Refused {
    times: u32,
    at: Duration,
    text: String,
    reported: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// By the neighbour that refused this process.
    here: BTreeMap<NodeName, Refused>,
    /// By the neighbour of which a second process was refused.
    there: BTreeMap<NodeName, Refused>,
    /// Subjects of alarms that are over and not told of yet.
    over: Vec<String>,
}

/// What changed since the last look.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Alarms that came up.
    pub(super) raise: Vec<Report>,
    /// Subjects of those that are over.
    pub(super) over: Vec<String>,
}

/// Subject of the alarm about this process, apart from that about two of the neighbour's.
fn here(peer: &NodeName) -> String {
    format!("this node at {peer}")
}

fn count(refused: &mut BTreeMap<NodeName, Refused>, peer: &NodeName, text: String, now: Duration) {
    if let Some(known) = refused.get_mut(peer) {
        (known.times, known.at, known.text) = (known.times.saturating_add(1), now, text);
    } else if refused.len() < PEERS_MAX {
        refused.insert(peer.clone(), Refused { times: 1, at: now, text, reported: false });
    }
}

impl Twins {
    /// A neighbour refused this process, since it is linked with another one of the same name.
    pub(super) fn refused_here(&mut self, peer: &NodeName, now: Duration) {
        let text = format!(
            "{peer} is linked with another process of this node's name; stop one of the two, or give it a name and certificate of its own"
        );
        count(&mut self.here, peer, text, now);
    }

    /// An attempt towards a neighbour ended otherwise.
    pub(super) fn not_refused_here(&mut self, peer: &NodeName) {
        self.over.extend(self.here.remove(peer).filter(|r| r.reported).map(|_| here(peer)));
    }

    /// This process refused a second one of a neighbour's name.
    pub(super) fn refused_there(&mut self, peer: &NodeName, text: String, now: Duration) {
        count(&mut self.there, peer, text, now);
    }

    /// Why this process would take no messages: it is a second one at some neighbour.
    pub(super) fn taken(&self) -> Option<&str> {
        self.here.values().find(|r| r.times >= REFUSALS).map(|r| r.text.as_str())
    }

    /// Forgets what is over; `is_linked` tells of neighbours.
    pub(super) fn look(&mut self, now: Duration, is_linked: impl Fn(&NodeName) -> bool) -> Told {
        let linked: Vec<NodeName> = self.here.keys().filter(|peer| is_linked(peer)).cloned().collect();
        for peer in linked {
            self.not_refused_here(&peer);
        }
        let mut told = Told { over: std::mem::take(&mut self.over), raise: Vec::new() };
        self.there.retain(|peer, refused| {
            let stays = now.saturating_sub(refused.at) < QUIET;
            if !stays && refused.reported {
                told.over.push(peer.to_string());
            }
            stays
        });
        let here = self.here.iter_mut().map(|(peer, refused)| (here(peer), refused));
        for (subject, refused) in here.chain(self.there.iter_mut().map(|(peer, refused)| (peer.to_string(), refused))) {
            if refused.times >= REFUSALS && !std::mem::replace(&mut refused.reported, true) {
                let text = refused.text.clone();
                told.raise.push(Report { name: TWO_NODES, subject, text });
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn peer() -> NodeName {
        "eu/edge".parse().unwrap()
    }

    fn look(twins: &mut Twins, at_s: u64, linked: bool) -> (Vec<String>, Vec<String>) {
        let told = twins.look(Duration::from_secs(at_s), |_| linked);
        (told.raise.into_iter().map(|r| r.subject).collect(), told.over)
    }

    #[test]
    fn a_name_is_taken_after_two_refusals_and_until_there_is_a_link() {
        let mut twins = Twins::default();
        twins.refused_here(&peer(), Duration::ZERO);
        assert_eq!(look(&mut twins, 1, false), (vec![], vec![]));
        assert!(twins.taken().is_none(), "it may have been restarted just now");
        twins.refused_here(&peer(), Duration::from_secs(2));
        assert!(twins.taken().unwrap().contains("eu/edge"));
        assert_eq!(look(&mut twins, 2, false), (vec![here(&peer())], vec![]));
        assert_eq!(look(&mut twins, 500, false), (vec![], vec![]), "it is told once, and stays");
        assert_eq!(look(&mut twins, 501, true), (vec![], vec![here(&peer())]));
        assert!(twins.taken().is_none());
    }

    #[test]
    fn refusals_with_something_else_between_do_not_count() {
        let mut twins = Twins::default();
        twins.refused_here(&peer(), Duration::ZERO);
        twins.not_refused_here(&peer());
        twins.refused_here(&peer(), Duration::ZERO);
        assert!(twins.taken().is_none());
    }

    #[test]
    fn a_neighbours_second_process_is_told_of_until_it_tries_no_more() {
        let mut twins = Twins::default();
        for at in [0, 3] {
            twins.refused_there(&peer(), "two".to_owned(), Duration::from_secs(at));
        }
        assert_eq!(look(&mut twins, 3, true).0, [peer().to_string()]);
        assert!(twins.taken().is_none(), "that is not this node's name");
        assert_eq!(look(&mut twins, 62, true), (vec![], vec![]));
        assert_eq!(look(&mut twins, 63, true), (vec![], vec![peer().to_string()]));
    }
}
