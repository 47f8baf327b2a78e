//! Which of several sources counts, what contradicts, and that what is stored comes back.

use proptest::prelude::*;

use super::*;
use crate::log::contract::Table;

fn number(n: u64) -> NonZeroU64 {
    NonZeroU64::new(n).unwrap()
}

fn bytes(per_s: u64) -> LimitSettings {
    LimitSettings { bytes_per_s: Some(NonZeroU64::new(per_s)), ..LimitSettings::default() }
}

fn topic(pattern: &str) -> Subject {
    Subject::parse("topic", pattern, "").unwrap()
}

fn link(peer: &str, direction: &str) -> Subject {
    Subject::parse("link", peer, direction).unwrap()
}

fn book() -> LimitBook {
    let mut file = LimitsConfig::default();
    file.topics.push(("orders".parse().unwrap(), bytes(1000), 100));
    file.topics.push(("#".parse().unwrap(), bytes(2000), 100));
    file.links.insert((None, Direction::Send), bytes(10_000_000));
    file.links.insert((Some("hub/relay".parse().unwrap()), Direction::Send), bytes(20_000_000));
    LimitBook::new(file)
}

fn set(book: &LimitBook, subject: &Subject, change: &LimitSettings) {
    let (settings, _) = book.plan(subject, Some(change), &LimitSettings::default(), 100).unwrap();
    book.apply(subject, settings);
}

fn per_s(book: &LimitBook, name: &str) -> Option<u64> {
    book.topic(&name.parse().unwrap(), 100).bytes.map(|rate| rate.per_s.get())
}

#[test]
fn command_goes_before_file_and_the_nearer_before_the_wider() {
    let book = book();
    assert_eq!((per_s(&book, "orders"), per_s(&book, "bills"), per_s(&book, "_audit")), (Some(1000), Some(2000), None));
    set(&book, &topic("#"), &bytes(3000));
    assert_eq!((per_s(&book, "orders"), per_s(&book, "bills")), (Some(3000), Some(3000)));
    set(&book, &topic("orders"), &bytes(0));
    assert_eq!((per_s(&book, "orders"), per_s(&book, "bills")), (None, Some(3000)));
    // What a command leaves open is the file's.
    let refuse = LimitSettings { on_exceed: Some(OnExceed::Refuse), ..LimitSettings::default() };
    set(&book, &topic("bills"), &refuse);
    let limit = book.topic(&"bills".parse().unwrap(), 100);
    assert_eq!((limit.on_exceed, limit.bytes.unwrap().per_s.get()), (OnExceed::Refuse, 3000));
    let (none, _) = book.plan(&topic("orders"), None, &LimitSettings::default(), 100).unwrap();
    book.apply(&topic("orders"), none);
    assert_eq!(per_s(&book, "orders"), Some(3000));
    assert!(book.plan(&topic("orders"), None, &LimitSettings::default(), 100).unwrap_err().contains("no command set"));
}

#[test]
fn a_links_driver_is_told_of_each_change_once() {
    let book = Arc::new(book());
    let (hub, other): (NodeName, NodeName) = ("hub/relay".parse().unwrap(), "eu/edge".parse().unwrap());
    let (mut of_hub, mut of_other) = (book.feed(hub), book.feed(other));
    let send = |rates: Option<LinkRates>| rates.map(|rates| rates.send.bytes.map(|rate| rate.per_s.get()));
    assert_eq!((send(of_hub()), send(of_other())), (Some(Some(20_000_000)), Some(Some(10_000_000))));
    assert_eq!((send(of_hub()), send(of_other())), (None, None));
    set(&book, &link("*", "send"), &bytes(5));
    assert_eq!((send(of_hub()), send(of_other())), (Some(Some(5)), Some(Some(5))));
    set(&book, &link("hub/relay", "send"), &bytes(6));
    assert_eq!((send(of_hub()), send(of_other())), (Some(Some(6)), Some(Some(5))));
    book.replace_file(LimitsConfig::default());
    assert_eq!(send(of_hub()), Some(Some(6)));
    assert_eq!(book.link(&"hub/relay".parse().unwrap()).receive, DirectionRates::default());
}

