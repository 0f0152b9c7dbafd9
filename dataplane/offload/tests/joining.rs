//! Bursts of packets through the joiner and, as a device would, back into packets.
#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use support::{Flow, Handed, Numbers, arena, flow, joined};
use topnet_offload::{AddError, Gso, JoinLimits, Joiner, UDP_PARTS_MAX, VnetHeader};

const LIMITS: JoinLimits = JoinLimits {
    packets_max: 256,
    flows_max: 8,
    join_udp: true,
};

const TCP: Flow = Flow {
    v6: false,
    tcp: true,
    number: 2,
    traffic_class: 0,
    hop_limit: 64,
    dont_fragment: false,
    ip_options_words: 0,
    tcp_options_words: 3,
};

/// A burst's packet: which of the flows it is from, and what is special about it.
#[derive(Clone, Debug)]
struct Step {
    flow: usize,
    payload_bytes: usize,
    event: Event,
}

#[derive(Clone, Debug)]
enum Event {
    Next,
    Pushed,
    Last,
    AfterLoss,
    Retransmission,
    /// A bit flipped somewhere.
    Damaged(prop::sample::Index),
    NewAcknowledgment,
    NewWindow,
    NewTrafficClass,
    Empty,
    Fragment,
    Foreign,
    Garbage,
}

fn step() -> impl Strategy<Value = Step> {
    let event = prop_oneof![
        20 => Just(Event::Next),
        2 => Just(Event::Pushed),
        1 => Just(Event::Last),
        1 => Just(Event::AfterLoss),
        1 => Just(Event::Retransmission),
        2 => any::<prop::sample::Index>().prop_map(Event::Damaged),
        1 => Just(Event::NewAcknowledgment),
        1 => Just(Event::NewWindow),
        1 => Just(Event::NewTrafficClass),
        1 => Just(Event::Empty),
        1 => Just(Event::Fragment),
        1 => Just(Event::Foreign),
        1 => Just(Event::Garbage),
    ];
    let payload_bytes = prop_oneof![10 => Just(100usize), 2 => Just(60), 1 => 1..200usize];
    (0..4usize, payload_bytes, event).prop_map(|(flow, payload_bytes, event)| Step {
        flow,
        payload_bytes,
        event,
    })
}

/// Which flow's order a packet is part of; the rest is nobody's.
type Owner = Option<usize>;

fn burst(flows: &[Flow], steps: &[Step]) -> Vec<(Owner, Vec<u8>)> {
    let mut flows = flows.to_vec();
    let mut states = vec![Numbers::default(); flows.len()];
    let mut sent: Vec<Option<Vec<u8>>> = vec![None; flows.len()];
    let mut burst = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let (flow, numbers) = (&mut flows[step.flow], &mut states[step.flow]);
        let mut payload_bytes = step.payload_bytes;
        let mut own = numbers.clone();
        match step.event {
            Event::Pushed => own.psh = true,
            Event::Last => own.fin = true,
            Event::AfterLoss => own.sequence += payload_bytes as u32,
            Event::NewAcknowledgment => own.acknowledgment += 1,
            Event::NewWindow => own.window += 1,
            Event::NewTrafficClass => flow.traffic_class ^= 3,
            Event::Empty => payload_bytes = 0,
            _ => {}
        }
        let payload: Vec<u8> = (0..payload_bytes).map(|at| (at ^ index) as u8).collect();
        let mut packet = flow.packet(&own, &payload);
        let mut owner = Some(step.flow);
        match &step.event {
            Event::Retransmission => packet = sent[step.flow].clone().unwrap_or(packet),
            Event::Damaged(at) => {
                // Behind the addresses and ports, so that it is still known whose it is.
                let known_bytes = if flow.v6 { 44 } else { 24 };
                let bit = at.index((packet.len() - known_bytes) * 8);
                packet[known_bytes + bit / 8] ^= 1 << (bit % 8);
            }
            Event::Fragment if flow.v6 => {
                packet[6] = 44;
                let next = if flow.tcp { 6 } else { 17 };
                packet[40..42].copy_from_slice(&[next, 0]);
            }
            Event::Fragment => packet[7] = 1,
            Event::Foreign => {
                let at = if flow.v6 { 6 } else { 9 };
                packet[at] = 1;
                owner = None;
            }
            Event::Garbage => {
                packet = payload;
                owner = None;
            }
            _ => {
                own.sequence = own.sequence.wrapping_add(payload_bytes as u32);
                own.identification = own.identification.wrapping_add(1);
                *numbers = Numbers {
                    psh: false,
                    fin: false,
                    ..own
                };
            }
        }
        if owner.is_some() {
            sent[step.flow] = Some(packet.clone());
        }
        if !packet.is_empty() {
            burst.push((owner, packet));
        }
    }
    burst
}

