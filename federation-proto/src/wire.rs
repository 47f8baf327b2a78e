//! The messages of a link as generated from `proto/seaway/link/v1/link.proto`, and their
//! conversion to and from the checked types of this crate.

/// As generated; unchecked.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod link {
    include!(concat!(env!("OUT_DIR"), "/seaway.link.v1.rs"));
}
