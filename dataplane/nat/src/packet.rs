//! IPv4 packets and what tells subscribers' packets apart in them, read and rewritten in place.
//!
//! The caller has checked the header's checksum; everything else is checked here before it is
//! believed. Rewriting mends checksums and cannot fail, so that a packet is changed wholly or
//! not at all.
//!
//! What every packet goes through is inlined by force, here and in the tables. Left alone, the
//! compiler passes headers and keys through memory, written in parts and read as a whole, and
//! the processor waits for that longer than for the hash.

use topnet_checksum::Change;

use crate::Refusal;
use crate::tcp::Signal;

/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_BYTES: usize = 20;
/// Bytes of a UDP header, of an ICMP header, and of what an ICMP error embeds at least.
pub(crate) const TRANSPORT_BYTES_MIN: usize = 8;
const TCP_BYTES: usize = 20;

const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMP_TIME_EXCEEDED: u8 = 11;
const ICMP_PARAMETER_PROBLEM: u8 = 12;

/// Protocols with a port, or what serves as one. Each has its own port space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// UDP, RFC 4787.
    Udp,
    /// TCP, RFC 5382.
    Tcp,
    /// ICMP queries by their identifier, RFC 5508.
    Icmp,
}

impl Protocol {
    pub(crate) const ALL: [Self; 3] = [Self::Udp, Self::Tcp, Self::Icmp];

    #[inline(always)]
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Icmp),
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

/// Which part of a packet this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// With the transport header.
    First,
    /// Without.
    Later,
}

/// A validated IPv4 header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// With options: where the transport header begins.
    pub header_bytes: usize,
    pub protocol: Protocol,
    pub part: Part,
    pub identification: u16,
    pub source: u32,
    pub destination: u32,
}

impl Header {
    /// Reads the header of `packet`, which is exactly one packet.
    #[inline(always)]
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, Refusal> {
        let header = Self::parse_start(packet).ok_or(Refusal::Malformed)?;
        let total_bytes = usize::from(word(packet, 2));
        if total_bytes != packet.len() {
            return Err(Refusal::Malformed);
        }
        let Some(protocol) = Protocol::from_number(packet[9]) else {
            return Err(Refusal::ProtocolUnsupported);
        };
        let fragment = word(packet, 6);
        let offset_bytes = usize::from(fragment & 0x1fff) * 8;
        let part = match (offset_bytes, fragment & 0x2000 != 0) {
            (0, false) => Part::Whole,
            (0, true) => Part::First,
            _ => Part::Later,
        };
        let payload_bytes = total_bytes - header;
        // Nothing reassembles beyond 65535 bytes, and a second TCP fragment at 8 would
        // overwrite the flags that were looked at (RFC 3128).
        let overlong = offset_bytes + payload_bytes + header > 0xffff;
        if part == Part::Later && (overlong || protocol == Protocol::Tcp && offset_bytes == 8) {
            return Err(Refusal::Malformed);
        }
        Ok(Self {
            header_bytes: header,
            protocol,
            part,
            identification: word(packet, 4),
            source: address(packet, 12),
            destination: address(packet, 16),
        })
    }

    /// Reads the header that an ICMP error embeds at the start of `bytes`; the rest of the
    /// packet may be missing.
    pub(crate) fn parse_embedded(bytes: &[u8]) -> Option<Self> {
        let header_bytes = Self::parse_start(bytes)?;
        let later = word(bytes, 6) & 0x1fff != 0;
        Some(Self {
            header_bytes,
            protocol: Protocol::from_number(bytes[9])?,
            part: if later { Part::Later } else { Part::Whole },
            identification: word(bytes, 4),
            source: address(bytes, 12),
            destination: address(bytes, 16),
        })
    }

    /// The header's length, if it is one of IPv4 and there.
    #[inline(always)]
    fn parse_start(bytes: &[u8]) -> Option<usize> {
        if bytes.len() < IPV4_BYTES || bytes[0] >> 4 != 4 {
            return None;
        }
        let header_bytes = usize::from(bytes[0] & 0xf) * 4;
        (header_bytes >= IPV4_BYTES && header_bytes <= bytes.len()).then_some(header_bytes)
    }
}

/// What a packet is beyond its IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// From port to port. What TCP says of its connection; nothing with UDP.
    Ports {
        source: u16,
        destination: u16,
        signal: Signal,
    },
    /// An echo request, with its identifier.
    Request(u16),
    /// An echo reply.
    Reply(u16),
    /// An ICMP error, whose embedded packet is not looked at yet.
    Error,
}

impl Transport {
    /// Reads the transport header of a whole packet or a first fragment.
    #[inline(always)]
    pub(crate) fn parse(packet: &[u8], header: &Header) -> Result<Self, Refusal> {
        let transport = &packet[header.header_bytes..];
        let whole = header.part == Part::Whole;
        let parsed = match header.protocol {
            Protocol::Udp => parse_udp(transport, whole),
            Protocol::Tcp => parse_tcp(transport, whole),
            Protocol::Icmp => return parse_icmp(transport),
        };
        parsed.ok_or(Refusal::Malformed)
    }
}

