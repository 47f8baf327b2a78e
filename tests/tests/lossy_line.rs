//! Links over lossy lines: the mapping of channels to streams keeps quinn's limit on gaps out of reach.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory};
use seaway_tests::{
    bulk::{self, Mapping, Outcome, Trial},
    proxy::{Bursts, Conditions, Rate},
};

/// 200 Mbit/s, 80 ms, and bursts in which half of the packets are lost.
fn bad_line() -> Conditions {
    Conditions {
        delay: Duration::from_millis(40),
        bursts: Some(Bursts { begin: 0.002, end: 0.002, loss: 0.5 }),
        mtu: Some(1472),
        rate: Some(Rate { bits_per_second: 200_000_000, queue_bytes: 8 * 1024 * 1024 }),
        ..Conditions::default()
    }
}

/// Not what links use: loss does not slow this sender much, so that the line is full and the windows are used.
fn bold() -> std::sync::Arc<dyn ControllerFactory + Send + Sync> {
    let mut config = BbrConfig::default();
    config.initial_window(16 * 1024 * 1024);
    std::sync::Arc::new(config)
}

async fn send(mapping: Mapping, seed: u64, duration: Duration) -> Outcome {
    let trial = Trial { line: bad_line(), seed, mapping, congestion: Some(bold()), duration };
    let outcome = bulk::run(&trial).await.unwrap();
    println!("seed {seed}, {mapping:?}: {outcome:?}");
    outcome
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_of_loss_do_not_close_a_link_with_a_large_window() {
    let outcome = send(Mapping::Channels, 1, Duration::from_secs(8)).await;
    assert_eq!(outcome.broken, None);
    assert!(outcome.packets.lost > 1_000, "the line was bad: {:?}", outcome.packets);
    assert!(outcome.bytes > 1024 * 1024);
}

/// What the mapping is for (and proof that the test above can fail): one stream with a window of 64 MiB does not survive the same line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_long_stream_would_be_closed_for_its_gaps() {
    let outcome = send(Mapping::OneStream { window_bytes: 64 * 1024 * 1024 }, 1, Duration::from_secs(60)).await;
    let broken = outcome.broken.expect("it should not have survived");
    assert!(broken.contains("too many gaps"), "{broken}");
}
