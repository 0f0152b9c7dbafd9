//! A worker's plane between two peers and the world: frames in, verdicts out. One peer pays; the other
//! is the operator's own, or pays out of the same channel, or out of another.
//!
//! Whatever comes, nothing panics or allocates; each channel is billed for exactly the inner packets
//! that leave on its account, and never beyond its limit; what does not leave is counted as dropped,
//! once.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use allocation_counter::measure;
use arbitrary::{Arbitrary, Unstructured};
use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};
use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use serde_json::json;
use topnet_account::ChannelId;
use topnet_config::{InnerNetwork, Nat, Reach};
use topnet_dataplane::{
    accounting::Accounting,
    drops::{DropCounters, DropReason},
    forwarding::{Forwarding, Neighbour, Port, PortIndex, Route, RouteTable, RouteTarget},
    io::{EthernetPath, FRAME_DATA_BYTES, GatewayAddresses},
    packet::MacAddress,
    plane::{PADDING_BYTES, Plane, PlaneConfig},
    session::{Addresses, Endpoint, Identity, Payer, Session, SessionIndex, SessionPlan},
    solicited::Solicited,
    translation::Translation,
};
use topnet_nat::PoolPart;
use topnet_unit::{Attachment, BootId, CreditGrant, Handover, Header, Slot};

use crate::headers::{IPV6_BYTES, TCP, UDP, mend_ip, put_word, word};

const CLIENTS: PortIndex = PortIndex(0);
const UPLINK: PortIndex = PortIndex(1);
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 1, 1]];
const ETHERNET_BYTES: usize = 14;
const SLOTS: [Slot; 2] = [
    Slot {
        index: 1,
        generation: 1,
    },
    Slot {
        index: 2,
        generation: 1,
    },
];
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1);
const PEERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 1, 2), Ipv4Addr::new(10, 77, 1, 3)];
const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 0, 2), Ipv4Addr::new(10, 78, 0, 9)];
const WIREGUARD_PORT: u16 = 51_820;
const INNER_MTU: usize = 1_420;
const DATA_MESSAGE: u8 = 4;
/// Whom packets are from and for: peers, a network behind one, the gateway, the world, an address
/// of the pool, and what nobody should send to.
const ADDRESSES: [&str; 10] = [
    "10.78.0.2",
    "10.78.0.9",
    "172.20.0.7",
    "10.78.0.1",
    "10.77.2.2",
    "198.51.100.3",
    "10.78.3.3",
    "192.168.0.9",
    "224.0.0.251",
    "127.0.0.1",
];
const ADDRESSES6: [&str; 8] = [
    "fd78::2",
    "fd78::9",
    "fd78::1",
    "fd77:2::2",
    "fd78::333",
    "ff02::fb",
    "::1",
    "64:ff9b::a4d:202",
];

/// What the plane is set to.
#[derive(Arbitrary, Debug)]
struct Manner {
    shares_addresses: bool,
    shields_ipv6: bool,
    is_joined: bool,
    limit_bytes: u16,
    second: Second,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    First,
    Second,
}

/// Who pays for the second peer.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Second {
    Nobody,
    TheFirst,
    Itself,
}

/// Where a peer's packets count.
fn slot_of(who: Who, second: Second) -> Option<Slot> {
    match (who, second) {
        (Who::First, _) | (Who::Second, Second::TheFirst) => Some(SLOTS[0]),
        (Who::Second, Second::Itself) => Some(SLOTS[1]),
        (Who::Second, Second::Nobody) => None,
    }
}

