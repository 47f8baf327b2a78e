//! Frames: how messages and batches stand in a channel's sequence of bytes, and how they are found
//! again where the bytes come cut anywhere.
//!
//! `u32 little-endian length of the rest | u8 kind | payload`. A frame that lies in one piece of input is
//! shared; one that does not is assembled once. What a peer may claim is bounded by kind before anything
//! is allocated.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use super::{Fault, FetchNumber, Transmit};
use crate::{envelope::Batch, limits, wire::link};

pub(super) const KIND_CONTROL: u8 = 1;
pub(super) const KIND_BATCH: u8 = 2;
pub(super) const KIND_LANE_CONTROL: u8 = 3;

const HEAD_BYTES: usize = 5;
const VARINT_BYTES_MAX: usize = 10;
/// Largest payload of a lane's control message, in bytes: an end with its text.
const LANE_CONTROL_BYTES_MAX: usize = 64 * 1024;
/// A transmit gathers frames until it has this many bytes.
pub(super) const TRANSMIT_BYTES: usize = 64 * 1024;
/// Bodies up to this size are copied behind their head rather than handed over as a chunk of their own.
const COPIED_BODY_BYTES: usize = 1024;

/// One frame as it came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) payload: Bytes,
}

/// Finds the frames of one channel.
#[derive(Debug)]
pub(super) struct FrameDecoder {
    lane: bool,
    batch_bytes_max: usize,
    head: BytesMut,
    /// Kind, payload length, and what is there of it.
    open: Option<(u8, usize, BytesMut)>,
}

impl FrameDecoder {
    pub(super) fn new(lane: bool, batch_bytes_max: usize) -> Self {
        Self { lane, batch_bytes_max, head: BytesMut::with_capacity(HEAD_BYTES), open: None }
    }

    /// Takes the next frame out of `input`; `None` once all of it is used up.
    pub(super) fn next(&mut self, input: &mut Bytes) -> Result<Option<Frame>, Fault> {
        if self.open.is_none() {
            let missing = HEAD_BYTES.saturating_sub(self.head.len()).min(input.len());
            self.head.extend_from_slice(&input.split_to(missing));
            if self.head.len() < HEAD_BYTES {
                return Ok(None);
            }
            let length = self.head.get_u32_le();
            let kind = self.head.get_u8();
            self.head.clear();
            let payload = self.check(length, kind)?;
            if input.len() >= payload {
                return Ok(Some(Frame { kind, payload: input.split_to(payload) }));
            }
            self.open = Some((kind, payload, BytesMut::with_capacity(payload)));
        }
        let Some((kind, length, payload)) = &mut self.open else { return Ok(None) };
        let missing = length.saturating_sub(payload.len()).min(input.len());
        payload.extend_from_slice(&input.split_to(missing));
        if payload.len() < *length {
            return Ok(None);
        }
        let frame = Frame { kind: *kind, payload: std::mem::take(payload).freeze() };
        self.open = None;
        Ok(Some(frame))
    }

    fn check(&self, length: u32, kind: u8) -> Result<usize, Fault> {
        let allowed = match (self.lane, kind) {
            (false, KIND_CONTROL) => limits::CONTROL_FRAME_BYTES_MAX,
            (true, KIND_BATCH) => self.batch_bytes_max.saturating_add(VARINT_BYTES_MAX),
            (true, KIND_LANE_CONTROL) => LANE_CONTROL_BYTES_MAX,
            _ => return Err(Fault::protocol(format!("a frame of kind {kind} does not belong on this channel"))),
        };
        let payload = usize::try_from(length).ok().and_then(|l| l.checked_sub(1));
        match payload {
            Some(payload) if payload <= allowed => Ok(payload),
            _ => Err(Fault::protocol(format!(
                "a frame of kind {kind} claims {length} bytes, and at most {allowed} are allowed"
            ))),
        }
    }
}

/// Fetch number and batch of a kind 2 frame; checksums are checked.
pub(super) fn read_batch(mut payload: Bytes, batch_bytes_max: usize) -> Result<(FetchNumber, Batch), Fault> {
    let number =
        decode_varint(&mut payload).map_err(|_| Fault::protocol("a batch frame has no fetch number".to_owned()))?;
    let batch = Batch::decode(payload, batch_bytes_max, false)
        .map_err(|error| Fault::protocol(format!("a batch of fetch {number} is not valid: {error}")))?;
    Ok((number, batch))
}

/// A control message as a frame.
pub(super) fn control_frame(kind: link::control::Kind) -> Bytes {
    frame(KIND_CONTROL, &link::Control { kind: Some(kind) })
}

fn frame(kind: u8, message: &impl prost::Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(HEAD_BYTES + len);
    out.put_u32_le((len + 1) as u32);
    out.put_u8(kind);
    out.put_slice(&message.encode_to_vec());
    out.freeze()
}

/// Gathers frames for one transmit.
#[derive(Debug, Default)]
pub(super) struct TransmitBuilder {
    chunks: Vec<Bytes>,
    small: BytesMut,
    bytes: usize,
    batches: u32,
}

impl TransmitBuilder {
    /// Whether enough is gathered.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= TRANSMIT_BYTES
    }

    /// Bytes gathered so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Adds a frame that is encoded already.
    pub(super) fn push_frame(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        if frame.len() <= COPIED_BODY_BYTES {
            self.small.extend_from_slice(&frame);
        } else {
            self.flush();
            self.chunks.push(frame);
        }
    }

    /// Adds a fetch's end.
    pub(super) fn push_end(&mut self, ended: link::FetchEnded) {
        let kind = Some(link::lane_control::Kind::FetchEnded(ended));
        self.push_frame(frame(KIND_LANE_CONTROL, &link::LaneControl { kind }));
    }

    /// Adds a batch; its body is shared unless it is small.
    pub(super) fn push_batch(&mut self, number: FetchNumber, batch: &Batch) {
        let len = 1 + encoded_len_varint(number) + batch.len();
        self.bytes += 4 + len;
        self.batches = self.batches.saturating_add(1);
        self.small.put_u32_le(len as u32);
        self.small.put_u8(KIND_BATCH);
        encode_varint(number, &mut self.small);
        self.small.extend_from_slice(batch.head());
        if batch.body().len() <= COPIED_BODY_BYTES {
            self.small.extend_from_slice(batch.body());
        } else {
            self.flush();
            self.chunks.push(batch.body().clone());
        }
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push(self.small.split().freeze());
        }
    }

    /// What was gathered; `None` if nothing was.
    pub(super) fn finish(mut self) -> Option<Transmit> {
        self.flush();
        (!self.chunks.is_empty()).then_some(Transmit { chunks: self.chunks, batches: self.batches })
    }
}
