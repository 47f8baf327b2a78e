//! Channels as sequences of short numbered streams.
//!
//! quinn closes a connection when one stream's receive buffer holds more than 1,024 gaps, which a long
//! stream with a large window reaches under bursts of loss. So a channel is cut: after
//! [`STREAM_BYTES_MAX`] bytes its stream is finished and the next one begins. Each stream begins with a
//! header of nine bytes: the channel, then the stream's number on that channel (little-endian, from 0).
//! The receiver reads the streams of a channel in the order of their numbers; those that are ahead stay
//! in quinn's buffers, within the connection's window.
//!
//! Older streams of a channel have priority over younger ones, so that what was lost goes before what is
//! new; control goes before live, live before backlog.
//!
//! One-way messages that fit no datagram go as one stream each, with a header of one byte.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered, Stream, StreamExt},
};
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, WriteError};
use seaway_federation_proto::session::{Channel, Lane, Transmit};

use super::bounds::{
    CHANNEL_STREAMS_MAX, CHANNEL_UNACKED_BYTES_MAX, ONE_WAY_BYTES_MAX, ONE_WAY_STREAM_BYTES_MAX, ONE_WAY_STREAMS_MAX,
    STREAM_BYTES_MAX, STREAM_WRITES_MAX, STREAMS_MAX,
};

/// The channels in the order of their priority.
pub const CHANNELS: [Channel; 3] = [Channel::Control, Channel::Lane(Lane::Live), Channel::Lane(Lane::Backlog)];

const KIND_ONE_WAY: u8 = 4;
const HEADER_BYTES: usize = 9;
/// Priorities of one class of streams: so many streams can follow each other in falling priority.
const PRIORITY_STEP: i32 = 1 << 30;
/// Chunks taken from a stream at one reading.
const READ_CHUNKS: usize = 32;

/// Why channels cannot go on; the connection is of no more use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The connection ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The peer does not keep to the mapping of channels to streams.
    #[error("the peer broke the mapping of channels to streams: {0}")]
    Protocol(&'static str),
}

impl From<WriteError> for ChannelError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Connection(error),
            WriteError::Stopped(_) => Self::Protocol("it stopped a channel's stream"),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Protocol("a stream closed by itself"),
        }
    }
}

impl From<ReadError> for ChannelError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Connection(error),
            ReadError::Reset(_) => Self::Protocol("it reset a channel's stream"),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::Protocol("a stream closed by itself")
            }
        }
    }
}

fn slot(channel: Channel) -> usize {
    match channel {
        Channel::Control => 0,
        Channel::Lane(Lane::Live) => 1,
        Channel::Lane(Lane::Backlog) => 2,
    }
}

fn kind(channel: Channel) -> u8 {
    match channel {
        Channel::Control => 1,
        Channel::Lane(Lane::Live) => 2,
        Channel::Lane(Lane::Backlog) => 3,
    }
}

fn channel_of(kind: u8) -> Option<Channel> {
    CHANNELS.into_iter().find(|channel| self::kind(*channel) == kind)
}

/// Falls with the stream's number; past a billion streams of one channel all have the class's lowest.
fn priority(channel: Channel, number: u64) -> i32 {
    let base = match channel {
        Channel::Control => i32::MAX,
        Channel::Lane(Lane::Live) => PRIORITY_STEP - 1,
        Channel::Lane(Lane::Backlog) => -1,
    };
    base - i32::try_from(number).unwrap_or(i32::MAX).min(PRIORITY_STEP - 1)
}

// ---- sending ------------------------------------------------------------------------------------

type OpenFuture = BoxFuture<'static, Result<SendStream, ConnectionError>>;

/// One channel's streams.
struct ChannelWriter {
    channel: Channel,
    next_number: u64,
    opening: Option<OpenFuture>,
    current: Option<SendStream>,
    stream_bytes: u64,
    stream_writes: u32,
    pending: VecDeque<Bytes>,
    unacked_bytes: u64,
    unacked_streams: usize,
}

