//! Every bound of the transport, in one place.

use seaway_federation_proto::limits::{BATCH_OVERHEAD_BYTES, MESSAGE_BYTES_CEILING};

/// Most bytes of a channel in one stream; then the next begins. A stream that is received with a gap
/// after every packet of the smallest allowed size (1,200 bytes) has 437 of them, and quinn closes the
/// connection at 1,024.
pub const STREAM_BYTES_MAX: u64 = 1024 * 1024;
/// Most writes to one stream: each may begin a packet of its own, however small.
pub const STREAM_WRITES_MAX: u32 = 512;
/// Bytes of a channel that are written but not yet acknowledged by the peer's QUIC, about: a stream
/// counts as a whole until all of it is acknowledged.
pub const CHANNEL_UNACKED_BYTES_MAX: u64 = 24 * 1024 * 1024;
/// Streams of a channel under way at once.
pub const CHANNEL_STREAMS_MAX: usize = 40;
/// One-way streams under way at once, in each direction.
pub const ONE_WAY_STREAMS_MAX: usize = 16;
/// Largest one-way message, encoded.
pub const ONE_WAY_BYTES_MAX: usize = MESSAGE_BYTES_CEILING + BATCH_OVERHEAD_BYTES;
/// Bytes of one-way streams under way at once, in each direction; the next is dropped and counted.
pub const ONE_WAY_STREAM_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of datagrams that wait to be sent; the next is dropped and counted.
pub const DATAGRAM_SEND_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of datagrams received and not yet taken; quinn drops the oldest.
pub const DATAGRAM_RECEIVE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Streams that the peer may have open: three channels and the one-way ones, and a few that are just ending.
pub const STREAMS_MAX: u32 = 3 * CHANNEL_STREAMS_MAX as u32 + ONE_WAY_STREAMS_MAX as u32 + 24;
/// Receive window of one stream: a channel's stream fits wholly, and gaps stay far below quinn's limit.
pub const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Receive window of a connection: most that is buffered for a peer in all.
pub const CONNECTION_WINDOW_BYTES: u32 = 96 * 1024 * 1024;
/// Most that is kept for retransmission towards a peer: above the sum of what the channels allow themselves.
pub const SEND_WINDOW_BYTES: u64 = 3 * CHANNEL_UNACKED_BYTES_MAX + ONE_WAY_STREAM_BYTES_MAX as u64 + 32 * 1024 * 1024;
/// Socket buffers that are asked for; the system may grant less.
pub const SOCKET_BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// Commands that wait for a link, bytes; a link that is over it is closed.
pub const MAILBOX_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Handshakes of accepted connections at once; further ones wait, and from the second half on must prove their address.
pub const HANDSHAKES_MAX: usize = 64;
/// Connections that wait to be accepted; further ones are refused.
pub const INCOMING_MAX: usize = 256;
