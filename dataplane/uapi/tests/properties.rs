//! What holds for every value and all bytes.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use proptest::{collection::vec, option, prelude::*};
use topnet_uapi::{
    AllowedIpChange, AnswerReader, Change, CommandLine, Conf, ConfInterface, ConfPeer, Device,
    DeviceStatus, EndpointName, InterfaceAddress, IpNetwork, KeyUpdate, Limits, Peer, PeerSet,
    PeerStatus, PresharedKey, PrivateKey, PublicKey, Request, RequestReader, Set, Traffic, Word,
};

fn small() -> Limits {
    Limits {
        lines_max: 64,
        line_bytes_max: 128,
        peers_max: 4,
        allowed_ips_max: 6,
    }
}

fn public_key() -> impl Strategy<Value = PublicKey> {
    any::<[u8; 32]>().prop_map(PublicKey)
}

fn private_key() -> impl Strategy<Value = PrivateKey> {
    any::<[u8; 32]>().prop_filter_map("zeros", PrivateKey::new)
}

fn preshared_key() -> impl Strategy<Value = PresharedKey> {
    any::<[u8; 32]>().prop_filter_map("zeros", PresharedKey::new)
}

fn update<K: Clone + std::fmt::Debug>(
    key: impl Strategy<Value = K>,
) -> impl Strategy<Value = KeyUpdate<K>> {
    option::of(option::of(key)).prop_map(|key| match key {
        None => KeyUpdate::Keep,
        Some(key) => KeyUpdate::to(key),
    })
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
    ]
}

fn interface_address() -> impl Strategy<Value = InterfaceAddress> {
    (ip(), 0..=128u8).prop_map(|(address, bits)| InterfaceAddress {
        address,
        prefix_bits: if address.is_ipv4() { bits % 33 } else { bits },
    })
}

fn network() -> impl Strategy<Value = IpNetwork> {
    interface_address().prop_map(IpNetwork::from)
}

fn socket_address() -> impl Strategy<Value = SocketAddr> {
    (ip(), any::<u16>(), any::<u32>()).prop_map(|(ip, port, zone)| match ip.to_canonical() {
        IpAddr::V4(v4) => (v4, port).into(),
        IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, zone).into(),
    })
}

fn allowed_ip() -> impl Strategy<Value = AllowedIpChange> {
    (any::<bool>(), network()).prop_map(|(add, network)| match add {
        true => AllowedIpChange::Add(network),
        false => AllowedIpChange::Remove(network),
    })
}

fn peer_set() -> impl Strategy<Value = PeerSet> {
    let flags = any::<[bool; 3]>();
    let values = (
        update(preshared_key()),
        option::of(socket_address()),
        any::<Option<u16>>(),
    );
    (public_key(), flags, values, vec(allowed_ip(), 0..4)).prop_map(
        |(public_key, flags, values, allowed_ips)| PeerSet {
            public_key,
            remove: flags[0],
            update_only: flags[1],
            preshared_key: values.0,
            endpoint: values.1,
            persistent_keepalive_s: values.2,
            replace_allowed_ips: flags[2],
            allowed_ips,
        },
    )
}

fn set() -> impl Strategy<Value = Set> {
    let interface = (
        update(private_key()),
        any::<Option<u16>>(),
        any::<Option<u32>>(),
    );
    (interface, any::<bool>(), vec(peer_set(), 0..4)).prop_map(
        |((private_key, listen_port, fwmark), replace_peers, peers)| Set {
            private_key,
            listen_port,
            fwmark,
            replace_peers,
            peers,
        },
    )
}

fn peer_status() -> impl Strategy<Value = PeerStatus> {
    let config = (
        option::of(preshared_key()),
        option::of(socket_address()),
        any::<u16>(),
    );
    let traffic = (any::<(u64, u64)>(), any::<u64>(), 0..1_000_000_000u32);
    (public_key(), config, traffic, vec(network(), 0..4)).prop_map(
        |(public_key, config, ((tx_bytes, rx_bytes), seconds, nanoseconds), allowed_ips)| {
            let handshake = Duration::new(seconds, nanoseconds);
            PeerStatus {
                public_key,
                preshared_key: config.0,
                endpoint: config.1,
                last_handshake: (!handshake.is_zero()).then_some(handshake),
                tx_bytes,
                rx_bytes,
                persistent_keepalive_s: config.2,
                allowed_ips,
            }
        },
    )
}

