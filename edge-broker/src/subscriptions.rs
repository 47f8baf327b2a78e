//! Subscriptions: reading logs for those who subscribe, within their credit.
//!
//! A [`feed`] reads one log along its [`cursor`] and leaves out what the [`filter`] does not mean. A [`plain`]
//! subscriber has feeds of its own and nothing durable but a passing want ([`wants`]); durable groups are in
//! [`crate::groups`].

pub(crate) mod credit;
pub(crate) mod cursor;
pub(crate) mod feed;
pub(crate) mod filter;
pub(crate) mod order;
pub(crate) mod plain;
pub(crate) mod replies;
pub(crate) mod standing;
pub(crate) mod start;
pub(crate) mod wants;
