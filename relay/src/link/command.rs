//! What is posted to a link's driver by the hub, by other links and by the commit log.

use seaway_federation_proto::{
    envelope::Batch,
    ids::LogName,
    session::{CloseReason, FetchEnded, FetchNumber, FetchOrder, Lane},
    wire::link,
};

use super::passing::PassTicket;
use crate::log::contract::Poisoned;

/// One instruction to a link's driver.
#[derive(Debug)]
pub enum LinkCommand {
    /// Send a control message.
    Send(Box<link::control::Kind>),
    /// Begin a fetch.
    StartFetch(FetchOrder),
    /// End a fetch of ours.
    StopFetch(FetchNumber),
    /// Raise a passing fetch's allowance.
    RaiseAllowance(FetchNumber, u64),
    /// Serve the peer's fetch from our copy.
    Serve(FetchNumber),
    /// Feed the peer's fetch with a batch read through on another link; the ticket is dropped when the batch has left.
    Passed(FetchNumber, Batch, PassTicket),
    /// End the peer's fetch.
    EndServed(FetchEnded),
    /// A log's readable end moved.
    Advanced(LogName),
    /// A batch that this link received is durable, passed on or dropped: return its credit.
    Stored(Lane, u64),
    /// A batch that this link received will never be durable, for the commit log stopped.
    Stopped(Lane, u64, Poisoned),
    /// The commit log has room again: submit what is held back.
    Retry,
    /// Send a one-way message.
    OneWay(Box<link::OneWay>),
    /// Close the link.
    Close(CloseReason),
}

impl LinkCommand {
    /// About what it takes beside its own size: content that is not shared with others.
    pub(super) fn bytes(&self) -> usize {
        match self {
            LinkCommand::Send(message) => message.encoded_len(),
            _ => 0,
        }
    }
}

/// Where commands for a link are posted. Posting never waits; a mailbox over its bound closes its link.
pub trait Mailbox: Send + Sync {
    /// Posts a command.
    fn post(&self, command: LinkCommand);
}