/// What is written: the three channels. Polled by the link's task alone.
pub struct Writers {
    connection: Connection,
    channels: [ChannelWriter; 3],
    finished: FuturesUnordered<BoxFuture<'static, (usize, u64)>>,
}

impl std::fmt::Debug for Writers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writers").finish_non_exhaustive()
    }
}

impl Writers {
    /// Writers of a new connection.
    pub fn new(connection: Connection) -> Self {
        let channels = CHANNELS.map(|channel| ChannelWriter {
            channel,
            next_number: 0,
            opening: None,
            current: None,
            stream_bytes: 0,
            stream_writes: 0,
            pending: VecDeque::new(),
            unacked_bytes: 0,
            unacked_streams: 0,
        });
        Self { connection, channels, finished: FuturesUnordered::new() }
    }

    /// Takes note of what the peer acknowledged; to be called before the channels are polled.
    pub fn poll_acknowledged(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some((slot, bytes))) = self.finished.poll_next_unpin(cx) {
            if let Some(writer) = self.channels.get_mut(slot) {
                writer.unacked_bytes = writer.unacked_bytes.saturating_sub(bytes);
                writer.unacked_streams = writer.unacked_streams.saturating_sub(1);
            }
        }
    }

    /// Writes what is pending on a channel; ready when the channel can take a next [`Transmit`].
    pub fn poll_ready(&mut self, cx: &mut Context<'_>, channel: Channel) -> Poll<Result<(), ChannelError>> {
        let slot = slot(channel);
        loop {
            let Some(writer) = self.channels.get_mut(slot) else { return Poll::Pending };
            if writer.pending.is_empty() {
                return if writer.has_room() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
            ready!(writer.poll_open(cx, &self.connection))?;
            ready!(writer.poll_write(cx))?;
            if let Some((finished, bytes)) = writer.rotate() {
                self.finished.push(Box::pin(async move {
                    // However it ends, its bytes are off the wire; a lost connection shows elsewhere.
                    let _ = finished.stopped().await;
                    (slot, bytes)
                }));
                // Polled at once: only then does it wake the task when the peer has acknowledged.
                self.poll_acknowledged(cx);
            }
        }
    }

    /// Puts bytes on a channel; only after [`Writers::poll_ready`] said that it can take them.
    pub fn push(&mut self, channel: Channel, transmit: Transmit) {
        if let Some(writer) = self.channels.get_mut(slot(channel)) {
            writer.pending.extend(transmit.chunks.into_iter().filter(|chunk| !chunk.is_empty()));
        }
    }

    /// Bytes written and not yet acknowledged, and bytes not yet written: all that this holds.
    pub fn buffered(&self) -> u64 {
        let pending = |writer: &ChannelWriter| writer.pending.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        self.channels.iter().map(|writer| writer.unacked_bytes + pending(writer)).sum()
    }

    /// Ends a channel's stream; resolves when the peer has all of it, or the connection is lost.
    pub fn finish(&mut self, channel: Channel) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut stream = self.channels.get_mut(slot(channel)).and_then(|writer| writer.current.take());
        async move {
            if let Some(stream) = stream.as_mut() {
                // Both fail only for a stream that is of no more use.
                let _ = stream.finish();
                let _ = stream.stopped().await;
            }
        }
    }

    /// Whether all that was pushed has been handed to QUIC.
    pub fn is_flushed(&self) -> bool {
        self.channels.iter().all(|writer| writer.pending.is_empty())
    }
}

impl ChannelWriter {
    fn has_room(&self) -> bool {
        self.unacked_bytes < CHANNEL_UNACKED_BYTES_MAX && self.unacked_streams < CHANNEL_STREAMS_MAX
    }

