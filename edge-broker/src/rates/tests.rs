//! Who is held back, by which of several limits, and that a change holds at once.

use seaway_relay::node::limits::Subject;

use super::*;
use crate::{door::OnExceed, testing::TestEngine};

fn rates_of(limits: ClientLimits) -> Rates {
    Rates::new(limits, Arc::default())
}

fn limits(on_exceed: OnExceed) -> ClientLimits {
    ClientLimits {
        messages_per_s: Some(1),
        messages_burst: 2,
        bytes_per_s: Some(10),
        bytes_burst: 100,
        on_exceed,
        ..ClientLimits::default()
    }
}

#[tokio::test]
async fn beyond_the_burst_a_client_is_refused_and_told_when_to_come_back() {
    let rates = rates_of(limits(OnExceed::Refuse));
    let rate = rates.of("a", Instant::now());
    rate.gate.admit(1).await.unwrap();
    rate.gate.admit(1).await.unwrap();
    let limited = rate.gate.admit(1).await.unwrap_err();
    assert_eq!(limited.what, "messages a second");
    assert!(limited.retry_after <= Duration::from_secs(1) && !limited.retry_after.is_zero());
    assert_eq!(rates.counters().refused.load(Relaxed), 1);
    rates.of("b", Instant::now()).gate.admit(1).await.unwrap();
}

#[tokio::test]
async fn other_limits_hold_at_once_for_those_who_wait_too() {
    let rates = rates_of(ClientLimits { messages_burst: 1, ..limits(OnExceed::Delay) });
    let rate = rates.of("a", Instant::now());
    rate.gate.admit(1).await.unwrap();
    rates.replace(limits(OnExceed::Refuse));
    rate.gate.admit(1).await.unwrap();
    rate.gate.admit(1).await.unwrap();
    assert!(rate.gate.admit(1).await.is_err());
    rates.replace(ClientLimits::default());
    assert!(!rate.gate.is_limited() && !rates.of("b", Instant::now()).gate.is_limited());
    rate.gate.admit(1).await.unwrap();
}

#[tokio::test]
async fn bytes_count_too_and_a_message_above_the_burst_still_passes_once() {
    let rates = rates_of(ClientLimits { messages_per_s: None, ..limits(OnExceed::Refuse) });
    let rate = rates.of("a", Instant::now());
    rate.gate.admit(1_000_000).await.unwrap();
    assert_eq!(rate.gate.admit(50).await.unwrap_err().what, "bytes a second");
}

#[tokio::test]
async fn with_delay_every_message_passes_in_the_end() {
    let rates = rates_of(ClientLimits { messages_per_s: Some(100), messages_burst: 1, ..limits(OnExceed::Delay) });
    let rate = rates.of("a", Instant::now());
    for _ in 0..3 {
        rate.gate.admit(1).await.unwrap();
    }
    assert!(rates.counters().delayed.load(Relaxed) >= 1);
}

async fn set(engine: &TestEngine, kind: &str, of: &str, change: &LimitSettings) {
    let subject = Subject::parse(kind, of, "").unwrap();
    engine.set_limit(&subject, Some(change), &LimitSettings::default()).await.unwrap();
}

fn messages(per_s: u64, on_exceed: Option<seaway_relay::node::limits::OnExceed>) -> LimitSettings {
    let one = NonZeroU64::new(1);
    LimitSettings {
        messages_per_s: Some(NonZeroU64::new(per_s)),
        messages_burst: one.filter(|_| per_s > 0),
        on_exceed,
        ..LimitSettings::default()
    }
}

#[tokio::test]
async fn what_a_command_says_of_clients_goes_before_the_file() {
    let engine = TestEngine::new();
    let rates = Rates::new(limits(OnExceed::Refuse), engine.limits().clone());
    let (a, b) = (rates.of("a", Instant::now()), rates.of("b", Instant::now()));
    set(&engine, "client", "a", &messages(0, None)).await;
    let same = rates.of("a", Instant::now());
    assert!(Arc::ptr_eq(&a, &same));
    for _ in 0..100 {
        a.gate.admit(1).await.unwrap();
    }
    assert_eq!(
        a.gate.admit(1).await.unwrap_err().what,
        "bytes a second",
        "the file's, of which the command says nothing"
    );
    b.gate.admit(1).await.unwrap();
    b.gate.admit(1).await.unwrap();
    assert!(b.gate.admit(1).await.is_err());
    assert_eq!(rates.held_back(), [("a".to_owned(), 0, 1), ("b".to_owned(), 0, 1)]);
    set(&engine, "client", "*", &messages(0, None)).await;
    rates.of("b", Instant::now()).gate.admit(1).await.unwrap();
}

#[tokio::test]
async fn each_topic_has_its_own_bucket_and_follows_its_limit() {
    let (engine, rates, now) = (TestEngine::new(), TopicRates::default(), Instant::now());
    assert!(!rates.any(&engine) && rates.of(&engine, "orders", now).is_none());
    let refuse = Some(seaway_relay::node::limits::OnExceed::Refuse);
    set(&engine, "topic", "#", &messages(1, refuse)).await;
    let (orders, bills) = (rates.of(&engine, "orders", now).unwrap(), rates.of(&engine, "bills", now).unwrap());
    orders.admit(1).await.unwrap();
    bills.admit(1).await.unwrap();
    let limited = orders.admit(1).await.unwrap_err();
    assert_eq!((limited.what, limited.whose.as_str()), ("messages a second", "topic orders"));
    assert!(rates.of(&engine, "_audit", now).is_none(), "Seaway's own are not limited");
    set(&engine, "topic", "orders", &messages(0, None)).await;
    rates.of(&engine, "orders", now).unwrap().admit(1).await.unwrap();
    assert!(
        rates.of(&engine, "bills", now).unwrap().admit(1).await.is_err(),
        "another limit's change leaves its bucket as it was"
    );
    assert_eq!(
        rates.held_back(),
        [("bills".to_owned(), 0, 1), ("orders".to_owned(), 0, 1)]
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
}
