//! Connections of clients, bounded in number.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::tls::Certificates;
use crate::{
    grpc::shared::DoorCounters,
    limits::{CONNECTIONS_MAX, HANDSHAKE_TIMEOUT},
};

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

/// The same connections behind TLS, each with the certificates in use when it came. Handshakes run beside each other; one that
/// fails, or takes too long, ends its own connection.
pub(super) fn secured(
    connections: impl Stream<Item = io::Result<ClientStream>>,
    certificates: Arc<Certificates>,
) -> impl Stream<Item = io::Result<TlsStream<ClientStream>>> {
    let handshakes = connections.map(move |connection| {
        let acceptor = TlsAcceptor::from(certificates.current());
        async move {
            let tcp = connection.ok()?;
            let address = tcp.tcp.peer_addr().ok();
            let why = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
                Ok(Ok(stream)) => return Some(Ok(stream)),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("it took longer than {HANDSHAKE_TIMEOUT:?}"),
            };
            tracing::info!(?address, why, "a client's TLS handshake failed");
            None
        }
    });
    handshakes.buffer_unordered(CONNECTIONS_MAX).filter_map(std::future::ready)
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
