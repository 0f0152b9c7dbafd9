//! Clients behind public addresses, over frames and over the kernel's sockets.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use support::{
    CLIENT_INNER, Gateway, HEADERS4, ORIGIN, Topology, WireGuard, bind, eventually, ip, unlimited,
};
use topnet_api::DesiredSession;
use topnet_netns::root_tests;

const POOL: &str = "198.51.100.0/28";

#[test]
fn frames_are_translated() {
    both_ways("natx", "io = \"af-xdp-copy\"");
}

#[test]
fn the_kernel_s_sockets_are_translated() {
    both_ways("natk", "io = \"kernel\"");
}

/// Answers come in by any queue, and the worker that lent the port translates them.
#[test]
fn parts_of_the_pool_are_translated_by_their_workers() {
    both_ways("natwx", "io = \"af-xdp-copy\"\nworkers = 2");
    both_ways("natwk", "io = \"kernel\"\nworkers = 2");
}

fn start(test: &str, io: &str) -> Gateway {
    let queues = if io.contains("workers = 2") { 2 } else { 1 };
    let topology = Topology::with_queues(test, queues);
    topology.route_in_kernel();
    // The world knows the pool, and nobody's inner address.
    ip(&topology.origin, "route del 10.78.0.0/16");
    ip(&topology.origin, &format!("route add {POOL} via 10.77.2.1"));
    let section = format!("{io}\n[dataplane.nat]\naddresses = \"{POOL}\"");
    Gateway::start_in(topology, &section)
}

/// The log of who had which ports.
fn lines(gateway: &Gateway) -> Vec<serde_json::Value> {
    let log = gateway.home.path("data").join("dataplane/nat.log");
    let text = fs::read_to_string(&log).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Where the origin sees the client's packets come from.
fn public_end(near: &UdpSocket, origin: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 2048];
    let mut seen = None;
    eventually("the origin hears the client", || {
        near.send(b"hello").unwrap();
        seen = origin.recv_from(&mut buffer).ok();
        seen.is_some()
    });
    seen.unwrap().1
}

fn both_ways(test: &str, io: &str) {
    if !root_tests() {
        return;
    }
    let mut gateway = start(test, io);
    let client = WireGuard::start(&gateway, &format!("tn{test}"));
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    metering.credit.grant(slot, unlimited());

    let origin = bind(&gateway.topology.origin, (ORIGIN, 7));
    let near = bind(&gateway.topology.client, (CLIENT_INNER, 0));
    near.connect((ORIGIN, 7)).unwrap();
    let mut buffer = [0; 2048];
    let from = public_end(&near, &origin);
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
        metering.usage.totals(slot.index).bytes == before + 400 + 2 * HEADERS4
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
    let stranger = bind(&gateway.topology.origin, (stranger, 7));
    stranger.send_to(b"x", from).unwrap();
    eventually("a stranger is not let in", || {
        gateway.drops("nat_filtered") >= 1
    });
    assert_eq!(metering.usage.totals(slot.index).bytes, billed);

    // An error about what the client sent finds its way back to the socket.
    let closed = bind(&gateway.topology.client, (CLIENT_INNER, 0));
    closed.connect((ORIGIN, 9)).unwrap();
    eventually("the client is told that nobody listens", || {
        let _ = closed.send(b"x");
        let error = closed.recv(&mut buffer).unwrap_err();
        error.kind() == ErrorKind::ConnectionRefused
    });

    // One block, one line; and one more when the session ends.
    let told = || lines(&gateway);
    eventually("the block is logged", || told().len() == 2);
    eventually("the status tells what is lent", || {
        let nat = gateway.status().nat.unwrap();
        (nat.blocks, nat.blocks_lent, nat.clients) == (16 * 126, 1, 1) && nat.flows >= 2
    });
    assert_eq!(told()[0]["event"], "started");
    let lent = &told()[1];
    assert_eq!(lent["event"], "allocated");
    assert_eq!(lent["inner_address"], CLIENT_INNER.to_string());
    assert_eq!(lent["address"], public.to_string());
    let ports = lent["first_port"].as_u64().unwrap()..=lent["last_port"].as_u64().unwrap();
    assert!(ports.contains(&u64::from(from.port())), "{lent} {from}");
    gateway.install(&[]);
    let told = || lines(&gateway);
    eventually("the block is given back", || {
        told()
            .last()
            .is_some_and(|line| line["event"] == "released")
    });
    for line in &told()[1..] {
        let channel = client.session().channel.to_string();
        assert_eq!(line["channel"], channel, "{line}");
    }
}

#[test]
fn a_flow_outlives_an_orderly_end() {
    if !root_tests() {
        return;
    }
    let mut gateway = start("natr", "io = \"kernel\"");
    let client = WireGuard::start(&gateway, "tnnatr");
    let slot = gateway.admit(&client);
    gateway.attach().credit.grant(slot, unlimited());
    let origin = bind(&gateway.topology.origin, (ORIGIN, 7));
    let near = bind(&gateway.topology.client, (CLIENT_INNER, 0));
    near.connect((ORIGIN, 7)).unwrap();
    let from = public_end(&near, &origin);
    while origin.recv_from(&mut [0; 2048]).is_ok() {}
    let noted = gateway.home.runtime_dir().join("endpoints");
    eventually("the client's place is noted", || noted.exists());

    // The client is silent, so nothing but what was kept leads to it.
    let answers = |gateway: &Gateway| {
        let reached = || {
            origin.send_to(b"still there?", from).unwrap();
            near.recv(&mut [0; 2048]).is_ok_and(|bytes| bytes == 12)
        };
        let before = gateway.drops("nat_no_mapping");
        let mut answered = false;
        eventually("the origin's packet arrives or is refused", || {
            answered = reached();
            answered || gateway.drops("nat_no_mapping") > before
        });
        answered
    };
    let file = gateway.home.runtime_dir().join("nat-state");
    gateway.restart_in_order();
    assert!(!file.exists(), "it is taken once");
    let slot = gateway.admit(&client);
    gateway.attach().credit.grant(slot, unlimited());
    assert!(answers(&gateway));
    assert_eq!(public_end(&near, &origin), from);

    // Not so for another key with the same address; and the log tells the two apart.
    gateway.terminate();
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept = fs::read(&file).unwrap();
    gateway.start_again();
    let other = DesiredSession {
        wireguard_public_key: [9; 32],
        ..client.session()
    };
    gateway.install(&[other]);
    assert!(!answers(&gateway));
    let of = |event: &str| {
        let lines = lines(&gateway);
        let line = lines.iter().rev().find(|line| line["event"] == event);
        line.map(|line| {
            (
                line["wireguard_public_key"].clone(),
                line["first_port"].clone(),
            )
        })
    };
    eventually("the block came back", || of("released").is_some());
    assert_eq!(of("released"), of("allocated"));
    let events: Vec<_> = lines(&gateway)
        .iter()
        .map(|line| line["event"].as_str().unwrap().to_owned())
        .collect();
    let run = ["started", "allocated"];
    assert_eq!(events, [&run[..], &run, &run, &["released"]].concat());

    // A damaged file costs the flows and nothing else. What a run that was killed left is nothing.
    gateway.terminate();
    let mut damaged = kept;
    damaged[70] ^= 1;
    fs::write(&file, damaged).unwrap();
    gateway.start_again();
    let slot = gateway.admit(&client);
    gateway.attach().credit.grant(slot, unlimited());
    assert!(!answers(&gateway));
    assert!(!file.exists());
    public_end(&near, &origin);
    gateway.restart();
    assert!(!file.exists());
    gateway.admit(&client);
    assert!(!answers(&gateway));
}
