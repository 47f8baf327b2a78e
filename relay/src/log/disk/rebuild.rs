//! Making the index anew from the segments and the last complete checkpoint in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, atomic::Ordering},
};

use seaway_federation_proto::{
    copies::{Hole, HoleKind, LogCopy},
    ids::{LogName, Place},
};

use super::{
    apply::{Applier, Fence, Stored},
    cell::Durable,
    checkpoint::{Item, decode_part},
    codec::Position,
    group::FLAG_CHECKPOINT,
    identity::{OpenError, io_failed},
    index::{Applied, Family, IndexError, batch_key},
    record::Record,
    recover::{Replay, index_failed},
    scan::{Depth, FoundGroup, Scanner, Step},
    segment::HEADER_BYTES,
    shared::Shared,
};
use crate::log::contract::Damage;

/// Bytes of old segments that are gone through before what was found is written to the index.
const OLD_BYTES: u64 = 16 << 20;

/// A checkpoint that was found whole.
struct Found {
    as_of: Position,
    sequence: u64,
    items: Vec<Item>,
}

/// Fills an empty index.
pub(crate) fn rebuild(replay: &mut Replay<'_>) -> Result<(), OpenError> {
    let shared = Arc::clone(replay.shared);
    let found = find_checkpoint(replay)?;
    let mut named = BTreeSet::new();
    match found {
        None => {
            if let Some(first) = replay.numbers.first().copied().filter(|first| *first > 1) {
                replay.damage(first - 1, 0, 0, "segments up to this one and all checkpoints are missing");
            }
            replay.from(&Applied::default())?;
        }
        Some(found) => {
            load_items(&shared, &found, &mut named).map_err(|e| index_failed(&shared, &e))?;
            let numbers: Vec<u64> = replay.numbers.clone();
            for number in numbers.into_iter().filter(|number| *number <= found.as_of.segment) {
                old_segment(replay, number, found.as_of)?;
            }
            let applied = Applied { to: found.as_of, sequence: found.sequence, ..Applied::default() };
            replay.from(&applied)?;
            recount(&shared).map_err(|e| index_failed(&shared, &e))?;
        }
    }
    replay.missing.extend(named);
    let lost = |n: &u64| !replay.numbers.contains(n) && !replay.reclaimed.contains(n);
    let told = !shared.damage.lock().is_empty() || replay.missing.iter().any(lost);
    fence_gaps(&shared, !told).map_err(|e| index_failed(&shared, &e))
}

fn scanner(replay: &Replay<'_>, number: u64, depth: Depth) -> Result<Scanner, OpenError> {
    let open = replay.open(number)?;
    let after = open.header.map_or(0, |header| header.first_sequence.saturating_sub(1));
    let from = Position { segment: number, at: HEADER_BYTES };
    let key = replay.shared.group_key();
    Scanner::new(open.file, key, from, after, depth).map_err(io_failed("reading", &replay.shared.segment_path(number)))
}

/// Calls `visit` with each group of a segment until it answers false.
fn visit_groups(
    replay: &Replay<'_>,
    number: u64,
    depth: Depth,
    mut visit: impl FnMut(&mut Scanner, FoundGroup) -> std::io::Result<bool>,
    mut bad: impl FnMut(u64, u64, &str),
) -> Result<(), OpenError> {
    let mut scanner = scanner(replay, number, depth)?;
    let path = replay.shared.segment_path(number);
    loop {
        match scanner.step().map_err(io_failed("reading", &path))? {
            Step::Group(group) => {
                if !visit(&mut scanner, *group).map_err(io_failed("reading", &path))? {
                    return Ok(());
                }
            }
            Step::Bad(range) => bad(range.from, range.to, &range.detail),
            Step::End { .. } => return Ok(()),
        }
    }
}

/// Looks from the end for the last checkpoint of which everything is there.
fn find_checkpoint(replay: &Replay<'_>) -> Result<Option<Found>, OpenError> {
    let mut ended = BTreeMap::new();
    for number in replay.numbers.iter().rev() {
        let mut begun = Vec::new();
        visit_groups(
            replay,
            *number,
            Depth::Headers,
            |scanner, group| {
                if group.header.flags & FLAG_CHECKPOINT == 0 {
                    return Ok(true);
                }
                for record in records(&scanner.read_units(&group.header)?) {
                    match record {
                        Record::CheckpointBegin { number, as_of, sequence } => begun.push((number, as_of, sequence)),
                        Record::CheckpointEnd { number, parts } => _ = ended.insert(number, parts),
                        _ => {}
                    }
                }
                Ok(true)
            },
            |_, _, _| {},
        )?;
        for (checkpoint, as_of, sequence) in begun.into_iter().rev() {
            if let Some(parts) = ended.get(&checkpoint)
                && let Some(items) = read_parts(replay, *number, checkpoint, *parts)?
            {
                return Ok(Some(Found { as_of, sequence, items }));
            }
        }
    }
    Ok(None)
}

