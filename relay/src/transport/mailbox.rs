//! A link's mailbox: posting never waits, and what waits is bounded in bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use prost::Message;
use tokio::sync::mpsc;

use super::bounds::MAILBOX_BYTES_MAX;
use crate::link::command::{LinkCommand, Mailbox};

/// What a command costs beside its own content, bytes.
const COMMAND_BYTES: u64 = 128;

#[derive(Debug, Default)]
struct Load {
    bytes: AtomicU64,
    overflowed: AtomicBool,
    one_way_dropped: AtomicU64,
}

/// The end where commands are posted.
#[derive(Debug, Clone)]
pub struct LinkMailbox {
    sender: mpsc::UnboundedSender<(u64, LinkCommand)>,
    load: Arc<Load>,
}

/// The link's own end.
#[derive(Debug)]
pub struct MailboxReceiver {
    receiver: mpsc::UnboundedReceiver<(u64, LinkCommand)>,
    load: Arc<Load>,
}

/// More was posted than [`MAILBOX_BYTES_MAX`]: the link cannot keep up and must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAILBOX_BYTES_MAX} bytes of commands waited for the link")]
pub struct Overflowed;

/// A new mailbox.
pub fn mailbox() -> (LinkMailbox, MailboxReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let load = Arc::new(Load::default());
    (LinkMailbox { sender, load: load.clone() }, MailboxReceiver { receiver, load })
}

fn cost(command: &LinkCommand) -> u64 {
    let content = match command {
        LinkCommand::Send(kind) => kind.encoded_len(),
        LinkCommand::OneWay(message) => message.encoded_len(),
        LinkCommand::Passed(_, batch, _) => batch.len(),
        LinkCommand::StartFetch(_)
        | LinkCommand::StopFetch(_)
        | LinkCommand::RaiseAllowance(..)
        | LinkCommand::Serve(_)
        | LinkCommand::EndServed(_)
        | LinkCommand::Advanced(_)
        | LinkCommand::Stored(..)
        | LinkCommand::Stopped(..)
        | LinkCommand::Retry
        | LinkCommand::Close(_) => 0,
    };
    COMMAND_BYTES + content as u64
}

impl LinkMailbox {
    /// Bytes that wait now.
    pub fn bytes(&self) -> u64 {
        self.load.bytes.load(Ordering::Relaxed)
    }

    /// One-way messages dropped because the mailbox was half full.
    pub fn one_way_dropped(&self) -> u64 {
        self.load.one_way_dropped.load(Ordering::Relaxed)
    }
}

impl Mailbox for LinkMailbox {
    fn post(&self, command: LinkCommand) {
        let cost = cost(&command);
        let after = self.load.bytes.fetch_add(cost, Ordering::Relaxed) + cost;
        let one_way = matches!(command, LinkCommand::OneWay(_));
        let refused = after > if one_way { MAILBOX_BYTES_MAX / 2 } else { MAILBOX_BYTES_MAX };
        // A link that is gone needs no commands.
        let unsent = refused || self.sender.send((cost, command)).is_err();
        if unsent {
            self.load.bytes.fetch_sub(cost, Ordering::Relaxed);
        }
        if refused && one_way {
            self.load.one_way_dropped.fetch_add(1, Ordering::Relaxed);
        } else if refused {
            self.load.overflowed.store(true, Ordering::Relaxed);
        }
    }
}

impl MailboxReceiver {
    /// The next command.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<LinkCommand, Overflowed>> {
        if self.load.overflowed.load(Ordering::Relaxed) {
            return Poll::Ready(Err(Overflowed));
        }
        match self.receiver.poll_recv(cx) {
            Poll::Ready(Some((cost, command))) => {
                self.load.bytes.fetch_sub(cost, Ordering::Relaxed);
                Poll::Ready(Ok(command))
            }
            // Nobody holds the other end any more: nothing will come.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use seaway_federation_proto::wire::link;

    use super::*;

    fn one_way(bytes: usize) -> LinkCommand {
        LinkCommand::OneWay(Box::new(link::OneWay { body: vec![0; bytes].into(), hops: 0 }))
    }

    fn control(bytes: usize) -> LinkCommand {
        let path = vec![0; bytes].into();
        LinkCommand::Send(Box::new(link::control::Kind::Record(link::Record { body: path, ..Default::default() })))
    }

    #[test]
    fn one_way_messages_are_dropped_and_others_close_the_link() {
        let (sender, mut receiver) = mailbox();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..40 {
            sender.post(one_way(1024 * 1024));
        }
        assert_eq!(sender.one_way_dropped(), 9);
        assert!(matches!(receiver.poll(&mut cx), Poll::Ready(Ok(LinkCommand::OneWay(_)))));
        let before = sender.bytes();
        sender.post(control(1000));
        assert_eq!(sender.bytes() - before, COMMAND_BYTES + 1007);
        for _ in 0..40 {
            sender.post(control(1024 * 1024));
        }
        assert!(sender.bytes() <= MAILBOX_BYTES_MAX);
        assert!(matches!(receiver.poll(&mut cx), Poll::Ready(Err(Overflowed))));
    }

    #[test]
    fn what_is_taken_makes_room() {
        let (sender, mut receiver) = mailbox();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..200 {
            sender.post(control(1024 * 1024));
            assert!(matches!(receiver.poll(&mut cx), Poll::Ready(Ok(_))));
        }
        assert_eq!(sender.bytes(), 0);
        assert!(receiver.poll(&mut cx).is_pending());
    }
}
