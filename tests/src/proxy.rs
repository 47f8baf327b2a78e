//! A UDP proxy on loopback that behaves like a bad line: delay, jitter, loss, bursts of loss, reordering,
//! a rate with a queue, black holes; each direction by itself, all from one seed.
//!
//! Clients send to [`Proxy::address`]; each client address gets a socket of its own towards the
//! target, as behind a NAT. What happens to a packet is decided by [`Line`], which is pure; the tasks
//! around it only wait and pass on.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, task::JoinSet};

/// Largest datagram passed on.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Clients at once; packets of further ones are dropped.
const CLIENTS_MAX: usize = 64;
/// Asked for at the sockets, so that the machine's own queues lose nothing.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// Bursts of loss, after Gilbert and Elliott: two states, good and bad.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bursts {
    /// Probability, at each packet, that a burst begins.
    pub begin: f64,
    /// Probability, at each packet of a burst, that it ends.
    pub end: f64,
    /// Probability that a packet within a burst is lost.
    pub loss: f64,
}

/// A rate limit with a queue in front of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bits per second.
    pub bits_per_second: u64,
    /// Bytes that may wait; what comes on top is dropped.
    pub queue_bytes: u64,
}

/// How one direction of the line behaves.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conditions {
    /// One-way delay.
    pub delay: Duration,
    /// At most so much on top of it, evenly spread; packets stay in order.
    pub jitter: Duration,
    /// Probability that a packet is lost.
    pub loss: f64,
    /// Bursts of loss.
    pub bursts: Option<Bursts>,
    /// Probability that a packet is overtaken by those sent up to `reorder_by` later.
    pub reorder: f64,
    /// See above.
    pub reorder_by: Duration,
    /// The line's rate.
    pub rate: Option<Rate>,
    /// Largest UDP payload that passes, bytes; larger ones are lost without a word.
    pub mtu: Option<usize>,
    /// Nothing passes.
    pub black_hole: bool,
}

/// What has become of the packets of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Passed on.
    pub passed: u64,
    /// Lost by chance, in bursts, or in a black hole.
    pub lost: u64,
    /// Dropped at a full queue.
    pub overrun: u64,
    /// Bytes passed on.
    pub bytes: u64,
}

/// Decides the fate of each packet of one direction.
#[derive(Debug)]
pub struct Line {
    random: SmallRng,
    in_burst: bool,
    /// When the last byte that waits will have left the queue.
    busy_until: Option<Instant>,
    last_release: Option<Instant>,
}

/// A packet's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// To be passed on then.
    Release(Instant),
    /// Lost.
    Lost,
    /// Dropped at the full queue.
    Overrun,
}

impl Line {
    /// A line whose chances follow from the seed.
    pub fn new(seed: u64) -> Self {
        Self { random: SmallRng::seed_from_u64(seed), in_burst: false, busy_until: None, last_release: None }
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.random_bool(probability.min(1.0))
    }

    /// What becomes of a packet of so many bytes that comes now.
    pub fn admit(&mut self, now: Instant, bytes: usize, conditions: &Conditions) -> Fate {
        let lost = self.chance(conditions.loss);
        let lost_in_burst = conditions.bursts.is_some_and(|bursts| {
            self.in_burst = if self.in_burst { !self.chance(bursts.end) } else { self.chance(bursts.begin) };
            self.in_burst && self.chance(bursts.loss)
        });
        if conditions.black_hole || conditions.mtu.is_some_and(|mtu| bytes > mtu) {
            return Fate::Lost;
        }
        let Some(sent) = self.transmit(now, bytes, conditions.rate) else { return Fate::Overrun };
        if lost || lost_in_burst {
            return Fate::Lost;
        }
        let jitter = conditions.jitter.mul_f64(self.random.random_range(0.0..1.0));
        let on_time = sent + conditions.delay + jitter;
        let in_order = self.last_release.map_or(on_time, |last| last.max(on_time));
        if self.chance(conditions.reorder) {
            return Fate::Release(in_order + conditions.reorder_by.mul_f64(self.random.random_range(0.0..1.0)));
        }
        self.last_release = Some(in_order);
        Fate::Release(in_order)
    }

    /// When the packet has left the queue; `None` if it finds no room.
    fn transmit(&mut self, now: Instant, bytes: usize, rate: Option<Rate>) -> Option<Instant> {
        let Some(rate) = rate else { return Some(now) };
        let begin = self.busy_until.map_or(now, |until| until.max(now));
        let per_byte = 8.0 / rate.bits_per_second as f64;
        let waiting = begin.duration_since(now).as_secs_f64() / per_byte;
        if waiting + bytes as f64 > rate.queue_bytes as f64 {
            return None;
        }
        let done = begin + Duration::from_secs_f64(bytes as f64 * per_byte);
        self.busy_until = Some(done);
        Some(done)
    }
}

