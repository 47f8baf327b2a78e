//! Credit of a lane, counted in bytes of batches, at both ends: totals that only grow, so a lost or
//! late statement does no harm.

use super::Fault;

/// What this side grants the peer on one lane: its receive buffer.
#[derive(Debug)]
pub(super) struct Granted {
    capacity: u64,
    /// How much of it may be under way.
    window: u64,
    batch_bytes_max: u64,
    granted: u64,
    received: u64,
    released: u64,
    /// The peer has not been told of it yet.
    unsaid: bool,
}

impl Granted {
    /// `capacity` is raised to one largest batch, with less of which a lane could stand still.
    pub(super) fn new(capacity: u64, batch_bytes_max: u64) -> Self {
        let capacity = capacity.max(batch_bytes_max);
        Self { capacity, window: capacity, batch_bytes_max, granted: capacity, received: 0, released: 0, unsaid: true }
    }

    /// What hello says.
    pub(super) fn initial(&self) -> u64 {
        self.window
    }

    /// A batch came.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), Fault> {
        self.received = self.received.saturating_add(bytes);
        if self.received > self.granted {
            return Err(Fault::protocol(format!(
                "it sent {} bytes on a lane on which {} were granted",
                self.received, self.granted
            )));
        }
        Ok(())
    }

    /// A batch's bytes were stored, passed on or dropped. More than was received cannot be released.
    pub(super) fn release(&mut self, bytes: u64) {
        self.released = self.released.saturating_add(bytes).min(self.received);
    }

    /// How much may be under way while a rate holds; `None`: the whole buffer. At least one largest batch.
    pub(super) fn narrow(&mut self, window: Option<u64>) {
        self.window = window.map_or(self.capacity, |window| window.clamp(self.batch_bytes_max, self.capacity));
        if self.unsaid {
            self.granted = self.window;
        }
    }

    /// Hello is said.
    pub(super) fn said(&mut self) {
        self.unsaid = false;
    }

    /// What would be granted beyond the present total, when that is worth a message: an eighth of the buffer came free, or the
    /// peer may be waiting for room for one batch.
    pub(super) fn due(&self) -> Option<u64> {
        let held = self.received.saturating_sub(self.released);
        let left = self.granted.saturating_sub(self.received);
        let fresh = self.capacity.saturating_sub(held).min(self.window).saturating_sub(left);
        (fresh > 0 && (fresh >= self.window / 8 || left < self.batch_bytes_max)).then_some(fresh)
    }

    /// Bytes that came and were not given back, and the whole buffer.
    pub(super) fn held(&self) -> (u64, u64) {
        (self.received.saturating_sub(self.released), self.capacity)
    }

    /// Grants so much more; the new total.
    pub(super) fn grant(&mut self, more: u64) -> u64 {
        self.granted = self.granted.saturating_add(more);
        self.granted
    }
}

/// What the peer grants this side on one lane.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    granted: u64,
    used: u64,
}

impl Allowed {
    /// Bytes that may still be sent.
    pub(super) fn room(&self) -> u64 {
        self.granted.saturating_sub(self.used)
    }

    /// A batch was sent; it fitted.
    pub(super) fn take(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
    }

    /// The peer stated a new total.
    pub(super) fn raise(&mut self, total: u64) -> Result<(), Fault> {
        if total < self.granted {
            return Err(Fault::protocol(format!("it lowered a lane's credit from {} to {total} bytes", self.granted)));
        }
        self.granted = total;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(granted: &mut Granted) -> Option<u64> {
        granted.due().map(|more| granted.grant(more))
    }

    #[test]
    fn a_full_buffer_is_granted_again_as_it_comes_free() {
        let mut granted = Granted::new(100, 1000);
        assert_eq!(granted.initial(), 1000);
        granted.take(1000).unwrap();
        assert_eq!(poll(&mut granted), None);
        granted.release(1);
        assert_eq!(poll(&mut granted), Some(1001));
        granted.release(5000);
        assert_eq!(poll(&mut granted), Some(2000));
        assert!(granted.take(1001).is_err());
    }

    #[test]
    fn small_releases_wait_while_a_batch_still_fits() {
        let mut granted = Granted::new(8000, 100);
        granted.take(500).unwrap();
        granted.release(500);
        assert_eq!(poll(&mut granted), None);
        granted.take(500).unwrap();
        granted.release(500);
        assert_eq!(poll(&mut granted), Some(9000));
    }

    #[test]
    fn a_narrow_window_holds_from_hello_on_and_widens_again() {
        let mut granted = Granted::new(8000, 100);
        granted.narrow(Some(1000));
        granted.said();
        assert_eq!(granted.initial(), 1000);
        granted.take(900).unwrap();
        assert_eq!(poll(&mut granted), Some(1900), "the buffer has room, and the window");
        granted.narrow(None);
        assert_eq!(poll(&mut granted), Some(8000));
        granted.narrow(Some(10));
        assert_eq!(poll(&mut granted), None, "what was granted is not taken back");
        granted.take(7050).unwrap();
        granted.release(7950);
        assert_eq!(poll(&mut granted), Some(8050), "never less than one largest batch");
    }

    #[test]
    fn credit_does_not_shrink() {
        let mut allowed = Allowed::default();
        allowed.raise(10).unwrap();
        allowed.take(4);
        assert_eq!(allowed.room(), 6);
        assert!(allowed.raise(9).is_err());
    }
}
