//! What is said of packets that go no further: to whom, from where, on whose account, how often.

use super::*;
use crate::packet::Ip;
use crate::solicited::Solicited;
use std::net::SocketAddr;

/// Of each version a packet up and one down, for a client and an origin.
fn packets(hops: u8, payload_bytes: usize) -> [(Vec<u8>, Vec<u8>); 2] {
    [
        (
            udp(INNER, ORIGIN, hops, payload_bytes),
            udp(ORIGIN, INNER, hops, payload_bytes),
        ),
        (
            ipv6::udp(INNER6, ORIGIN6, hops, payload_bytes),
            ipv6::udp(ORIGIN6, INNER6, hops, payload_bytes),
        ),
    ]
}

/// Checks a message by its type and whom it quotes.
fn check(message: &[u8], from: IpAddr, to: IpAddr, reason: DropReason, about: &[u8]) {
    let ip = Ip::parse(message).unwrap();
    assert_eq!((ip.source, ip.destination), (from, to));
    let icmp = &message[ip.header_bytes..];
    let expected: &[u8] = match (reason, from.is_ipv4()) {
        (DropReason::TtlExceeded, true) => &[11, 0],
        (DropReason::TtlExceeded, false) => &[3, 0],
        (_, true) => &[3, 4],
        (_, false) => &[2, 0],
    };
    assert_eq!(icmp[..2], *expected);
    let mtu = u32::from_be_bytes(icmp[4..8].try_into().unwrap());
    let expected = if reason == DropReason::TooLarge {
        1420
    } else {
        0
    };
    assert_eq!(mtu, expected);
    assert_eq!(icmp[8..], about[..icmp.len() - 8]);
}

const CASES: [(u8, usize, DropReason); 3] = [
    (1, 8, DropReason::TtlExceeded),
    (0, 1000, DropReason::TtlExceeded),
    (64, 1440, DropReason::TooLarge),
];

#[test]
fn a_client_is_told_through_its_tunnel_and_pays_for_that_alone() {
    for (hops, payload_bytes, reason) in CASES {
        let gateways = [
            Ipv4Addr::new(10, 78, 0, 1).into(),
            "fd78::1".parse().unwrap(),
        ];
        for ((up, _), gateway) in packets(hops, payload_bytes).into_iter().zip(gateways) {
            let mut bench = Bench::connected();
            let (port, frame) = bench.up(&up).unwrap();
            assert_eq!(port, CLIENT_PORT);
            let message = bench.client_opens(&frame[OUTER_BYTES..]);
            let client = Ip::parse(&up).unwrap().source;
            check(&message, gateway, client, reason, &up);
            assert_eq!(bench.dropped(), [(reason, 1)]);
            assert_eq!(bench.usage(), message.len() as u64);
            // Without credit there is nothing for it.
            let mut bench = Bench::connected();
            bench.metering.credit.close(SLOT);
            assert_eq!(bench.up(&up), None);
            assert_eq!(bench.dropped(), [(reason, 1)]);
            assert_eq!(bench.usage(), 0);
        }
    }
}

#[test]
fn who_sends_from_outside_is_told_by_the_interface_that_he_reached_and_nobody_pays() {
    for (hops, payload_bytes, reason) in CASES {
        let ours = [IpAddr::from(UPLINK), UPLINK6.into()];
        for ((_, down), ours) in packets(hops, payload_bytes).into_iter().zip(ours) {
            let mut bench = Bench::connected();
            let (port, frame) = bench.down(&down).unwrap();
            assert_eq!(port, UPLINK_PORT);
            assert_eq!(frame[..6], ORIGIN_MAC);
            assert_eq!(frame[6..12], OUR_MACS[1]);
            let message = &frame[ETHERNET_BYTES..];
            let sender = Ip::parse(&down).unwrap().source;
            check(message, ours, sender, reason, &down);
            assert_eq!(bench.dropped(), [(reason, 1)]);
            assert_eq!(bench.usage(), 0);
        }
    }
}

