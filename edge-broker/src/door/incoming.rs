//! Connections of clients, bounded in number.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::tls::Certificates;
use crate::{grpc::shared::DoorCounters, limits::HANDSHAKE_TIMEOUT};

/// How long to wait after the system refused to give a connection (no file descriptors left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A client's connection; holds its place among those allowed.
#[derive(Debug)]
pub(super) struct ClientStream {
    tcp: TcpStream,
    _slot: OwnedSemaphorePermit,
}

/// The connections that come in. One too many is closed at once and counted.
pub(super) fn connections(
    listener: TcpListener,
    slots: Arc<Semaphore>,
    counters: Arc<DoorCounters>,
) -> impl Stream<Item = io::Result<ClientStream>> {
    futures_util::stream::unfold((listener, slots, counters), |(listener, slots, counters)| async move {
        loop {
            let tcp = match listener.accept().await {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "a client's connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                DoorCounters::count(&counters.connections_refused);
                continue;
            };
            if let Err(error) = tcp.set_nodelay(true) {
                tracing::debug!(%error, "a client's connection is gone already");
                continue;
            }
            return Some((Ok(ClientStream { tcp, _slot: slot }), (listener, slots, counters)));
        }
    })
}

/// The same connections behind TLS, each with the certificates in use when it came. Each handshake is a task of its own, as many as
/// there may be connections: many clients that come back at once keep all cores busy, and not the one task that accepts. They end
/// when the door drains.
pub(super) fn secured(
    connections: impl Stream<Item = io::Result<ClientStream>>,
    certificates: Arc<Certificates>,
    drain: CancellationToken,
) -> impl Stream<Item = io::Result<TlsStream<ClientStream>>> {
    let state = (Box::pin(connections), JoinSet::new(), certificates, drain);
    futures_util::stream::unfold(state, |(mut connections, mut handshakes, certificates, drain)| async move {
        loop {
            tokio::select! {
                Some(done) = handshakes.join_next() => {
                    if let Ok(Some(stream)) = done {
                        return Some((Ok(stream), (connections, handshakes, certificates, drain)));
                    }
                }
                connection = connections.next() => {
                    if let Ok(tcp) = connection? {
                        let handshake = handshake(TlsAcceptor::from(certificates.current()), tcp);
                        handshakes.spawn(drain.clone().run_until_cancelled_owned(handshake).map(Option::flatten));
                    }
                }
            }
        }
    })
}

/// A handshake that fails, or takes too long, ends its own connection.
async fn handshake(acceptor: TlsAcceptor, tcp: ClientStream) -> Option<TlsStream<ClientStream>> {
    let address = tcp.tcp.peer_addr().ok();
    let why = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it took longer than {HANDSHAKE_TIMEOUT:?}"),
    };
    tracing::info!(?address, why, "a client's TLS handshake failed");
    None
}

impl Connected for ClientStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp.connect_info()
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