/// The packet without what means nothing where fragmenting is forbidden: the identification.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[0] == 0x45 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Burst and flows: some differ in their ports or transport only.
fn bursts() -> impl Strategy<Value = (Vec<Flow>, Vec<Step>)> {
    let flow = (flow(), prop::bool::weighted(0.1)).prop_map(|(flow, options)| Flow {
        ip_options_words: if options { flow.ip_options_words } else { 0 },
        ..flow
    });
    let flows = prop::collection::vec(flow, 4).prop_map(|mut flows| {
        for (index, flow) in flows.iter_mut().enumerate() {
            flow.number = 2 * index as u8;
        }
        // The same addresses and ports, the other transport.
        let twin = Flow {
            tcp: !flows[0].tcp,
            ..flows[0].clone()
        };
        flows[1] = twin;
        flows
    });
    (flows, prop::collection::vec(step(), 1..200))
}

proptest! {
    #[test]
    fn joined_and_split_packets_are_the_same_in_the_same_order(
        (flows, steps) in bursts(),
        flows_max in 0..6usize,
    ) {
        let burst = burst(&flows, &steps);
        let packets: Vec<Vec<u8>> = burst.iter().map(|(_, packet)| packet.clone()).collect();
        let mut joiner = Joiner::new(JoinLimits { flows_max, ..LIMITS });
        let handed = joined(&mut joiner, &packets);
        let out: Vec<Vec<u8>> = handed.iter().flat_map(|handed| {
            if handed.header == VnetHeader::PLAIN {
                return vec![comparable(&handed.packet)];
            }
            let packets = handed.packets();
            assert!(packets.len() > 1, "a super-packet of one");
            packets.iter().map(|packet| comparable(packet)).collect()
        }).collect();

        // Nothing lost, nothing more, nothing changed.
        let mut all_in: Vec<_> = packets.iter().map(|packet| comparable(packet)).collect();
        let mut all_out = out.clone();
        all_in.sort();
        all_out.sort();
        prop_assert!(all_in == all_out);

        // And per flow in order. Of fragments nobody can tell the transport, so the twins
        // that share their addresses keep the order of fragments together.
        for index in 0..flows.len() {
            let of_flow: Vec<_> = burst
                .iter()
                .filter(|(owner, _)| *owner == Some(index))
                .map(|(_, packet)| comparable(packet))
                .collect();
            prop_assert!(in_order(&of_flow, &out), "flow {}", index);
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_write_what_was_not_added(
        (flows, steps) in bursts(),
        damage in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..20),
        places in prop::collection::vec((0..40usize, 0..400usize), 1..100),
        join_udp in any::<bool>(),
    ) {
        let packets: Vec<_> = burst(&flows, &steps).into_iter().map(|(_, packet)| packet).collect();
        let (mut bytes, mut ranges) = arena(&packets);
        for (at, byte) in damage {
            *at.get_mut(&mut bytes) = byte;
        }
        // Half the time the packets where they are, half the time anything.
        if join_udp {
            let mut start = 0;
            ranges = places.iter().map(|(gap, length)| {
                start += gap;
                let range = start..start + length;
                start = range.end.saturating_sub(length % 3);
                range
            }).collect();
        }
        let mut joiner = Joiner::new(JoinLimits { packets_max: 90, join_udp, ..LIMITS });
        let mut added = Vec::new();
        for range in ranges {
            if joiner.add(&bytes, range.clone()).is_ok() {
                added.push(range);
            }
        }
        let arena_bytes = bytes.len();
        let mut written = Vec::new();
        joiner.drain(&mut bytes, |_, parts, arena| {
            assert_eq!(arena.len(), arena_bytes);
            written.extend(parts.iter().cloned());
        });
        written.sort_by_key(|part| part.start);
        prop_assert_eq!(written.len(), added.len());
        for (part, packet) in written.iter().zip(&added) {
            prop_assert!(packet.start <= part.start && part.end == packet.end);
            prop_assert!(part.start < part.end);
        }
    }
}

/// Whether the packets are in `out` in this order, among others.
fn in_order(packets: &[Vec<u8>], out: &[Vec<u8>]) -> bool {
    let mut out = out.iter();
    packets
        .iter()
        .all(|packet| out.any(|candidate| candidate == packet))
}

fn stream(flow: &Flow, lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut numbers = Numbers::default();
    let packets = lengths.iter().map(|length| {
        let packet = flow.packet(&numbers, &vec![0x5a; *length]);
        numbers.sequence += *length as u32;
        numbers.identification += 1;
        packet
    });
    packets.collect()
}

fn groups(limits: JoinLimits, packets: &[Vec<u8>]) -> Vec<usize> {
    let handed = joined(&mut Joiner::new(limits), packets);
    handed.iter().map(|handed| handed.packets().len()).collect()
}

#[test]
fn a_stream_becomes_super_packets() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let flow = Flow { v6, tcp, ..TCP };
        let mut lengths = vec![1400; 50];
        lengths[49] = 700;
        let packets = stream(&flow, &lengths);
        let handed = joined(&mut Joiner::new(LIMITS), &packets);
        // 46 × 1,400 bytes is what fits beside the headers.
        assert_eq!(handed.len(), 2, "{flow:?}");
        let expected = VnetHeader {
            needs_checksum: true,
            data_valid: false,
            gso: match (tcp, v6) {
                (true, false) => Gso::TcpV4 { ecn: false },
                (true, true) => Gso::TcpV6 { ecn: false },
                (false, _) => Gso::UdpL4,
            },
            header_bytes: flow.header_bytes() as u16,
            segment_bytes: 1400,
            checksum_start: if v6 { 40 } else { 20 },
            checksum_offset: if tcp { 16 } else { 6 },
        };
        assert_eq!(handed[0].header, expected);
        // It is what a kernel would have made of it: with the unfinished checksum, to the byte.
        let whole = flow.unfinished(&Numbers::default(), &vec![0x5a; 46 * 1400], 1400);
        assert_eq!(handed[0].packet, whole.packet);
        let back: Vec<_> = handed.iter().flat_map(Handed::packets).collect();
        assert_eq!(back, packets);
    }
}

