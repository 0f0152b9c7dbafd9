//! From the device: finishes checksums and splits super-packets.
//!
//! An unfinished checksum holds the sum of its pseudo-header, as the sender's kernel wrote it.
//! It is continued, never written anew: whatever was wrong with it stays wrong.

use topnet_checksum::Sum;

use crate::headers::{
    CWR, FIN, IPV4_CHECKSUM, Ip, PROTOCOL_TCP, PROTOCOL_UDP, PSH, TCP_CHECKSUM, TCP_FLAGS,
    UDP_BYTES, UDP_CHECKSUM, Version, be_u16, be_u32, put_u16, tcp_header_bytes, udp_header_bytes,
};
use crate::{Gso, Malformed, VnetHeader};

/// Where a TCP header has its sequence number.
const TCP_SEQUENCE: usize = 4;
/// The word of a TCP header that holds the flags.
const TCP_FLAGS_WORD: usize = TCP_FLAGS - 1;
/// What a UDP checksum of zero is written as, because zero says that there is none.
const UDP_ZERO: [u8; 2] = [0xff; 2];

/// A packet as it came from the device.
#[derive(Debug)]
pub enum Offloaded<'a> {
    /// One packet. If its checksum was unfinished, that was mended in place.
    Whole(&'a mut [u8]),
    /// At least two.
    Super(Segments<'a>),
}

/// Reads what the device put after `header`: exactly one IP packet, or one super-packet.
///
/// A header without unfinished work says nothing about the packet, which is then not looked at.
pub fn take<'a>(header: &VnetHeader, packet: &'a mut [u8]) -> Result<Offloaded<'a>, Malformed> {
    if header.gso != Gso::None {
        let layout = Layout::parse(header, packet)?;
        // The kernel, too, does not call a packet of one segment a super-packet.
        if packet.len() - layout.payload_start > layout.segment_bytes {
            return Ok(Offloaded::Super(Segments::new(layout, packet)));
        }
    }
    if header.needs_checksum {
        finish_checksum(header, packet)?;
    }
    Ok(Offloaded::Whole(packet))
}

fn finish_checksum(header: &VnetHeader, packet: &mut [u8]) -> Result<(), Malformed> {
    let ip = Ip::parse(packet)?;
    let start = usize::from(header.checksum_start);
    let offset = usize::from(header.checksum_offset);
    let at_transport = start == ip.header_bytes;
    let plausible = match ip.protocol {
        PROTOCOL_TCP => at_transport && offset == TCP_CHECKSUM,
        // Or that of a packet in a tunnel over UDP, whose own checksum is finished.
        PROTOCOL_UDP if start < ip.header_bytes + UDP_BYTES => {
            at_transport && offset == UDP_CHECKSUM
        }
        _ => start >= ip.header_bytes && offset % 2 == 0,
    };
    let end = start + offset + 2;
    if ip.fragment || !plausible || end > packet.len() {
        return Err(Malformed);
    }
    let mut checksum = Sum::of(&packet[start..]).complement();
    if checksum == [0; 2] && ip.protocol != PROTOCOL_TCP {
        checksum = UDP_ZERO;
    }
    packet[end - 2..end].copy_from_slice(&checksum);
    Ok(())
}

/// Where the parts of a super-packet are.
#[derive(Clone, Copy, Debug)]
struct Layout {
    version: Version,
    protocol: u8,
    transport_start: usize,
    payload_start: usize,
    segment_bytes: usize,
}

impl Layout {
    /// Checks the header against the packet. `header_bytes` is not believed: a kernel that
    /// forwards puts there what it happens to have in one piece.
    fn parse(header: &VnetHeader, packet: &[u8]) -> Result<Self, Malformed> {
        let (version, protocol, checksum_offset) = match header.gso {
            Gso::None => return Err(Malformed),
            Gso::TcpV4 { .. } => (Some(Version::V4), PROTOCOL_TCP, TCP_CHECKSUM),
            Gso::TcpV6 { .. } => (Some(Version::V6), PROTOCOL_TCP, TCP_CHECKSUM),
            Gso::UdpL4 => (None, PROTOCOL_UDP, UDP_CHECKSUM),
        };
        let ip = Ip::parse(packet)?;
        let agrees = version.is_none_or(|version| version == ip.version)
            && protocol == ip.protocol
            && !ip.fragment
            && header.needs_checksum
            && header.segment_bytes != 0
            && usize::from(header.checksum_start) == ip.header_bytes
            && usize::from(header.checksum_offset) == checksum_offset;
        if !agrees {
            return Err(Malformed);
        }
        let transport = &packet[ip.header_bytes..];
        let transport_bytes = match protocol {
            PROTOCOL_TCP => tcp_header_bytes(transport)?,
            _ => udp_header_bytes(transport)?,
        };
        Ok(Self {
            version: ip.version,
            protocol,
            transport_start: ip.header_bytes,
            payload_start: ip.header_bytes + transport_bytes,
            segment_bytes: usize::from(header.segment_bytes),
        })
    }
}

/// The buffer for the next packet is too short. Nothing has happened: try with a longer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the next packet of a super-packet has {packet_bytes} bytes: give it that much room")]
pub struct TooShort {
    /// What the next packet needs.
    pub packet_bytes: usize,
}

