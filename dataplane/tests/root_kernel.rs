//! The kernel's sockets as the way in and out: the same bill and the same limit as with frames,
//! and what only they carry.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::UdpSocket;
use std::process::Command;

use support::{
    CLIENT_INNER, Echo, GATEWAY, GATEWAY6, Gateway, HEADERS4, Home, ORIGIN, ORIGIN6, Topology,
    WireGuard, admit_with_credit, bind, counts_exactly, eventually, ip, limit_stops_exactly,
    nothing_passes_without_credit, tcp_to, transfer, unlimited, up_to,
};
use topnet_netns::root_tests;

const CAPABILITIES: &str = "+net_admin";

#[test]
fn inner_bytes_of_both_versions_are_counted_exactly() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_on_kernel("kcount");
    let client = WireGuard::start_dual(&gateway, "tnkcount", GATEWAY.into());
    let slot = admit_with_credit(&mut gateway, &client);
    assert_eq!(gateway.status().io.backend, "kernel");
    counts_exactly(&gateway, slot);
}

#[test]
fn trains_arrive_whole_and_are_billed_packet_by_packet() {
    if !root_tests() {
        return;
    }
    const BYTES: usize = 16 << 20;
    let mut gateway = Gateway::start_on_kernel("kbulk");
    let client = WireGuard::start_dual(&gateway, "tnkbulk", GATEWAY.into());
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    metering.credit.grant(slot, unlimited());
    let content: Vec<u8> = (0..BYTES).map(|i| ((i * i) >> 7) as u8).collect();
    // Bytes of an IP and a TCP header with timestamps, which every segment has.
    for (origin, segment_bytes) in [(ORIGIN.into(), 1_420 - 52), (ORIGIN6.into(), 1_420 - 72)] {
        let (mut near, mut far) = tcp_to(&gateway.topology, origin);
        for direction in ["down", "up"] {
            let before = metering.usage.totals(slot.index);
            let (from, to) = match direction {
                "down" => (&mut far, &mut near),
                _ => (&mut near, &mut far),
            };
            transfer(from, to, &content);
            let after = metering.usage.totals(slot.index);
            let (bytes, packets) = (after.bytes - before.bytes, after.packets - before.packets);
            // No train is billed as one packet: each segment has headers of its own.
            let segments = (BYTES / segment_bytes) as u64;
            assert!(
                packets >= segments,
                "{packets} packets, {segments} segments"
            );
            let least = BYTES as u64 + segments * (1_420 - segment_bytes as u64);
            assert!(bytes >= least, "{bytes} bytes, at least {least}");
            assert!(
                bytes <= least + least / 10,
                "{bytes} bytes, at least {least}"
            );
        }
    }
}

#[test]
fn the_limit_stops_exactly() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_on_kernel("klimit");
    let client = WireGuard::start_dual(&gateway, "tnklimit", GATEWAY.into());
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    let echo = Echo::new(&gateway.topology);
    nothing_passes_without_credit(&gateway, &echo);
    let limit_bytes = limit_stops_exactly(&metering, slot, &echo, HEADERS4);
    // A train that does not fit as a whole is cut between two packets.
    const PACKET: u64 = 1000 + HEADERS4;
    let train_limit_bytes = limit_bytes + 40 * PACKET + 500;
    metering.credit.grant(slot, up_to(train_limit_bytes));
    let burst: Vec<u8> = vec![0x5a; 1000];
    for _ in 0..200 {
        echo.socket.send(&burst).unwrap();
    }
    eventually("the train is cut", || {
        gateway.drops("credit_exhausted") > 100
    });
    let usage = metering.usage.totals(slot.index).bytes;
    assert!(usage <= train_limit_bytes && train_limit_bytes - usage < PACKET);
    metering.credit.close(slot);
    echo.drain();
    assert!(!echo.round_trip(1000));
}

#[test]
fn a_narrow_path_gets_trains_in_pieces() {
    if !root_tests() {
        return;
    }
    for (test, endpoint) in [("knarrow4", GATEWAY.into()), ("knarrow6", GATEWAY6.into())] {
        let mut gateway = Gateway::start_on_kernel(test);
        let client = WireGuard::start_dual(&gateway, &format!("tn{test}"), endpoint);
        admit_with_credit(&mut gateway, &client);
        let echo = Echo::new(&gateway.topology);
        eventually("the tunnel is up", || echo.round_trip(1));
        // The provider has learnt that the way to its peer is narrow.
        let provider = &gateway.topology.provider;
        ip(provider, "route replace 10.77.1.2 dev clients mtu 1400");
        ip(provider, "route replace fd77:1::2 dev clients mtu 1400");
        echo.drain();
        for payload_bytes in [1_392, 1_392, 100] {
            assert!(
                echo.round_trip(payload_bytes),
                "{payload_bytes} to {endpoint}"
            );
        }
        let (mut near, mut far) = tcp_to(&gateway.topology, ORIGIN.into());
        transfer(&mut far, &mut near, &vec![7; 1 << 20]);
    }
}

