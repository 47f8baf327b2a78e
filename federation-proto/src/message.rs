//! Messages and the body of a batch that carries them (body version 1).
//!
//! The layout of body version 1, once decompressed, is permanent: as many records as the envelope's
//! count says, one after the other, and nothing else. A record:
//!
//! ```text
//! length varint (bytes of the record after this field)
//! flags u8: 1 SAME_PATH, 2 KEY, 4 HEADERS, 8 PRODUCER; any other bit makes the body unreadable
//! time varint: zigzag of (time in µs less the time of the record before; the first: less 0), wrapping
//! path length varint, path                                (absent with SAME_PATH: the path of the record before)
//! producer id 16 B, epoch varint, sequence varint         (PRODUCER; the id as a UUID is written: big-endian)
//! key length varint, key                                  (KEY)
//! header count varint, each: name length varint, name, value length varint, value   (HEADERS)
//! payload: the rest of the record
//! ```
//! Varints are LEB128 of at most 64 bits. Codec LZ4 is one block with its decompressed length (u32
//! LE) in front; codec Zstandard is one frame that states its content size. What changes this layout
//! gets a new body version.
//!
//! Reading is generous where publishing is strict: how many headers a message may have, and how large it may be, is judged
//! at its origin when it is published ([`limits::HEADERS_MAX`], [`limits::MESSAGE_BYTES_CEILING`]). A reader bounds only
//! what it must for its own sake ([`limits::HEADERS_READ_MAX`], [`limits::BODY_BYTES_READ_MAX`]), so that an origin
//! whose bounds were raised is read by sites that know nothing of it, without a new body version.

use std::collections::BTreeSet;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{
    envelope::{Batch, Codec, SealedBody, Tags, hash},
    ids::Path,
    limits,
};

/// The body version that this build writes and reads.
pub const BODY_VERSION: u8 = 1;

const SAME_PATH: u8 = 1;
const KEY: u8 = 2;
const HEADERS: u8 = 4;
const PRODUCER: u8 = 8;
/// A record of nothing but length, flags and time.
const RECORD_BYTES_MIN: usize = 3;
/// Zstandard's own default trades too much time for what it saves on batches of this size.
const ZSTD_LEVEL: i32 = 1;
/// Payloads of at least so many bytes are not copied before the body's size is known: a buffer that grows under them copies
/// them again and again.
const PAYLOAD_SHARED_BYTES_MIN: usize = 4 * 1024;
/// LZ4 cannot make more than this of one byte; a greater claim is a lie.
const LZ4_RATIO_MAX: usize = 255;

/// Who published a message under idempotence: checked at the origin before a queue is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProducerStamp {
    /// The producer's id.
    pub id: u128,
    /// Its epoch: a higher one begins anew at sequence 0 and shuts out the lower.
    pub epoch: u32,
    /// Its sequence for the topic; the next must be one more than the last.
    pub sequence: u64,
}

/// One message as it was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The whole path.
    pub path: Path,
    /// The key that chose the queue, if any.
    pub key: Option<Bytes>,
    /// Names and values in the order given.
    pub headers: Vec<(String, Bytes)>,
    /// When it was published, by the origin's clock: microseconds since 1970.
    pub time_us: u64,
    /// Who published it, under idempotence.
    pub producer: Option<ProducerStamp>,
    /// The content.
    pub payload: Bytes,
}

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The codec or version is of a newer build; the batch is stored and forwarded all the same.
    #[error("the body has codec {codec:?} and version {version}, which this build does not read; upgrade this node")]
    Unreadable {
        /// The codec found.
        codec: Codec,
        /// The version found.
        version: u8,
    },
    /// The bytes are not what version and count promise.
    #[error("the body is malformed: {0}")]
    Malformed(&'static str),
}

