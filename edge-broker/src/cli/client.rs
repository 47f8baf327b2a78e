//! Connecting to a door.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tonic::{
    Request, Status,
    codegen::Service,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    CliError, Exit,
    args::{ClientArgs, Connection},
    exit::deepest,
};
use crate::api::{admin_client::AdminClient, messages_client::MessagesClient};

/// How long one server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that answers no ping for this long is dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// HTTP/2 windows: what may be on the way to us on one stream, and on all, in bytes.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Largest reply that is read, bytes: a few largest messages.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// A connection that shows our token with every call.
pub(crate) type Door = FirstAnswer<InterceptedService<Channel, ShowToken>>;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// What to do where a door may not accept the certificate that was shown.
const CERTIFICATE_ADVICE: &str = "the server may not accept the certificate (--cert): check that it has not expired (openssl x509 \
     -enddate -noout -in FILE) and comes from an authority of the door's client_ca_file; the server's log says why";

/// Tells a connection that broke before anything was answered, where we show a certificate: a door refuses one only after the
/// handshake has ended for its client, so a refusal looks like any connection that is lost.
#[derive(Debug, Clone)]
pub(crate) struct FirstAnswer<S> {
    inner: S,
    shows_certificate: bool,
    answered: Arc<AtomicBool>,
}

impl<S> FirstAnswer<S> {
    /// The error as it is to be told.
    fn tell(shows_certificate: bool, answered: &AtomicBool, error: AnyError) -> AnyError {
        if !shows_certificate || answered.load(Ordering::Relaxed) {
            return error;
        }
        let cause = deepest(&*error);
        Status::unavailable(format!(
            "the server ended the connection before it answered ({cause}); {CERTIFICATE_ADVICE}"
        ))
        .into()
    }
}

impl<S, R> Service<R> for FirstAnswer<S>
where
    S: Service<R>,
    S::Error: Into<AnyError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = AnyError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, AnyError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        let ready = self.inner.poll_ready(context);
        ready.map_err(|error| Self::tell(self.shows_certificate, &self.answered, error.into()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (answer, shows, answered) = (self.inner.call(request), self.shows_certificate, self.answered.clone());
        Box::pin(async move {
            match answer.await {
                Ok(answer) => {
                    answered.store(true, Ordering::Relaxed);
                    Ok(answer)
                }
                Err(error) => Err(Self::tell(shows, &answered, error.into())),
            }
        })
    }
}

/// Adds the token to calls.
#[derive(Debug, Clone)]
pub(crate) struct ShowToken(Option<MetadataValue<Ascii>>);

impl Interceptor for ShowToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Runs a command's future to its end.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| CliError::failed(format!("cannot start threads: {e}")))?
        .block_on(future)
}

/// The servers, and what to show them.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    endpoints: Vec<(String, Endpoint)>,
    token: ShowToken,
    shows_certificate: bool,
    /// Of each, whether it ever answered.
    answered: Vec<Arc<AtomicBool>>,
}

