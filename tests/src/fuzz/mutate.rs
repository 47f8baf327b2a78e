//! Changes to inputs.

use rand::{Rng, rngs::SmallRng, seq::IndexedRandom};

/// Numbers at which code tends to go wrong.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, u64::MAX / 2, u64::MAX];

/// A corpus entry (or, rarely, noise) with one to eight changes.
pub(super) fn next(rng: &mut SmallRng, corpus: &[Vec<u8>], bytes_max: usize) -> Vec<u8> {
    let mut input = match corpus.choose(rng) {
        Some(entry) if rng.random_bool(0.98) => entry.clone(),
        _ => (0..rng.random_range(0..200)).map(|_| rng.random()).collect(),
    };
    for _ in 0..rng.random_range(1..=8) {
        change(rng, &mut input, corpus);
    }
    input.truncate(bytes_max);
    input
}

fn change(rng: &mut SmallRng, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = rng.random_range(0..=input.len());
    let span = rng.random_range(1..=32).min(input.len() - at);
    match rng.random_range(0..8) {
        0 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = rng.random();
            }
        }
        2 => {
            // An edge number of any width and byte order.
            let number = EDGES.choose(rng).copied().unwrap_or_default();
            let width = [1, 2, 4, 8].choose(rng).copied().unwrap_or(1);
            let mut bytes: Vec<u8> = number.to_le_bytes().into_iter().take(width).collect();
            if rng.random_bool(0.2) {
                bytes.reverse();
            }
            input.iter_mut().skip(at).zip(bytes).for_each(|(byte, new)| *byte = new);
        }
        3 => drop(input.drain(at..at + span)),
        4 => {
            let copied: Vec<u8> = input.iter().skip(at).take(span).copied().collect();
            let to = rng.random_range(0..=input.len());
            input.splice(to..to, copied);
        }
        5 => {
            let new: Vec<u8> = (0..rng.random_range(1..8)).map(|_| rng.random()).collect();
            input.splice(at..at, new);
        }
        6 => {
            // The rest of another entry.
            if let Some(other) = corpus.choose(rng) {
                let from = rng.random_range(0..=other.len());
                input.truncate(at);
                input.extend(other.iter().skip(from));
            }
        }
        _ => input.truncate(at.max(1)),
    }
}
