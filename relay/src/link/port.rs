//! What a link's driver needs of the node it belongs to. The hub implements it; the driver's own
//! tests and the simulation's put something smaller in its place.
//!
//! # The contract
//! - Every call names the link and carries the driver's `now` (since a moment of the shell's choosing, never
//!   decreasing). Calls of one driver come one after another; calls of different drivers may come at the same time.
//! - Calls never wait and never call back into the driver: what they lead to comes as a [`LinkCommand`] through
//!   the link's mailbox.
//! - [`HubPort::on_up`] comes at most once and before everything else of that link; [`HubPort::on_closed`] exactly
//!   once and after everything else, also for a link that never came up.
//!
//! [`LinkCommand`]: super::command::LinkCommand

use std::time::Duration;

use seaway_federation_proto::{
    copies::AppendRefusal,
    envelope::Batch,
    ids::{LogName, Place},
    replication::LinkId,
    session::{CloseReason, FetchEnded, FetchNumber, FetchOrder, Lane, PeerInfo, vitals::Trouble},
    wire::link,
};

/// The node, as a link's driver sees it; see the module's documentation.
pub trait HubPort: Send + Sync {
    /// Hello was exchanged and the peer is who its certificate says; the link is usable.
    fn on_up(&self, now: Duration, link: LinkId, peer: PeerInfo);

    /// A control message for the replication machine.
    fn on_control(&self, now: Duration, link: LinkId, message: Box<link::control::Kind>);

    /// The peer asks for a log. To be answered, sooner or later, with `Serve`, `Passed`… or `EndServed`.
    fn on_fetch_requested(&self, now: Duration, link: LinkId, order: FetchOrder);

    /// A fetch of the peer that was served from our copy ran outside it at `next`; `room` is how many
    /// bytes its asker has granted beyond what was sent. It pauses until `Serve`, `Passed` or `EndServed`.
    fn on_served_outside(&self, now: Duration, link: LinkId, number: FetchNumber, next: Place, room: u64);

    /// A fetch of the peer that is fed with `Passed` moved on, or its asker granted more: `next` is where it stands,
    /// `passed` how many bytes were sent on since it was first fed (or fed again after `Serve`), `room` how many more it
    /// has granted, what is already handed over with `Passed` but not yet sent subtracted.
    /// Called when allowance or credit grew, and about every 256 KiB that were sent on.
    fn on_served_room(&self, now: Duration, link: LinkId, number: FetchNumber, next: Place, passed: u64, room: u64);

    /// A fetch of the peer is over without `EndServed`: the peer stopped it, or it ended by itself
    /// (`no_wait`, `until`, a failed read). Commands that still name it are ignored.
    fn on_served_over(&self, now: Duration, link: LinkId, number: FetchNumber);

    /// A fetch of ours ended. Everything that came for it before was handed over already.
    fn on_fetch_ended(&self, now: Duration, link: LinkId, ended: FetchEnded);

    /// Our copy refused a batch of a fetch of ours (a gap, a broken chain, an incarnation that does not follow,
    /// an overlap); the driver has stopped the fetch. Repeats are not told: they are dropped.
    fn on_refused_batch(&self, now: Duration, link: LinkId, number: FetchNumber, refusal: AppendRefusal);

    /// A batch in this body version, which this build does not write, was handed to our copy of a log.
    fn on_body_version(&self, now: Duration, log: &LogName, version: u8);

    /// The commit log takes nothing more until this process ends, in words. May come many times, from any link.
    fn on_stopped(&self, now: Duration, why: &str);

    /// Whether [`HubPort::on_stopped`] was heard: then the copies here do not grow, and a fetch of the peer that reaches the
    /// end of one has run outside it.
    fn is_stopped(&self) -> bool;

    /// A batch came for a passing fetch of ours: to be posted as `Passed` to the link whose fetch it feeds. The
    /// credit stays taken until `Stored(lane, credit)` is posted to this link, which the hub does at once where the asker's
    /// pool has room, else when the batch has left or was dropped (see [`PassTicket`](super::passing::PassTicket)).
    fn on_passed_batch(&self, now: Duration, link: LinkId, number: FetchNumber, batch: Batch, lane: Lane, credit: u64);

    /// Whether what comes over the link arrives changed: why it does not, or `None`. After [`HubPort::on_up`] only.
    fn on_condition(&self, now: Duration, link: LinkId, trouble: Option<Trouble>);

    /// Which rate limit holds back what comes over the link changed; `None`: none does. After [`HubPort::on_up`] only.
    fn on_limited(&self, now: Duration, link: LinkId, limited: Option<String>);

    /// A one-way message came.
    fn on_one_way(&self, now: Duration, link: LinkId, message: Box<link::OneWay>);

    /// The link is over.
    fn on_closed(&self, now: Duration, link: LinkId, reason: &CloseReason);
}
