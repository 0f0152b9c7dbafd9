//! Super-packets taken apart and bursts joined, against plain arithmetic and the checksums of
//! `etherparse`.

use std::{collections::HashMap, ops::Range};

use arbitrary::{Arbitrary, Unstructured};
use etherparse::checksum::Sum16BitWords;
use topnet_offload::{
    AddError, Gso, HEADER_BYTES, JoinLimits, Joiner, Offloaded, Segments, TooShort, VnetHeader,
    take,
};

use crate::headers::{
    IPV6_BYTES, TCP, UDP, addresses, is_zero, mend_ip, mend_transport, pseudo_header, put_checksum,
    put_word, word,
};

const UDP_BYTES: usize = 8;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Enough for a super-packet to be full, in packets and in bytes, and no more: a burst is slow.
const BURST_PACKETS_MAX: usize = 150;
const PAYLOAD_BYTES_MAX: u16 = 600;
const FLOWS: usize = 4;

/// The bytes are a virtio-net header and what the device put after it; and they are a burst.
pub(crate) fn offload(bytes: &[u8]) {
    if let Some((header, packet)) = bytes.split_first_chunk() {
        split(header, packet);
    }
    join(bytes);
}

fn split(bytes: &[u8; HEADER_BYTES], packet: &[u8]) {
    let Ok(header) = VnetHeader::parse(bytes) else {
        return;
    };
    assert_eq!(header.to_bytes(), *bytes);
    let mut taken = packet.to_vec();
    match take(&header, &mut taken) {
        Ok(Offloaded::Whole(whole)) => check_whole(&header, packet, whole),
        Ok(Offloaded::Super(segments)) => check_super(&header, packet, segments),
        Err(_) => assert!(header.needs_checksum, "there was nothing to refuse"),
    }
}

/// Nothing but the unfinished checksum is different, and that is finished.
fn check_whole(header: &VnetHeader, packet: &[u8], whole: &[u8]) {
    let mut expected = packet.to_vec();
    if header.needs_checksum {
        let start = usize::from(header.checksum_start);
        let at = start + usize::from(header.checksum_offset);
        let sum = Sum16BitWords::new().add_slice(&packet[start..]);
        put_checksum(&mut expected, at, sum);
        // Where zero says that there is none, its other form stands.
        if expected[at..at + 2] == [0; 2] && whole[at..at + 2] == [0xff; 2] {
            expected[at..at + 2].fill(0xff);
        }
    }
    assert_eq!(whole, expected);
}

/// Every packet has its part of the payload and the headers that it should have; its checksum is
/// right if that of the super-packet was.
fn check_super(header: &VnetHeader, packet: &[u8], mut segments: Segments<'_>) {
    let transport = usize::from(header.checksum_start);
    let tcp = header.gso != Gso::UdpL4;
    let protocol = if tcp { TCP } else { UDP };
    let payload = transport + transport_bytes(packet, transport, tcp);
    let segment_bytes = usize::from(header.segment_bytes);
    let mut bodies = packet[payload..].chunks(segment_bytes).enumerate();
    assert!(bodies.len() > 1, "a super-packet of one packet");
    assert_eq!(segments.packets(), bodies.len());
    let checksum_at = transport + usize::from(header.checksum_offset);
    let unfinished = [!packet[checksum_at], !packet[checksum_at + 1]];
    let was_right = is_zero(pseudo_header(packet, transport, protocol).add_2bytes(unfinished));

    let mut out = vec![0; segments.packet_bytes_max()];
    while let Some((number, body)) = bodies.next() {
        let packet_bytes = payload + body.len();
        let short = segments.next_into(&mut out[..packet_bytes - 1]);
        assert_eq!(short, Err(TooShort { packet_bytes }));
        assert_eq!(segments.next_into(&mut out), Ok(Some(packet_bytes)));
        let ours = &out[..packet_bytes];
        assert_eq!(ours[payload..], *body);
        let sum = pseudo_header(ours, transport, protocol).add_slice(&ours[transport..]);
        assert_eq!(is_zero(sum), was_right, "packet {number}: {ours:02x?}");

        let mut expected = packet[..payload].to_vec();
        put_lengths(&mut expected, transport, tcp, packet_bytes);
        if expected[0] >> 4 == 4 {
            put_word(
                &mut expected,
                4,
                word(packet, 4).wrapping_add(number as u16),
            );
            mend_ip(&mut expected, transport);
        }
        if tcp {
            put_sequence(&mut expected, transport, number * segment_bytes);
            let flags = &mut expected[transport + 13];
            *flags &= if number == 0 { !0 } else { !CWR };
            *flags &= if bodies.len() == 0 { !0 } else { !(FIN | PSH) };
        }
        // What stands there was summed up above.
        expected[checksum_at..checksum_at + 2].copy_from_slice(&ours[checksum_at..checksum_at + 2]);
        assert_eq!(ours[..payload], expected);
        assert!(tcp || ours[checksum_at..checksum_at + 2] != [0; 2]);
    }
    assert_eq!(segments.next_into(&mut out), Ok(None));
}