    fn poll_open(&mut self, cx: &mut Context<'_>, connection: &Connection) -> Poll<Result<(), ChannelError>> {
        if self.current.is_some() {
            return Poll::Ready(Ok(()));
        }
        let opening = self.opening.get_or_insert_with(|| {
            let connection = connection.clone();
            Box::pin(async move { connection.open_uni().await })
        });
        let stream = ready!(opening.as_mut().poll(cx));
        self.opening = None;
        let stream = stream?;
        // A stream that is already closed has no priority, and writing to it will say so.
        let _ = stream.set_priority(priority(self.channel, self.next_number));
        let mut header = BytesMut::with_capacity(HEADER_BYTES);
        header.extend_from_slice(&[kind(self.channel)]);
        header.extend_from_slice(&self.next_number.to_le_bytes());
        self.pending.push_front(header.freeze());
        self.next_number += 1;
        self.stream_bytes = 0;
        self.stream_writes = 0;
        self.unacked_streams += 1;
        self.current = Some(stream);
        Poll::Ready(Ok(()))
    }

    /// Writes once, not past the end of the current stream.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        let Some(stream) = self.current.as_mut() else { return Poll::Ready(Ok(())) };
        let mut room = STREAM_BYTES_MAX.saturating_sub(self.stream_bytes);
        let mut chunks = Vec::with_capacity(self.pending.len().min(READ_CHUNKS));
        for chunk in self.pending.iter().take(READ_CHUNKS) {
            let taken = usize::try_from(room).unwrap_or(usize::MAX).min(chunk.len());
            chunks.push(chunk.slice(..taken));
            room -= taken as u64;
            if room == 0 {
                break;
            }
        }
        let written = pin!(stream.write_chunks(&mut chunks)).poll(cx);
        let written = ready!(written)?;
        self.stream_bytes += written.bytes as u64;
        self.unacked_bytes += written.bytes as u64;
        self.stream_writes += 1;
        let mut left = written.bytes;
        while let Some(front) = self.pending.front_mut().filter(|_| left > 0) {
            let taken = left.min(front.len());
            front.advance(taken);
            left -= taken;
            if front.is_empty() {
                self.pending.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the current stream if it has reached its bound; the stream, and the bytes written to it.
    fn rotate(&mut self) -> Option<(SendStream, u64)> {
        if self.stream_bytes < STREAM_BYTES_MAX && self.stream_writes < STREAM_WRITES_MAX {
            return None;
        }
        let mut stream = self.current.take()?;
        // Fails only for a stream that was stopped; `stopped` resolves at once then.
        let _ = stream.finish();
        Some((stream, self.stream_bytes))
    }
}

// ---- receiving ----------------------------------------------------------------------------------

/// What came in.
#[derive(Debug)]
pub enum Received {
    /// Bytes of a channel, in order.
    Bytes(Channel, Bytes),
    /// The whole content of a one-way stream.
    OneWay(Bytes),
    /// A one-way stream was dropped for lack of room.
    OneWayDropped,
}

/// A stream whose header has been read.
enum Opened {
    Channel {
        channel: Channel,
        number: u64,
        rest: Bytes,
        stream: RecvStream,
    },
    OneWay {
        first: Bytes,
        stream: RecvStream,
    },
    /// It ended before its header was complete: of no account to the peer, or a reset one-way message.
    Nothing,
}

struct ChannelReader {
    channel: Channel,
    next_number: u64,
    current: Option<RecvStream>,
    ready: VecDeque<Bytes>,
    ahead: BTreeMap<u64, (Bytes, RecvStream)>,
}

type OneWayFuture = BoxFuture<'static, Option<Bytes>>;

/// What is received: streams are sorted to their channels and read in order. Polled by the link's task alone.
pub struct Readers {
    accept: BoxStream<'static, Result<RecvStream, ConnectionError>>,
    opening: FuturesUnordered<BoxFuture<'static, Result<Opened, ChannelError>>>,
    channels: [ChannelReader; 3],
    one_way: FuturesUnordered<OneWayFuture>,
    /// Bytes that the one-way streams being read hold.
    one_way_bytes: Arc<AtomicUsize>,
    /// The connection is over; what has arrived is still read.
    lost: Option<ConnectionError>,
    /// Where the next polling begins, so that a busy channel does not starve the others.
    turn: usize,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Readers {
    /// Readers of a new connection.
    pub fn new(connection: Connection) -> Self {
        let accept = futures_util::stream::unfold(connection, |connection| async move {
            Some((connection.accept_uni().await, connection))
        });
        let channels = CHANNELS.map(|channel| ChannelReader {
            channel,
            next_number: 0,
            current: None,
            ready: VecDeque::new(),
            ahead: BTreeMap::new(),
        });
        Self {
            accept: accept.boxed(),
            opening: FuturesUnordered::new(),
            channels,
            one_way: FuturesUnordered::new(),
            one_way_bytes: Arc::default(),
            lost: None,
            turn: 0,
        }
    }

    /// The next thing that came in.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, ChannelError>> {
        self.poll_accept(cx)?;
        if let Poll::Ready(Some(message)) = self.one_way.poll_next_unpin(cx) {
            return Poll::Ready(Ok(message.map_or(Received::OneWayDropped, Received::OneWay)));
        }
        let count = self.channels.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            let Some(reader) = self.channels.get_mut(at) else { continue };
            match reader.poll(cx) {
                Poll::Ready(Ok(bytes)) => {
                    self.turn = if reader.ready.is_empty() { at + 1 } else { at };
                    return Poll::Ready(Ok(Received::Bytes(reader.channel, bytes)));
                }
                Poll::Ready(Err(ChannelError::Connection(error))) => self.lost = Some(error),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        match &self.lost {
            Some(error) => Poll::Ready(Err(error.clone().into())),
            None => Poll::Pending,
        }
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Result<(), ChannelError> {
        while self.lost.is_none()
            && let Poll::Ready(Some(stream)) = self.accept.poll_next_unpin(cx)
        {
            match stream {
                Ok(stream) => self.opening.push(Box::pin(read_header(stream))),
                Err(error) => self.lost = Some(error),
            }
        }
        while let Poll::Ready(Some(opened)) = self.opening.poll_next_unpin(cx) {
            match opened {
                Err(ChannelError::Connection(error)) => self.lost = Some(error),
                Err(error) => return Err(error),
                Ok(opened) => self.take(opened)?,
            }
        }
        Ok(())
    }

    fn take(&mut self, opened: Opened) -> Result<(), ChannelError> {
        match opened {
            Opened::Channel { channel, number, rest, stream } => {
                if let Some(reader) = self.channels.get_mut(slot(channel)) {
                    reader.add(number, rest, stream)?;
                }
            }
            Opened::OneWay { .. } if self.one_way.len() >= ONE_WAY_STREAMS_MAX => {
                self.one_way.push(Box::pin(std::future::ready(None)));
            }
            Opened::OneWay { first, stream } => {
                let held = Held { all: self.one_way_bytes.clone(), own: 0 };
                self.one_way.push(Box::pin(read_one_way(first, stream, held)));
            }
            Opened::Nothing => {}
        }
        Ok(())
    }
}

impl ChannelReader {
    fn add(&mut self, number: u64, rest: Bytes, stream: RecvStream) -> Result<(), ChannelError> {
        if number < self.next_number || number - self.next_number > u64::from(STREAMS_MAX) {
            return Err(ChannelError::Protocol("a stream's number is out of range"));
        }
        match self.ahead.insert(number, (rest, stream)) {
            Some(_) => Err(ChannelError::Protocol("two streams have one number")),
            None => Ok(()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, ChannelError>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Ok(bytes));
            }
            let Some(stream) = self.current.as_mut() else {
                let Some((rest, stream)) = self.ahead.remove(&self.next_number) else { return Poll::Pending };
                self.next_number += 1;
                self.current = Some(stream);
                self.ready.extend(Some(rest).filter(|rest| !rest.is_empty()));
                continue;
            };
            let mut chunks: [Bytes; READ_CHUNKS] = Default::default();
            let read = pin!(stream.read_chunks(&mut chunks)).poll(cx);
            match ready!(read)? {
                Some(count) => self.ready.extend(chunks.into_iter().take(count).filter(|chunk| !chunk.is_empty())),
                None => self.current = None,
            }
        }
    }
}

async fn read_header(mut stream: RecvStream) -> Result<Opened, ChannelError> {
    let mut header = BytesMut::new();
    let mut rest = Bytes::new();
    while header.len() < HEADER_BYTES {
        let mut chunk = match stream.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) => break,
            Err(ReadError::Reset(_)) => return Ok(Opened::Nothing),
            Err(error) => return Err(error.into()),
        };
        if header.is_empty() && chunk.first() == Some(&KIND_ONE_WAY) {
            chunk.advance(1);
            return Ok(Opened::OneWay { first: chunk, stream });
        }
        let taken = chunk.len().min(HEADER_BYTES - header.len());
        header.extend_from_slice(&chunk.split_to(taken));
        rest = chunk;
    }
    let mut header = header.freeze();
    if header.is_empty() {
        return Ok(Opened::Nothing);
    }
    if header.len() < HEADER_BYTES {
        return Err(ChannelError::Protocol("a stream ended in its header"));
    }
    let channel = channel_of(header.get_u8()).ok_or(ChannelError::Protocol("a stream of an unknown channel"))?;
    Ok(Opened::Channel { channel, number: header.get_u64_le(), rest, stream })
}

/// A one-way stream's share of the bytes that all of them may hold; given back when dropped.
struct Held {
    all: Arc<AtomicUsize>,
    own: usize,
}

impl Held {
    fn take(&mut self, bytes: usize) -> bool {
        self.own += bytes;
        let all = self.all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.own <= ONE_WAY_BYTES_MAX && all <= ONE_WAY_STREAM_BYTES_MAX
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Ordering::Relaxed);
    }
}

