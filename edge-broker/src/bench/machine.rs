//! What the machine itself needs for what a figure consists of, measured in the same run.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use std::os::unix::fs::FileExt;

use super::BenchError;

/// Times that each is measured.
const SYNCS: u64 = 200;
const ROUND_TRIPS: usize = 2_000;
/// Bytes that are written before a sync: what one small group of the log takes.
const SYNC_BYTES: usize = 4096;
/// How long one answer on loopback is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

fn failed(what: &str, error: impl std::fmt::Display) -> BenchError {
    BenchError(format!("{what} failed: {error}"))
}

/// Medians, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// To make a small write durable (fdatasync), in a file that has its room already.
    pub(crate) sync_ms: f64,
    /// Of a datagram on loopback and its answer, between two threads.
    pub(crate) round_trip_ms: f64,
}

impl Machine {
    /// Measures, on the disk of this directory.
    pub(crate) fn measure(dir: &Path) -> Result<Self, BenchError> {
        Ok(Self { sync_ms: sync_ms(dir)?, round_trip_ms: round_trip_ms().map_err(|e| failed("a round trip", e))? })
    }

    /// Least that a message needs which is durable at two nodes that follow each other: two syncs and a round trip.
    pub(crate) fn two_nodes_ms(self) -> f64 {
        2.0 * self.sync_ms + self.round_trip_ms
    }
}

fn median(times: &Histogram<u64>) -> f64 {
    times.value_at_quantile(0.5) as f64 / 1e6
}

fn histogram() -> Result<Histogram<u64>, BenchError> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|e| BenchError(e.to_string()))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn sync_ms(dir: &Path) -> Result<f64, BenchError> {
    let path = dir.join("bench-sync");
    let times = sync_times(&path);
    let _ = fs::remove_file(&path);
    times.map(|times| median(&times))
}

fn sync_times(path: &Path) -> Result<Histogram<u64>, BenchError> {
    let what = format!("writing {}", path.display());
    let failed = |e: std::io::Error| failed(&what, e);
    let mut file = fs::File::create_new(path).map_err(failed)?;
    for _ in 0..SYNCS {
        file.write_all(&[0; SYNC_BYTES]).map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    let mut times = histogram()?;
    for number in 0..SYNCS {
        let began = Instant::now();
        file.write_all_at(&[1; SYNC_BYTES], number * SYNC_BYTES as u64).map_err(failed)?;
        file.sync_data().map_err(failed)?;
        times.saturating_record(nanoseconds(began.elapsed()));
    }
    Ok(times)
}

fn round_trip_ms() -> Result<f64, BenchError> {
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let bind = || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(socket)
    };
    let wrong = |e: std::io::Error| BenchError(e.to_string());
    let (asks, answers) = (bind().map_err(wrong)?, bind().map_err(wrong)?);
    let address = answers.local_addr().map_err(wrong)?;
    let mut times = histogram()?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = [0; 8];
            for _ in 0..ROUND_TRIPS {
                // Whoever asks notices when nothing comes.
                let Ok((_, from)) = answers.recv_from(&mut bytes) else { return };
                let _ = answers.send_to(&bytes, from);
            }
        });
        for _ in 0..ROUND_TRIPS {
            let began = Instant::now();
            asks.send_to(&[0; 8], address)?;
            asks.recv_from(&mut [0; 8])?;
            times.saturating_record(nanoseconds(began.elapsed()));
        }
        Ok(())
    })
    .map_err(wrong)?;
    Ok(median(&times))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_take_some_time_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::measure(dir.path()).unwrap();
        assert!(machine.sync_ms > 0.0 && machine.round_trip_ms > 0.0);
        assert!(machine.two_nodes_ms() > 2.0 * machine.sync_ms);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
