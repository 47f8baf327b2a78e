//! The envelope of a batch: everything that transit, storage and comparison need, in front of a
//! body that they never read.
//!
//! A batch is encoded once, at its origin, and never re-encoded or split. Its parts:
//!
//! ```text
//! head: magic "SWB1" u32 | head length u16 | flags u16 | body length u32 | body codec u8 | body version u8
//!       | incarnation counter u64, random u64 | first offset u64 | count u32 | origin time u64 (µs since 1970)
//!       | chain value before 16 B | body hash 16 B (XXH3-128)
//!       | topic, origin site (each u16 length + bytes) | queue u16
//!       | previous incarnation counter u64, random u64, its end u64   (flag FIRST only)
//!       | tag count u8, each u8 length + bytes                        (flag ANY_TAG: none listed)
//!       | checksum 16 B: XXH3-128 over all of the head before it
//! body: body length bytes
//! ```
//! All integers are little-endian. The checksum covers the body through its hash, so the body is
//! hashed once, off the path on which places are given out. A batch's own chain value is
//! XXH3-128 over (the chain value before it, its checksum). Checksums guard against accident, not
//! against members (DESIGN section 12). A reader that meets a longer head than it knows skips the
//! rest up to the checksum: fields may be added, none may change.

use bytes::Bytes;

use crate::ids::{LogName, Offset, Place};

/// The running hash over a log's batches: two holders with one value hold the same bytes below.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Chain(pub [u8; 16]);

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// How a body's bytes are compressed. The values are permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Codec {
    /// Not at all.
    #[default]
    None,
    /// LZ4 block with its length in front.
    Lz4,
    /// Zstandard frame.
    Zstd,
    /// A codec that this build does not know: stored and forwarded, not delivered.
    Unknown(u8),
}

/// Which tags a batch's messages carry, as far as the envelope tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tags {
    /// More than fit, or unknown: any tag may be inside.
    Any,
    /// Exactly these (a message without a tag is listed as the empty string).
    Only(Vec<Box<str>>),
}

/// A finished body, hashed and compressed, that does not yet have a place.
#[derive(Debug, Clone)]
pub struct SealedBody {
    /// The encoded (and perhaps compressed) messages.
    pub bytes: Bytes,
    /// How `bytes` is compressed.
    pub codec: Codec,
    /// Which encoding the messages have once decompressed.
    pub version: u8,
    /// XXH3-128 of `bytes`.
    pub hash: [u8; 16],
    /// Number of messages, at least 1.
    pub count: u32,
    /// The messages' tags.
    pub tags: Tags,
}

/// What an envelope says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The log the batch belongs to.
    pub log: LogName,
    /// The place of its first message.
    pub begin: Place,
    /// Number of messages, at least 1.
    pub count: u32,
    /// For an incarnation's first batch: the place that ends the incarnation before it. The log's
    /// very first batch has none, offset 0 and the default chain value before it.
    pub previous: Option<Place>,
    /// Whether this is its incarnation's first batch.
    pub first_of_incarnation: bool,
    /// Tags inside.
    pub tags: Tags,
    /// The origin's wall clock in microseconds since 1970; never decreases within a log.
    pub origin_time_us: u64,
    /// The body's compression.
    pub codec: Codec,
    /// The body's encoding.
    pub body_version: u8,
    /// Chain value before this batch.
    pub chain_before: Chain,
    /// XXH3-128 of the body.
    pub body_hash: [u8; 16],
    /// XXH3-128 of the head before the checksum.
    pub checksum: [u8; 16],
}

/// An encoded batch with its envelope read. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Batch {
    header: std::sync::Arc<Header>,
    head: Bytes,
    body: Bytes,
}

/// Why bytes are not a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Fewer bytes than the envelope says.
    #[error("the batch is cut short: {have} of {need} bytes")]
    Truncated {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        need: usize,
    },
    /// The bytes do not begin like a batch, or a field is impossible.
    #[error("the envelope is malformed: {0}")]
    Malformed(&'static str),
    /// A name inside breaks the rules.
    #[error("the envelope names something that is not allowed: {0}")]
    Name(#[from] crate::ids::InvalidName),
    /// Head or body do not match their checksum.
    #[error("the checksum of the {0} does not match")]
    Checksum(&'static str),
    /// Larger than allowed.
    #[error("the batch has {found} bytes, more than the allowed {allowed}")]
    TooLarge {
        /// Bytes claimed.
        found: usize,
        /// Bytes allowed.
        allowed: usize,
    },
}

/// Where a sealed body goes: what the origin decides when it gives a batch its place.
#[derive(Debug, Clone)]
pub struct Placement<'a> {
    /// The log.
    pub log: &'a LogName,
    /// Place of the first message.
    pub begin: Place,
    /// Set for an incarnation's first batch; see [`Header::previous`].
    pub first_of_incarnation: bool,
    /// See [`Header::previous`].
    pub previous: Option<Place>,
    /// See [`Header::origin_time_us`].
    pub origin_time_us: u64,
    /// See [`Header::chain_before`].
    pub chain_before: Chain,
}

impl Batch {
    /// Gives a sealed body its place: writes the envelope. The body is shared, not copied.
    pub fn seal(placement: &Placement<'_>, body: SealedBody) -> Batch {
        let _ = (placement, body);
        todo!()
    }

    /// Reads a batch from bytes that hold exactly one, checks the head's checksum and, unless
    /// `trust_body`, the body's hash. Shares `bytes`. `bytes_max` bounds the whole.
    pub fn decode(bytes: Bytes, bytes_max: usize, trust_body: bool) -> Result<Batch, EnvelopeError> {
        let _ = (bytes, bytes_max, trust_body);
        todo!()
    }

    /// Total length in bytes that the batch beginning at `prefix` claims, once enough of it is
    /// there to tell (`None`: more bytes are needed). Not checked against the checksum.
    pub fn claimed_len(prefix: &[u8]) -> Result<Option<usize>, EnvelopeError> {
        let _ = prefix;
        todo!()
    }

    /// What the envelope says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The encoded head; `head` then `body` are the batch's bytes.
    pub fn head(&self) -> &Bytes {
        &self.head
    }

    /// The encoded body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Length in bytes, head and body.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// A batch is never empty; there for the lint's sake.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Place of the first message.
    pub fn begin(&self) -> Place {
        self.header.begin
    }

    /// Place after the last message.
    pub fn end(&self) -> Place {
        let begin = self.header.begin;
        Place { offset: self.end_offset(), ..begin }
    }

    /// Offset after the last message. Decoding refuses batches for which this would overflow.
    pub fn end_offset(&self) -> Offset {
        self.header.begin.offset.saturating_add(u64::from(self.header.count))
    }

    /// The chain value after this batch.
    pub fn chain_after(&self) -> Chain {
        todo!()
    }
}