fn records(units: &[super::scan::FoundUnit]) -> Vec<Record> {
    let decoded = units.iter().filter_map(|found| found.unit.as_ref());
    decoded.flat_map(|unit| unit.records.iter().map(|located| located.record.clone())).collect()
}

/// The items of a checkpoint that begins in segment `from`; `None` where a part is missing or bad.
fn read_parts(replay: &Replay<'_>, from: u64, checkpoint: u64, parts: u32) -> Result<Option<Vec<Item>>, OpenError> {
    let mut found = BTreeMap::new();
    let mut ended = false;
    for segment in replay.numbers.iter().filter(|number| **number >= from) {
        let visit = |_: &mut Scanner, group: FoundGroup| {
            for record in records(&group.units) {
                match record {
                    Record::CheckpointPart { number, part, body } if number == checkpoint => {
                        let items = decode_part(&body).ok_or_else(unknown_item)?;
                        found.insert(part, items);
                    }
                    Record::CheckpointEnd { number, .. } if number == checkpoint => ended = true,
                    _ => {}
                }
            }
            Ok(!ended)
        };
        visit_groups(replay, *segment, Depth::Units, visit, |_, _, _| {})?;
        if ended {
            break;
        }
    }
    let whole: Option<Vec<Vec<Item>>> = (0..parts).map(|part| found.remove(&part)).collect();
    Ok(whole.map(|parts| parts.into_iter().flatten().collect()))
}

fn unknown_item() -> io::Error {
    let text = "a checkpoint has an item that this Seaway does not know; run the version that wrote it, or a newer one";
    io::Error::new(io::ErrorKind::Unsupported, text)
}

fn load_items(shared: &Shared, found: &Found, named: &mut BTreeSet<u64>) -> Result<(), IndexError> {
    let mut changes = shared.index.changes();
    let mut damage = Vec::new();
    for item in &found.items {
        match item {
            Item::Segment(number) => _ = named.insert(*number),
            Item::Value { key, value } => changes.put(Family::State, key, value)?,
            Item::Log { role, name, copy } => {
                let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
                let cell = shared.cell_or_new(name, *role);
                let mut state = cell.state.lock();
                state.role = *role;
                state.durable = Some(Durable::new(id, LogCopy::clone(copy)));
                state.durable_life = 1;
                drop(state);
                super::apply::store_copy(&mut changes, &cell)?;
            }
            Item::Damage { name, incarnation, from, to } => damage.push((name, *incarnation, *from, *to)),
        }
    }
    for (name, incarnation, from, to) in damage {
        let Some(cell) = shared.cell(name) else { continue };
        let mut state = cell.state.lock();
        state.damaged.insert((incarnation, from), to);
        let id = state.durable.as_ref().map_or(0, |durable| durable.id);
        changes.put(Family::Damage, &batch_key(id, incarnation, from), &to.to_le_bytes())?;
    }
    changes.set_next_id(shared.next_id.load(Ordering::Relaxed))?;
    shared.index.write(changes)
}

/// Takes the batches of a segment from before the checkpoint, as far as they are within its bounds.
fn old_segment(replay: &Replay<'_>, number: u64, as_of: Position) -> Result<(), OpenError> {
    let shared = replay.shared;
    let mut applier = Some(Applier::new(shared, true));
    let mut unwritten = 0;
    let mut failed = None;
    let visit = |_: &mut Scanner, group: FoundGroup| {
        if group.header.position >= as_of {
            return Ok(false);
        }
        for bad in group.bad() {
            replay.damage(number, bad.from, bad.to, &bad.detail);
        }
        let current = applier.get_or_insert_with(|| Applier::new(shared, true));
        if let Err(e) = old_group(current, &group) {
            failed = Some(e);
            return Ok(false);
        }
        unwritten += group.header.length;
        if unwritten >= OLD_BYTES {
            unwritten = 0;
            if let Some(Err(e)) = applier.take().map(|applier| applier.finish(None)) {
                failed = Some(e);
                return Ok(false);
            }
        }
        Ok(true)
    };
    visit_groups(replay, number, Depth::Bodies, visit, |from, to, detail| {
        if (Position { segment: number, at: from }) < as_of {
            replay.damage(number, from, to, detail);
        }
    })?;
    let finished = match failed {
        Some(e) => Err(e),
        None => applier.map_or(Ok(()), |applier| applier.finish(None).map(drop)),
    };
    finished.map_err(|e| index_failed(shared, &e))
}

