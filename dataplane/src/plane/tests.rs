//! The plane against a WireGuard client in memory: every drop, the bill, and no panic.

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
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use topnet_account::ChannelId;
use topnet_checksum::checksum;
use topnet_config::Reach;
use topnet_nat::{PoolPart, Refusal};
use topnet_unit::{Attachment, BootId, CreditGrant, Handover, Header, Slot};

const SLOT: Slot = Slot {
    index: 1,
    generation: 1,
};
const GATEWAY: [u8; 4] = [10, 77, 1, 1];
const CLIENT: [u8; 4] = [10, 77, 1, 2];
const UPLINK: [u8; 4] = [10, 77, 2, 1];
const ORIGIN: [u8; 4] = [10, 77, 2, 2];
const INNER: [u8; 4] = [10, 78, 0, 2];
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 2);
const UPLINK6: Ipv6Addr = Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 1);
const ORIGIN6: Ipv6Addr = Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 2);
const INNER6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2);
const CLIENT_PORT: PortIndex = PortIndex(0);
const UPLINK_PORT: PortIndex = PortIndex(1);
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ORIGIN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OUR_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 1, 1]];
const BUFFER: usize = crate::io::FRAME_DATA_BYTES;
const ENOUGH: CreditGrant = CreditGrant {
    limit_bytes: 1 << 40,
    record_at_bytes: u64::MAX,
};

struct Bench {
    plane: Plane,
    path: EthernetPath,
    metering: Attachment,
    screener: Screener,
    client: Tunn,
    now_ms: u64,
    asked: mpsc::Receiver<Neighbour>,
}

fn forwarding() -> Forwarding {
    let route = |network: &str, prefix_bits, target| Route {
        network: network.parse().unwrap(),
        prefix_bits,
        metric: 0,
        target,
    };
    let link = |interface| RouteTarget::Forward {
        interface,
        gateway: None,
    };
    let table = RouteTable::from_iter([
        route("10.77.1.0", 24, link(1)),
        route("10.77.2.0", 24, link(2)),
        route("192.168.0.0", 16, link(3)),
        route("10.77.2.1", 32, RouteTarget::Local),
        route("fd77:1::", 64, link(1)),
        route("fd77:2::", 64, link(2)),
        route("fd99::", 16, link(3)),
        route("fd77:2::1", 128, RouteTarget::Local),
    ]);
    let known = |interface, address: IpAddr, mac| {
        let neighbour = Neighbour { interface, address };
        (neighbour, MacAddress(mac))
    };
    Forwarding {
        tables: vec![table].into(),
        neighbours: [
            known(1, CLIENT.into(), CLIENT_MAC),
            known(2, ORIGIN.into(), ORIGIN_MAC),
            known(1, CLIENT6.into(), CLIENT_MAC),
            known(2, ORIGIN6.into(), ORIGIN_MAC),
        ]
        .into(),
        ports: vec![
            Port {
                interface: 1,
                mac: MacAddress(OUR_MACS[0]),
            },
            Port {
                interface: 2,
                mac: MacAddress(OUR_MACS[1]),
            },
        ],
    }
}