#[test]
fn behind_shared_addresses_the_sender_is_quoted_what_it_sent() {
    let mut bench = Bench::connected();
    bench.plane.translation = Some(Translation::new(&pool(), 8, PoolPart::WHOLE, [7; 32]).unwrap());
    let (_, frame) = bench.up(&udp(INNER, ORIGIN, 64, 8)).unwrap();
    let sent = Ipv4::parse(&frame[ETHERNET_BYTES..]).unwrap();
    let at = ETHERNET_BYTES + IPV4_BYTES;
    let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let usage = bench.usage();
    for (hops, payload_bytes, reason) in CASES {
        let mut about = Vec::new();
        let builder = PacketBuilder::ipv4(ORIGIN, sent.source.octets(), hops).udp(2, port);
        builder.write(&mut about, &vec![3; payload_bytes]).unwrap();
        let (_, frame) = bench.down(&about).unwrap();
        let message = &frame[ETHERNET_BYTES..];
        check(message, UPLINK.into(), ORIGIN.into(), reason, &about);
    }
    // What nobody asked for is not answered, nor does the client hear of the public address.
    let unasked = udp([10, 77, 2, 2], [198, 51, 100, 3], 1, 8);
    assert_eq!(bench.down(&unasked), None);
    assert_eq!(bench.usage(), usage);
    let up = udp(INNER, ORIGIN, 1, 8);
    let (_, frame) = bench.up(&up).unwrap();
    let message = bench.client_opens(&frame[OUTER_BYTES..]);
    let gateway = Ipv4Addr::new(10, 78, 0, 1).into();
    check(
        &message,
        gateway,
        INNER.into(),
        DropReason::TtlExceeded,
        &up,
    );
}

#[test]
fn a_flood_of_them_is_answered_now_and_then() {
    let mut bench = Bench::connected();
    let [(up, down), _] = packets(1, 8);
    let answered = (0..100).filter(|_| bench.down(&down).is_some()).count();
    assert_eq!(answered, 10);
    assert_eq!(bench.up(&up), None, "one budget for both ways");
    assert_eq!(bench.dropped(), [(DropReason::TtlExceeded, 101)]);
    bench.plane.begin(5_000_000_000);
    assert!(bench.down(&down).is_some());
}

#[test]
fn nobody_is_told_who_cannot_be_reached_or_must_not_be_answered() {
    let mut bench = Bench::connected();
    let groups = [
        udp(INNER, [224, 0, 0, 251], 1, 8),
        udp(INNER, [255, 255, 255, 255], 1, 8),
        ipv6::udp(INNER6, "ff02::fb".parse().unwrap(), 1, 8),
        ipv6::udp(INNER6, "fe80::1".parse().unwrap(), 1, 8),
    ];
    for packet in groups {
        assert_eq!(bench.up(&packet), None);
    }
    // From where there is no way back.
    for source in [[1, 2, 3, 4], [0, 0, 0, 0], [10, 77, 2, 1]] {
        assert_eq!(bench.down(&udp(source, INNER, 1, 8)), None);
    }
    // A link's own addresses are closed before a hop is looked at.
    let expected = [
        (DropReason::PrivateNetwork, 1),
        (DropReason::TtlExceeded, 6),
    ];
    assert_eq!(bench.dropped(), expected);
    // Over a tunnel that leads nowhere.
    let remote: SocketAddr = "1.2.3.4:5".parse().unwrap();
    bench.plane.change_endpoint(SessionIndex(3), remote);
    let mut out = [0; BUFFER];
    let Bench { plane, path, .. } = &mut bench;
    let about = udp(INNER, ORIGIN, 1, 8);
    out[ETHERNET_BYTES..ETHERNET_BYTES + about.len()].copy_from_slice(&about);
    let ip = Ip::parse(&about).unwrap();
    let reason = DropReason::TtlExceeded;
    let told = plane.answer_client(path, SessionIndex(3), reason, &ip, &mut out);
    assert_eq!(told, Err(reason));
    assert_eq!(bench.usage(), 0);
}

#[test]
fn an_unsolicited_packet_is_not_answered() {
    for (hops, payload_bytes, _) in CASES {
        let mut bench = Bench::connected();
        let session = bench.plane.sessions.get_mut(SessionIndex(3)).unwrap();
        session.solicited = Some(Box::new(Solicited::new(1)));
        let stranger = "2001:db8::bad".parse().unwrap();
        assert_eq!(
            bench.down(&ipv6::udp(stranger, INNER6, hops, payload_bytes)),
            None
        );
        assert_eq!(bench.dropped(), [(DropReason::Unsolicited, 1)]);
    }
}
