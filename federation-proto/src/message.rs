//! Messages and the body of a batch that carries them (body version 1).

use bytes::Bytes;

use crate::{
    envelope::{Batch, Codec, SealedBody},
    ids::Path,
};

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
#[derive(Debug, Default)]
pub struct BodyBuilder {}

impl BodyBuilder {
    /// Encodes one more message.
    pub fn push(&mut self, message: &Message) {
        let _ = message;
        todo!()
    }

    /// Messages so far.
    pub fn count(&self) -> u32 {
        todo!()
    }

    /// Encoded bytes so far, before compression.
    pub fn bytes(&self) -> usize {
        todo!()
    }

    /// Compresses (when that makes it smaller; else the codec is `None`), hashes, and leaves the
    /// builder empty. `None` when nothing was pushed.
    pub fn finish(&mut self, codec: Codec) -> Option<SealedBody> {
        let _ = codec;
        todo!()
    }
}

/// The messages of a batch in order; their number is the envelope's count. Payloads share the
/// batch's bytes when it is not compressed. `bytes_max` bounds the decompressed size.
pub fn decode_messages(batch: &Batch, bytes_max: usize) -> Result<Vec<Message>, BodyError> {
    let _ = (batch, bytes_max);
    todo!()
}
