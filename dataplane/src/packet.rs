//! Headers on the path: Ethernet II, IPv4 (RFC 791), IPv6 (RFC 8200) and UDP (RFC 768), read and
//! written in place.
//!
//! Reading validates before anything is believed: the span that comes back lies inside the
//! bytes that arrived, and it is what is billed. Nothing here allocates, panics or knows
//! about sessions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;

use topnet_checksum::{Change, Sum, checksum};

/// Bytes of an Ethernet II header without a VLAN tag.
pub const ETHERNET_BYTES: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_BYTES: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_BYTES: usize = 40;
/// Bytes of a UDP header.
pub const UDP_BYTES: usize = 8;
/// Bytes before the payload of a UDP datagram that we send over IPv4.
pub const OUTER_BYTES: usize = ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES;
/// Bytes before the payload of a UDP datagram that we send over IPv6.
pub const OUTER6_BYTES: usize = ETHERNET_BYTES + IPV6_BYTES + UDP_BYTES;
/// Smallest Ethernet frame without its checksum; shorter ones are padded (IEEE 802.3).
pub const FRAME_BYTES_MIN: usize = 60;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const PROTOCOL_UDP: u8 = 17;
/// The extension header that a fragment of an IPv6 packet begins with.
const HEADER_FRAGMENT: u8 = 44;
/// What the tunnel's own packets start with.
const OUTER_TTL: u8 = 64;

/// An interface's hardware address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// From a netlink attribute; `None` unless it has six bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// Bytes that are not the packet they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The parts of an Ethernet frame that steering needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Where the frame goes.
    pub destination: MacAddress,
    /// What it says it carries.
    pub version: Version,
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Version {
    /// What the first bits of a packet say.
    pub fn of(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().ok_or(Malformed)? >> 4 {
            4 => Ok(Self::V4),
            6 => Ok(Self::V6),
            _ => Err(Malformed),
        }
    }

    const fn ethertype(self) -> [u8; 2] {
        match self {
            Self::V4 => ETHERTYPE_IPV4,
            Self::V6 => ETHERTYPE_IPV6,
        }
    }
}

impl Ethernet {
    /// Reads an untagged IP frame's header.
    pub fn parse(frame: &[u8]) -> Result<Self, Malformed> {
        let header = frame.get(..ETHERNET_BYTES).ok_or(Malformed)?;
        let version = match [header[12], header[13]] {
            ETHERTYPE_IPV4 => Version::V4,
            ETHERTYPE_IPV6 => Version::V6,
            _ => return Err(Malformed),
        };
        let destination = MacAddress::from_slice(&header[..6]).ok_or(Malformed)?;
        Ok(Self {
            destination,
            version,
        })
    }

    /// Reads the packet after the header, which must be of the version that the header says.
    pub fn packet(&self, frame: &[u8]) -> Result<Ip, Malformed> {
        let packet = frame.get(ETHERNET_BYTES..).ok_or(Malformed)?;
        match self.version {
            Version::V4 => Ipv4::parse(packet).map(Ip::from),
            Version::V6 => Ipv6::parse(packet).map(Ip::from),
        }
    }
}

/// A validated IPv4 header: lengths fit each other and the bytes at hand, the checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Header with options.
    pub header_bytes: usize,
    /// Header and payload: what this packet is billed as.
    pub total_bytes: usize,
    /// Hops left.
    pub ttl: u8,
    /// The payload's protocol.
    pub protocol: u8,
    /// True for a fragment, the first included.
    pub fragment: bool,
    /// Sender.
    pub source: Ipv4Addr,
    /// Receiver.
    pub destination: Ipv4Addr,
}

impl Ipv4 {
    /// Reads the packet at the start of `bytes`; what follows its total length is padding.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fixed = bytes.get(..IPV4_BYTES).ok_or(Malformed)?;
        let header_bytes = usize::from(fixed[0] & 0xf) * 4;
        let total_bytes = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        let lengths_fit =
            header_bytes >= IPV4_BYTES && total_bytes >= header_bytes && total_bytes <= bytes.len();
        if fixed[0] >> 4 != 4 || !lengths_fit || checksum(&bytes[..header_bytes]) != 0 {
            return Err(Malformed);
        }
        Ok(Self {
            header_bytes,
            total_bytes,
            ttl: fixed[8],
            protocol: fixed[9],
            fragment: u16::from_be_bytes([fixed[6], fixed[7]]) & 0x3fff != 0,
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
            destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
        })
    }
}

