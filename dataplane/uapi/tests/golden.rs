//! What the real tools write is understood, and what is written is what they would write.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use topnet_uapi::{
    AllowedIpChange, Change, Conf, ConfPeer, Device, DeviceStatus, KeyUpdate, Limits, PeerSet,
    PrivateKey, PublicKey, Request, RequestReader, Set, Traffic,
};

const SET_ALL: &str = include_str!("golden/set-all.txt");
const SET_CLEAR: &str = include_str!("golden/set-clear.txt");
const SETCONF: &str = include_str!("golden/setconf.txt");
const ADDCONF: &str = include_str!("golden/addconf.txt");
const SYNCCONF: &str = include_str!("golden/syncconf.txt");
const GET_ANSWER: &str = include_str!("golden/get-answer.txt");
const GET_WIREGUARD_GO: &str = include_str!("golden/get-wireguard-go.txt");
const SHOW_DUMP: &str = include_str!("golden/show-dump.txt");
const CONF: &str = include_str!("golden/wg0.conf");
const SHOWCONF: &str = include_str!("golden/showconf.conf");

const KEPT: &str = "TnPBXjHbX4VXuj234cL+nRjK+g6fCWDklnFFp+9x4w8=";
const GONE: &str = "BzPpGebIDahDNQPmeIpdOgu4cbgxm4poIwOf5XiljkE=";
const NEW: &str = "XMuO1l1yiV1ZOPglc+RvVFakEKqMbt9x06JD27JM01g=";
/// The public key of the key in the files, as `wg` showed it.
const OWN: &str = "lX64GKDRvGJOOF7y+907BoDplFvWkcvy3BEF+VR5hx0=";

fn key(text: &str) -> PublicKey {
    PublicKey::from_base64(text).unwrap()
}

fn requests(text: &str) -> Vec<Request> {
    let mut reader = RequestReader::new(Limits::default());
    let mut bytes = text.as_bytes();
    let mut requests = Vec::new();
    while let Some(request) = reader.read(&mut bytes) {
        requests.push(request.unwrap());
    }
    assert!(bytes.is_empty() && reader.is_between_requests());
    requests
}

fn set(text: &str) -> Set {
    match requests(text).pop() {
        Some(Request::Set(set)) => set,
        other => panic!("{other:?}"),
    }
}

fn status(text: &str) -> DeviceStatus {
    DeviceStatus::parse(text.as_bytes(), &Limits::default()).unwrap()
}

fn own_public_key(_: &PrivateKey) -> PublicKey {
    key(OWN)
}

/// A device that would answer a get request thus, but for its counters.
fn device_of(status: &DeviceStatus) -> Device {
    let peers = status.peers.iter().map(|peer| PeerSet {
        preshared_key: KeyUpdate::to(peer.preshared_key.clone()),
        endpoint: peer.endpoint,
        persistent_keepalive_s: Some(peer.persistent_keepalive_s),
        allowed_ips: peer
            .allowed_ips
            .iter()
            .copied()
            .map(AllowedIpChange::Add)
            .collect(),
        ..PeerSet::new(peer.public_key)
    });
    let set = Set {
        private_key: KeyUpdate::to(status.private_key.clone()),
        listen_port: Some(status.listen_port),
        fwmark: Some(status.fwmark),
        replace_peers: true,
        peers: peers.collect(),
    };
    let mut device = Device::new(Limits::default(), own_public_key);
    device.apply(&set).unwrap();
    device
}

#[test]
fn requests_are_read_and_written_as_wg_writes_them() {
    let masked = SET_ALL.replace("10.0.0.1/8", "10.0.0.0/8");
    for (sent, expected) in [
        (SET_ALL, masked.as_str()),
        (SET_CLEAR, SET_CLEAR),
        (SETCONF, SETCONF),
        (ADDCONF, ADDCONF),
        (SYNCCONF, SYNCCONF),
    ] {
        let texts = requests(sent)
            .into_iter()
            .map(|request| request.to_text().to_string());
        assert_eq!(texts.collect::<String>(), expected);
    }
}

#[test]
fn what_wg_set_takes_away_is_taken_away() {
    let set = set(SET_CLEAR);
    assert_eq!(set.private_key, KeyUpdate::Clear);
    assert_eq!((set.listen_port, set.fwmark), (None, Some(0)));
    assert_eq!(set.peers[0].preshared_key, KeyUpdate::Clear);
    assert_eq!(set.peers[0].persistent_keepalive_s, Some(0));
    assert!(set.peers[1].remove && !set.replace_peers);
}