/// How a burst is joined.
#[derive(Arbitrary, Debug)]
struct Manner {
    packets_max: u16,
    flows_max: u8,
    join_udp: bool,
    /// Bytes of nobody's before each packet.
    gap_bytes: u8,
}

/// What comes next in a burst.
#[derive(Arbitrary, Debug)]
enum Step {
    /// The first packet of a flow, in the place of an older one.
    Begin {
        flow: u8,
        v6: bool,
        tcp: bool,
        payload_bytes: u16,
    },
    /// Packets that follow a flow's last one.
    Go {
        flow: u8,
        packets: u8,
        payload_bytes: u16,
    },
    /// The packet that follows a flow's last one, with another byte, which those after it keep.
    Change {
        flow: u8,
        at: u16,
        byte: u8,
        checksums_right: bool,
    },
    /// Anything.
    Raw { bytes: u8 },
}

fn join(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(manner) = input.arbitrary::<Manner>() else {
        return;
    };
    let mut arena = Vec::new();
    let mut places = Vec::new();
    for packet in burst(&mut input) {
        arena.resize(arena.len() + usize::from(manner.gap_bytes % 4), 0xee);
        places.push(arena.len()..arena.len() + packet.len());
        arena.extend(packet);
    }
    let limits = JoinLimits {
        packets_max: usize::from(manner.packets_max) % (BURST_PACKETS_MAX + 1),
        flows_max: usize::from(manner.flows_max) % (FLOWS + 1),
        join_udp: manner.join_udp,
    };
    Device {
        joiner: Joiner::new(limits),
        came: arena.clone(),
        arena,
        added: Vec::new(),
    }
    .write(&places, &limits);
}

fn burst(input: &mut Unstructured<'_>) -> Vec<Vec<u8>> {
    let mut flows: [Vec<u8>; FLOWS] = Default::default();
    let mut burst = Vec::new();
    while burst.len() < BURST_PACKETS_MAX
        && !input.is_empty()
        && let Ok(step) = input.arbitrary::<Step>()
    {
        match step {
            Step::Begin {
                flow,
                v6,
                tcp,
                payload_bytes,
            } => {
                let flow = usize::from(flow) % FLOWS;
                flows[flow] = followed(&first(flow as u8, v6, tcp), payload_bytes);
                burst.push(flows[flow].clone());
            }
            Step::Go {
                flow,
                packets,
                payload_bytes,
            } => {
                let last = &mut flows[usize::from(flow) % FLOWS];
                for _ in 0..usize::from(packets).min(BURST_PACKETS_MAX - burst.len()) {
                    *last = followed(last, payload_bytes);
                    burst.push(last.clone());
                }
            }
            Step::Change {
                flow,
                at,
                byte,
                checksums_right,
            } => {
                let last = &mut flows[usize::from(flow) % FLOWS];
                let payload = Place::of(last).map_or(0, |place| last.len() - place.payload);
                *last = followed(last, payload as u16);
                let bytes = last.len().max(1);
                if let Some(place) = last.get_mut(usize::from(at) % bytes) {
                    *place = byte;
                }
                if checksums_right && let Some(place) = Place::of(last) {
                    place.mend(last);
                }
                burst.push(last.clone());
            }
            Step::Raw { bytes } => {
                let bytes = usize::from(bytes).min(input.len());
                burst.push(input.bytes(bytes).unwrap().to_vec());
            }
        }
    }
    burst
}

