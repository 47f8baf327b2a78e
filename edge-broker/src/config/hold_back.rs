//! `[hold_back]`: what is kept beyond retention for registered sites that do not hold it yet.

use std::time::Duration;

use seaway_federation_proto::ids::{Pattern, Site};
use seaway_relay::node::{HoldBackConfig, HoldBackRule};
use serde::{Deserialize, Serialize};

use super::{
    ConfigError, Loaded,
    values::{Given, Size},
};

/// `[hold_back]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section: [hold_back]")]
pub struct HoldBackSection {
    /// Of all sites and topics together; without it, a quarter of the disk, and at most half of log.own_size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Given<Size>>,
    /// Bounds for sites and topics; the first that is about both counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<HoldBackRuleSection>,
}

/// What happens at a rule's bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HoldBackPolicy {
    /// The oldest goes; the site will lack it unless another has it.
    #[default]
    Drop,
    /// Publishers are refused until the site has caught up.
    Refuse,
}

/// `[[hold_back.rule]]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, expecting = "a section: [[hold_back.rule]]")]
pub struct HoldBackRuleSection {
    /// Each of these sites by itself; without it, every one that registers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<Given<Site>>,
    /// All these topics together; without it, all topics.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<Given<Pattern>>,
    /// How much is kept for a site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_max: Option<Given<Size>>,
    /// For how long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_max: Option<Given<Duration>>,
    /// And then.
    pub policy: HoldBackPolicy,
}

impl Loaded {
    pub(super) fn hold_back(&self) -> Result<HoldBackConfig, ConfigError> {
        let section = &self.settings.hold_back;
        if section.size.as_ref().is_some_and(|size| size.0.0 == 0) {
            let text =
                "is 0, but at least \"1 B\" is expected; to hold nothing back for a site, leave it out of replicate";
            return Err(self.mistake(&["hold_back", "size"], text));
        }
        if let (Some(size), Some(own)) = (&section.size, &self.settings.log.own_size)
            && size.0 >= own.0
        {
            let text =
                "is not less than log.own_size, of which it is a part; make it smaller, or leave it out for a half";
            return Err(self.mistake(&["hold_back", "size"], text));
        }
        let rules = section.rule.iter().enumerate().map(|(index, rule)| self.hold_back_rule(&index.to_string(), rule));
        Ok(HoldBackConfig {
            bytes_max: section.size.as_ref().map(|size| size.0.0),
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    fn hold_back_rule(&self, index: &str, rule: &HoldBackRuleSection) -> Result<HoldBackRule, ConfigError> {
        let wrong = |key: &str, text: &str| Err(self.mistake(&["hold_back", "rule", index, key], text));
        let refuse = rule.policy == HoldBackPolicy::Refuse;
        if refuse && rule.sites.is_empty() {
            return wrong("policy", "is \"refuse\", which is only for sites that are named; add key \"sites\"");
        }
        if rule.size_max.is_none() && rule.age_max.is_none() {
            return wrong("policy", "has no bound; add key \"size_max\" or \"age_max\", or remove the section");
        }
        if rule.size_max.as_ref().is_some_and(|size| size.0.0 == 0) {
            return wrong("size_max", "is 0, but at least \"1 B\" is expected");
        }
        if rule.age_max.as_ref().is_some_and(|age| age.0.is_zero()) {
            return wrong("age_max", "is 0, but a duration above it is expected");
        }
        for topic in &rule.topics {
            if topic.0.as_str().contains('/') {
                return wrong(
                    "topics",
                    "have more than one level; whole topics are held back, so first levels are expected",
                );
            }
        }
        let whole = self.settings.hold_back.size.as_ref();
        if let (Some(whole), Some(size)) = (whole, &rule.size_max)
            && size.0 > whole.0
        {
            return wrong("size_max", "is more than hold_back.size, which bounds all sites together");
        }
        Ok(HoldBackRule {
            sites: rule.sites.iter().map(|site| site.0.clone()).collect(),
            topics: rule.topics.iter().map(|topic| topic.0.clone()).collect(),
            bytes_max: rule.size_max.as_ref().map(|size| size.0.0),
            age_max: rule.age_max.as_ref().map(|age| age.0),
            refuse,
        })
    }
}
