//! Envelope and body.

use bytes::Bytes;
use seaway_federation_proto::{
    envelope::{Batch, Chain, Codec, Placement},
    ids::{Incarnation, LogName, Place, Queue},
    limits,
    message::{BodyBuilder, Message, ProducerStamp, decode_body, decode_messages},
};
use twox_hash::XxHash3_128;

const CODECS: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];
const HEAD_LEN_AT: usize = 4;
const BODY_HASH_AT: usize = 66;
const CHECKSUM_BYTES: usize = 16;

/// Decodes as it is, and with its checksums made right.
pub(super) fn envelope(input: &[u8]) {
    let _ = Batch::claimed_len(input);
    decode(Bytes::copy_from_slice(input));
    if let Some(repaired) = repair(input) {
        decode(repaired.into());
    }
}

fn decode(bytes: Bytes) {
    let len = bytes.len();
    let Ok(batch) = Batch::decode(bytes, limits::BATCH_BYTES_MAX, false) else { return };
    assert_eq!(batch.len(), len, "the batch is another part of the input");
    assert!(batch.end_offset() > batch.begin().offset, "the batch is empty");
    assert_ne!(batch.chain_after(), batch.header().chain_before);
    let _ = decode_messages(&batch, limits::BATCH_BYTES_MAX);
}

fn repair(input: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = input.to_vec();
    let head_len = u16::from_le_bytes(bytes.get(HEAD_LEN_AT..HEAD_LEN_AT + 2)?.try_into().ok()?);
    let (head, body) = bytes.split_at_mut_checked(usize::from(head_len))?;
    let body_hash = XxHash3_128::oneshot(body).to_le_bytes();
    head.get_mut(BODY_HASH_AT..BODY_HASH_AT + 16)?.copy_from_slice(&body_hash);
    let (covered, checksum) = head.split_at_mut_checked(head.len().checked_sub(CHECKSUM_BYTES)?)?;
    checksum.copy_from_slice(&XxHash3_128::oneshot(covered).to_le_bytes());
    Some(bytes)
}

/// The first byte is the codec, the second the number of messages.
pub(super) fn body(input: &[u8]) {
    let [codec, count, bytes @ ..] = input else { return };
    let codec = Codec::from_number(codec % 4);
    let Ok(messages) = decode_body(&Bytes::copy_from_slice(bytes), codec, u32::from(*count), 1 << 20) else { return };
    assert_eq!(messages.len(), usize::from(*count));
    let mut builder = BodyBuilder::default();
    messages.iter().for_each(|m| builder.push(m));
    if let Some(sealed) = builder.finish(Codec::None) {
        let again = decode_body(&sealed.bytes, sealed.codec, sealed.count, usize::MAX);
        assert_eq!(again.as_ref(), Ok(&messages), "what was read cannot be written again");
    }
}

fn messages() -> Vec<Message> {
    let message = |n: u32| Message {
        path: (if n.is_multiple_of(3) { "orders" } else { "orders/eu/new" }).parse().unwrap_or_else(|_| unreachable!()),
        key: n.is_multiple_of(2).then(|| Bytes::from(vec![b'k'; n as usize])),
        headers: (0..n % 4).map(|h| (format!("name-{h}"), Bytes::from_static(b"value"))).collect(),
        time_us: 1_700_000_000_000_000 + u64::from(n) * 7,
        producer: n.is_multiple_of(5).then_some(ProducerStamp { id: 1 << 100, epoch: n, sequence: u64::from(n) }),
        payload: vec![n as u8; n as usize * 3].into(),
    };
    (0..12).map(message).collect()
}

fn sealed(codec: Codec) -> Option<seaway_federation_proto::envelope::SealedBody> {
    let mut builder = BodyBuilder::default();
    messages().iter().for_each(|m| builder.push(m));
    builder.finish(codec)
}

pub(super) fn bodies() -> Vec<Vec<u8>> {
    let bodies = CODECS.iter().filter_map(|codec| sealed(*codec));
    bodies.map(|b| [&[b.codec.number(), b.count as u8], &b.bytes[..]].concat()).collect()
}

/// Batches of one log that follow each other, over incarnations.
pub(super) fn batches() -> Vec<Batch> {
    let (Ok(topic), Ok(origin)) = ("orders".parse(), "a".parse()) else { return Vec::new() };
    let log = LogName { topic, origin, queue: Queue(1) };
    let mut all: Vec<Batch> = Vec::new();
    for index in 0..6u64 {
        let codec = CODECS.get(index as usize % 3).copied().unwrap_or_default();
        let Some(body) = sealed(codec) else { break };
        let last = all.last();
        let counter = 1 + index / 3;
        let first = index % 3 == 0;
        let placement = Placement {
            log: &log,
            begin: Place {
                incarnation: Incarnation { counter, random: counter * 99 },
                offset: last.map_or(0, Batch::end_offset),
            },
            first_of_incarnation: first,
            previous: last.filter(|_| first).map(Batch::end),
            origin_time_us: 1_700_000_000_000_000,
            chain_before: last.map_or(Chain::default(), Batch::chain_after),
        };
        all.extend(Batch::seal(&placement, body));
    }
    all
}

pub(super) fn envelopes() -> Vec<Vec<u8>> {
    batches().iter().map(|b| [&b.head()[..], &b.body()[..]].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_valid() {
        let envelopes = envelopes();
        assert_eq!(envelopes.len(), 6);
        for bytes in envelopes {
            assert_eq!(repair(&bytes).as_ref(), Some(&bytes));
            let batch = Batch::decode(bytes.into(), limits::BATCH_BYTES_MAX, false).unwrap();
            assert_eq!(decode_messages(&batch, limits::BATCH_BYTES_MAX).unwrap(), messages());
        }
        for bytes in bodies() {
            let body = Bytes::copy_from_slice(&bytes[2..]);
            let read = decode_body(&body, Codec::from_number(bytes[0]), bytes[1].into(), 1 << 20);
            assert_eq!(read, Ok(messages()));
        }
    }
}
