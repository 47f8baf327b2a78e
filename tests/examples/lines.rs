//! Measures bulk throughput of links over bad lines, by congestion controller.
//!
//! `cargo run --release -p seaway-tests --example lines [SECONDS [CONTROLLER…]]`

#![allow(clippy::print_stdout, reason = "a measurement prints its table")]

use std::{sync::Arc, time::Duration};

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use seaway_tests::{
    bulk::{self, AnyError, Mapping, Trial},
    proxy::{Bursts, Conditions, Rate},
};

fn lines() -> Vec<(&'static str, Conditions)> {
    let line = |megabits: u64, round_trip: u64, loss: f64| {
        let bits_per_second = megabits * 1_000_000;
        // A queue of one round trip: what a fair router has.
        let queue_bytes = (bits_per_second / 8 * round_trip / 1000).max(256 * 1024);
        Conditions {
            delay: Duration::from_millis(round_trip / 2),
            loss,
            mtu: Some(1472),
            rate: Some(Rate { bits_per_second, queue_bytes }),
            ..Conditions::default()
        }
    };
    let bursts = Some(Bursts { begin: 0.0005, end: 0.01, loss: 0.5 });
    vec![
        ("100 Mbit/s  20 ms  0 %", line(100, 20, 0.0)),
        ("200 Mbit/s  80 ms  0 %", line(200, 80, 0.0)),
        ("200 Mbit/s  80 ms  0.1 %", line(200, 80, 0.001)),
        ("100 Mbit/s 200 ms  1 %", line(100, 200, 0.01)),
        ("200 Mbit/s  80 ms  bursts", Conditions { bursts, ..line(200, 80, 0.0) }),
    ]
}

type Factory = Option<Arc<dyn ControllerFactory + Send + Sync>>;

fn controllers() -> Vec<(&'static str, Factory)> {
    vec![
        ("seaway", None),
        ("cubic", Some(Arc::new(CubicConfig::default()))),
        ("bbr", Some(Arc::new(BbrConfig::default()))),
    ]
}

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(8), |text| text.parse())?;
    let wanted: Vec<String> = arguments.collect();
    println!("{:<28} {:>8} {:>12} {:>10} {:>10}", "line", "control", "Mbit/s", "lost", "overrun");
    for (name, line) in lines() {
        for (control, congestion) in controllers() {
            if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == control) {
                continue;
            }
            let trial = Trial {
                line: line.clone(),
                seed: 1,
                mapping: Mapping::Channels,
                congestion,
                duration: Duration::from_secs(seconds),
            };
            let outcome = bulk::run(&trial).await?;
            let all = outcome.packets.passed + outcome.packets.lost + outcome.packets.overrun;
            let share = |count: u64| format!("{:.2} %", count as f64 * 100.0 / all.max(1) as f64);
            println!(
                "{name:<28} {control:>8} {:>12.1} {:>10} {:>10} {}",
                outcome.megabits(),
                share(outcome.packets.lost),
                share(outcome.packets.overrun),
                outcome.broken.unwrap_or_default()
            );
        }
    }
    Ok(())
}