fn config() -> PlaneConfig {
    PlaneConfig {
        inner: Some(InnerNetwork::new(
            "10.78.0.0/16".parse().unwrap(),
            Some("fd78::/64".parse().unwrap()),
            Ipv4Addr::new(10, 78, 0, 1),
        )),
        inner_mtu: 1420,
        sessions_max: 8,
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(|plane| plane)
    }

    /// A bench whose plane is changed before it has a session.
    fn with(change: impl FnOnce(Plane) -> Plane) -> Self {
        let header = Header {
            boot: BootId([1; 16]),
            slots: 4,
            workers: 1,
            records: 8,
        };
        let (handover, usage, credit, mut rings) = Handover::in_memory(header).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        handover.send(&ours).unwrap();
        let accounting = Accounting::new(
            Arc::new(usage),
            Arc::new(credit),
            rings.remove(0),
            Arc::new(AtomicU64::new(0)),
        );
        let identity = Arc::new(Identity::new([9; 32]));
        let (ask, asked) = mpsc::channel();
        let mut plane = change(Plane::new(
            config(),
            Arc::clone(&identity),
            accounting,
            Arc::default(),
            Instant::now(),
        ));
        let gateway = GatewayAddresses {
            v4: GATEWAY.into(),
            v6: Some(GATEWAY6),
        };
        plane.change_reach(Arc::new(Reach {
            // The world of these tests is private.
            private: ["10.77.0.0/16", "192.168.0.0/16", "fd77::/16", "fd99::/16"]
                .map(|it| it.parse().unwrap())
                .into(),
            ..Reach::default()
        }));
        let resolve = Box::new(move |neighbour| ask.send(neighbour).unwrap());
        let uplink = GatewayAddresses {
            v4: UPLINK.into(),
            v6: Some(UPLINK6),
        };
        let mut path = EthernetPath::new(gateway, 51820, resolve).answering_from(uplink);
        path.replace_forwarding(Arc::new(forwarding()));
        let private = StaticSecret::from([5; 32]);
        let payer = Payer {
            channel: ChannelId([1; 32]),
            slot: SLOT,
        };
        let public_key = PublicKey::from(&private).to_bytes();
        let plan = SessionPlan::of_client(SessionIndex(3), public_key, payer, INNER.into());
        plane.install(Box::new(Session::new(&identity, plan)));
        let client = Tunn::new(private, identity.public, None, None, 1, None);
        Self {
            screener: plane.screener(),
            now_ms: 0,
            plane,
            path,
            metering: Attachment::receive(&theirs).unwrap(),
            client,
            asked,
        }
    }

    /// A bench whose tunnel is up and has credit.
    fn connected() -> Self {
        Self::new().connect()
    }

    fn connect(self) -> Self {
        let mut bench = self;
        let mut buffer = [0; 2048];
        let TunnResult::WriteToNetwork(init) =
            bench.client.format_handshake_initiation(&mut buffer, false)
        else {
            panic!("no initiation");
        };
        let init = init.to_vec();
        let answer = bench.client_sends(&init).expect("an answer");
        assert_eq!(answer.0, CLIENT_PORT);
        let keepalive = bench.client_receives(&answer.1).expect("a keepalive");
        assert_eq!(bench.client_sends(&keepalive), None);
        assert_eq!(bench.dropped(), []);
        bench.metering.credit.grant(SLOT, ENOUGH);
        bench
    }

    /// What the plane does with a frame.
    fn frame(&mut self, port: PortIndex, frame: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
        // As in a frame of AF_XDP's: what came before stands behind it.
        let arrived_bytes = frame.len();
        let mut frame = [frame, &[0xab; PADDING_BYTES - 1]].concat();
        let mut out = [0; BUFFER];
        let Self {
            plane,
            path,
            screener,
            ..
        } = self;
        let mut transmit = path.handle(plane, port, &mut frame, arrived_bytes, &mut out);
        // What a worker and its screener do in two threads.
        self.now_ms += 100;
        if screener.turn(self.now_ms).looked_at > 0 {
            assert_eq!(transmit, None, "an initiation is answered later");
            let answers = [Answer::Handshake, Answer::Cookie];
            let waiting = answers
                .into_iter()
                .find(|answer| plane.answers(*answer) > 0);
            transmit = waiting.and_then(|answer| path.answer(plane, answer, &mut out));
        }
        self.plane.settle(0);
        transmit.map(|transmit| (transmit.port, out[..transmit.bytes].to_vec()))
    }

    /// What the plane does with a WireGuard message from the client.
    fn client_sends(&mut self, message: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
        self.frame(CLIENT_PORT, &outer(message))
    }

    /// What the client does with a frame: an answer for the network.
    fn client_receives(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = [0; 2048];
        match self
            .client
            .decapsulate(None, &frame[OUTER_BYTES..], &mut buffer)
        {
            TunnResult::WriteToNetwork(answer) => Some(answer.to_vec()),
            _ => None,
        }
    }

    /// An inner packet through the tunnel.
    fn up(&mut self, packet: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
        let mut buffer = [0; 2048];
        let TunnResult::WriteToNetwork(message) = self.client.encapsulate(packet, &mut buffer)
        else {
            panic!("the client has no keys");
        };
        let message = message.to_vec();
        self.client_sends(&message)
    }

    fn down(&mut self, packet: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
        self.frame(UPLINK_PORT, &ethernet(1, packet))
    }

    fn session(&mut self) -> &mut Session {
        self.plane.sessions.get_mut(SessionIndex(3)).unwrap()
    }

    /// The inner packet that the client takes out of a message.
    fn client_opens(&mut self, message: &[u8]) -> Vec<u8> {
        let mut buffer = [0; 2048];
        match self.client.decapsulate(None, message, &mut buffer) {
            TunnResult::WriteToTunnelV4(packet, _) => packet.to_vec(),
            TunnResult::WriteToTunnelV6(packet, _) => packet.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn usage(&self) -> u64 {
        self.metering.usage.totals(SLOT.index).bytes
    }

    fn dropped(&self) -> Vec<(DropReason, u64)> {
        let drops = [&self.plane.drops, &self.screener.drops()];
        let packets = |reason| drops.iter().map(|drops| drops.packets(reason)).sum();
        let count = |reason: &DropReason| (*reason, packets(*reason));
        DropReason::ALL
            .iter()
            .map(count)
            .filter(|(_, packets)| *packets > 0)
            .collect()
    }
}

/// True if the sender of a packet that is dropped for this reason is told so.
fn is_answered(reason: DropReason) -> bool {
    matches!(reason, DropReason::TtlExceeded | DropReason::TooLarge)
}

fn ethernet(port: usize, packet: &[u8]) -> Vec<u8> {
    let mut frame = OUR_MACS[port].to_vec();
    frame.extend(CLIENT_MAC);
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    frame.extend(if is_v6 { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(packet);
    frame
}

fn outer(message: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(CLIENT, GATEWAY, 64).udp(40_000, 51_820);
    let mut packet = Vec::new();
    builder.write(&mut packet, message).unwrap();
    ethernet(0, &packet)
}

fn udp(source: [u8; 4], destination: [u8; 4], ttl: u8, payload_bytes: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(source, destination, ttl).udp(1, 2);
    builder.write(&mut packet, &vec![7; payload_bytes]).unwrap();
    packet
}

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
    let up: [(&str, Vec<u8>, DropReason); 9] = [
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
    for (what, packet, reason) in up {
        let mut bench = Bench::connected();
        let sent = bench.up(&packet).map(|(_, frame)| frame);
        assert_eq!(sent.is_some(), is_answered(reason), "{what}");
        assert_eq!(bench.dropped(), [(reason, 1)], "{what}");
        // An answer is a packet for the client.
        let answer = sent.map_or(0, |frame| bench.client_opens(&frame[OUTER_BYTES..]).len());
        assert_eq!(bench.usage(), answer as u64, "{what}");
        assert_eq!(
            bench.asked.try_recv().is_ok(),
            reason == DropReason::NeighbourUnresolved
        );
    }
    let down: [(&str, Vec<u8>, DropReason); 4] = [
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
    for (what, packet, reason) in down {
        let mut bench = Bench::connected();
        let sent = bench.down(&packet).map(|(port, _)| port);
        let expected = is_answered(reason).then_some(UPLINK_PORT);
        assert_eq!(sent, expected, "{what}");
        assert_eq!(bench.dropped(), [(reason, 1)], "{what}");
        assert_eq!(bench.usage(), 0, "{what}");
    }
}

fn pool() -> topnet_config::Nat {
    topnet_config::Nat {
        addresses: "198.51.100.0/28".parse().unwrap(),
        block_ports: 512,
        blocks_per_client_max: 8,
        flows_max: None,
        flows_per_client_max: None,
        mappings_max: None,
        mappings_per_client_max: None,
        log_file: std::path::PathBuf::new(),
    }
}

#[test]
fn a_client_that_opens_flows_without_end_takes_nobody_else_s() {
    let few = topnet_config::Nat {
        flows_max: Some(80),
        flows_per_client_max: Some(44),
        ..pool()
    };
    // Of 80 flows each of eight clients is sure of five; 40 are for whoever comes first.
    for (section, most, reason) in [
        (&few, 44, Refusal::SubscriberFlows),
        (
            &topnet_config::Nat {
                flows_per_client_max: Some(80),
                ..few.clone()
            },
            45,
            Refusal::FlowsFull,
        ),
    ] {
        let mut bench = Bench::connected();
        bench.plane.translation =
            Some(Translation::new(section, 8, PoolPart::WHOLE, [7; 32]).unwrap());
        let calls = (1..=100).filter(|host| {
            let packet = udp(INNER, [10, 77, 2, 100 + host], 64, 8);
            let neighbour = Neighbour {
                interface: 2,
                address: IpAddr::from([10, 77, 2, 100 + host]),
            };
            let mut known = forwarding();
            known.neighbours.insert(neighbour, MacAddress(ORIGIN_MAC));
            bench.path.replace_forwarding(Arc::new(known));
            bench.up(&packet).is_some()
        });
        assert_eq!(calls.count(), most, "{reason:?}");
        let refused = 100 - most as u64;
        assert_eq!(bench.dropped(), [(DropReason::Nat(reason), refused)]);
        let levels = bench.plane.translation.as_ref().unwrap().levels();
        bench.plane.sweep();
        let drops = [Arc::clone(&bench.plane.drops)];
        let status = PoolLevels::status(&[levels], &drops).unwrap();
        assert_eq!((status.flows, status.flows_max), (most as u32, 80));
        assert_eq!((status.clients, status.blocks_lent), (1, 1));
        let told = status.refused.iter().filter(|count| count.packets > 0);
        let told: Vec<_> = told.map(|count| (&*count.reason, count.packets)).collect();
        assert_eq!(told, [(reason.name(), refused)]);
        let translation = bench.plane.translation.as_mut().unwrap();
        for host in 3..10 {
            for remote in 1..=5 {
                let mut packet = udp([10, 78, 0, host], [192, 0, 2, remote], 64, 8);
                let called = translation.out(0, host.into(), &mut packet);
                assert_eq!(called, Ok(()), "{reason:?}: {host} to {remote}");
            }
        }
    }
}

#[test]
fn clients_share_public_addresses_and_nobody_unasked_gets_through() {
    let mut bench = Bench::connected();
    bench.plane.translation = Some(Translation::new(&pool(), 8, PoolPart::WHOLE, [7; 32]).unwrap());
    let packet = udp(INNER, ORIGIN, 64, 100);
    let (_, frame) = bench.up(&packet).unwrap();
    let sent = Ipv4::parse(&frame[ETHERNET_BYTES..]).unwrap();
    assert_eq!(sent.source.octets()[..3], [198, 51, 100]);
    assert_eq!(bench.usage(), packet.len() as u64);
    let event = bench.plane.take_block_event().unwrap();
    assert_eq!(event.external, sent.source);

    // The answer arrives at the client's own address.
    let at = ETHERNET_BYTES + IPV4_BYTES;
    let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let mut answer = Vec::new();
    let builder = PacketBuilder::ipv4(ORIGIN, sent.source.octets(), 64).udp(2, port);
    builder.write(&mut answer, &[3; 50]).unwrap();
    let (_, frame) = bench.down(&answer).unwrap();
    let mut buffer = [0; 2048];
    let received = bench
        .client
        .decapsulate(None, &frame[OUTER_BYTES..], &mut buffer);
    let TunnResult::WriteToTunnelV4(received, from) = received else {
        panic!("{received:?}");
    };
    assert_eq!(from.octets(), ORIGIN);
    assert_eq!(Ipv4::parse(received).unwrap().destination.octets(), INNER);
    let billed = (packet.len() + answer.len()) as u64;
    assert_eq!(bench.usage(), billed);

    // Not so what nobody asked for, nor a client's own address, nor from client to client.
    let unasked = udp(ORIGIN, [198, 51, 100, 3], 64, 8);
    assert_eq!(bench.down(&unasked), None);
    assert_eq!(bench.down(&udp(ORIGIN, INNER, 64, 8)), None);
    let route = Route {
        network: Ipv4Addr::new(198, 51, 100, 0).into(),
        prefix_bits: 28,
        metric: 0,
        target: RouteTarget::Forward {
            interface: 2,
            gateway: Some(IpAddr::from(ORIGIN)),
        },
    };
    let mut routed = forwarding();
    let more = RouteTable::from_iter([route]);
    routed.tables = [routed.tables[0].clone(), more].into();
    bench.path.replace_forwarding(Arc::new(routed));
    assert_eq!(bench.up(&udp(INNER, [198, 51, 100, 3], 64, 8)), None);
    let expected = [
        (DropReason::NotSteered, 1),
        (DropReason::Nat(Refusal::Hairpin), 1),
        (DropReason::Nat(Refusal::NoMapping), 1),
    ];
    assert_eq!(bench.dropped(), expected);
    assert_eq!(bench.usage(), billed);
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

mod answers;
mod handshakes;
mod ipv6;
mod relay;
mod taps;
mod team;

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
