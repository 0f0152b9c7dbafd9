//! The fast path allocates nothing: a worker with frames from memory in the place of AF_XDP, and
//! an allocator that counts what the worker's thread asks for, boringtun's part included.
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use allocation_counter::{measure, opt_out};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use etherparse::PacketBuilder;
use rustix::event::{EventfdFlags, eventfd};
use topnet_account::ChannelId;
use topnet_config::{InnerNetwork, Reach};
use topnet_dataplane::accounting::Accounting;
use topnet_dataplane::drops::{DropCounters, DropReason};
use topnet_dataplane::forwarding::{
    Forwarding, Neighbour, Port, PortIndex, Route, RouteTable, RouteTarget,
};
use topnet_dataplane::io::{
    BURST_PACKETS, Ethernet, EthernetPath, FRAME_DATA_BYTES, FrameIo, Handler, Transmit,
};
use topnet_dataplane::packet::MacAddress;
use topnet_dataplane::plane::{Plane, PlaneConfig};
use topnet_dataplane::session::{Endpoint, Identity, Payer, Session, SessionIndex, SessionPlan};
use topnet_dataplane::worker::{Command, Queues, Worker};
use topnet_unit::{Attachment, BootId, CreditGrant, Handover, Header, Slot};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
const ORIGIN: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);
const INNER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
const WIREGUARD_PORT: u16 = 51820;
const CLIENT_PORT: u16 = 40_000;
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 1, 1]];
const CLIENTS: PortIndex = PortIndex(0);
const UPLINK: PortIndex = PortIndex(1);
const SLOT: Slot = Slot {
    index: 1,
    generation: 1,
};
/// Packets each way.
const PACKETS: usize = 4096;
/// Packets each way between two initiations, so few that they all fit into the screener's queue.
const STRANGER_EVERY: usize = 64;
/// Bytes between two records: several in each run, so that publishing one is looked at too.
const RECORD_BYTES: u64 = 100_000;

/// Frames from memory. Ends the worker after the last one.
struct Frames {
    frames: Vec<(PortIndex, Vec<u8>)>,
    next: usize,
    out: Vec<u8>,
    /// Frames that the worker wanted to send, by port.
    sent: [usize; 2],
    metering: Attachment,
    records: u64,
    stop: Arc<AtomicBool>,
    /// What came of it goes here, since the worker consumes its frames.
    outcome: std::sync::mpsc::Sender<([usize; 2], u64)>,
    /// The first look at the rings finds nothing, so that commands are taken before packets.
    looked: bool,
}

impl Frames {
    /// Answers each record with the next boundary, as metering does.
    fn meter(&mut self) {
        let Attachment { rings, credit, .. } = &mut self.metering;
        let mut seen_bytes = None;
        let drained = rings[0].drain(|record| seen_bytes = Some(record.bytes));
        self.records += drained.unwrap();
        if let Some(bytes) = seen_bytes {
            credit.grant(SLOT, grant(bytes + RECORD_BYTES));
        }
    }
}

impl FrameIo for Frames {
    fn receive(&mut self, handler: &mut impl Handler) -> usize {
        if !std::mem::replace(&mut self.looked, true) {
            return 0;
        }
        opt_out(|| self.meter());
        let began = self.next;
        self.next = self.frames.len().min(began + BURST_PACKETS);
        for (port, frame) in &mut self.frames[began..self.next] {
            let arrived_bytes = frame.len();
            if let Some(transmit) = handler.handle(*port, frame, arrived_bytes, &mut self.out) {
                self.sent[usize::from(transmit.port.0)] += 1;
            }
        }
        if self.next == self.frames.len() {
            opt_out(|| self.outcome.send((self.sent, self.records)).unwrap());
            self.stop.store(true, Ordering::Relaxed);
        }
        self.next - began
    }

    fn originate(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<Transmit>) -> bool {
        fill(&mut self.out);
        true
    }

    fn flush(&mut self) {}

    fn wait(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_fast_path_allocates_nothing() {
    let header = Header {
        boot: BootId([1; 16]),
        slots: 4,
        workers: 1,
        records: 8,
    };
    let (handover, usage, credit, mut rings) = Handover::in_memory(header).unwrap();
    let metering = handover.attach().unwrap();
    metering.credit.grant(SLOT, grant(RECORD_BYTES));
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
            None,
            Ipv4Addr::new(10, 78, 0, 1),
        )),
        inner_mtu: 1420,
        sessions_max: 8,
    };
    let plane = Plane::new(
        config,
        Arc::clone(&identity),
        accounting,
        Arc::clone(&drops),
        Instant::now(),
    );
    let (session, mut client) = connected(&identity);
    let queues = Queues::default();
    let commands = [
        Command::Install(session),
        Command::Forwarding(Arc::new(forwarding())),
        Command::Reach(Arc::new(Reach {
            private: vec!["10.77.2.0/24".parse().unwrap()],
            ..Reach::default()
        })),
    ];
    for command in commands {
        assert!(queues.commands.push(command).is_ok());
    }
    let (outcome, result) = std::sync::mpsc::channel();
    let io = Frames {
        frames: frames(&mut client, identity.public),
        next: 0,
        out: vec![0; FRAME_DATA_BYTES],
        sent: [0; 2],
        metering,
        records: 0,
        stop: Arc::clone(&queues.stop),
        outcome,
        looked: false,
    };
    let resolve = Box::new(|neighbour| panic!("{neighbour:?} is known"));
    let io = Ethernet::new(io, EthernetPath::new(GATEWAY, WIREGUARD_PORT, resolve));
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let screener = plane.screener().start(vec![wake], &[]).unwrap();
    let worker = Worker::new(io, plane, queues, screener);

    // From the first packet on, and with installing the session and the routes.
    let allocations = measure(|| worker.run().unwrap());

    let dropped: Vec<_> = DropReason::ALL
        .iter()
        .filter(|reason| drops.packets(**reason) > 0)
        .collect();
    assert_eq!(dropped, [&DropReason::NoBuffer; 0]);
    let (sent, records) = result.recv().unwrap();
    assert_eq!(sent, [PACKETS, PACKETS]);
    assert!(records > 10, "{records} records");
    assert_eq!(allocations.count_total, 0, "{allocations:?}");
}

