//! Which packets can be joined at all, and which two of them.

use topnet_checksum::Sum;

use crate::headers::{
    ACK, IPV4_BYTES, IPV4_CHECKSUM, IPV6_BYTES, Ip, PROTOCOL_TCP, PROTOCOL_UDP, PSH, TCP_CHECKSUM,
    TCP_FLAGS, UDP_CHECKSUM, Version, be_u16, be_u32, tcp_header_bytes, udp_header_bytes,
};

/// Where the addresses are, and right after them the ports: the headers before the transport
/// header have no options here.
const V4_ADDRESSES: std::ops::Range<usize> = 12..IPV4_BYTES;
const V6_ADDRESSES: std::ops::Range<usize> = 8..IPV6_BYTES;
const PORTS_BYTES: usize = 4;
/// The flag of IPv4 that forbids fragmenting, in the byte at 6.
const DONT_FRAGMENT: u8 = 0x40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// A packet as far as its flow matters to the order.
#[derive(Debug)]
pub(super) enum Arrival<'a> {
    /// Others may join it.
    Joinable(Candidate),
    /// Of a flow whose packets can be joined, but not this one.
    Barred { tag: u32, flow: &'a [u8] },
    /// Perhaps of such a flow: its ports are out of sight, in another fragment or further back.
    Portless { addresses: &'a [u8] },
    /// Of no such flow.
    Apart,
    /// Not an IP packet from the first byte to the last.
    Unreadable,
}

/// A packet of TCP or UDP with payload and without anything that stands against joining it.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) v6: bool,
    pub(super) transport: Transport,
    /// Differs between most flows.
    pub(super) tag: u32,
    pub(super) payload_bytes: usize,
    /// It has the flag that ends a group.
    pub(super) pushed: bool,
    transport_header_bytes: usize,
    /// TCP's sequence number.
    sequence: u32,
    /// IPv4's identification, if it means anything: not if the packet must not be fragmented
    /// (RFC 6864, section 4.1).
    identification: Option<u16>,
}

impl<'a> Arrival<'a> {
    pub(super) fn of(packet: &'a [u8], join_udp: bool) -> Self {
        let Ok(ip) = Ip::parse(packet) else {
            return Self::Unreadable;
        };
        let (v6, addresses, plain_bytes) = match ip.version {
            Version::V4 => (false, V4_ADDRESSES, IPV4_BYTES),
            Version::V6 => (true, V6_ADDRESSES, IPV6_BYTES),
        };
        let transport = match ip.protocol {
            PROTOCOL_TCP => Transport::Tcp,
            PROTOCOL_UDP if join_udp => Transport::Udp,
            PROTOCOL_UDP => return Self::Apart,
            _ if v6 && ip.fragment => return Self::portless(packet, addresses),
            _ => return Self::Apart,
        };
        if ip.fragment || ip.header_bytes != plain_bytes {
            return Self::portless(packet, addresses);
        }
        let flow = addresses.start..addresses.end + PORTS_BYTES;
        let Some(flow) = packet.get(flow) else {
            return Self::portless(packet, addresses);
        };
        let tag = tag_of(flow, transport);
        match Candidate::of(packet, v6, transport, tag) {
            Some(candidate) => Self::Joinable(candidate),
            None => Self::Barred { tag, flow },
        }
    }

    fn portless(packet: &'a [u8], addresses: std::ops::Range<usize>) -> Self {
        packet
            .get(addresses)
            .map_or(Self::Unreadable, |addresses| Self::Portless { addresses })
    }
}

impl Candidate {
    fn of(packet: &[u8], v6: bool, transport: Transport, tag: u32) -> Option<Self> {
        let transport_start = if v6 { IPV6_BYTES } else { IPV4_BYTES };
        let segment = &packet[transport_start..];
        let transport_header_bytes = match transport {
            Transport::Tcp => tcp_header_bytes(segment).ok()?,
            Transport::Udp => udp_header_bytes(segment).ok()?,
        };
        let payload_bytes = segment.len() - transport_header_bytes;
        let (pushed, sequence) = match transport {
            Transport::Tcp => {
                let flags = segment[TCP_FLAGS];
                // The other spelling of a checksum of zero would not survive.
                let written_as_ours = be_u16(segment, TCP_CHECKSUM) != u16::MAX;
                if flags & !PSH != ACK || !written_as_ours {
                    return None;
                }
                (flags & PSH != 0, be_u32(segment, 4))
            }
            Transport::Udp if be_u16(segment, UDP_CHECKSUM) == 0 => return None,
            Transport::Udp => (false, 0),
        };
        if payload_bytes == 0 || (!v6 && be_u16(packet, IPV4_CHECKSUM) == u16::MAX) {
            return None;
        }
        let identified = !v6 && packet[6] & DONT_FRAGMENT == 0;
        Some(Self {
            v6,
            transport,
            tag,
            payload_bytes,
            pushed,
            transport_header_bytes,
            sequence,
            identification: identified.then(|| be_u16(packet, 4)),
        })
    }

