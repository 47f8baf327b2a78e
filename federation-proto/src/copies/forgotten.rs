//! Incarnations that a copy held once and holds no more.

use crate::ids::Incarnation;

/// Most forgotten incarnations that a copy remembers by name.
pub const FORGOTTEN_MAX: usize = 64;

/// What a copy remembers of the incarnations that it held and forgot: the last [`FORGOTTEN_MAX`] by name, and of earlier ones the
/// greatest. None of them is ever accepted again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forgotten {
    /// In order.
    pub(super) named: Vec<Incarnation>,
    /// All incarnations up to this one were perhaps forgotten.
    pub(super) up_to: Option<Incarnation>,
}

impl Forgotten {
    /// Whether an incarnation was forgotten, or may have been.
    pub fn contains(&self, incarnation: Incarnation) -> bool {
        self.up_to.is_some_and(|up_to| incarnation <= up_to) || self.named.binary_search(&incarnation).is_ok()
    }

    /// Whether nothing was ever forgotten.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.up_to.is_none()
    }

    pub(super) fn remember(&mut self, forgotten: impl Iterator<Item = Incarnation>) {
        for incarnation in forgotten {
            if let Err(at) = self.named.binary_search(&incarnation) {
                self.named.insert(at, incarnation);
            }
        }
        let excess = self.named.len().saturating_sub(FORGOTTEN_MAX);
        if let Some(last) = self.named.drain(..excess).next_back() {
            self.up_to = self.up_to.max(Some(last));
        }
    }
}
