//! What `wg` asks for: `get=1` and `set=1`.

use std::{
    fmt::{self, Write},
    net::SocketAddr,
};

use zeroize::Zeroizing;

use crate::{IpNetwork, KeyUpdate, PresharedKey, PrivateKey, PublicKey};

/// One request of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Say what you are configured to be, and how it goes.
    Get,
    /// Be configured thus.
    Set(Set),
}

/// What a `set=1` changes. What it does not name stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The interface's secret.
    pub private_key: KeyUpdate<PrivateKey>,
    /// UDP port; 0 is any that is free.
    pub listen_port: Option<u16>,
    /// Mark of the packets that the tunnel sends itself; 0 is none.
    pub fwmark: Option<u32>,
    /// Remove all peers before those below are looked at.
    pub replace_peers: bool,
    /// In the order that they are applied in. A peer may occur more than once.
    pub peers: Vec<PeerSet>,
}

/// What a `set=1` changes of one peer.
///
/// `remove`, `update_only` and `replace_allowed_ips` hold for the whole section, wherever in it
/// they stood, as they do in the kernel's interface. The tools write them first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSet {
    /// Whom this is about.
    pub public_key: PublicKey,
    /// Remove the peer; the rest says nothing then.
    pub remove: bool,
    /// Change nothing if there is no such peer.
    pub update_only: bool,
    /// What both ends know besides.
    pub preshared_key: KeyUpdate<PresharedKey>,
    /// Where to send to, until the peer is heard from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives (the protocol's `persistent_keepalive_interval`); 0 is off.
    pub persistent_keepalive_s: Option<u16>,
    /// Take all allowed IPs away before those below are looked at.
    pub replace_allowed_ips: bool,
    /// In the order that they are applied in.
    pub allowed_ips: Vec<AllowedIpChange>,
}

/// One `allowed_ip` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedIpChange {
    /// Give the network to this peer, and take it from whichever has it.
    Add(IpNetwork),
    /// Take exactly this network from this peer, if it is this peer's (`allowed_ip=-…`).
    Remove(IpNetwork),
}

impl Request {
    /// The request as `wg` would send it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        match self {
            Self::Get => Zeroizing::new("get=1\n\n".to_owned()),
            Self::Set(set) => set.to_text(),
        }
    }
}

impl PeerSet {
    /// A section that only names the peer, which adds it if it is new.
    #[must_use]
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: KeyUpdate::Keep,
            endpoint: None,
            persistent_keepalive_s: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// Room for `set=1`, the interface's keys and the empty line.
const INTERFACE_TEXT_BYTES: usize = 256;
/// Room for a peer's keys and values without its allowed IPs.
const PEER_TEXT_BYTES: usize = 512;
/// Room for one allowed IP and what is around it.
pub(crate) const NETWORK_TEXT_BYTES: usize = 64;

/// Text for so much and `more_bytes`, with room for all of it at once: one that grew would leave
/// copies of keys behind.
pub(crate) fn secret_text(
    peers: usize,
    allowed_ips: usize,
    more_bytes: usize,
) -> Zeroizing<String> {
    let bytes = INTERFACE_TEXT_BYTES
        + peers * PEER_TEXT_BYTES
        + allowed_ips * NETWORK_TEXT_BYTES
        + more_bytes;
    Zeroizing::new(String::with_capacity(bytes))
}

/// Writes one line at the end of a text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {
        $crate::request::write_line(&mut *$text, format_args!($($format)*))
    };
}
pub(crate) use line;

pub(crate) fn write_line(text: &mut String, line: fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = text.write_fmt(line);
    text.push('\n');
}

/// What the protocol writes for a secret that there is not.
pub(crate) const NO_KEY_HEX: &str =
    "0000000000000000000000000000000000000000000000000000000000000000";

impl Set {
    /// The request as `wg` would send it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let allowed_ips = self.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        let mut text = secret_text(self.peers.len(), allowed_ips, 0);
        line!(text, "set=1");
        match &self.private_key {
            KeyUpdate::Keep => {}
            KeyUpdate::Clear => line!(text, "private_key={NO_KEY_HEX}"),
            KeyUpdate::Replace(key) => line!(text, "private_key={}", *key.to_hex()),
        }
        if let Some(port) = self.listen_port {
            line!(text, "listen_port={port}");
        }
        if let Some(fwmark) = self.fwmark {
            line!(text, "fwmark={fwmark}");
        }
        if self.replace_peers {
            line!(text, "replace_peers=true");
        }
        for peer in &self.peers {
            peer.write(&mut text);
        }
        line!(text, "");
        text
    }
}

impl PeerSet {
    fn write(&self, text: &mut String) {
        line!(text, "public_key={}", self.public_key.to_hex());
        if self.remove {
            line!(text, "remove=true");
        }
        if self.update_only {
            line!(text, "update_only=true");
        }
        match &self.preshared_key {
            KeyUpdate::Keep => {}
            KeyUpdate::Clear => line!(text, "preshared_key={NO_KEY_HEX}"),
            KeyUpdate::Replace(key) => line!(text, "preshared_key={}", *key.to_hex()),
        }
        if let Some(endpoint) = self.endpoint {
            line!(text, "endpoint={endpoint}");
        }
        if let Some(seconds) = self.persistent_keepalive_s {
            line!(text, "persistent_keepalive_interval={seconds}");
        }
        if self.replace_allowed_ips {
            line!(text, "replace_allowed_ips=true");
        }
        for change in &self.allowed_ips {
            match change {
                AllowedIpChange::Add(network) => line!(text, "allowed_ip={network}"),
                AllowedIpChange::Remove(network) => line!(text, "allowed_ip=-{network}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_text_has_room() {
        let network: IpNetwork = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
            .parse()
            .unwrap();
        let peer = PeerSet {
            remove: true,
            update_only: true,
            preshared_key: KeyUpdate::Clear,
            endpoint: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535"
                .parse()
                .ok(),
            persistent_keepalive_s: Some(u16::MAX),
            replace_allowed_ips: true,
            allowed_ips: vec![AllowedIpChange::Remove(network); 9],
            ..PeerSet::new(PublicKey([7; 32]))
        };
        let set = Set {
            private_key: KeyUpdate::Clear,
            listen_port: Some(u16::MAX),
            fwmark: Some(u32::MAX),
            replace_peers: true,
            peers: vec![peer; 9],
        };
        let room = secret_text(9, 81, 0).capacity();
        assert_eq!(set.to_text().capacity(), room);
    }
}
