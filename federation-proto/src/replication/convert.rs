//! Short forms of the conversions in [`crate::wire`], for messages that are read by reference.

use crate::{
    ids::{Incarnation, LogName, NodeName, Pattern, Place, Site, Start},
    wire::{WireError, link, required},
};

/// What a message holds, or why it cannot be meant: the link it came on is closed with these words.
pub(super) type Checked<T> = Result<T, WireError>;

pub(super) fn site_from(text: &str) -> Checked<Site> {
    Ok(text.parse()?)
}

pub(super) fn pattern_from(text: &str) -> Checked<Pattern> {
    Ok(text.parse()?)
}

pub(super) fn log_from(log: Option<&link::LogName>) -> Checked<LogName> {
    required(log.cloned(), "log")
}

pub(super) fn incarnation_from(i: Option<link::Incarnation>) -> Checked<Incarnation> {
    required(i, "incarnation")
}

pub(super) fn place_from(place: Option<&link::Place>) -> Checked<Place> {
    required(place.copied(), "place")
}

pub(super) fn places_from(places: &[link::Place]) -> Checked<Vec<Place>> {
    places.iter().map(|p| place_from(Some(p))).collect()
}

pub(super) fn start_from(start: Option<link::Start>) -> Checked<Start> {
    required(start, "start")
}

pub(super) fn node_from(node: Option<&link::NodeName>) -> Checked<NodeName> {
    required(node.cloned(), "node")
}
