//! The plane between a client in memory and frames: what goes in, what comes out, what is billed.

use super::*;

pub(super) const SLOT: Slot = Slot {
    index: 1,
    generation: 1,
};
pub(super) const GATEWAY: [u8; 4] = [10, 77, 1, 1];
pub(super) const CLIENT: [u8; 4] = [10, 77, 1, 2];
pub(super) const UPLINK: [u8; 4] = [10, 77, 2, 1];
pub(super) const ORIGIN: [u8; 4] = [10, 77, 2, 2];
pub(super) const INNER: [u8; 4] = [10, 78, 0, 2];
pub(super) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1);
pub(super) const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 2);
pub(super) const UPLINK6: Ipv6Addr = Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 1);
pub(super) const ORIGIN6: Ipv6Addr = Ipv6Addr::new(0xfd77, 2, 0, 0, 0, 0, 0, 2);
pub(super) const INNER6: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2);
pub(super) const CLIENT_PORT: PortIndex = PortIndex(0);
pub(super) const UPLINK_PORT: PortIndex = PortIndex(1);
pub(super) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const ORIGIN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(super) const OUR_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 1, 1]];
pub(super) const BUFFER: usize = crate::io::FRAME_DATA_BYTES;
pub(super) const ENOUGH: CreditGrant = CreditGrant {
    limit_bytes: 1 << 40,
    record_at_bytes: u64::MAX,
};

pub(super) struct Bench {
    pub(super) plane: Plane,
    pub(super) path: EthernetPath,
    pub(super) metering: Attachment,
    pub(super) screener: Screener,
    pub(super) client: Tunn,
    pub(super) now_ms: u64,
    pub(super) asked: mpsc::Receiver<Neighbour>,
}

pub(super) fn forwarding() -> Forwarding {
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

pub(super) fn config() -> PlaneConfig {
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
    pub(super) fn new() -> Self {
        Self::with(|plane| plane)
    }

    /// A bench whose plane is changed before it has a session.
    pub(super) fn with(change: impl FnOnce(Plane) -> Plane) -> Self {
        let header = Header {
            boot: BootId([1; 16]),
            slots: 4,
            workers: 1,
            records: 8,
        };
        let (handover, usage, credit, mut rings) = Handover::in_memory(header).unwrap();
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
            metering: handover.attach().unwrap(),
            client,
            asked,
        }
    }

    /// A bench whose tunnel is up and has credit.
    pub(super) fn connected() -> Self {
        Self::new().connect()
    }

    pub(super) fn connect(self) -> Self {
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
    pub(super) fn frame(&mut self, port: PortIndex, frame: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
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
    pub(super) fn client_sends(&mut self, message: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
        self.frame(CLIENT_PORT, &outer(message))
    }

    /// What the client does with a frame: an answer for the network.
    pub(super) fn client_receives(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
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
    pub(super) fn up(&mut self, packet: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
        let mut buffer = [0; 2048];
        let TunnResult::WriteToNetwork(message) = self.client.encapsulate(packet, &mut buffer)
        else {
            panic!("the client has no keys");
        };
        let message = message.to_vec();
        self.client_sends(&message)
    }

    pub(super) fn down(&mut self, packet: &[u8]) -> Option<(PortIndex, Vec<u8>)> {
        self.frame(UPLINK_PORT, &ethernet(1, packet))
    }

    pub(super) fn session(&mut self) -> &mut Session {
        self.plane.sessions.get_mut(SessionIndex(3)).unwrap()
    }

    /// The inner packet that the client takes out of a message.
    pub(super) fn client_opens(&mut self, message: &[u8]) -> Vec<u8> {
        let mut buffer = [0; 2048];
        match self.client.decapsulate(None, message, &mut buffer) {
            TunnResult::WriteToTunnelV4(packet, _) => packet.to_vec(),
            TunnResult::WriteToTunnelV6(packet, _) => packet.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn usage(&self) -> u64 {
        self.metering.usage.totals(SLOT.index).bytes
    }

    pub(super) fn dropped(&self) -> Vec<(DropReason, u64)> {
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
pub(super) fn is_answered(reason: DropReason) -> bool {
    matches!(reason, DropReason::TtlExceeded | DropReason::TooLarge)
}

pub(super) fn ethernet(port: usize, packet: &[u8]) -> Vec<u8> {
    let mut frame = OUR_MACS[port].to_vec();
    frame.extend(CLIENT_MAC);
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    frame.extend(if is_v6 { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(packet);
    frame
}

pub(super) fn outer(message: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(CLIENT, GATEWAY, 64).udp(40_000, 51_820);
    let mut packet = Vec::new();
    builder.write(&mut packet, message).unwrap();
    ethernet(0, &packet)
}

pub(super) fn udp(source: [u8; 4], destination: [u8; 4], ttl: u8, payload_bytes: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(source, destination, ttl).udp(1, 2);
    builder.write(&mut packet, &vec![7; payload_bytes]).unwrap();
    packet
}

/// A case of refusal: what it is, and why.
pub(super) type Refused = (&'static str, Vec<u8>, DropReason);

/// Each packet of the client's is refused for its reason and billed to nobody, but for the answer
/// that some get, which is a packet for the client. `unknown` is asked for, and nobody else.
pub(super) fn are_refused_up(cases: impl IntoIterator<Item = Refused>, unknown: Neighbour) {
    for (what, packet, reason) in cases {
        let mut bench = Bench::connected();
        let sent = bench.up(&packet).map(|(_, frame)| frame);
        assert_eq!(sent.is_some(), is_answered(reason), "{what}");
        assert_eq!(bench.dropped(), [(reason, 1)], "{what}");
        let answer = sent.map_or(0, |frame| bench.client_opens(&frame[OUTER_BYTES..]).len());
        assert_eq!(bench.usage(), answer as u64, "{what}");
        let expected = (reason == DropReason::NeighbourUnresolved).then_some(unknown);
        assert_eq!(bench.asked.try_recv().ok(), expected, "{what}");
    }
}

/// Each packet from outside is refused for its reason and billed to nobody; who is answered is
/// answered where he sent from.
pub(super) fn are_refused_down(cases: impl IntoIterator<Item = Refused>) {
    for (what, packet, reason) in cases {
        let mut bench = Bench::connected();
        let sent = bench.down(&packet).map(|(port, _)| port);
        let expected = is_answered(reason).then_some(UPLINK_PORT);
        assert_eq!(sent, expected, "{what}");
        assert_eq!(bench.dropped(), [(reason, 1)], "{what}");
        assert_eq!(bench.usage(), 0, "{what}");
    }
}
