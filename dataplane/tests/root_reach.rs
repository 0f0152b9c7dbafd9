//! What peers reach beside the public Internet, each other included, and how a reload changes it
//! while they are connected. Two workers, each with one of the two peers' sessions.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use support::{
    CLIENT_INNER, Echo, GATEWAY, Gateway, Topology, WireGuard, eventually, ip, run, unlimited,
};
use topnet_account::ChannelId;
use topnet_api::DesiredSession;
use topnet_netns::root_tests;
use topnet_unit::Slot;

/// The other peer's.
const OTHER_INNER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 3);
const PAYLOAD_BYTES: usize = 100;
/// Far more than a reload takes.
const RELOAD_TIME: Duration = Duration::from_millis(500);
const PACKET_BYTES: u64 = PAYLOAD_BYTES as u64 + 28;

/// Has the data plane read a configuration with `more` in it.
fn reload(gateway: &Gateway, more: &str) {
    gateway.home.configure("clients", "uplink", more);
    hang_up(gateway);
}

fn hang_up(gateway: &Gateway) {
    let pid = gateway.process.id().to_string();
    run(Command::new("kill").args(["-HUP", &pid]));
}

/// A peer whose device is beside the origin, though its messages come from where the client is: two
/// peers of one namespace would reach each other without a tunnel.
fn other_peer(gateway: &Gateway, test: &str, interface: &str) -> WireGuard {
    let Topology { client, origin, .. } = &gateway.topology;
    let peer = WireGuard::start_silent(gateway, interface);
    // It has nothing to say first, and the gateway does not know where it is.
    peer.point_at(gateway, GATEWAY.into(), 1);
    peer.allow(gateway, "10.78.0.0/16");
    ip(
        client,
        &format!("link set {interface} netns topnet-{test}-origin"),
    );
    ip(origin, &format!("link set {interface} mtu 1420 up"));
    ip(
        origin,
        &format!("address add {OTHER_INNER}/32 dev {interface}"),
    );
    peer
}

fn reached_as_the_file_says(test: &str, io: &str) {
    let topology = Topology::with_queues(test, 2);
    topology.route_in_kernel();
    let closed = format!("{io}\nworkers = 2\n[dataplane.reach]\npeers = []");
    let mut gateway = Gateway::start_in(topology, &closed);
    let (near, far) = (format!("tn{test}0"), format!("tn{test}1"));
    let client = WireGuard::start(&gateway, &near);
    let other = other_peer(&gateway, test, &far);
    let others = DesiredSession {
        channel: ChannelId([2; 32]),
        wireguard_public_key: other.public_key,
        inner_address: OTHER_INNER,
    };
    let report = gateway.install(&[client.session(), others]);
    assert_eq!(report.refused, []);
    let metering = gateway.attach();
    let slot = |key: [u8; 32]| {
        let mut installed = report.installed.iter();
        let one = installed
            .find(|one| one.wireguard_public_key == key)
            .unwrap();
        Slot {
            index: one.slot,
            generation: one.generation,
        }
    };
    let slots = [client.public_key, other.public_key].map(slot);
    for slot in slots {
        metering.credit.grant(slot, unlimited());
    }
    let used = || slots.map(|slot| metering.usage.totals(slot.index).bytes);

    // Closed, as by default.
    let echo = Echo::new(&gateway.topology);
    eventually("private networks are refused", || {
        assert!(!echo.round_trip(PAYLOAD_BYTES));
        gateway.drops("private_network") > 0
    });
    assert_eq!(used(), [0, 0]);

    let open = format!("{io}\nworkers = 2\n[dataplane.reach]\nprivate = [\"10.77.2.0/24\"]");
    reload(&gateway, &open);
    eventually("it is reached after a reload", || {
        echo.round_trip(PAYLOAD_BYTES)
    });
    // A file that cannot be used changes nothing, and nobody falls over it: what was opened is open.
    fs::write(gateway.home.path("topnet.toml"), "[dataplane").unwrap();
    hang_up(&gateway);
    let hung_up = Instant::now();
    while hung_up.elapsed() < RELOAD_TIME {
        assert!(echo.round_trip(PAYLOAD_BYTES), "it closed what was open");
    }
    assert_eq!(used()[1], 0);

    // Peers: what the client sends has the other's tunnel as its way, and comes back through it.
    let (namespace, networks) = (&gateway.topology.client, "10.77.2.0/24,10.78.0.0/16");
    client.allow(&gateway, networks);
    ip(namespace, &format!("route add {OTHER_INNER}/32 dev {near}"));
    let route = format!("route add {CLIENT_INNER}/32 dev {far}");
    ip(&gateway.topology.origin, &route);
    Echo::server(&gateway.topology, OTHER_INNER.into(), 7);
    let peers = (IpAddr::from(CLIENT_INNER), (OTHER_INNER, 7).into());
    let between = Echo::client(&gateway.topology, peers.0, peers.1);
    eventually("peers are refused", || {
        assert!(!between.round_trip(PAYLOAD_BYTES));
        gateway.drops("between_clients") > 0
    });
    reload(&gateway, &format!("{open}\npeers = [\"10.78.0.0/16\"]"));
    eventually("peers reach each other after a reload", || {
        between.round_trip(PAYLOAD_BYTES)
    });
    between.drain();
    let before = used();
    for _ in 0..10 {
        assert!(between.round_trip(PAYLOAD_BYTES));
    }
    let each = 20 * PACKET_BYTES;
    let expected = before.map(|bytes| bytes + each);
    eventually("each pays for both ways", || used() == expected);
    assert!(gateway.status().passed_packets > 0, "they have two workers");

    // The rate of a session that stands.
    assert_eq!(gateway.drops("rate_exceeded"), 0);
    reload(
        &gateway,
        &format!("{open}\npeers = [\"10.78.0.0/16\"]\n[dataplane.rates]\nup_bits_per_s = 64000"),
    );
    eventually("a slow session loses what is faster", || {
        for _ in 0..50 {
            between.socket.send(&[0; 1_000]).unwrap();
        }
        gateway.drops("rate_exceeded") > 0
    });

    // And closed again.
    reload(&gateway, &closed);
    eventually("peers are refused again", || {
        between.drain();
        !between.round_trip(PAYLOAD_BYTES)
    });
}

#[test]
fn peers_reach_what_the_file_says_over_frames() {
    if !root_tests() {
        return;
    }
    reached_as_the_file_says("rcx", "io = \"af-xdp-copy\"");
}

#[test]
fn peers_reach_what_the_file_says_over_the_kernel() {
    if !root_tests() {
        return;
    }
    reached_as_the_file_says("rck", "io = \"kernel\"");
}
