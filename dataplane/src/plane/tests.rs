//! The plane against a WireGuard client in memory: every drop, the bill, and no panic.

mod answers;
mod bench;
mod handshakes;
mod ipv6;
mod relay;
mod shared_addresses;
mod taps;
mod team;

use self::bench::*;
use self::shared_addresses::pool;
use super::*;
use crate::forwarding::{Forwarding, Neighbour, Port, PortIndex, Route, RouteTable, RouteTarget};
use crate::handshakes::Answer;
use crate::io::{EthernetPath, GatewayAddresses};
use crate::packet::{ETHERNET_BYTES, IPV4_BYTES, Ipv4, MacAddress, OUTER_BYTES};
use crate::session::{Payer, SessionPlan};
use crate::translation::PoolLevels;
use boringtun::x25519::{PublicKey, StaticSecret};
use etherparse::PacketBuilder;
use proptest::prelude::*;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use topnet_account::ChannelId;
use topnet_checksum::checksum;
use topnet_config::Reach;
use topnet_nat::{PoolPart, Refusal};
use topnet_unit::{Attachment, BootId, CreditGrant, Handover, Header, Slot};

#[test]
fn packets_pass_both_ways_and_are_billed_once() {
    let mut bench = Bench::connected();
    let packet = udp(INNER, ORIGIN, 64, 100);
    let (port, frame) = bench.up(&packet).unwrap();
    assert_eq!(port, UPLINK_PORT);
    assert_eq!(frame[..6], ORIGIN_MAC);
    assert_eq!(frame[6..12], OUR_MACS[1]);
    let forwarded = Ipv4::parse(&frame[ETHERNET_BYTES..]).unwrap();
    assert_eq!((forwarded.ttl, forwarded.total_bytes), (63, packet.len()));
    assert_eq!(frame[ETHERNET_BYTES + IPV4_BYTES..], packet[IPV4_BYTES..]);
    assert_eq!(bench.usage(), packet.len() as u64);

    // Padded, as short Ethernet frames are; the padding is not billed.
    let packet = udp(ORIGIN, INNER, 64, 1);
    let mut padded = packet.clone();
    padded.resize(46, 0);
    let (port, frame) = bench.down(&padded).unwrap();
    assert_eq!(port, CLIENT_PORT);
    let mut buffer = [0; 2048];
    let received = bench
        .client
        .decapsulate(None, &frame[OUTER_BYTES..], &mut buffer);
    let TunnResult::WriteToTunnelV4(received, from) = received else {
        panic!("{received:?}");
    };
    assert_eq!((received.len(), from.octets()), (packet.len(), ORIGIN));
    // Its length is not told: it is sealed with zeros up to a multiple of 16.
    assert_eq!(
        frame.len(),
        OUTER_BYTES + WIREGUARD_BYTES + packet.len().next_multiple_of(PADDING_BYTES)
    );
    assert_eq!(bench.usage(), 128 + packet.len() as u64);
    assert_eq!(bench.dropped(), []);
}

