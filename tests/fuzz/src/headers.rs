//! The words and checksums of IP packets, for targets that write packets of their own. The sums
//! are `etherparse`'s, not those of the code under test.

use std::ops::Range;

use etherparse::checksum::Sum16BitWords;

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