/// The conditions and counts of one direction, shared between the proxy and its tasks.
#[derive(Debug, Default)]
struct Direction {
    conditions: Mutex<Conditions>,
    passed: AtomicU64,
    lost: AtomicU64,
    overrun: AtomicU64,
    bytes: AtomicU64,
}

impl Direction {
    fn conditions(&self) -> Conditions {
        self.conditions.lock().clone()
    }

    fn counts(&self) -> Counts {
        Counts {
            passed: self.passed.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            overrun: self.overrun.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// A running proxy; it ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    up: Arc<Direction>,
    down: Arc<Direction>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Begins to pass packets between clients and the target, both directions alike at first. Must be
    /// called within a tokio runtime.
    pub fn start(target: SocketAddr, seed: u64, conditions: &Conditions) -> io::Result<Self> {
        let socket = Arc::new(bind()?);
        let address = socket.local_addr()?;
        let [up, down] = [(); 2]
            .map(|()| Arc::new(Direction { conditions: Mutex::new(conditions.clone()), ..Direction::default() }));
        let task = tokio::spawn(run(socket, target, seed, up.clone(), down.clone()));
        Ok(Self { address, up, down, task })
    }

    /// Where clients send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the direction from clients to the target, from the next packet on.
    pub fn set_up(&self, conditions: Conditions) {
        *self.up.conditions.lock() = conditions;
    }

    /// Changes the direction from the target to clients, from the next packet on.
    pub fn set_down(&self, conditions: Conditions) {
        *self.down.conditions.lock() = conditions;
    }

    /// Changes both directions.
    pub fn set(&self, conditions: &Conditions) {
        self.set_up(conditions.clone());
        self.set_down(conditions.clone());
    }

    /// What became of packets from clients to the target, and of those back.
    pub fn counts(&self) -> (Counts, Counts) {
        (self.up.counts(), self.down.counts())
    }
}

fn bind() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

/// Packets on their way, the next to arrive first.
type InFlight = BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>;

/// One direction of one client: passes what it is given to one socket and address.
struct Pump {
    line: Line,
    direction: Arc<Direction>,
    in_flight: InFlight,
    sequence: u64,
}

impl Pump {
    fn new(seed: u64, direction: Arc<Direction>) -> Self {
        Self { line: Line::new(seed), direction, in_flight: InFlight::new(), sequence: 0 }
    }

    fn take(&mut self, packet: &[u8], conditions: &Conditions) {
        match self.line.admit(Instant::now(), packet.len(), conditions) {
            Fate::Release(at) => {
                self.sequence += 1;
                self.in_flight.push(Reverse((at, self.sequence, packet.to_vec())));
            }
            Fate::Lost => {
                self.direction.lost.fetch_add(1, Ordering::Relaxed);
            }
            Fate::Overrun => {
                self.direction.overrun.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Sends what is due; when the next is.
    async fn release(&mut self, socket: &UdpSocket, to: SocketAddr) -> Option<Instant> {
        loop {
            let Reverse((at, ..)) = self.in_flight.peek()?;
            if *at > Instant::now() {
                return Some(*at);
            }
            let Reverse((_, _, packet)) = self.in_flight.pop()?;
            // A target that is not there (yet) answers with an error, which a line would not tell.
            if socket.send_to(&packet, to).await.is_ok() {
                self.direction.passed.fetch_add(1, Ordering::Relaxed);
                self.direction.bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
            }
        }
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Reads all that is there; false when the socket is broken.
async fn receive(socket: &UdpSocket, buffer: &mut [u8], mut each: impl FnMut(&[u8], SocketAddr)) -> bool {
    if socket.readable().await.is_err() {
        return false;
    }
    // Bounded, so that sending gets its turn.
    for _ in 0..256 {
        match socket.try_recv_from(buffer) {
            Ok((length, from)) => each(buffer.get(..length).unwrap_or_default(), from),
            // Nothing more now, or what a vanished target's machine says, which a line would not tell.
            Err(_) => break,
        }
    }
    true
}

struct Client {
    pump: Pump,
    socket: Arc<UdpSocket>,
}

async fn run(socket: Arc<UdpSocket>, target: SocketAddr, seed: u64, up: Arc<Direction>, down: Arc<Direction>) {
    let mut clients: HashMap<SocketAddr, Client> = HashMap::new();
    let mut ways_back = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let mut next: Option<Instant> = None;
        for client in clients.values_mut() {
            let due = client.pump.release(&client.socket, target).await;
            next = [next, due].into_iter().flatten().min();
        }
        let mut came = Vec::new();
        tokio::select! {
            () = wait_until(next) => {}
            fine = receive(&socket, &mut buffer, |packet, from| came.push((packet.to_vec(), from))) => {
                if !fine {
                    return;
                }
            }
        }
        let conditions = up.conditions();
        for (packet, from) in came {
            if !clients.contains_key(&from) {
                let Some(back) = (clients.len() < CLIENTS_MAX).then(bind).and_then(Result::ok) else { continue };
                let back = Arc::new(back);
                let seed = seed.wrapping_add(2 * clients.len() as u64);
                let pump = Pump::new(seed.wrapping_add(1), down.clone());
                ways_back.spawn(run_back(back.clone(), socket.clone(), from, pump));
                clients.insert(from, Client { pump: Pump::new(seed, up.clone()), socket: back });
            }
            if let Some(client) = clients.get_mut(&from) {
                client.pump.take(&packet, &conditions);
            }
        }
    }
}

/// From the target back to one client.
async fn run_back(from_target: Arc<UdpSocket>, to_client: Arc<UdpSocket>, client: SocketAddr, mut pump: Pump) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let direction = pump.direction.clone();
    loop {
        let next = pump.release(&to_client, client).await;
        let conditions = direction.conditions();
        tokio::select! {
            () = wait_until(next) => {}
            fine = receive(&from_target, &mut buffer, |packet, _| pump.take(packet, &conditions)) => {
                if !fine {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(seed: u64, count: usize, conditions: &Conditions) -> Vec<Option<Duration>> {
        let begin = Instant::now();
        let mut line = Line::new(seed);
        let fate = |_| match line.admit(begin, 1000, conditions) {
            Fate::Release(at) => Some(at - begin),
            Fate::Lost | Fate::Overrun => None,
        };
        (0..count).map(fate).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_line() {
        let conditions = Conditions {
            delay: Duration::from_millis(40),
            jitter: Duration::from_millis(5),
            loss: 0.1,
            bursts: Some(Bursts { begin: 0.01, end: 0.1, loss: 0.5 }),
            reorder: 0.1,
            reorder_by: Duration::from_millis(10),
            rate: Some(Rate { bits_per_second: 100_000_000, queue_bytes: 1 << 20 }),
            ..Conditions::default()
        };
        assert_eq!(fates(7, 2000, &conditions), fates(7, 2000, &conditions));
        assert_ne!(fates(7, 2000, &conditions), fates(8, 2000, &conditions));
    }

    #[test]
    fn loss_and_bursts_come_at_their_rates() {
        let lost = |conditions: &Conditions| fates(1, 20_000, conditions).iter().filter(|fate| fate.is_none()).count();
        let even = lost(&Conditions { loss: 0.1, ..Conditions::default() });
        assert!((1_700..2_300).contains(&even), "{even}");
        // A tenth of the time in bursts, half of the packets lost there.
        let bursts = Some(Bursts { begin: 1.0 / 90.0, end: 0.1, loss: 0.5 });
        let burst = lost(&Conditions { bursts, ..Conditions::default() });
        assert!((700..1_300).contains(&burst), "{burst}");
        assert_eq!(lost(&Conditions { black_hole: true, ..Conditions::default() }), 20_000);
    }

    #[test]
    fn a_rate_spaces_packets_and_its_queue_overruns() {
        let rate = Some(Rate { bits_per_second: 8_000_000, queue_bytes: 10_000 });
        let fates = fates(1, 15, &Conditions { rate, ..Conditions::default() });
        let passed: Vec<_> = fates.iter().flatten().map(Duration::as_millis).collect();
        assert_eq!(passed, (1..=10).collect::<Vec<_>>());
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_breaks_it() {
        let jitter = Conditions { jitter: Duration::from_millis(50), ..Conditions::default() };
        assert!(fates(3, 500, &jitter).is_sorted());
        let reordering = Conditions {
            reorder: 0.3,
            reorder_by: Duration::from_millis(10),
            jitter: Duration::from_millis(1),
            ..Conditions::default()
        };
        assert!(!fates(3, 500, &reordering).is_sorted());
    }

    #[tokio::test]
    async fn packets_pass_both_ways_and_a_black_hole_takes_one() {
        let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(target.local_addr().unwrap(), 1, &Conditions::default()).unwrap();
        let mut buffer = [0; 100];
        client.send_to(b"there", proxy.address()).await.unwrap();
        let (length, from) = target.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"there");
        target.send_to(b"back", from).await.unwrap();
        let (length, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"back"[..], proxy.address()));

        proxy.set_up(Conditions { black_hole: true, ..Conditions::default() });
        client.send_to(b"gone", proxy.address()).await.unwrap();
        while proxy.counts().0.lost == 0 {
            tokio::task::yield_now().await;
        }
        proxy.set_up(Conditions::default());
        client.send_to(b"again", proxy.address()).await.unwrap();
        let (length, _) = target.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"again");
        assert_eq!(proxy.counts().0.lost, 1);
    }
}
