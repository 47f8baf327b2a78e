//! What a subscriber is willing to receive.

use crate::limits::{CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX};

/// Messages and bytes that may still be sent. A message is sent while some of both is left, so one larger than the
/// bytes left passes too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Credit {
    messages: u64,
    bytes: u64,
}

impl Credit {
    /// Adds to what is left, up to the bounds.
    pub(crate) fn add(&mut self, messages: u64, bytes: u64) {
        self.messages = self.messages.saturating_add(messages).min(CREDIT_MESSAGES_MAX);
        self.bytes = self.bytes.saturating_add(bytes).min(CREDIT_BYTES_MAX);
    }

    /// Whether a message may be sent.
    pub(crate) fn is_left(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }

    /// Takes one message of so many bytes.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(u64::try_from(bytes).unwrap_or(u64::MAX));
    }
}