#[test]
fn a_device_that_is_down_ends_the_process_and_nobody_is_billed_for_nothing() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_on_kernel("kdown");
    let client = WireGuard::start_dual(&gateway, "tnkdown", GATEWAY.into());
    let slot = admit_with_credit(&mut gateway, &client);
    let metering = gateway.attach();
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    ip(&gateway.topology.provider, "link set topnet0 down");
    let before = metering.usage.totals(slot.index).bytes;
    eventually("the process has ended", || {
        let _ = echo.socket.send(&[0; 1000]);
        gateway.process.try_wait().unwrap().is_some()
    });
    let billed = metering.usage.totals(slot.index).bytes - before;
    assert!(
        billed <= 64 * (1000 + HEADERS4),
        "{billed}: more than one burst"
    );
}

#[test]
fn peers_come_over_ipv6_and_roam() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_on_kernel("kroam");
    let client = WireGuard::start_dual(&gateway, "tnkroam", GATEWAY6.into());
    let slot = admit_with_credit(&mut gateway, &client);
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    let at = |gateway: &Gateway| gateway.status().sessions[0].endpoint.unwrap().to_string();
    assert!(at(&gateway).starts_with("[fd77:1::2]:"), "{}", at(&gateway));
    let usage = gateway.attach().usage.totals(slot.index);
    // The client's address changes under it; what it sends says so.
    let namespace = &gateway.topology.client;
    ip(namespace, "address add fd77:1::3/64 dev eth0 nodad");
    ip(namespace, "address del fd77:1::2/64 dev eth0");
    eventually("the tunnel is up again", || echo.round_trip(1));
    eventually("the peer has moved", || {
        at(&gateway).starts_with("[fd77:1::3]:")
    });
    assert!(gateway.attach().usage.totals(slot.index).bytes > usage.bytes);
}

#[test]
fn the_kernel_answers_where_a_packet_cannot_go_on() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_on_kernel("kicmp");
    let client = WireGuard::start_dual(&gateway, "tnkicmp", GATEWAY.into());
    admit_with_credit(&mut gateway, &client);
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    // The gateway itself is heard too, and every destination is sent there.
    let namespace = &gateway.topology.client;
    ip(namespace, "route add 10.99.0.0/16 dev tnkicmp");
    client.allow(&gateway, "10.77.2.0/24,10.78.0.0/16,10.99.0.0/16");
    ip(namespace, "route add 10.78.0.0/16 dev tnkicmp");
    // No hop left: the client is told so.
    let near = namespace
        .enter(|| UdpSocket::bind((CLIENT_INNER, 0)).unwrap())
        .unwrap();
    near.connect((ORIGIN, 7)).unwrap();
    near.set_ttl(1).unwrap();
    let told = || {
        let mut command = Command::new("cat");
        command.arg("/proc/net/snmp");
        let counters = namespace.run(command).unwrap().stdout;
        count(
            &String::from_utf8(counters).unwrap(),
            "Icmp:",
            "InTimeExcds",
        )
    };
    eventually("the client is told that no hop is left", || {
        near.send(b"x").unwrap();
        told() > 0
    });
    // Too large for the tunnel: the origin learns the path's MTU.
    let far = gateway
        .topology
        .origin
        .enter(|| UdpSocket::bind((ORIGIN, 0)).unwrap())
        .unwrap();
    far.connect((CLIENT_INNER, 9)).unwrap();
    eventually("the origin knows the path's MTU", || {
        let _ = far.send(&[0; 1_450]);
        ip(&gateway.topology.origin, "route get 10.78.0.2").contains("mtu 1420")
    });
    // A client does not reach what is not the uplink's world, nor other clients, nor the host.
    for (to, reason) in [
        ("10.77.2.1", "to_gateway"),
        ("10.78.0.3", "between_clients"),
        ("10.99.0.1", "no_route"),
    ] {
        let socket = namespace
            .enter(|| UdpSocket::bind((CLIENT_INNER, 0)).unwrap())
            .unwrap();
        socket.send_to(b"x", (to, 9)).unwrap();
        eventually(reason, || gateway.drops(reason) >= 1);
    }
}

