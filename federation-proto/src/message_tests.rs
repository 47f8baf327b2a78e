//! Bodies: round trips under every codec, and what hostile bytes come to.

use proptest::prelude::*;

use super::*;

const MAX: usize = 4 * 1024 * 1024;

prop_compose! {
    fn messages()(
        path in prop::sample::select(vec!["orders", "orders/eu", "orders/us/new", "ä/b"]),
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        headers in prop::collection::vec(("[a-z]{0,12}", prop::collection::vec(any::<u8>(), 0..20)), 0..4),
        time_us in prop_oneof![any::<u64>(), 1_700_000_000_000_000..1_700_000_000_100_000u64],
        producer in prop::option::of((any::<u128>(), any::<u32>(), any::<u64>())),
        payload in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), (0..12_000usize).prop_map(|n| vec![b'x'; n])],
    ) -> Message {
        Message {
            path: path.parse().unwrap(),
            key: key.map(Bytes::from),
            headers: headers.into_iter().map(|(name, value)| (name, Bytes::from(value))).collect(),
            time_us,
            producer: producer.map(|(id, epoch, sequence)| ProducerStamp { id, epoch, sequence }),
            payload: payload.into(),
        }
    }
}

fn codecs() -> impl Strategy<Value = Codec> {
    prop::sample::select(vec![Codec::None, Codec::Lz4, Codec::Zstd])
}

fn build(messages: &[Message], codec: Codec) -> SealedBody {
    let mut builder = BodyBuilder::default();
    messages.iter().for_each(|m| builder.push(m));
    assert_eq!(builder.count() as usize, messages.len());
    let bytes = builder.bytes();
    let sealed = builder.finish(codec).unwrap();
    assert!(sealed.codec != Codec::None || sealed.bytes.len() == bytes);
    assert_eq!((builder.count(), builder.bytes()), (0, 0));
    sealed
}

proptest! {
    #[test]
    fn messages_come_back_as_they_went_in(messages in prop::collection::vec(messages(), 1..30), codec in codecs()) {
        let sealed = build(&messages, codec);
        let read = decode_body(&sealed.bytes, sealed.codec, sealed.count, MAX).unwrap();
        prop_assert_eq!(read, messages);
    }

    #[test]
    fn changed_bytes_never_panic_nor_outgrow_the_bound(
        messages in prop::collection::vec(messages(), 1..10), codec in codecs(), count in 0..20u32,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5), max in 0..20_000usize,
    ) {
        let sealed = build(&messages, codec);
        let mut bytes = sealed.bytes.to_vec();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd, sealed.codec] {
            if let Ok(read) = decode_body(&bytes.clone().into(), codec, count, max) {
                prop_assert_eq!(read.len(), count as usize);
                prop_assert!(read.iter().map(|m| m.payload.len()).sum::<usize>() <= max);
            }
        }
    }

    #[test]
    fn varints_are_as_long_as_said(value in any::<u64>(), shift in 0..64) {
        let value = value >> shift;
        let mut out = BytesMut::new();
        put_varint(&mut out, value);
        prop_assert_eq!(out.len(), varint_bytes(value));
        prop_assert_eq!(take_varint(&mut out.freeze()), Ok(value));
        prop_assert_eq!(unzigzag(zigzag(value)), value);
    }
}

fn message(path: &str, payload: &'static [u8]) -> Message {
    Message {
        path: path.parse().unwrap(),
        key: None,
        headers: Vec::new(),
        time_us: 7,
        producer: None,
        payload: Bytes::from_static(payload),
    }
}

#[test]
fn payloads_share_an_uncompressed_body() {
    let sealed = build(&[message("orders", b"content")], Codec::None);
    let read = decode_body(&sealed.bytes, sealed.codec, 1, MAX).unwrap();
    assert!(sealed.bytes.as_ptr_range().contains(&read[0].payload.as_ptr()));
}