/// The headers that a flow's packets follow. Two flows each are between the same hosts.
fn first(flow: u8, v6: bool, tcp: bool) -> Vec<u8> {
    let protocol = if tcp { TCP } else { UDP };
    let mut packet = vec![0; if v6 { IPV6_BYTES } else { 20 }];
    if v6 {
        packet[0] = 0x60;
        packet[6..8].copy_from_slice(&[protocol, 64]);
        packet[23] = 1;
        packet[39] = 2 + flow / 2;
    } else {
        packet[0] = 0x45;
        packet[8..10].copy_from_slice(&[64, protocol]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2 + flow / 2]);
    }
    packet.extend([1, 0, 2, flow]);
    if tcp {
        packet.extend([0, 0, 0, 7, 0, 0, 0, 9, 0x50, ACK, 4, 0, 0, 0, 0, 0]);
    } else {
        packet.extend([0; 4]);
    }
    packet
}

/// The packet that comes after `packet`, if that is of TCP or UDP; else the same again.
fn followed(packet: &[u8], payload_bytes: u16) -> Vec<u8> {
    let Some(place) = Place::of(packet) else {
        return packet.to_vec();
    };
    let mut next = packet[..place.payload].to_vec();
    let payload = 0..payload_bytes % (PAYLOAD_BYTES_MAX + 1);
    next.extend(payload.map(|at| at as u8 ^ packet[place.transport + 7]));
    let next_bytes = next.len();
    put_lengths(&mut next, place.transport, place.tcp, next_bytes);
    if !place.v6 {
        put_word(&mut next, 4, word(packet, 4).wrapping_add(1));
    }
    if place.tcp {
        put_sequence(&mut next, place.transport, packet.len() - place.payload);
    }
    place.mend(&mut next);
    next
}

/// A joiner, what arrived, and what became of it.
struct Device {
    joiner: Joiner,
    came: Vec<u8>,
    arena: Vec<u8>,
    added: Vec<Range<usize>>,
}

impl Device {
    fn write(mut self, places: &[Range<usize>], limits: &JoinLimits) {
        for place in places {
            let mut outcome = self.joiner.add(&self.arena, place.clone());
            if outcome == Err(AddError::Full) {
                assert_eq!(self.added.len(), limits.packets_max);
                self.drain();
                outcome = self.joiner.add(&self.arena, place.clone());
            }
            match outcome {
                Ok(()) => self.added.push(place.clone()),
                Err(AddError::NoPlace) => assert!(place.is_empty()),
                Err(AddError::Full) => assert_eq!(limits.packets_max, 0),
            }
            let beyond = place.start..self.arena.len() + 1;
            for elsewhere in [place.clone(), beyond] {
                assert!(self.joiner.add(&self.arena, elsewhere).is_err());
            }
        }
        self.drain();
    }

    /// What was added is written: each packet once, alone as it came or so that it comes out of
    /// a super-packet as it came.
    fn drain(&mut self) {
        let Self {
            joiner,
            came,
            arena,
            added,
        } = self;
        let mut groups: Vec<Option<usize>> = vec![None; added.len()];
        let (mut group, mut first_start) = (0, None);
        joiner.drain(arena, |header, parts, arena| {
            let packets: Vec<&Range<usize>> = parts
                .iter()
                .map(|part| {
                    let index = added.binary_search_by_key(&part.end, |packet| packet.end);
                    let index = index.expect("a part ends where a packet does");
                    assert_eq!(groups[index].replace(group), None, "written twice");
                    &added[index]
                })
                .collect();
            group += 1;
            assert!(packets.is_sorted_by_key(|packet| packet.start));
            assert_eq!(parts[0], *packets[0]);
            assert!(first_start < Some(parts[0].start), "groups in their order");
            first_start = Some(parts[0].start);
            if parts.len() == 1 {
                assert_eq!(*header, VnetHeader::PLAIN);
                assert_eq!(arena[parts[0].clone()], came[parts[0].clone()]);
            } else {
                let whole = parts.iter().map(|part| &arena[part.clone()]);
                let whole = whole.collect::<Vec<_>>().concat();
                let packets = packets.iter().map(|packet| &came[(*packet).clone()]);
                splits_again(header, whole, &packets.collect::<Vec<_>>());
            }
        });
        assert!(joiner.is_empty());
        let mut last_groups = HashMap::new();
        for (packet, group) in added.drain(..).zip(groups) {
            let group = group.expect("every packet is written");
            if let Some(flow) = flow(&came[packet]) {
                let before = last_groups.insert(flow, group);
                assert!(before <= Some(group), "overtaken within its flow");
            }
        }
    }
}

