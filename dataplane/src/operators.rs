//! The peers that WireGuard's tools configure: whom nobody pays for.
//!
//! [`Device`] is what the tools see; here is what its changes mean for the worker. Pure but for
//! the orders that it hands out, which the caller delivers in order.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use topnet_uapi::{
    Change, Device, DeviceFull, DeviceStatus, KeyUpdate, Limits, Peer, PeerChange, PrivateKey,
    PublicKey, Set, Traffic,
};

use crate::orders::{Indices, Order};
use crate::session::{Addresses, NetworkChange, SessionCounters, SessionIndex, SessionPlan};

/// What is different about the interface itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceChange {
    /// Its secret, or there is none any more.
    Key(Option<PrivateKey>),
    /// Where it listens; 0 is any port that is free.
    ListenPort(u16),
    /// The mark of the tunnel's own packets; 0 is none.
    Fwmark(u32),
}

/// What a request comes to.
#[derive(Debug, Default)]
pub struct Applied {
    /// To be done first.
    pub interface: Vec<InterfaceChange>,
    /// For the worker, in this order.
    pub orders: Vec<Order>,
}

/// A peer that stands.
#[derive(Clone, Debug)]
pub struct StandingPeer {
    /// Its place in the worker.
    pub index: SessionIndex,
    /// Its counts. They go on when its session is made anew.
    pub counters: Arc<SessionCounters>,
}

/// The interface and its peers.
#[derive(Debug)]
pub struct Operators {
    device: Device,
    standing: HashMap<PublicKey, StandingPeer>,
}

impl Operators {
    /// An interface without a key and peers, of at most `peers_max` peers.
    #[must_use]
    pub fn new(peers_max: usize) -> Self {
        let limits = Limits {
            peers_max,
            ..Limits::default()
        };
        Self {
            device: Device::new(limits, public_key_of),
            standing: HashMap::new(),
        }
    }

    /// As it is configured.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// As it is configured, to note what was found out.
    pub const fn device_mut(&mut self) -> &mut Device {
        &mut self.device
    }

    /// The peer with this key, if it stands.
    #[must_use]
    pub fn standing(&self, public_key: &PublicKey) -> Option<&StandingPeer> {
        self.standing.get(public_key)
    }

    /// All peers that stand.
    pub fn peers(&self) -> impl Iterator<Item = (&PublicKey, &StandingPeer)> {
        self.standing.iter()
    }

    /// The answer to a get request, with what `traffic` knows of each peer, where it was heard last.
    pub fn status(&self, traffic: impl Fn(&StandingPeer) -> Traffic) -> DeviceStatus {
        let standing = |key: &PublicKey| self.standing.get(key);
        let mut status = self
            .device
            .status(|key| standing(key).map(&traffic).unwrap_or_default());
        for peer in &mut status.peers {
            let heard = standing(&peer.public_key).and_then(|peer| peer.counters.endpoint());
            peer.endpoint = heard.or(peer.endpoint);
        }
        status
    }

    /// What a request would make of the interface.
    pub fn preview(
        &self,
        set: &Set,
        indices: &Indices,
    ) -> Result<(Device, Vec<Change>), DeviceFull> {
        let mut device = self.device.clone();
        // An endpoint is compared with where the peer is, not with what was said of it once.
        for (key, standing) in &self.standing {
            if let Some(endpoint) = standing.counters.endpoint() {
                device.handle_roamed(key, endpoint);
            }
        }
        let changes = device.apply(set)?;
        // What is removed gives its place back later, so each new session needs one of its own.
        if indices.free() < new_sessions(&changes) {
            return Err(DeviceFull::Peers(self.standing.len()));
        }
        Ok((device, changes))
    }

