//! Sites that count for a topic and do not take it (its messages are larger than they allow): whoever waits for one is told why.
//!
//! Such a site stays registered: `all` goes on meaning all, and what it lacks is kept for it, since it takes the topic again by itself when
//! the reason is gone. But nobody is left to wait for it in vain: a publish that asks for more sites than can acknowledge is refused
//! before anything is stored, unless it may degrade, and every text that names a site as missing says why it is.

use seaway_federation_proto::{
    ids::{Site, Topic},
    replication::Report,
};

use super::{PublishError, inner::NodeInner, receipts::Need};

/// Why a need cannot be met at present, if it cannot.
pub(super) fn cannot_be_met(topic: &Topic, need: &Need, untaken: &[(Site, String)]) -> Option<PublishError> {
    let asked: Vec<&(Site, String)> =
        untaken.iter().filter(|(site, _)| need.sites.binary_search(site).is_ok()).collect();
    if need.sites.len().saturating_sub(asked.len()) >= need.count {
        return None;
    }
    let whys: Vec<String> =
        asked.iter().map(|(site, why)| format!("site {site} does not take topic {topic}: {why}")).collect();
    Some(PublishError::NobodyToAcknowledge(format!(
        "{}; nothing was stored; ask for other sites, let the publish degrade, or mend what keeps it from being taken there",
        whys.join("; ")
    )))
}

/// A text that names sites, with why those of them do not take the topic.
fn with_reasons(text: String, untaken: &[(Site, String)]) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let named = |site: &Site| text.split(|c| !is_part(c)).any(|word| word == site.as_str());
    let whys: Vec<String> = untaken
        .iter()
        .filter(|(site, _)| named(site))
        .map(|(site, why)| format!("{site} does not take the topic: {why}"))
        .collect();
    if whys.is_empty() { text } else { format!("{text} ({})", whys.join("; ")) }
}

impl NodeInner {
    /// A text about a topic of this origin that names sites, with why those of them do not take it.
    pub(super) fn with_reasons(&self, topic: &Topic, text: String) -> String {
        with_reasons(text, &self.hub.not_taken_by(topic))
    }

    /// An alarm about a site, with what it does not take.
    pub(super) fn with_untaken(&self, report: Report) -> Report {
        let Ok(site) = report.subject.parse::<Site>() else { return report };
        let whys = self.hub.untaken_at(&site);
        if whys.is_empty() {
            return report;
        }
        let whys: Vec<String> = whys.iter().take(3).map(|(topic, why)| format!("topic {topic}: {why}")).collect();
        let text = format!("{}; it does not take {}", report.text, whys.join("; "));
        Report { text, ..report }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Acknowledgement, receipts::decide};

    fn site(name: &str) -> Site {
        name.parse().unwrap()
    }

    #[test]
    fn who_asks_for_a_site_that_does_not_take_the_topic_is_told_at_once() {
        let registered = [site("ap"), site("eu"), site("us")].into();
        let untaken = [(site("eu"), "its messages are too large".to_owned())];
        let topic: Topic = "t".parse().unwrap();
        let refused = |asked: Acknowledgement| {
            let need = decide(&asked, &registered).unwrap().unwrap();
            cannot_be_met(&topic, &need, &untaken).map(|error| error.to_string())
        };
        for asked in [
            Acknowledgement::All,
            Acknowledgement::Count(3),
            Acknowledgement::Sites(vec![site("eu")]),
            Acknowledgement::Sites(vec![site("us"), site("eu")]),
        ] {
            let why = refused(asked.clone()).unwrap_or_else(|| panic!("{asked:?} is not refused"));
            assert!(why.contains("site eu does not take topic t: its messages are too large"), "{why}");
        }
        for asked in [Acknowledgement::Count(2), Acknowledgement::Sites(vec![site("us"), site("ap")])] {
            assert_eq!(refused(asked), None);
        }
    }

    #[test]
    fn texts_that_name_a_site_say_why_it_is_missing() {
        let untaken = [(site("eu"), "too large".to_owned()), (site("us"), "too old".to_owned())];
        let text = |text: &str| with_reasons(text.to_owned(), &untaken);
        assert_eq!(text("1 of ap, eu"), "1 of ap, eu (eu does not take the topic: too large)");
        assert_eq!(text("waits for site eu-west, which"), "waits for site eu-west, which");
    }
}
