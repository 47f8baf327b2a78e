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
//!       | previous incarnation counter u64, random u64, its end u64   (flag PREVIOUS only)
//!       | tag count u8, each u8 length + bytes                        (flag ANY_TAG: count 0)
//!       | incarnation counter u64, random u64, offset u64             (flag AFTER only)
//!       | checksum 16 B: XXH3-128 over all of the head before it
//! body: body length bytes
//! ```
//! Flags: 1 FIRST (an incarnation's first batch), 2 ANY_TAG, 4 PREVIOUS (only with FIRST; without it
//! the batch is its log's very first), 8 AFTER (the queue's first batch after a change of the queue count names the place of
//! that change's entry in the control queue). All integers are little-endian, XXH3-128 values too. The checksum covers the body through its hash, so the body is
//! hashed once, off the path on which places are given out. A batch's own chain value is
//! XXH3-128 over (the chain value before it, its checksum). Checksums guard against accident, not
//! against members (DESIGN section 12). A reader that meets a longer head than it knows skips the
//! rest up to the checksum: fields may be added, none may change.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use twox_hash::XxHash3_128;

use crate::{
    ids::{Incarnation, LogName, Offset, Place, Queue},
    limits,
};

const MAGIC: u32 = u32::from_le_bytes(*b"SWB1");
const FLAG_FIRST: u16 = 1;
const FLAG_ANY_TAG: u16 = 2;
const FLAG_PREVIOUS: u16 = 4;
const FLAG_AFTER: u16 = 8;
/// Bytes before the names, which are the first part of variable length.
const FIXED_BYTES: usize = 82;
/// What a head needs at least: the fixed part, two empty names, queue, tag count, checksum.
const HEAD_BYTES_MIN: usize = FIXED_BYTES + 2 + 2 + 2 + 1 + CHECKSUM_BYTES;
const CHECKSUM_BYTES: usize = 16;
/// Bytes that tell how long the whole batch is.
const CLAIM_BYTES: usize = 12;

/// XXH3-128 as it is written: little-endian.
pub(crate) fn hash(bytes: &[u8]) -> [u8; 16] {
    XxHash3_128::oneshot(bytes).to_le_bytes()
}

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

impl Codec {
    /// The permanent number of the codec.
    pub fn number(self) -> u8 {
        match self {
            Codec::None => 0,
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
            Codec::Unknown(number) => number,
        }
    }

    /// The codec of a number.
    pub fn from_number(number: u8) -> Self {
        match number {
            0 => Codec::None,
            1 => Codec::Lz4,
            2 => Codec::Zstd,
            _ => Codec::Unknown(number),
        }
    }
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
    /// The entry of the topic's control queue after which this batch comes: named by the queue's first batch after a change of
    /// the queue count.
    pub after: Option<Place>,
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
    /// Tags that the envelope cannot hold (too many, too long) become [`Tags::Any`].
    ///
    /// # Errors
    /// For a place that no reader would take: what is sealed here is read everywhere.
    pub fn seal(placement: &Placement<'_>, body: SealedBody) -> Result<Batch, EnvelopeError> {
        Self::seal_after(placement, None, body)
    }

    /// As [`Batch::seal`], for a batch that names an entry of the control queue; see [`Header::after`].
    ///
    /// # Errors
    /// As [`Batch::seal`].
    pub fn seal_after(
        placement: &Placement<'_>,
        after: Option<Place>,
        body: SealedBody,
    ) -> Result<Batch, EnvelopeError> {
        let tags = if tags_fit(&body.tags) { body.tags } else { Tags::Any };
        let mut header = Header {
            log: placement.log.clone(),
            begin: placement.begin,
            count: body.count,
            previous: placement.previous,
            first_of_incarnation: placement.first_of_incarnation || placement.previous.is_some(),
            tags,
            after,
            origin_time_us: placement.origin_time_us,
            codec: body.codec,
            body_version: body.version,
            chain_before: placement.chain_before,
            body_hash: body.hash,
            checksum: [0; 16],
        };
        check(&header)?;
        let mut head = write_head(&header, body.bytes.len());
        header.checksum = hash(&head);
        head.put_slice(&header.checksum);
        Ok(Batch { header: std::sync::Arc::new(header), head: head.freeze(), body: body.bytes })
    }

    /// Reads a batch from bytes that hold exactly one, checks the head's checksum and, unless
    /// `trust_body`, the body's hash. Shares `bytes`. `bytes_max` bounds the whole.
    ///
    /// # Errors
    /// Anything that [`Batch::seal`] would not have written; see [`EnvelopeError`].
    pub fn decode(bytes: Bytes, bytes_max: usize, trust_body: bool) -> Result<Batch, EnvelopeError> {
        if bytes.len() > bytes_max {
            return Err(EnvelopeError::TooLarge { found: bytes.len(), allowed: bytes_max });
        }
        let need = Self::claimed_len(&bytes)?.unwrap_or(HEAD_BYTES_MIN);
        if bytes.len() < need {
            return Err(EnvelopeError::Truncated { have: bytes.len(), need });
        }
        if bytes.len() > need {
            return Err(EnvelopeError::Malformed("there are bytes after the body"));
        }
        let mut body = bytes;
        let head_len = body.get(4..6).map(|mut b| b.get_u16_le()).unwrap_or_default();
        let head = body.split_to(usize::from(head_len));
        let header = read_head(&head)?;
        if !trust_body && hash(&body) != header.body_hash {
            return Err(EnvelopeError::Checksum("body"));
        }
        Ok(Batch { header: std::sync::Arc::new(header), head, body })
    }

