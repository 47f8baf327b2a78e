//! The QUIC endpoint: one UDP socket, tuned for long fat lines, from which a node dials and at which it listens.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{
    AckFrequencyConfig, ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
    congestion::{ControllerFactory, CubicConfig},
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use seaway_federation_proto::ids::NodeName;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    bounds::{
        CONNECTION_WINDOW_BYTES, DATAGRAM_RECEIVE_BYTES_MAX, DATAGRAM_SEND_BYTES_MAX, INCOMING_MAX, SEND_WINDOW_BYTES,
        SOCKET_BUFFER_BYTES, STREAM_WINDOW_BYTES, STREAMS_MAX,
    },
    tls::{Credentials, TlsError},
};
use crate::node::StartError;

/// Largest UDP payload that is tried in discovery of the path's MTU. quinn hands the system ten packets at
/// once, and all together must stay below 65,507 bytes: a larger MTU makes the system refuse them, which
/// quinn takes for loss.
const MTU_MAX: u16 = 6_500;
/// For how long a peer may keep an acknowledgement back.
const ACK_DELAY_MAX: Duration = Duration::from_millis(5);

/// The endpoint's timing, from the node's settings.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Interval of the session's probes.
    pub probe_interval: Duration,
    /// The link is dead when nothing was heard for this long.
    pub dead_after: Duration,
}

/// QUIC's parameters for a link.
pub fn transport_config(timing: Timing) -> TransportConfig {
    transport_config_with(timing, Arc::new(CubicConfig::default()))
}

/// The same with another congestion controller, for measurements.
pub fn transport_config_with(timing: Timing, congestion: Arc<dyn ControllerFactory + Send + Sync>) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES)
        // Fair means: after each packet the stream of the highest priority is looked up anew. Otherwise a
        // stream once begun would go on before more urgent ones.
        .send_fairness(true)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BYTES_MAX))
        .datagram_send_buffer_size(DATAGRAM_SEND_BYTES_MAX)
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acknowledgements()))
        // The session's own probes come more often; this keeps the line open should they be paused.
        .keep_alive_interval(Some(timing.dead_after / 3))
        .congestion_controller_factory(congestion)
        .max_idle_timeout(Some(idle_timeout(timing.dead_after)));
    config
}

/// Acknowledging each second packet, as QUIC does unless the two agree on less (draft-ietf-quic-ack-frequency), takes a busy receiver half of its
/// system time: each tenth is enough, and none waits longer than a timer of the session's would notice.
fn acknowledgements() -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config.ack_eliciting_threshold(9u32.into()).max_ack_delay(Some(ACK_DELAY_MAX));
    config
}

fn idle_timeout(dead_after: Duration) -> IdleTimeout {
    let milliseconds = u64::try_from(dead_after.as_millis()).unwrap_or(u64::MAX);
    IdleTimeout::from(VarInt::from_u64(milliseconds).unwrap_or(VarInt::MAX))
}

/// Opens a node's socket: at the address given, or, for a node that only dials, at any free port.
pub fn open(listen: Option<SocketAddr>) -> Result<Endpoint, StartError> {
    let address = listen.unwrap_or_else(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let socket = match (bind(address), listen) {
        // A machine without IPv6 dials from IPv4.
        (Err(_), None) => bind(SocketAddr::from(([0, 0, 0, 0], 0))),
        (bound, _) => bound,
    };
    let socket = socket.map_err(|error| StartError::Listen(explain(address, &error)))?;
    let runtime = quinn::default_runtime()
        .ok_or_else(|| StartError::Listen("links need a tokio runtime; start the node within one".to_owned()))?;
    let mut config = EndpointConfig::default();
    // Larger than the default of 1,472, so that peers on a network with jumbo frames use them.
    config
        .max_udp_payload_size(MTU_MAX)
        .map_err(|error| StartError::Listen(format!("the endpoint cannot be set up: {error}")))?;
    Endpoint::new(config, None, socket, runtime).map_err(|error| StartError::Listen(explain(address, &error)))
}

fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "UDP address {address} for links is in use by another process; stop it, or choose another `listen` address"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("UDP address {address} for links is not one of this machine's; choose another `listen` address")
        }
        io::ErrorKind::PermissionDenied => {
            format!("UDP address {address} for links may not be used by this user; choose a port above 1023")
        }
        _ => format!("UDP address {address} for links cannot be opened: {error}"),
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // One socket for both families where the system allows it.
        let _ = socket.set_only_v6(false);
    }
    // As large as the system grants; it cuts the request silently, so asking for too much does no harm.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    let granted = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
    tracing::debug!(%address, receive_bytes = granted.0, send_bytes = granted.1, "socket buffers granted");
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What a connection is accepted with.
pub fn server_config(credentials: &Credentials, transport: Arc<TransportConfig>) -> Result<ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(credentials.server_config()?).map_err(|error| TlsError::new(&error))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport).max_incoming(INCOMING_MAX);
    Ok(config)
}

/// What this peer is dialled with.
pub fn client_config(
    credentials: &Credentials,
    peer: &NodeName,
    transport: Arc<TransportConfig>,
) -> Result<ClientConfig, TlsError> {
    let crypto = QuicClientConfig::try_from(credentials.client_config(peer)?).map_err(|error| TlsError::new(&error))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport);
    Ok(config)
}
