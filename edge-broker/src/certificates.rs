//! Certificates that end soon: told 30, 7 and 1 days before, and when they have ended, as the alarm `certificate-expires`.
//!
//! Whose: this node's for links and door, those of the authorities that it believes, and those of the peers that it is linked with. A
//! link that stands is not ended by a date, on either side; it is the next connection that is refused. So the alarm is what
//! keeps an expiry from being noticed by an outage.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use seaway_federation_proto::replication::Report;
use seaway_relay::{node::Node, transport::expiry::CertificateEnd};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::door::DoorHandle;

/// Name of the alarm.
pub const CERTIFICATE_EXPIRES: &str = "certificate-expires";
/// So many days before its end a certificate is told of; 0: it has ended.
pub const WARN_DAYS: [u64; 4] = [0, 1, 7, 30];
const DAY_US: u64 = 24 * 3600 * 1_000_000;
/// How often certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What was told.
#[derive(Debug, Default)]
pub(crate) struct Expiry {
    /// The warning that each certificate is at, in days.
    told: BTreeMap<CertificateEnd, u64>,
}

/// What is to be told now.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// Alarms to raise.
    pub(crate) raise: Vec<Report>,
    /// Subjects of alarms that are over.
    pub(crate) over: Vec<String>,
}

impl Expiry {
    /// Looks at the certificates in use; each warning is told once.
    pub(crate) fn look(&mut self, now_us: u64, ends: &[CertificateEnd]) -> Told {
        let mut told = Told::default();
        self.told.retain(|end, _| {
            let stays = ends.contains(end) && warning(now_us, end).is_some();
            if !stays {
                told.over.push(subject(end));
            }
            stays
        });
        for end in ends {
            let Some(days) = warning(now_us, end) else { continue };
            let before = self.told.insert(end.clone(), days);
            if before.is_none_or(|before| days < before) {
                told.raise.push(Report { name: CERTIFICATE_EXPIRES, subject: subject(end), text: text(now_us, end) });
            }
        }
        told
    }
}

/// The nearest warning that is due, in days.
fn warning(now_us: u64, end: &CertificateEnd) -> Option<u64> {
    let left_us = end.expires_us.saturating_sub(now_us);
    WARN_DAYS.into_iter().find(|days| left_us <= days.saturating_mul(DAY_US))
}

/// Two authorities may have one name.
fn subject(end: &CertificateEnd) -> String {
    format!("{} {} {}", end.role, end.holder, end.expires_us)
}

fn text(now_us: u64, end: &CertificateEnd) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(end.expires_us) * 1000).ok();
    let at = at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "an unknown time".into());
    let left = Duration::from_micros(end.expires_us.saturating_sub(now_us)).as_secs();
    let when = match (left / 86_400, left / 3600) {
        (_, _) if left == 0 => format!("expired at {at}; links that stand stay, new connections are refused"),
        (0, hours) => format!("expires at {at}, in {hours} h"),
        (days, _) => format!("expires at {at}, in {days} days"),
    };
    let what = match end.role {
        "link" => "the link certificate of this node",
        "link-authority" => "the links' authority",
        "peer" => "the certificate of the peer",
        "door" => "the door's certificate",
        _ => "the authority of the door's clients",
    };
    let todo = match end.role {
        "link" | "door" => "issue a new one (`seaway ca issue`) and run `seaway config reload`",
        "peer" => "renew it there",
        _ => "let two authorities be believed at once while certificates are renewed, then take the old one out",
    };
    format!("{what} ({}) {when}: {todo}", end.holder)
}

/// When all certificates in use end.
pub(crate) fn ends(node: &Node, door: Option<&DoorHandle<Node>>) -> Vec<CertificateEnd> {
    let mut ends = node.certificates();
    ends.extend(door.map(DoorHandle::certificates).unwrap_or_default());
    ends.sort();
    ends.dedup();
    ends
}

/// Looks at the certificates for as long as the node runs.
pub(crate) async fn watch(node: Node, door: Option<DoorHandle<Node>>) {
    let mut expiry = Expiry::default();
    loop {
        let ends = ends(&node, door.as_ref());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let told = expiry.look(u64::try_from(now.as_micros()).unwrap_or(u64::MAX), &ends);
        told.raise.into_iter().for_each(|report| node.raise(report));
        told.over.iter().for_each(|subject| node.withdraw(CERTIFICATE_EXPIRES, subject));
        if let Some(door) = &door {
            door.shared().ends.store(std::sync::Arc::new(ends));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(role: &'static str, days: u64) -> CertificateEnd {
        CertificateEnd { role, holder: "seaway://acme/eu/edge".into(), expires_us: days * DAY_US }
    }

    fn texts(told: Told) -> (Vec<String>, usize) {
        (told.raise.into_iter().map(|report| report.text).collect(), told.over.len())
    }

    #[test]
    fn warnings_come_once_each_at_thirty_seven_and_one_days_and_at_the_end() {
        let (mut expiry, link) = (Expiry::default(), end("link", 100));
        let mut told = Vec::new();
        for hour in 0..=101 * 24 {
            let (raised, over) = texts(expiry.look(hour * DAY_US / 24, std::slice::from_ref(&link)));
            assert_eq!(over, 0);
            told.extend(raised.into_iter().map(|text| (hour, text)));
        }
        let hours: Vec<_> = told.iter().map(|(hour, _)| *hour).collect();
        assert_eq!(hours, [70 * 24, 93 * 24, 99 * 24, 100 * 24]);
        assert!(told[0].1.contains("in 30 days") && told[0].1.contains("seaway config reload"), "{}", told[0].1);
        assert!(told[3].1.contains("expired at 1970-04-11T00:00:00Z"), "{}", told[3].1);
    }

    #[test]
    fn what_is_renewed_or_gone_is_over() {
        let mut expiry = Expiry::default();
        let old = [end("link", 5), end("peer", 3)];
        assert_eq!(texts(expiry.look(0, &old)).0.len(), 2);
        assert_eq!(texts(expiry.look(1, &old)), (vec![], 0));
        let told = expiry.look(2, &[end("link", 365), end("peer", 3)]);
        assert_eq!((told.raise, told.over), (vec![], vec![subject(&old[0])]));
        assert_eq!(texts(expiry.look(3, &[end("link", 365)])), (vec![], 1), "the peer is gone");
        // A clock that is set back takes the warning back, too.
        let mut expiry = Expiry::default();
        assert_eq!(texts(expiry.look(99 * DAY_US, &[end("door", 100)])).0.len(), 1);
        assert_eq!(texts(expiry.look(0, &[end("door", 100)])), (vec![], 1));
    }
}
