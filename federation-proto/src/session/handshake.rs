//! Hello: what both sides say of themselves, and whether they can work together.

use super::{
    FEATURE_CONDITION, FEATURE_MARKS_TOLD, Fault, Lane, NodeKind, PeerInfo, SessionConfig, credit::Allowed,
    credit::Granted,
};
use crate::{
    ids::NodeName,
    message::BODY_VERSION,
    wire::{WireError, link, link::RefuseReason, required},
};

/// What this build understands beyond its protocol version, by number.
const FEATURES: [u32; 2] = [FEATURE_CONDITION, FEATURE_MARKS_TOLD];
/// Most features remembered of a peer.
const FEATURES_MAX: usize = 256;
/// Open fetches that a peer which states no bound is taken to allow.
const FETCHES_MAX_UNSTATED: usize = 1024;

/// This side's hello.
pub(super) fn hello(config: &SessionConfig, credit: &[(Lane, Granted)]) -> link::Hello {
    link::Hello {
        version_min: *config.versions.start(),
        version_max: *config.versions.end(),
        federation: config.federation.clone(),
        node: Some((&config.node).into()),
        kind: config.kind.into(),
        start: Some(config.start.into()),
        batch_bytes_max: config.batch_bytes_max as u64,
        credit: credit
            .iter()
            .map(|(lane, granted)| link::LaneCredit { lane: (*lane).into(), bytes: granted.initial() })
            .collect(),
        software: config.software.clone(),
        body_versions: vec![BODY_VERSION.into()],
        fetches_max: u32::try_from(config.fetches_max).unwrap_or(u32::MAX),
        features: FEATURES.to_vec(),
    }
}

/// The peer as its hello states it, and the credit that it grants on [`super::LANES`], in that order.
pub(super) fn check(config: &SessionConfig, hello: link::Hello) -> Result<(PeerInfo, [Allowed; 2]), Fault> {
    let kind = match hello.kind {
        0 => return Err(WireError::Missing("node kind").into()),
        number => NodeKind::from(number),
    };
    let node: NodeName = required(hello.node, "hello.node")?;
    let version = hello.version_max.min(*config.versions.end());
    if version < hello.version_min || version < *config.versions.start() {
        let text = format!(
            "{node} speaks protocol versions {} to {}, this node {} to {}; upgrade the older of the two",
            hello.version_min,
            hello.version_max,
            config.versions.start(),
            config.versions.end()
        );
        return Err(Fault { reason: RefuseReason::Version, text });
    }
    if hello.federation != config.federation {
        let theirs: String = hello.federation.chars().take(64).collect();
        let text = format!("{node} belongs to federation {theirs:?}, this node to {:?}", config.federation);
        return Err(Fault { reason: RefuseReason::Federation, text });
    }
    if let Some(certified) = config.peer_identity.as_ref().filter(|certified| **certified != node) {
        let text = format!("its hello names {node}, but its certificate {certified}");
        return Err(Fault { reason: RefuseReason::Identity, text });
    }
    if node == config.node {
        let text = format!("it claims to be {node}, which is this node's own name; give each node its own");
        return Err(Fault { reason: RefuseReason::SiteClaimed, text });
    }
    let credit = lane_credit(&hello.credit, hello.batch_bytes_max)?;
    let peer = PeerInfo {
        node,
        kind,
        start: required(hello.start, "hello.start")?,
        version,
        software: hello.software.chars().take(128).collect(),
        batch_bytes_max: usize::try_from(hello.batch_bytes_max).unwrap_or(usize::MAX),
        body_versions: hello.body_versions.iter().filter_map(|v| u8::try_from(*v).ok()).collect(),
        fetches_max: match hello.fetches_max {
            0 => FETCHES_MAX_UNSTATED,
            stated => usize::try_from(stated).unwrap_or(usize::MAX),
        },
        features: hello.features.into_iter().take(FEATURES_MAX).collect(),
    };
    Ok((peer, credit))
}

fn lane_credit(stated: &[link::LaneCredit], batch_bytes_max: u64) -> Result<[Allowed; 2], Fault> {
    let mut credit = [Allowed::default(), Allowed::default()];
    for (lane, allowed) in super::LANES.into_iter().zip(&mut credit) {
        let number = u32::from(lane);
        let bytes = stated.iter().filter(|c| c.lane == number).map(|c| c.bytes).max().unwrap_or_default();
        if bytes < batch_bytes_max {
            return Err(Fault::protocol(format!(
                "it grants {bytes} bytes on lane {number}, less than its largest batch of {batch_bytes_max}"
            )));
        }
        allowed.raise(bytes)?;
    }
    Ok(credit)
}
