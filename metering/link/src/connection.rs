//! One link, and how to get one by connecting.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt,
};
use topnet_account::PublicKey;
use topnet_channel::SecretKey;

use crate::{
    FRAME_BYTES_MAX, LinkError, Receiver, Sender,
    identity::{self, Pin},
    socket,
    sources::Charge,
};

/// From the first packet to the first byte of the stream.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A link on which nothing arrives for so long is lost.
const IDLE_TIMEOUT_MS: u32 = 30_000;
/// The connecting end keeps the path, and NATs on it, awake, and hears within this time that the
/// listener has come back from a crash.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// What the other end may send ahead of our reading.
const RECEIVE_WINDOW_BYTES: u32 = 16 * 1024;
/// TLS does not use it without SNI, but the libraries want a name.
const NAME: &str = "topnet";

const _: () = assert!(RECEIVE_WINDOW_BYTES as usize >= 8 * FRAME_BYTES_MAX);

/// A link whose both ends have proved their keys.
#[derive(Debug)]
pub struct Connection {
    /// The other end's key.
    pub peer: PublicKey,
    /// Where the other end was when the link was made.
    pub remote: SocketAddr,
    /// Towards the other end.
    pub sender: Sender,
    /// From the other end.
    pub receiver: Receiver,
    /// What both have moved.
    pub traffic: Traffic,
    pub(crate) charge: Option<Charge>,
}

impl Connection {
    /// The listener does business with the other end. Until then a link counts against what its
    /// source may have: 256 at once, and 32 a second from then on.
    pub fn welcome(&mut self) {
        if let Some(charge) = self.charge.take() {
            charge.refund();
        }
    }

    /// The two halves, for two tasks or two arms of a `select`.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

/// Connects to the listener at `address` that holds `expected`, as the holder of `secret`.
/// The listener learns of the link with the first frame that is sent.
pub async fn connect(
    address: SocketAddr,
    expected: PublicKey,
    secret: &SecretKey,
) -> Result<Connection, LinkError> {
    Dialer::new(address)?.connect(expected, secret).await
}

/// Makes any number of links to one listener from one UDP port, each with a key of its own.
#[derive(Debug)]
pub struct Dialer {
    address: SocketAddr,
    endpoint: Endpoint,
}

impl Dialer {
    /// For the listener at `address`. Runs on the current tokio runtime. Links outlive it.
    pub fn new(address: SocketAddr) -> Result<Self, LinkError> {
        let any_port: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let endpoint = endpoint(any_port).map_err(|error| LinkError::Connect {
            address,
            reason: error.to_string(),
        })?;
        Ok(Self { address, endpoint })
    }

    /// As [`connect`] does.
    pub async fn connect(
        &self,
        expected: PublicKey,
        secret: &SecretKey,
    ) -> Result<Connection, LinkError> {
        let pin = Arc::new(Pin::new(expected));
        let tls = identity::client(secret, Arc::clone(&pin)).map_err(LinkError::Identity)?;
        let mut config = ClientConfig::new(Arc::new(tls));
        let mut transport = transport(0);
        transport.keep_alive_interval(Some(KEEP_ALIVE));
        config.transport_config(Arc::new(transport));

        let address = self.address;
        let failed = |reason: String| match pin.found_instead() {
            Some(found) => LinkError::WrongKey {
                address,
                expected,
                found,
            },
            None => LinkError::Connect { address, reason },
        };
        let handshake = async {
            let connecting = self
                .endpoint
                .connect_with(config, address, NAME)
                .map_err(|error| failed(error.to_string()))?;
            let connection = connecting
                .await
                .map_err(|error| failed(error.to_string()))?;
            let (send, receive) = connection
                .open_bi()
                .await
                .map_err(|error| failed(error.to_string()))?;
            Ok(Connection {
                peer: identity::peer(&connection).unwrap_or(expected),
                remote: address,
                sender: Sender::new(send),
                receiver: Receiver::new(receive),
                traffic: Traffic(connection),
                charge: None,
            })
        };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .unwrap_or_else(|_| Err(failed("no answer in time".into())))
    }
}

fn endpoint(address: SocketAddr) -> io::Result<Endpoint> {
    let (config, socket) = (EndpointConfig::default(), socket::bind(address)?);
    Endpoint::new(config, None, socket, Arc::new(TokioRuntime))
}

/// What a link has moved over the network. Whoever keeps it keeps the link from ending when
/// both halves are dropped.
#[derive(Clone, Debug)]
pub struct Traffic(pub(crate) quinn::Connection);

/// Datagrams and the bytes in them, without headers of UDP and IP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Datagrams {
    /// How many.
    pub datagrams: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl Traffic {
    /// Sent so far, handshake and repetitions included.
    pub fn sent(&self) -> Datagrams {
        let sent = self.0.stats().udp_tx;
        Datagrams {
            datagrams: sent.datagrams,
            bytes: sent.bytes,
        }
    }

    /// Received so far.
    pub fn received(&self) -> Datagrams {
        let received = self.0.stats().udp_rx;
        Datagrams {
            datagrams: received.datagrams,
            bytes: received.bytes,
        }
    }
}

/// What both ends allow the other: one stream that the connecting end opens, little ahead
/// of reading, no datagrams.
pub(crate) fn transport(streams_max: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams_max))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(u64::from(RECEIVE_WINDOW_BYTES))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))));
    transport
}
