//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers as far as splitting and joining need them, and
//! where the fields of TCP (RFC 9293) and UDP (RFC 768) stand.

use crate::Malformed;

/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_BYTES: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub(crate) const IPV6_BYTES: usize = 40;
/// Bytes of a TCP header without options.
pub(crate) const TCP_BYTES: usize = 20;
/// Bytes of a UDP header.
pub(crate) const UDP_BYTES: usize = 8;

pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;

/// Where the checksums stand in their headers.
pub(crate) const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;
pub(crate) const IPV4_CHECKSUM: usize = 10;
/// Where the TCP flags stand in their header.
pub(crate) const TCP_FLAGS: usize = 13;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;

/// Extension headers of one packet that we follow; more are nobody's honest packet.
const EXTENSIONS_MAX: usize = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V4,
    V6,
}

/// An IP packet whose lengths fit each other and the bytes at hand exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) version: Version,
    /// With options and extension headers: where the transport header begins.
    pub(crate) header_bytes: usize,
    /// Of what comes after those.
    pub(crate) protocol: u8,
    /// True for a fragment, the first included.
    pub(crate) fragment: bool,
}

impl Ip {
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().ok_or(Malformed)? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => Err(Malformed),
        }
    }

    fn parse_v4(packet: &[u8]) -> Result<Self, Malformed> {
        let fixed = packet.first_chunk::<IPV4_BYTES>().ok_or(Malformed)?;
        let header_bytes = usize::from(fixed[0] & 0xf) * 4;
        let total_bytes = usize::from(be_u16(fixed, 2));
        if !(IPV4_BYTES..=total_bytes).contains(&header_bytes) || total_bytes != packet.len() {
            return Err(Malformed);
        }
        Ok(Self {
            version: Version::V4,
            header_bytes,
            protocol: fixed[9],
            fragment: be_u16(fixed, 6) & 0x3fff != 0,
        })
    }

    fn parse_v6(packet: &[u8]) -> Result<Self, Malformed> {
        let fixed = packet.first_chunk::<IPV6_BYTES>().ok_or(Malformed)?;
        if usize::from(be_u16(fixed, 4)) != packet.len() - IPV6_BYTES {
            return Err(Malformed);
        }
        let mut ip = Self {
            version: Version::V6,
            header_bytes: IPV6_BYTES,
            protocol: fixed[6],
            fragment: false,
        };
        for _ in 0..EXTENSIONS_MAX {
            let extension_bytes = |length: u8| (usize::from(length) + 1) * 8;
            let rest = &packet[ip.header_bytes..];
            let (next, bytes) = match (ip.protocol, rest) {
                (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS, [next, length, ..]) => {
                    (*next, extension_bytes(*length))
                }
                (FRAGMENT, [next, ..]) => {
                    ip.fragment = true;
                    (*next, extension_bytes(0))
                }
                (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT, _) => {
                    return Err(Malformed);
                }
                _ => return Ok(ip),
            };
            if bytes > rest.len() {
                return Err(Malformed);
            }
            ip.header_bytes += bytes;
            ip.protocol = next;
            if ip.fragment {
                // What follows is the transport header in the first fragment only.
                return Ok(ip);
            }
        }
        Err(Malformed)
    }
}

/// Bytes of the TCP header, its options included, at the start of `segment`.
pub(crate) fn tcp_header_bytes(segment: &[u8]) -> Result<usize, Malformed> {
    let fixed = segment.first_chunk::<TCP_BYTES>().ok_or(Malformed)?;
    let header_bytes = usize::from(fixed[12] >> 4) * 4;
    if !(TCP_BYTES..=segment.len()).contains(&header_bytes) {
        return Err(Malformed);
    }
    Ok(header_bytes)
}

/// Bytes of the UDP header at the start of `datagram`, whose length must be that of the header.
pub(crate) fn udp_header_bytes(datagram: &[u8]) -> Result<usize, Malformed> {
    let header = datagram.first_chunk::<UDP_BYTES>().ok_or(Malformed)?;
    if usize::from(be_u16(header, 4)) != datagram.len() {
        return Err(Malformed);
    }
    Ok(UDP_BYTES)
}

pub(crate) fn be_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn be_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV6_BYTES];
        packet[0] = 0x60;
        packet[5] = rest.len() as u8;
        packet[6] = next;
        packet.extend(rest);
        packet
    }

    #[test]
    fn extension_headers_are_followed_to_the_transport_header() {
        let mut chain = [0; 40];
        chain[..2].copy_from_slice(&[ROUTING, 0]);
        chain[8..10].copy_from_slice(&[PROTOCOL_TCP, 1]);
        let ip = Ip::parse(&v6(HOP_BY_HOP, &chain)).unwrap();
        assert_eq!((ip.header_bytes, ip.protocol), (40 + 24, PROTOCOL_TCP));
        assert!(!ip.fragment);
        chain[8..10].copy_from_slice(&[PROTOCOL_UDP, 0]);
        chain[0] = FRAGMENT;
        let ip = Ip::parse(&v6(HOP_BY_HOP, &chain)).unwrap();
        assert!(ip.fragment);
    }

    #[test]
    fn contradictions_are_refused() {
        let cases = [
            ("nothing", vec![]),
            ("version 5", vec![0x50; 20]),
            ("an endless chain", v6(HOP_BY_HOP, &[0; 100])),
            (
                "a chain beyond the end",
                v6(ROUTING, &[6, 1, 0, 0, 0, 0, 0, 0]),
            ),
            ("a chain cut at its end", v6(DESTINATION_OPTIONS, &[6])),
            ("a fragment cut short", v6(FRAGMENT, &[6, 0, 0])),
        ];
        for (what, packet) in cases {
            assert_eq!(Ip::parse(&packet), Err(Malformed), "{what}");
        }
        let mut longer = v6(PROTOCOL_UDP, &[0; 8]);
        longer.push(0);
        assert_eq!(Ip::parse(&longer), Err(Malformed), "bytes after the end");
    }
}
