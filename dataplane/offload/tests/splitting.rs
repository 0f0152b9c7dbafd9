//! Super-packets and unfinished checksums, against packets that `etherparse` wrote one by one.
#![allow(clippy::unwrap_used)]

mod support;

use proptest::prelude::*;
use support::{Flow, Handed, Numbers, flow, is_sound, numbers};
use topnet_offload::{Gso, HEADER_BYTES, Malformed, Offloaded, VnetHeader, take};

const TCP: Flow = Flow {
    v6: false,
    tcp: true,
    number: 2,
    traffic_class: 0,
    hop_limit: 64,
    dont_fragment: true,
    ip_options_words: 0,
    tcp_options_words: 3,
};

/// What a network card would send of a super-packet.
fn expected(flow: &Flow, numbers: &Numbers, payload: &[u8], segment: usize) -> Vec<Vec<u8>> {
    let last = payload.chunks(segment).len() - 1;
    let packets = payload.chunks(segment).enumerate().map(|(index, part)| {
        let own = Numbers {
            identification: numbers.identification.wrapping_add(index as u16),
            sequence: numbers.sequence.wrapping_add((index * segment) as u32),
            fin: numbers.fin && index == last,
            psh: numbers.psh && index == last,
            cwr: numbers.cwr && index == 0,
            ..*numbers
        };
        flow.packet(&own, part)
    });
    packets.collect()
}