/// Reads a one-way stream to its end; `None` if there is no room for it, or it did not end in good order.
async fn read_one_way(first: Bytes, mut stream: RecvStream, mut held: Held) -> Option<Bytes> {
    let mut room = held.take(first.len());
    let mut message = BytesMut::from(first);
    while room && let Some(chunk) = stream.read_chunk(usize::MAX, true).await.ok()? {
        room = held.take(chunk.bytes.len());
        message.extend_from_slice(&chunk.bytes);
    }
    if !room {
        // Fails only where the peer has reset it already.
        let _ = stream.stop(0u32.into());
    }
    room.then(|| message.freeze())
}

// ---- one-way messages, sending ----------------------------------------------------------------------

/// Sends one-way messages: as datagrams where they fit, else as short streams. Never waits: what finds
/// no room is dropped and counted. What quinn took and dropped by itself (a path that shrank, oldest first where more came
/// than its buffer holds) shows once the buffer is empty: it was not put into a frame.
pub struct OneWaySender {
    connection: Connection,
    streams: FuturesUnordered<BoxFuture<'static, usize>>,
    bytes: usize,
    dropped: u64,
    /// Datagrams handed to quinn.
    handed: u64,
    /// Room in its buffer while it is empty.
    empty_space: usize,
    dropped_by_quinn: u64,
}