#[test]
fn an_allocation_would_be_seen() {
    let vector = |bytes| drop(std::hint::black_box(vec![0_u8; bytes]));
    assert_eq!(measure(|| vector(1)).count_total, 1);
    assert_eq!(measure(|| opt_out(|| vector(1))).count_total, 0);
}

fn grant(record_at_bytes: u64) -> CreditGrant {
    CreditGrant {
        limit_bytes: u64::MAX / 2,
        record_at_bytes,
    }
}

fn forwarding() -> Forwarding {
    let link = |network: [u8; 4], interface| Route {
        network: IpAddr::from(network),
        prefix_bits: 24,
        metric: 0,
        target: RouteTarget::Forward {
            interface,
            gateway: None,
        },
    };
    let table = RouteTable::from_iter([link([10, 77, 1, 0], 1), link([10, 77, 2, 0], 2)]);
    let known = |interface, address: Ipv4Addr| {
        let address = address.into();
        let neighbour = Neighbour { interface, address };
        (neighbour, MacAddress([2, 0, 0, 0, 0, interface as u8]))
    };
    let port = |interface, mac| Port {
        interface,
        mac: MacAddress(mac),
    };
    Forwarding {
        tables: vec![table].into(),
        neighbours: [known(1, CLIENT), known(2, ORIGIN)].into(),
        ports: vec![port(1, MACS[0]), port(2, MACS[1])],
    }
}

/// A session and its client after their handshake.
fn connected(identity: &Identity) -> (Box<Session>, Tunn) {
    let private = StaticSecret::from([5; 32]);
    let payer = Payer {
        channel: ChannelId([1; 32]),
        slot: SLOT,
    };
    let public_key = PublicKey::from(&private).to_bytes();
    let plan = SessionPlan::of_client(SessionIndex(3), public_key, payer, INNER);
    let mut session = Box::new(Session::new(identity, plan));
    let mut client = Tunn::new(private, identity.public, None, None, 1, None);
    let [mut near, mut far] = [[0; 2048]; 2];
    let mut message = message_of(client.format_handshake_initiation(&mut near, false));
    for turn in 0..2 {
        let answer = session.tunnel.decapsulate(None, &message, &mut far);
        if turn == 1 {
            assert!(matches!(answer, TunnResult::Done), "{answer:?}");
            break;
        }
        message = message_of(client.decapsulate(None, &message_of(answer), &mut near));
    }
    session.heard_from(Endpoint {
        remote: SocketAddr::new(CLIENT.into(), CLIENT_PORT),
        local: GATEWAY.into(),
    });
    session.refresh_established();
    assert!(session.established);
    (session, client)
}

fn message_of(result: TunnResult<'_>) -> Vec<u8> {
    let TunnResult::WriteToNetwork(message) = result else {
        panic!("{result:?}");
    };
    message.to_vec()
}

/// Packets both ways in turn, of all lengths, and a stranger's initiations between them.
fn frames(client: &mut Tunn, gateway: PublicKey) -> Vec<(PortIndex, Vec<u8>)> {
    let mut buffer = [0; 2048];
    let mut frames = Vec::new();
    let private = StaticSecret::from([6; 32]);
    let mut stranger = Tunn::new(private, gateway, None, None, 1, None);
    let initiation = message_of(stranger.format_handshake_initiation(&mut buffer, false));
    for number in 0..PACKETS {
        let payload = vec![7; number % 1373];
        let inner = udp(INNER, ORIGIN, 7, &payload);
        let sealed = message_of(client.encapsulate(&inner, &mut buffer));
        let outer = udp(CLIENT, GATEWAY, WIREGUARD_PORT, &sealed);
        frames.push((CLIENTS, ethernet(CLIENTS, &outer)));
        frames.push((UPLINK, ethernet(UPLINK, &udp(ORIGIN, INNER, 7, &payload))));
        if number % STRANGER_EVERY == 0 {
            let outer = udp(CLIENT, GATEWAY, WIREGUARD_PORT, &initiation);
            frames.push((CLIENTS, ethernet(CLIENTS, &outer)));
        }
    }
    frames
}

fn udp(source: Ipv4Addr, destination: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(source.octets(), destination.octets(), 64);
    let builder = builder.udp(CLIENT_PORT, port);
    builder.write(&mut packet, payload).unwrap();
    packet
}

fn ethernet(port: PortIndex, packet: &[u8]) -> Vec<u8> {
    let mut frame = MACS[usize::from(port.0)].to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend([8, 0]);
    frame.extend(packet);
    frame
}
