//! Rates: what one side sends, and what the other lets it send.

use std::num::NonZeroU64;

use super::{
    pace::{DirectionRates, LinkRates, Rate},
    *,
};

const MS: Duration = Duration::from_millis(1);

fn bytes(per_s: u64, burst: u64) -> DirectionRates {
    let number = |n| NonZeroU64::new(n).unwrap();
    DirectionRates { bytes: Some(Rate { per_s: number(per_s), burst: number(burst) }), messages: None }
}

fn messages(per_s: u64, burst: u64) -> DirectionRates {
    let DirectionRates { bytes, messages } = bytes(per_s, burst);
    DirectionRates { bytes: messages, messages: bytes }
}

/// `a` fetches of `b`, whose log has more than ever goes; time passes as the sessions ask for it.
struct Line {
    a: Session,
    b: Session,
    log: TestLog,
    now: Duration,
    /// Bytes that `b` sent on all channels; bytes and messages of batches that came.
    sent: u64,
    came: u64,
    messages: u64,
}

impl Line {
    fn new(a: LinkRates, b: LinkRates) -> Self {
        let wide =
            |node| SessionConfig { lane_credit: [(Lane::Live, 100_000), (Lane::Backlog, 100_000)], ..config(node) };
        let (mut one, mut other) = (Session::new(wide("a/1"), NOW), Session::new(wide("b/1"), NOW));
        one.set_rates(NOW, a);
        other.set_rates(NOW, b);
        let mut log = TestLog::new("x");
        (0..2000).for_each(|_| drop(log.append(10, 900, false).clone()));
        let mut line = Self { a: one, b: other, log, now: NOW, sent: 0, came: 0, messages: 0 };
        line.exchange();
        let order = order(1, &line.log.name, line.log.batches[0].begin());
        line.a.start_fetch(order).unwrap();
        line
    }

    fn exchange(&mut self) {
        loop {
            let mut moved = false;
            for channel in [Channel::Control, Channel::Lane(Lane::Live), Channel::Lane(Lane::Backlog)] {
                while let Some(out) = self.a.poll_transmit(self.now, channel) {
                    out.chunks.into_iter().for_each(|c| self.b.handle_bytes(self.now, channel, c));
                    moved = true;
                }
                while let Some(out) = self.b.poll_transmit(self.now, channel) {
                    self.sent += out.chunks.iter().map(|c| c.len() as u64).sum::<u64>();
                    out.chunks.into_iter().for_each(|c| self.a.handle_bytes(self.now, channel, c));
                    moved = true;
                }
            }
            while let Some(event) = self.b.poll_event() {
                match event {
                    Event::FetchRequested(order) => self.b.serve(order.number),
                    Event::Read { number, from, bytes_max, .. } => {
                        self.b.handle_read(number, self.log.read(from, bytes_max));
                    }
                    _ => continue,
                }
                moved = true;
            }
            while let Some(event) = self.a.poll_event() {
                if let Event::Batch { lane, credit, batch, .. } = event {
                    self.came += credit;
                    self.messages += u64::from(batch.header().count);
                    self.a.release(lane, credit);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Lets so much time pass.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        let mut turns = 0;
        loop {
            self.exchange();
            let due = [&self.a, &self.b].into_iter().filter_map(Session::poll_timeout).min().unwrap();
            if due > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(due);
            self.a.handle_timeout(self.now);
            self.b.handle_timeout(self.now);
            let _ = (self.a.vitals(self.now), self.b.vitals(self.now));
            turns += 1;
            assert!(turns < 100_000, "it turns on the spot");
        }
    }

    fn judged(&mut self) -> (vitals::Standing, String) {
        self.a.say_condition(self.now, "");
        self.exchange();
        let judged = self.b.vitals(self.now).judge(self.now);
        (judged.standing, judged.reason)
    }
}

#[test]
fn what_is_sent_keeps_to_its_rate_with_all_that_goes_beside_it() {
    let send = LinkRates { send: bytes(20_000, 10_000), ..LinkRates::default() };
    let mut line = Line::new(LinkRates::default(), send);
    for seconds in 1..=20 {
        line.run(1000 * MS);
        assert!(line.sent <= 10_000 + 20_000 * seconds, "{} bytes after {seconds} s", line.sent);
        assert!(line.sent + 5_000 >= 20_000 * seconds, "{} bytes after {seconds} s", line.sent);
    }
    let (standing, reason) = line.judged();
    assert_eq!(standing, vitals::Standing::CatchingUp);
    assert!(reason.starts_with("limited: this node sends it at most 20000 bytes a second"), "{reason}");
    // Other rates hold at once, and none is none.
    line.b.set_rates(line.now, LinkRates { send: bytes(100_000, 10_000), ..LinkRates::default() });
    let before = line.sent;
    line.run(5000 * MS);
    assert!((490_000..=510_000).contains(&(line.sent - before)), "{}", line.sent - before);
    line.b.set_rates(line.now, LinkRates::default());
    line.run(MS);
    assert_eq!(line.messages, 20_000, "all there is");
}

#[test]
fn what_the_peer_may_send_keeps_to_the_rate_by_the_credit_that_it_gets() {
    let receive = LinkRates { receive: bytes(20_000, 40_000), ..LinkRates::default() };
    let mut line = Line::new(receive, LinkRates::default());
    for seconds in 1..=20 {
        line.run(1000 * MS);
        assert!(line.came <= 40_000 + 20_000 * seconds, "{} bytes after {seconds} s", line.came);
        assert!(line.came + 5_000 >= 20_000 * seconds, "{} bytes after {seconds} s", line.came);
    }
    let (standing, reason) = line.judged();
    assert_eq!(standing, vitals::Standing::CatchingUp);
    assert!(reason.starts_with("limited: the peer takes at most 20000 bytes a second"), "{reason}");
    let limit = line.a.vitals(line.now).limit_in();
    assert_eq!(limit.as_deref(), Some("of which this node takes at most 20000 bytes a second"));
    line.a.set_rates(line.now, LinkRates::default());
    line.run(MS);
    assert_eq!(line.messages, 20_000, "all there is");
}

#[test]
fn messages_are_paced_both_ways() {
    let mut sends = Line::new(LinkRates::default(), LinkRates { send: messages(100, 200), ..LinkRates::default() });
    sends.run(20_000 * MS);
    assert!((2_000..=2_200).contains(&sends.messages), "{}", sends.messages);
    let mut takes = Line::new(LinkRates { receive: messages(100, 200), ..LinkRates::default() }, LinkRates::default());
    takes.run(20_000 * MS);
    // Beside the burst, what fits the smallest credit.
    assert!((2_000..=2_300).contains(&takes.messages), "{}", takes.messages);
}

#[test]
fn one_way_messages_above_the_rate_are_dropped_and_counted() {
    let mut line =
        Line::new(LinkRates { receive: bytes(1_000, 100_000), ..LinkRates::default() }, LinkRates::default());
    assert_eq!((0..100).filter(|_| line.b.admit_one_way(line.now, 1_000)).count(), 100, "no rate");
    line.b.set_rates(line.now, LinkRates { send: bytes(1_000, 10_000), ..LinkRates::default() });
    assert_eq!((0..100).filter(|_| line.b.admit_one_way(line.now, 1_000)).count(), 5, "half the burst is the lane's");
    (0..100).for_each(|_| line.a.handle_one_way(line.now, vec![0; 1_000].into()));
    let [.., dropped] = line.a.times_limited();
    assert!(dropped >= 80, "{dropped}");
}