#[test]
fn answers_are_read_and_written_as_they_are() {
    for text in [GET_ANSWER, GET_WIREGUARD_GO] {
        assert_eq!(*status(text).to_text(), text);
    }
}

#[test]
fn an_answer_says_to_us_what_it_says_to_wg() {
    let status = status(GET_ANSWER);
    let private_key = status.private_key.as_ref().unwrap().to_base64();
    let mut dump = format!(
        "{}\t{OWN}\t{}\t{:#x}\n",
        *private_key, status.listen_port, status.fwmark
    );
    for peer in &status.peers {
        let preshared_key = peer.preshared_key.as_ref();
        let preshared_key =
            preshared_key.map_or("(none)".into(), |key| key.to_base64().to_string());
        let networks: Vec<_> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        let keepalive = match peer.persistent_keepalive_s {
            0 => "off".to_owned(),
            seconds => seconds.to_string(),
        };
        writeln!(
            dump,
            "{}\t{preshared_key}\t{}\t{}\t{}\t{}\t{}\t{keepalive}",
            peer.public_key,
            peer.endpoint.unwrap(),
            networks.join(","),
            peer.last_handshake.unwrap_or_default().as_secs(),
            peer.rx_bytes,
            peer.tx_bytes,
        )
        .unwrap();
    }
    assert_eq!(dump, SHOW_DUMP);
}

#[test]
fn a_file_says_to_a_device_what_wg_says() {
    let conf = Conf::parse(CONF.as_bytes()).unwrap();
    assert_eq!(
        conf.to_set(|endpoint| endpoint.socket_address()),
        set(SETCONF)
    );
    let written = conf.to_text();
    assert_eq!(Conf::parse(written.as_bytes()), Ok(conf));
}

#[test]
fn a_file_that_wg_writes_is_the_device_s() {
    let conf = Conf::parse(SHOWCONF.as_bytes()).unwrap();
    let status = status(GET_ANSWER);
    assert_eq!(conf.interface.private_key, status.private_key);
    assert_eq!(conf.interface.listen_port, Some(status.listen_port));
    assert_eq!(conf.interface.fwmark, Some(status.fwmark));
    for (peer, status) in conf.peers.iter().zip(&status.peers) {
        let expected = ConfPeer {
            preshared_key: status.preshared_key.clone(),
            allowed_ips: status.allowed_ips.clone(),
            endpoint: peer.endpoint.clone(),
            // It leaves out what is off.
            persistent_keepalive_s: Some(status.persistent_keepalive_s)
                .filter(|seconds| *seconds != 0),
            ..ConfPeer::new(status.public_key)
        };
        assert_eq!(*peer, expected);
        assert_eq!(
            peer.endpoint
                .as_ref()
                .and_then(|name| name.socket_address()),
            status.endpoint
        );
    }
}

#[test]
fn syncconf_touches_only_what_the_file_changes() {
    let mut device = device_of(&status(GET_ANSWER));
    let changes = device.apply(&set(SYNCCONF)).unwrap();
    let [
        Change::PeerRemoved(gone),
        Change::PeerAdded(new),
        Change::PeerChanged(changed, _),
    ] = &changes[..]
    else {
        panic!("{changes:?}");
    };
    assert_eq!((*gone, *new, *changed), (key(GONE), key(NEW), key(NEW)));
    assert!(device.peer(&key(KEPT)).is_some());
    // It is now what setconf would have made of it, and what wireguard-go was made by that.
    let mut fresh = Device::new(Limits::default(), own_public_key);
    fresh.apply(&set(SETCONF)).unwrap();
    let answer = |device: &Device| device.status(|_| Traffic::default()).to_text().to_string();
    assert_eq!(answer(&device), answer(&fresh));
    assert_eq!(answer(&device), GET_WIREGUARD_GO);
    assert_eq!(device.apply(&set(SYNCCONF)), Ok(vec![]));
}

#[test]
fn setconf_makes_all_peers_anew() {
    let mut device = device_of(&status(GET_ANSWER));
    let changes = device.apply(&set(SETCONF)).unwrap();
    let removed = changes
        .iter()
        .filter(|change| matches!(change, Change::PeerRemoved(_)));
    let added = changes
        .iter()
        .filter(|change| matches!(change, Change::PeerAdded(_)));
    assert_eq!((removed.count(), added.count()), (2, 2));
}