    /// Applies a request, as a whole or not at all.
    pub fn apply(&mut self, set: &Set, indices: &mut Indices) -> Result<Applied, DeviceFull> {
        let (device, changes) = self.preview(set, indices)?;
        self.device = device;
        let mut applied = Applied::default();
        // Peers whose session is made when everything is known about them.
        let mut fresh: BTreeSet<PublicKey> = BTreeSet::new();
        for change in changes {
            match change {
                Change::InterfaceKey(key) => applied.interface.push(InterfaceChange::Key(key)),
                Change::ListenPort(port) => {
                    applied.interface.push(InterfaceChange::ListenPort(port));
                }
                Change::Fwmark(mark) => applied.interface.push(InterfaceChange::Fwmark(mark)),
                Change::PeerAdded(key) => drop(fresh.insert(key)),
                Change::PeerRemoved(key) => {
                    fresh.remove(&key);
                    if let Some(gone) = self.standing.remove(&key) {
                        applied.orders.push(Order::Remove(gone.index));
                    }
                }
                Change::PeerChanged(key, _) if fresh.contains(&key) => {}
                Change::PeerChanged(key, change) => {
                    let Some(standing) = self.standing.get(&key) else {
                        continue;
                    };
                    if needs_new_session(&change) {
                        applied.orders.push(Order::Remove(standing.index));
                        fresh.insert(key);
                    } else {
                        changed(standing.index, change, &mut applied.orders);
                    }
                }
            }
        }
        for key in fresh {
            let said = set.peers.iter().rev().find(|peer| peer.public_key == key);
            let endpoint_is_new = said.is_some_and(|peer| peer.endpoint.is_some());
            self.install(key, endpoint_is_new, indices, &mut applied.orders);
        }
        Ok(applied)
    }

    /// Orders every session anew: the interface has another key.
    pub fn reinstall(&mut self, indices: &mut Indices) -> Vec<Order> {
        let mut orders: Vec<Order> = self
            .standing
            .values()
            .map(|standing| Order::Remove(standing.index))
            .collect();
        let keys: Vec<PublicKey> = self.device.peers().map(|(key, _)| *key).collect();
        for key in keys {
            self.install(key, false, indices, &mut orders);
        }
        orders
    }

    fn install(
        &mut self,
        key: PublicKey,
        endpoint_is_new: bool,
        indices: &mut Indices,
        orders: &mut Vec<Order>,
    ) {
        // Room was checked; a peer that has none after all is as if it had not been configured.
        let (Some(peer), Some(index)) = (self.device.peer(&key), indices.take(&key.0, None)) else {
            self.standing.remove(&key);
            return;
        };
        let standing = self.standing.entry(key).or_insert_with(|| StandingPeer {
            index,
            counters: Arc::default(),
        });
        standing.index = index;
        let mut plan = plan_of(index, &key, peer);
        // It may be elsewhere by now, unless it was just said where it is.
        if !endpoint_is_new {
            plan.endpoint = standing.counters.endpoint().or(plan.endpoint);
        }
        orders.push(Order::Install(plan, Arc::clone(&standing.counters)));
    }
}

/// Peers whose session is made, or made anew.
fn new_sessions(changes: &[Change]) -> usize {
    let mut keys = BTreeSet::new();
    for change in changes {
        match change {
            Change::PeerAdded(key) => drop(keys.insert(*key)),
            Change::PeerChanged(key, change) if needs_new_session(change) => {
                keys.insert(*key);
            }
            Change::PeerRemoved(key) => drop(keys.remove(key)),
            _ => {}
        }
    }
    keys.len()
}

/// What has to be said to boringtun when a tunnel is made.
fn needs_new_session(change: &PeerChange) -> bool {
    !matches!(change.preshared_key, KeyUpdate::Keep)
}

fn changed(index: SessionIndex, change: PeerChange, orders: &mut Vec<Order>) {
    let networks = NetworkChange {
        removed: change.allowed_ips_removed,
        added: change.allowed_ips_added,
    };
    if networks != NetworkChange::default() {
        orders.push(Order::Networks(index, networks));
    }
    if let Some(endpoint) = change.endpoint {
        orders.push(Order::Endpoint(index, endpoint));
    }
    if let Some(seconds) = change.persistent_keepalive_s {
        orders.push(Order::Keepalive(index, seconds));
    }
}

