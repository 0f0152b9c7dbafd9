//! The words and checksums of IP packets, for targets that write packets of their own. The sums
//! are `etherparse`'s, not those of the code under test.

use std::{net::Ipv4Addr, ops::Range};

use etherparse::checksum::Sum16BitWords;

pub(crate) const IPV4_BYTES: usize = 20;
pub(crate) const IPV6_BYTES: usize = 40;
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn put_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Where a packet's addresses are.
pub(crate) const fn addresses(v6: bool) -> Range<usize> {
    if v6 { 8..IPV6_BYTES } else { 12..20 }
}

/// The sum of the pseudo-header for what follows `transport`.
pub(crate) fn pseudo_header(packet: &[u8], transport: usize, protocol: u8) -> Sum16BitWords {
    let transport_bytes = (packet.len() - transport) as u16;
    Sum16BitWords::new()
        .add_slice(&packet[addresses(packet[0] >> 4 == 6)])
        .add_2bytes([0, protocol])
        .add_2bytes(transport_bytes.to_be_bytes())
}

/// Whether a sum with its checksum in it is right.
pub(crate) fn is_zero(sum: Sum16BitWords) -> bool {
    sum.ones_complement() == 0
}

pub(crate) fn put_checksum(packet: &mut [u8], at: usize, sum: Sum16BitWords) {
    packet[at..at + 2].copy_from_slice(&sum.ones_complement().to_ne_bytes());
}

/// Makes an IPv4 header's checksum right.
pub(crate) fn mend_ip(packet: &mut [u8], header_bytes: usize) {
    put_word(packet, 10, 0);
    let sum = Sum16BitWords::new().add_slice(&packet[..header_bytes]);
    put_checksum(packet, 10, sum);
}

/// Makes the checksum of ICMP, TCP or UDP right, whose header is there.
pub(crate) fn mend_transport(packet: &mut [u8], transport: usize, protocol: u8) {
    let (at, start) = match protocol {
        ICMP => (transport + 2, Sum16BitWords::new()),
        TCP => (transport + 16, pseudo_header(packet, transport, TCP)),
        _ => (transport + 6, pseudo_header(packet, transport, UDP)),
    };
    put_word(packet, at, 0);
    put_checksum(packet, at, start.add_slice(&packet[transport..]));
    // Zero says that there is none.
    if protocol == UDP && word(packet, at) == 0 {
        put_word(packet, at, 0xffff);
    }
}

/// An IPv4 header that lacks its length and its checksum.
pub(crate) fn ipv4(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 9, 0, 0, 64, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    header
}

/// Writes the length and the checksums that a packet should have.
pub(crate) fn mend_lengths(packet: &mut [u8]) {
    put_word(packet, 2, packet.len() as u16);
    mend(packet);
}

/// Makes the checksums right of what looks like a packet.
pub(crate) fn mend(packet: &mut [u8]) {
    if packet.len() < IPV4_BYTES || packet[0] >> 4 != 4 {
        return;
    }
    let (transport, protocol) = (header_bytes(packet), packet[9]);
    if !(IPV4_BYTES..=packet.len()).contains(&transport) {
        return;
    }
    mend_ip(packet, transport);
    let needed_bytes = match protocol {
        ICMP | UDP => 8,
        TCP => 20,
        _ => return,
    };
    if packet.len() >= transport + needed_bytes {
        mend_transport(packet, transport, protocol);
    }
}

/// Whether the checksums of the header and of what follows are right; `None` if there is none.
pub(crate) fn sums(packet: &[u8]) -> (bool, Option<bool>) {
    let transport = header_bytes(packet);
    let header = is_zero(sum(&packet[..transport]));
    let fragment = word(packet, 6) & 0x3fff != 0;
    let payload = match packet[9] {
        _ if fragment => None,
        ICMP => Some(sum(&packet[transport..])),
        TCP => Some(pseudo_header(packet, transport, TCP).add_slice(&packet[transport..])),
        _ if word(packet, transport + 6) == 0 => None,
        _ => {
            // Behind it there may be bytes that are not the datagram's.
            let datagram = &packet[..transport + usize::from(word(packet, transport + 4))];
            Some(pseudo_header(datagram, transport, UDP).add_slice(&datagram[transport..]))
        }
    };
    (header, payload.map(is_zero))
}

/// Without a pseudo-header.
pub(crate) fn sum(bytes: &[u8]) -> Sum16BitWords {
    Sum16BitWords::new().add_slice(bytes)
}

/// What an IPv4 header says of its length.
pub(crate) fn header_bytes(packet: &[u8]) -> usize {
    usize::from(packet[0] & 0xf) * 4
}

pub(crate) fn address(packet: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3])
}
