//! ICMP as RFC 5508 asks for it. Named by requirement.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{Ipv4Addr, SocketAddrV4};

use support::{World, check_sums, ends, icmp, inner, internet_checksum, mend_header, remote};
use topnet_nat::Protocol::{Icmp, Tcp, Udp};
use topnet_nat::{Protocol, Refusal};

const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// Where the embedded packet begins in an error.
const EMBEDDED: usize = 28;

#[test]
fn req_1_queries_pass_and_their_replies_return() {
    let mut world = World::new(|_| ());
    let external = world.call(Icmp, 1, inner(1, 7), remote(1, 0)).unwrap();
    assert_eq!(
        world.answer(Icmp, remote(1, 0), external),
        Ok((1, inner(1, 7)))
    );
    assert_eq!(
        world.answer(Icmp, remote(2, 0), external),
        Err(Refusal::Filtered)
    );
    // The other way round nobody asked.
    let question = support::request(remote(1, external.port()), *external.ip(), b"");
    assert_eq!(world.back(&question), Err(Refusal::IcmpType));
    let answer = support::reply(*inner(1, 7).ip(), remote(1, 7), b"");
    assert_eq!(world.out(1, &answer), Err(Refusal::IcmpType));
}

#[test]
fn req_2_a_query_lives_for_a_minute() {
    let mut world = World::new(|_| ());
    let external = world.call(Icmp, 1, inner(1, 7), remote(1, 0)).unwrap();
    world.wait(59);
    assert!(world.answer(Icmp, remote(1, 0), external).is_ok());
    world.wait(60);
    assert_eq!(
        world.answer(Icmp, remote(1, 0), external),
        Err(Refusal::NoMapping)
    );
}

/// A packet as it went out, and back inside from the error about it.
fn error_comes_back(protocol: Protocol, embedded_bytes: usize) {
    let mut world = World::new(|_| ());
    let (from, to) = (inner(1, 5000), remote(1, 80));
    let original = support::packet(protocol, from, to, true);
    let sent = world.out(1, &original).unwrap();
    let (external, _) = ends(&sent);
    let cut = embedded_bytes.min(sent.len());
    for kind in [3, 11, 12] {
        let error = icmp(ROUTER, *external.ip(), kind, &sent[..cut]);
        let (subscriber, received) = world.back(&error).unwrap();
        assert_eq!(subscriber, 1);
        let (source, destination) = ends(&received);
        assert_eq!((*source.ip(), *destination.ip()), (ROUTER, *from.ip()));
        // Byte for byte what the subscriber sent, checksums included; but for a TCP checksum of
        // which half is missing.
        let same = if (protocol, cut) == (Tcp, 37) {
            36
        } else {
            cut
        };
        let embedded = &received[EMBEDDED..];
        assert_eq!(embedded.len(), cut);
        assert_eq!(embedded[..same], original[..same], "{protocol:?} {kind}");
    }
}

#[test]
fn req_4_errors_about_what_went_out_come_back() {
    for protocol in [Udp, Tcp, Icmp] {
        for embedded_bytes in [28, 29, 36, 37, 38, 39, 1500] {
            error_comes_back(protocol, embedded_bytes);
        }
    }
}

#[test]
fn req_3_header_options_are_traversed() {
    let mut world = World::new(|_| ());
    let (from, to) = (inner(1, 5000), remote(1, 80));
    let external = world.call(Udp, 1, from, to).unwrap();
    let with_options = |source, destination| {
        let plain = support::udp(source, destination, b"x");
        let mut bytes = [&plain[..20], &[1, 1, 1, 0], &plain[20..]].concat();
        bytes[0] = 0x46;
        bytes[3] += 4;
        mend_header(&mut bytes);
        bytes
    };
    let sent = world.out(1, &with_options(from, to)).unwrap();
    assert_eq!(sent, with_options(external, to));
    let error = icmp(ROUTER, *external.ip(), 3, &sent);
    let (_, received) = world.back(&error).unwrap();
    assert_eq!(received[EMBEDDED..], with_options(from, to));
}

/// An error from the subscriber about what it received names the external end.
#[test]
fn req_5_errors_about_what_came_in_go_out() {
    for protocol in [Udp, Tcp, Icmp] {
        let mut world = World::new(|_| ());
        let (from, to) = (inner(1, 5000), remote(1, 80));
        let external = world.call(protocol, 1, from, to).unwrap();
        let answer = support::packet(protocol, to, external, false);
        let (_, received) = world.back(&answer).unwrap();
        for source in [*from.ip(), Ipv4Addr::new(10, 9, 9, 9)] {
            let sent = world.out(1, &icmp(source, *to.ip(), 3, &received)).unwrap();
            let (source, destination) = ends(&sent);
            assert_eq!((source.ip(), destination.ip()), (external.ip(), to.ip()));
            assert_eq!(sent[EMBEDDED..], answer, "{protocol:?}");
        }
        let elsewhere = icmp(*from.ip(), *remote(2, 0).ip(), 3, &received);
        assert_eq!(world.out(1, &elsewhere), Err(Refusal::IcmpErrorUnmatched));
        let of_another = icmp(*from.ip(), *to.ip(), 3, &received);
        assert_eq!(world.out(2, &of_another), Err(Refusal::IcmpErrorUnmatched));
    }
}

