//! True batches for tests: an origin without a node around it.

use std::sync::Arc;

use bytes::Bytes;
use seaway_federation_proto::{
    envelope::{Batch, Chain, Codec, Placement},
    ids::{Incarnation, LogName, Path, Place, Queue},
    message::{BodyBuilder, Message},
};

/// The name of a queue of a topic at a site.
pub fn log_name(topic: &str, origin: &str, queue: u16) -> LogName {
    LogName { topic: topic.parse().unwrap(), origin: origin.parse().unwrap(), queue: Queue(queue) }
}

/// A place, written short.
pub fn place(incarnation: Incarnation, offset: u64) -> Place {
    Place { incarnation, offset }
}

/// Makes the batches of one log, one after the other. A clone is an old copy of the origin's disk.
#[derive(Debug, Clone)]
pub struct Origin {
    log: LogName,
    end: Option<(Place, Chain)>,
    open: Option<Incarnation>,
    random: u64,
    time_us: u64,
}

impl Origin {
    /// An origin that has appended nothing; `random` makes its incarnations.
    pub fn new(log: LogName, random: u64) -> Self {
        Self { log, end: None, open: None, random, time_us: 1_000_000 }
    }

    /// An origin that goes on at a place.
    pub fn at(log: LogName, end: Option<(Place, Chain)>, random: u64) -> Self {
        Self { end, ..Self::new(log, random) }
    }

    /// The log's name.
    pub fn log(&self) -> &LogName {
        &self.log
    }

    /// Where it ends; `None` while it is empty.
    pub fn end(&self) -> Option<Place> {
        self.end.map(|(end, _)| end)
    }

    /// Chain value at the end.
    pub fn chain(&self) -> Chain {
        self.end.map(|(_, chain)| chain).unwrap_or_default()
    }

    /// The next batch begins another incarnation.
    pub fn restart(&mut self) {
        self.open = None;
    }

    /// The next batch: so many messages, each with so many bytes that say where they stand.
    pub fn next(&mut self, messages: u32, payload_bytes: usize) -> Batch {
        let path: Path = self.log.topic.as_str().parse().unwrap();
        let from = self.end.map_or(0, |(end, _)| end.offset);
        let mut body = BodyBuilder::default();
        for n in 0..u64::from(messages) {
            let mut payload = format!("{} {} ", self.log, from + n).into_bytes();
            payload.resize(payload.len().max(payload_bytes), b'a' + (n % 26) as u8);
            body.push(&Message {
                path: path.clone(),
                key: None,
                headers: Vec::new(),
                time_us: self.time_us,
                producer: None,
                payload: Bytes::from(payload),
            });
        }
        self.time_us += 1000;
        let first = self.open.is_none();
        let incarnation = self.open.unwrap_or_else(|| {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Incarnation { counter: self.end.map_or(0, |(end, _)| end.incarnation.counter) + 1, random: self.random }
        });
        self.open = Some(incarnation);
        let placement = Placement {
            log: &self.log,
            begin: place(incarnation, from),
            first_of_incarnation: first,
            previous: self.end.map(|(end, _)| end).filter(|_| first),
            origin_time_us: self.time_us,
            chain_before: self.chain(),
        };
        let batch = Batch::seal(&placement, body.finish(Codec::None).unwrap()).unwrap();
        self.end = Some((batch.end(), batch.chain_after()));
        batch
    }

    /// So many batches of two messages of 100 bytes.
    pub fn batches(&mut self, count: usize) -> Vec<Batch> {
        (0..count).map(|_| self.next(2, 100)).collect()
    }
}

/// The whole bytes of a batch.
pub fn bytes_of(batch: &Batch) -> Vec<u8> {
    [batch.head().as_ref(), batch.body().as_ref()].concat()
}

/// Whether these are the same batches, byte for byte.
pub fn same(a: &[Batch], b: &[Batch]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| bytes_of(a) == bytes_of(b))
}

/// A shared list that callbacks write to.
pub type Seen<T> = Arc<parking_lot::Mutex<Vec<T>>>;
