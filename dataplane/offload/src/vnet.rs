//! The virtio-net header that stands before each packet of the device (virtio 1.3, section
//! 5.1.6; Linux `include/uapi/linux/virtio_net.h`): ten bytes, in native byte order unless the
//! device was told otherwise.

use crate::Malformed;

/// Bytes of the header, without the count of buffers that a longer one has at its end.
pub const HEADER_BYTES: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What a packet is to be split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// It is one packet.
    None,
    /// TCP segments over IPv4.
    TcpV4 {
        /// The first segment may say that the congestion window was reduced (RFC 3168).
        ecn: bool,
    },
    /// TCP segments over IPv6.
    TcpV6 {
        /// As for IPv4.
        ecn: bool,
    },
    /// UDP datagrams of their own, over either.
    UdpL4,
}

/// A virtio-net header. Reading one checks it against itself; against the packet, [`crate::take`]
/// does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VnetHeader {
    /// The checksum at `checksum_start + checksum_offset` holds only the sum of the
    /// pseudo-header, and lacks that of the bytes from `checksum_start` to the packet's end.
    pub needs_checksum: bool,
    /// Somebody has found the checksum to be right.
    pub data_valid: bool,
    /// What the packet is to be split into.
    pub gso: Gso,
    /// Bytes of all headers. From the kernel only a hint, at times far too much.
    pub header_bytes: u16,
    /// Payload bytes of every segment but the last.
    pub segment_bytes: u16,
    /// Where summing begins: the transport header.
    pub checksum_start: u16,
    /// Where the checksum stands, counted from `checksum_start`.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// Of one packet that has all its checksums.
    pub const PLAIN: Self = Self {
        needs_checksum: false,
        data_valid: false,
        gso: Gso::None,
        header_bytes: 0,
        segment_bytes: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Reads a header. Refused are flags and kinds that a device without the offloads for them
    /// never shows, and a super-packet that needs no checksum or has no segments' length.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Malformed> {
        let word = |at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let ecn = bytes[1] & GSO_ECN != 0;
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE if !ecn => Gso::None,
            GSO_TCP_V4 => Gso::TcpV4 { ecn },
            GSO_TCP_V6 => Gso::TcpV6 { ecn },
            GSO_UDP_L4 if !ecn => Gso::UdpL4,
            _ => return Err(Malformed),
        };
        let header = Self {
            needs_checksum: bytes[0] & NEEDS_CHECKSUM != 0,
            data_valid: bytes[0] & DATA_VALID != 0,
            gso,
            header_bytes: word(2),
            segment_bytes: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        };
        let unknown_flags = bytes[0] & !(NEEDS_CHECKSUM | DATA_VALID) != 0;
        let splittable = header.needs_checksum && header.segment_bytes != 0;
        if unknown_flags || (gso != Gso::None && !splittable) {
            return Err(Malformed);
        }
        Ok(header)
    }

    /// The header as the device wants it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let ecn_bit = |ecn| if ecn { GSO_ECN } else { 0 };
        let needs_checksum = if self.needs_checksum {
            NEEDS_CHECKSUM
        } else {
            0
        };
        let data_valid = if self.data_valid { DATA_VALID } else { 0 };
        let gso = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 { ecn } => GSO_TCP_V4 | ecn_bit(ecn),
            Gso::TcpV6 { ecn } => GSO_TCP_V6 | ecn_bit(ecn),
            Gso::UdpL4 => GSO_UDP_L4,
        };
        let [header0, header1] = self.header_bytes.to_ne_bytes();
        let [segment0, segment1] = self.segment_bytes.to_ne_bytes();
        let [start0, start1] = self.checksum_start.to_ne_bytes();
        let [offset0, offset1] = self.checksum_offset.to_ne_bytes();
        [
            needs_checksum | data_valid,
            gso,
            header0,
            header1,
            segment0,
            segment1,
            start0,
            start1,
            offset0,
            offset1,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_is_nothing_but_zeros() {
        assert_eq!(VnetHeader::PLAIN.to_bytes(), [0; HEADER_BYTES]);
        assert_eq!(VnetHeader::parse(&[0; HEADER_BYTES]), Ok(VnetHeader::PLAIN));
    }

    #[test]
    fn contradictions_are_refused() {
        let parse = |flags, gso, segment: u8| {
            VnetHeader::parse(&[flags, gso, 0, 0, segment, segment, 0, 0, 0, 0])
        };
        assert!(parse(1, 1, 1).is_ok());
        assert!(parse(1, 0x84, 1).is_ok());
        let cases = [
            ("a super-packet without a segment's length", (1, 1, 0)),
            ("a super-packet with a checksum already", (0, 5, 1)),
            ("UDP fragments", (1, 3, 1)),
            ("a kind that nobody knows", (1, 2, 1)),
            ("tunnelled UDP", (1, 0x21, 1)),
            ("ECN without segments", (1, 0x80, 1)),
            ("ECN over UDP", (1, 0x85, 1)),
            ("a count of joined segments", (4, 0, 0)),
            ("a flag that nobody knows", (0x81, 0, 0)),
        ];
        for (what, (flags, gso, segment)) in cases {
            assert_eq!(parse(flags, gso, segment), Err(Malformed), "{what}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_is_written(
            mut bytes in any::<[u8; HEADER_BYTES]>(),
            flags in 0..4u8,
            gso in prop::sample::select(vec![0, 1, 4, 5, 0x81, 0x84]),
        ) {
            bytes[..2].copy_from_slice(&[flags, gso]);
            if let Ok(header) = VnetHeader::parse(&bytes) {
                prop_assert_eq!(header.to_bytes(), bytes);
            }
        }
    }
}