#[test]
fn nobody_pays_for_ipv6_that_was_not_asked_for() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_on_kernel("kask");
    let client = WireGuard::start_dual(&gateway, "tnkask", GATEWAY.into());
    let slot = admit_with_credit(&mut gateway, &client);
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    let near = bind(&gateway.topology.client, (support::CLIENT_INNER6, 0));
    let far = bind(&gateway.topology.origin, (ORIGIN6, 0));
    let (at, from) = (near.local_addr().unwrap(), far.local_addr().unwrap());
    // IPv4 cannot be asked about here: its clients are behind shared addresses where they matter.
    let usage = || gateway.attach().usage.totals(slot.index).bytes;
    let before = usage();
    let mut buffer = [0; 64];
    for _ in 0..3 {
        far.send_to(b"buy this", at).unwrap();
    }
    assert!(near.recv(&mut buffer).is_err());
    assert!(gateway.drops("unsolicited") >= 3);
    assert_eq!(usage(), before);
    near.send_to(b"yes?", from).unwrap();
    assert!(far.recv(&mut buffer).is_ok());
    far.send_to(b"an answer", at).unwrap();
    assert_eq!(near.recv(&mut buffer).unwrap(), 9);
}

#[test]
fn nothing_is_left_and_nothing_is_forwarded_without_the_process() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_on_kernel("kdeath");
    let client = WireGuard::start_dual(&gateway, "tnkdeath", GATEWAY6.into());
    admit_with_credit(&mut gateway, &client);
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    eventually("the peer's address is noted", || {
        gateway.home.runtime_dir().join("endpoints").exists()
    });
    gateway.process.kill().unwrap();
    gateway.process.wait().unwrap();
    let links = ip(&gateway.topology.provider, "link show");
    assert!(!links.contains("topnet0"), "{links}");
    let routes = ip(&gateway.topology.provider, "route show");
    assert!(!routes.contains("10.78."), "{routes}");
    assert!(!echo.round_trip(1));
    // The next run has the device, the port and the peer's address again.
    gateway.restart();
    admit_with_credit(&mut gateway, &client);
    eventually("the tunnel is up again", || echo.round_trip(1));
}

#[test]
fn what_cannot_work_is_refused_with_the_mend_and_chosen_with_the_reason() {
    if !root_tests() {
        return;
    }
    let topology = Topology::new("kchoose");
    let provider = &topology.provider;
    let home = Home::new();
    home.configure("clients", "uplink", "io = \"kernel\"");
    let said = home.refusal(provider, CAPABILITIES);
    let key = "net/ipv4/conf/uplink/forwarding";
    assert!(said.contains(&format!("sysctl -w {key}=1")), "{said}");
    provider
        .sysctl("net.ipv4.conf.uplink.forwarding", "1")
        .unwrap();
    let said = home.refusal(provider, "-all");
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    ip(provider, "tuntap add dev topnet0 mode tun");
    let said = home.refusal(provider, CAPABILITIES);
    assert!(
        said.contains("topnet0") && said.contains("tunnel_interface"),
        "{said}"
    );
    ip(provider, "link del topnet0");
    let taken = provider
        .enter(|| UdpSocket::bind("10.77.1.1:51820").unwrap())
        .unwrap();
    let said = home.refusal(provider, CAPABILITIES);
    assert!(said.contains("51820"), "{said}");
    drop(taken);

    // A copying driver and a kernel that routes: sockets. One that does not: frames.
    let gateway = Gateway::start_in(topology, "");
    let io = gateway.status().io;
    assert_eq!(io.backend, "kernel");
    assert!(io.reason.contains("cannot share frames"), "{}", io.reason);
    drop(gateway);
    let io = Gateway::start("kframes").status().io;
    assert_eq!(io.backend, "af_xdp");
    assert!(io.reason.contains(key), "{}", io.reason);
}

/// A counter of `/proc/net/snmp`: one line has the names, the next the values.
fn count(counters: &str, protocol: &str, name: &str) -> u64 {
    let lines: Vec<Vec<&str>> = counters
        .lines()
        .map(|line| line.split(' ').collect())
        .filter(|words: &Vec<&str>| words[0] == protocol)
        .collect();
    let place = lines[0].iter().position(|word| *word == name).unwrap();
    lines[1][place].parse().unwrap()
}