/// The packets of a super-packet, in their order.
#[derive(Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    layout: Layout,
    /// Where the next one's payload begins.
    next: usize,
    /// How many were written.
    written: u16,
    /// Sum of the IPv4 header without what differs between the packets.
    ip_rest: Sum,
    /// Sum of the transport header and its pseudo-header without what differs.
    transport_rest: Sum,
}

impl<'a> Segments<'a> {
    fn new(layout: Layout, packet: &'a [u8]) -> Self {
        let ip = &packet[..layout.transport_start];
        let ip_rest = match layout.version {
            Version::V4 => Sum::of(ip)
                .without_word(be_u16(ip, 2))
                .without_word(be_u16(ip, 4))
                .without_word(be_u16(ip, IPV4_CHECKSUM)),
            Version::V6 => Sum::default(),
        };
        let transport = &packet[layout.transport_start..layout.payload_start];
        // `Ip::parse` compared this with a field of 16 bits.
        let transport_bytes = (packet.len() - layout.transport_start) as u16;
        let sum = Sum::of(transport).without_word(transport_bytes);
        let transport_rest = match layout.protocol {
            PROTOCOL_TCP => sum
                .without_word(be_u16(transport, TCP_SEQUENCE))
                .without_word(be_u16(transport, TCP_SEQUENCE + 2))
                .without_word(be_u16(transport, TCP_FLAGS_WORD)),
            _ => sum.without_word(transport_bytes),
        };
        Self {
            packet,
            layout,
            next: layout.payload_start,
            written: 0,
            ip_rest,
            transport_rest,
        }
    }

    /// How many packets are left.
    #[must_use]
    pub fn packets(&self) -> usize {
        (self.packet.len() - self.next).div_ceil(self.layout.segment_bytes)
    }

    /// Bytes of the longest packet: room that is enough for each.
    #[must_use]
    pub fn packet_bytes_max(&self) -> usize {
        self.layout.payload_start + self.layout.segment_bytes
    }

    /// Writes the next packet to the start of `out` and returns its length; `None` after the
    /// last one.
    pub fn next_into(&mut self, out: &mut [u8]) -> Result<Option<usize>, TooShort> {
        let rest = &self.packet[self.next..];
        if rest.is_empty() {
            return Ok(None);
        }
        let payload = &rest[..rest.len().min(self.layout.segment_bytes)];
        let packet_bytes = self.layout.payload_start + payload.len();
        let Some(out) = out.get_mut(..packet_bytes) else {
            return Err(TooShort { packet_bytes });
        };
        let (headers, body) = out.split_at_mut(self.layout.payload_start);
        headers.copy_from_slice(&self.packet[..self.layout.payload_start]);
        body.copy_from_slice(payload);
        let (ip, transport) = headers.split_at_mut(self.layout.transport_start);
        self.mend_ip(ip, packet_bytes);
        let transport_bytes = (packet_bytes - self.layout.transport_start) as u16;
        let sum = self
            .transport_rest
            .plus(Sum::of(body))
            .plus(Sum::word(transport_bytes));
        match self.layout.protocol {
            PROTOCOL_TCP => self.mend_tcp(transport, payload.len() == rest.len(), sum),
            _ => mend_udp(transport, transport_bytes, sum),
        }
        self.next += payload.len();
        self.written += 1;
        Ok(Some(packet_bytes))
    }

    fn mend_ip(&self, ip: &mut [u8], packet_bytes: usize) {
        if self.layout.version == Version::V6 {
            // Extension headers count as payload.
            let payload_bytes = packet_bytes - crate::headers::IPV6_BYTES;
            return put_u16(ip, 4, payload_bytes as u16);
        }
        let identification = be_u16(ip, 4).wrapping_add(self.written);
        put_u16(ip, 2, packet_bytes as u16);
        put_u16(ip, 4, identification);
        let sum = self
            .ip_rest
            .plus(Sum::word(packet_bytes as u16))
            .plus(Sum::word(identification));
        ip[IPV4_CHECKSUM..IPV4_CHECKSUM + 2].copy_from_slice(&sum.complement());
    }

    fn mend_tcp(&self, tcp: &mut [u8], last: bool, sum: Sum) {
        let sent_bytes = (self.next - self.layout.payload_start) as u32;
        let sequence = be_u32(tcp, TCP_SEQUENCE).wrapping_add(sent_bytes);
        tcp[TCP_SEQUENCE..TCP_SEQUENCE + 4].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            tcp[TCP_FLAGS] &= !(FIN | PSH);
        }
        if self.written > 0 {
            tcp[TCP_FLAGS] &= !CWR;
        }
        let sum = sum
            .plus(Sum::double_word(sequence))
            .plus(Sum::word(be_u16(tcp, TCP_FLAGS_WORD)));
        tcp[TCP_CHECKSUM..TCP_CHECKSUM + 2].copy_from_slice(&sum.complement());
    }
}

fn mend_udp(udp: &mut [u8], datagram_bytes: u16, sum: Sum) {
    put_u16(udp, 4, datagram_bytes);
    let mut checksum = sum.plus(Sum::word(datagram_bytes)).complement();
    if checksum == [0; 2] {
        checksum = UDP_ZERO;
    }
    udp[UDP_CHECKSUM..].copy_from_slice(&checksum);
}
