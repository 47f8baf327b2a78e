//! Every bound of the doors in one place; the rates to which publishers are held are in `rates`.

use std::time::Duration;

use seaway_federation_proto::limits::MESSAGE_BYTES_CEILING;

use crate::api::{Header, publish_batch::Content};
pub(crate) use crate::rates::{ClientRate, Limited, Rates, TopicRates};

/// Connections of clients at one time; the next is closed at once and counted.
pub const CONNECTIONS_MAX: usize = 4096;
/// Calls at one time on one connection.
pub const CALLS_PER_CONNECTION_MAX: u32 = 64;
/// Largest request, bytes: the largest message with room for path, headers and the encoding.
pub const REQUEST_BYTES_MAX: usize = MESSAGE_BYTES_CEILING + 64 * 1024;
/// Largest request of a subscriber, bytes: positions of thousands of logs, or as many confirmations.
pub const SUBSCRIBE_REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// Parts of one request: messages, headers, named sites, positions, ids. Each takes far more room in memory than on the wire.
pub const REQUEST_PARTS_MAX: usize = 262_144;
/// Bytes of requests of all clients that are being read, each counted whole from its first byte to its last.
pub const DECODING_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes of requests of one client that are being read, or were and wait for room further on: a client that waits holds
/// nothing of the others'.
pub const CLIENT_DECODING_BYTES_MAX: usize = DECODING_BYTES_MAX / 2;
/// Of one client's subscribers: its confirmations do not wait for its publishes.
pub const CLIENT_CONFIRMING_BYTES_MAX: usize = 8 * SUBSCRIBE_REQUEST_BYTES_MAX;
/// What one part of a request takes in memory beyond its bytes: the larger of a message and a header, and as much again since a
/// list grows by doubling.
pub const PART_BYTES: usize = {
    let (message, header) = (size_of::<Content>(), size_of::<Header>());
    2 * if message > header { message } else { header }
};
/// Bytes that the parts of all clients' requests take while they are read.
pub const PARTS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Of these, of one client; a request that finds no room is refused.
pub const CLIENT_PARTS_BYTES_MAX: usize = PARTS_BYTES_MAX / 2;
/// Requests up to this many bytes are not counted there.
pub const DECODING_SMALL_BYTES: usize = 4 * 1024;
/// How long a request may take from its first byte to its last while it is counted there.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);
/// Largest reply, bytes.
pub const REPLY_BYTES_MAX: usize = MESSAGE_BYTES_CEILING + 64 * 1024;
/// Bytes of messages of all clients that wait for room in the engine's append queue.
pub const IN_FLIGHT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Of these, of one client: one that waits for a site that is cut off leaves room for the others.
pub const CLIENT_IN_FLIGHT_BYTES_MAX: usize = IN_FLIGHT_BYTES_MAX / 4;
/// Messages of one client that wait for other sites, over all its streams.
pub const CLIENT_RECEIPTS_MAX: usize = 32_768;
/// Bytes of messages accepted on one stream and not yet answered, [`IN_FLIGHT_OVERHEAD_BYTES`] for each message included; so
/// the number of its answers that wait is bounded too.
pub const STREAM_IN_FLIGHT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Messages in one batch of a publishing stream.
pub const BATCH_MESSAGES_MAX: usize = 16_384;
/// Bytes counted for a message on top of its own, for what is kept about it while it is in flight.
pub const IN_FLIGHT_OVERHEAD_BYTES: usize = 256;
/// Receipts that wait for a client which does not read them.
pub const REPLIES_QUEUED_MAX: usize = 1024;
/// Bytes that one reply to a subscriber gathers, unless one message is larger.
pub const SUBSCRIBE_REPLY_BYTES: usize = 256 * 1024;
/// Replies that wait for a subscriber which does not read them (each of [`SUBSCRIBE_REPLY_BYTES`], or one message).
pub const SUBSCRIBE_REPLIES_MAX: usize = 4;
/// Bytes of replies of all subscribers together that wait to be read; beyond them each has one at a time.
pub const SUBSCRIBERS_REPLIES_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Bytes that a subscription reads from a log at a time, about.
pub const READ_BYTES: usize = 256 * 1024;
/// Most credit that a subscriber can have: messages.
pub const CREDIT_MESSAGES_MAX: u64 = 1_000_000;
/// Most credit that a subscriber can have: bytes.
pub const CREDIT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Subscriptions at one time, of all clients.
pub const SUBSCRIPTIONS_MAX: usize = 16_384;
/// Confirmations of one subscriber that are not yet answered.
pub const CONFIRMS_UNANSWERED_MAX: usize = 256;
/// Message ids in one confirmation.
pub const CONFIRM_IDS_MAX: usize = 16_384;
/// Durable groups of this site.
pub const GROUPS_MAX: usize = 1024;
/// Members of one group at one time.
pub const GROUP_MEMBERS_MAX: usize = 256;
/// Logs that one group covers.
pub const GROUP_LOGS_MAX: usize = 65_536;
/// Messages of one log that a group has out unconfirmed, and so the most ranges that its position can have.
pub const GROUP_UNCONFIRMED_MAX: usize = 4096;
/// Bytes of messages that one group has read and not yet delivered.
pub const GROUP_BUFFER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Origins that a subscription may name.
pub const ORIGINS_MAX: usize = 256;
/// Passing wants of plain subscribers, kept until they expire.
pub const PASSING_WANTS_MAX: usize = 4096;
/// Access tokens.
pub const TOKENS_MAX: usize = 10_000;
/// Clients, and topics, whose rates are remembered at one time.
pub const RATED_CLIENTS_MAX: usize = 10_000;
/// Largest request to the admin service, bytes.
pub const ADMIN_REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Calls of the admin service at one time, of all callers; with [`ADMIN_REQUEST_BYTES_MAX`] that bounds what they hold.
pub const ADMIN_CALLS_MAX: usize = 256;
/// Of these, of one caller.
pub const CLIENT_ADMIN_CALLS_MAX: usize = 32;
/// How long a call of the admin service may take, from its first byte to its answer.
pub const ADMIN_CALL_TIME_MAX: Duration = Duration::from_secs(120);
/// Bytes of records of admin calls that wait for the commit log; what is beyond is in the node's log alone, and counted.
pub const AUDIT_PENDING_BYTES_MAX: usize = 1024 * 1024;
/// Longest deadline that a publish may ask for.
pub const DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