/// Gathers messages into one body.
#[derive(Default)]
pub struct BodyBuilder {
    /// All but the payloads in `shared`.
    buffer: BytesMut,
    /// Large payloads, each with the byte of `buffer` that it stands before.
    shared: Vec<(usize, Bytes)>,
    shared_bytes: usize,
    count: u32,
    time_us: u64,
    path: Option<Path>,
    tags: BTreeSet<Box<str>>,
    any_tag: bool,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl std::fmt::Debug for BodyBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyBuilder").field("count", &self.count).field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl BodyBuilder {
    /// Encodes one more message. The caller keeps to [`limits::BATCH_MESSAGES_MAX`] and
    /// [`limits::BATCH_BYTES_MAX`], by [`BodyBuilder::count`] and [`BodyBuilder::bytes`].
    pub fn push(&mut self, message: &Message) {
        let same_path = self.path.as_ref() == Some(&message.path);
        if !same_path {
            self.note_tag(&message.path);
            self.path = Some(message.path.clone());
        }
        let time = zigzag(message.time_us.wrapping_sub(self.time_us));
        self.time_us = message.time_us;
        let flags = flag(same_path, SAME_PATH)
            | flag(message.key.is_some(), KEY)
            | flag(!message.headers.is_empty(), HEADERS)
            | flag(message.producer.is_some(), PRODUCER);
        let len = record_bytes(message, same_path, time);
        let is_shared = message.payload.len() >= PAYLOAD_SHARED_BYTES_MIN;
        let out = &mut self.buffer;
        out.reserve(len + 10 - if is_shared { message.payload.len() } else { 0 });
        put_varint(out, len as u64);
        out.put_u8(flags);
        put_varint(out, time);
        if !same_path {
            put_bytes(out, message.path.as_str().as_bytes());
        }
        if let Some(producer) = &message.producer {
            out.put_u128(producer.id);
            put_varint(out, u64::from(producer.epoch));
            put_varint(out, producer.sequence);
        }
        if let Some(key) = &message.key {
            put_bytes(out, key);
        }
        if !message.headers.is_empty() {
            put_varint(out, message.headers.len() as u64);
            for (name, value) in &message.headers {
                put_bytes(out, name.as_bytes());
                put_bytes(out, value);
            }
        }
        if is_shared {
            self.shared.push((out.len(), message.payload.clone()));
            self.shared_bytes += message.payload.len();
        } else {
            out.put_slice(&message.payload);
        }
        self.count = self.count.saturating_add(1);
    }

    /// Messages so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Encoded bytes so far, before compression.
    pub fn bytes(&self) -> usize {
        self.buffer.len() + self.shared_bytes
    }

    /// Everything in its order, in one piece; leaves nothing behind.
    fn assemble(&mut self) -> Bytes {
        let small = self.buffer.split().freeze();
        if self.shared.is_empty() {
            return small;
        }
        let mut whole = BytesMut::with_capacity(small.len() + std::mem::take(&mut self.shared_bytes));
        let mut from = 0;
        for (at, payload) in self.shared.drain(..) {
            whole.put_slice(small.get(from..at).unwrap_or_default());
            whole.put_slice(&payload);
            from = at;
        }
        whole.put_slice(small.get(from..).unwrap_or_default());
        whole.freeze()
    }

    /// Compresses (when that makes it smaller; else the codec is `None`), hashes, and leaves the
    /// builder empty. `None` when nothing was pushed.
    pub fn finish(&mut self, codec: Codec) -> Option<SealedBody> {
        if self.count == 0 {
            return None;
        }
        let plain = self.assemble();
        let tags = std::mem::take(&mut self.tags);
        let tags = if std::mem::take(&mut self.any_tag) { Tags::Any } else { Tags::Only(tags.into_iter().collect()) };
        let count = std::mem::take(&mut self.count);
        self.time_us = 0;
        self.path = None;
        let (bytes, codec) = match self.compress(&plain, codec) {
            Some(compressed) if compressed.len() < plain.len() => (compressed, codec),
            _ => (plain, Codec::None),
        };
        Some(SealedBody { hash: hash(&bytes), bytes, codec, version: BODY_VERSION, count, tags })
    }

