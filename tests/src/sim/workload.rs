//! Who publishes: plain publishers, and idempotent producers that try again what was not answered, across deaths of their edge
//! broker. They outlive it, as clients do.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::{Rng, rngs::StdRng};
use seaway_federation_proto::{
    ids::{Path, Site},
    message::ProducerStamp,
};
use seaway_relay::{
    link::hub::Hub,
    node::{
        Acknowledgement, OnDeadline, PublishError,
        origin::{Origin, OwnMessage, Stored},
        receipts::{Receipts, decide},
    },
};

use super::truth::{MessageId, Truth};

/// Messages that a producer has under way in one topic at most.
const UNANSWERED_MAX: usize = 32;

/// What of its edge broker a client reaches.
pub struct Door<'a> {
    /// The node's name.
    pub node: String,
    /// The publish path.
    pub origin: &'a Arc<Origin>,
    /// The registered sites.
    pub hub: &'a Arc<Hub>,
    /// Receipts of other sites.
    pub receipts: &'a Arc<Receipts>,
    /// What happened.
    pub truth: &'a Arc<Mutex<Truth>>,
    /// Now.
    pub now: Duration,
}

/// A message and what its publisher asked.
#[derive(Debug, Clone)]
struct Asked {
    id: MessageId,
    message: OwnMessage,
    acknowledgement: Acknowledgement,
}

impl Asked {
    fn random(rng: &mut StdRng, door: &Door<'_>, topic: usize) -> Self {
        let path: Path = format!("topic-{topic}/tag").parse().expect("a path");
        let acknowledgement = match rng.random_range(0..3) {
            0 => Acknowledgement::Local,
            1 => Acknowledgement::All,
            _ => Acknowledgement::Count(1),
        };
        let id = door.truth.lock().publish(&door.node);
        let size = if rng.random_bool(0.02) { 20_000 } else { rng.random_range(12..300) };
        let key = rng.random_bool(0.5).then(|| Bytes::from(rng.random_range(0..10_u8).to_string()));
        let message = OwnMessage { path, key, headers: Vec::new(), payload: id.payload(size), producer: None };
        Self { id, message, acknowledgement }
    }
}

/// Hands a message to the origin; `answered` is told when it is stored there, or refused. Without room for it, it comes back.
fn hand_over(
    door: &Door<'_>,
    asked: Asked,
    answered: impl FnOnce(Result<(), PublishError>) + Send + 'static,
) -> Result<(), Box<OwnMessage>> {
    let registered: Arc<[Site]> = door.hub.registered(&asked.message.path.topic()).into();
    let need = decide(&asked.acknowledgement, &registered).unwrap_or(None);
    let (truth, receipts, id, now) = (door.truth.clone(), door.receipts.clone(), asked.id, door.now);
    let tell = Box::new(move |stored: Result<Stored, PublishError>| {
        let stored = match stored {
            Ok(stored) => stored,
            Err(error) => return answered(Err(error)),
        };
        truth.lock().receipt(id, stored.log.clone(), stored.place, Vec::new());
        answered(Ok(()));
        let Some(need) = need else { return };
        let answer = Box::new(move |receipt: Result<seaway_relay::node::Receipt, _>| {
            if let Ok(receipt) = receipt {
                truth.lock().receipt(id, receipt.log, receipt.place, receipt.sites);
            }
        });
        receipts.wait(stored, need, now + Duration::from_secs(20), OnDeadline::Fail, answer);
    });
    door.origin.publish(asked.message, tell)
}

/// Publishes a message that nobody will try again; `twice`: a deliberate fault.
pub fn publish_plain(rng: &mut StdRng, door: &Door<'_>, topics: usize, twice: bool) {
    let topic = rng.random_range(0..topics);
    let asked = Asked::random(rng, door, topic);
    if twice {
        let _ = hand_over(door, asked.clone(), |_| {});
    }
    // Refused for want of room: nobody was promised anything.
    let _ = hand_over(door, asked, |_| {});
}

/// A producer's messages in one topic.
#[derive(Debug, Default)]
struct Numbered {
    next: u64,
    /// Not answered yet; the one before the oldest is kept too, to be tried again although it was answered.
    open: BTreeMap<u64, Asked>,
    answered: Option<(u64, Asked)>,
}

#[derive(Debug)]
struct State {
    epoch: u32,
    topics: BTreeMap<usize, Numbered>,
}