impl std::fmt::Debug for OneWaySender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OneWaySender").field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

impl OneWaySender {
    /// For a new connection.
    pub fn new(connection: Connection) -> Self {
        let empty_space = connection.datagram_send_buffer_space();
        let streams = FuturesUnordered::new();
        Self { connection, streams, bytes: 0, dropped: 0, handed: 0, empty_space, dropped_by_quinn: 0 }
    }

    /// Sends or drops a message.
    pub fn send(&mut self, message: Bytes) {
        let fits = self.connection.max_datagram_size().is_some_and(|most| message.len() <= most);
        let sent = if fits { self.send_datagram(message) } else { self.send_stream(message) };
        if !sent {
            self.dropped += 1;
        }
    }

    fn send_datagram(&mut self, message: Bytes) -> bool {
        // Asked for first: quinn would make room by dropping older ones.
        let sent = self.connection.datagram_send_buffer_space() >= message.len()
            && self.connection.send_datagram(message).is_ok();
        self.handed += u64::from(sent);
        sent
    }

    /// Looks for what quinn dropped by itself; to be called now and then.
    pub fn look(&mut self) {
        // The room first: what is framed in between must count as framed.
        if self.connection.datagram_send_buffer_space() == self.empty_space {
            let framed = self.connection.stats().frame_tx.datagram;
            self.dropped_by_quinn = self.dropped_by_quinn.max(self.handed.saturating_sub(framed));
        }
    }