/// An IP packet, mostly a sound one.
#[derive(Arbitrary, Debug)]
struct Inner {
    is_v6: bool,
    from: u8,
    to: u8,
    protocol: u8,
    ports: u8,
    hops: u8,
    payload_bytes: u16,
    damage: Option<(u16, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Anything at all.
    Frame {
        on_uplink: bool,
        bytes: Vec<u8>,
    },
    /// A peer's packet, in its tunnel.
    Up {
        who: Who,
        inner: Inner,
        damage: Option<(u16, u8)>,
    },
    /// A WireGuard message that nobody sealed.
    Forged {
        receiver: u8,
        bytes: Vec<u8>,
    },
    /// A packet from the world.
    Down(Inner),
    /// The world answers what left last.
    Reply {
        damage: Option<(u16, u8)>,
    },
    Grant {
        bytes: u16,
    },
    Wait {
        ms: u16,
    },
    Join(bool),
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    ToWorld,
    /// A packet of so many bytes.
    ToPeer(Who, usize),
    /// A handshake message or a keepalive.
    Control,
}

/// Frames through a plane.
pub(crate) fn plane(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let Ok(manner) = Manner::arbitrary(&mut input) else {
        return;
    };
    let mut world = World::new(&manner);
    while !input.is_empty()
        && let Ok(step) = Step::arbitrary(&mut input)
    {
        world.step(step);
    }
}

struct World {
    plane: Plane,
    path: EthernetPath,
    drops: Arc<DropCounters>,
    metering: Attachment,
    peers: [Tunn; 2],
    second: Second,
    /// The packet that left for the world last.
    left_last: Vec<u8>,
    dropped_before: u64,
    limit_bytes: u64,
    now_ms: u64,
}

impl World {
    fn new(manner: &Manner) -> Self {
        let header = Header {
            boot: BootId([1; 16]),
            slots: 3,
            workers: 1,
            records: 8,
        };
        let (handover, usage, credit, mut rings) = Handover::in_memory(header).unwrap();
        let accounting = Accounting::new(
            Arc::new(usage),
            Arc::new(credit),
            rings.remove(0),
            Arc::default(),
        );
        let identity = Arc::new(Identity::new([9; 32]));
        let drops = Arc::<DropCounters>::default();
        let config = PlaneConfig {
            inner: Some(InnerNetwork::new(
                "10.78.0.0/16".parse().unwrap(),
                Some("fd78::/64".parse().unwrap()),
                Ipv4Addr::new(10, 78, 0, 1),
            )),
            inner_mtu: INNER_MTU,
            sessions_max: 8,
        };
        let translation = manner
            .shares_addresses
            .then(|| Translation::new(&nat(), 8, PoolPart::WHOLE, [7; 32]).unwrap());
        let (identity_, drops_) = (Arc::clone(&identity), Arc::clone(&drops));
        let mut plane = Plane::new(config, identity_, accounting, drops_, Instant::now())
            .with_translation(translation);
        let peers = [Who::First, Who::Second].map(|who| {
            let (mut session, tunn) = connected(&identity, who, manner.second);
            if manner.shields_ipv6 && who == Who::First {
                session.solicited = Some(Box::new(Solicited::new(1)));
            }
            plane.install(session);
            tunn
        });
        let gateway = GatewayAddresses {
            v4: GATEWAY,
            v6: Some(GATEWAY6),
        };
        let uplink = GatewayAddresses {
            v4: Ipv4Addr::new(10, 77, 2, 1),
            v6: Some(Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 1)),
        };
        let mut path =
            EthernetPath::new(gateway, WIREGUARD_PORT, Box::new(drop)).answering_from(uplink);
        path.replace_forwarding(Arc::new(forwarding()));
        let mut world = Self {
            plane,
            path,
            drops,
            metering: handover.attach().unwrap(),
            peers,
            second: manner.second,
            left_last: Vec::new(),
            dropped_before: 0,
            limit_bytes: 0,
            now_ms: 0,
        };
        world.join(manner.is_joined);
        world.grant(manner.limit_bytes);
        world
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Frame { on_uplink, bytes } => {
                let port = if on_uplink { UPLINK } else { CLIENTS };
                self.look(port, &bytes, None);
            }
            Step::Up { who, inner, damage } => {
                let packet = inner.packet();
                if packet.len() > FRAME_DATA_BYTES - 128 || packet.is_empty() {
                    return;
                }
                let mut buffer = [0; 2048];
                let sealed = self.peers[who as usize].encapsulate(&packet, &mut buffer);
                let TunnResult::WriteToNetwork(message) = sealed else {
                    return;
                };
                let mut frame = outer(who, message);
                let is_whole = damage.is_none();
                damaged(&mut frame, damage);
                let left = self.look(CLIENTS, &frame, Some((who, bytes_of(&packet))));
                self.says_why(
                    &left,
                    is_whole,
                    left == Left::ToWorld || is_relayed(who, &left),
                );
            }
            Step::Forged { receiver, bytes } => {
                let mut message = vec![DATA_MESSAGE, 0, 0, 0, receiver % 4, receiver % 3, 0, 0];
                message.extend(bytes);
                self.look(CLIENTS, &outer(Who::First, &message), None);
            }
            Step::Down(inner) => {
                let frame = ethernet(UPLINK, &inner.packet());
                let left = self.look(UPLINK, &frame, None);
                self.says_why(&left, true, matches!(left, Left::ToPeer(..)));
            }
            Step::Reply { damage } => {
                let mut packet = reply(&self.left_last);
                damaged(&mut packet, damage);
                let left = self.look(UPLINK, &ethernet(UPLINK, &packet), None);
                self.says_why(&left, true, matches!(left, Left::ToPeer(..)));
            }
            Step::Grant { bytes } => self.grant(bytes),
            Step::Wait { ms } => self.now_ms += u64::from(ms),
            Step::Join(is_joined) => self.join(is_joined),
        }
    }

    /// Grants more, never less: what was used stays used.
    fn grant(&mut self, bytes: u16) {
        self.limit_bytes += u64::from(bytes);
        for slot in SLOTS {
            self.metering.credit.grant(
                slot,
                CreditGrant {
                    limit_bytes: self.limit_bytes,
                    record_at_bytes: self.limit_bytes / 2,
                },
            );
        }
    }

    fn join(&mut self, is_joined: bool) {
        let networks = |list: &[&str]| list.iter().map(|it| it.parse().unwrap()).collect();
        let peers = ["10.78.0.0/16", "172.20.0.0/16", "fd78::/64"];
        self.plane.change_reach(Arc::new(Reach {
            private: networks(&["10.77.0.0/16", "fd77::/16"]),
            unmetered_private: Vec::new(),
            peers: networks(if is_joined { &peers } else { &[] }),
        }));
    }

    /// Since before the last look.
    fn dropped(&self) -> u64 {
        self.dropped_in_all() - self.dropped_before
    }

    fn dropped_in_all(&self) -> u64 {
        let packets = |reason: &DropReason| self.drops.packets(*reason);
        DropReason::ALL.iter().map(packets).sum()
    }

    /// What was dropped since the last look is dropped once, and nothing else is.
    fn says_why(&self, left: &Left, is_whole: bool, goes_on: bool) {
        // A damaged message may be none that a reason is told of.
        if is_whole && *left != Left::Control {
            assert_eq!(self.dropped(), u64::from(!goes_on), "{left:?}");
        }
    }

    /// Gives the plane a frame, and looks at what it does with it. `sent` is a peer's packet in it, by
    /// its length.
    fn look(&mut self, port: PortIndex, frame: &[u8], sent: Option<(Who, usize)>) -> Left {
        self.dropped_before = self.dropped_in_all();
        let used = self.used();
        let arrived_bytes = frame.len();
        let mut frame = [frame, &[0xab; PADDING_BYTES - 1]].concat();
        let mut out = [0; FRAME_DATA_BYTES];
        self.now_ms += 1;
        let now_ns = self.now_ms * 1_000_000;
        let mut transmit = None;
        let allocations = measure(|| {
            self.plane.begin(now_ns);
            let (plane, path) = (&mut self.plane, &mut self.path);
            transmit = path.handle(plane, port, &mut frame, arrived_bytes, &mut out);
            self.plane.settle(now_ns);
        });
        assert_eq!(allocations.count_total, 0, "{allocations:?}");
        while self.plane.take_block_event().is_some() {}
        let left = match transmit {
            None => Left::Nothing,
            Some(transmit) => self.left(transmit.port, &out[..transmit.bytes]),
        };
        let goes_up = |who: &(Who, usize)| left == Left::ToWorld || is_relayed(who.0, &left);
        let up = sent.filter(goes_up);
        let down = match left {
            Left::ToPeer(who, bytes) => Some((who, bytes)),
            _ => None,
        };
        let mut expected = used;
        for (who, bytes) in [up, down].into_iter().flatten() {
            if let Some(slot) = slot_of(who, self.second) {
                expected[slot.index as usize - 1] += bytes as u64;
            }
        }
        assert_eq!(self.used(), expected, "{left:?}, {sent:?}");
        assert!(expected.iter().all(|bytes| *bytes <= self.limit_bytes));
        left
    }

    /// Of each channel.
    fn used(&self) -> [u64; 2] {
        SLOTS.map(|slot| self.metering.usage.totals(slot.index).bytes)
    }

    /// What a frame that leaves is.
    fn left(&mut self, port: PortIndex, frame: &[u8]) -> Left {
        assert_eq!(frame[6..12], MACS[usize::from(port.0)]);
        let packet = &frame[ETHERNET_BYTES..];
        assert_eq!(bytes_of(packet), packet.len(), "nothing behind the packet");
        if port == UPLINK {
            self.left_last = packet.to_vec();
            return Left::ToWorld;
        }
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = sliced.transport else {
            panic!("{:?}", sliced.transport);
        };
        let message = udp.payload();
        if message[0] != DATA_MESSAGE {
            return Left::Control;
        }
        // The client's own index stands above the number of its keys.
        let (who, number) = match message[5] {
            1 => (Who::First, 0),
            _ => (Who::Second, 1),
        };
        let mut buffer = [0; 2048];
        let packet = match self.peers[number].decapsulate(None, message, &mut buffer) {
            TunnResult::WriteToTunnelV4(packet, _) => packet,
            TunnResult::WriteToTunnelV6(packet, _) => packet,
            TunnResult::Done => return Left::Control,
            other => panic!("{other:?}"),
        };
        assert!(packet.len() <= INNER_MTU);
        Left::ToPeer(who, packet.len())
    }
}

