use super::*;

/// Not a curve: the tests need nothing of it but that it is one key's and no other's.
fn public_key_of(key: &PrivateKey) -> PublicKey {
    let mut bytes = *key.as_bytes();
    bytes[0] |= 1;
    PublicKey(bytes)
}

fn key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn add(text: &str) -> AllowedIpChange {
    AllowedIpChange::Add(network(text))
}

fn take(text: &str) -> AllowedIpChange {
    AllowedIpChange::Remove(network(text))
}

fn device() -> Device {
    let limits = Limits {
        peers_max: 3,
        allowed_ips_max: 4,
        ..Limits::default()
    };
    Device::new(limits, public_key_of)
}

fn peers(peers: impl IntoIterator<Item = PeerSet>) -> Set {
    Set {
        peers: peers.into_iter().collect(),
        ..Set::default()
    }
}

fn with_allowed_ips(number: u8, allowed_ips: &[AllowedIpChange]) -> PeerSet {
    PeerSet {
        allowed_ips: allowed_ips.to_vec(),
        ..PeerSet::new(key(number))
    }
}

fn moved(number: u8, removed: &[&str], added: &[&str]) -> Change {
    let networks = |texts: &[&str]| texts.iter().map(|text| network(text)).collect();
    let change = PeerChange {
        allowed_ips_removed: networks(removed),
        allowed_ips_added: networks(added),
        ..PeerChange::default()
    };
    Change::PeerChanged(key(number), change)
}

#[test]
fn the_interface_changes_only_where_it_is_different() {
    let mut device = device();
    let private_key = PrivateKey::new([9; 32]);
    let set = Set {
        private_key: KeyUpdate::to(private_key.clone()),
        listen_port: Some(51820),
        fwmark: Some(7),
        ..Set::default()
    };
    let changes = device.apply(&set).unwrap();
    let expected = [
        Change::InterfaceKey(private_key.clone()),
        Change::ListenPort(51820),
        Change::Fwmark(7),
    ];
    assert_eq!(changes, expected);
    assert_eq!(
        device.public_key().copied(),
        private_key.as_ref().map(public_key_of)
    );
    assert_eq!(device.apply(&set), Ok(vec![]));
    let cleared = Set {
        private_key: KeyUpdate::Clear,
        ..Set::default()
    };
    assert_eq!(device.apply(&cleared), Ok(vec![Change::InterfaceKey(None)]));
    assert_eq!(device.public_key(), None);
}

#[test]
fn a_port_that_was_chosen_is_left_only_for_another() {
    let mut device = device();
    device.handle_bound(40_000);
    assert_eq!(device.status(|_| Traffic::default()).listen_port, 40_000);
    let to = |port| Set {
        listen_port: Some(port),
        ..Set::default()
    };
    assert_eq!(device.apply(&to(40_000)), Ok(vec![]));
    assert_eq!(device.apply(&to(0)), Ok(vec![Change::ListenPort(0)]));
}

#[test]
fn nobody_is_a_peer_of_itself() {
    let mut device = device();
    let private_key = PrivateKey::new([8; 32]).unwrap();
    let own = public_key_of(&private_key);
    let mut set = peers([PeerSet::new(own)]);
    assert_eq!(device.apply(&set), Ok(vec![Change::PeerAdded(own)]));
    set.private_key = KeyUpdate::Replace(private_key.clone());
    let expected = vec![
        Change::PeerRemoved(own),
        Change::InterfaceKey(Some(private_key)),
    ];
    assert_eq!(device.apply(&set), Ok(expected));
    assert_eq!(device.peers().count(), 0);
}

#[test]
fn peers_come_go_and_come_again() {
    let mut device = device();
    let update_only = PeerSet {
        update_only: true,
        endpoint: "192.0.2.1:9".parse().ok(),
        ..with_allowed_ips(1, &[add("10.0.0.0/8")])
    };
    let remove = PeerSet {
        remove: true,
        ..with_allowed_ips(1, &[add("10.0.0.0/8")])
    };
    assert_eq!(
        device.apply(&peers([update_only.clone(), remove.clone()])),
        Ok(vec![])
    );
    let added = Ok(vec![Change::PeerAdded(key(1))]);
    assert_eq!(device.apply(&peers([PeerSet::new(key(1))])), added);
    let changes = device.apply(&peers([update_only.clone()])).unwrap();
    assert!(matches!(changes[..], [Change::PeerChanged(..)]));
    assert_eq!(device.owner(&network("10.0.0.0/8")), Some(&key(1)));
    // Removed and added within a request, it is another peer, without the first one's sessions.
    let changes = device
        .apply(&peers([remove, PeerSet::new(key(1))]))
        .unwrap();
    assert_eq!(
        changes,
        [Change::PeerRemoved(key(1)), Change::PeerAdded(key(1))]
    );
    assert_eq!(device.peer(&key(1)), Some(&Peer::default()));
    assert_eq!(device.owner(&network("10.0.0.0/8")), None);
    let replaced = Set {
        replace_peers: true,
        ..peers([PeerSet::new(key(2))])
    };
    let changes = device.apply(&replaced).unwrap();
    assert_eq!(
        changes,
        [Change::PeerRemoved(key(1)), Change::PeerAdded(key(2))]
    );
}

