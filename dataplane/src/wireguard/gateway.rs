//! The paid gateway, as WireGuard's tools see it.
//!
//! They see every peer and configure the operator's own ones, which are kept in a file of
//! WireGuard's format. What is not theirs is refused, with the reason in the log, because the
//! protocol answers with a number alone: clients that pay, the gateway's key and its port.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::spawn_blocking;
use topnet_config::{Dataplane, InnerNetwork, Ipv4Subnet};
use topnet_uapi::{
    AllowedIpChange, CONF_BYTES_MAX, Conf, ConfInterface, ConfPeer, Device, DeviceStatus,
    EndpointName, Errno, IpNetwork, KeyUpdate, PeerSet, PeerStatus, PrivateKey, PublicKey, Set,
};

use super::Since;
use super::socket::Interface;
use crate::error::RunError;
use crate::files::replace_private;
use crate::registry::{PeersRefused, Registry};
use crate::service::Shared;

/// Widest networks of a peer beside the inner network.
const PREFIX_BITS_MIN: u8 = 8;
const PREFIX6_BITS_MIN: u8 = 16;

/// What is not for WireGuard's tools to do here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("the interface's key is the gateway's (dataplane.key_file); leave PrivateKey out")]
    Key,
    #[error(
        "the interface listens at {0} (dataplane.wireguard_port); leave ListenPort out, or write that"
    )]
    Port(u16),
    #[error("the gateway's own packets have no mark; leave FwMark out")]
    Mark,
    #[error("allowed IP {network} of peer {peer}: {reason}")]
    Network {
        network: IpNetwork,
        peer: PublicKey,
        reason: &'static str,
    },
    #[error("endpoint {endpoint} of peer {peer} lies inside the tunnel; leave it out")]
    Endpoint {
        endpoint: SocketAddr,
        peer: PublicKey,
    },
    #[error(transparent)]
    Peers(#[from] PeersRefused),
}

impl Refused {
    fn errno(&self) -> Errno {
        match self {
            Self::Key | Self::Port(_) | Self::Mark => Errno::NOT_PERMITTED,
            Self::Network { .. }
            | Self::Endpoint { .. }
            | Self::Peers(PeersRefused::NotConfigured) => Errno::INVALID,
            Self::Peers(PeersRefused::Pays(_)) => Errno::EXISTS,
            Self::Peers(PeersRefused::Full(full)) => full.errno(),
        }
    }
}

/// What is fixed about the interface.
#[derive(Clone, Debug)]
pub struct GatewayRules {
    inner: InnerNetwork,
    subnet: Ipv4Subnet,
    pool: Option<Ipv4Subnet>,
    listen_port: u16,
    /// Where clients reach the gateway.
    gateway_address: IpAddr,
    /// False where only inner addresses are steered into the tunnel.
    kernel_routes: bool,
    file: PathBuf,
}

impl GatewayRules {
    /// As configured; `None` if there are no unmetered peers.
    #[must_use]
    pub fn of(section: &Dataplane, gateway_address: IpAddr, kernel_routes: bool) -> Option<Self> {
        let unmetered = section.unmetered.as_ref()?;
        Some(Self {
            inner: section.inner_network(),
            subnet: unmetered.subnet,
            pool: section.nat.as_ref().map(|nat| nat.addresses),
            listen_port: section.wireguard_port,
            gateway_address,
            kernel_routes,
            file: unmetered.file.clone(),
        })
    }

    /// Says why a peer cannot have a network.
    fn check(&self, network: &IpNetwork) -> Result<(), &'static str> {
        let address = network.address();
        if self.inner.contains(address) {
            return if self.is_unmetered(network) {
                Ok(())
            } else {
                Err("it is a client's or nobody's; choose addresses of dataplane.unmetered.subnet")
            };
        }
        let covers = |other: IpAddr| network.contains(other);
        let bits_min = if address.is_ipv4() {
            PREFIX_BITS_MIN
        } else {
            PREFIX6_BITS_MIN
        };
        if network.prefix_bits() < bits_min {
            return Err("it is so wide that clients' own addresses may be in it; name less");
        }
        if covers(self.gateway_address) {
            return Err("the gateway's own address is in it");
        }
        let inner6 = self.inner.v6().map(|v6| v6.network());
        if covers(self.inner.v4().network().into()) || inner6.is_some_and(|v6| covers(v6.into())) {
            return Err("clients' addresses are in it; choose a network beside inner_subnet");
        }
        if self.pool.is_some_and(|pool| {
            covers(pool.network().into())
                || matches!(address, IpAddr::V4(address) if pool.contains(address))
        }) {
            return Err("public addresses that clients share are in it (dataplane.nat.addresses)");
        }
        if self.kernel_routes {
            Ok(())
        } else {
            Err(
                "frames come for inner addresses alone; set dataplane.io = \"kernel\" for networks beside",
            )
        }
    }

    /// True for addresses that are reached through the tunnel, or shared by clients.
    fn is_inside(&self, address: IpAddr) -> bool {
        let shared = |pool: Ipv4Subnet| matches!(address, IpAddr::V4(at) if pool.contains(at));
        self.inner.contains(address) || self.pool.is_some_and(shared)
    }

    /// True for a part of the subnet, and for the IPv6 address beside one of its addresses.
    fn is_unmetered(&self, network: &IpNetwork) -> bool {
        match network.address() {
            IpAddr::V4(address) => {
                network.prefix_bits() >= self.subnet.prefix_bits() && self.subnet.contains(address)
            }
            IpAddr::V6(_) => {
                let host = self.inner.host(network.address());
                let first = self.inner.host(self.subnet.network().into());
                let last = self.inner.host(self.subnet.broadcast().into());
                network.prefix_bits() == 128 && first <= host && host <= last && host.is_some()
            }
        }
    }
}