fn plan_of(index: SessionIndex, key: &PublicKey, peer: &Peer) -> SessionPlan {
    SessionPlan {
        index,
        public_key: key.0,
        payer: None,
        addresses: Addresses::Networks(peer.allowed_ips.iter().copied().collect()),
        preshared_key: peer.preshared_key.as_ref().map(|key| *key.as_bytes()),
        persistent_keepalive_s: peer.persistent_keepalive_s,
        endpoint: peer.endpoint,
    }
}

fn public_key_of(key: &PrivateKey) -> PublicKey {
    let private = boringtun::x25519::StaticSecret::from(*key.as_bytes());
    PublicKey(boringtun::x25519::PublicKey::from(&private).to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use topnet_uapi::{Request, RequestReader};

    const A: [u8; 32] = [0xa; 32];
    const B: [u8; 32] = [0xb; 32];

    fn set(lines: &[&str]) -> Set {
        let text = format!("set=1\n{}\n\n", lines.join("\n"));
        let request = RequestReader::new(Limits::default()).read(&mut text.as_bytes());
        match request {
            Some(Ok(Request::Set(set))) => set,
            other => panic!("{other:?}"),
        }
    }

    fn peer(key: [u8; 32]) -> String {
        format!("public_key={}", PublicKey(key).to_hex())
    }

    /// Applies lines and tells the orders in short.
    fn apply(operators: &mut Operators, indices: &mut Indices, lines: &[&str]) -> Vec<String> {
        let applied = operators.apply(&set(lines), indices).unwrap();
        let networks = |networks: &[topnet_uapi::IpNetwork]| {
            networks
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let orders = applied.orders.into_iter().map(|order| match order {
            Order::Install(plan, _) => {
                let Addresses::Networks(had) = &plan.addresses else {
                    panic!("an operator's peer has networks");
                };
                let psk = if plan.preshared_key.is_some() {
                    " psk"
                } else {
                    ""
                };
                let seconds = plan.persistent_keepalive_s;
                let (index, at) = (plan.index.0, plan.endpoint);
                format!(
                    "+{index} {:x} [{}]{psk} {seconds} {at:?}",
                    plan.public_key[0],
                    networks(had)
                )
            }
            Order::Remove(index) => format!("-{}", index.0),
            Order::Networks(index, change) => {
                let (removed, added) = (networks(&change.removed), networks(&change.added));
                format!("{} [{removed}] -> [{added}]", index.0)
            }
            Order::Endpoint(index, at) => format!("{} at {at}", index.0),
            Order::Keepalive(index, seconds) => format!("{} every {seconds} s", index.0),
        });
        orders.collect()
    }

    #[test]
    fn a_new_peer_is_installed_once_with_everything() {
        let (mut operators, mut indices) = (Operators::new(8), Indices::new(8, 1));
        let lines = [
            &peer(A),
            "preshared_key=0101010101010101010101010101010101010101010101010101010101010101",
            "persistent_keepalive_interval=7",
            "endpoint=1.2.3.4:5",
            "allowed_ip=10.0.0.0/8",
            "allowed_ip=fd00::/64",
        ];
        let orders = apply(&mut operators, &mut indices, &lines);
        assert_eq!(
            orders,
            ["+0 a [10.0.0.0/8 fd00::/64] psk 7 Some(1.2.3.4:5)"]
        );
        assert!(
            apply(&mut operators, &mut indices, &lines).is_empty(),
            "nothing is different"
        );
    }

    const PRESHARED: &str =
        "preshared_key=0101010101010101010101010101010101010101010101010101010101010101";

    #[test]
    fn networks_endpoints_and_keepalives_change_without_a_new_session_and_secrets_with_one() {
        let (mut operators, mut indices) = (Operators::new(8), Indices::new(8, 1));
        let mut apply = |lines: &[&str]| apply(&mut operators, &mut indices, lines);
        apply(&[&peer(A), "allowed_ip=10.0.0.0/8"]);
        let orders = apply(&[
            &peer(B),
            "allowed_ip=10.0.0.0/8",
            &peer(A),
            "endpoint=1.2.3.4:5",
            "persistent_keepalive_interval=9",
        ]);
        assert_eq!(
            orders,
            [
                "0 [10.0.0.0/8] -> []",
                "0 at 1.2.3.4:5",
                "0 every 9 s",
                "+1 b [10.0.0.0/8] 0 None"
            ]
        );
        let orders = apply(&[&peer(B), PRESHARED]);
        assert_eq!(orders, ["-1", "+2 b [10.0.0.0/8] psk 0 None"]);
        let orders = apply(&[&peer(B), "remove=true"]);
        assert_eq!(orders, ["-2"]);
        assert!(operators.standing(&PublicKey(B)).is_none());
    }

    #[test]
    fn another_key_makes_every_session_anew() {
        let (mut operators, mut indices) = (Operators::new(8), Indices::new(8, 1));
        apply(&mut operators, &mut indices, &[&peer(A), &peer(B)]);
        let orders = operators.reinstall(&mut indices);
        assert!(matches!(
            orders[..],
            [
                Order::Remove(_),
                Order::Remove(_),
                Order::Install(..),
                Order::Install(..)
            ]
        ));
    }

    #[test]
    fn an_endpoint_that_is_said_wins_over_where_the_peer_was_heard() {
        let (mut operators, mut indices) = (Operators::new(8), Indices::new(8, 1));
        let at = |text: &str| text.parse().unwrap();
        apply(
            &mut operators,
            &mut indices,
            &[&peer(A), "endpoint=1.1.1.1:1"],
        );
        let heard = |operators: &Operators, endpoint: &str| {
            let counters = &operators.standing(&PublicKey(A)).unwrap().counters;
            counters.store_endpoint(at(endpoint));
        };
        heard(&operators, "2.2.2.2:2");
        // Back to what was configured: a change all the same.
        let orders = apply(
            &mut operators,
            &mut indices,
            &[&peer(A), "endpoint=1.1.1.1:1"],
        );
        assert_eq!(orders, ["0 at 1.1.1.1:1"]);
        heard(&operators, "2.2.2.2:2");
        let lines = [&peer(A), "endpoint=3.3.3.3:3", PRESHARED];
        let orders = apply(&mut operators, &mut indices, &lines);
        assert_eq!(orders, ["-0", "+1 a [] psk 0 Some(3.3.3.3:3)"]);
        heard(&operators, "2.2.2.2:2");
        let none = format!("preshared_key={}", "0".repeat(64));
        let orders = apply(&mut operators, &mut indices, &[&peer(A), &none]);
        assert_eq!(orders, ["-1", "+2 a [] 0 Some(2.2.2.2:2)"]);
    }

    #[test]
    fn a_full_gateway_still_removes() {
        let (mut operators, mut indices) = (Operators::new(8), Indices::new(2, 1));
        apply(&mut operators, &mut indices, &[&peer(A), &peer(B)]);
        let orders = apply(
            &mut operators,
            &mut indices,
            &[
                &peer(A),
                "remove=true",
                &peer([0xc; 32]),
                "remove=true",
                &peer(B),
                "allowed_ip=10.0.0.0/8",
            ],
        );
        assert_eq!(orders, ["-0", "1 [] -> [10.0.0.0/8]"]);
        let request = set(&[&peer(B), PRESHARED]);
        assert!(
            operators.apply(&request, &mut indices).is_err(),
            "no place for it anew"
        );
        assert!(
            apply(&mut operators, &mut indices, &[&peer(B)]).is_empty(),
            "nothing was done"
        );
    }

    #[test]
    fn what_has_no_room_is_refused_as_a_whole() {
        let (mut operators, mut indices) = (Operators::new(8), Indices::new(1, 1));
        let request = set(&[&peer(A), &peer(B)]);
        assert!(operators.apply(&request, &mut indices).is_err());
        assert_eq!(operators.device().peers().count(), 0);
        assert_eq!(apply(&mut operators, &mut indices, &[&peer(A)]).len(), 1);
    }
}