impl Servers {
    /// Reads the files that the arguments name.
    pub(crate) fn new(connection: &Connection, key: Option<&PathBuf>) -> Result<Self, CliError> {
        let token = match &connection.token_file {
            None => None,
            Some(file) => {
                let text = read(file)?;
                let text = String::from_utf8_lossy(&text);
                if text.trim().is_empty() {
                    return Err(CliError::usage(format!("{} is empty; it should hold a token", file.display())));
                }
                let value = format!("Bearer {}", text.trim());
                let mut value: MetadataValue<Ascii> =
                    value.parse().map_err(|_| CliError::usage(format!("{} does not hold a token", file.display())))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let tls = tls(connection, key)?;
        let mut endpoints = Vec::new();
        for server in connection.server.iter().map(|s| s.trim()).filter(|s| !s.is_empty()) {
            endpoints.push((server.to_string(), endpoint(server, tls.as_ref())?));
        }
        if endpoints.is_empty() {
            return Err(CliError::usage("no server is named; give --server URL or set SEAWAY_SERVER"));
        }
        let answered = endpoints.iter().map(|_| Arc::default()).collect();
        Ok(Self { endpoints, token: ShowToken(token), shows_certificate: connection.cert.is_some(), answered })
    }

    /// As [`Servers::new`], from the arguments of most commands.
    pub(crate) fn of(args: &ClientArgs) -> Result<Self, CliError> {
        Self::new(&args.connection, args.tls_key.as_ref())
    }

    /// Number of servers.
    pub(crate) fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Connects to the first server that answers, beginning with number `first`; gives its number, too.
    pub(crate) async fn connect(&self, first: usize) -> Result<(usize, Door), CliError> {
        let (mut failures, mut timed_out) = (Vec::new(), 0);
        for step in 0..self.endpoints.len() {
            let number = (first + step) % self.endpoints.len();
            let Some((name, endpoint)) = self.endpoints.get(number) else { continue };
            // The endpoint's own bound ends with the connection; a frozen node accepts that, and no handshake.
            match tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect()).await {
                Ok(Ok(channel)) => {
                    let inner = InterceptedService::new(channel, self.token.clone());
                    let answered = self.answered.get(number).cloned().unwrap_or_default();
                    let shows_certificate = self.shows_certificate;
                    return Ok((number, FirstAnswer { inner, shows_certificate, answered }));
                }
                Ok(Err(e)) => failures.push(format!("{name} ({})", deepest(&e))),
                Err(_) => {
                    timed_out += 1;
                    failures.push(format!("{name} (no answer within {} s)", CONNECT_TIMEOUT.as_secs()));
                }
            }
        }
        let exit = if timed_out == failures.len() { Exit::TimedOut } else { Exit::Failed };
        let advice = if failures.iter().any(|why| why.contains("InvalidContentType")) {
            "the door speaks no TLS; write http:// and leave --tls-ca and --cert out"
        } else if failures.iter().any(|why| why.contains("invalid peer certificate")) {
            "the server's certificate is not believed: check that --tls-ca is its authority, and that --server has a name that \
             the certificate is for"
        } else {
            "check --server and that the node runs"
        };
        let text = format!("cannot reach {}; {advice}", failures.join(", nor "));
        Err(CliError::new(exit, text))
    }

    /// The admin service of the first server that answers.
    pub(crate) async fn admin(&self) -> Result<AdminClient<Door>, CliError> {
        let (_, door) = self.connect(0).await?;
        Ok(AdminClient::new(door).max_decoding_message_size(REPLY_BYTES_MAX))
    }
}

/// The message service on a connection.
pub(crate) fn messages(door: Door) -> MessagesClient<Door> {
    MessagesClient::new(door).max_decoding_message_size(REPLY_BYTES_MAX)
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(file).map_err(|e| CliError::new(Exit::Usage, format!("cannot read {}: {e}", file.display())))
}

fn tls(connection: &Connection, key: Option<&PathBuf>) -> Result<Option<ClientTlsConfig>, CliError> {
    let mut config = ClientTlsConfig::new();
    if let Some(ca) = &connection.tls_ca {
        config = config.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    match (&connection.cert, key) {
        (Some(cert), Some(key)) => config = config.identity(Identity::from_pem(read(cert)?, read(key)?)),
        (Some(_), None) => {
            return Err(CliError::usage("--cert needs its private key: give it with --tls-key FILE"));
        }
        _ if connection.tls_ca.is_none() => return Ok(None),
        _ => {}
    }
    Ok(Some(config))
}

fn endpoint(server: &str, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, CliError> {
    let wrong = |why: &str| {
        CliError::usage(format!("the server {server:?} {why}; write it as http://HOST:PORT or https://HOST:PORT"))
    };
    let url = match server.split_once("://") {
        Some(("http" | "https", _)) => server.to_string(),
        Some(_) => return Err(wrong("is neither http:// nor https://")),
        None if tls.is_some() => format!("https://{server}"),
        None => format!("http://{server}"),
    };
    let secure = url.starts_with("https://");
    let endpoint = Endpoint::from_shared(url).map_err(|_| wrong("is not a URL"))?;
    let endpoint = match (secure, tls) {
        (true, Some(tls)) => endpoint.tls_config(tls.clone()).map_err(|e| {
            CliError::usage(format!(
                "--tls-ca, --cert and --tls-key cannot be used together ({}); check that the key is that of the certificate",
                deepest(&e)
            ))
        })?,
        (true, None) => {
            return Err(CliError::usage("an https:// server needs --tls-ca FILE, the authority that it is checked by"));
        }
        (false, Some(_)) => return Err(wrong("is plain text, but --tls-ca or --cert is given; leave them out where the door speaks no TLS")),
        (false, None) => endpoint,
    };
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE))
}