    fn note_tag(&mut self, path: &Path) {
        let tag = path.tag().unwrap_or_default();
        if self.any_tag || self.tags.contains(tag) {
            return;
        }
        if self.tags.len() == limits::BATCH_TAGS_MAX || tag.len() > usize::from(u8::MAX) {
            self.any_tag = true;
            return;
        }
        self.tags.insert(tag.into());
    }

    /// `None`: not to be compressed, or it failed, in which case the plain body serves as well.
    fn compress(&mut self, plain: &[u8], codec: Codec) -> Option<Bytes> {
        match codec {
            Codec::None | Codec::Unknown(_) => None,
            Codec::Lz4 => Some(lz4_flex::block::compress_prepend_size(plain).into()),
            Codec::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
                }
                self.zstd.as_mut()?.compress(plain).ok().map(Bytes::from)
            }
        }
    }
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

/// Bytes of a record after its length.
fn record_bytes(message: &Message, same_path: bool, time: u64) -> usize {
    let field = |len: usize| varint_bytes(len as u64) + len;
    let mut len = 1 + varint_bytes(time) + message.payload.len();
    if !same_path {
        len += field(message.path.as_str().len());
    }
    if let Some(producer) = &message.producer {
        len += 16 + varint_bytes(u64::from(producer.epoch)) + varint_bytes(producer.sequence);
    }
    if let Some(key) = &message.key {
        len += field(key.len());
    }
    if !message.headers.is_empty() {
        len += varint_bytes(message.headers.len() as u64);
        len += message.headers.iter().map(|(name, value)| field(name.len()) + field(value.len())).sum::<usize>();
    }
    len
}

/// The messages of a batch in order; their number is the envelope's count. Payloads share the
/// batch's bytes when it is not compressed. `bytes_max` bounds the decompressed size.
///
/// # Errors
/// [`BodyError::Unreadable`] for a codec or version of a newer build, [`BodyError::Malformed`] for
/// bytes that no origin writes.
pub fn decode_messages(batch: &Batch, bytes_max: usize) -> Result<Vec<Message>, BodyError> {
    let header = batch.header();
    if header.body_version != BODY_VERSION {
        return Err(BodyError::Unreadable { codec: header.codec, version: header.body_version });
    }
    decode_body(batch.body(), header.codec, header.count, bytes_max)
}

/// As [`decode_messages`], for a version 1 body that stands alone.
///
/// # Errors
/// As [`decode_messages`].
pub fn decode_body(body: &Bytes, codec: Codec, count: u32, bytes_max: usize) -> Result<Vec<Message>, BodyError> {
    let mut rest = decompress(body, codec, bytes_max)?;
    let plausible = rest.len() / RECORD_BYTES_MIN;
    if count as usize > plausible {
        return Err(BodyError::Malformed("it is too short for its number of messages"));
    }
    let mut messages: Vec<Message> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let record = take_field(&mut rest)?;
        let message = read_record(record, messages.last())?;
        messages.push(message);
    }
    if !rest.is_empty() {
        return Err(BodyError::Malformed("there are bytes after the last message"));
    }
    Ok(messages)
}

