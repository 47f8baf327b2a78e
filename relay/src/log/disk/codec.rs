//! Reading fields from bytes that may be anything: every step is checked and ends in `None`, never in a panic.

use seaway_federation_proto::{
    envelope::Chain,
    ids::{Incarnation, LogName, Place, Queue, Start},
};

/// A place in the commit log's sequence: a segment and a byte in it. Ordered as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Position {
    /// Number of the segment; the first is 1.
    pub(crate) segment: u64,
    /// Byte in its file.
    pub(crate) at: u64,
}

/// A cursor over bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length (u32), then as many bytes.
    pub(crate) fn block(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.bytes(usize::try_from(len).ok()?)
    }

    /// A length (u16), then as many bytes of UTF-8.
    pub(crate) fn text(&mut self) -> Option<&'a str> {
        let len = self.u16()?;
        std::str::from_utf8(self.bytes(usize::from(len))?).ok()
    }

    pub(crate) fn chain(&mut self) -> Option<Chain> {
        self.array().map(Chain)
    }

    /// A flag (0 or 1), then the value if it is 1.
    pub(crate) fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => read(self).map(Some),
            _ => None,
        }
    }

    pub(crate) fn incarnation(&mut self) -> Option<Incarnation> {
        Some(Incarnation { counter: self.u64()?, random: self.u64()? })
    }

    pub(crate) fn place(&mut self) -> Option<Place> {
        Some(Place { incarnation: self.incarnation()?, offset: self.u64()? })
    }

    pub(crate) fn position(&mut self) -> Option<Position> {
        Some(Position { segment: self.u64()?, at: self.u64()? })
    }

    pub(crate) fn start(&mut self) -> Option<Start> {
        Some(Start { time_us: self.u64()?, random: self.u64()? })
    }

    pub(crate) fn log(&mut self) -> Option<LogName> {
        let topic = self.text()?.parse().ok()?;
        let origin = self.text()?.parse().ok()?;
        Some(LogName { topic, origin, queue: Queue(self.u16()?) })
    }
}

/// Writing the same fields.
pub(crate) trait PutFields {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// Lengths here are bounded far below `u32::MAX` by what `submit` accepts.
    fn put_block(&mut self, bytes: &[u8]) {
        self.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.put(bytes);
    }

    /// Names are at most 1 KiB.
    fn put_text(&mut self, text: &str) {
        self.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
        self.put(text.as_bytes());
    }

    fn put_option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T))
    where
        Self: Sized,
    {
        match value {
            None => self.put_u8(0),
            Some(value) => {
                self.put_u8(1);
                write(self, value);
            }
        }
    }

    fn put_chain(&mut self, chain: Chain) {
        self.put(&chain.0);
    }

    fn put_incarnation(&mut self, incarnation: Incarnation) {
        self.put_u64(incarnation.counter);
        self.put_u64(incarnation.random);
    }

    fn put_place(&mut self, place: Place) {
        self.put_incarnation(place.incarnation);
        self.put_u64(place.offset);
    }

    fn put_position(&mut self, position: Position) {
        self.put_u64(position.segment);
        self.put_u64(position.at);
    }

    fn put_start(&mut self, start: Start) {
        self.put_u64(start.time_us);
        self.put_u64(start.random);
    }

    fn put_log(&mut self, log: &LogName) {
        self.put_text(log.topic.as_str());
        self.put_text(log.origin.as_str());
        self.put_u16(log.queue.0);
    }
}

impl PutFields for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