/// True if a peer's packet went to the other one. What comes back to the sender is an answer.
fn is_relayed(who: Who, left: &Left) -> bool {
    matches!(left, Left::ToPeer(other, _) if *other != who)
}

impl Inner {
    fn packet(&self) -> Vec<u8> {
        let payload = vec![7; usize::from(self.payload_bytes) % 1_500];
        let ports = [u16::from(self.ports >> 4), u16::from(self.ports & 15)];
        let builder = match self.is_v6 {
            false => {
                let [from, to] = [self.from, self.to].map(|at| {
                    let text = ADDRESSES[usize::from(at) % ADDRESSES.len()];
                    text.parse::<Ipv4Addr>().unwrap().octets()
                });
                PacketBuilder::ipv4(from, to, self.hops)
            }
            true => {
                let [from, to] = [self.from, self.to].map(|at| {
                    let text = ADDRESSES6[usize::from(at) % ADDRESSES6.len()];
                    text.parse::<Ipv6Addr>().unwrap().octets()
                });
                PacketBuilder::ipv6(from, to, self.hops)
            }
        };
        let mut packet = Vec::new();
        let written = match self.protocol % 4 {
            0 | 1 => builder.udp(ports[0], ports[1]).write(&mut packet, &payload),
            2 => {
                let tcp = builder.tcp(ports[0], ports[1], 1, 1_000).syn();
                let size = TcpOptionElement::MaximumSegmentSize(1_460);
                tcp.options(&[size]).unwrap().write(&mut packet, &payload)
            }
            _ => match self.is_v6 {
                false => builder
                    .icmpv4_echo_request(ports[0], 1)
                    .write(&mut packet, &payload),
                true => builder
                    .icmpv6_echo_request(ports[0], 1)
                    .write(&mut packet, &payload),
            },
        };
        written.unwrap();
        damaged(&mut packet, self.damage);
        packet
    }
}