fn device_status() -> impl Strategy<Value = DeviceStatus> {
    let interface = (option::of(private_key()), any::<u16>(), any::<u32>());
    (interface, vec(peer_status(), 0..4)).prop_map(|(interface, peers)| DeviceStatus {
        private_key: interface.0,
        listen_port: interface.1,
        fwmark: interface.2,
        peers,
    })
}

fn endpoint_name() -> impl Strategy<Value = EndpointName> {
    let host = prop_oneof!["[a-z0-9._-]{1,20}", ip().prop_map(|ip| ip.to_string())];
    (host, 1..=u16::MAX).prop_map(|(host, port)| EndpointName::new(&host, port).unwrap())
}

fn commands() -> impl Strategy<Value = Vec<CommandLine>> {
    vec(
        "\\PC{1,20}".prop_filter_map("a command", |text| CommandLine::new(&text)),
        0..3,
    )
}

fn conf_interface() -> impl Strategy<Value = ConfInterface> {
    let numbers = (
        any::<Option<u16>>(),
        any::<Option<u32>>(),
        any::<Option<u16>>(),
    );
    // A domain has a letter, which tells it from an address.
    let domain = "[a-z][a-z0-9.-]{0,12}".prop_map(|text| Word::new(&text).unwrap());
    let table = "[a-z0-9]{1,8}".prop_map(|text| Word::new(&text).unwrap());
    let lists = (
        vec(interface_address(), 0..4),
        vec(ip(), 0..3),
        vec(domain, 0..3),
    );
    let hooks = (commands(), commands(), commands(), commands());
    let rest = (option::of(private_key()), option::of(table), any::<bool>());
    (numbers, lists, hooks, rest).prop_map(|(numbers, lists, hooks, rest)| ConfInterface {
        private_key: rest.0,
        listen_port: numbers.0,
        fwmark: numbers.1,
        addresses: lists.0,
        dns: lists.1,
        dns_search: lists.2,
        mtu: numbers.2,
        table: rest.1,
        pre_up: hooks.0,
        post_up: hooks.1,
        pre_down: hooks.2,
        post_down: hooks.3,
        save_config: rest.2,
    })
}

fn conf() -> impl Strategy<Value = Conf> {
    let values = (
        option::of(preshared_key()),
        option::of(endpoint_name()),
        any::<Option<u16>>(),
    );
    let peer = (public_key(), values, vec(network(), 0..4)).prop_map(
        |(public_key, values, allowed_ips)| ConfPeer {
            public_key,
            preshared_key: values.0,
            allowed_ips,
            endpoint: values.1,
            persistent_keepalive_s: values.2,
        },
    );
    (conf_interface(), vec(peer, 0..4)).prop_map(|(interface, peers)| Conf { interface, peers })
}

/// Lines that are right, nearly right and wrong, which bytes alone would hardly ever be.
fn lines() -> impl Strategy<Value = String> {
    let key = "[0-9a-f]{64}|0{64}|[0-9a-f]{62}";
    let line = prop_oneof![
        Just("set=1".to_owned()),
        Just("get=1".to_owned()),
        Just(String::new()),
        Just("errno=0".to_owned()),
        "(private|public|preshared)_key="
            .prop_flat_map(move |name| { key.prop_map(move |value| format!("{name}{value}")) }),
        "(listen_port|fwmark|persistent_keepalive_interval|protocol_version)=-?[0-9]{0,6}",
        "(replace_peers|remove|update_only|replace_allowed_ips)=(true|false)",
        "allowed_ip=-?(10\\.[0-9]{1,3}\\.0\\.0|fd00::)/[0-9]{1,3}",
        "endpoint=(10\\.0\\.0\\.1|\\[::1(%[a-z0-9]{1,3})?\\]):[0-9]{1,5}",
        "(last_handshake_time_n?sec|[tr]x_bytes)=[0-9]{0,21}",
        "\\[(Interface|Peer|Other)\\]",
        "(PublicKey|Address|AllowedIPs|DNS|Endpoint|PostUp|Table|MTU) ?= ?[ -~]{0,30}",
        "[ -~]{0,200}",
    ];
    vec(line, 0..60).prop_map(|lines| lines.join("\n"))
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..600),
        lines().prop_map(String::into_bytes)
    ]
}

