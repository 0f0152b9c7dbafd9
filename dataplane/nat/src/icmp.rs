//! ICMP errors (RFC 5508, section 4): the packet that one embeds is translated back, so that
//! its receiver recognises what it sent.
//!
//! An error neither refreshes nor ends anything: anybody can send one.

use topnet_checksum::{Change, checksum};

use crate::Refusal;
use crate::packet::{End, Header, Part, Protocol, TRANSPORT_BYTES_MIN};
use crate::packet::{put_word, rewrite, rewrite_address, word};

/// Where an ICMP message's checksum is.
const CHECKSUM_AT: usize = 2;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// The longest IPv4 header, and of TCP's as far as rewriting reaches.
const REWRITTEN_BYTES_MAX: usize = 60 + 20;

/// The packet that an error is about, as far as it is embedded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Embedded {
    /// Where it begins in the outer packet.
    at: usize,
    pub header: Header,
    pub source_port: u16,
    pub destination_port: u16,
    /// What kind of query it is, of ICMP.
    query: u8,
}

impl Embedded {
    /// Reads the packet that an error embeds. Both headers' checksums must be right (RFC 5508
    /// REQ-3); that of the embedded transport cannot be checked and is not.
    pub(crate) fn parse(packet: &[u8], header: &Header) -> Result<Self, Refusal> {
        Self::parse_whole(packet, header).ok_or(Refusal::IcmpErrorInvalid)
    }

    fn parse_whole(packet: &[u8], header: &Header) -> Option<Self> {
        let message = &packet[header.header_bytes..];
        if header.part != Part::Whole || checksum(message) != 0 {
            return None;
        }
        let bytes = message.get(TRANSPORT_BYTES_MIN..)?;
        let embedded = Header::parse_embedded(bytes)?;
        let (embedded_header, transport) = bytes.split_at(embedded.header_bytes);
        let too_little = transport.len() < TRANSPORT_BYTES_MIN || embedded.part == Part::Later;
        if too_little || checksum(embedded_header) != 0 {
            return None;
        }
        let (source_port, destination_port) = match embedded.protocol {
            Protocol::Icmp => (word(transport, 4), word(transport, 4)),
            Protocol::Udp | Protocol::Tcp => (word(transport, 0), word(transport, 2)),
        };
        Some(Self {
            at: header.header_bytes + TRANSPORT_BYTES_MIN,
            header: embedded,
            source_port,
            destination_port,
            query: transport[0],
        })
    }

    /// True if the embedded packet can be one that went out.
    pub(crate) fn went_out(&self) -> bool {
        self.header.protocol != Protocol::Icmp || self.query == ECHO_REQUEST
    }

    /// True if the embedded packet can be one that came in.
    pub(crate) fn came_in(&self) -> bool {
        self.header.protocol != Protocol::Icmp || self.query == ECHO_REPLY
    }
}

/// Rewrites an error: the outer address at `outer`, and the address and port of the embedded
/// packet at its other end, for what one end sends is about what it received.
pub(crate) fn rewrite_error(
    packet: &mut [u8],
    header: &Header,
    embedded: &Embedded,
    outer: End,
    address: u32,
    port: u16,
) {
    let other = match outer {
        End::Source => End::Destination,
        End::Destination => End::Source,
    };
    let bytes = &mut packet[embedded.at..];
    let rewritten_bytes = bytes.len().min(REWRITTEN_BYTES_MAX) & !1;
    let mut before = [0; REWRITTEN_BYTES_MAX];
    before[..rewritten_bytes].copy_from_slice(&bytes[..rewritten_bytes]);
    rewrite(bytes, &embedded.header, other, address, port);
    // The message's own checksum is over all that, the embedded checksums included.
    let change = (0..rewritten_bytes)
        .step_by(2)
        .fold(Change::default(), |change, at| {
            change.word(word(&before, at), word(bytes, at))
        });
    let message = &mut packet[header.header_bytes..];
    put_word(
        message,
        CHECKSUM_AT,
        change.mend(word(message, CHECKSUM_AT)),
    );
    rewrite_address(packet, outer, address);
}
