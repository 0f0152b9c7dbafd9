//! IPv6 over frames: around the tunnel and within it, billed to the byte, with the kernel's own
//! routes and neighbours.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

use support::{
    CLIENT_INNER6, Echo, GATEWAY, GATEWAY6, Gateway, HEADERS6, ORIGIN, ORIGIN6, PATIENCE,
    WireGuard, admit_with_credit, bind, counts_exactly, eventually, has_xdp, ip,
    limit_stops_exactly, narrow_tunnel_fits_tcp, nothing_passes_without_credit, tcp_to, transfer,
};
use topnet_netns::root_tests;

#[test]
fn inner_bytes_of_both_versions_are_counted_exactly_around_both() {
    if !root_tests() {
        return;
    }
    for (test, endpoint) in [("xcount4", GATEWAY.into()), ("xcount6", GATEWAY6.into())] {
        let mut gateway = Gateway::start_with_ipv6(test);
        let io = gateway.status().io;
        assert_eq!(io.backend, "af_xdp", "{}", io.reason);
        assert_eq!(io.addresses, [IpAddr::from(GATEWAY), GATEWAY6.into()]);
        assert!(has_xdp(&gateway.topology.provider, "clients"));
        let client = WireGuard::start_dual(&gateway, &format!("tn{test}"), endpoint);
        let slot = admit_with_credit(&mut gateway, &client);
        counts_exactly(&gateway, slot);
        let at = gateway.status().sessions[0].endpoint.unwrap();
        assert_eq!(at.is_ipv6(), endpoint.is_ipv6(), "{at}");
    }
}

#[test]
fn a_transfer_over_ipv6_arrives_whole_in_both_directions() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_with_ipv6("xbulk");
    let client = WireGuard::start_dual(&gateway, "tnxbulk", GATEWAY6.into());
    admit_with_credit(&mut gateway, &client);
    let content: Vec<u8> = (0..8usize << 20).map(|i| ((i * i) >> 7) as u8).collect();
    for origin in [ORIGIN.into(), ORIGIN6.into()] {
        let (mut near, mut far) = tcp_to(&gateway.topology, origin);
        transfer(&mut far, &mut near, &content);
        transfer(&mut near, &mut far, &content);
    }
    let (sent, received) = client.interface_bytes(&gateway.topology.client);
    let session = &gateway.status().sessions[0];
    let billed = session.up_bytes + session.down_bytes;
    assert!(
        billed.abs_diff(sent + received) * 200 <= billed,
        "billed {billed}, the client {sent} up and {received} down"
    );
}

#[test]
fn tcp_over_ipv6_fits_even_if_both_ends_believe_in_more() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_with_ipv6("xmss");
    // Not over IPv6: a client that believes in 1,500 pads to what is too large there.
    let client = WireGuard::start_dual(&gateway, "tnxmss", GATEWAY.into());
    admit_with_credit(&mut gateway, &client);
    let echo = Echo::new6(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    narrow_tunnel_fits_tcp(&gateway, &client, ORIGIN6.into());
}

#[test]
fn the_limit_stops_ipv6_exactly() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_with_ipv6("xlimit");
    let client = WireGuard::start_dual(&gateway, "tnxlimit", GATEWAY6.into());
    let slot = gateway.admit(&client);
    let metering = gateway.attach();
    let echo = Echo::new6(&gateway.topology);
    nothing_passes_without_credit(&gateway, &echo);
    limit_stops_exactly(&metering, slot, &echo, HEADERS6);
    assert!(gateway.drops("credit_exhausted") > 0);
}

#[test]
fn peers_roam_from_version_to_version_and_are_greeted_after_a_restart() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_with_ipv6("xroam");
    let client = WireGuard::start_dual(&gateway, "tnxroam", GATEWAY.into());
    admit_with_credit(&mut gateway, &client);
    let echo = Echo::new6(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    let is_at = |gateway: &Gateway, address: &str| {
        let endpoint = gateway.status().sessions[0].endpoint.unwrap();
        endpoint.ip() == address.parse::<IpAddr>().unwrap()
    };
    assert!(is_at(&gateway, "10.77.1.2"));
    client.point_at(&gateway, GATEWAY6.into(), 0);
    client.allow(&gateway, "10.77.2.0/24,fd77:2::/64");
    eventually("the tunnel is up over IPv6", || echo.round_trip(1));
    eventually("the peer has moved", || is_at(&gateway, "fd77:1::2"));
    let namespace = &gateway.topology.client;
    ip(namespace, "address add fd77:1::3/64 dev eth0 nodad");
    ip(namespace, "address del fd77:1::2/64 dev eth0");
    eventually("the tunnel is up again", || echo.round_trip(1));
    eventually("the peer has moved again", || is_at(&gateway, "fd77:1::3"));
    eventually("the peer's address is noted", || {
        let noted = gateway.home.runtime_dir().join("endpoints");
        std::fs::read_to_string(noted).is_ok_and(|text| text.contains("fd77:1::3"))
    });
    // The next run greets it there, although nothing was heard of it yet.
    gateway.restart();
    admit_with_credit(&mut gateway, &client);
    eventually("a new handshake is done", || {
        gateway.status().sessions[0].handshake_age_s.is_some()
    });
    eventually("the tunnel is up in the next run", || echo.round_trip(1));
}