    pub(super) fn transport_start(&self) -> usize {
        if self.v6 { IPV6_BYTES } else { IPV4_BYTES }
    }

    /// Bytes before the payload.
    pub(super) fn header_bytes(&self) -> usize {
        self.transport_start() + self.transport_header_bytes
    }

    /// What tells the flow from others, in this packet's bytes.
    pub(super) fn flow<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        let start = if self.v6 { V6_ADDRESSES } else { V4_ADDRESSES }.start;
        &packet[start..self.transport_start() + PORTS_BYTES]
    }

    /// Whether `next` has the numbers of the packet that comes `packets` after this one.
    pub(super) fn is_continued(&self, packets: usize, next: &Self) -> bool {
        // Both are bounded by the length of a super-packet.
        let sequence = self
            .sequence
            .wrapping_add((packets * self.payload_bytes) as u32);
        let identification = self
            .identification
            .map(|first| first.wrapping_add(packets as u16));
        (self.transport == Transport::Udp || sequence == next.sequence)
            && identification == next.identification
    }

    /// Whether everything else in the headers is equal: all that has one place in a super-packet.
    pub(super) fn same_headers(&self, ours: &[u8], theirs: &[u8]) -> bool {
        let header_bytes = self.header_bytes();
        let (Some(ours), Some(theirs)) = (ours.get(..header_bytes), theirs.get(..header_bytes))
        else {
            return false;
        };
        let (our_ip, our_transport) = ours.split_at(self.transport_start());
        let (their_ip, their_transport) = theirs.split_at(self.transport_start());
        let same_ip = if self.v6 {
            // Version, class and flow label; next header and hop limit.
            our_ip[..4] == their_ip[..4] && our_ip[6..] == their_ip[6..]
        } else {
            // Version, header length and type of service; all but the checksum.
            our_ip[..2] == their_ip[..2]
                && our_ip[6..10] == their_ip[6..10]
                && our_ip[12..] == their_ip[12..]
        };
        let same_transport = match self.transport {
            // Acknowledgement and header length; the flags were looked at; window; urgent
            // pointer and options.
            Transport::Tcp => {
                our_transport[..4] == their_transport[..4]
                    && our_transport[8..13] == their_transport[8..13]
                    && our_transport[14..16] == their_transport[14..16]
                    && our_transport[18..] == their_transport[18..]
            }
            Transport::Udp => our_transport[..4] == their_transport[..4],
        };
        same_ip && same_transport
    }

    /// Whether the checksums in the packet are right.
    pub(super) fn verifies(&self, packet: &[u8]) -> bool {
        let (ip, segment) = packet.split_at(self.transport_start());
        let pseudo_header = self.pseudo_header(ip, segment.len() as u16);
        (self.v6 || Sum::of(ip).verifies()) && Sum::of(segment).plus(pseudo_header).verifies()
    }

    /// Sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1) for a transport
    /// header and payload of so many bytes.
    pub(super) fn pseudo_header(&self, ip: &[u8], transport_bytes: u16) -> Sum {
        let (addresses, protocol) = (
            if self.v6 { V6_ADDRESSES } else { V4_ADDRESSES },
            match self.transport {
                Transport::Tcp => PROTOCOL_TCP,
                Transport::Udp => PROTOCOL_UDP,
            },
        );
        Sum::of(&ip[addresses])
            .plus(Sum::word(u16::from(protocol)))
            .plus(Sum::word(transport_bytes))
    }
}

/// Whether a candidate's packet is of the flow with these addresses and ports. Its transport was
/// compared with the tag.
pub(super) fn is_of_flow(packet: &[u8], flow: &[u8]) -> bool {
    let addresses = addresses_of(packet);
    let ours = addresses.start..addresses.end + PORTS_BYTES;
    packet.get(ours) == Some(flow)
}

/// Whether a candidate's packet goes between these addresses.
pub(super) fn between(packet: &[u8], addresses: &[u8]) -> bool {
    packet.get(addresses_of(packet)) == Some(addresses)
}

/// Equal for packets of one flow, different for most others, and always for TCP beside UDP.
fn tag_of(flow: &[u8], transport: Transport) -> u32 {
    let (words, _) = flow.as_chunks::<4>();
    let tag = words.iter().fold(0u32, |tag, word| {
        tag.rotate_left(7) ^ u32::from_ne_bytes(*word)
    });
    match transport {
        Transport::Tcp => tag & !1,
        Transport::Udp => tag | 1,
    }
}

fn addresses_of(packet: &[u8]) -> std::ops::Range<usize> {
    match packet.first() {
        Some(first) if first >> 4 == 6 => V6_ADDRESSES,
        _ => V4_ADDRESSES,
    }
}