/// A validated IPv6 header: its length fits the bytes at hand. Extension headers are not walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Header and payload: what this packet is billed as.
    pub total_bytes: usize,
    /// Hops left.
    pub hop_limit: u8,
    /// What follows the header.
    pub next_header: u8,
    /// Sender.
    pub source: Ipv6Addr,
    /// Receiver.
    pub destination: Ipv6Addr,
}

impl Ipv6 {
    /// Reads the packet at the start of `bytes`; what follows its payload is padding.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let fixed: &[u8; IPV6_BYTES] = bytes.first_chunk().ok_or(Malformed)?;
        let payload_bytes = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let total_bytes = IPV6_BYTES + payload_bytes;
        if fixed[0] >> 4 != 6 || total_bytes > bytes.len() {
            return Err(Malformed);
        }
        let address = |at: usize| -> Ipv6Addr {
            let mut octets = [0; 16];
            octets.copy_from_slice(&fixed[at..at + 16]);
            octets.into()
        };
        Ok(Self {
            total_bytes,
            hop_limit: fixed[7],
            next_header: fixed[6],
            source: address(8),
            destination: address(24),
        })
    }
}

/// What forwarding needs of a validated packet of either version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Header and payload: what this packet is billed as.
    pub total_bytes: usize,
    /// Header with IPv4's options, without IPv6's extensions.
    pub header_bytes: usize,
    /// Hops left.
    pub hops: u8,
    /// What follows the header.
    pub protocol: u8,
    /// True for a fragment, the first included.
    pub fragment: bool,
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
}

impl Ip {
    /// Reads the packet at the start of `bytes`, whose version its first bits tell.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        match Version::of(bytes)? {
            Version::V4 => Ipv4::parse(bytes).map(Self::from),
            Version::V6 => Ipv6::parse(bytes).map(Self::from),
        }
    }
}

impl From<Ipv4> for Ip {
    fn from(ip: Ipv4) -> Self {
        Self {
            total_bytes: ip.total_bytes,
            header_bytes: ip.header_bytes,
            hops: ip.ttl,
            protocol: ip.protocol,
            fragment: ip.fragment,
            source: ip.source.into(),
            destination: ip.destination.into(),
        }
    }
}

impl From<Ipv6> for Ip {
    fn from(ip: Ipv6) -> Self {
        Self {
            total_bytes: ip.total_bytes,
            header_bytes: IPV6_BYTES,
            hops: ip.hop_limit,
            protocol: ip.next_header,
            fragment: ip.next_header == HEADER_FRAGMENT,
            source: ip.source.into(),
            destination: ip.destination.into(),
        }
    }
}

/// A validated UDP header within its packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// Sender's port.
    pub source_port: u16,
    /// Receiver's port.
    pub destination_port: u16,
    /// The payload's place in the packet.
    pub payload: Range<usize>,
}

impl Udp {
    /// Reads the datagram in `packet`, whose header is `ip`. The checksum is not looked at:
    /// what we receive over UDP carries its own authentication.
    pub fn parse(packet: &[u8], ip: &Ip) -> Result<Self, Malformed> {
        if ip.protocol != PROTOCOL_UDP || ip.fragment {
            return Err(Malformed);
        }
        let datagram = packet
            .get(ip.header_bytes..ip.total_bytes)
            .ok_or(Malformed)?;
        let header = datagram.get(..UDP_BYTES).ok_or(Malformed)?;
        let udp_bytes = usize::from(u16::from_be_bytes([header[4], header[5]]));
        if udp_bytes < UDP_BYTES || udp_bytes > datagram.len() {
            return Err(Malformed);
        }
        Ok(Self {
            source_port: u16::from_be_bytes([header[0], header[1]]),
            destination_port: u16::from_be_bytes([header[2], header[3]]),
            payload: ip.header_bytes + UDP_BYTES..ip.header_bytes + udp_bytes,
        })
    }
}

/// Takes one hop from a validated packet, and mends an IPv4 header's checksum.
///
/// The caller has checked that more than one hop is left.
pub fn decrement_hops(packet: &mut [u8]) {
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
        return;
    }
    let before = u16::from_be_bytes([packet[8], packet[9]]);
    packet[8] -= 1;
    let after = u16::from_be_bytes([packet[8], packet[9]]);
    let old = u16::from_be_bytes([packet[10], packet[11]]);
    let mended = Change::default().word(before, after).mend(old);
    packet[10..12].copy_from_slice(&mended.to_be_bytes());
}

/// Writes the Ethernet header of a frame at its start.
pub fn write_ethernet(
    frame: &mut [u8],
    version: Version,
    destination: MacAddress,
    source: MacAddress,
) {
    frame[..6].copy_from_slice(&destination.0);
    frame[6..12].copy_from_slice(&source.0);
    frame[12..ETHERNET_BYTES].copy_from_slice(&version.ethertype());
}

