//! Keeps TCP from sending segments that the tunnel is too narrow for.
//!
//! Both ends of a connection say in their first segment how large a segment may be (RFC 9293,
//! section 3.7.1). Where path MTU discovery fails, as it does behind firewalls that eat its
//! messages, a connection whose ends believe in 1,500 bytes would stand still; so what they say is
//! lowered to what fits.

const TCP: u8 = 6;
const TCP_BYTES_MIN: usize = 20;
const SYN: u8 = 0x02;
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_SEGMENT_SIZE: u8 = 2;
const OPTION_SEGMENT_SIZE_BYTES: usize = 4;

/// Lowers the segment size that a TCP SYN announces to what fits into packets of `mtu` bytes.
/// `packet` is a validated IP packet, no more and no less; whatever else it is stays as it is.
pub fn clamp(packet: &mut [u8], mtu: usize) {
    let Some(begin) = tcp_begin(packet) else {
        return;
    };
    let (header, segment) = packet.split_at_mut(begin);
    // Without options, as RFC 9293 counts.
    let fixed_bytes = if header[0] >> 4 == 4 { 20 } else { 40 } + TCP_BYTES_MIN;
    let Ok(most) = u16::try_from(mtu.saturating_sub(fixed_bytes)) else {
        return;
    };
    if let Some(at) = segment_size(segment) {
        let announced = u16::from_be_bytes([segment[at], segment[at + 1]]);
        if announced > most {
            replace(segment, at, most);
        }
    }
}

/// Where a TCP segment with a SYN begins; `None` for everything else.
fn tcp_begin(packet: &[u8]) -> Option<usize> {
    let begin = match packet.first()? >> 4 {
        // A later fragment has no TCP header.
        4 if *packet.get(9)? == TCP && packet.get(6)? & 0x1f == 0 && *packet.get(7)? == 0 => {
            (usize::from(packet[0] & 0xf) * 4).max(20)
        }
        6 if *packet.get(6)? == TCP => 40,
        _ => return None,
    };
    (packet.get(begin + 13)? & SYN != 0).then_some(begin)
}

/// Where the announced size stands in a segment.
fn segment_size(segment: &[u8]) -> Option<usize> {
    let header_bytes = usize::from(segment.get(12)? >> 4) * 4;
    let options = segment.get(..header_bytes)?;
    let mut at = TCP_BYTES_MIN;
    while let Some(kind) = options.get(at) {
        match *kind {
            OPTION_END => return None,
            OPTION_NOTHING => at += 1,
            kind => {
                let bytes = usize::from(*options.get(at + 1)?);
                if bytes < 2 || at + bytes > options.len() {
                    return None;
                }
                if kind == OPTION_SEGMENT_SIZE {
                    return (bytes == OPTION_SEGMENT_SIZE_BYTES).then_some(at + 2);
                }
                at += bytes;
            }
        }
    }
    None
}

/// Puts a number in the place of another and mends the checksum (RFC 1624, equation 3).
fn replace(segment: &mut [u8], at: usize, size: u16) {
    let mut sum = u32::from(!u16::from_be_bytes([segment[16], segment[17]]));
    let mut exchange = |old: u16, new: u16| sum += u32::from(!old) + u32::from(new);
    // A number may stand across two of the words that are summed up.
    let word = at & !1;
    let words = |segment: &[u8]| {
        let one = |at: usize| {
            let bytes = segment.get(at..at + 2).map(|two| [two[0], two[1]]);
            u16::from_be_bytes(bytes.unwrap_or_default())
        };
        [one(word), one(word + 2)]
    };
    let before = words(segment);
    segment[at..at + 2].copy_from_slice(&size.to_be_bytes());
    for (old, new) in before.into_iter().zip(words(segment)) {
        exchange(old, new);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, PacketHeaders, TcpOptionElement, TransportHeader};
    use proptest::prelude::*;

    fn syn(six: bool, options: &[TcpOptionElement], payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let tcp = |builder: etherparse::PacketBuilderStep<etherparse::IpHeaders>| {
            builder
                .tcp(1111, 443, 7, 64_000)
                .syn()
                .options(options)
                .unwrap()
        };
        let builder = if six {
            tcp(PacketBuilder::ipv6([1; 16], [2; 16], 64))
        } else {
            tcp(PacketBuilder::ipv4([10, 78, 0, 2], [10, 77, 2, 2], 64))
        };
        builder.write(&mut packet, payload).unwrap();
        packet
    }

    fn announced(packet: &[u8]) -> Option<u16> {
        let headers = PacketHeaders::from_ip_slice(packet).unwrap();
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else {
            panic!("no TCP");
        };
        let right = match headers.net {
            Some(etherparse::NetHeaders::Ipv4(ip, _)) => tcp
                .calc_checksum_ipv4(&ip, headers.payload.slice())
                .unwrap(),
            Some(etherparse::NetHeaders::Ipv6(ip, _)) => tcp
                .calc_checksum_ipv6(&ip, headers.payload.slice())
                .unwrap(),
            _ => panic!("no IP"),
        };
        assert_eq!(tcp.checksum, right);
        tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(size)) => Some(size),
            _ => None,
        })
    }

    #[test]
    fn what_is_too_large_is_lowered_and_what_fits_stays() {
        use TcpOptionElement::{MaximumSegmentSize, Noop, SelectiveAcknowledgementPermitted};
        for (six, most) in [(false, 1_380), (true, 1_360)] {
            for (before, after) in [(1_460, most), (9_000, most), (most, most), (536, 536)] {
                // At an even and at an odd place.
                for lead in [
                    &[][..],
                    &[Noop],
                    &[Noop, Noop, SelectiveAcknowledgementPermitted],
                ] {
                    let options = [lead, &[MaximumSegmentSize(before)]].concat();
                    let mut packet = syn(six, &options, b"early data");
                    clamp(&mut packet, 1_420);
                    assert_eq!(announced(&packet), Some(after));
                }
            }
            let mut packet = syn(six, &[], b"");
            let before = packet.clone();
            clamp(&mut packet, 1_420);
            assert_eq!(packet, before);
        }
    }

    #[test]
    fn only_first_segments_are_looked_at() {
        let mut packet = syn(false, &[TcpOptionElement::MaximumSegmentSize(1_460)], b"");
        for (at, value) in [(33, 0x10), (9, 17), (7, 1)] {
            let mut other = packet.clone();
            other[at] = value;
            let before = other.clone();
            clamp(&mut other, 1_420);
            assert_eq!(other, before);
        }
        clamp(&mut packet, 1_420);
        assert_eq!(announced(&packet), Some(1_380));
    }

    proptest! {
        /// Whatever the bytes are: nothing panics, and the length stays.
        #[test]
        fn nothing_that_arrives_panics(
            mut packet in prop::collection::vec(any::<u8>(), 0..120),
            six: bool,
            mtu in 0usize..70_000,
        ) {
            if let Some(first) = packet.first_mut() {
                *first = if six { 0x60 } else { 0x40 | (*first & 0xf) };
            }
            for at in [6, 9] {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = TCP;
                }
            }
            if !six && packet.len() > 7 {
                packet[6] = 0;
                packet[7] = 0;
            }
            let bytes = packet.len();
            clamp(&mut packet, mtu);
            prop_assert_eq!(packet.len(), bytes);
        }
    }
}