/// The gateway's interface.
pub struct Gateway {
    shared: Arc<Shared>,
    rules: GatewayRules,
    private_key: Option<PrivateKey>,
    since: Since,
}

impl Gateway {
    /// The interface of the gateway behind `shared`, with the peers of the last run.
    pub async fn open(shared: Arc<Shared>, rules: GatewayRules) -> Result<Self, RunError> {
        let private_key = PrivateKey::new(shared.identity.private.to_bytes());
        let since = Since::new(shared.started);
        let gateway = Self {
            shared,
            rules,
            private_key,
            since,
        };
        let path = gateway.rules.file.clone();
        let failed = |reason: String| RunError::Unmetered {
            path: path.clone(),
            reason,
        };
        let Some(conf) = read(&path).map_err(failed)? else {
            return Ok(gateway);
        };
        // Names are resolved where the file is written; what is kept has addresses.
        let mut set = conf.to_set(EndpointName::socket_address);
        for peer in &mut set.peers {
            // Where it was heard last is newer than what was configured once.
            let known = gateway.shared.remembered(&peer.public_key.0);
            peer.endpoint = known.or(peer.endpoint);
        }
        let mut registry = gateway.shared.registry.lock().await;
        let admitted = gateway
            .check(&registry, &mut set)
            .and_then(|_| Ok(registry.apply(&set)?));
        let orders = admitted.map_err(|refused| failed(refused.to_string()))?;
        gateway.shared.deliver(&mut registry, orders).await;
        drop(registry);
        Ok(gateway)
    }

    /// Says what a request would make of the peers, or why it is refused. What it says of the
    /// interface is taken out of it.
    fn check(&self, registry: &Registry, set: &mut Set) -> Result<Device, Refused> {
        self.check_interface(set)?;
        for peer in &set.peers {
            self.check_peer(peer)?;
        }
        let device = registry.preview(set)?;
        for (public_key, peer) in device.peers() {
            let inside =
                |network: &IpNetwork| peer.endpoint.is_some_and(|at| network.contains(at.ip()));
            if let Some(network) = peer.allowed_ips.iter().find(|network| inside(network)) {
                return Err(Refused::Network {
                    network: *network,
                    peer: *public_key,
                    reason: "the peer's own endpoint is in it",
                });
            }
        }
        Ok(device)
    }

    /// What only repeats how things are, or says nothing, is no harm.
    fn check_interface(&self, set: &mut Set) -> Result<(), Refused> {
        match std::mem::take(&mut set.private_key) {
            KeyUpdate::Replace(key) if Some(&key) != self.private_key.as_ref() => {
                return Err(Refused::Key);
            }
            _ => {}
        }
        let port = self.rules.listen_port;
        match set.listen_port.take() {
            Some(other) if other != 0 && other != port => return Err(Refused::Port(port)),
            _ => {}
        }
        match set.fwmark.take() {
            Some(mark) if mark != 0 => Err(Refused::Mark),
            _ => Ok(()),
        }
    }

    fn check_peer(&self, peer: &PeerSet) -> Result<(), Refused> {
        if let Some(endpoint) = peer.endpoint
            && self.rules.is_inside(endpoint.ip())
        {
            return Err(Refused::Endpoint {
                endpoint,
                peer: peer.public_key,
            });
        }
        for change in &peer.allowed_ips {
            let AllowedIpChange::Add(network) = change else {
                continue;
            };
            let refused = |reason| Refused::Network {
                network: *network,
                peer: peer.public_key,
                reason,
            };
            self.rules.check(network).map_err(refused)?;
        }
        Ok(())
    }

    /// Paying clients, whom the tools see and do not configure.
    fn clients(&self, registry: &Registry) -> Vec<PeerStatus> {
        let clients = registry.standing().map(|standing| {
            let traffic = self.since.traffic(&standing.counters);
            let address = standing.desired.inner_address;
            let addresses = [
                Some(IpAddr::from(address)),
                self.rules.inner.address6(address).map(IpAddr::from),
            ];
            PeerStatus {
                endpoint: standing.counters.endpoint(),
                last_handshake: traffic.last_handshake,
                tx_bytes: traffic.tx_bytes,
                rx_bytes: traffic.rx_bytes,
                allowed_ips: addresses
                    .into_iter()
                    .flatten()
                    .map(IpNetwork::host)
                    .collect(),
                ..PeerStatus::new(PublicKey(standing.desired.wireguard_public_key))
            }
        });
        clients.collect()
    }
}

