//! Clients behind public addresses, over frames and over the kernel's sockets.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use support::{CLIENT_INNER, Gateway, ORIGIN, Topology, WireGuard, eventually, ip, unlimited};
use topnet_netns::root_tests;

const POOL: &str = "198.51.100.0/28";
const HEADERS: u64 = 28;

#[test]
fn frames_are_translated() {
    both_ways("natx", "");
}

#[test]
fn the_kernel_s_sockets_are_translated() {
    both_ways("natk", "io = \"kernel\"");
}

fn both_ways(test: &str, more: &str) {
    if !root_tests() {
        return;
    }
    let topology = Topology::new(test);
    topology.route_in_kernel();
    // The world knows the pool, and nobody's inner address.
    ip(&topology.origin, "route del 10.78.0.0/16");
    ip(&topology.origin, &format!("route add {POOL} via 10.77.2.1"));
    let io = if more.is_empty() {
        "io = \"af-xdp-copy\""
    } else {
        more
    };
    let section = format!("{io}\n[dataplane.nat]\naddresses = \"{POOL}\"");
    let mut gateway = Gateway::start_in(topology, &section);
    let client = WireGuard::start(&gateway, &format!("tn{test}"));
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    metering.credit.grant(slot, unlimited());

    let bind = |namespace: &topnet_netns::Namespace, address: Ipv4Addr, port: u16| {
        let socket = namespace
            .enter(|| UdpSocket::bind((address, port)).unwrap())
            .unwrap();
        let patience = Some(Duration::from_millis(500));
        socket.set_read_timeout(patience).unwrap();
        socket
    };
    let origin = bind(&gateway.topology.origin, ORIGIN, 7);
    let near = bind(&gateway.topology.client, CLIENT_INNER, 0);
    near.connect((ORIGIN, 7)).unwrap();
    let mut buffer = [0; 2048];
    let mut seen = None;
    eventually("the origin hears the client", || {
        near.send(b"hello").unwrap();
        seen = origin.recv_from(&mut buffer).ok();
        seen.is_some()
    });
    let (_, from) = seen.unwrap();
    let IpAddr::V4(public) = from.ip() else {
        panic!("{from}");
    };
    assert_eq!(public.octets()[..3], [198, 51, 100], "{from}");
    assert!(from.port() >= 1_024, "{from}");

    // What comes back reaches the client, from the origin's own address.
    while origin.recv_from(&mut buffer).is_ok() {}
    let before = metering.usage.totals(slot.index).bytes;
    near.send(&[1; 100]).unwrap();
    let (bytes, again) = origin.recv_from(&mut buffer).unwrap();
    assert_eq!((bytes, again), (100, from), "one flow keeps its port");
    origin.send_to(&[2; 300], from).unwrap();
    assert_eq!(near.recv(&mut buffer).unwrap(), 300);
    eventually("both are billed", || {
        metering.usage.totals(slot.index).bytes == before + 400 + 2 * HEADERS
    });

    // Unsolicited: another port of the address, and a client's own address.
    let billed = metering.usage.totals(slot.index).bytes;
    origin.send_to(b"x", (public, 1_025)).unwrap();
    eventually("nobody has that port", || {
        gateway.drops("nat_no_mapping") >= 1
    });
    let stranger = "10.77.2.3";
    ip(
        &gateway.topology.origin,
        &format!("address add {stranger}/24 dev eth0"),
    );
    let stranger = bind(&gateway.topology.origin, stranger.parse().unwrap(), 7);
    stranger.send_to(b"x", from).unwrap();
    eventually("a stranger is not let in", || {
        gateway.drops("nat_filtered") >= 1
    });
    assert_eq!(metering.usage.totals(slot.index).bytes, billed);

    // An error about what the client sent finds its way back to the socket.
    let closed = bind(&gateway.topology.client, CLIENT_INNER, 0);
    closed.connect((ORIGIN, 9)).unwrap();
    eventually("the client is told that nobody listens", || {
        let _ = closed.send(b"x");
        let error = closed.recv(&mut buffer).unwrap_err();
        error.kind() == ErrorKind::ConnectionRefused
    });

    // One block, one line; and one more when the session ends.
    let log = gateway.home.path("data").join("dataplane/nat.log");
    let lines = || -> Vec<serde_json::Value> {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    eventually("the block is logged", || lines().len() == 2);
    eventually("the status tells what is lent", || {
        let nat = gateway.status().nat.unwrap();
        (nat.blocks, nat.blocks_lent, nat.clients) == (16 * 126, 1, 1) && nat.flows >= 2
    });
    assert_eq!(lines()[0]["event"], "started");
    let lent = &lines()[1];
    assert_eq!(lent["event"], "allocated");
    assert_eq!(lent["inner_address"], CLIENT_INNER.to_string());
    assert_eq!(lent["address"], public.to_string());
    let ports = lent["first_port"].as_u64().unwrap()..=lent["last_port"].as_u64().unwrap();
    assert!(ports.contains(&u64::from(from.port())), "{lent} {from}");
    gateway.install(&[]);
    eventually("the block is given back", || {
        lines()
            .last()
            .is_some_and(|line| line["event"] == "released")
    });
    for line in &lines()[1..] {
        let channel = client.session().channel.to_string();
        assert_eq!(line["channel"], channel, "{line}");
    }
}
