//! Two workers: what the other one receives is decided about and billed where its session is.

use super::*;
use crate::accounting::OpenGate;
use crate::handshakes::Initiation;
use crate::session::Addresses;
use crate::team::{Team, wakes};

/// A worker with a session, and one beside it that receives everything.
pub(super) struct Pair {
    pub(super) bench: Bench,
    pub(super) other: Plane<OpenGate>,
    others_path: EthernetPath,
}

impl Pair {
    pub(super) fn new() -> Self {
        let mut seats = Team::seats(wakes(2).unwrap(), 2_048);
        let screening = Arc::new(Screening::new(2));
        let identity = Arc::new(Identity::new([9; 32]));
        let other = Plane::new(config(), identity, OpenGate, Arc::default(), Instant::now());
        let seat = seats.pop().unwrap();
        let mut other = other.with_seat(seat, Arc::clone(&screening));
        let seat = seats.pop().unwrap();
        let bench = Bench::with(|plane| plane.with_seat(seat, screening)).connect();
        other.note_owner(SessionIndex(3), &Addresses::Client(INNER.into()));
        let others_path = EthernetPath::new(Ipv4Addr::from(GATEWAY), 51820, Box::new(|_| ()));
        let mut pair = Self {
            bench,
            other,
            others_path,
        };
        pair.others_path.replace_forwarding(Arc::new(forwarding()));
        pair
    }

    /// The other worker receives a frame, and the session's does what was passed to it.
    pub(super) fn frame(&mut self, port: PortIndex, frame: &[u8]) -> Vec<(PortIndex, Vec<u8>)> {
        let mut out = [0; BUFFER];
        let mut arrived = [frame, &[0xab; PADDING_BYTES - 1]].concat();
        let (path, other) = (&mut self.others_path, &mut self.other);
        let sent = path.handle(other, port, &mut arrived, frame.len(), &mut out);
        assert_eq!(sent, None, "it is the other's");
        self.take()
    }

    pub(super) fn take(&mut self) -> Vec<(PortIndex, Vec<u8>)> {
        let mut sent = Vec::new();
        let mut out = [0; BUFFER];
        let Bench { plane, path, .. } = &mut self.bench;
        while let Some(mut parcel) = plane.take_parcel() {
            let transmit = path.handle_parcel(plane, &mut parcel, &mut out);
            sent.extend(transmit.map(|sent| (sent.port, out[..sent.bytes].to_vec())));
            plane.give_back(parcel);
        }
        plane.settle(0);
        sent
    }

    pub(super) fn sealed(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut buffer = [0; 2048];
        match self.bench.client.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(message) => outer(message),
            _ => panic!("the client has no keys"),
        }
    }

    fn others_drops(&self) -> Vec<(DropReason, u64)> {
        let packets = |reason: &DropReason| (*reason, self.other.drops.packets(*reason));
        let counts = DropReason::ALL.iter().map(packets);
        counts.filter(|(_, packets)| *packets > 0).collect()
    }
}

#[test]
fn what_the_other_receives_passes_both_ways_and_is_billed_once() {
    let mut pair = Pair::new();
    let up = udp(INNER, ORIGIN, 64, 100);
    let sealed = pair.sealed(&up);
    let sent = pair.frame(CLIENT_PORT, &sealed);
    let [(UPLINK_PORT, frame)] = &sent[..] else {
        panic!("{sent:?}");
    };
    assert_eq!(frame[ETHERNET_BYTES + IPV4_BYTES..], up[IPV4_BYTES..]);
    let down = udp(ORIGIN, INNER, 64, 333);
    let sent = pair.frame(UPLINK_PORT, &ethernet(1, &down));
    let [(CLIENT_PORT, frame)] = &sent[..] else {
        panic!("{sent:?}");
    };
    let mut buffer = [0; 2048];
    let client = &mut pair.bench.client;
    let received = client.decapsulate(None, &frame[OUTER_BYTES..], &mut buffer);
    let TunnResult::WriteToTunnelV4(received, _) = received else {
        panic!("{received:?}");
    };
    assert_eq!(received.len(), down.len());
    assert_eq!(pair.bench.usage(), (up.len() + down.len()) as u64);
    assert_eq!(
        (pair.others_drops(), pair.bench.dropped()),
        (vec![], vec![])
    );
    // A repetition is one, whoever received the first.
    assert_eq!(pair.frame(CLIENT_PORT, &sealed), []);
    assert_eq!(pair.bench.dropped(), [(DropReason::Replayed, 1)]);
}

#[test]
fn a_handshake_is_made_by_the_sessions_worker_and_a_cookie_by_who_was_asked() {
    let mut pair = Pair::new();
    let mut buffer = [0; 2048];
    let client = &mut pair.bench.client;
    let TunnResult::WriteToNetwork(message) = client.format_handshake_initiation(&mut buffer, true)
    else {
        panic!("no initiation");
    };
    let initiation = message.to_vec();
    assert_eq!(pair.frame(CLIENT_PORT, &outer(&initiation)), []);
    assert_eq!(pair.bench.screener.turn(10_000).answers, 1);
    assert_eq!(pair.other.answers(Answer::Handshake), 0);
    assert_eq!(pair.bench.plane.answers(Answer::Handshake), 1);
    let submitted = Initiation {
        worker: WorkerNumber(1),
        endpoint: Endpoint {
            remote: "192.0.2.1:9".parse().unwrap(),
            local: GATEWAY.into(),
        },
        message: initiation[..].try_into().unwrap(),
    };
    for _ in 0..3_000 {
        pair.other.screening.submit(submitted.clone()).unwrap();
    }
    pair.bench.screener.turn(10_001);
    assert!(pair.other.answers(Answer::Cookie) > 0);
    assert_eq!(pair.bench.plane.answers(Answer::Cookie), 0);
}