fn old_group(applier: &mut Applier<'_>, group: &FoundGroup) -> Result<(), IndexError> {
    for found in &group.units {
        let Some(unit) = &found.unit else { continue };
        for located in &unit.records {
            let Some((_, batch)) = located.record.batch() else { continue };
            let at_us = match located.record {
                Record::Moved { stored_at_us, .. } => stored_at_us,
                _ => unit.stored_at_us,
            };
            let at = found.from + u64::from(located.batch_at);
            applier.held_batch(batch, Stored { position: Position { at, ..group.header.position }, at_us })?;
        }
    }
    Ok(())
}

/// Counts the bytes that copies retain: a trim after the checkpoint took away batches whose segment went since, so that
/// replaying it could not subtract them.
fn recount(shared: &Shared) -> Result<(), IndexError> {
    let cells: Vec<_> = shared.cells.read().values().cloned().collect();
    for cell in cells {
        let mut state = cell.state.lock();
        let Some(durable) = state.durable.as_mut() else { continue };
        let mut bytes = 0;
        for held in durable.copy.info().incarnations {
            shared.index.visit_batches(durable.id, held.incarnation, held.begin, |_, entry| {
                bytes += u64::from(entry.length);
                true
            })?;
        }
        if bytes == durable.copy.bytes() {
            continue;
        }
        durable.copy.recount(bytes);
        durable.shape_changed = true;
        drop(state);
        let mut changes = shared.index.changes();
        super::apply::store_copy(&mut changes, &cell)?;
        shared.index.write(changes)?;
    }
    Ok(())
}

/// Fences what copies should hold and no segment yielded, and with `tell` reports it: what was fenced after the last checkpoint
/// stands in the index alone, and the segment that it was damaged in may be gone by now.
fn fence_gaps(shared: &Shared, tell: bool) -> Result<(), IndexError> {
    let names: Vec<LogName> = shared.cells.read().keys().cloned().collect();
    for name in names {
        let Some(cell) = shared.cell(&name) else { continue };
        let found = cell.state.lock().durable.as_ref().map(|durable| (durable.id, durable.copy.clone()));
        let Some((id, copy)) = found else { continue };
        let mut applier = Applier::new(shared, true);
        for hole in gaps(shared, id, &copy)? {
            cell.state.lock().damaged.insert((hole.incarnation, hole.from), hole.to);
            if tell {
                let file = shared.config.dir.join(super::segment::DIRECTORY).display().to_string();
                let place = Place { incarnation: hole.incarnation, offset: hole.from };
                let detail = format!("the batches of {name} from {place} to offset {} are in no segment", hole.to);
                shared.report_damage(Damage { file, from: 0, to: 0, detail });
            }
            applier.fence(&name, &Fence { id, hole, below: None, above: None, bytes: 0 })?;
        }
        applier.finish(None)?;
    }
    Ok(())
}

/// Ranges within a copy, holes left out, for which there is no batch.
fn gaps(shared: &Shared, id: u64, copy: &LogCopy) -> Result<Vec<Hole>, IndexError> {
    let mut gaps = Vec::new();
    for held in copy.info().incarnations {
        let incarnation = held.incarnation;
        let mut known: Vec<(u64, u64)> =
            copy.holes().filter(|hole| hole.incarnation == incarnation).map(|hole| (hole.from, hole.to)).collect();
        shared.index.visit_batches(id, incarnation, 0, |offset, entry| {
            known.push((offset, offset + u64::from(entry.count)));
            true
        })?;
        known.sort_unstable();
        known.push((held.end, held.end));
        let mut expected = held.begin;
        for (from, to) in known {
            if from > expected && from <= held.end {
                gaps.push(Hole { incarnation, from: expected, to: from, kind: HoleKind::Pending });
            }
            expected = expected.max(to);
        }
    }
    Ok(gaps)
}
