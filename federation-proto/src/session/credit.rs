//! Credit of a lane, counted in bytes of batches, at both ends: totals that only grow, so a lost or
//! late statement does no harm.

use super::Fault;

/// What this side grants the peer on one lane: its receive buffer.
#[derive(Debug)]
pub(super) struct Granted {
    capacity: u64,
    batch_bytes_max: u64,
    granted: u64,
    received: u64,
    released: u64,
}

impl Granted {
    /// `capacity` is raised to one largest batch, with less of which a lane could stand still.
    pub(super) fn new(capacity: u64, batch_bytes_max: u64) -> Self {
        let capacity = capacity.max(batch_bytes_max);
        Self { capacity, batch_bytes_max, granted: capacity, received: 0, released: 0 }
    }

    /// What hello says.
    pub(super) fn initial(&self) -> u64 {
        self.capacity
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

    /// A new total to be stated, when it is worth a message: an eighth of the buffer came free, or
    /// the peer may be waiting for room for one batch.
    pub(super) fn poll(&mut self) -> Option<u64> {
        let total = self.capacity.saturating_add(self.released);
        let fresh = total.saturating_sub(self.granted);
        let left = self.granted.saturating_sub(self.received);
        if fresh == 0 || (fresh < self.capacity / 8 && left >= self.batch_bytes_max) {
            return None;
        }
        self.granted = total;
        Some(total)
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

    #[test]
    fn a_full_buffer_is_granted_again_as_it_comes_free() {
        let mut granted = Granted::new(100, 1000);
        assert_eq!(granted.initial(), 1000);
        granted.take(1000).unwrap();
        assert_eq!(granted.poll(), None);
        granted.release(1);
        assert_eq!(granted.poll(), Some(1001));
        granted.release(5000);
        assert_eq!(granted.poll(), Some(2000));
        assert!(granted.take(1001).is_err());
    }

    #[test]
    fn small_releases_wait_while_a_batch_still_fits() {
        let mut granted = Granted::new(8000, 100);
        granted.take(500).unwrap();
        granted.release(500);
        assert_eq!(granted.poll(), None);
        granted.take(500).unwrap();
        granted.release(500);
        assert_eq!(granted.poll(), Some(9000));
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