impl Interface for Gateway {
    async fn status(&self) -> DeviceStatus {
        let mut registry = self.shared.registry.lock().await;
        self.shared.reap(&mut registry);
        let mut status = registry
            .operators()
            .map(|operators| operators.status(|standing| self.since.traffic(&standing.counters)))
            .unwrap_or_default();
        status.private_key.clone_from(&self.private_key);
        status.listen_port = self.rules.listen_port;
        status.peers.extend(self.clients(&registry));
        status
    }

    async fn apply(&self, mut set: Set) -> Errno {
        let mut registry = self.shared.registry.lock().await;
        self.shared.reap(&mut registry);
        let device = match self.check(&registry, &mut set) {
            Ok(device) => device,
            Err(refused) => {
                tracing::warn!(%refused, "a change of peers is refused");
                return refused.errno();
            }
        };
        // On disk before it is true: what was removed must not come back with the next run.
        let (path, text) = (self.rules.file.clone(), conf_of(&device).to_text());
        let written = spawn_blocking(move || write(&path, text.as_bytes())).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            let path = self.rules.file.display();
            tracing::error!(%error, %path, "peers cannot be kept, so nothing is changed");
            return Errno::IO;
        }
        match registry.apply(&set) {
            Ok(orders) => {
                self.shared.deliver(&mut registry, orders).await;
                Errno::NONE
            }
            // It was previewed under the same lock.
            Err(refused) => Refused::from(refused).errno(),
        }
    }
}

/// The peers of an interface as they are kept.
fn conf_of(device: &Device) -> Conf {
    let peers = device.peers().map(|(public_key, peer)| ConfPeer {
        preshared_key: peer.preshared_key.clone(),
        allowed_ips: peer.allowed_ips.iter().copied().collect(),
        endpoint: peer
            .endpoint
            .and_then(|at| EndpointName::new(&at.ip().to_string(), at.port())),
        persistent_keepalive_s: Some(peer.persistent_keepalive_s).filter(|s| *s > 0),
        ..ConfPeer::new(*public_key)
    });
    Conf {
        interface: ConfInterface::default(),
        peers: peers.collect(),
    }
}

/// The kept peers; `None` if there is no file yet.
fn read(path: &Path) -> Result<Option<Conf>, String> {
    match fs::metadata(path) {
        Ok(found) if found.len() > CONF_BYTES_MAX as u64 => {
            return Err(format!("it has more than {CONF_BYTES_MAX} bytes"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(_) | Err(_) => {}
    }
    let bytes = zeroize::Zeroizing::new(fs::read(path).map_err(|error| error.to_string())?);
    Conf::parse(&bytes)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// Keeps them, for good when it returns.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    if text.len() > CONF_BYTES_MAX {
        return Err(io::Error::other(format!(
            "they take more than {CONF_BYTES_MAX} bytes"
        )));
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    replace_private(path, text)?;
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_get_their_own_part_and_never_what_clients_have() {
        let rules = GatewayRules {
            inner: InnerNetwork::new(
                "10.78.0.0/16".parse().unwrap(),
                Some("fd78::/64".parse().unwrap()),
                "10.78.0.1".parse().unwrap(),
            ),
            subnet: "10.78.255.0/24".parse().unwrap(),
            pool: Some("198.51.100.0/28".parse().unwrap()),
            listen_port: 51_820,
            gateway_address: "203.0.113.1".parse().unwrap(),
            kernel_routes: true,
            file: PathBuf::new(),
        };
        let frames = GatewayRules {
            kernel_routes: false,
            ..rules.clone()
        };
        let cases = [
            ("10.78.255.7/32", true, true),
            ("10.78.255.0/25", true, true),
            ("fd78::ff07/128", true, true),
            ("192.168.5.0/24", true, false),
            ("fd99::/64", true, false),
            ("10.78.0.2/32", false, false),
            ("10.78.254.0/23", false, false),
            ("10.0.0.0/8", false, false),
            ("0.0.0.0/0", false, false),
            ("::/0", false, false),
            ("128.0.0.0/1", false, false),
            ("203.0.113.0/24", false, false),
            ("fd78::2/128", false, false),
            ("fd78::ff00/120", false, false),
            ("fd78::1:0:0:ff07/128", false, false),
            ("198.51.100.3/32", false, false),
            ("198.51.0.0/16", false, false),
        ];
        for (text, routed, framed) in cases {
            let network = text.parse().unwrap();
            assert_eq!(rules.check(&network).is_ok(), routed, "{text}");
            assert_eq!(frames.check(&network).is_ok(), framed, "{text} with frames");
        }
    }
}
