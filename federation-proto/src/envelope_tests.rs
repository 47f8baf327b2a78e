//! Envelopes: round trips, and what mutated bytes come to.

use proptest::prelude::*;

use super::*;

fn log(topic: &str, queue: u16) -> LogName {
    LogName { topic: topic.parse().unwrap(), origin: "berlin-1".parse().unwrap(), queue: Queue(queue) }
}

fn place(counter: u64, offset: u64) -> Place {
    Place { incarnation: Incarnation { counter, random: counter.wrapping_mul(77) }, offset }
}

prop_compose! {
    fn batches()(
        topic in "[a-zä/]{0,3}[a-z]{1,20}", queue in any::<u16>(), counter in 2..=limits::INCARNATION_COUNTER_MAX, offset in 0..u64::MAX / 2,
        count in 1..=limits::BATCH_MESSAGES_MAX, kind in 0..3, time in any::<u64>(), codec in any::<u8>(), version in any::<u8>(),
        chain in any::<[u8; 16]>(), tags in proptest::option::of(proptest::collection::vec("[a-z]{0,300}", 0..20)),
        body in proptest::collection::vec(any::<u8>(), 0..300), after in proptest::option::of(any::<u64>()),
    ) -> Batch {
        let log = log(&topic.replace('/', ""), queue);
        let offset = if kind == 0 { 0 } else { offset };
        let placement = Placement {
            log: &log,
            begin: place(counter, offset),
            first_of_incarnation: kind < 2,
            previous: (kind == 1).then(|| place(counter - 1, offset)),
            origin_time_us: time,
            chain_before: if kind == 0 { Chain::default() } else { Chain(chain) },
        };
        let tags = tags.map_or(Tags::Any, |tags| Tags::Only(tags.into_iter().map(Into::into).collect()));
        let hash = hash(&body);
        let body = SealedBody { bytes: body.into(), codec: Codec::from_number(codec), version, hash, count, tags };
        Batch::seal_after(&placement, after.map(|offset| place(3, offset)), body).unwrap()
    }
}

fn whole(batch: &Batch) -> Vec<u8> {
    [&batch.head()[..], &batch.body()[..]].concat()
}

proptest! {
    #[test]
    fn what_was_sealed_is_read_back(batch in batches()) {
        let bytes = whole(&batch);
        prop_assert_eq!(Batch::claimed_len(&bytes), Ok(Some(batch.len())));
        let read = Batch::decode(bytes.into(), limits::BATCH_BYTES_MAX, false).unwrap();
        prop_assert_eq!(read.header(), batch.header());
        prop_assert_eq!(read.body(), batch.body());
        prop_assert_eq!(read.chain_after(), batch.chain_after());
        prop_assert!(read.chain_after() != read.header().chain_before);
    }

    #[test]
    fn any_changed_byte_is_noticed(batch in batches(), at in any::<prop::sample::Index>(), by in 1..=255u8) {
        let mut bytes = whole(&batch);
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        prop_assert!(Batch::decode(bytes.into(), limits::BATCH_BYTES_MAX, false).is_err());
    }

    #[test]
    fn any_cut_is_noticed(batch in batches(), at in any::<prop::sample::Index>()) {
        let bytes = whole(&batch);
        let cut = Bytes::from(bytes).slice(..at.index(batch.len()));
        prop_assert!(Batch::decode(cut, limits::BATCH_BYTES_MAX, false).is_err());
    }

    #[test]
    fn wrong_fields_under_a_right_checksum_never_panic(
        batch in batches(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = whole(&batch);
        let head_len = batch.head().len();
        for (at, value) in changes {
            bytes[12 + at.index(head_len - 12 - CHECKSUM_BYTES)] = value;
        }
        let checksum = hash(&bytes[..head_len - CHECKSUM_BYTES]);
        bytes[head_len - CHECKSUM_BYTES..head_len].copy_from_slice(&checksum);
        if let Ok(read) = Batch::decode(bytes.into(), limits::BATCH_BYTES_MAX, true) {
            prop_assert!(read.end_offset() > read.begin().offset);
            prop_assert!(read.header().previous.is_none() || read.header().first_of_incarnation);
        }
    }

    #[test]
    fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Batch::decode(bytes.into(), limits::BATCH_BYTES_MAX, true).is_err());
    }
}

#[test]
fn a_longer_head_of_a_newer_build_is_read() {
    let log = log("orders", 1);
    let placement = Placement {
        log: &log,
        begin: place(1, 0),
        first_of_incarnation: true,
        previous: None,
        origin_time_us: 5,
        chain_before: Chain::default(),
    };
    let body = Bytes::from_static(b"content");
    let sealed =
        SealedBody { hash: hash(&body), bytes: body, codec: Codec::None, version: 1, count: 1, tags: Tags::Any };
    let batch = Batch::seal(&placement, sealed).unwrap();
    let mut head = batch.head()[..batch.head().len() - CHECKSUM_BYTES].to_vec();
    head.extend_from_slice(b"a later field");
    let len = (head.len() + CHECKSUM_BYTES) as u16;
    head[4..6].copy_from_slice(&len.to_le_bytes());
    let checksum = hash(&head);
    let bytes = [&head, &checksum[..], b"content"].concat();
    let read = Batch::decode(bytes.into(), limits::BATCH_BYTES_MAX, false).unwrap();
    assert_eq!(read.header().log, log);
    assert_eq!(read.head().len(), usize::from(len));
}

#[test]
fn bounds_are_kept() {
    let oversized = Batch::decode(Bytes::from(vec![0; 101]), 100, true);
    assert_eq!(oversized.unwrap_err(), EnvelopeError::TooLarge { found: 101, allowed: 100 });
    assert_eq!(Batch::claimed_len(b"SWB1"), Ok(None));
    assert!(Batch::claimed_len(b"SWB2________").is_err());
    let sealed = |counter| {
        let placement = Placement {
            log: &log("x", 1),
            begin: place(counter, 7),
            first_of_incarnation: false,
            previous: None,
            origin_time_us: 5,
            chain_before: Chain::default(),
        };
        let bytes = Bytes::from_static(b"content");
        let hash = hash(&bytes);
        let body = SealedBody { hash, bytes, codec: Codec::None, version: 1, count: 1, tags: Tags::Any };
        Batch::seal(&placement, body)
    };
    let greatest = sealed(limits::INCARNATION_COUNTER_MAX).unwrap();
    assert!(Batch::decode(whole(&greatest).into(), limits::BATCH_BYTES_MAX, false).is_ok());
    assert!(matches!(sealed(limits::INCARNATION_COUNTER_MAX + 1), Err(EnvelopeError::Malformed(_))));
}

/// The format is permanent: these bytes were written by the first build.
#[test]
fn the_encoding_stays_as_it_is() {
    let log = log("orders", 3);
    let placement = Placement {
        log: &log,
        begin: place(2, 10),
        first_of_incarnation: true,
        previous: Some(place(1, 10)),
        origin_time_us: 1_700_000_000_000_000,
        chain_before: Chain([9; 16]),
    };
    let body = Bytes::from_static(b"content");
    let tags = Tags::Only(vec!["".into(), "eu".into()]);
    let sealed = SealedBody { hash: hash(&body), bytes: body, codec: Codec::Lz4, version: 1, count: 4, tags };
    let batch = Batch::seal(&placement, sealed).unwrap();
    let found: String = batch.head().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(found, include_str!("envelope_golden.hex").trim());
    let found = format!("{:?}", batch.chain_after());
    assert_eq!(found, "fb572317a52140fe5c65332e10d4886b");
}
