//! `wg0.conf`: what `wg setconf` and `wg-quick` read.
//!
//! | file | what it has |
//! |---|---|
//! | `conf.rs` | the file's content as values, and what of it a device is told |
//! | `conf/reader.rs` | text to values, with an error that names the line |
//! | `conf/writer.rs` | values to text |
//!
//! Commands in the file are text here. Who runs them, if anybody, is for the caller to decide.

mod reader;
mod text;
mod writer;

use std::net::{IpAddr, SocketAddr};

pub use reader::{CONF_BYTES_MAX, ConfError, ConfProblem};
pub use text::{CommandLine, EndpointName, Word};

use crate::{
    AllowedIpChange, InterfaceAddress, IpNetwork, KeyUpdate, PeerSet, PresharedKey, PrivateKey,
    PublicKey, Set,
};

/// A whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conf {
    /// `[Interface]`.
    pub interface: ConfInterface,
    /// Each `[Peer]`.
    pub peers: Vec<ConfPeer>,
}

/// `[Interface]`. What `wg` knows comes first, what only `wg-quick` does after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfInterface {
    /// The interface's secret.
    pub private_key: Option<PrivateKey>,
    /// UDP port; without one, any that is free.
    pub listen_port: Option<u16>,
    /// Mark of the tunnel's own packets; 0, or `off`, is none.
    pub fwmark: Option<u32>,
    /// The interface's own addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Domains to search, which stand among the name servers in the file.
    pub dns_search: Vec<Word>,
    /// Bytes of the largest packet in the tunnel.
    pub mtu: Option<u16>,
    /// Routing table: a number, a name, `auto` or `off`.
    pub table: Option<Word>,
    /// Before the interface comes up.
    pub pre_up: Vec<CommandLine>,
    /// After it has.
    pub post_up: Vec<CommandLine>,
    /// Before it goes down.
    pub pre_down: Vec<CommandLine>,
    /// After it has.
    pub post_down: Vec<CommandLine>,
    /// Write the file anew when the interface goes down.
    pub save_config: bool,
}

/// One `[Peer]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfPeer {
    /// Who it is.
    pub public_key: PublicKey,
    /// What both ends know besides.
    pub preshared_key: Option<PresharedKey>,
    /// What it may send from, and what is sent to it.
    pub allowed_ips: Vec<IpNetwork>,
    /// Where it is, by name or address.
    pub endpoint: Option<EndpointName>,
    /// Seconds between keepalives; 0 is `off`.
    pub persistent_keepalive_s: Option<u16>,
}

impl ConfPeer {
    /// A peer of whom only the key is known.
    #[must_use]
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoint: None,
            persistent_keepalive_s: None,
        }
    }

    fn to_set(&self, endpoint: Option<SocketAddr>) -> PeerSet {
        let networks = self.allowed_ips.iter().copied();
        PeerSet {
            preshared_key: match &self.preshared_key {
                Some(key) => KeyUpdate::Replace(key.clone()),
                None => KeyUpdate::Keep,
            },
            endpoint,
            persistent_keepalive_s: self.persistent_keepalive_s,
            replace_allowed_ips: true,
            allowed_ips: networks.map(AllowedIpChange::Add).collect(),
            ..PeerSet::new(self.public_key)
        }
    }
}

impl Conf {
    /// What `wg setconf` would tell a device: to be this and nothing else. `resolve` finds the
    /// address of an endpoint; one that it does not find is left out.
    pub fn to_set(&self, mut resolve: impl FnMut(&EndpointName) -> Option<SocketAddr>) -> Set {
        let peers = self.peers.iter();
        Set {
            private_key: KeyUpdate::to(self.interface.private_key.clone()),
            listen_port: Some(self.interface.listen_port.unwrap_or(0)),
            fwmark: Some(self.interface.fwmark.unwrap_or(0)),
            replace_peers: true,
            peers: peers
                .map(|peer| peer.to_set(peer.endpoint.as_ref().and_then(&mut resolve)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests;
