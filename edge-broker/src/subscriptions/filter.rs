//! Which logs, batches and messages a subscription means.

use seaway_federation_proto::{
    envelope::{Header, Tags},
    ids::{LogName, Path, Pattern, Queue, Site},
};

/// What a subscriber asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The pattern over paths.
    pub(crate) pattern: Pattern,
    /// From these origins only, in order; empty: all.
    pub(crate) origins: Vec<Site>,
}

impl Filter {
    /// Whether messages of this origin are meant.
    pub(crate) fn is_from(&self, origin: &Site) -> bool {
        self.origins.is_empty() || self.origins.contains(origin)
    }

    /// Whether some messages of this log can be meant.
    pub(crate) fn covers(&self, log: &LogName) -> bool {
        log.queue != Queue::CONTROL && self.is_from(&log.origin) && self.pattern.touches(&log.topic)
    }

    /// Whether a message with this path is meant.
    pub(crate) fn matches(&self, path: &Path) -> bool {
        self.pattern.matches(path)
    }

    /// Whether a batch can hold a message that is meant, as far as its envelope tells: if not, it need not be decoded.
    pub(crate) fn may_hold(&self, header: &Header) -> bool {
        let Tags::Only(tags) = &header.tags else { return true };
        let mut levels = self.pattern.as_str().split('/');
        match (levels.next(), levels.next()) {
            (Some("#"), _) | (_, Some("#")) => true,
            (_, None) => tags.iter().any(|tag| tag.is_empty()),
            (_, Some("+")) => tags.iter().any(|tag| !tag.is_empty()),
            (_, Some(level)) => tags.iter().any(|tag| **tag == *level),
        }
    }
}

/// Whether every path that `inner` matches is matched by `outer`: what decides whether a right covers a subscription.
pub(crate) fn contains(outer: &Pattern, inner: &Pattern) -> bool {
    let mut wanted = inner.as_str().split('/');
    for (depth, level) in outer.as_str().split('/').enumerate() {
        let next = wanted.next();
        let internal = depth == 0 && next.is_some_and(|l| l.starts_with(['_', '$']));
        match (level, next) {
            ("#", _) => return !internal,
            (_, None | Some("#")) => return false,
            ("+", Some(_)) if internal => return false,
            ("+", Some(_)) => {}
            (level, Some(next)) if level == next => {}
            _ => return false,
        }
    }
    wanted.next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn rights_contain_what_lies_within() {
        for (outer, inner) in [("#", "a/b"), ("#", "#"), ("a/#", "a"), ("a/#", "a/#"), ("a/+", "a/b"), ("+/b", "a/b")] {
            assert!(contains(&pattern(outer), &pattern(inner)), "{outer} holds {inner}");
        }
        for (outer, inner) in
            [("a/+", "a/#"), ("a", "a/b"), ("a/b", "a"), ("+", "#"), ("a/+/#", "a/#"), ("#", "_x"), ("+", "$y")]
        {
            assert!(!contains(&pattern(outer), &pattern(inner)), "{outer} does not hold {inner}");
        }
    }

    proptest! {
        /// Whatever the inner pattern matches, the outer one does, if it is said to contain it.
        #[test]
        fn containing_is_sound(
            outer in "(a|b|_i|\\+)(/(a|b|\\+)){0,2}(/#)?|#",
            inner in "(a|b|_i|\\+)(/(a|b|\\+)){0,2}(/#)?|#",
            path in "(a|b|_i)(/(a|b)){0,3}",
        ) {
            let (outer, inner) = (pattern(&outer), pattern(&inner));
            let path: Path = path.parse().unwrap();
            if contains(&outer, &inner) && inner.matches(&path) {
                prop_assert!(outer.matches(&path), "{outer} contains {inner}, but {path} slips through");
            }
        }
    }
}
