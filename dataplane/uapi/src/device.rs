//! What a device is configured to be, and what a request changes about it.
//!
//! The model holds what a get request is answered with, apart from counters. It owns one
//! invariant: a network belongs to one peer at most. A request is applied as a whole or, if the
//! device has no room for it, not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use crate::{
    AllowedIpChange, DeviceStatus, Errno, IpNetwork, KeyUpdate, Limits, PeerSet, PeerStatus,
    PresharedKey, PrivateKey, PublicKey, Set,
};

/// How a private key's public key is found, which is the caller's cryptography.
pub type PublicKeyOf = fn(&PrivateKey) -> PublicKey;

/// A configured device.
///
/// Call [`apply`](Self::apply) for each set request and do its changes in their order; tell it
/// with [`handle_bound`](Self::handle_bound) and [`handle_roamed`](Self::handle_roamed) what the
/// data plane found out by itself.
#[derive(Clone, Debug)]
pub struct Device {
    limits: Limits,
    public_key_of: PublicKeyOf,
    private_key: Option<PrivateKey>,
    public_key: Option<PublicKey>,
    listen_port: u16,
    fwmark: u32,
    peers: BTreeMap<PublicKey, Peer>,
    /// Whose each allowed network is: the peers' own sets, read the other way.
    owners: BTreeMap<IpNetwork, PublicKey>,
}

/// A configured peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// What both ends know besides.
    pub preshared_key: Option<PresharedKey>,
    /// Where to send to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 is off.
    pub persistent_keepalive_s: u16,
    /// What it may send from, and what is sent to it.
    pub allowed_ips: BTreeSet<IpNetwork>,
}

/// Something for the data plane to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The interface's secret is another, or there is none any more.
    InterfaceKey(Option<PrivateKey>),
    /// Listen there; 0 is any port that is free.
    ListenPort(u16),
    /// Mark the tunnel's own packets; 0 is not at all.
    Fwmark(u32),
    /// A peer is new. What is configured of it follows as a change of it.
    PeerAdded(PublicKey),
    /// A peer is gone, its sessions and allowed IPs with it.
    PeerRemoved(PublicKey),
    /// Something of a peer is different.
    PeerChanged(PublicKey, PeerChange),
}

/// What is different about a peer, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerChange {
    /// What both ends know besides.
    pub preshared_key: KeyUpdate<PresharedKey>,
    /// Where to send to.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; 0 is off.
    pub persistent_keepalive_s: Option<u16>,
    /// Networks that it has not any more.
    pub allowed_ips_removed: Vec<IpNetwork>,
    /// Networks that it has now. Whoever had one has lost it in a change before this one.
    pub allowed_ips_added: Vec<IpNetwork>,
}

/// What a get request asks about a peer and only the data plane knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Since 1970; `None` if there was no handshake.
    pub last_handshake: Option<Duration>,
    /// Sent to the peer.
    pub tx_bytes: u64,
    /// Received from it.
    pub rx_bytes: u64,
}

/// The device has no room for what a request adds. Nothing of the request was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFull {
    /// Too many peers.
    #[error("the device would have more than {0} peers: remove some first")]
    Peers(usize),
    /// Too many allowed IPs.
    #[error("the device would have more than {0} allowed IPs: join some to a wider network")]
    AllowedIps(usize),
}

impl DeviceFull {
    /// What to answer.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::NO_SPACE
    }
}