#[test]
fn what_contradicts_is_refused_in_a_sentence() {
    let book = book();
    let refused = |subject: &Subject, change: &LimitSettings| {
        book.plan(subject, Some(change), &LimitSettings::default(), 1000).unwrap_err()
    };
    let burst = LimitSettings { bytes_burst: Some(number(999)), ..bytes(10) };
    assert!(
        refused(&topic("orders"), &burst).starts_with("bytes-burst is 999 bytes, less than the largest message (1000")
    );
    let alone = LimitSettings { messages_burst: Some(number(5)), ..LimitSettings::default() };
    assert!(refused(&topic("orders"), &alone).contains("messages-burst has no effect without a rate"));
    let sent = LimitSettings { bytes_burst: Some(number(SEND_BURST_BYTES_MIN - 1)), ..bytes(10) };
    assert!(refused(&link("*", "send"), &sent).contains("less than what a link needs for one largest batch"));
    let taken = LimitSettings { bytes_burst: Some(number(RECEIVE_BURST_BYTES_MIN - 1)), ..bytes(10) };
    assert!(refused(&link("*", "receive"), &taken).contains("credit of one largest message"));
    let refuse = LimitSettings { on_exceed: Some(OnExceed::Refuse), ..bytes(10) };
    assert!(refused(&link("*", "receive"), &refuse).contains("a link only delays"));
    let ages = LimitSettings { bytes_burst: Some(NonZeroU64::MAX), ..bytes(1) };
    assert!(refused(&topic("orders"), &ages).contains("hundred years"));
    for (kind, of, direction, says) in [
        ("link", "hub", "send", "SITE/NODE"),
        ("link", "*", "", "\"send\" or \"receive\""),
        ("topic", "a/b", "", "more than one level"),
        ("topic", "a", "send", "has no direction"),
        ("client", "", "", "1 to 256 bytes"),
        ("site", "eu", "", "not of \"site\""),
    ] {
        let text = Subject::parse(kind, of, direction).unwrap_err();
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn a_burst_that_is_not_set_lets_the_largest_pass() {
    let book = LimitBook::default();
    set(&book, &topic("orders"), &bytes(5));
    let limit = book.topic(&"orders".parse().unwrap(), 1 << 20);
    assert_eq!(limit.bytes.unwrap().burst.get(), 1 << 20);
    set(&book, &link("*", "send"), &bytes(5));
    set(&book, &link("*", "receive"), &bytes(u64::MAX));
    let rates = book.link(&"a/b".parse().unwrap());
    assert_eq!(rates.send.bytes.unwrap().burst.get(), SEND_BURST_BYTES_MIN);
    assert_eq!(rates.receive.bytes.unwrap(), Rate { per_s: NonZeroU64::MAX, burst: NonZeroU64::MAX });
}

proptest! {
    #[test]
    fn what_is_stored_comes_back(
        which in 0..4, per_s in any::<Option<u64>>(), burst in any::<Option<u64>>(), refuse in any::<Option<bool>>()
    ) {
        let subject = match which {
            0 => Subject::Client(Some("me, myself".to_owned())),
            1 => topic("#"),
            2 => link("eu/edge", "receive"),
            _ => link("*", "send"),
        };
        let settings = LimitSettings {
            messages_per_s: per_s.map(NonZeroU64::new),
            bytes_burst: burst.and_then(NonZeroU64::new),
            on_exceed: refuse.map(|refuse| if refuse { OnExceed::Refuse } else { OnExceed::Delay }),
            ..LimitSettings::default()
        };
        let Entry::Put { table: Table::Node, key, value } = store::entry(&subject, Some(&settings)) else {
            panic!("not a row");
        };
        let book = LimitBook::default();
        prop_assert!(book.restore([(key, value)]).is_empty());
        let restored = book.set.read().get(&subject).cloned();
        prop_assert_eq!(restored, Some(settings));
        prop_assert_eq!(book.restore([(Bytes::from_static(b"limit\0what\0"), Bytes::new())]), ["limit what "]);
    }
}
