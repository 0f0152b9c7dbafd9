//! IPv6 in frames: around the tunnel, within it, and both.

use super::*;
use crate::packet::{Ip, Ipv6, OUTER6_BYTES, Udp};
use std::net::SocketAddr;

pub(super) fn udp(source: Ipv6Addr, destination: Ipv6Addr, hops: u8, bytes: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(source.octets(), destination.octets(), hops).udp(1, 2);
    builder.write(&mut packet, &vec![7; bytes]).unwrap();
    packet
}

pub(super) fn outer(message: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(CLIENT6.octets(), GATEWAY6.octets(), 64).udp(40_000, 51_820);
    builder.write(&mut packet, message).unwrap();
    ethernet(0, &packet)
}

/// An inner packet through the tunnel, which goes over IPv6.
fn up(bench: &mut Bench, packet: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
    let mut buffer = [0; 2048];
    let TunnResult::WriteToNetwork(message) = bench.client.encapsulate(packet, &mut buffer) else {
        panic!("the client has no keys");
    };
    let frame = outer(message);
    bench.frame(CLIENT_PORT, &frame)
}

/// What the client makes of a frame over IPv6, whose headers are right.
fn opened(bench: &mut Bench, frame: &[u8]) -> Vec<u8> {
    assert_eq!(frame[..6], CLIENT_MAC);
    assert_eq!(frame[6..14], [&OUR_MACS[0][..], &[0x86, 0xdd]].concat());
    let packet = &frame[ETHERNET_BYTES..];
    let ip = Ip::parse(packet).unwrap();
    assert_eq!(ip.total_bytes, packet.len());
    assert_eq!(
        (ip.source, ip.destination),
        (GATEWAY6.into(), CLIENT6.into())
    );
    let udp = Udp::parse(packet, &ip).unwrap();
    assert_eq!((udp.source_port, udp.destination_port), (51_820, 40_000));
    let headers = etherparse::PacketHeaders::from_ip_slice(packet).unwrap();
    let (Some(etherparse::NetHeaders::Ipv6(header, _)), Some(transport)) =
        (headers.net, headers.transport)
    else {
        panic!("not UDP over IPv6");
    };
    let header_of_udp = transport.udp().unwrap();
    let sum = header_of_udp.calc_checksum_ipv6(&header, headers.payload.slice());
    assert_eq!(sum, Ok(header_of_udp.checksum));
    let mut buffer = [0; 2048];
    let message = &frame[OUTER6_BYTES..];
    match bench.client.decapsulate(None, message, &mut buffer) {
        TunnResult::WriteToTunnelV4(packet, _) => packet.to_vec(),
        TunnResult::WriteToTunnelV6(packet, _) => packet.to_vec(),
        TunnResult::WriteToNetwork(answer) => answer.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tunnel_comes_up_over_ipv6_and_carries_both_versions() {
    let mut bench = Bench::new();
    bench.metering.credit.grant(SLOT, ENOUGH);
    let mut buffer = [0; 2048];
    let TunnResult::WriteToNetwork(init) =
        bench.client.format_handshake_initiation(&mut buffer, false)
    else {
        panic!("no initiation");
    };
    let frame = outer(init);
    let (port, answer) = bench.frame(CLIENT_PORT, &frame).expect("an answer");
    assert_eq!(port, CLIENT_PORT);
    let keepalive = opened(&mut bench, &answer);
    assert_eq!(bench.frame(CLIENT_PORT, &outer(&keepalive)), None);
    let mut billed = 0;
    let both = [
        (
            super::udp(INNER, ORIGIN, 64, 100),
            super::udp(ORIGIN, INNER, 64, 100),
        ),
        (udp(INNER6, ORIGIN6, 64, 100), udp(ORIGIN6, INNER6, 64, 100)),
    ];
    for (there, back) in both {
        let (port, frame) = up(&mut bench, &there).unwrap();
        assert_eq!(port, UPLINK_PORT);
        assert_eq!(frame[..6], ORIGIN_MAC);
        let forwarded = Ip::parse(&frame[ETHERNET_BYTES..]).unwrap();
        assert_eq!((forwarded.hops, forwarded.total_bytes), (63, there.len()));
        let (port, frame) = bench.down(&back).unwrap();
        assert_eq!(port, CLIENT_PORT);
        assert_eq!(opened(&mut bench, &frame).len(), back.len());
        billed += (there.len() + back.len()) as u64;
        assert_eq!(bench.usage(), billed);
    }
    assert_eq!(bench.dropped(), []);
}

#[test]
fn ipv6_leaves_a_tunnel_over_ipv4_as_it_came_but_for_a_hop() {
    let mut bench = Bench::connected();
    let packet = udp(INNER6, ORIGIN6, 64, 100);
    let (port, frame) = bench.up(&packet).unwrap();
    assert_eq!(port, UPLINK_PORT);
    assert_eq!(frame[12..14], [0x86, 0xdd]);
    let mut expected = packet.clone();
    expected[7] = 63;
    assert_eq!(frame[ETHERNET_BYTES..], expected);
    // The frame is padded, the packet within is not.
    let packet = udp(ORIGIN6, INNER6, 64, 1);
    let mut padded = packet.clone();
    padded.resize(60, 0xee);
    let (_, frame) = bench.down(&padded).unwrap();
    let mut buffer = [0; 2048];
    let message = &frame[OUTER_BYTES..];
    let received = bench.client.decapsulate(None, message, &mut buffer);
    let TunnResult::WriteToTunnelV6(received, from) = received else {
        panic!("{received:?}");
    };
    assert_eq!((received.len(), from), (packet.len(), ORIGIN6));
    assert_eq!(Ipv6::parse(received).unwrap().hop_limit, 63);
    assert_eq!(bench.usage(), 148 + packet.len() as u64);
    assert_eq!(bench.dropped(), []);
}

#[test]
fn every_refusal_of_ipv6_has_its_reason_and_no_bill() {
    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    let up: [Refused; 10] = [
        (
            "another source",
            udp(address("fd78::3"), ORIGIN6, 64, 8),
            DropReason::SourceNotAllowed,
        ),
        (
            "a source outside",
            udp(address("fd79::2"), ORIGIN6, 64, 8),
            DropReason::SourceNotAllowed,
        ),
        (
            "another client",
            udp(INNER6, address("fd78::3"), 64, 8),
            DropReason::BetweenClients,
        ),
        (
            "the gateway",
            udp(INNER6, address("fd77:2::1"), 64, 8),
            DropReason::ToGateway,
        ),
        (
            "no hops left",
            udp(INNER6, ORIGIN6, 1, 8),
            DropReason::TtlExceeded,
        ),
        (
            "too large",
            udp(INNER6, ORIGIN6, 64, 1380),
            DropReason::TooLarge,
        ),
        (
            "nowhere",
            udp(INNER6, address("2001:db8::1"), 64, 8),
            DropReason::NoRoute,
        ),
        (
            "a link of ours",
            udp(INNER6, address("fe80::1"), 64, 8),
            DropReason::PrivateNetwork,
        ),
        (
            "elsewhere",
            udp(INNER6, address("fd99::1"), 64, 8),
            DropReason::NotOurInterface,
        ),
        (
            "unknown neighbour",
            udp(INNER6, address("fd77:2::9"), 64, 8),
            DropReason::NeighbourUnresolved,
        ),
    ];
    let unknown = Neighbour {
        interface: 2,
        address: address("fd77:2::9").into(),
    };
    are_refused_up(up, unknown);
    let down: [Refused; 4] = [
        (
            "a client's address, from outside",
            udp(address("fd78::3"), INNER6, 64, 8),
            DropReason::BetweenClients,
        ),
        (
            "nobody's address",
            udp(ORIGIN6, address("fd78::999"), 64, 8),
            DropReason::NoSession,
        ),
        (
            "no hops left",
            udp(ORIGIN6, INNER6, 1, 8),
            DropReason::TtlExceeded,
        ),
        (
            "too large",
            udp(ORIGIN6, INNER6, 64, 1380),
            DropReason::TooLarge,
        ),
    ];
    are_refused_down(down);
}

#[test]
fn frames_that_are_not_what_they_say_are_refused() {
    let inner = || ethernet(1, &udp(ORIGIN6, INNER6, 64, 100));
    let changed = |mut frame: Vec<u8>, at: usize, value: u8| {
        frame[at] = value;
        frame
    };
    let shortened = |mut frame: Vec<u8>, bytes: usize| {
        frame.truncate(bytes);
        frame
    };
    let cases: [(&str, Vec<u8>, DropReason); 8] = [
        (
            "IPv6 as IPv4",
            changed(changed(inner(), 12, 8), 13, 0),
            DropReason::OuterMalformed,
        ),
        (
            "IPv4 as IPv6",
            changed(inner(), ETHERNET_BYTES, 0x45),
            DropReason::OuterMalformed,
        ),
        (
            "longer than it is",
            changed(inner(), ETHERNET_BYTES + 5, 109),
            DropReason::OuterMalformed,
        ),
        (
            "cut within its header",
            shortened(inner(), ETHERNET_BYTES + 39),
            DropReason::OuterMalformed,
        ),
        (
            "WireGuard behind an extension header",
            changed(outer(b"anything"), ETHERNET_BYTES + 6, 0),
            DropReason::OuterMalformed,
        ),
        (
            "another port",
            changed(outer(b"anything"), ETHERNET_BYTES + 43, 1),
            DropReason::NotSteered,
        ),
        (
            "another address of ours",
            changed(outer(b"anything"), ETHERNET_BYTES + 39, 9),
            DropReason::NotSteered,
        ),
        (
            "a datagram longer than its packet",
            changed(outer(b"anything"), ETHERNET_BYTES + 45, 17),
            DropReason::OuterMalformed,
        ),
    ];
    for (what, frame, reason) in cases {
        let port = usize::from(frame[5] == OUR_MACS[1][5]);
        let mut bench = Bench::connected();
        assert_eq!(bench.frame(PortIndex(port as u8), &frame), None, "{what}");
        assert_eq!(bench.dropped(), [(reason, 1)], "{what}");
        assert_eq!(bench.usage(), 0, "{what}");
    }
}

#[test]
fn who_cannot_be_reached_over_ipv6_is_not_billed() {
    let mut bench = Bench::connected();
    let (ask, _asked) = mpsc::channel();
    let resolve = Box::new(move |neighbour| ask.send(neighbour).unwrap());
    // The same gateway, without an address of that version.
    bench.path = EthernetPath::new(Ipv4Addr::from(GATEWAY), 51820, resolve);
    bench.path.replace_forwarding(Arc::new(forwarding()));
    bench
        .plane
        .change_endpoint(SessionIndex(3), "[fd77:1::2]:40000".parse().unwrap());
    assert_eq!(bench.down(&super::udp(ORIGIN, INNER, 64, 8)), None);
    assert_eq!(bench.dropped(), [(DropReason::NoRoute, 1)]);
    assert_eq!(bench.usage(), 0);
}

#[test]
fn a_greeting_over_ipv6_waits_for_its_neighbour_and_names_our_address() {
    let mut bench = Bench::new();
    let mut unknown = forwarding();
    unknown.neighbours.clear();
    bench.path.replace_forwarding(Arc::new(unknown));
    let mut session = bench.plane.remove(SessionIndex(3)).unwrap();
    // As after a restart: where it is, is known, but not at which address it knew us.
    session.resume_at(Endpoint {
        remote: SocketAddr::new(CLIENT6.into(), 40_000),
        local: Ipv4Addr::from(GATEWAY).into(),
    });
    bench.plane.install(session);
    assert_eq!(bench.down(&udp(ORIGIN6, INNER6, 64, 8)), None);
    assert_eq!(bench.path.waiting(), 1);
    bench.path.replace_forwarding(Arc::new(forwarding()));
    let mut out = [0; BUFFER];
    let sent = bench.path.retry_waiting(&bench.plane, &mut out);
    let sent = sent.expect("it waited");
    assert_eq!(sent.port, CLIENT_PORT);
    let frame = out[..sent.bytes].to_vec();
    assert_eq!(frame[OUTER6_BYTES], 1, "a handshake initiation");
    opened(&mut bench, &frame);
}