fn damaged(bytes: &mut [u8], damage: Option<(u16, u8)>) {
    if let Some((at, value)) = damage
        && !bytes.is_empty()
    {
        bytes[usize::from(at) % bytes.len()] ^= value;
    }
}

/// What an IP packet says of its length.
fn bytes_of(packet: &[u8]) -> usize {
    match packet.first().map(|first| first >> 4) {
        Some(6) if packet.len() >= IPV6_BYTES => IPV6_BYTES + usize::from(word(packet, 4)),
        Some(_) if packet.len() >= 4 => word(packet, 2).into(),
        _ => 0,
    }
}

/// The same packet the other way.
fn reply(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let (header_bytes, addresses, protocol) = match is_v6 {
        _ if packet.len() < 28 => return packet,
        true if packet.len() < 48 => return packet,
        true => (40, 8, packet[6]),
        false => (usize::from(packet[0] & 15) * 4, 12, packet[9]),
    };
    let length = if is_v6 { 16 } else { 4 };
    let (near, far) = packet[addresses..addresses + 2 * length].split_at_mut(length);
    near.swap_with_slice(far);
    if [UDP, TCP].contains(&protocol) && packet.len() >= header_bytes + 4 {
        let ports = [word(&packet, header_bytes), word(&packet, header_bytes + 2)];
        put_word(&mut packet, header_bytes, ports[1]);
        put_word(&mut packet, header_bytes + 2, ports[0]);
    }
    if is_v6 {
        packet[7] = 64;
    } else if packet.len() >= header_bytes {
        packet[8] = 64;
        mend_ip(&mut packet, header_bytes);
    }
    packet
}