proptest! {
    #[test]
    fn a_super_packet_is_split_as_a_card_would(
        flow in flow(),
        numbers in numbers(),
        payload in prop::collection::vec(any::<u8>(), 1..4000),
        segment in prop_oneof![1..200u16, 500..1500u16],
    ) {
        let handed = flow.unfinished(&numbers, &payload, segment);
        let packets = handed.packets();
        prop_assert_eq!(&packets, &expected(&flow, &numbers, &payload, usize::from(segment)));
        prop_assert!(packets.iter().all(|packet| is_sound(packet)));
    }

    #[test]
    fn a_checksum_is_finished_in_place(
        flow in flow(),
        numbers in numbers(),
        payload in prop::collection::vec(any::<u8>(), 0..1500),
    ) {
        let packets = flow.unfinished(&numbers, &payload, 0).packets();
        prop_assert_eq!(packets, vec![flow.packet(&numbers, &payload)]);
    }

    #[test]
    fn a_wrong_pseudo_header_stays_wrong(
        flow in flow(),
        bit in 0..16u8,
        payload in prop::collection::vec(any::<u8>(), 1..2000),
        segment in prop_oneof![Just(0u16), 300..600u16],
    ) {
        let mut handed = flow.unfinished(&Numbers::default(), &payload, segment);
        let at = handed.header.checksum_start + handed.header.checksum_offset;
        handed.packet[usize::from(at) + usize::from(bit / 8)] ^= 1 << (bit % 8);
        prop_assert!(handed.packets().iter().all(|packet| !is_sound(packet)));
    }

    #[test]
    fn no_bytes_make_it_panic_or_say_more_than_came(
        seed in (flow(), numbers(), 0..1000usize, 0..300u16),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        header_damage in prop::collection::vec((0..HEADER_BYTES, any::<u8>()), 0..3),
        room in 0..400usize,
    ) {
        let (flow, numbers, payload_bytes, segment) = seed;
        let Handed { header, mut packet } =
            flow.unfinished(&numbers, &vec![7; payload_bytes], segment);
        for (at, byte) in damage {
            *at.get_mut(&mut packet) = byte;
        }
        let mut header = header.to_bytes();
        for (at, byte) in header_damage {
            header[at] = byte;
        }
        let Ok(header) = VnetHeader::parse(&header) else {
            return Ok(());
        };
        check_bounds(&header, &mut packet, room);
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(
        header in any::<[u8; HEADER_BYTES]>(),
        mut packet in prop::collection::vec(any::<u8>(), 0..100),
        room in 0..100usize,
    ) {
        if let Ok(header) = VnetHeader::parse(&header) {
            check_bounds(&header, &mut packet, room);
        }
    }
}

fn check_bounds(header: &VnetHeader, packet: &mut [u8], room: usize) {
    let came_bytes = packet.len();
    let Ok(Offloaded::Super(mut segments)) = take(header, packet) else {
        return;
    };
    let headers_bytes = segments.packet_bytes_max() - usize::from(header.segment_bytes);
    let (mut left, mut payload_bytes) = (segments.packets(), 0);
    assert!(left >= 2);
    let mut short = vec![0; room];
    let mut out = vec![0; segments.packet_bytes_max()];
    loop {
        let written = match segments.next_into(&mut short) {
            Ok(written) => written,
            Err(error) => {
                assert!(error.packet_bytes > room);
                let written = segments.next_into(&mut out).unwrap();
                assert_eq!(written, Some(error.packet_bytes));
                written
            }
        };
        let Some(bytes) = written else {
            break;
        };
        payload_bytes += bytes - headers_bytes;
        left -= 1;
        assert_eq!(segments.packets(), left);
    }
    assert_eq!((left, payload_bytes), (0, came_bytes - headers_bytes));
    assert_eq!(segments.next_into(&mut out), Ok(None));
}

#[test]
fn contradictions_are_refused() {
    let good = TCP.unfinished(&Numbers::default(), &[1; 3000], 1400);
    assert_eq!(good.packets().len(), 3);
    type Damage = (&'static str, fn(&mut Handed));
    let cases: [Damage; 14] = [
        ("no segment length", |h| h.header.segment_bytes = 0),
        ("no checksum to finish", |h| h.header.needs_checksum = false),
        ("checksum start in the IP header", |h| {
            h.header.checksum_start = 16
        }),
        ("checksum start in the TCP header", |h| {
            h.header.checksum_start = 24
        }),
        ("checksum start beyond the end", |h| {
            h.header.checksum_start = u16::MAX
        }),
        ("the checksum offset of UDP", |h| {
            h.header.checksum_offset = 6
        }),
        ("checksum offset beyond the end", |h| {
            h.header.checksum_offset = u16::MAX
        }),
        ("the other version", |h| {
            h.header.gso = Gso::TcpV6 { ecn: false }
        }),
        ("the other transport", |h| h.header.gso = Gso::UdpL4),
        ("cut short", |h| h.packet.truncate(2000)),
        ("bytes after the end", |h| h.packet.push(0)),
        ("a fragment", |h| h.packet[7] = 1),
        ("a TCP header of 16 bytes", |h| h.packet[32] = 0x40),
        ("nothing", |h| h.packet.clear()),
    ];
    for (what, damage) in cases {
        let mut bad = good.clone();
        damage(&mut bad);
        let taken = take(&bad.header, &mut bad.packet);
        assert!(matches!(taken, Err(Malformed)), "{what}");
    }
}

#[test]
fn an_unfinished_checksum_must_be_where_the_transport_has_it() {
    let tcp = TCP.unfinished(&Numbers::default(), &[1; 100], 0);
    let udp = Flow { tcp: false, ..TCP }.unfinished(&Numbers::default(), &[1; 100], 0);
    let refused = |handed: &Handed, start, offset| {
        let mut packet = handed.packet.clone();
        let header = VnetHeader {
            checksum_start: start,
            checksum_offset: offset,
            ..handed.header
        };
        let taken = take(&header, &mut packet);
        let is_refused = matches!(taken, Err(Malformed));
        assert!(
            !is_refused || packet == handed.packet,
            "refused, but written to"
        );
        is_refused
    };
    assert!(!refused(&tcp, 20, 16));
    assert!(!refused(&udp, 20, 6));
    assert!(!refused(&udp, 28 + 20, 16), "a packet in a tunnel over UDP");
    for (handed, start, offset) in [
        (&tcp, 20, 6),
        (&tcp, 0, 16),
        (&tcp, 40, 16),
        (&udp, 20, 16),
        (&udp, 22, 6),
        (&udp, 10, 6),
        (&udp, 28 + 99, 0),
        (&udp, 28 + 20, 15),
        (&udp, u16::MAX, u16::MAX),
    ] {
        assert!(refused(handed, start, offset), "{start} + {offset}");
    }
}

#[test]
fn a_packet_of_one_segment_is_no_super_packet() {
    let numbers = Numbers::default();
    let mut handed = TCP.unfinished(&numbers, &[1; 1400], 1400);
    let taken = take(&handed.header, &mut handed.packet);
    assert!(matches!(taken, Ok(Offloaded::Whole(_))));
    assert_eq!(handed.packet, TCP.packet(&numbers, &[1; 1400]));
}

#[test]
fn a_checksum_of_zero_is_spelled_as_its_transport_wants() {
    let numbers = Numbers::default();
    for (tcp, at, spelled) in [(true, 36, 0u16), (false, 26, 0xffff)] {
        let flow = Flow { tcp, ..TCP };
        let part = flow.payload_to_zero(&numbers, 100);
        let whole = flow.unfinished(&numbers, &part, 0).packets();
        let split = flow.unfinished(&numbers, &[&part[..], &[1]].concat(), 100);
        for packet in [&whole[0], &split.packets()[0]] {
            assert_eq!(packet[at..at + 2], spelled.to_be_bytes());
            assert!(is_sound(packet));
        }
    }
}

#[test]
fn a_finished_packet_is_not_looked_at() {
    let mut packet = [0xff, 1, 2];
    let taken = take(&VnetHeader::PLAIN, &mut packet);
    assert!(matches!(taken, Ok(Offloaded::Whole([0xff, 1, 2]))));
}

#[test]
fn extension_headers_are_repeated_before_each_segment() {
    let flow = Flow { v6: true, ..TCP };
    let with_extension = |mut packet: Vec<u8>| {
        let payload_bytes = u16::from_be_bytes([packet[4], packet[5]]) + 8;
        packet[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
        packet[6] = 0;
        // Hop-by-hop options that are padding; then TCP.
        packet.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
        packet
    };
    let numbers = Numbers::default();
    let mut handed = flow.unfinished(&numbers, &[5; 2500], 1000);
    handed.packet = with_extension(handed.packet);
    handed.header.checksum_start += 8;
    let expected = expected(&flow, &numbers, &[5; 2500], 1000);
    let expected: Vec<_> = expected.into_iter().map(with_extension).collect();
    assert_eq!(handed.packets(), expected);
}

#[test]
fn the_longest_super_packets_are_split() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let flow = Flow { v6, tcp, ..TCP };
        let longest = if v6 { 65_535 + 40 } else { 65_535 };
        let payload = vec![0xff; longest - flow.header_bytes()];
        let numbers = Numbers {
            sequence: u32::MAX,
            identification: u16::MAX,
            ..Numbers::default()
        };
        let packets = flow.unfinished(&numbers, &payload, 1).packets();
        assert_eq!(packets.len(), payload.len());
        assert!(packets.iter().all(|packet| is_sound(packet)));
        let packets = flow.unfinished(&numbers, &payload, 60_000).packets();
        assert_eq!(packets, expected(&flow, &numbers, &payload, 60_000));
    }
}