#[test]
fn flows_are_joined_beside_each_other() {
    let other = Flow { number: 4, ..TCP };
    let port = Flow { number: 5, ..TCP };
    let streams = [TCP, other, port].map(|flow| stream(&flow, &[500; 20]));
    let packets: Vec<_> = (0..60).map(|at| streams[at % 3][at / 3].clone()).collect();
    assert_eq!(groups(LIMITS, &packets), [20, 20, 20]);
    // TCP and UDP do not meet, whatever their ports are.
    let twins = [true, false].map(|tcp| stream(&Flow { tcp, ..TCP }, &[500; 20]));
    let twins: Vec<_> = (0..40).map(|at| twins[at % 2][at / 2].clone()).collect();
    assert_eq!(groups(LIMITS, &twins), [20, 20]);
    // With one place, the flows take it from each other.
    let one = JoinLimits {
        flows_max: 1,
        ..LIMITS
    };
    assert_eq!(groups(one, &packets), [1; 60]);
    assert_eq!(groups(one, &streams[0]), [20]);
}

#[test]
fn groups_end_where_they_must() {
    type Change = fn(&mut Vec<Vec<u8>>);
    let cases: [(&str, Change, &[usize]); 12] = [
        ("nothing", |_| {}, &[8]),
        (
            "a shorter one in between",
            |p| p[3] = numbered(3, |_| {}, 50),
            &[4, 4],
        ),
        (
            "a longer one in between",
            |p| p[3] = numbered(3, |_| {}, 150),
            &[3, 1, 4],
        ),
        (
            "the end of a write",
            |p| p[3] = numbered(3, |n| n.psh = true, 100),
            &[4, 4],
        ),
        (
            "another acknowledgment",
            |p| p[3] = numbered(3, |n| n.acknowledgment = 9, 100),
            &[3, 1, 4],
        ),
        (
            "another urgent pointer",
            |p| count_up(&mut p[3], 38),
            &[3, 1, 4],
        ),
        ("another option", |p| count_up(&mut p[3], 50), &[3, 1, 4]),
        ("a loss", |p| drop(p.remove(3)), &[3, 4]),
        ("two swapped", |p| p.swap(3, 4), &[3, 1, 1, 3]),
        ("a damaged payload", |p| p[3][60] ^= 1, &[3, 1, 4]),
        ("a damaged IPv4 header", |p| p[3][10] ^= 1, &[3, 1, 4]),
        ("a damaged first one", |p| p[0][60] ^= 1, &[1, 7]),
    ];
    for (what, change, expected) in cases {
        let mut packets = stream(&TCP, &[100; 8]);
        change(&mut packets);
        assert_eq!(groups(LIMITS, &packets), expected, "{what}");
    }
}

/// Adds one to a word and takes one from the payload, so that the checksum is as right as before.
fn count_up(packet: &mut [u8], at: usize) {
    packet[at + 1] += 1;
    packet[99] -= 1;
}