/// A UDP datagram that we send over IPv4.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Our address and port.
    pub source: SocketAddrV4,
    /// The peer's.
    pub destination: SocketAddrV4,
    /// Distinguishes fragments if somebody on the way makes any (RFC 6864).
    pub identification: u16,
    /// Bytes that already stand after the headers.
    pub payload_bytes: usize,
}

/// Writes IPv4 and UDP headers into `frame` after the Ethernet header, before the payload,
/// and returns the frame's length. The UDP checksum is zero, which IPv4 allows: the payload
/// authenticates itself.
#[must_use]
pub fn write_outer(frame: &mut [u8], outer: &Outer) -> usize {
    let total_bytes = IPV4_BYTES + UDP_BYTES + outer.payload_bytes;
    let ip = &mut frame[ETHERNET_BYTES..ETHERNET_BYTES + IPV4_BYTES];
    ip[0] = 0x45;
    ip[1] = 0;
    ip[2..4].copy_from_slice(&(total_bytes as u16).to_be_bytes());
    ip[4..6].copy_from_slice(&outer.identification.to_be_bytes());
    ip[6..8].copy_from_slice(&[0, 0]);
    ip[8] = OUTER_TTL;
    ip[9] = PROTOCOL_UDP;
    ip[10..12].copy_from_slice(&[0, 0]);
    ip[12..16].copy_from_slice(&outer.source.ip().octets());
    ip[16..20].copy_from_slice(&outer.destination.ip().octets());
    let sum = checksum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let ports = (outer.source.port(), outer.destination.port());
    let udp = &mut frame[ETHERNET_BYTES + IPV4_BYTES..OUTER_BYTES];
    write_udp(udp, ports, outer.payload_bytes);
    ETHERNET_BYTES + total_bytes
}

/// A UDP datagram that we send over IPv6.
#[derive(Clone, Copy, Debug)]
pub struct Outer6 {
    /// Our address and port.
    pub source: SocketAddrV6,
    /// The peer's.
    pub destination: SocketAddrV6,
    /// Bytes that already stand after the headers.
    pub payload_bytes: usize,
}

