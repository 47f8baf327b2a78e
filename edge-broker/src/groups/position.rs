//! A group's position in one log: the place below which all is confirmed, and the ranges confirmed above it. Pure.

use std::collections::BTreeMap;

use seaway_federation_proto::ids::{Incarnation, Offset, Place};

/// Most incarnations left behind that a position remembers; the oldest go first.
const SIDES_MAX: usize = 256;

/// Ranges of offsets, by their begin; they neither touch nor overlap.
type Ranges = BTreeMap<Offset, Offset>;

/// What a group has confirmed of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogPosition {
    below: Place,
    /// Up to where incarnations beside or before the main line's current one are confirmed.
    sides: BTreeMap<Incarnation, Offset>,
    above: BTreeMap<Incarnation, Ranges>,
    /// Where the main line leaves an incarnation, and where it goes on; learnt anew by each reading.
    hops: BTreeMap<Incarnation, (Offset, Place)>,
}

impl LogPosition {
    /// A position at which nothing above is confirmed.
    pub(crate) fn new(below: Place, sides: BTreeMap<Incarnation, Offset>) -> Self {
        Self { below, sides, above: BTreeMap::new(), hops: BTreeMap::new() }
    }

    /// The place below which all of the main line is confirmed.
    pub(crate) fn below(&self) -> Place {
        self.below
    }

    /// Up to where other incarnations are confirmed.
    pub(crate) fn sides(&self) -> &BTreeMap<Incarnation, Offset> {
        &self.sides
    }

    /// Confirmed ranges above, as (incarnation, from, to).
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Incarnation, Offset, Offset)> + '_ {
        self.above.iter().flat_map(|(incarnation, ranges)| ranges.iter().map(|(from, to)| (*incarnation, *from, *to)))
    }

    /// Messages confirmed above.
    pub(crate) fn confirmed_above(&self) -> u64 {
        self.ranges().map(|(_, from, to)| to.saturating_sub(from)).sum()
    }

    /// Whether a message is confirmed.
    pub(crate) fn is_confirmed(&self, place: Place) -> bool {
        let Place { incarnation, offset } = place;
        if incarnation == self.below.incarnation && offset < self.below.offset {
            return true;
        }
        if incarnation != self.below.incarnation && self.sides.get(&incarnation).is_some_and(|to| offset < *to) {
            return true;
        }
        let ranges = self.above.get(&incarnation);
        ranges.and_then(|r| r.range(..=offset).next_back()).is_some_and(|(_, to)| offset < *to)
    }

    /// Confirms a range.
    pub(crate) fn confirm(&mut self, from: Place, to: Offset) {
        let ranges = self.above.entry(from.incarnation).or_default();
        insert_range(ranges, from.offset, to);
        self.settle();
    }

    /// The main line leaves `from` and goes on at `to`, with nothing to confirm between.
    pub(crate) fn hop(&mut self, from: Place, to: Place) {
        if from.incarnation == to.incarnation {
            return self.confirm(from, to.offset);
        }
        self.hops.insert(from.incarnation, (from.offset, to));
        self.settle();
    }

    /// A fork begins here; below it there is nothing to confirm.
    pub(crate) fn begin_side(&mut self, place: Place) {
        if place.incarnation != self.below.incarnation {
            self.sides.entry(place.incarnation).or_insert(place.offset);
            self.settle();
        }
    }

    /// Moves what is complete below.
    fn settle(&mut self) {
        loop {
            let Place { incarnation, offset } = self.below;
            if let Some(to) = take_adjacent(&mut self.above, incarnation, offset) {
                self.below.offset = to;
            } else if let Some((left, to)) = self.hops.get(&incarnation).copied()
                && offset >= left
            {
                self.hops.remove(&incarnation);
                let side = self.sides.entry(incarnation).or_insert(offset);
                *side = (*side).max(offset);
                self.below = to;
            } else {
                break;
            }
        }
        for (incarnation, confirmed) in &mut self.sides {
            if *incarnation != self.below.incarnation
                && let Some(to) = take_adjacent(&mut self.above, *incarnation, *confirmed)
            {
                *confirmed = to;
            }
        }
        while self.sides.len() > SIDES_MAX {
            self.sides.pop_first();
        }
    }
}

/// Adds a range, joining those that it touches.
fn insert_range(ranges: &mut Ranges, mut from: Offset, mut to: Offset) {
    if from >= to {
        return;
    }
    while let Some((begin, end)) = ranges.range(..=to).next_back().map(|(b, e)| (*b, *e)) {
        if end < from {
            break;
        }
        from = from.min(begin);
        to = to.max(end);
        ranges.remove(&begin);
    }
    ranges.insert(from, to);
}

/// Takes the ranges that reach `offset`; answers where they end.
fn take_adjacent(
    above: &mut BTreeMap<Incarnation, Ranges>,
    incarnation: Incarnation,
    offset: Offset,
) -> Option<Offset> {
    let ranges = above.get_mut(&incarnation)?;
    let mut reached = None;
    while let Some((begin, end)) = ranges.first_key_value().map(|(b, e)| (*b, *e)) {
        if begin > reached.unwrap_or(offset) {
            break;
        }
        ranges.remove(&begin);
        reached = Some(end.max(reached.unwrap_or(offset)));
    }
    if ranges.is_empty() {
        above.remove(&incarnation);
    }
    reached
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn at(counter: u64, offset: u64) -> Place {
        Place { incarnation: Incarnation { counter, random: 7 }, offset }
    }

    #[test]
    fn confirmations_out_of_order_settle_once_the_gap_closes() {
        let mut position = LogPosition::new(at(1, 0), BTreeMap::new());
        position.confirm(at(1, 2), 3);
        position.confirm(at(1, 1), 2);
        assert_eq!((position.below(), position.ranges().count()), (at(1, 0), 1));
        position.confirm(at(1, 0), 1);
        assert_eq!((position.below(), position.ranges().count()), (at(1, 3), 0));
    }

    #[test]
    fn the_position_follows_the_main_line_and_remembers_what_it_left() {
        let mut position = LogPosition::new(at(1, 5), BTreeMap::new());
        position.hop(at(1, 8), at(2, 8));
        position.confirm(at(2, 8), 10);
        assert_eq!(position.below(), at(1, 5));
        position.confirm(at(1, 5), 8);
        assert_eq!(position.below(), at(2, 10));
        assert!(position.is_confirmed(at(1, 7)));
        assert!(!position.is_confirmed(at(1, 8)), "a fork's message was never confirmed");
        position.confirm(at(1, 8), 9);
        assert!(position.is_confirmed(at(1, 8)));
        assert_eq!(position.ranges().count(), 0);
    }

    proptest! {
        /// Whatever the order, a message is confirmed if and only if it was, and all below the position is.
        #[test]
        fn says_what_was_confirmed(order in Just((0_u64..40).collect::<Vec<_>>()).prop_shuffle(), take in 0_usize..40) {
            let mut position = LogPosition::new(at(1, 0), BTreeMap::new());
            position.hop(at(1, 20), at(2, 20));
            let place = |n: u64| if n < 20 { at(1, n) } else { at(2, n) };
            let confirmed: BTreeSet<_> = order.into_iter().take(take).collect();
            for n in &confirmed {
                position.confirm(place(*n), n + 1);
            }
            for n in 0..40 {
                prop_assert_eq!(position.is_confirmed(place(n)), confirmed.contains(&n));
            }
            let first = (0..40).find(|n| !confirmed.contains(n)).unwrap_or(40);
            prop_assert_eq!(position.below().offset, first);
        }
    }
}
