//! Over frames the gateway itself says that a packet goes no further, as the kernel does over its
//! sockets: to real kernels, which understand it.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;

use support::{
    CLIENT_INNER, CLIENT_INNER6, Echo, GATEWAY, Gateway, ORIGIN, ORIGIN6, WireGuard, eventually,
    ip, unlimited,
};
use topnet_netns::{Namespace, root_tests};

/// A counter of the namespace's kernel, by its name among ICMP's.
fn counter(namespace: &Namespace, v6: bool, name: &str) -> u64 {
    let mut command = Command::new("cat");
    command.arg(if v6 {
        "/proc/net/snmp6"
    } else {
        "/proc/net/snmp"
    });
    let output = namespace.run(command).unwrap().stdout;
    let text = String::from_utf8(output).unwrap();
    if v6 {
        let mut lines = text.lines().map(|line| line.split_whitespace());
        let line = lines.find_map(|mut words| (words.next() == Some(name)).then_some(words));
        return line.unwrap().next().unwrap().parse().unwrap();
    }
    let lines: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("Icmp:"))
        .map(|line| line.split(' ').collect())
        .collect();
    let place = lines[0].iter().position(|word| *word == name).unwrap();
    lines[1][place].parse().unwrap()
}

fn bind(namespace: &Namespace, address: IpAddr, to: IpAddr) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind((address, 0)).unwrap());
    let socket = socket.unwrap();
    socket.connect(SocketAddr::new(to, 9)).unwrap();
    socket
}

/// Lets a socket's packets go over one hop alone.
fn one_hop(socket: &UdpSocket, v6: bool) {
    if v6 {
        rustix::net::sockopt::set_ipv6_unicast_hops(socket, Some(1)).unwrap();
    } else {
        socket.set_ttl(1).unwrap();
    }
}

#[test]
fn both_ends_hear_why_a_packet_goes_no_further() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_with_ipv6("answer");
    let client = WireGuard::start_dual(&gateway, "tnanswer", GATEWAY.into());
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    metering.credit.grant(slot, unlimited());
    // What the gateway says comes from its inner address.
    let all = "10.77.2.0/24,10.78.0.1/32,fd77:2::/64,fd78::1/128";
    client.allow(&gateway, all);
    let usage = || {
        let usage = metering.usage.totals(slot.index);
        (usage.bytes, usage.packets)
    };
    let (near, far) = (&gateway.topology.client, &gateway.topology.origin);
    for (v6, inner, origin, echo, headers) in [
        (
            false,
            IpAddr::from(CLIENT_INNER),
            IpAddr::from(ORIGIN),
            Echo::new(&gateway.topology),
            28,
        ),
        (
            true,
            CLIENT_INNER6.into(),
            ORIGIN6.into(),
            Echo::new6(&gateway.topology),
            48,
        ),
    ] {
        eventually("the tunnel is up", || echo.round_trip(1));
        echo.drain();
        let name = match v6 {
            false => "InTimeExcds",
            true => "Icmp6InTimeExcds",
        };
        // The client, on its own account.
        let socket = bind(near, inner, origin);
        one_hop(&socket, v6);
        let (before, heard) = (usage(), counter(near, v6, name));
        socket.send(&[5; 100]).unwrap();
        eventually("the client hears that no hop is left", || {
            counter(near, v6, name) == heard + 1
        });
        // The packet itself is quoted behind headers of the same size.
        let expected = 100 + 2 * headers;
        assert_eq!(usage(), (before.0 + expected, before.1 + 1));

        // The origin, on nobody's.
        let before = usage();
        let socket = bind(far, origin, inner);
        one_hop(&socket, v6);
        let heard = counter(far, v6, name);
        socket.send(&[5; 100]).unwrap();
        eventually("the origin hears that no hop is left", || {
            counter(far, v6, name) == heard + 1
        });
        // What is too large is said once, and the sender keeps to it.
        let socket = bind(far, origin, inner);
        eventually("the origin knows how wide the tunnel is", || {
            let _ = socket.send(&[0; 1_440]);
            ip(far, &format!("route get {inner}")).contains("mtu 1420")
        });
        assert_eq!(usage(), before);

        // A client that believes in more is told as well, as far as its messages arrive whole.
        ip(near, "link set tnanswer mtu 1500");
        let socket = bind(near, inner, origin);
        eventually("the client knows how wide the tunnel is", || {
            let _ = socket.send(&vec![0; 1_432 - headers as usize]);
            ip(near, &format!("route get {origin}")).contains("mtu 1420")
        });
        ip(near, "link set tnanswer mtu 1420");
    }
    for reason in ["ttl_exceeded", "too_large"] {
        assert!(gateway.drops(reason) >= 4, "{reason}");
    }
}

#[test]
fn no_flood_is_answered_with_a_flood() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_with_ipv6("flood");
    let client = WireGuard::start_dual(&gateway, "tnflood", GATEWAY.into());
    let slot = gateway.admit(&client);
    gateway.attach().credit.grant(slot, unlimited());
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    let far = &gateway.topology.origin;
    let socket = bind(far, ORIGIN.into(), CLIENT_INNER.into());
    one_hop(&socket, false);
    let heard = counter(far, false, "InTimeExcds");
    for _ in 0..1_000 {
        // That the last one was answered is no reason not to send.
        let _ = socket.send(b"x");
    }
    eventually("all are dropped", || {
        let _ = socket.send(b"x");
        gateway.drops("ttl_exceeded") >= 1_000
    });
    let answers = counter(far, false, "InTimeExcds") - heard;
    assert!((1..200).contains(&answers), "{answers} answers");
}
