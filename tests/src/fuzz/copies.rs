//! What a node remembers of a log's copy, as its index and its checkpoints keep it.

use seaway_federation_proto::{
    copies::{Facts, Hole, HoleKind, LogCopy, OnLine, TakenAsGiven},
    ids::Place,
};
use seaway_relay::log::conformance::fixture::{Origin, log_name};

/// Reads a state and does with it what its owner would: what was accepted is written again as it was.
pub(super) fn run(input: &[u8]) {
    let Ok(mut copy) = LogCopy::decode(input) else { return };
    let mut again = Vec::new();
    copy.encode(&mut again);
    assert!(LogCopy::decode(&again).as_ref() == Ok(&copy), "what was read is not written again as it was");
    let info = copy.info();
    for incarnation in info.incarnations.iter().map(|held| held.incarnation) {
        for offset in [0, info.begin.offset, info.end.offset, u64::MAX] {
            let _ = copy.locate(Place { incarnation, offset }, OnLine::Main);
            let _ = copy.known_chain(Place { incarnation, offset });
        }
    }
    let lost = Hole { incarnation: info.end.incarnation, from: info.end.offset, to: u64::MAX, kind: HoleKind::Lost };
    let _ = copy.hole(lost);
    let _ = copy.trim(info.end, &TakenAsGiven);
}

/// An empty copy, one with batches, and one with a trim, a hole and a second part.
pub(super) fn corpus() -> Vec<Vec<u8>> {
    let mut origin = Origin::new(log_name("t", "s1", 1), 3);
    let batches = origin.batches(8);
    let Some(first) = batches.first() else { return Vec::new() };
    let mut copy = LogCopy::begin(first.begin(), None);
    let mut states = vec![copy.clone()];
    for batch in batches.iter().take(4) {
        let _ = copy.append(&Facts::from(batch), &TakenAsGiven);
    }
    states.push(copy.clone());
    if let (Some(second), Some(last)) = (batches.get(2), batches.last()) {
        let _ = copy.trim_to_boundary(second.begin(), None, 0);
        let end = copy.end();
        let _ = copy.hole(Hole {
            incarnation: end.incarnation,
            from: end.offset,
            to: last.begin().offset,
            kind: HoleKind::Pending,
        });
        let _ = copy.append(&Facts::from(last), &TakenAsGiven);
        states.push(copy);
    }
    let encoded = |state: &LogCopy| {
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        bytes
    };
    states.iter().map(encoded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_valid_and_each_state_is_another() {
        let corpus = corpus();
        let states: Vec<LogCopy> = corpus.iter().map(|bytes| LogCopy::decode(bytes).unwrap()).collect();
        assert_eq!(states.len(), 3);
        assert_eq!(states[2].holes().count(), 1);
        assert!(states[1].messages() > 0 && states[0].messages() == 0);
    }
}