#[inline(always)]
fn parse_udp(transport: &[u8], whole: bool) -> Option<Transport> {
    if transport.len() < TRANSPORT_BYTES_MIN {
        return None;
    }
    let udp_bytes = usize::from(word(transport, 4));
    // In a fragment the length is that of the whole.
    let fits = udp_bytes >= TRANSPORT_BYTES_MIN && (!whole || udp_bytes <= transport.len());
    let (source, destination) = ports(transport)?;
    fits.then_some(Transport::Ports {
        source,
        destination,
        signal: Signal::Data,
    })
}

#[inline(always)]
fn parse_tcp(transport: &[u8], whole: bool) -> Option<Transport> {
    // A first fragment too: one without the flags hides what it is (RFC 1858).
    if transport.len() < TCP_BYTES {
        return None;
    }
    let tcp_bytes = usize::from(transport[12] >> 4) * 4;
    if tcp_bytes < TCP_BYTES || (whole && tcp_bytes > transport.len()) {
        return None;
    }
    let (source, destination) = ports(transport)?;
    Some(Transport::Ports {
        source,
        destination,
        signal: Signal::from_flags(transport[13])?,
    })
}

/// Neither port may be zero: nothing can be sent there, so nothing can be answered.
#[inline(always)]
fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let (source, destination) = (word(transport, 0), word(transport, 2));
    (source != 0 && destination != 0).then_some((source, destination))
}

fn parse_icmp(transport: &[u8]) -> Result<Transport, Refusal> {
    if transport.len() < TRANSPORT_BYTES_MIN {
        return Err(Refusal::Malformed);
    }
    match transport[0] {
        ICMP_ECHO_REQUEST => Ok(Transport::Request(word(transport, 4))),
        ICMP_ECHO_REPLY => Ok(Transport::Reply(word(transport, 4))),
        ICMP_UNREACHABLE | ICMP_TIME_EXCEEDED | ICMP_PARAMETER_PROBLEM => Ok(Transport::Error),
        _ => Err(Refusal::IcmpType),
    }
}

/// What a packet without options most likely is about. Nothing is checked, so nothing but where
/// to look may rest on it.
#[derive(Clone, Copy)]
pub(crate) struct Glimpse {
    pub protocol: Protocol,
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Glimpse {
    #[inline(always)]
    pub(crate) fn of(packet: &[u8]) -> Self {
        const NOTHING: &[u8; IPV4_BYTES + 4] = &[0; IPV4_BYTES + 4];
        let bytes = packet.first_chunk().unwrap_or(NOTHING);
        Self {
            protocol: Protocol::from_number(bytes[9]).unwrap_or(Protocol::Icmp),
            source: address(bytes, 12),
            destination: address(bytes, 16),
            source_port: word(bytes, IPV4_BYTES),
            destination_port: word(bytes, IPV4_BYTES + 2),
        }
    }
}

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl End {
    const fn address_at(self) -> usize {
        match self {
            Self::Source => 12,
            Self::Destination => 16,
        }
    }

    /// Where the port stands in the transport header; a query's identifier is at both ends.
    const fn port_at(self, protocol: Protocol) -> usize {
        match (protocol, self) {
            (Protocol::Icmp, _) => 4,
            (_, Self::Source) => 0,
            (_, Self::Destination) => 2,
        }
    }
}

/// Rewrites one end's address and port, and mends what checksums are there. `packet` may end
/// with the eighth byte of the transport header, as embedded ones do.
#[inline(always)]
pub(crate) fn rewrite(
    packet: &mut [u8],
    header: &Header,
    end: End,
    new_address: u32,
    new_port: u16,
) {
    let old_address = address(packet, end.address_at());
    rewrite_address(packet, end, new_address);
    let transport = &mut packet[header.header_bytes..];
    let port_at = end.port_at(header.protocol);
    let ports = Change::default().word(word(transport, port_at), new_port);
    put_word(transport, port_at, new_port);
    // Ports and addresses count in the checksums of TCP and UDP, by way of the pseudo-header.
    match header.protocol {
        Protocol::Udp => {
            let change = ports.address(old_address, new_address);
            put_word(transport, 6, change.mend_udp(word(transport, 6)));
        }
        Protocol::Tcp if transport.len() >= 18 => {
            let change = ports.address(old_address, new_address);
            put_word(transport, 16, change.mend(word(transport, 16)));
        }
        Protocol::Tcp => {}
        Protocol::Icmp => put_word(transport, 2, ports.mend(word(transport, 2))),
    }
}

/// Rewrites one end's address alone: all that there is to a later fragment.
#[inline(always)]
pub(crate) fn rewrite_address(packet: &mut [u8], end: End, new_address: u32) {
    let at = end.address_at();
    let change = Change::default().address(address(packet, at), new_address);
    packet[at..at + 4].copy_from_slice(&new_address.to_be_bytes());
    put_word(packet, 10, change.mend(word(packet, 10)));
}

/// The 16-bit word at `at`, which lies inside.
#[inline(always)]
pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline(always)]
pub(crate) fn put_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[inline(always)]
fn address(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