fn decompress(body: &Bytes, codec: Codec, bytes_max: usize) -> Result<Bytes, BodyError> {
    const TOO_LARGE: BodyError = BodyError::Malformed("it decompresses to more than is allowed");
    const BAD: BodyError = BodyError::Malformed("it does not decompress");
    match codec {
        Codec::Unknown(_) => Err(BodyError::Unreadable { codec, version: BODY_VERSION }),
        Codec::None if body.len() > bytes_max => Err(TOO_LARGE),
        Codec::None => Ok(body.clone()),
        Codec::Lz4 => {
            let mut block: &[u8] = body;
            let size = block.try_get_u32_le().map_err(|_| BAD)? as usize;
            if size > bytes_max {
                return Err(TOO_LARGE);
            }
            if size > block.len().saturating_mul(LZ4_RATIO_MAX).saturating_add(LZ4_RATIO_MAX) {
                return Err(BAD);
            }
            let mut plain = vec![0; size];
            match lz4_flex::block::decompress_into(block, &mut plain) {
                Ok(found) if found == size => Ok(plain.into()),
                _ => Err(BAD),
            }
        }
        Codec::Zstd => {
            let size = zstd::zstd_safe::get_frame_content_size(body).ok().flatten().ok_or(BAD)?;
            let size = usize::try_from(size).map_err(|_| TOO_LARGE)?;
            if size > bytes_max {
                return Err(TOO_LARGE);
            }
            match zstd::bulk::decompress(body, size) {
                Ok(plain) if plain.len() == size => Ok(plain.into()),
                _ => Err(BAD),
            }
        }
    }
}

const CUT: BodyError = BodyError::Malformed("a record is cut short");

fn read_record(mut record: Bytes, before: Option<&Message>) -> Result<Message, BodyError> {
    let rest = &mut record;
    let flags = rest.try_get_u8().map_err(|_| CUT)?;
    if flags & !(SAME_PATH | KEY | HEADERS | PRODUCER) != 0 {
        return Err(BodyError::Malformed("a record has unknown flags"));
    }
    let time_us = before.map_or(0, |m| m.time_us).wrapping_add(unzigzag(take_varint(rest)?));
    let path = if flags & SAME_PATH != 0 {
        before.ok_or(BodyError::Malformed("the first record has no path"))?.path.clone()
    } else {
        let path = take_field(rest)?;
        let text = std::str::from_utf8(&path).map_err(|_| BodyError::Malformed("a path is not UTF-8"))?;
        text.parse().map_err(|_| BodyError::Malformed("a path breaks the rules for paths"))?
    };
    let producer = if flags & PRODUCER != 0 { Some(read_producer(rest)?) } else { None };
    let key = if flags & KEY != 0 { Some(take_field(rest)?) } else { None };
    let headers = if flags & HEADERS != 0 { read_headers(rest)? } else { Vec::new() };
    Ok(Message { path, key, headers, time_us, producer, payload: record })
}

fn read_producer(rest: &mut Bytes) -> Result<ProducerStamp, BodyError> {
    let id = rest.try_get_u128().map_err(|_| CUT)?;
    let epoch = u32::try_from(take_varint(rest)?).map_err(|_| BodyError::Malformed("an epoch is too large"))?;
    Ok(ProducerStamp { id, epoch, sequence: take_varint(rest)? })
}

fn read_headers(rest: &mut Bytes) -> Result<Vec<(String, Bytes)>, BodyError> {
    let count = take_varint(rest)?;
    if count == 0 || count > limits::HEADERS_READ_MAX as u64 {
        return Err(BodyError::Malformed("a message has too many headers, or an empty list of them"));
    }
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = take_field(rest)?;
        let name = std::str::from_utf8(&name).map_err(|_| BodyError::Malformed("a header's name is not UTF-8"))?;
        headers.push((name.to_owned(), take_field(rest)?));
    }
    Ok(headers)
}

fn zigzag(difference: u64) -> u64 {
    let signed = difference as i64;
    ((signed << 1) ^ (signed >> 63)) as u64
}

fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

fn varint_bytes(value: u64) -> usize {
    // 7 bits a byte; 0 takes one.
    (70 - (value | 1).leading_zeros() as usize) / 7
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn take_varint(rest: &mut Bytes) -> Result<u64, BodyError> {
    const BAD: BodyError = BodyError::Malformed("a number has more than 64 bits");
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = rest.try_get_u8().map_err(|_| CUT)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(BAD);
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(BAD)
}

fn take_field(rest: &mut Bytes) -> Result<Bytes, BodyError> {
    let len = usize::try_from(take_varint(rest)?).map_err(|_| CUT)?;
    if len > rest.len() {
        return Err(CUT);
    }
    Ok(rest.split_to(len))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