fn read_all(bytes: &[u8], piece_bytes: usize) -> Vec<Result<Request, topnet_uapi::Refusal>> {
    let mut reader = RequestReader::new(small());
    let mut all = Vec::new();
    for mut piece in bytes.chunks(piece_bytes) {
        while let Some(read) = reader.read(&mut piece) {
            all.push(read);
        }
        assert!(piece.is_empty());
    }
    all
}

proptest! {
    #[test]
    fn requests_round_trip(set in set()) {
        let request = Request::Set(set);
        let limits = Limits::default();
        prop_assert_eq!(Request::parse(request.to_text().as_bytes(), &limits), Ok(request));
    }

    #[test]
    fn answers_round_trip(device in device_status()) {
        let limits = Limits::default();
        prop_assert_eq!(DeviceStatus::parse(device.to_text().as_bytes(), &limits), Ok(device));
    }

    #[test]
    fn files_round_trip(conf in conf()) {
        prop_assert_eq!(Conf::parse(conf.to_text().as_bytes()), Ok(conf));
    }

    #[test]
    fn any_requests_are_read_within_the_limits(bytes in bytes(), piece_bytes in 1..50usize) {
        let all = read_all(&bytes, bytes.len().max(1));
        // The same, in whatever pieces they arrive.
        prop_assert_eq!(&read_all(&bytes, piece_bytes), &all);
        for read in all {
            match read {
                Ok(Request::Get) => {}
                Ok(Request::Set(set)) => {
                    prop_assert!(set.peers.len() <= small().peers_max);
                    let request = Request::Set(set);
                    let again = Request::parse(request.to_text().as_bytes(), &Limits::default());
                    prop_assert_eq!(again, Ok(request));
                }
                Err(refusal) => prop_assert!(refusal.to_string().len() < 1_000),
            }
        }
    }

    #[test]
    fn any_answer_is_read_within_the_limits(bytes in bytes(), piece_bytes in 1..50usize) {
        let whole = DeviceStatus::parse(&bytes, &small());
        let mut reader = AnswerReader::new(small());
        let first = bytes.chunks(piece_bytes).find_map(|mut piece| reader.read(&mut piece));
        if let Some(first) = first {
            prop_assert_eq!(first, whole.clone());
        }
        if let Ok(device) = whole {
            prop_assert!(device.peers.len() <= small().peers_max);
            let again = DeviceStatus::parse(device.to_text().as_bytes(), &Limits::default());
            prop_assert_eq!(again, Ok(device));
        }
    }

    #[test]
    fn any_file_is_read(bytes in bytes()) {
        if let Ok(conf) = Conf::parse(&bytes) {
            prop_assert_eq!(Conf::parse(conf.to_text().as_bytes()), Ok(conf));
        }
    }

    #[test]
    fn the_device_is_what_the_lines_make_it(sets in vec(crowded_set(), 1..12)) {
        let mut device = Device::new(small(), |key| PublicKey(*key.as_bytes()));
        let mut oracle = Oracle::default();
        let mut plane = Plane::default();
        for set in sets {
            let mut next = oracle.clone();
            let fits = next.apply(&set);
            let changes = device.apply(&set);
            prop_assert_eq!(changes.is_ok(), fits);
            if let Ok(changes) = changes {
                oracle = next;
                changes.iter().for_each(|change| plane.apply(change));
                // What was just said changes nothing when it is said again.
                let repeats = !set.replace_peers && set.peers.len() <= 1;
                prop_assert!(!repeats || device.clone().apply(&set) == Ok(vec![]));
            }
            oracle.check(&device);
            prop_assert_eq!(&plane.peers, &device.peers().map(|(key, peer)| (*key, peer.clone())).collect());
            let status = device.status(|_| Traffic::default());
            prop_assert_eq!(status.peers.len(), oracle.peers.len());
        }
    }
}