impl Device {
    /// A device without a key and peers.
    #[must_use]
    pub const fn new(limits: Limits, public_key_of: PublicKeyOf) -> Self {
        Self {
            limits,
            public_key_of,
            private_key: None,
            public_key: None,
            listen_port: 0,
            fwmark: 0,
            peers: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    /// Applies a request and returns what is different now, in the order to do it in. What a
    /// request only repeats is no change.
    pub fn apply(&mut self, set: &Set) -> Result<Vec<Change>, DeviceFull> {
        if self.has_room_for_all_of(set) {
            return self.apply_in_order(set);
        }
        // Near a limit the outcome depends on what the request removes before it adds.
        let mut attempt = self.clone();
        let changes = attempt.apply_in_order(set)?;
        *self = attempt;
        Ok(changes)
    }

    /// The data plane listens on `listen_port`, which it may have chosen itself.
    pub const fn handle_bound(&mut self, listen_port: u16) {
        self.listen_port = listen_port;
    }

    /// A peer was heard from elsewhere; false if there is no such peer.
    pub fn handle_roamed(&mut self, public_key: &PublicKey, endpoint: SocketAddr) -> bool {
        let peer = self.peers.get_mut(public_key);
        peer.map(|peer| peer.endpoint = Some(endpoint)).is_some()
    }

    /// The answer to a get request, with what `traffic` knows of each peer.
    pub fn status(&self, mut traffic: impl FnMut(&PublicKey) -> Traffic) -> DeviceStatus {
        let peers = self.peers.iter().map(|(public_key, peer)| {
            let traffic = traffic(public_key);
            PeerStatus {
                public_key: *public_key,
                preshared_key: peer.preshared_key.clone(),
                endpoint: peer.endpoint,
                last_handshake: traffic.last_handshake,
                tx_bytes: traffic.tx_bytes,
                rx_bytes: traffic.rx_bytes,
                persistent_keepalive_s: peer.persistent_keepalive_s,
                allowed_ips: peer.allowed_ips.iter().copied().collect(),
            }
        });
        DeviceStatus {
            private_key: self.private_key.clone(),
            listen_port: self.listen_port,
            fwmark: self.fwmark,
            peers: peers.collect(),
        }
    }

    /// The interface's secret.
    #[must_use]
    pub const fn private_key(&self) -> Option<&PrivateKey> {
        self.private_key.as_ref()
    }

    /// What belongs to the interface's secret.
    #[must_use]
    pub const fn public_key(&self) -> Option<&PublicKey> {
        self.public_key.as_ref()
    }

    /// Where it listens, or is to listen.
    #[must_use]
    pub const fn listen_port(&self) -> u16 {
        self.listen_port
    }

    /// Mark of the tunnel's own packets.
    #[must_use]
    pub const fn fwmark(&self) -> u32 {
        self.fwmark
    }

    /// All peers, in the order of their keys.
    pub fn peers(&self) -> impl Iterator<Item = (&PublicKey, &Peer)> {
        self.peers.iter()
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, public_key: &PublicKey) -> Option<&Peer> {
        self.peers.get(public_key)
    }

    /// Whose exactly this network is.
    #[must_use]
    pub fn owner(&self, network: &IpNetwork) -> Option<&PublicKey> {
        self.owners.get(network)
    }

    /// True if the request fits even if it removes nothing.
    fn has_room_for_all_of(&self, set: &Set) -> bool {
        let added: usize = set.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        self.peers.len() + set.peers.len() <= self.limits.peers_max
            && self.owners.len() + added <= self.limits.allowed_ips_max
    }

    fn apply_in_order(&mut self, set: &Set) -> Result<Vec<Change>, DeviceFull> {
        let mut changes = Vec::new();
        self.apply_interface(set, &mut changes);
        for peer in &set.peers {
            self.apply_peer(peer, &mut changes)?;
        }
        Ok(changes)
    }

    fn apply_interface(&mut self, set: &Set, changes: &mut Vec<Change>) {
        if set.private_key.apply(&mut self.private_key) {
            self.public_key = self.private_key.as_ref().map(self.public_key_of);
            // Nobody is a peer of itself.
            if let Some(own) = self.public_key {
                self.remove_peer(own, changes);
            }
            changes.push(Change::InterfaceKey(self.private_key.clone()));
        }
        if let Some(port) = replaced(&mut self.listen_port, set.listen_port) {
            changes.push(Change::ListenPort(port));
        }
        if let Some(fwmark) = replaced(&mut self.fwmark, set.fwmark) {
            changes.push(Change::Fwmark(fwmark));
        }
        if set.replace_peers {
            self.owners.clear();
            let removed = std::mem::take(&mut self.peers).into_keys();
            changes.extend(removed.map(Change::PeerRemoved));
        }
    }

    fn apply_peer(&mut self, set: &PeerSet, changes: &mut Vec<Change>) -> Result<(), DeviceFull> {
        let public_key = set.public_key;
        if self.public_key == Some(public_key) {
            return Ok(());
        }
        if set.remove {
            self.remove_peer(public_key, changes);
            return Ok(());
        }
        if !self.peers.contains_key(&public_key) {
            if set.update_only {
                return Ok(());
            }
            if self.peers.len() >= self.limits.peers_max {
                return Err(DeviceFull::Peers(self.limits.peers_max));
            }
            self.peers.insert(public_key, Peer::default());
            changes.push(Change::PeerAdded(public_key));
        }
        let mut change = PeerChange::default();
        self.apply_allowed_ips(set, &mut change, changes)?;
        if let Some(peer) = self.peers.get_mut(&public_key) {
            if set.preshared_key.apply(&mut peer.preshared_key) {
                change.preshared_key = KeyUpdate::to(peer.preshared_key.clone());
            }
            if set.endpoint.is_some() && set.endpoint != peer.endpoint {
                peer.endpoint = set.endpoint;
                change.endpoint = set.endpoint;
            }
            let keepalive = &mut peer.persistent_keepalive_s;
            change.persistent_keepalive_s = replaced(keepalive, set.persistent_keepalive_s);
        }
        if change != PeerChange::default() {
            changes.push(Change::PeerChanged(public_key, change));
        }
        Ok(())
    }

    /// Brings the peer's networks to where the section's lines lead, and says only what is
    /// different then: `wg syncconf` replaces all of a peer's networks with the same ones.
    fn apply_allowed_ips(
        &mut self,
        set: &PeerSet,
        change: &mut PeerChange,
        changes: &mut Vec<Change>,
    ) -> Result<(), DeviceFull> {
        let public_key = set.public_key;
        let Some(peer) = self.peers.get_mut(&public_key) else {
            return Ok(());
        };
        if !set.replace_allowed_ips && set.allowed_ips.is_empty() {
            return Ok(());
        }
        let before = std::mem::take(&mut peer.allowed_ips);
        let mut after = if set.replace_allowed_ips {
            BTreeSet::new()
        } else {
            before.clone()
        };
        let mut lost: BTreeMap<PublicKey, Vec<IpNetwork>> = BTreeMap::new();
        for allowed_ip in &set.allowed_ips {
            match allowed_ip {
                AllowedIpChange::Add(network) => {
                    after.insert(*network);
                    // It leaves its owner even if a later line takes it from this peer too.
                    let owner = self.owners.insert(*network, public_key);
                    if let Some(other) = owner.filter(|other| *other != public_key) {
                        lost.entry(other).or_default().push(*network);
                    }
                }
                AllowedIpChange::Remove(network) => {
                    after.remove(network);
                    if self.owners.get(network) == Some(&public_key) {
                        self.owners.remove(network);
                    }
                }
            }
        }
        change.allowed_ips_removed = before.difference(&after).copied().collect();
        change.allowed_ips_added = after.difference(&before).copied().collect();
        for network in &change.allowed_ips_removed {
            self.owners.remove(network);
        }
        peer.allowed_ips = after;
        for (other, networks) in lost {
            self.lose_allowed_ips(other, networks, changes);
        }
        if self.owners.len() > self.limits.allowed_ips_max {
            return Err(DeviceFull::AllowedIps(self.limits.allowed_ips_max));
        }
        Ok(())
    }

    /// Networks of `public_key` have become another peer's.
    fn lose_allowed_ips(
        &mut self,
        public_key: PublicKey,
        networks: Vec<IpNetwork>,
        changes: &mut Vec<Change>,
    ) {
        if let Some(peer) = self.peers.get_mut(&public_key) {
            for network in &networks {
                peer.allowed_ips.remove(network);
            }
        }
        let change = PeerChange {
            allowed_ips_removed: networks,
            ..PeerChange::default()
        };
        changes.push(Change::PeerChanged(public_key, change));
    }

    fn remove_peer(&mut self, public_key: PublicKey, changes: &mut Vec<Change>) {
        let Some(peer) = self.peers.remove(&public_key) else {
            return;
        };
        for network in &peer.allowed_ips {
            self.owners.remove(network);
        }
        changes.push(Change::PeerRemoved(public_key));
    }
}

/// Puts `new` into `value`, and returns it if that was a difference.
fn replaced<V: Copy + PartialEq>(value: &mut V, new: Option<V>) -> Option<V> {
    let new = new.filter(|new| new != value)?;
    *value = new;
    Some(new)
}

#[cfg(test)]
mod tests;
