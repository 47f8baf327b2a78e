//! Why connections end, in one sentence for people, alike on both ends; and how often that is logged.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quinn::{ConnectionError, VarInt};

use super::tls::sentence;

/// Closed in peace.
pub const CLOSE_GOODBYE: VarInt = VarInt::from_u32(0);
/// Closed for cause; the text says which.
pub const CLOSE_REFUSED: VarInt = VarInt::from_u32(1);

/// Closed since another connection of the same node's name is alive; the text says which.
pub const CLOSE_NAME_TAKEN: VarInt = VarInt::from_u32(2);

/// Closed since an operator paused the link; the text says who.
pub const CLOSE_PAUSED: VarInt = VarInt::from_u32(3);

/// Longest text taken from a peer, characters.
const PEER_TEXT_MAX: usize = 400;
/// The same sentence is logged again after this.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// Sentences remembered.
const REMEMBERED_MAX: usize = 256;

/// What the peer wrote, made safe for logs.
fn peer_text(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().take(PEER_TEXT_MAX).collect();
    sentence(&text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// TLS alerts travel as the QUIC error codes 0x100 to 0x1ff.
fn is_tls(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// Why a connection ended.
pub fn describe(error: &ConnectionError, peer: SocketAddr) -> String {
    match error {
        ConnectionError::TransportError(error) if is_tls(error.code) => sentence(&error.reason).to_owned(),
        ConnectionError::TransportError(error) => format!("QUIC failed towards {peer}: {error}"),
        ConnectionError::ConnectionClosed(close) if is_tls(close.error_code) => {
            format!("the peer at {peer} refused this node: {}", peer_text(&close.reason))
        }
        ConnectionError::ConnectionClosed(close) => {
            let text = peer_text(&close.reason);
            format!("the peer at {peer} closed the connection: {} {text}", close.error_code)
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_GOODBYE => {
            format!("the peer closed the link: {}", peer_text(&close.reason))
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == CLOSE_PAUSED => peer_text(&close.reason),
        ConnectionError::ApplicationClosed(close) => format!("the peer refused the link: {}", peer_text(&close.reason)),
        ConnectionError::Reset => "the peer does not know this connection any more; it was restarted".to_owned(),
        ConnectionError::TimedOut => format!(
            "nothing was heard from {peer}; check that the peer runs and listens there and that UDP passes both ways"
        ),
        ConnectionError::VersionMismatch => format!("the peer at {peer} speaks no QUIC version known here"),
        ConnectionError::LocallyClosed => "closed by this node".to_owned(),
        ConnectionError::CidsExhausted => "no connection ids are left".to_owned(),
    }
}

/// Remembers sentences lately logged, so that a peer that tries again and again does not flood the log.
#[derive(Debug, Default)]
pub struct Quiet(Mutex<BTreeMap<String, Instant>>);

impl Quiet {
    /// Whether to log this sentence now: it was not logged within the last minute.
    pub fn admits(&self, text: &str) -> bool {
        let now = Instant::now();
        let mut seen = self.0.lock();
        if seen.get(text).is_some_and(|at| now.duration_since(*at) < REPEAT_AFTER) {
            return false;
        }
        seen.retain(|_, at| now.duration_since(*at) < REPEAT_AFTER);
        if seen.len() < REMEMBERED_MAX {
            seen.insert(text.to_owned(), now);
            return true;
        }
        // So many different sentences a minute: someone makes them up.
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_logged_once_a_minute_and_a_flood_of_them_not_at_all() {
        let quiet = Quiet::default();
        assert!(quiet.admits("a"));
        assert!(!quiet.admits("a"));
        let admitted = (0..1000).filter(|n| quiet.admits(&n.to_string())).count();
        assert_eq!(admitted, REMEMBERED_MAX - 1);
    }

    #[test]
    fn the_peers_words_are_bounded_and_harmless() {
        let text = peer_text(format!("other error: a\n\u{1b}[31m{}", "x".repeat(1000)).as_bytes());
        assert!(text.starts_with("a  [31mx") && text.chars().count() <= PEER_TEXT_MAX, "{text}");
    }
}