#[test]
fn a_peer_that_roamed_stays_where_it_is_until_it_is_sent_elsewhere() {
    let mut device = device();
    let roamed: SocketAddr = "198.51.100.1:7".parse().unwrap();
    assert!(!device.handle_roamed(&key(1), roamed));
    device.apply(&peers([PeerSet::new(key(1))])).unwrap();
    assert!(device.handle_roamed(&key(1), roamed));
    let to = |endpoint| {
        peers([PeerSet {
            endpoint: Some(endpoint),
            ..PeerSet::new(key(1))
        }])
    };
    assert_eq!(device.apply(&to(roamed)), Ok(vec![]));
    let configured: SocketAddr = "192.0.2.1:9".parse().unwrap();
    let change = PeerChange {
        endpoint: Some(configured),
        ..PeerChange::default()
    };
    let changed = Ok(vec![Change::PeerChanged(key(1), change)]);
    assert_eq!(device.apply(&to(configured)), changed);
}

#[test]
fn networks_move_to_whom_they_are_given() {
    let mut device = device();
    let set = peers([
        with_allowed_ips(1, &[add("10.1.0.0/16"), add("10.2.3.4/16")]),
        with_allowed_ips(2, &[add("10.2.0.0/16")]),
    ]);
    let expected = [
        Change::PeerAdded(key(1)),
        moved(1, &[], &["10.1.0.0/16", "10.2.0.0/16"]),
        Change::PeerAdded(key(2)),
        moved(1, &["10.2.0.0/16"], &[]),
        moved(2, &[], &["10.2.0.0/16"]),
    ];
    assert_eq!(device.apply(&set).unwrap(), expected);
    // A network inside another one is a network of its own.
    let set = peers([with_allowed_ips(2, &[add("10.1.2.0/24")])]);
    assert_eq!(
        device.apply(&set).unwrap(),
        [moved(2, &[], &["10.1.2.0/24"])]
    );
    // Nobody takes what is another's, or only overlaps.
    let set = peers([with_allowed_ips(
        2,
        &[take("10.1.0.0/16"), take("10.2.0.0/24")],
    )]);
    assert_eq!(device.apply(&set).unwrap(), []);
    // Given and taken away again: it is nobody's.
    let set = peers([with_allowed_ips(
        2,
        &[add("10.1.0.0/16"), take("10.1.0.0/16")],
    )]);
    assert_eq!(
        device.apply(&set).unwrap(),
        [moved(1, &["10.1.0.0/16"], &[])]
    );
    assert_eq!(device.owner(&network("10.1.0.0/16")), None);
}

#[test]
fn the_same_networks_again_are_no_change() {
    let mut device = device();
    let set = peers([PeerSet {
        replace_allowed_ips: true,
        ..with_allowed_ips(1, &[add("10.1.0.0/16"), add("fd00::/8")])
    }]);
    assert_eq!(device.apply(&set).unwrap().len(), 2);
    assert_eq!(device.apply(&set), Ok(vec![]));
    let fewer = peers([PeerSet {
        replace_allowed_ips: true,
        ..with_allowed_ips(1, &[add("fd00::/8")])
    }]);
    assert_eq!(
        device.apply(&fewer).unwrap(),
        [moved(1, &["10.1.0.0/16"], &[])]
    );
}

#[test]
fn a_full_device_changes_nothing() {
    let mut device = device();
    device
        .apply(&peers((1..=3).map(|number| PeerSet::new(key(number)))))
        .unwrap();
    let before = device.status(|_| Traffic::default());
    let fourth = Set {
        listen_port: Some(5),
        ..peers([
            with_allowed_ips(1, &[add("10.0.0.0/8")]),
            PeerSet::new(key(4)),
        ])
    };
    let full = device.apply(&fourth).unwrap_err();
    assert_eq!(full, DeviceFull::Peers(3));
    assert_eq!(full.errno().answer(), "errno=-28\n\n");
    assert_eq!(device.status(|_| Traffic::default()), before);
    let networks: Vec<_> = (0..5)
        .map(|number| add(&format!("10.{number}.0.0/16")))
        .collect();
    let fifth = peers([with_allowed_ips(1, &networks)]);
    assert_eq!(device.apply(&fifth), Err(DeviceFull::AllowedIps(4)));
    assert_eq!(device.status(|_| Traffic::default()), before);
    // Room that the request itself makes is room.
    let remove = PeerSet {
        remove: true,
        ..PeerSet::new(key(2))
    };
    assert!(device.apply(&peers([remove, PeerSet::new(key(4))])).is_ok());
    assert!(
        device
            .apply(&peers([with_allowed_ips(1, &networks[..4])]))
            .is_ok()
    );
    assert!(
        device
            .apply(&peers([with_allowed_ips(3, &networks[..4])]))
            .is_ok()
    );
}