/// An idempotent producer: it numbers its messages in each topic and tries again what was not answered.
#[derive(Debug, Clone)]
pub struct Producer {
    id: u128,
    state: Arc<Mutex<State>>,
}

impl Producer {
    /// A producer that has published nothing.
    pub fn new(id: u128) -> Self {
        Self { id, state: Arc::new(Mutex::new(State { epoch: 1, topics: BTreeMap::new() })) }
    }

    /// Publishes the next message of some topic, or tries an earlier one again. `forget`: a deliberate fault, the stamp
    /// is left away.
    pub fn publish(&self, rng: &mut StdRng, door: &Door<'_>, topics: usize, forget: bool) {
        let topic = rng.random_range(0..topics);
        if rng.random_bool(0.15) {
            return self.try_one_again(rng, door, topic, forget);
        }
        let (epoch, sequence) = {
            let mut state = self.state.lock();
            let epoch = state.epoch;
            let numbered = state.topics.entry(topic).or_default();
            if numbered.open.len() >= UNANSWERED_MAX {
                return;
            }
            (epoch, numbered.next)
        };
        let asked = Asked::random(rng, door, topic);
        {
            let mut state = self.state.lock();
            let numbered = state.topics.entry(topic).or_default();
            numbered.open.insert(sequence, asked.clone());
            numbered.next = sequence + 1;
        }
        self.send(door, topic, epoch, sequence, asked, forget);
    }

    fn try_one_again(&self, rng: &mut StdRng, door: &Door<'_>, topic: usize, forget: bool) {
        let (epoch, again) = {
            let state = self.state.lock();
            let again = state.topics.get(&topic).and_then(|numbered| {
                let open = numbered.open.iter().next().map(|(sequence, asked)| (*sequence, asked.clone()));
                if rng.random_bool(0.5) { numbered.answered.clone().or(open) } else { open }
            });
            (state.epoch, again)
        };
        if let Some((sequence, asked)) = again {
            door.truth.lock().try_again(&door.node, asked.id);
            self.send(door, topic, epoch, sequence, asked, forget);
        }
    }

    /// The edge broker is back: everything not answered is tried again, in order.
    pub fn try_all_again(&self, door: &Door<'_>, forget: bool) {
        let (epoch, open) = {
            let state = self.state.lock();
            let open: Vec<(usize, u64, Asked)> = state
                .topics
                .iter()
                .flat_map(|(topic, n)| n.open.iter().map(|(sequence, asked)| (*topic, *sequence, asked.clone())))
                .collect();
            (state.epoch, open)
        };
        for (topic, sequence, asked) in open {
            if self.state.lock().epoch != epoch {
                return;
            }
            door.truth.lock().try_again(&door.node, asked.id);
            self.send(door, topic, epoch, sequence, asked, forget);
        }
    }

    fn send(&self, door: &Door<'_>, topic: usize, epoch: u32, sequence: u64, mut asked: Asked, forget: bool) {
        asked.message.producer = (!forget).then_some(ProducerStamp { id: self.id, epoch, sequence });
        let producer = self.clone();
        let answered = move |stored: Result<(), PublishError>| match stored {
            Ok(()) => producer.answered(topic, epoch, sequence),
            Err(PublishError::Unavailable(_) | PublishError::InDoubt(_) | PublishError::StoredBefore { .. }) => {}
            Err(_) => producer.begin_anew(epoch),
        };
        if hand_over(door, asked, answered).is_err() {
            self.take_back(topic, epoch, sequence);
        }
    }

    fn answered(&self, topic: usize, epoch: u32, sequence: u64) {
        let mut state = self.state.lock();
        if state.epoch == epoch
            && let Some(numbered) = state.topics.get_mut(&topic)
            && let Some(asked) = numbered.open.remove(&sequence)
        {
            numbered.answered = Some((sequence, asked));
        }
    }

    /// The newest message was surely not taken: its number is given to the next.
    fn take_back(&self, topic: usize, epoch: u32, sequence: u64) {
        let mut state = self.state.lock();
        if state.epoch == epoch
            && let Some(numbered) = state.topics.get_mut(&topic)
            && numbered.next == sequence + 1
        {
            numbered.open.remove(&sequence);
            numbered.next = sequence;
        }
    }

    /// The origin does not know this producer any more: what is in doubt stays so, and the numbers begin anew.
    fn begin_anew(&self, epoch: u32) {
        let mut state = self.state.lock();
        if state.epoch == epoch {
            state.epoch += 1;
            state.topics.clear();
        }
    }
}