    /// Total length in bytes that the batch beginning at `prefix` claims, once enough of it is
    /// there to tell (`None`: more bytes are needed). Not checked against the checksum.
    ///
    /// # Errors
    /// When the bytes cannot be the beginning of a batch.
    pub fn claimed_len(prefix: &[u8]) -> Result<Option<usize>, EnvelopeError> {
        let Some(mut fixed) = prefix.get(..CLAIM_BYTES) else { return Ok(None) };
        if fixed.get_u32_le() != MAGIC {
            return Err(EnvelopeError::Malformed("it does not begin with SWB1"));
        }
        let head_len = usize::from(fixed.get_u16_le());
        let _flags = fixed.get_u16_le();
        let body_len = fixed.get_u32_le() as usize;
        if head_len < HEAD_BYTES_MIN {
            return Err(EnvelopeError::Malformed("the head is too short"));
        }
        Ok(Some(head_len.saturating_add(body_len)))
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
        let mut input = [0; 32];
        let (before, checksum) = input.split_at_mut(16);
        before.copy_from_slice(&self.header.chain_before.0);
        checksum.copy_from_slice(&self.header.checksum);
        Chain(hash(&input))
    }
}

fn tags_fit(tags: &Tags) -> bool {
    match tags {
        Tags::Any => true,
        Tags::Only(list) => {
            list.len() <= limits::BATCH_TAGS_MAX && list.iter().all(|t| t.len() <= usize::from(u8::MAX))
        }
    }
}

/// The head without its checksum. Names are at most 1,024 and 63 bytes long and tags have been
/// checked, so the head's length fits its field.
fn write_head(header: &Header, body_len: usize) -> BytesMut {
    let tags: &[Box<str>] = match &header.tags {
        Tags::Any => &[],
        Tags::Only(list) => list,
    };
    let names = header.log.topic.as_str().len() + header.log.origin.as_str().len();
    let previous = if header.previous.is_some() { 24 } else { 0 };
    let after = if header.after.is_some() { 24 } else { 0 };
    let head_len = HEAD_BYTES_MIN + names + previous + after + tags.iter().map(|t| t.len() + 1).sum::<usize>();
    let mut flags = 0;
    for (set, flag) in [
        (header.first_of_incarnation, FLAG_FIRST),
        (header.tags == Tags::Any, FLAG_ANY_TAG),
        (header.previous.is_some(), FLAG_PREVIOUS),
        (header.after.is_some(), FLAG_AFTER),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let mut head = BytesMut::with_capacity(head_len);
    head.put_u32_le(MAGIC);
    head.put_u16_le(head_len as u16);
    head.put_u16_le(flags);
    head.put_u32_le(body_len as u32);
    head.put_u8(header.codec.number());
    head.put_u8(header.body_version);
    head.put_u64_le(header.begin.incarnation.counter);
    head.put_u64_le(header.begin.incarnation.random);
    head.put_u64_le(header.begin.offset);
    head.put_u32_le(header.count);
    head.put_u64_le(header.origin_time_us);
    head.put_slice(&header.chain_before.0);
    head.put_slice(&header.body_hash);
    for name in [header.log.topic.as_str(), header.log.origin.as_str()] {
        head.put_u16_le(name.len() as u16);
        head.put_slice(name.as_bytes());
    }
    head.put_u16_le(header.log.queue.0);
    if let Some(previous) = header.previous {
        put_place(&mut head, previous);
    }
    head.put_u8(tags.len() as u8);
    for tag in tags {
        head.put_u8(tag.len() as u8);
        head.put_slice(tag.as_bytes());
    }
    if let Some(after) = header.after {
        put_place(&mut head, after);
    }
    head
}

fn put_place(head: &mut BytesMut, place: Place) {
    head.put_u64_le(place.incarnation.counter);
    head.put_u64_le(place.incarnation.random);
    head.put_u64_le(place.offset);
}

const CUT: EnvelopeError = EnvelopeError::Malformed("a field of the head is cut short");

fn read_place(head: &mut &[u8]) -> Result<Place, EnvelopeError> {
    let counter = head.try_get_u64_le().map_err(|_| CUT)?;
    let random = head.try_get_u64_le().map_err(|_| CUT)?;
    let offset = head.try_get_u64_le().map_err(|_| CUT)?;
    Ok(Place { incarnation: Incarnation { counter, random }, offset })
}

fn read_array(head: &mut &[u8]) -> Result<[u8; 16], EnvelopeError> {
    let mut array = [0; 16];
    head.try_copy_to_slice(&mut array).map_err(|_| CUT)?;
    Ok(array)
}

fn read_text<'a>(head: &mut &'a [u8], len: usize) -> Result<&'a str, EnvelopeError> {
    let (text, rest) = head.split_at_checked(len).ok_or(CUT)?;
    *head = rest;
    std::str::from_utf8(text).map_err(|_| EnvelopeError::Malformed("a name is not UTF-8"))
}

