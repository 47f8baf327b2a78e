//! Every bound of the protocol, in one place, with its unit in its name.

/// Longest path or pattern, in bytes (DESIGN: 1 KiB).
pub const PATH_BYTES_MAX: usize = 1024;
/// Largest batch in bytes, envelope included, unless one message alone is larger.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Size that a batch is filled to before the next is begun, in bytes.
pub const BATCH_BYTES_TARGET: usize = 256 * 1024;
/// Largest message that any topic may allow, in bytes: payload, key and headers together.
pub const MESSAGE_BYTES_CEILING: usize = 16 * 1024 * 1024;
/// Largest message of a topic that sets nothing, in bytes.
pub const MESSAGE_BYTES_DEFAULT: usize = 1024 * 1024;
/// Room on top of a message for envelope and record, in bytes.
pub const BATCH_OVERHEAD_BYTES: usize = 8 * 1024;
/// Greatest counter of an incarnation: one a start of a process, so no origin comes near it. What claims more is made up.
pub const INCARNATION_COUNTER_MAX: u64 = 1 << 48;
/// How far above its own newest incarnation an origin believes that one of its logs was carried by a start it has forgotten:
/// one start a second for twelve days. What lies above was made up, and is not followed.
pub const INCARNATION_LEAP_MAX: u64 = 1 << 20;
/// Longest range of its own log that an origin believes to have lost together with what others hold above it, in messages: a
/// million a second for twelve days. What lies above a longer one was made up, and is not followed.
pub const LOST_RANGE_MAX: u64 = 1 << 40;
/// Most messages in one batch.
pub const BATCH_MESSAGES_MAX: u32 = 65_536;
/// Most tags that an envelope lists; with more it says "any".
pub const BATCH_TAGS_MAX: usize = 16;
/// Largest control message of a link, in bytes.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Most queues of a topic at one origin.
pub const QUEUES_MAX: u16 = 1024;
/// Most headers of a message that is published.
pub const HEADERS_MAX: usize = 64;
/// Most headers of a message that is read: far more than are published, so that [`HEADERS_MAX`] may be raised.
pub const HEADERS_READ_MAX: usize = 4096;
/// Largest body that is read, in bytes, decompressed: far more than is published, so that [`MESSAGE_BYTES_CEILING`] may be
/// raised.
pub const BODY_BYTES_READ_MAX: usize = 4 * MESSAGE_BYTES_CEILING;
/// Longest key in bytes.
pub const KEY_BYTES_MAX: usize = 4096;
