//! The admin port: probes and metrics over HTTP/1.1, in plain text, for whoever watches the process.
//!
//! | path | answers 200 while |
//! |---|---|
//! | `/livez` | the process turns: its threads, and what waits for the disk; not whether it takes messages |
//! | `/startupz` | the commit log is opened and replayed, and the door is open |
//! | `/readyz` | the node takes publishes (a relay: carries); links never count |
//! | `/metrics` | always: Prometheus' text format, every metric of [`crate::metrics::table`] |
//!
//! Otherwise a probe answers 503, with the reason in a line. The port opens before the commit log is read, so that a long
//! replay is seen as one. Nothing can be changed here, and no message be read: what steers is behind the door.
//!
//! A connection is for one request, whose head has a bound in bytes and whose body is not read; it is cut after
//! [`CONNECTION_TIME_MAX`], whoever is slow. One too many connections waits in the system's queue.

mod probes;

use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

pub(crate) use self::probes::Watched;

/// Connections at one time.
pub const CONNECTIONS_MAX: usize = 64;
/// Bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Headers of a request.
pub const HEADERS_MAX: usize = 64;
/// How long a connection may take, from its first byte to the last of its answer.
pub const CONNECTION_TIME_MAX: Duration = Duration::from_secs(15);
/// How long a request's head may take.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);
/// How long to wait after the system refused to give a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is asked of a node at its admin port.
pub(crate) trait Probed: Send + Sync + 'static {
    /// Whether the process turns, or what is stuck.
    fn live(&self) -> Result<(), String>;
    /// Whether it came up, or what it still does.
    fn started(&self) -> Result<(), String>;
    /// Whether it takes publishes, or why not.
    fn ready(&self) -> Result<(), String>;
    /// The metrics' text.
    fn metrics(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>>;
}

/// Why there is no admin port: one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot answer probes on {address}: {error}; choose another address for [admin] listen, or stop what uses it")]
pub(crate) struct AdminError {
    address: SocketAddr,
    error: std::io::Error,
}

/// An open admin port; answers once [`AdminPort::serve`] runs.
#[derive(Debug)]
pub(crate) struct AdminPort {
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminPort {
    /// Listens.
    pub(crate) async fn open(address: SocketAddr) -> Result<Self, AdminError> {
        let failed = |error| AdminError { address, error };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// The address in use.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers for as long as the process lives.
    pub(crate) async fn serve(self, probed: Arc<dyn Probed>) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let probed = probed.clone();
                    tokio::spawn(async move {
                        serve_one(stream, probed).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin port could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_one(stream: TcpStream, probed: Arc<dyn Probed>) {
    let service = service_fn(move |request| {
        let probed = probed.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(probed.as_ref(), &request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Who is cut, or sends what is no HTTP, has nobody to tell it to.
    let _ = tokio::time::timeout(CONNECTION_TIME_MAX, connection).await;
}

async fn answer(probed: &dyn Probed, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n".into());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/livez" => probe(probed.live()),
        "/startupz" => probe(probed.started()),
        "/readyz" => probe(probed.ready()),
        "/metrics" => {
            let mut page = text(StatusCode::OK, probed.metrics().await);
            page.headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
            page
        }
        _ => text(StatusCode::NOT_FOUND, "there are /livez, /startupz, /readyz and /metrics\n".into()),
    }
}

fn probe(answer: Result<(), String>) -> Response<Full<Bytes>> {
    match answer {
        Ok(()) => text(StatusCode::OK, "ok\n".into()),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::testing::soon;

    #[derive(Default)]
    struct Fake {
        well: AtomicBool,
    }

    impl Fake {
        fn state(&self) -> Result<(), String> {
            if self.well.load(Ordering::Relaxed) { Ok(()) } else { Err("the disk is nearly full".into()) }
        }
    }

    impl Probed for Fake {
        fn live(&self) -> Result<(), String> {
            Ok(())
        }
        fn started(&self) -> Result<(), String> {
            self.state()
        }
        fn ready(&self) -> Result<(), String> {
            self.state()
        }
        fn metrics(&self) -> Pin<Box<dyn Future<Output = String> + Send + '_>> {
            Box::pin(async { "a 1\n".to_owned() })
        }
    }

    async fn port() -> (SocketAddr, Arc<Fake>) {
        let fake = Arc::new(Fake::default());
        let port = AdminPort::open(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = port.address();
        tokio::spawn(port.serve(fake.clone()));
        (address, fake)
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A server that refuses may close before it has read all.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = soon("an answer", stream.read_to_end(&mut answer)).await;
        String::from_utf8(answer).unwrap()
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    #[tokio::test]
    async fn probes_answer_with_the_reason() {
        let (address, fake) = port().await;
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"), "not ready is not dead");
        for path in ["/startupz", "/readyz"] {
            let told = get(address, path).await;
            assert!(told.starts_with("HTTP/1.1 503") && told.ends_with("\r\n\r\nthe disk is nearly full\n"), "{told}");
        }
        fake.well.store(true, Ordering::Relaxed);
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let told = get(address, "/metrics").await;
        assert!(told.contains("content-type: text/plain; version=0.0.4") && told.ends_with("\r\n\r\na 1\n"), "{told}");
        assert!(get(address, "/status").await.starts_with("HTTP/1.1 404"));
        let told = ask(address, "POST /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx").await;
        assert!(told.starts_with("HTTP/1.1 405"), "{told}");
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_http_is_refused() {
        let (address, _) = port().await;
        let many = "a: b\r\n".repeat(HEADERS_MAX + 1);
        let told = ask(address, &format!("GET /livez HTTP/1.1\r\n{many}\r\n")).await;
        assert!(told.starts_with("HTTP/1.1 431"), "{told}");
        let told = ask(address, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * HEAD_BYTES_MAX))).await;
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 4"), "{told}");
        let told = ask(address, "\u{1}\u{2}\u{3}\r\n\r\n").await;
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 400"), "{told}");
    }

    #[tokio::test]
    async fn who_says_nothing_is_cut_and_others_are_answered_meanwhile() {
        let (address, _) = port().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // All places are taken until the silent ones are cut.
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let mut first = silent.swap_remove(0);
        let mut rest = Vec::new();
        let _ = soon("the cut", first.read_to_end(&mut rest)).await;
    }

    #[tokio::test]
    async fn an_address_in_use_is_explained() {
        let (address, _) = port().await;
        let error = AdminPort::open(address).await.unwrap_err().to_string();
        assert!(error.contains("[admin] listen") && error.contains(&address.to_string()), "{error}");
    }
}