fn read_head(head: &[u8]) -> Result<Header, EnvelopeError> {
    let checked = head.len().checked_sub(CHECKSUM_BYTES).ok_or(CUT)?;
    let (mut rest, mut stored) = head.split_at_checked(checked).ok_or(CUT)?;
    let checksum = read_array(&mut stored)?;
    if hash(rest) != checksum {
        return Err(EnvelopeError::Checksum("head"));
    }
    let rest = &mut rest;
    let _magic = rest.try_get_u32_le().map_err(|_| CUT)?;
    let _head_len = rest.try_get_u16_le().map_err(|_| CUT)?;
    let flags = rest.try_get_u16_le().map_err(|_| CUT)?;
    let _body_len = rest.try_get_u32_le().map_err(|_| CUT)?;
    let codec = Codec::from_number(rest.try_get_u8().map_err(|_| CUT)?);
    let body_version = rest.try_get_u8().map_err(|_| CUT)?;
    let begin = read_place(rest)?;
    let count = rest.try_get_u32_le().map_err(|_| CUT)?;
    let origin_time_us = rest.try_get_u64_le().map_err(|_| CUT)?;
    let chain_before = Chain(read_array(rest)?);
    let body_hash = read_array(rest)?;
    let topic_len = rest.try_get_u16_le().map_err(|_| CUT)?;
    let topic = read_text(rest, usize::from(topic_len))?.parse()?;
    let origin_len = rest.try_get_u16_le().map_err(|_| CUT)?;
    let origin = read_text(rest, usize::from(origin_len))?.parse()?;
    let queue = Queue(rest.try_get_u16_le().map_err(|_| CUT)?);
    let previous = if flags & FLAG_PREVIOUS != 0 { Some(read_place(rest)?) } else { None };
    let tags = read_tags(rest, flags)?;
    let after = if flags & FLAG_AFTER != 0 { Some(read_place(rest)?) } else { None };
    let header = Header {
        log: LogName { topic, origin, queue },
        begin,
        count,
        previous,
        first_of_incarnation: flags & FLAG_FIRST != 0,
        tags,
        after,
        origin_time_us,
        codec,
        body_version,
        chain_before,
        body_hash,
        checksum,
    };
    check(&header)?;
    Ok(header)
}

fn read_tags(head: &mut &[u8], flags: u16) -> Result<Tags, EnvelopeError> {
    let count = usize::from(head.try_get_u8().map_err(|_| CUT)?);
    if flags & FLAG_ANY_TAG != 0 {
        return if count == 0 { Ok(Tags::Any) } else { Err(EnvelopeError::Malformed("it lists tags and says any")) };
    }
    if count > limits::BATCH_TAGS_MAX {
        return Err(EnvelopeError::Malformed("it lists more than 16 tags"));
    }
    let mut tags = Vec::with_capacity(count);
    for _ in 0..count {
        let len = usize::from(head.try_get_u8().map_err(|_| CUT)?);
        tags.push(read_text(head, len)?.into());
    }
    Ok(Tags::Only(tags))
}

/// What no origin writes, whatever it is asked to append.
fn check(header: &Header) -> Result<(), EnvelopeError> {
    let fail = |what| Err(EnvelopeError::Malformed(what));
    if header.count == 0 || header.count > limits::BATCH_MESSAGES_MAX {
        return fail("the number of messages is 0 or above 65,536");
    }
    if header.begin.offset.checked_add(u64::from(header.count)).is_none() {
        return fail("its offsets go past the greatest");
    }
    if header.begin.incarnation.counter > limits::INCARNATION_COUNTER_MAX {
        return fail("its incarnation's counter is greater than any origin's can be");
    }
    match header.previous {
        Some(_) if !header.first_of_incarnation => {
            fail("it names an incarnation before it but is not the first of its own")
        }
        Some(previous) if previous.offset != header.begin.offset => {
            fail("offsets do not go on from the incarnation before it")
        }
        Some(previous) if previous.incarnation.counter >= header.begin.incarnation.counter => {
            fail("its incarnation is not newer than the one before it")
        }
        None if header.first_of_incarnation && header.begin.offset != 0 => {
            fail("a log's very first batch does not begin at offset 0")
        }
        None if header.first_of_incarnation && header.chain_before != Chain::default() => {
            fail("a log's very first batch has a chain value before it")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