#[test]
fn neighbours_over_ipv6_are_found_followed_and_answered() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_with_ipv6("xmove");
    let client = WireGuard::start_dual(&gateway, "tnxmove", GATEWAY6.into());
    admit_with_credit(&mut gateway, &client);
    let echo = Echo::new6(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    let (origin, provider) = (&gateway.topology.origin, &gateway.topology.provider);
    origin
        .sysctl("net.ipv6.conf.eth0.ndisc_notify", "1")
        .unwrap();
    ip(origin, "link set dev eth0 address 02:00:00:00:00:77");
    eventually("the new address is used", || echo.round_trip(1));
    ip(provider, "neigh del fd77:2::2 dev uplink");
    eventually("the origin is found again", || echo.round_trip(1));
    ip(provider, "neigh del fd77:1::2 dev clients");
    eventually("the client is found again", || echo.round_trip(1));
    // Who asks for us is answered by the kernel, as before.
    ip(origin, "neigh flush dev eth0");
    ip(&gateway.topology.client, "neigh flush dev eth0");
    eventually("the gateway is found again", || echo.round_trip(1));
    // A router that has only an address of its own link.
    let router = ip(origin, "-6 -o address show dev eth0 scope link");
    let router = router.split_whitespace().nth(3).unwrap();
    let (router, _) = router.split_once('/').unwrap();
    ip(origin, "address add fd66::1/128 dev lo nodad");
    ip(
        provider,
        &format!("route add fd66::/64 via {router} dev uplink"),
    );
    ip(&gateway.topology.client, "route add fd66::/64 dev tnxmove");
    client.allow(&gateway, "10.77.2.0/24,fd77:2::/64,fd66::/64");
    let beyond: Ipv6Addr = "fd66::1".parse().unwrap();
    let echo = Echo::between(&gateway.topology, CLIENT_INNER6.into(), beyond.into());
    eventually("who is behind a router is reached", || echo.round_trip(1));
}

#[test]
fn the_host_stays_reachable_over_ipv6() {
    if !root_tests() {
        return;
    }
    let gateway = Gateway::start_with_ipv6("xhost");
    let (provider, client) = (&gateway.topology.provider, &gateway.topology.client);
    let payments = provider.enter(|| UdpSocket::bind((GATEWAY6, 7447)).unwrap());
    let payments = payments.unwrap();
    payments.set_read_timeout(Some(PATIENCE)).unwrap();
    let rpc = provider.enter(|| TcpListener::bind((GATEWAY6, 8545)).unwrap());
    let rpc = rpc.unwrap();
    let payer = client.enter(|| UdpSocket::bind(("fd77:1::2", 0)).unwrap());
    payer
        .unwrap()
        .send_to(b"a token", (GATEWAY6, 7447))
        .unwrap();
    assert_eq!(payments.recv(&mut [0; 64]).unwrap(), 7);
    let address = (GATEWAY6, 8545).into();
    let asked = client.enter(|| TcpStream::connect_timeout(&address, PATIENCE));
    asked.unwrap().unwrap();
    rpc.accept().unwrap();
    // WireGuard's port is held: nobody else has it, and the kernel does not refuse packets.
    let taken = provider.enter(|| UdpSocket::bind((GATEWAY6, 51_820)));
    assert!(taken.unwrap().is_err());
}

#[test]
fn what_ipv6_may_not_is_dropped_by_reason_and_not_billed() {
    if !root_tests() {
        return;
    }
    let mut gateway = Gateway::start_with_ipv6("xdrop");
    let client = WireGuard::start_dual(&gateway, "tnxdrop", GATEWAY6.into());
    let slot = admit_with_credit(&mut gateway, &client);
    let echo = Echo::new6(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    let namespace = &gateway.topology.client;
    ip(namespace, "address add fd78::99/128 dev tnxdrop nodad");
    ip(namespace, "route add fd99::/16 dev tnxdrop");
    ip(namespace, "route add fd78::/64 dev tnxdrop");
    client.allow(&gateway, "10.77.2.0/24,fd77:2::/64,fd78::/64,fd99::/16");
    let usage = || gateway.attach().usage.totals(slot.index).bytes;
    let before = usage();
    for (from, to, reason) in [
        ("fd78::99", "fd77:2::2", "source_not_allowed"),
        ("fd78::2", "fd77:2::1", "to_gateway"),
        ("fd78::2", "fd78::3", "between_clients"),
        ("fd78::2", "fd99::1", "no_route"),
        ("fd78::2", "fd77:2::200", "neighbour_unresolved"),
    ] {
        bind(namespace, (from, 0)).send_to(b"x", (to, 9)).unwrap();
        eventually(reason, || gateway.drops(reason) >= 1);
    }
    let far = bind(&gateway.topology.origin, (ORIGIN6, 0));
    let near = bind(namespace, (CLIENT_INNER6, 0));
    let at = near.local_addr().unwrap();
    let mut buffer = [0; 64];
    // The origin was asked for echoes, so another address of its is a stranger's.
    let origin = &gateway.topology.origin;
    ip(origin, "address add fd77:2::3/64 dev eth0 nodad");
    let stranger = bind(origin, "[fd77:2::3]:0");
    for _ in 0..3 {
        stranger.send_to(b"buy this", at).unwrap();
    }
    far.send_to(b"x", ("fd78::777", 9)).unwrap();
    assert!(near.recv(&mut buffer).is_err());
    eventually("unsolicited", || gateway.drops("unsolicited") >= 3);
    eventually("no session", || gateway.drops("no_session") >= 1);
    assert_eq!(usage(), before);
    let from = stranger.local_addr().unwrap();
    eventually("the stranger is asked", || {
        near.send_to(b"yes?", from).unwrap();
        stranger.recv(&mut buffer).is_ok()
    });
    stranger.send_to(b"an answer", at).unwrap();
    assert_eq!(near.recv(&mut buffer).unwrap(), 9);
}
