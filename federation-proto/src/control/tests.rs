//! What readers make of control queues, and the order that follows.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    order::{is_past, knows, limit},
    *,
};

fn place(counter: u64, offset: u64) -> Place {
    Place { incarnation: Incarnation { counter, random: 7 }, offset }
}

fn settings(queues: u16) -> Settings {
    Settings { queues, message_bytes_max: 1000, codec: Codec::Lz4, replicate: Some(vec!["us".parse().unwrap()]) }
}

fn settings_entry(queues: u16, change: Option<(&Ends, Option<Place>)>) -> Bytes {
    let change =
        change.map(|(ends, entry)| store::QueueChange { ends: stored_ends(ends), entry: entry.map(stored_place) });
    entry(store::control_entry::Kind::Settings(store::TopicSettings { change, ..settings(queues).to_stored() }))
}

fn ends(all: &[(u16, u64)]) -> Ends {
    all.iter().map(|(queue, offset)| (Queue(*queue), place(1, *offset))).collect()
}

#[test]
fn settings_changes_and_lives_are_read_in_order() {
    let mut control = Control::default();
    control.read(place(1, 0), &settings_entry(1, None));
    assert_eq!(control.settings, Some((place(1, 0), settings(1))));
    let before = ends(&[(1, 40)]);
    control.read(place(1, 1), &settings_entry(8, Some((&before, None))));
    // Written anew in full: the same change, with its place said.
    control.read(place(2, 2), &settings_entry(8, Some((&before, Some(place(1, 1))))));
    assert_eq!(control.changes, [QueueChange { entry: place(1, 1), ends: before.clone() }]);
    let deleted =
        store::TopicDeleted { life: 0, time_us: 5, ends: stored_ends(&ends(&[(1, 50), (2, 9)])), ..Default::default() };
    control.read(place(2, 3), &entry(store::control_entry::Kind::Deleted(deleted)));
    assert!(control.is_deleted() && control.changes.is_empty());
    assert_eq!(control.deleted.as_ref().unwrap().floor(Queue(2)), Some(9));
    control.read(place(2, 4), &settings_entry(3, None));
    assert!(!control.is_deleted() && control.deleted.is_some());
    assert_eq!(control.read_to, Some(place(2, 5)));
    // What a newer build writes is passed over and counted.
    control.read(place(2, 5), &[0xff; 3]);
    assert_eq!((control.unreadable, control.read_to), (1, Some(place(2, 6))));
}

#[test]
fn a_deletion_comes_back_as_it_was_stored() {
    let deletion = Deletion { entry: place(3, 9), life: 2, time_us: 77, ends: ends(&[(1, 4), (7, 0)]) };
    let stored = deletion.to_stored();
    assert_eq!(Deletion::from_stored(&stored, place(0, 0)), deletion);
}

#[test]
fn whoever_has_not_read_the_entry_does_not_know_it() {
    let mut control = Control::default();
    assert!(!knows(None, place(1, 0)) && !knows(Some(&control), place(1, 0)));
    control.read(place(1, 0), &settings_entry(1, None));
    assert!(knows(Some(&control), place(1, 0)) && !knows(Some(&control), place(1, 1)));
}

/// A message: its key's number, and its number within the key.
type Sent = (u8, u32);

/// A topic as its origin wrote it: queues, and the changes of their count.
struct Written {
    queues: BTreeMap<Queue, Vec<Sent>>,
    changes: Vec<QueueChange>,
}

/// Publishes with one queue count after the other; keys go to queues by remainder, and each count serves for a while.
fn write(counts: &[(u16, u8)]) -> Written {
    let (mut queues, mut changes) = (BTreeMap::<Queue, Vec<Sent>>::new(), Vec::new());
    let mut next: BTreeMap<u8, u32> = BTreeMap::new();
    for (index, (count, messages)) in counts.iter().enumerate() {
        if index > 0 {
            let ends = queues.iter().map(|(queue, sent)| (*queue, place(1, sent.len() as u64))).collect();
            changes.push(QueueChange { entry: place(1, index as u64), ends });
        }
        for message in 0..*messages {
            let key = message.wrapping_mul(31) % 11;
            let number = next.entry(key).or_default();
            queues.entry(Queue(u16::from(key) % count + 1)).or_default().push((key, *number));
            *number += 1;
        }
    }
    Written { queues, changes }
}

proptest! {
    /// However fast which queue arrives and is read, each key's messages are delivered in their order, and all of them.
    #[test]
    fn keys_keep_their_order_through_changes(
        counts in proptest::collection::vec((1_u16..9, 0_u8..40), 1..6),
        turns in proptest::collection::vec((any::<prop::sample::Index>(), 1_usize..9), 0..200),
        trimmed in proptest::collection::vec(0_u64..20, 8),
    ) {
        let written = write(&counts);
        let names: Vec<Queue> = written.queues.keys().copied().collect();
        // Retention took away the beginning of some queues: they are read from there.
        let mut at: BTreeMap<Queue, u64> = names
            .iter()
            .map(|q| (*q, trimmed[usize::from(q.0 - 1)].min(written.queues[q].len() as u64)))
            .collect();
        let mut delivered: BTreeMap<u8, u32> = BTreeMap::new();
        let read = |queue: Queue, most: usize, at: &mut BTreeMap<Queue, u64>, delivered: &mut BTreeMap<u8, u32>| {
            for _ in 0..most {
                let next = at[&queue];
                let limit = limit(&written.changes, queue, |other, end| is_past(place(1, at[&other]), end));
                if limit.is_some_and(|limit| is_past(place(1, next), limit)) {
                    return Ok(());
                }
                let Some((key, number)) = written.queues[&queue].get(next as usize) else { return Ok(()) };
                let before = delivered.insert(*key, *number);
                prop_assert!(before.is_none_or(|before| before < *number), "key {key}: {number} after {before:?}");
                at.insert(queue, next + 1);
            }
            Ok(())
        };
        if !names.is_empty() {
            for (which, most) in turns {
                read(*which.get(&names), most, &mut at, &mut delivered)?;
            }
            // Whoever goes on reading comes to the end of all.
            for _ in 0..=counts.len() {
                for queue in &names {
                    read(*queue, usize::MAX, &mut at, &mut delivered)?;
                }
            }
        }
        for (queue, sent) in &written.queues {
            prop_assert_eq!(at[queue], sent.len() as u64, "queue {:?} is stuck", queue);
        }
    }
}

/// The check above can fail: without the limit, keys do overtake themselves.
#[test]
fn without_the_limit_keys_would_lose_their_order() {
    let written = write(&[(1, 30), (8, 30)]);
    let from_second: Vec<Sent> = written.queues[&Queue(2)].clone();
    let first_of_key = written.queues[&Queue(1)].iter().find(|(key, _)| *key == from_second[0].0).unwrap();
    assert!(first_of_key.1 < from_second[0].1, "the key was in queue 1 before");
    let all_absent = limit(&written.changes, Queue(2), |_, _| false);
    assert_eq!(all_absent, Some(order::NOTHING));
    assert_eq!(limit(&written.changes, Queue(2), |_, _| true), None);
}