    fn send_stream(&mut self, message: Bytes) -> bool {
        let length = message.len();
        let room = self.streams.len() < ONE_WAY_STREAMS_MAX
            && length <= ONE_WAY_BYTES_MAX
            && self.bytes + length <= ONE_WAY_STREAM_BYTES_MAX;
        if room {
            self.bytes += length;
            self.streams.push(Box::pin(write_one_way(self.connection.clone(), message)));
        }
        room
    }

    /// Drives the streams under way.
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(length)) = self.streams.poll_next_unpin(cx) {
            self.bytes = self.bytes.saturating_sub(length);
        }
    }

    /// Counts a message that was dropped elsewhere on this connection.
    pub fn count_dropped(&mut self) {
        self.dropped += 1;
    }

    /// Messages dropped so far for lack of room.
    pub fn dropped(&self) -> u64 {
        self.dropped.saturating_add(self.dropped_by_quinn)
    }
}

async fn write_one_way(connection: Connection, message: Bytes) -> usize {
    let length = message.len();
    let write = async {
        let mut stream = connection.open_uni().await.ok()?;
        // Between live and backlog.
        stream.set_priority(0).ok()?;
        let mut chunks = [Bytes::from_static(&[KIND_ONE_WAY]), message];
        stream.write_all_chunks(&mut chunks).await.ok()?;
        stream.finish().ok()?;
        stream.stopped().await.ok()
    };
    // At most once: where it fails, the message is gone with the connection.
    let _ = write.await;
    length
}

type ReceivedDatagram = Result<Bytes, ConnectionError>;

/// Datagrams received. quinn keeps so many bytes of them and drops the oldest: those are counted, as what was heard and never
/// came out.
pub struct Datagrams {
    connection: Connection,
    incoming: Pin<Box<dyn Stream<Item = ReceivedDatagram> + Send>>,
    taken: u64,
    /// Heard when it was last looked.
    heard: u64,
    dropped: u64,
}

impl std::fmt::Debug for Datagrams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Datagrams").field("taken", &self.taken).field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

impl Datagrams {
    /// Of a new connection.
    pub fn new(connection: Connection) -> Self {
        let incoming = Box::pin(futures_util::stream::unfold(connection.clone(), |connection| async move {
            Some((connection.read_datagram().await, connection))
        }));
        Self { connection, incoming, taken: 0, heard: 0, dropped: 0 }
    }

    /// The next one; an error once the connection is gone.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ReceivedDatagram> {
        let polled = self.incoming.poll_next_unpin(cx).map(|next| next.unwrap_or(Err(ConnectionError::LocallyClosed)));
        if matches!(polled, Poll::Ready(Ok(_))) {
            self.taken += 1;
        } else {
            // Nothing waits: what had been heard by the last look came out since, or never will.
            self.dropped = self.dropped.max(self.heard.saturating_sub(self.taken));
        }
        polled
    }

    /// Looks how many were heard; to be called now and then.
    pub fn look(&mut self) {
        self.heard = self.connection.stats().frame_rx.datagram;
    }

    /// Dropped so far for lack of room, as of the look before the last poll that found nothing.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_fall_with_age_and_never_leave_their_class() {
        for pair in CHANNELS.windows(2) {
            assert!(priority(pair[0], u64::MAX) > priority(pair[1], 0));
        }
        for channel in CHANNELS {
            assert!(priority(channel, 7) > priority(channel, 8));
            assert_eq!(channel_of(kind(channel)), Some(channel));
        }
        assert!(priority(Channel::Lane(Lane::Live), u64::MAX) >= 0 && priority(Channel::Lane(Lane::Backlog), 0) < 0);
    }
}