#[test]
fn nobody_has_a_worker_that_is_not_there_and_a_parcel_stays_where_it_is() {
    let mut pair = Pair::new();
    let mut sealed = pair.sealed(&udp(INNER, ORIGIN, 64, 8));
    // The highest bits of the receiver's index.
    let at = OUTER_BYTES + 7;
    for worker in [1, 2, 15] {
        sealed[at] = worker << 4;
        assert_eq!(pair.frame(CLIENT_PORT, &sealed), []);
    }
    assert_eq!(pair.others_drops(), [(DropReason::SessionUnknown, 3)]);
    // The other has not heard yet that the address is its own session's now.
    let (mine, its) = (SessionIndex(3), SessionIndex::new(WorkerNumber(1), 0));
    let addresses = Addresses::Client(INNER.into());
    pair.bench.plane.forget_owner(mine, &addresses);
    pair.bench.plane.note_owner(its, &addresses);
    let packet = ethernet(1, &udp(ORIGIN, INNER, 64, 8));
    assert_eq!(pair.frame(UPLINK_PORT, &packet), []);
    assert_eq!(pair.bench.dropped(), [(DropReason::NoSession, 1)]);
    assert!(pair.other.take_parcel().is_none());
    // Now it has.
    pair.other.forget_owner(mine, &addresses);
    assert_eq!(pair.frame(UPLINK_PORT, &packet), []);
    assert_eq!(
        pair.others_drops(),
        [(DropReason::SessionUnknown, 3), (DropReason::NoSession, 1)]
    );
}

#[test]
fn answers_to_shared_addresses_find_the_worker_that_lent_the_port() {
    let mut pair = Pair::new();
    let translation = |number| {
        let part = PoolPart { number, of: 2 };
        Translation::new(&pool(), 8, part, [7 + number as u8; 32]).unwrap()
    };
    let (own, its) = (translation(0), translation(1));
    let firsts = Arc::<crate::translation::FirstFragments>::default();
    pair.bench.plane.translation = Some(own.with_firsts(Arc::clone(&firsts)));
    pair.other.translation = Some(its.with_firsts(firsts));
    let sealed = pair.sealed(&udp(INNER, ORIGIN, 64, 8));
    let sent = pair.frame(CLIENT_PORT, &sealed);
    let [(UPLINK_PORT, frame)] = &sent[..] else {
        panic!("{sent:?}");
    };
    let external = Ipv4::parse(&frame[ETHERNET_BYTES..])
        .unwrap()
        .source
        .octets();
    let at = ETHERNET_BYTES + IPV4_BYTES;
    let port = u16::from_be_bytes([frame[at], frame[at + 1]]);
    assert_eq!((port - 1024) / 512 % 2, 0, "of its own part");
    let mut answer = Vec::new();
    let builder = PacketBuilder::ipv4(ORIGIN, external, 64).udp(2, port);
    builder.write(&mut answer, &[3; 600]).unwrap();
    assert_eq!(pair.frame(UPLINK_PORT, &ethernet(1, &answer)).len(), 1);
    // In fragments, of which the second has no port.
    for fragment in fragments(&answer) {
        assert_eq!(pair.frame(UPLINK_PORT, &ethernet(1, &fragment)).len(), 1);
    }
    // To a port of the other's part the other answers for itself.
    let mut stray = Vec::new();
    let builder = PacketBuilder::ipv4(ORIGIN, external, 64).udp(2, 1024 + 512);
    builder.write(&mut stray, &[3; 8]).unwrap();
    assert_eq!(pair.frame(UPLINK_PORT, &ethernet(1, &stray)), []);
    assert_eq!(
        pair.others_drops(),
        [(DropReason::Nat(Refusal::NoMapping), 1)]
    );
    assert_eq!(pair.bench.dropped(), []);
}

/// The packet in two fragments.
fn fragments(packet: &[u8]) -> [Vec<u8>; 2] {
    let (header, payload) = packet.split_at(IPV4_BYTES);
    let (first, rest) = payload.split_at(512);
    [(first, 0x2000u16), (rest, 512 / 8)].map(|(part, flags)| {
        let mut fragment = [header, part].concat();
        let total = fragment.len() as u16;
        fragment[2..4].copy_from_slice(&total.to_be_bytes());
        fragment[4..6].copy_from_slice(&[0, 9]);
        fragment[6..8].copy_from_slice(&flags.to_be_bytes());
        fragment[10..12].fill(0);
        let sum = checksum(&fragment[..IPV4_BYTES]);
        fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        fragment
    })
}
