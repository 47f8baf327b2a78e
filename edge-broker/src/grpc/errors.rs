//! How failures look to a client: a status with one sentence, and in its metadata what a program reads.
//!
//! `seaway-code` is stable text; `seaway-failure-bin` is the whole [`PublishFailure`] of a failed publish;
//! `retry-after-ms` says when a refused call can succeed.

use prost::Message as _;
use seaway_relay::node::PublishError;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};

use super::convert;
use crate::{
    api::{PublishFailure, publish_failure},
    limits::Limited,
};

/// Metadata key of the machine-readable code.
pub const CODE_KEY: &str = "seaway-code";
/// Metadata key of the encoded failure of a publish.
pub const FAILURE_KEY: &str = "seaway-failure-bin";
/// Metadata key of the milliseconds after which to try again.
pub const RETRY_AFTER_KEY: &str = "retry-after-ms";

/// A status with its machine-readable code.
pub(crate) fn status(code: Code, name: &'static str, text: impl Into<String>) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(CODE_KEY, MetadataValue::from_static(name));
    Status::with_metadata(code, text, metadata)
}

/// The caller broke a rule; the same call never succeeds.
pub(crate) fn invalid(text: impl Into<String>) -> Status {
    status(Code::InvalidArgument, "invalid", text)
}

/// This node cannot at present.
pub(crate) fn unavailable(text: impl Into<String>) -> Status {
    status(Code::Unavailable, "unavailable", text)
}

/// The node is stopping.
pub(crate) fn draining() -> Status {
    status(Code::Unavailable, "draining", "this node is draining; connect to another or try again later")
}

/// More than a bound allows.
pub(crate) fn too_many(text: impl Into<String>) -> Status {
    status(Code::ResourceExhausted, "limited", text)
}

/// A right is missing.
pub(crate) fn not_allowed(text: impl Into<String>) -> Status {
    status(Code::PermissionDenied, "not-allowed", text)
}

/// The state of things does not allow it; the same call may succeed once that is mended.
pub(crate) fn failed_precondition(text: impl Into<String>) -> Status {
    status(Code::FailedPrecondition, "failed-precondition", text)
}

/// What is named does not exist.
pub(crate) fn not_found(text: impl Into<String>) -> Status {
    status(Code::NotFound, "not-found", text)
}

/// A publish that failed, as a stream reports it.
pub(crate) fn failure(error: &PublishError) -> PublishFailure {
    use publish_failure::Code;
    let code = match error {
        PublishError::Invalid(_) | PublishError::Internal(_) => Code::Invalid,
        PublishError::NobodyToAcknowledge(_) => Code::NobodyToAcknowledge,
        // Stored, but not known to be acknowledged.
        PublishError::Deadline { .. } | PublishError::StoredBefore { .. } => Code::Deadline,
        PublishError::Stopping { .. } => Code::Stopping,
        PublishError::HeldBack(_) => Code::Limited,
        PublishError::Unavailable(_) => Code::Unavailable,
        PublishError::InDoubt(_) => Code::InDoubt,
        PublishError::ProducerUnknown => Code::ProducerUnknown,
        PublishError::ProducerSequence { .. } => Code::ProducerSequence,
        PublishError::ProducerFenced { .. } => Code::ProducerFenced,
        PublishError::NoTopic(_) => Code::NoTopic,
        PublishError::Deleted(_) => Code::Deleted,
    };
    let id = match error {
        PublishError::Deadline { log, place, .. } | PublishError::Stopping { log, place, .. } => {
            Some(convert::message_id(log, *place))
        }
        _ => None,
    };
    PublishFailure { code: code.into(), text: error.to_string(), id, retry_after_ms: 0 }
}

/// A publish beyond a rate.
pub(crate) fn limited(limited: &Limited) -> PublishFailure {
    let ms = u64::try_from(limited.retry_after.as_millis()).unwrap_or(u64::MAX).max(1);
    PublishFailure {
        code: publish_failure::Code::Limited.into(),
        text: format!("the limit of {} for {} is reached; try again in {ms} ms", limited.what, limited.whose),
        id: None,
        retry_after_ms: ms,
    }
}

/// A publish without the right to it.
pub(crate) fn publish_not_allowed(text: String) -> PublishFailure {
    PublishFailure { code: publish_failure::Code::NotAllowed.into(), text, id: None, retry_after_ms: 0 }
}

/// The stable name of a failure's code, as in the metadata under [`CODE_KEY`].
pub fn code_name(code: publish_failure::Code) -> &'static str {
    use publish_failure::Code;
    match code {
        Code::Unspecified => "failed",
        Code::Invalid => "invalid",
        Code::NotAllowed => "not-allowed",
        Code::Limited => "limited",
        Code::NobodyToAcknowledge => "nobody-to-acknowledge",
        Code::Deadline => "deadline",
        Code::Unavailable => "unavailable",
        Code::InDoubt => "in-doubt",
        Code::ProducerUnknown => "producer-unknown",
        Code::ProducerSequence => "producer-sequence",
        Code::ProducerFenced => "producer-fenced",
        Code::Stopping => "stopping",
        Code::NoTopic => "no-topic",
        Code::Deleted => "topic-deleted",
    }
}

/// A failed publish as the status of a call that publishes one message.
pub(crate) fn failure_status(failure: &PublishFailure) -> Status {
    use publish_failure::Code as F;
    let code = match failure.code() {
        // Not a code on which libraries call again by themselves.
        F::Unspecified | F::InDoubt => Code::Unknown,
        F::Invalid => Code::InvalidArgument,
        F::NotAllowed => Code::PermissionDenied,
        F::Limited => Code::ResourceExhausted,
        F::Deadline => Code::DeadlineExceeded,
        F::Unavailable | F::Stopping => Code::Unavailable,
        F::NoTopic => Code::NotFound,
        F::NobodyToAcknowledge | F::Deleted | F::ProducerUnknown | F::ProducerSequence | F::ProducerFenced => {
            Code::FailedPrecondition
        }
    };
    let mut status = status(code, code_name(failure.code()), failure.text.clone());
    let encoded = MetadataValue::from_bytes(&failure.encode_to_vec());
    status.metadata_mut().insert_bin(FAILURE_KEY, encoded);
    if failure.retry_after_ms > 0 {
        status.metadata_mut().insert(RETRY_AFTER_KEY, MetadataValue::from(failure.retry_after_ms));
    }
    status
}

/// A call of the engine that failed, where no message was published.
pub(crate) fn engine_status(error: &PublishError) -> Status {
    failure_status(&failure(error))
}
