//! Probes: is the peer's session still there, and how long does an answer take?

use std::{collections::VecDeque, time::Duration};

/// Probes whose answer is still awaited; older ones no longer count.
const OUTSTANDING_MAX: usize = 8;

/// Sends probes and notices silence.
#[derive(Debug)]
pub(super) struct Probes {
    interval: Duration,
    dead_after: Duration,
    heard: Duration,
    next: Duration,
    number: u64,
    outstanding: VecDeque<(u64, Duration)>,
    round_trip: Duration,
}

impl Probes {
    pub(super) fn new(interval: Duration, dead_after: Duration, now: Duration) -> Self {
        // The first probe goes with the first timeout: a link knows its round trip soon.
        let outstanding = VecDeque::new();
        Self { interval, dead_after, heard: now, next: now, number: 0, outstanding, round_trip: Duration::ZERO }
    }

    /// Something came from the peer.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = self.heard.max(now);
    }

    /// For how long nothing was heard, if that is too long.
    pub(super) fn silence(&self, now: Duration) -> Option<Duration> {
        let silence = now.saturating_sub(self.heard);
        (silence >= self.dead_after).then_some(silence)
    }

    /// The number of a probe to be sent now.
    pub(super) fn poll(&mut self, now: Duration) -> Option<u64> {
        if now < self.next {
            return None;
        }
        self.next = now.saturating_add(self.interval.max(Duration::from_millis(1)));
        self.number = self.number.wrapping_add(1);
        if self.outstanding.len() == OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((self.number, now));
        Some(self.number)
    }

    /// An answer came: how long it took, unless it answers nothing that was asked.
    pub(super) fn answered(&mut self, number: u64, now: Duration) -> Option<Duration> {
        let position = self.outstanding.iter().position(|(asked, _)| *asked == number)?;
        let sent = self.outstanding.drain(..=position).next_back()?.1;
        self.round_trip = now.saturating_sub(sent);
        Some(self.round_trip)
    }

    /// When the oldest probe was sent that has no answer.
    pub(super) fn unanswered(&self) -> Option<Duration> {
        self.outstanding.front().map(|(_, sent)| *sent)
    }

    /// When the peer was heard last.
    pub(super) fn heard_at(&self) -> Duration {
        self.heard
    }

    /// How long anything that is due may take: two intervals and the last round trip, so that a probe's missing answer is noticed
    /// before the third would be answered.
    pub(super) fn patience(&self) -> Duration {
        self.interval.saturating_mul(2).saturating_add(self.round_trip)
    }

    /// When silence would be too long.
    pub(super) fn dead_at(&self) -> Duration {
        self.heard.saturating_add(self.dead_after)
    }

    /// When the next probe is due.
    pub(super) fn due(&self) -> Duration {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn answers_give_the_time_they_took() {
        let mut probes = Probes::new(S, 5 * S, S);
        assert_eq!(probes.poll(S), Some(1));
        assert_eq!(probes.poll(S), None);
        assert_eq!(probes.poll(2 * S), Some(2));
        assert_eq!(probes.answered(2, 3 * S), Some(S));
        assert_eq!(probes.answered(2, 3 * S), None);
        assert_eq!(probes.answered(1, 3 * S), None);
    }

    #[test]
    fn a_late_answer_is_noticed_before_the_silence() {
        let mut probes = Probes::new(S, 60 * S, S);
        probes.poll(S);
        assert_eq!((probes.unanswered(), probes.patience()), (Some(S), 2 * S));
        assert_eq!(probes.answered(1, 5 * S), Some(4 * S));
        assert_eq!(probes.unanswered(), None, "nothing is awaited");
        probes.poll(6 * S);
        assert_eq!((probes.unanswered(), probes.patience()), (Some(6 * S), 6 * S), "a long round trip is known by now");
        // Those sent since do not make it younger, and an answer to a later one answers it.
        probes.poll(13 * S);
        assert_eq!(probes.unanswered(), Some(6 * S));
        probes.answered(3, 14 * S);
        assert_eq!(probes.unanswered(), None);
    }

    #[test]
    fn silence_is_noticed() {
        let mut probes = Probes::new(S, 5 * S, S);
        assert_eq!(probes.silence(5 * S), None);
        probes.heard(2 * S);
        assert_eq!(probes.silence(6 * S), None);
        assert_eq!(probes.silence(7 * S), Some(5 * S));
        assert_eq!(probes.dead_at(), 7 * S);
    }
}