#[test]
fn every_refusal_has_its_reason_and_no_bill() {
    let options = {
        let mut packet = udp(INNER, ORIGIN, 64, 8);
        packet[3] = 19;
        let sum = {
            packet[10..12].fill(0);
            checksum(&packet[..IPV4_BYTES])
        };
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    let up: [Refused; 9] = [
        (
            "another source",
            udp([10, 78, 0, 3], ORIGIN, 64, 8),
            DropReason::SourceNotAllowed,
        ),
        (
            "another client",
            udp(INNER, [10, 78, 0, 3], 64, 8),
            DropReason::BetweenClients,
        ),
        (
            "the gateway",
            udp(INNER, [10, 77, 2, 1], 64, 8),
            DropReason::ToGateway,
        ),
        (
            "no hops left",
            udp(INNER, ORIGIN, 1, 8),
            DropReason::TtlExceeded,
        ),
        (
            "too large",
            udp(INNER, ORIGIN, 64, 1400),
            DropReason::TooLarge,
        ),
        (
            "nowhere",
            udp(INNER, [1, 2, 3, 4], 64, 8),
            DropReason::NoRoute,
        ),
        (
            "elsewhere",
            udp(INNER, [192, 168, 0, 1], 64, 8),
            DropReason::NotOurInterface,
        ),
        (
            "unknown neighbour",
            udp(INNER, [10, 77, 2, 9], 64, 8),
            DropReason::NeighbourUnresolved,
        ),
        (
            "a length below its header",
            options,
            DropReason::InnerMalformed,
        ),
    ];
    let unknown = Neighbour {
        interface: 2,
        address: [10, 77, 2, 9].into(),
    };
    are_refused_up(up, unknown);
    let down: [Refused; 4] = [
        (
            "a client's address, from outside",
            udp([10, 78, 0, 3], INNER, 64, 8),
            DropReason::BetweenClients,
        ),
        (
            "nobody's address",
            udp(ORIGIN, [10, 78, 9, 9], 64, 8),
            DropReason::NoSession,
        ),
        (
            "no hops left",
            udp(ORIGIN, INNER, 1, 8),
            DropReason::TtlExceeded,
        ),
        (
            "too large",
            udp(ORIGIN, INNER, 64, 1400),
            DropReason::TooLarge,
        ),
    ];
    are_refused_down(down);
}

/// What a client does wrong is its own: strays switch fair shares off, and it must not.
#[test]
fn only_what_is_nobody_s_is_a_stray() {
    let mut bench = Bench::connected();
    let strays = |bench: &Bench| bench.plane.fairness.strays();
    for destination in [[10, 0, 0, 1], [10, 78, 0, 3], [1, 2, 3, 4]] {
        assert_eq!(bench.up(&udp(INNER, destination, 64, 8)), None);
    }
    bench.metering.credit.grant(
        SLOT,
        CreditGrant {
            limit_bytes: 0,
            ..ENOUGH
        },
    );
    assert_eq!(bench.down(&udp(ORIGIN, INNER, 64, 8)), None);
    assert_eq!(strays(&bench), 0);
    assert_eq!(bench.client_sends(&[4; 40]), None);
    assert_eq!(bench.down(&udp(ORIGIN, [10, 78, 9, 9], 64, 8)), None);
    assert_eq!(strays(&bench), 2);
}

#[test]
fn a_peer_cannot_be_inside_the_tunnel() {
    let mut bench = Bench::connected();
    let mut buffer = [0; 2048];
    let packet = udp(INNER, ORIGIN, 64, 8);
    for source in [INNER, [10, 78, 0, 9]] {
        let TunnResult::WriteToNetwork(message) = bench.client.encapsulate(&packet, &mut buffer)
        else {
            panic!("no keys");
        };
        let builder = PacketBuilder::ipv4(source, GATEWAY, 64).udp(40_000, 51_820);
        let mut outer = Vec::new();
        builder.write(&mut outer, message).unwrap();
        assert_eq!(bench.frame(CLIENT_PORT, &ethernet(0, &outer)), None);
    }
    assert_eq!(bench.dropped(), [(DropReason::EndpointInside, 2)]);
    assert_eq!(bench.usage(), 0);
    let endpoint = bench.session().endpoint.unwrap();
    assert_eq!(endpoint.remote.ip(), IpAddr::from(CLIENT));
}

#[test]
fn foreign_frames_and_replays_are_dropped() {
    let mut bench = Bench::connected();
    let mut foreign = outer(b"anything");
    foreign[5] ^= 1;
    assert_eq!(bench.frame(CLIENT_PORT, &foreign), None);
    assert_eq!(bench.dropped(), [(DropReason::NotOurMac, 1)]);

    let mut bench = Bench::connected();
    let mut buffer = [0; 2048];
    let TunnResult::WriteToNetwork(message) = bench
        .client
        .encapsulate(&udp(INNER, ORIGIN, 64, 8), &mut buffer)
    else {
        panic!("no keys");
    };
    let message = message.to_vec();
    assert!(bench.client_sends(&message).is_some());
    let usage = bench.usage();
    assert_eq!(bench.client_sends(&message), None);
    assert_eq!(
        (bench.usage(), bench.dropped()),
        (usage, vec![(DropReason::Replayed, 1)])
    );
}

#[test]
fn a_removed_session_is_gone_and_its_key_may_come_back() {
    let mut bench = Bench::connected();
    let session = bench.plane.remove(SessionIndex(3)).unwrap();
    assert!(bench.plane.remove(SessionIndex(3)).is_none());
    assert_eq!(bench.up(&udp(INNER, ORIGIN, 64, 8)), None);
    assert_eq!(bench.down(&udp(ORIGIN, INNER, 64, 8)), None);
    let expected = [(DropReason::SessionUnknown, 1), (DropReason::NoSession, 1)];
    assert_eq!(bench.dropped(), expected);
    bench.plane.install(session);
    assert!(bench.up(&udp(INNER, ORIGIN, 64, 8)).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_that_arrives_panics_or_is_billed_beyond_its_bytes_and_the_limit(
        frames in prop::collection::vec(
            (any::<bool>(), 0usize..9, prop::collection::vec(any::<u8>(), 0..200), any::<u16>(), any::<u8>()),
            1..40,
        ),
        limit_bytes in 0u64..2000,
    ) {
        let mut bench = Bench::connected();
        bench.metering.credit.grant(SLOT, CreditGrant { limit_bytes, record_at_bytes: u64::MAX });
        for (uplink, kind, bytes, at, value) in frames {
            let mut frame = match kind {
                0 => bytes,
                1 => outer(&bytes),
                2 => ethernet(usize::from(uplink), &bytes),
                3 => {
                    let mut message = bytes;
                    message.resize(message.len().max(32), 0);
                    message[..8].copy_from_slice(&[4, 0, 0, 0, value % 4, 3, 0, 0]);
                    outer(&message)
                }
                4 => ethernet(1, &udp(ORIGIN, INNER, value, bytes.len())),
                5 => ipv6::outer(&bytes),
                6 => ethernet(1, &ipv6::udp(ORIGIN6, INNER6, value, bytes.len())),
                7 => {
                    let mut buffer = [0; 2048];
                    let inner = ipv6::udp(INNER6, ORIGIN6, value, bytes.len());
                    match bench.client.encapsulate(&inner, &mut buffer) {
                        TunnResult::WriteToNetwork(message) => ipv6::outer(message),
                        _ => unreachable!("connected"),
                    }
                }
                _ => {
                    let mut buffer = [0; 2048];
                    let inner = udp(INNER, ORIGIN, value, bytes.len());
                    match bench.client.encapsulate(&inner, &mut buffer) {
                        TunnResult::WriteToNetwork(message) => outer(message),
                        _ => unreachable!("connected"),
                    }
                }
            };
            // Every third frame is damaged somewhere.
            if at % 3 == 0 && !frame.is_empty() {
                let at = usize::from(at) % frame.len();
                frame[at] = value;
            }
            let before = bench.usage();
            let port = if uplink { UPLINK_PORT } else { CLIENT_PORT };
            let _ = bench.frame(port, &frame);
            let billed = bench.usage() - before;
            prop_assert!(billed <= frame.len() as u64);
            prop_assert!(bench.usage() <= limit_bytes);
        }
    }
}