#[test]
fn req_4_errors_about_nothing_here_are_refused() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 80)).unwrap();
    let mut other_port = external;
    other_port.set_port(external.port() ^ 1);
    let to = remote(1, 80);
    type Case = (&'static str, Protocol, SocketAddrV4, SocketAddrV4);
    let cases: [Case; 4] = [
        ("port", Udp, other_port, to),
        ("remote", Udp, external, remote(2, 80)),
        ("protocol", Tcp, external, to),
        ("direction", Udp, to, external),
    ];
    for (what, protocol, source, destination) in cases {
        let embedded = support::packet(protocol, source, destination, true);
        let error = icmp(ROUTER, *external.ip(), 3, &embedded);
        assert_eq!(
            world.back(&error),
            Err(Refusal::IcmpErrorUnmatched),
            "{what}"
        );
    }
    let embedded = support::udp(external, to, b"");
    let misdirected = icmp(ROUTER, support::POOL[0], 3, &embedded);
    let other = icmp(ROUTER, support::POOL[1], 3, &embedded);
    let refused = [misdirected, other].map(|error| world.back(&error).is_err());
    assert_eq!(refused.iter().filter(|refused| **refused).count(), 1);
}

#[test]
fn req_3_damaged_errors_are_refused() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 80)).unwrap();
    let embedded = support::udp(external, remote(1, 80), b"12345678");
    let error = icmp(ROUTER, *external.ip(), 3, &embedded);
    assert!(world.back(&error).is_ok());
    let sum_anew = |bytes: &mut Vec<u8>| {
        bytes[22..24].copy_from_slice(&[0, 0]);
        let sum = internet_checksum(&bytes[20..]);
        bytes[22..24].copy_from_slice(&sum.to_be_bytes());
    };
    type Damage = (&'static str, bool, fn(&mut Vec<u8>));
    let cases: [Damage; 7] = [
        ("ICMP checksum", false, |b| b[40] ^= 1),
        ("embedded header's checksum", true, |b| {
            b[EMBEDDED + 10] ^= 1
        }),
        ("embedded version", true, |b| b[EMBEDDED] = 0x65),
        ("embedded header too long", true, |b| b[EMBEDDED] = 0x4f),
        ("embedded later fragment", true, |b| {
            b[EMBEDDED + 7] = 1;
            mend_header(&mut b[EMBEDDED..]);
        }),
        ("seven bytes of transport", true, |b| {
            b.truncate(EMBEDDED + 27);
            b[3] = b.len() as u8;
            mend_header(b);
        }),
        ("a fragment itself", true, |b| {
            b[6] = 0x20;
            mend_header(b);
        }),
    ];
    for (what, sums_anew, damage) in cases {
        let mut bad = error.clone();
        damage(&mut bad);
        if sums_anew {
            sum_anew(&mut bad);
        }
        assert_eq!(world.back(&bad), Err(Refusal::IcmpErrorInvalid), "{what}");
    }
}

/// Neither prolongs nor ends anything.
#[test]
fn req_6_errors_leave_flows_alone() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 80)).unwrap();
    let embedded = support::udp(external, remote(1, 80), b"");
    let error = icmp(ROUTER, *external.ip(), 3, &embedded);
    world.wait(299);
    world.back(&error).unwrap();
    assert!(world.answer(Udp, remote(1, 80), external).is_ok());
    world.wait(299);
    world.back(&error).unwrap();
    world.wait(1);
    assert_eq!(world.back(&error), Err(Refusal::IcmpErrorUnmatched));
}

#[test]
fn req_11_other_messages_are_dropped() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 80)).unwrap();
    let embedded = support::udp(external, remote(1, 80), b"");
    for kind in [4, 5, 9, 10, 13, 14, 17, 200] {
        let message = icmp(ROUTER, *external.ip(), kind, &embedded);
        assert_eq!(world.back(&message), Err(Refusal::IcmpType), "{kind}");
        assert_eq!(world.out(1, &message), Err(Refusal::IcmpType), "{kind}");
    }
}

#[test]
fn an_embedded_udp_checksum_of_none_stays_none() {
    let mut world = World::new(|_| ());
    let external = world.call(Udp, 1, inner(1, 5000), remote(1, 80)).unwrap();
    let mut embedded = support::udp(external, remote(1, 80), b"x");
    embedded[26..28].copy_from_slice(&[0, 0]);
    let (_, received) = world
        .back(&icmp(ROUTER, *external.ip(), 3, &embedded))
        .unwrap();
    check_sums(&received);
    assert_eq!(received[EMBEDDED + 26..EMBEDDED + 28], [0, 0]);
}