/// Few keys and few networks, so that they get into each other's way.
fn crowded_set() -> impl Strategy<Value = Set> {
    let network = (0..3u8, prop_oneof![Just(8u8), Just(16), Just(32)]).prop_map(|(byte, bits)| {
        IpNetwork::containing(Ipv4Addr::new(10, byte, 0, 0).into(), bits).unwrap()
    });
    let allowed_ip = (any::<bool>(), network).prop_map(|(add, network)| match add {
        true => AllowedIpChange::Add(network),
        false => AllowedIpChange::Remove(network),
    });
    let flag = || prop::bool::weighted(0.2);
    let values = (
        update(preshared_key()),
        option::of(1..3u16),
        option::of(0..3u16),
    );
    let peer = (
        0..6u8,
        (flag(), flag(), flag()),
        values,
        vec(allowed_ip, 0..4),
    )
        .prop_map(
            |(number, (remove, update_only, replace_allowed_ips), values, allowed_ips)| PeerSet {
                remove,
                update_only,
                preshared_key: values.0,
                endpoint: values.1.map(|port| (Ipv4Addr::LOCALHOST, port).into()),
                persistent_keepalive_s: values.2,
                replace_allowed_ips,
                allowed_ips,
                ..PeerSet::new(PublicKey([number; 32]))
            },
        );
    (prop::bool::weighted(0.1), vec(peer, 0..5)).prop_map(|(replace_peers, peers)| Set {
        replace_peers,
        peers,
        ..Set::default()
    })
}

/// Lines done one after the other on lists, without a thought of what changed.
#[derive(Clone, Default)]
struct Oracle {
    peers: BTreeSet<PublicKey>,
    networks: Vec<(IpNetwork, PublicKey)>,
}

impl Oracle {
    fn apply(&mut self, set: &Set) -> bool {
        if set.replace_peers {
            *self = Self::default();
        }
        for peer in &set.peers {
            let key = peer.public_key;
            if peer.remove {
                self.peers.remove(&key);
                self.networks.retain(|(_, owner)| *owner != key);
                continue;
            }
            if peer.update_only && !self.peers.contains(&key) {
                continue;
            }
            self.peers.insert(key);
            if peer.replace_allowed_ips {
                self.networks.retain(|(_, owner)| *owner != key);
            }
            for line in &peer.allowed_ips {
                match line {
                    AllowedIpChange::Add(network) => {
                        self.networks.retain(|(other, _)| other != network);
                        self.networks.push((*network, key));
                    }
                    AllowedIpChange::Remove(network) => {
                        self.networks.retain(|entry| *entry != (*network, key));
                    }
                }
            }
            let fits = self.peers.len() <= small().peers_max
                && self.networks.len() <= small().allowed_ips_max;
            if !fits {
                return false;
            }
        }
        true
    }

    fn check(&self, device: &Device) {
        assert!(device.peers().map(|(key, _)| key).eq(&self.peers));
        let theirs = device.peers().map(|(_, peer)| peer.allowed_ips.len());
        assert_eq!(theirs.sum::<usize>(), self.networks.len());
        for (network, owner) in &self.networks {
            assert_eq!(device.owner(network), Some(owner));
            assert!(device.peer(owner).unwrap().allowed_ips.contains(network));
        }
    }
}

/// A data plane that does what it is told, and knows nothing else.
#[derive(Default)]
struct Plane {
    peers: BTreeMap<PublicKey, Peer>,
}

impl Plane {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::InterfaceKey(_) | Change::ListenPort(_) | Change::Fwmark(_) => {}
            Change::PeerAdded(key) => {
                assert!(self.peers.insert(*key, Peer::default()).is_none());
            }
            Change::PeerRemoved(key) => assert!(self.peers.remove(key).is_some()),
            Change::PeerChanged(key, change) => {
                for network in &change.allowed_ips_added {
                    let taken = |peer: &Peer| peer.allowed_ips.contains(network);
                    assert!(!self.peers.values().any(taken), "two have {network}");
                }
                let peer = self.peers.get_mut(key).unwrap();
                match &change.preshared_key {
                    KeyUpdate::Keep => {}
                    KeyUpdate::Clear => peer.preshared_key = None,
                    KeyUpdate::Replace(key) => peer.preshared_key = Some(key.clone()),
                }
                peer.endpoint = change.endpoint.or(peer.endpoint);
                if let Some(seconds) = change.persistent_keepalive_s {
                    peer.persistent_keepalive_s = seconds;
                }
                for network in &change.allowed_ips_removed {
                    assert!(peer.allowed_ips.remove(network));
                }
                peer.allowed_ips.extend(&change.allowed_ips_added);
            }
        }
    }
}