fn splits_again(header: &VnetHeader, mut whole: Vec<u8>, packets: &[&[u8]]) {
    assert_eq!(VnetHeader::parse(&header.to_bytes()), Ok(*header));
    let Ok(Offloaded::Super(mut segments)) = take(header, &mut whole) else {
        panic!("what was joined is no super-packet: {header:?}");
    };
    let mut out = vec![0; segments.packet_bytes_max()];
    for packet in packets {
        let bytes = segments.next_into(&mut out).unwrap().unwrap();
        assert_eq!(comparable(&out[..bytes]), comparable(packet));
    }
    assert_eq!(segments.next_into(&mut out), Ok(None));
}

/// Without the identification where it means nothing (RFC 6864, section 4.1).
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Of which flow a packet is, where that is beyond doubt.
fn flow(packet: &[u8]) -> Option<(bool, &[u8])> {
    let place = Place::of(packet)?;
    let plain = place.v6 || (packet[0] == 0x45 && word(packet, 6) & 0x3fff == 0);
    let ends = addresses(place.v6).start..place.transport + 4;
    plain.then(|| (place.tcp, &packet[ends]))
}

/// Where the headers of a packet of TCP or UDP are that fit into it.
struct Place {
    v6: bool,
    tcp: bool,
    transport: usize,
    payload: usize,
}

impl Place {
    fn of(packet: &[u8]) -> Option<Self> {
        let (v6, protocol, transport) = match packet.first()? >> 4 {
            4 => (false, *packet.get(9)?, usize::from(packet[0] & 0xf) * 4),
            6 => (true, *packet.get(6)?, IPV6_BYTES),
            _ => return None,
        };
        let tcp = protocol == TCP;
        packet.get(transport + if tcp { 19 } else { 7 })?;
        let payload = transport + transport_bytes(packet, transport, tcp);
        let fits = transport >= 20 && payload >= transport + 8 && payload <= packet.len();
        (fits && [TCP, UDP].contains(&protocol)).then_some(Self {
            v6,
            tcp,
            transport,
            payload,
        })
    }

    fn mend(&self, packet: &mut [u8]) {
        if !self.v6 {
            mend_ip(packet, self.transport);
        }
        mend_transport(packet, self.transport, if self.tcp { TCP } else { UDP });
    }
}

fn transport_bytes(packet: &[u8], transport: usize, tcp: bool) -> usize {
    if tcp {
        usize::from(packet[transport + 12] >> 4) * 4
    } else {
        UDP_BYTES
    }
}

/// Writes what a packet of so many bytes says of its length.
fn put_lengths(headers: &mut [u8], transport: usize, tcp: bool, packet_bytes: usize) {
    if headers[0] >> 4 == 6 {
        put_word(headers, 4, (packet_bytes - IPV6_BYTES) as u16);
    } else {
        put_word(headers, 2, packet_bytes as u16);
    }
    if !tcp {
        put_word(headers, transport + 4, (packet_bytes - transport) as u16);
    }
}

/// Lets the sequence number go on by so many bytes.
fn put_sequence(headers: &mut [u8], transport: usize, sent_bytes: usize) {
    let sequence = headers[transport + 4..].first_chunk_mut::<4>().unwrap();
    let next = u32::from_be_bytes(*sequence).wrapping_add(sent_bytes as u32);
    *sequence = next.to_be_bytes();
}
