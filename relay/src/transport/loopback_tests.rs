//! Channels and one-way messages over a real connection on loopback.

#![allow(clippy::print_stdout, reason = "a failing test prints its seed")]

use std::{
    future::poll_fn,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quinn::{Connection, Endpoint};
use rand::{Rng, SeedableRng, rngs::StdRng};
use seaway_federation_proto::session::Transmit;

use super::{
    channels::{CHANNELS, ChannelError, Datagrams, OneWaySender, Readers, Received, Writers},
    endpoint::{self, Timing},
    reason::describe,
    tls::Credentials,
    tls_tests::Federation,
};
use crate::node::StartError;

const TIMING: Timing = Timing { probe_interval: Duration::from_millis(500), dead_after: Duration::from_secs(20) };

struct Pair {
    dialled: Connection,
    accepted: Connection,
    _endpoints: (Endpoint, Endpoint),
}

async fn pair() -> Pair {
    let acme = Federation::new("acme");
    let (a, b) = (acme.node("berlin/edge", &acme.roots()), acme.node("tokyo/relay", &acme.roots()));
    let transport = Arc::new(endpoint::transport_config(TIMING));
    let local = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let listener = endpoint::open(local).unwrap();
    listener.set_server_config(Some(endpoint::server_config(&b, transport.clone()).unwrap()));
    let dialler = endpoint::open(None).unwrap();
    let peer = "tokyo/relay".parse().unwrap();
    let config = endpoint::client_config(&a, &peer, transport).unwrap();
    let connecting = dialler.connect_with(config, listener.local_addr().unwrap(), &a.server_name(&peer)).unwrap();
    let (dialled, accepted) = tokio::join!(connecting, async { listener.accept().await.unwrap().await });
    Pair { dialled: dialled.unwrap(), accepted: accepted.unwrap(), _endpoints: (dialler, listener) }
}

/// Writes everything to the three channels, as fast as each takes it.
async fn write_all(connection: Connection, mut parts: [Vec<Bytes>; 3]) -> Result<(), ChannelError> {
    let mut writers = Writers::new(connection);
    for part in &mut parts {
        part.reverse();
    }
    poll_fn(|cx| {
        writers.poll_acknowledged(cx);
        for (channel, parts) in CHANNELS.into_iter().zip(&mut parts) {
            while let Poll::Ready(ready) = writers.poll_ready(cx, channel) {
                ready?;
                match parts.pop() {
                    Some(bytes) => writers.push(channel, Transmit { chunks: vec![bytes], batches: 0 }),
                    None => break,
                }
            }
        }
        let done = parts.iter().all(Vec::is_empty) && writers.is_flushed();
        if done { Poll::Ready(Ok::<(), ChannelError>(())) } else { Poll::Pending }
    })
    .await?;
    // Until the test has read everything.
    std::future::pending().await
}

async fn read_until(connection: Connection, expected: [usize; 3]) -> Result<[BytesMut; 3], ChannelError> {
    let mut readers = Readers::new(connection);
    let mut read: [BytesMut; 3] = Default::default();
    while read.iter().zip(expected).any(|(read, expected)| read.len() < expected) {
        if let Received::Bytes(channel, bytes) = poll_fn(|cx| readers.poll(cx)).await? {
            let at = CHANNELS.iter().position(|known| *known == channel).unwrap();
            read[at].extend_from_slice(&bytes);
        }
    }
    Ok(read)
}

#[tokio::test]
async fn every_channel_keeps_its_order_over_many_streams() {
    let seed = getrandom::u64().unwrap();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let pair = pair().await;
    // Few large writes, many small ones, and a mixture; each over several streams.
    let sizes: [(usize, usize); 3] = [(5_000, 200), (30, 400_000), (300, 30_000)];
    let parts = sizes.map(|(count, most)| {
        let part = |_| Bytes::from((0..random.random_range(1..most)).map(|_| random.random()).collect::<Vec<u8>>());
        (0..count).map(part).collect::<Vec<_>>()
    });
    let expected = parts.clone().map(|parts| parts.concat());
    let lengths = [0, 1, 2].map(|at: usize| expected[at].len());
    let read = tokio::select! {
        read = read_until(pair.accepted.clone(), lengths) => read.unwrap(),
        error = write_all(pair.dialled.clone(), parts) => panic!("{error:?}"),
    };
    for (read, expected) in read.iter().zip(&expected) {
        assert!(read == expected);
    }
}

#[tokio::test]
async fn one_way_messages_go_as_datagrams_or_short_streams() {
    let pair = pair().await;
    let mut sender = OneWaySender::new(pair.dialled.clone());
    let small = Bytes::from_static(b"small");
    let large = Bytes::from(vec![7; 3_000_000]);
    sender.send(small.clone());
    sender.send(large.clone());
    sender.send(Bytes::from(vec![0; super::bounds::ONE_WAY_BYTES_MAX + 1]));
    assert_eq!(sender.dropped(), 1);
    let mut datagrams = Datagrams::new(pair.accepted.clone());
    assert_eq!(poll_fn(|cx| datagrams.poll(cx)).await.unwrap(), small);
    let mut readers = Readers::new(pair.accepted.clone());
    let received = poll_fn(|cx| {
        sender.poll(cx);
        readers.poll(cx)
    });
    assert!(matches!(received.await.unwrap(), Received::OneWay(bytes) if bytes == large));
}

#[tokio::test]
async fn one_way_messages_without_room_are_dropped_and_counted() {
    let pair = pair().await;
    let mut sender = OneWaySender::new(pair.dialled.clone());
    for _ in 0..super::bounds::ONE_WAY_STREAMS_MAX + 5 {
        sender.send(Bytes::from(vec![1; 100_000]));
    }
    assert_eq!(sender.dropped(), 5);
}

/// Waits until everything handed to quinn is framed or dropped.
async fn drained(connection: &Connection, empty: usize) {
    while connection.datagram_send_buffer_space() < empty {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn datagrams_that_find_no_room_to_be_sent_are_all_counted() {
    let pair = pair().await;
    let empty = pair.dialled.datagram_send_buffer_space();
    let mut sender = OneWaySender::new(pair.dialled.clone());
    for _ in 0..20_000 {
        sender.send(Bytes::from(vec![1; 100]));
    }
    let refused = sender.dropped();
    assert!(refused > 0, "they must not all fit");
    // Past the sender, to see what quinn does by itself: one large one pushes out several of those that wait.
    pair.dialled.send_datagram(Bytes::from(vec![2; 1000])).unwrap();
    drained(&pair.dialled, empty).await;
    sender.look();
    let framed = pair.dialled.stats().frame_tx.datagram;
    assert!(sender.dropped() > refused, "{refused} refused, {framed} framed");
    // The one that went past it is among those framed.
    assert_eq!(sender.dropped(), 20_000 - framed, "{refused} refused");
}

#[tokio::test]
async fn datagrams_that_nobody_takes_are_counted_by_whom_they_came_to() {
    let pair = pair().await;
    let mut datagrams = Datagrams::new(pair.accepted.clone());
    let (heard_max, size) = (super::bounds::DATAGRAM_RECEIVE_BYTES_MAX / 1000, 1000);
    // More than are kept, one after the other; some may be lost on the way, and are not heard.
    while pair.accepted.stats().frame_rx.datagram < heard_max as u64 + 100 {
        pair.dialled.send_datagram_wait(Bytes::from(vec![3; size])).await.unwrap();
    }
    let mut taken = 0;
    loop {
        datagrams.look();
        let heard = pair.accepted.stats().frame_rx.datagram;
        poll_fn(|cx| {
            while datagrams.poll(cx).is_ready() {
                taken += 1;
            }
            Poll::Ready(())
        })
        .await;
        if pair.accepted.stats().frame_rx.datagram == heard {
            assert!(datagrams.dropped() > 0 && taken > 0, "{heard} heard, {taken} taken");
            assert_eq!(datagrams.dropped() + taken, heard);
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_stream_that_breaks_the_mapping_ends_the_link() {
    let headers: [(&[u8], &str); 4] = [
        (&[9, 0, 0, 0, 0, 0, 0, 0, 0, 1], "unknown channel"),
        (&[1, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 1], "out of range"),
        (&[1, 0, 0], "ended in its header"),
        (&[2, 3, 0, 0, 0, 0, 0, 0, 0], "one number"),
    ];
    for (header, says) in headers {
        let pair = pair().await;
        for _ in 0..2 {
            let mut stream = pair.dialled.open_uni().await.unwrap();
            stream.write_all(header).await.unwrap();
            stream.finish().unwrap();
        }
        let mut readers = Readers::new(pair.accepted.clone());
        let error = poll_fn(|cx| readers.poll(cx)).await.unwrap_err();
        assert!(matches!(&error, ChannelError::Protocol(text) if text.contains(says)), "{error}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let first = endpoint::open(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).unwrap();
    let address = first.local_addr().unwrap();
    let Err(StartError::Listen(text)) = endpoint::open(Some(address)) else { panic!("opened twice") };
    assert!(text.contains(&format!("{address} for links is in use by another process")), "{text}");
}

/// Dials with `a` a listener with `b`; what dialler and listener say in the end.
async fn refusal(a: &Credentials, b: &Credentials, peer: &str) -> (String, String) {
    let transport = Arc::new(endpoint::transport_config(TIMING));
    let listener = endpoint::open(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_server_config(Some(endpoint::server_config(b, transport.clone()).unwrap()));
    let dialler = endpoint::open(None).unwrap();
    let peer = peer.parse().unwrap();
    let config = endpoint::client_config(a, &peer, transport).unwrap();
    let connecting = dialler.connect_with(config, address, &a.server_name(&peer)).unwrap();
    let dial = async {
        match connecting.await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    };
    let accept = async { listener.accept().await.unwrap().await.unwrap_err() };
    let (dialled, accepted) = tokio::join!(dial, accept);
    let without_port = |text: String| text.replace(&address.port().to_string(), "PORT");
    (without_port(describe(&dialled, address)), describe(&accepted, dialler.local_addr().unwrap()))
}

#[tokio::test]
async fn a_refused_certificate_is_told_in_the_same_words_on_both_ends() {
    let (acme, other) = (Federation::new("acme"), Federation::new("acme"));
    let edge = acme.node("berlin/edge", &acme.roots());
    let relay = acme.node("tokyo/relay", &acme.roots());
    let foreign = other.node("tokyo/relay", &other.roots());
    // Trusts both authorities, but its own is not trusted by the others.
    let both = acme.dir.path().join("both.pem");
    let pems = [acme.roots(), other.roots()].map(|path| std::fs::read_to_string(path).unwrap()).concat();
    std::fs::write(&both, pems).unwrap();
    let trusting = other.node("paris/edge", &both);

    let foreign_text = |who: &str| {
        format!(
            "the certificate of seaway://acme/{who} was issued by CN=Seaway authority of acme, which is not among the authorities configured here"
        )
    };
    let (dialler, listener) = refusal(&edge, &foreign, "tokyo/relay").await;
    assert_eq!(dialler, foreign_text("tokyo/relay"));
    assert!(listener.ends_with(&format!("refused this node: {dialler}")), "{listener}");

    let (dialler, listener) = refusal(&trusting, &relay, "tokyo/relay").await;
    assert_eq!(listener, foreign_text("paris/edge"));
    assert!(dialler.ends_with(&format!("refused this node: {listener}")), "{dialler}");

    let (dialler, listener) = refusal(&edge, &relay, "tokyo/other").await;
    assert_eq!(dialler, "the node that answered is tokyo/relay, not tokyo/other; check the address of the peer");
    assert!(listener.ends_with(&dialler), "{listener}");
}