/// One packet in the middle of `stream(&TCP, &[100; 8])`.
fn numbered(index: u16, change: fn(&mut Numbers), payload_bytes: usize) -> Vec<u8> {
    let mut numbers = Numbers::default();
    numbers.identification += index;
    numbers.sequence += u32::from(index) * 100;
    change(&mut numbers);
    TCP.packet(&numbers, &vec![0x5a; payload_bytes])
}

#[test]
fn datagrams_are_joined_up_to_what_kernels_split_and_only_if_asked_for() {
    let flow = Flow { tcp: false, ..TCP };
    let packets = stream(&flow, &[100; 100]);
    assert_eq!(groups(LIMITS, &packets), [UDP_PARTS_MAX, 36]);
    let limits = JoinLimits {
        join_udp: false,
        ..LIMITS
    };
    assert_eq!(groups(limits, &packets), [1; 100]);
    // A datagram without a checksum would get one.
    let mut packets = packets[..8].to_vec();
    packets[3][26..28].fill(0);
    assert_eq!(groups(LIMITS, &packets), [3, 1, 4]);
}

#[test]
fn a_fragment_is_not_overtaken() {
    let mut packets = stream(&TCP, &[100; 8]);
    let elsewhere = Flow { number: 4, ..TCP };
    for (flow, expected) in [(&TCP, &[4, 1, 4][..]), (&elsewhere, &[8, 1])] {
        let mut fragment = flow.packet(&Numbers::default(), &[1; 100]);
        fragment[7] = 1;
        packets.insert(4, fragment);
        assert_eq!(groups(LIMITS, &packets), expected);
        packets.remove(4);
    }
}

#[test]
fn what_hides_its_transport_is_not_overtaken() {
    let flow = Flow { v6: true, ..TCP };
    let mut packets = stream(&flow, &[100; 8]);
    let mut hidden = flow.packet(&Numbers::default(), &[1; 100]);
    // A fragment whose transport header comes after destination options, perhaps.
    hidden[6] = 44;
    hidden[40] = 60;
    packets.insert(4, hidden);
    assert_eq!(groups(LIMITS, &packets), [4, 1, 4]);
}

#[test]
fn the_other_spelling_of_a_checksum_of_zero_is_kept() {
    let numbers = Numbers::default();
    for (tcp, at) in [(true, 36), (false, 26)] {
        let flow = Flow { tcp, ..TCP };
        let packets = |spelled: u16| {
            let mut first = flow.packet(&numbers, &flow.payload_to_zero(&numbers, 100));
            first[at..at + 2].copy_from_slice(&spelled.to_be_bytes());
            let second = Numbers {
                identification: numbers.identification + 1,
                sequence: numbers.sequence + 100,
                ..numbers.clone()
            };
            [first, flow.packet(&second, &[1; 100])]
        };
        let (ours, other) = if tcp { (0, 0xffff) } else { (0xffff, 0) };
        assert_eq!(groups(LIMITS, &packets(ours)), [2]);
        assert_eq!(groups(LIMITS, &packets(other)), [1, 1]);
    }
    // And of the IPv4 header, whose identification means nothing here.
    let flow = Flow {
        dont_fragment: true,
        ..TCP
    };
    let mut packets = stream(&flow, &[100; 2]);
    packets[0][4..6].fill(0);
    packets[0][10..12].fill(0);
    let zeroed = etherparse::Ipv4Header::from_slice(&packets[0]).unwrap().0;
    packets[0][4..6].copy_from_slice(&zeroed.calc_header_checksum().to_be_bytes());
    assert_eq!(groups(LIMITS, &packets), [2]);
    packets[0][10..12].fill(0xff);
    assert_eq!(groups(LIMITS, &packets), [1, 1]);
}

#[test]
fn what_has_no_place_is_refused() {
    let packets = stream(&TCP, &[100; 3]);
    let (mut bytes, places) = arena(&packets);
    let mut joiner = Joiner::new(JoinLimits {
        packets_max: 2,
        ..LIMITS
    });
    let first = places[0].clone();
    let end = bytes.len();
    assert_eq!(joiner.add(&bytes, end..end + 1), Err(AddError::NoPlace));
    assert_eq!(joiner.add(&bytes, first.clone()), Ok(()));
    for again in [first.clone(), first.end - 1..first.end + 9, end..end] {
        assert_eq!(joiner.add(&bytes, again), Err(AddError::NoPlace));
    }
    assert_eq!(joiner.add(&bytes, places[1].clone()), Ok(()));
    assert_eq!(joiner.add(&bytes, places[2].clone()), Err(AddError::Full));
    let mut written = 0;
    joiner.drain(&mut bytes, |_, parts, _| written += parts.len());
    assert_eq!(written, 2);
    assert_eq!(joiner.add(&bytes, first), Ok(()));
}