/// As [`write_outer`], with IPv6. Its UDP checksum is not optional (RFC 8200, 8.1): it alone
/// protects the addresses.
#[must_use]
pub fn write_outer6(frame: &mut [u8], outer: &Outer6) -> usize {
    let udp_bytes = UDP_BYTES + outer.payload_bytes;
    let ip = &mut frame[ETHERNET_BYTES..ETHERNET_BYTES + IPV6_BYTES];
    ip[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    ip[4..6].copy_from_slice(&(udp_bytes as u16).to_be_bytes());
    ip[6] = PROTOCOL_UDP;
    ip[7] = OUTER_TTL;
    ip[8..24].copy_from_slice(&outer.source.ip().octets());
    ip[24..].copy_from_slice(&outer.destination.ip().octets());
    let ports = (outer.source.port(), outer.destination.port());
    let udp = &mut frame[ETHERNET_BYTES + IPV6_BYTES..ETHERNET_BYTES + IPV6_BYTES + udp_bytes];
    write_udp(udp, ports, outer.payload_bytes);
    let packet = &mut frame[ETHERNET_BYTES..ETHERNET_BYTES + IPV6_BYTES + udp_bytes];
    let sum = checksum6(packet, PROTOCOL_UDP);
    // Zero would say that there is none.
    let sum = if sum == [0, 0] { [0xff, 0xff] } else { sum };
    packet[IPV6_BYTES + 6..IPV6_BYTES + UDP_BYTES].copy_from_slice(&sum);
    ETHERNET_BYTES + IPV6_BYTES + udp_bytes
}

/// The checksum of what follows a whole IPv6 packet's header, with the pseudo-header before it
/// (RFC 8200, 8.1), as it stands in the packet.
pub(crate) fn checksum6(packet: &[u8], protocol: u8) -> [u8; 2] {
    let payload_bytes = (packet.len() - IPV6_BYTES) as u32;
    let pseudo_header = Sum::double_word(payload_bytes).plus(Sum::word(protocol.into()));
    pseudo_header.plus(Sum::of(&packet[8..])).complement()
}

fn write_udp(udp: &mut [u8], (source, destination): (u16, u16), payload_bytes: usize) {
    udp[..2].copy_from_slice(&source.to_be_bytes());
    udp[2..4].copy_from_slice(&destination.to_be_bytes());
    udp[4..6].copy_from_slice(&((UDP_BYTES + payload_bytes) as u16).to_be_bytes());
    udp[6..8].copy_from_slice(&[0, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Ipv4Header, Ipv4Slice, Ipv6Header, PacketBuilder};
    use proptest::prelude::*;

    fn packet(ttl: u8, payload: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ipv4([10, 78, 0, 2], [10, 77, 2, 2], ttl).udp(1111, 2222);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).unwrap();
        bytes
    }

    #[test]
    fn what_is_written_reads_back() {
        let outer = Outer {
            source: "10.77.1.1:51820".parse().unwrap(),
            destination: "10.77.1.2:40000".parse().unwrap(),
            identification: 7,
            payload_bytes: 100,
        };
        let mut frame = [0u8; 200];
        let macs = [[2; 6], [4; 6]].map(MacAddress);
        write_ethernet(&mut frame, Version::V4, macs[0], macs[1]);
        let frame_bytes = write_outer(&mut frame, &outer);
        assert_eq!(frame_bytes, OUTER_BYTES + 100);
        let ethernet = Ethernet::parse(&frame).unwrap();
        assert_eq!(ethernet.destination, MacAddress([2; 6]));
        assert_eq!(ethernet.version, Version::V4);
        let ip = Ipv4::parse(&frame[ETHERNET_BYTES..frame_bytes]).unwrap();
        assert_eq!(
            (ip.source, ip.destination),
            (*outer.source.ip(), *outer.destination.ip())
        );
        let udp = Udp::parse(&frame[ETHERNET_BYTES..frame_bytes], &ip.into()).unwrap();
        assert_eq!((udp.source_port, udp.destination_port), (51820, 40000));
        assert_eq!(udp.payload, 28..128);
        // A parser that nobody here wrote agrees.
        assert!(Ipv4Slice::from_slice(&frame[ETHERNET_BYTES..frame_bytes]).is_ok());
    }

    #[test]
    fn what_is_written_over_ipv6_reads_back_and_its_checksum_is_right() {
        for payload_bytes in [0, 1, 2, 99, 100] {
            let outer = Outer6 {
                source: "[fd77:1::1]:51820".parse().unwrap(),
                destination: "[2001:db8::ff]:40000".parse().unwrap(),
                payload_bytes,
            };
            // What was there before is not part of it.
            let mut frame = [0xab; 200];
            let macs = [[2; 6], [4; 6]].map(MacAddress);
            write_ethernet(&mut frame, Version::V6, macs[0], macs[1]);
            let frame_bytes = write_outer6(&mut frame, &outer);
            assert_eq!(frame_bytes, OUTER6_BYTES + payload_bytes);
            let ethernet = Ethernet::parse(&frame).unwrap();
            assert_eq!(ethernet.version, Version::V6);
            let ip = ethernet.packet(&frame[..frame_bytes]).unwrap();
            assert_eq!((ip.source, ip.hops), ((*outer.source.ip()).into(), 64));
            assert_eq!(ip.destination, IpAddr::from(*outer.destination.ip()));
            let packet = &frame[ETHERNET_BYTES..frame_bytes];
            let udp = Udp::parse(packet, &ip).unwrap();
            assert_eq!((udp.source_port, udp.destination_port), (51820, 40000));
            assert_eq!(udp.payload, 48..48 + payload_bytes);
            let (theirs, rest) = Ipv6Header::from_slice(packet).unwrap();
            let (header, payload) = etherparse::UdpHeader::from_slice(rest).unwrap();
            let sum = header.calc_checksum_ipv6(&theirs, payload).unwrap();
            assert_eq!(sum, header.checksum, "{payload_bytes} bytes");
        }
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_its_other_form() {
        // A payload of two bytes that brings the sum to nought.
        let outer = Outer6 {
            source: "[fd77:1::1]:51820".parse().unwrap(),
            destination: "[fd77:1::2]:40000".parse().unwrap(),
            payload_bytes: 2,
        };
        let mut frame = [0u8; OUTER6_BYTES + 2];
        let _ = write_outer6(&mut frame, &outer);
        let at = OUTER6_BYTES - 2;
        let sum = [frame[at], frame[at + 1]];
        frame[OUTER6_BYTES..].copy_from_slice(&sum);
        let _ = write_outer6(&mut frame, &outer);
        assert_eq!(frame[at..at + 2], [0xff, 0xff]);
    }

    #[test]
    fn a_frame_carries_the_version_that_it_says() {
        let mut frame = vec![0; ETHERNET_BYTES];
        frame.extend(packet(64, b"hello"));
        for (ethertype, expected) in [([8, 0], true), ([0x86, 0xdd], false)] {
            frame[12..14].copy_from_slice(&ethertype);
            let ethernet = Ethernet::parse(&frame).unwrap();
            assert_eq!(ethernet.packet(&frame).is_ok(), expected);
        }
        for ethertype in [[8, 6], [0x81, 0], [0, 0]] {
            frame[12..14].copy_from_slice(&ethertype);
            assert_eq!(Ethernet::parse(&frame), Err(Malformed));
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let good = packet(64, b"hello");
        assert!(Ipv4::parse(&good).is_ok());
        type Damage = (&'static str, fn(&mut Vec<u8>));
        let cases: [Damage; 6] = [
            ("version 6", |p| p[0] = 0x65),
            ("header of 16 bytes", |p| p[0] = 0x44),
            ("total length above what is there", |p| p[3] += 1),
            ("total length below the header", |p| p[3] = 19),
            ("checksum", |p| p[11] ^= 1),
            ("cut short", |p| p.truncate(19)),
        ];
        for (what, damage) in cases {
            let mut bad = good.clone();
            damage(&mut bad);
            assert_eq!(Ipv4::parse(&bad), Err(Malformed), "{what}");
        }
    }

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let mut padded = packet(64, b"x");
        let total_bytes = padded.len();
        padded.resize(FRAME_BYTES_MIN - ETHERNET_BYTES, 0);
        assert_eq!(Ipv4::parse(&padded).unwrap().total_bytes, total_bytes);
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_never_bills_more_than_arrived(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            plausible in any::<bool>(),
        ) {
            if plausible && bytes.len() >= IPV4_BYTES {
                bytes[0] = 0x45;
                bytes[2] = 0;
                bytes[10] = 0;
                bytes[11] = 0;
                let sum = checksum(&bytes[..IPV4_BYTES]);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let _ = Ethernet::parse(&bytes);
            if let Ok(ip) = Ipv4::parse(&bytes) {
                prop_assert!(ip.total_bytes <= bytes.len());
                prop_assert!(ip.header_bytes <= ip.total_bytes);
                let oracle = Ipv4Header::from_slice(&bytes).unwrap().0;
                prop_assert_eq!(usize::from(oracle.total_len), ip.total_bytes);
                prop_assert_eq!(oracle.source, ip.source.octets());
                prop_assert_eq!(oracle.destination, ip.destination.octets());
                if let Ok(udp) = Udp::parse(&bytes, &ip.into()) {
                    prop_assert!(udp.payload.end <= ip.total_bytes);
                    prop_assert!(udp.payload.start <= udp.payload.end);
                }
            }
        }

        #[test]
        fn ipv6_is_read_as_others_read_it_and_within_what_arrived(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            payload_bytes in 0u16..200,
        ) {
            if let Some(fixed) = bytes.first_chunk_mut::<IPV6_BYTES>() {
                fixed[0] = 0x60 | (fixed[0] & 0xf);
                fixed[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
            }
            let read = Ip::parse(&bytes);
            prop_assert_eq!(
                read.is_ok(),
                bytes.len() >= IPV6_BYTES + usize::from(payload_bytes)
            );
            if let Ok(ip) = read {
                let oracle = Ipv6Header::from_slice(&bytes).unwrap().0;
                prop_assert_eq!(ip.total_bytes, IPV6_BYTES + usize::from(oracle.payload_length));
                prop_assert_eq!(ip.source, IpAddr::from(oracle.source));
                prop_assert_eq!(ip.destination, IpAddr::from(oracle.destination));
                if let Ok(udp) = Udp::parse(&bytes, &ip) {
                    prop_assert_eq!(oracle.next_header.0, 17);
                    prop_assert!(udp.payload.end <= ip.total_bytes);
                    prop_assert!(udp.payload.start <= udp.payload.end);
                }
                prop_assert_eq!(ip.hops, oracle.hop_limit);
                if ip.hops > 0 {
                    decrement_hops(&mut bytes);
                    prop_assert_eq!(Ip::parse(&bytes).map(|ip| ip.hops), Ok(ip.hops - 1));
                }
            }
        }

        #[test]
        fn the_mended_checksum_is_the_computed_one(ttl in 2u8.., payload in any::<[u8; 8]>()) {
            let mut bytes = packet(ttl, &payload);
            decrement_hops(&mut bytes);
            let ip = Ipv4::parse(&bytes);
            prop_assert_eq!(ip.map(|ip| ip.ttl), Ok(ttl - 1));
            let oracle = Ipv4Header::from_slice(&bytes).unwrap().0;
            prop_assert_eq!(oracle.calc_header_checksum(), oracle.header_checksum);
        }
    }
}
