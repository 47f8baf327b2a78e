//! This site's wants as they are kept in their table.

use bytes::Bytes;
use prost::Message as _;
use seaway_federation_proto::{
    replication::{Want, WantStart},
    wire::store::{StoredWant, stored_want},
};

/// The value of a want's row; its key is the want's id.
pub(super) fn encode(want: &Want) -> Bytes {
    let start = match want.start {
        WantStart::Earliest => stored_want::Start::Earliest(true),
        WantStart::Latest => stored_want::Start::Latest(true),
        WantStart::Time(time_us) => stored_want::Start::TimeUs(time_us),
    };
    let stored = StoredWant {
        pattern: want.pattern.to_string(),
        origins: want.origins.iter().map(ToString::to_string).collect(),
        start: Some(start),
        registers: want.registers,
    };
    stored.encode_to_vec().into()
}

/// Reads a row. `None`: not written by this build or an earlier one.
pub(super) fn decode(key: &[u8], value: &Bytes) -> Option<Want> {
    let stored = StoredWant::decode(value.clone()).ok()?;
    let start = match stored.start? {
        stored_want::Start::Earliest(_) => WantStart::Earliest,
        stored_want::Start::Latest(_) => WantStart::Latest,
        stored_want::Start::TimeUs(time_us) => WantStart::Time(time_us),
    };
    Some(Want {
        id: String::from_utf8(key.to_vec()).ok()?,
        pattern: stored.pattern.parse().ok()?,
        origins: stored.origins.iter().map(|o| o.parse().ok()).collect::<Option<_>>()?,
        start,
        registers: stored.registers,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_want_comes_back_as_it_was(
            id in "[a-z:/]{1,40}",
            pattern in "[a-z]{1,8}(/[a-z]{1,8}){0,3}(/#)?",
            origins in proptest::collection::vec("[a-z]{1,10}", 0..4),
            start in prop_oneof![Just(WantStart::Earliest), Just(WantStart::Latest), any::<u64>().prop_map(WantStart::Time)],
            registers: bool,
        ) {
            let origins = origins.iter().map(|o| o.parse().unwrap()).collect();
            let want = Want { id, pattern: pattern.parse().unwrap(), origins, start, registers };
            prop_assert_eq!(decode(want.id.as_bytes(), &encode(&want)), Some(want));
        }

        #[test]
        fn any_bytes_are_read_without_harm(key: Vec<u8>, value: Vec<u8>) {
            let _ = decode(&key, &value.into());
        }
    }
}