#[test]
fn what_does_not_shrink_stays_plain() {
    assert_eq!(build(&[message("orders", b"x")], Codec::Zstd).codec, Codec::None);
    let even = Message { payload: vec![0; 10_000].into(), ..message("orders", b"") };
    assert_eq!(build(std::slice::from_ref(&even), Codec::Zstd).codec, Codec::Zstd);
    assert_eq!(build(&[even], Codec::Lz4).codec, Codec::Lz4);
}

#[test]
fn tags_are_listed_up_to_sixteen() {
    let sealed = build(&[message("orders/b", b""), message("orders", b""), message("orders/a", b"")], Codec::None);
    assert_eq!(sealed.tags, Tags::Only(vec!["".into(), "a".into(), "b".into()]));
    let many: Vec<_> = (0..17).map(|n| message(&format!("orders/{n}"), b"")).collect();
    assert_eq!(build(&many, Codec::None).tags, Tags::Any);
    assert_ne!(build(&many[..16], Codec::None).tags, Tags::Any);
    assert_eq!(build(&[message(&format!("orders/{}", "x".repeat(256)), b"")], Codec::None).tags, Tags::Any);
}

#[test]
fn lies_about_the_decompressed_size_are_refused() {
    let mut lz4 = 4_000_000u32.to_le_bytes().to_vec();
    lz4.extend_from_slice(&[0; 20]);
    assert!(matches!(decode_body(&lz4.into(), Codec::Lz4, 1, MAX), Err(BodyError::Malformed(_))));
    let bomb = zstd::bulk::compress(&vec![0; MAX + 1], 1).unwrap();
    assert!(matches!(decode_body(&bomb.into(), Codec::Zstd, 1, MAX), Err(BodyError::Malformed(_))));
}

#[test]
fn more_is_read_than_is_published() {
    let with = |headers: usize| Message {
        headers: (0..headers).map(|n| (n.to_string(), Bytes::from_static(b"v"))).collect(),
        ..message("orders", b"x")
    };
    for headers in [limits::HEADERS_MAX + 1, limits::HEADERS_READ_MAX] {
        let sealed = build(&[with(headers)], Codec::None);
        let read = decode_body(&sealed.bytes, sealed.codec, 1, limits::BODY_BYTES_READ_MAX).unwrap();
        assert_eq!(read, [with(headers)]);
    }
    let sealed = build(&[with(limits::HEADERS_READ_MAX + 1)], Codec::None);
    assert!(matches!(decode_body(&sealed.bytes, sealed.codec, 1, MAX), Err(BodyError::Malformed(_))));
    let large = Message { payload: vec![b'x'; limits::MESSAGE_BYTES_CEILING + 1].into(), ..message("orders", b"") };
    let sealed = build(std::slice::from_ref(&large), Codec::Zstd);
    assert_eq!(decode_body(&sealed.bytes, sealed.codec, 1, limits::BODY_BYTES_READ_MAX).unwrap(), [large]);
}

/// The format is permanent: these bytes were written by the first build.
#[test]
fn the_encoding_stays_as_it_is() {
    let first = Message {
        key: Some(Bytes::from_static(b"k")),
        headers: vec![("h".into(), Bytes::from_static(b"v"))],
        producer: Some(ProducerStamp { id: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff, epoch: 2, sequence: 300 }),
        ..message("orders/eu", b"one")
    };
    let second = Message { time_us: 5, ..message("orders/eu", b"two") };
    let sealed = build(&[first, second], Codec::None);
    let found: String = sealed.bytes.iter().map(|b| format!("{b:02x}")).collect();
    let expected = concat!(
        "290e0e096f72646572732f6575",             // length, flags, time, path
        "00112233445566778899aabbccddeeff02ac02", // producer: the id as its UUID is written
        "016b",
        "0101680176",
        "6f6e65",
        "0501037477",
        "6f"
    );
    assert_eq!(found, expected);
}
