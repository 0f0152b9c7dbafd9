//! The end that listens: takes links from anybody who proves a key, within limits.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, Incoming, ServerConfig, VarInt,
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use topnet_account::PublicKey;
use topnet_channel::SecretKey;
use tracing::debug;

use crate::{
    Connection, LinkError, Receiver, Sender, Traffic,
    connection::{HANDSHAKE_TIMEOUT, transport},
    identity, socket,
    sources::{Charge, Entry, Sources},
};

/// Links that wait to be accepted.
const BACKLOG_MAX: usize = 64;
/// How long the last packets may take when the listener goes.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(200);
/// Length of a link's id.
const ID_BYTES: usize = 8;
/// What the key of stateless resets (RFC 9000, 10.3) is derived for.
const RESET_DOMAIN: &[u8] = b"topnet/quic-reset/1";
const CLOSE_CROWDED: VarInt = VarInt::from_u32(1);
const CLOSE_GOING: VarInt = VarInt::from_u32(2);

/// Says whether a key is known, so that strangers go first when the place is crowded.
pub type Known = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// What a listener allows.
#[derive(Clone)]
pub struct Limits {
    /// Connections at once, handshakes included. From half of it on the place is crowded:
    /// addresses must answer a retry packet first, as they must while many handshakes are under
    /// way, and strangers are sent away. What one source may have of them is fixed: see
    /// [`Connection::welcome`].
    pub connections_max: usize,
    /// Who is no stranger.
    pub known: Known,
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("connections_max", &self.connections_max)
            .finish()
    }
}

/// Takes links at one UDP port. Dropping it ends them all.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    links: mpsc::Receiver<Connection>,
    greeter: JoinHandle<()>,
}

impl Listener {
    /// Listens at `address` as the holder of `secret`. Runs on the current tokio runtime.
    pub fn bind(
        address: SocketAddr,
        secret: &SecretKey,
        limits: Limits,
    ) -> Result<Self, LinkError> {
        let tls = identity::server(secret).map_err(LinkError::Identity)?;
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(Arc::new(transport(1)));
        config.max_incoming(limits.connections_max);
        let endpoint = endpoint(config, address, secret)
            .map_err(|source| LinkError::Bind { address, source })?;
        let (sender, links) = mpsc::channel(BACKLOG_MAX);
        let greeter = tokio::spawn(greet(endpoint.clone(), limits, sender));
        Ok(Self {
            endpoint,
            links,
            greeter,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next link. Handshakes run beside each other, so a slow one delays nobody.
    /// May be cancelled.
    pub async fn accept(&mut self) -> Option<Connection> {
        self.links.recv().await
    }

    /// Ends all links and waits a moment until the other ends have been told.
    pub async fn close(self) {
        self.endpoint.close(CLOSE_GOING, b"the listener goes");
        let _ = timeout(DRAIN_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.greeter.abort();
        self.endpoint.close(CLOSE_GOING, b"the listener goes");
    }
}

/// An endpoint that ends the links of its last run when they are heard of again: without that a
/// payer would wait for its idle timeout before it connects anew to a listener that has crashed.
fn endpoint(config: ServerConfig, address: SocketAddr, secret: &SecretKey) -> io::Result<Endpoint> {
    let seed = hmac::Key::new(hmac::HMAC_SHA256, secret.seed());
    let key = hmac::sign(&seed, RESET_DOMAIN);
    let mut shared = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref())));
    shared.cid_generator(|| Box::new(RandomIds(SystemRandom::new())));
    let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no tokio runtime"))?;
    Endpoint::new(shared, Some(config), socket::bind(address)?, runtime)
}

/// Ids of links, any of which may be of an earlier run. (Those that quinn makes by itself are not
/// known to the next run, which is then silent.)
struct RandomIds(SystemRandom);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        self.0
            .fill(&mut id)
            .expect("the system has random bytes to give");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

async fn greet(endpoint: Endpoint, limits: Limits, links: mpsc::Sender<Connection>) {
    let sources = Sources::default();
    while let Some(incoming) = endpoint.accept().await {
        let open = endpoint.open_connections();
        let crowded = open >= limits.connections_max / 2;
        if open >= limits.connections_max {
            incoming.refuse();
            continue;
        }
        let validated = incoming.remote_address_validated() || !incoming.may_retry();
        if crowded && !validated {
            // It fails only for addresses that have already answered one.
            let _ = incoming.retry();
            continue;
        }
        let address = incoming.remote_address().ip();
        let (under_way, charge) = match sources.enter(address, validated, Instant::now()) {
            Entry::Enter(under_way, charge) => (under_way, charge),
            Entry::AnswerFirst => {
                let _ = incoming.retry();
                continue;
            }
            Entry::TooMany => {
                incoming.refuse();
                continue;
            }
        };
        let (known, links) = (Arc::clone(&limits.known), links.clone());
        tokio::spawn(async move {
            let remote = incoming.remote_address();
            let greeting = handshake(incoming, charge, crowded, known);
            let greeted = timeout(HANDSHAKE_TIMEOUT, greeting).await;
            drop(under_way);
            match greeted {
                // The backlog is full only while nobody accepts; then the link may go.
                Ok(Ok(link)) => drop(links.try_send(link)),
                Ok(Err(reason)) => debug!(%remote, reason, "payment handshake failed"),
                Err(_) => debug!(%remote, "payment handshake timed out"),
            }
        });
    }
}

async fn handshake(
    incoming: Incoming,
    charge: Charge,
    crowded: bool,
    known: Known,
) -> Result<Connection, String> {
    let connection = incoming.await.map_err(|error| error.to_string())?;
    let peer = identity::peer(&connection).ok_or("no key was proved")?;
    if crowded && !known(&peer) {
        connection.close(CLOSE_CROWDED, b"crowded");
        return Err(format!("{peer} is a stranger and the place is crowded"));
    }
    let (send, receive) = connection
        .accept_bi()
        .await
        .map_err(|error| error.to_string())?;
    Ok(Connection {
        peer,
        remote: connection.remote_address(),
        sender: Sender::new(send),
        receiver: Receiver::new(receive),
        traffic: Traffic(connection),
        charge: Some(charge),
    })
}
