//! The gRPC door: what it is told by the configuration, and how it is opened, served and drained.
//!
//! A door takes clients in over TLS (plain text only on loopback, or where the configuration asks for it by name),
//! tells who they are (`auth`), holds them to their limits ([`crate::limits`]) and hands their calls to the
//! services in [`crate::grpc`].

mod decoding;
mod incoming;
mod parts;
mod server;
#[cfg(test)]
mod tests;
mod tls;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use seaway_federation_proto::ids::{Path, Pattern};
use seaway_relay::node::limits::{CLIENT_BYTES_BURST, CLIENT_MESSAGES_BURST};

pub use self::server::{Door, DoorHandle};

/// Settings of the gRPC door; the configuration file is parsed elsewhere.
#[derive(Debug, Clone)]
pub struct DoorConfig {
    /// Where clients come in.
    pub listen: SocketAddr,
    /// Certificate of the door; `None` means plain text.
    pub tls: Option<DoorTls>,
    /// Plain text is refused beyond loopback unless this is set.
    pub allow_plain_text: bool,
    /// Who may do what.
    pub auth: AuthConfig,
    /// Rates and sizes for each client.
    pub limits: ClientLimits,
    /// How long a sync publish waits for other sites when its request does not say.
    pub publish_deadline: Duration,
    /// After how long without a confirmation a group's message is delivered again.
    pub confirm_timeout: Duration,
    /// How long a plain subscriber's want outlives its connection.
    pub passing_want: Duration,
    /// How long draining waits for receipts that are still out before streams are cut.
    pub drain_timeout: Duration,
}

impl DoorConfig {
    /// A door at `listen` with every other setting at its default: plain text, nobody let in.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            tls: None,
            allow_plain_text: false,
            auth: AuthConfig::default(),
            limits: ClientLimits::default(),
            publish_deadline: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(60),
            passing_want: Duration::from_secs(600),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// PEM files of the door.
#[derive(Debug, Clone)]
pub struct DoorTls {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Authorities that clients' certificates may come from; `None`: clients have tokens only.
    pub client_ca: Option<PathBuf>,
}

/// Who may come in.
#[derive(Debug, Clone, Default)]
pub struct AuthConfig {
    /// The federation that a client's certificate must name (`seaway://FEDERATION/client/NAME`).
    pub federation: String,
    /// TOML file of tokens: `[[token]]` with `name`, `token` (or `sha256` in hexadecimal), `publish`, `subscribe`
    /// (lists of patterns), `admin` and `expires` (RFC 3339, optional).
    pub token_file: Option<PathBuf>,
    /// Rights of clients with a certificate, by the name in it.
    pub clients: Vec<ClientGrant>,
    /// Rights of a certificate's client that `clients` does not name; `None`: refused.
    pub other_clients: Option<Rights>,
    /// Rights of callers that show neither token nor certificate; `None`: refused. Never includes admin actions, and
    /// holds on loopback only.
    pub anonymous: Option<Rights>,
}

/// Rights of one client that comes with a certificate.
#[derive(Debug, Clone)]
pub struct ClientGrant {
    /// Its name in the certificate.
    pub name: String,
    /// What it may do.
    pub rights: Rights,
}

/// What a client may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Paths it may publish to.
    pub publish: Vec<Pattern>,
    /// Patterns it may subscribe to: what it asks for must lie within one of these.
    pub subscribe: Vec<Pattern>,
    /// Whether it may see and steer the node.
    pub admin: bool,
}

impl Rights {
    /// Whether a message may be published to this path.
    pub fn may_publish(&self, path: &Path) -> bool {
        self.publish.iter().any(|pattern| pattern.matches(path))
    }
}

/// Limits that hold for each client (by its name) on its own; `None`: no limit.
#[derive(Debug, Clone)]
pub struct ClientLimits {
    /// Messages a second that it may publish, on average.
    pub messages_per_s: Option<u32>,
    /// Messages above the average at once; at least 1.
    pub messages_burst: u32,
    /// Bytes a second that it may publish (payload, key and headers), on average.
    pub bytes_per_s: Option<u32>,
    /// Bytes above the average at once.
    pub bytes_burst: u32,
    /// What happens beyond.
    pub on_exceed: OnExceed,
    /// Messages that may wait for other sites at one time, at least 1.
    pub receipts_max: usize,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            messages_per_s: None,
            messages_burst: u32::try_from(CLIENT_MESSAGES_BURST).unwrap_or(u32::MAX),
            bytes_per_s: None,
            bytes_burst: u32::try_from(CLIENT_BYTES_BURST).unwrap_or(u32::MAX),
            on_exceed: OnExceed::Delay,
            receipts_max: crate::limits::CLIENT_RECEIPTS_MAX,
        }
    }
}

/// What a client beyond its rate meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExceed {
    /// It is slowed down.
    #[default]
    Delay,
    /// It is refused, and told after how long to try again.
    Refuse,
}

/// Why a door does not open: one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The address cannot be listened on.
    #[error("cannot listen for clients on {addr}: {error}; choose another address or stop what uses it")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// Certificate, key or authority.
    #[error("{0}")]
    Tls(String),
    /// A combination that is not safe.
    #[error("{0}")]
    Unsafe(String),
    /// The token file.
    #[error("{0}")]
    Tokens(String),
    /// Groups or tokens stored in the node cannot be read.
    #[error("{0}")]
    State(String),
    /// Serving failed.
    #[error("the door stopped: {0}")]
    Serve(String),
}

/// Whether the files that a door is opened with can be used, as far as that can be told without opening it.
///
/// # Errors
/// The first that cannot.
pub fn check_files(config: &DoorConfig) -> Result<(), DoorError> {
    if let Some(files) = &config.tls {
        tls::read(files)?;
    }
    config.auth.token_file.as_deref().map_or(Ok(()), crate::auth::tokens::check_file)
}