fn ethernet(port: PortIndex, packet: &[u8]) -> Vec<u8> {
    let mut frame = MACS[usize::from(port.0)].to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    frame.extend(if is_v6 { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(packet);
    frame
}

/// A peer's message on its way to the gateway.
fn outer(who: Who, message: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let from = PEERS[who as usize].octets();
    let builder = PacketBuilder::ipv4(from, GATEWAY.octets(), 64).udp(40_000, WIREGUARD_PORT);
    builder.write(&mut packet, message).unwrap();
    ethernet(CLIENTS, &packet)
}

fn nat() -> Nat {
    // So few flows that there can be too many.
    let section = json!({
        "addresses": "198.51.100.0/28", "flows_max": 80, "flows_per_client_max": 44
    });
    serde_json::from_value(section).unwrap()
}

fn forwarding() -> Forwarding {
    let link = |network: &str, prefix_bits, interface| Route {
        network: network.parse().unwrap(),
        prefix_bits,
        metric: 0,
        target: RouteTarget::Forward {
            interface,
            gateway: None,
        },
    };
    let table = RouteTable::from_iter([
        link("10.77.1.0", 24, 1),
        link("10.77.2.0", 24, 2),
        link("fd77:2::", 64, 2),
        link("192.168.0.0", 16, 3),
    ]);
    let known = |interface, address: IpAddr| {
        let neighbour = Neighbour { interface, address };
        (neighbour, MacAddress([2, 0, 0, 0, 0, interface as u8]))
    };
    let port = |interface, mac| Port {
        interface,
        mac: MacAddress(mac),
    };
    Forwarding {
        tables: vec![table].into(),
        neighbours: [
            known(1, PEERS[0].into()),
            known(1, PEERS[1].into()),
            known(2, "10.77.2.2".parse().unwrap()),
            known(2, "fd77:2::2".parse().unwrap()),
        ]
        .into(),
        ports: vec![port(1, MACS[0]), port(2, MACS[1])],
    }
}

/// A session and its peer after their handshake.
fn connected(identity: &Identity, who: Who, second: Second) -> (Box<Session>, Tunn) {
    let number = who as u8;
    let private = StaticSecret::from([5 + number; 32]);
    let payer = slot_of(who, second).map(|slot| Payer {
        channel: ChannelId([slot.index as u8; 32]),
        slot,
    });
    let addresses = match payer {
        Some(_) => Addresses::Client(INNER[usize::from(number)]),
        None => Addresses::Networks(
            ["10.78.0.9/32", "172.20.0.0/16", "fd78::9/128"]
                .map(|network| network.parse().unwrap())
                .into(),
        ),
    };
    let plan = SessionPlan {
        index: SessionIndex(3 + u32::from(number)),
        public_key: PublicKey::from(&private).to_bytes(),
        payer,
        addresses,
        preshared_key: None,
        persistent_keepalive_s: 0,
        endpoint: None,
    };
    let mut session = Box::new(Session::new(identity, plan));
    let mut peer = Tunn::new(
        private,
        identity.public,
        None,
        None,
        1 + u32::from(number),
        None,
    );
    let [mut near, mut far] = [[0; 2048]; 2];
    let mut message = message_of(peer.format_handshake_initiation(&mut near, false));
    message = message_of(session.tunnel.decapsulate(None, &message, &mut far));
    message = message_of(peer.decapsulate(None, &message, &mut near));
    let answer = session.tunnel.decapsulate(None, &message, &mut far);
    assert!(matches!(answer, TunnResult::Done), "{answer:?}");
    session.heard_from(Endpoint {
        remote: SocketAddr::new(PEERS[who as usize].into(), 40_000),
        local: GATEWAY.into(),
    });
    session.refresh_established();
    assert!(session.established);
    (session, peer)
}

fn message_of(result: TunnResult<'_>) -> Vec<u8> {
    let TunnResult::WriteToNetwork(message) = result else {
        panic!("{result:?}");
    };
    message.to_vec()
}
