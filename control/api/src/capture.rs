//! How the data plane hands over copies of inner packets: a pcap file as it goes on, and behind it
//! how many packets are missing.
//!
//! The file's format is libpcap's of old (draft-ietf-opsawg-pcap), which every tool reads; its packets
//! begin with their IP headers (LINKTYPE_RAW).

use std::time::Duration;

/// Asks for everybody's packets.
pub const CAPTURE_ALL: &str = "all\n";
/// Asks for one peer's, whose key follows in base64, and a line's end.
pub const CAPTURE_PEER: &str = "peer=";
/// A refusal begins with it. A file does not.
pub const CAPTURE_REFUSED: &str = "refused: ";

/// Bytes before the first record.
pub const PCAP_HEADER_BYTES: usize = 24;
/// Bytes before each packet.
pub const PCAP_RECORD_BYTES: usize = 16;

const MAGIC: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
const SNAPSHOT_BYTES: u32 = 65_535;
const LINKTYPE_RAW: u32 = 101;
/// No packet is so long: the record says that the file is over.
const END: u32 = u32::MAX;

/// What stands at a file's beginning.
#[must_use]
pub fn pcap_header() -> [u8; PCAP_HEADER_BYTES] {
    let mut header = [0; PCAP_HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..6].copy_from_slice(&VERSION[0].to_le_bytes());
    header[6..8].copy_from_slice(&VERSION[1].to_le_bytes());
    header[16..20].copy_from_slice(&SNAPSHOT_BYTES.to_le_bytes());
    header[20..].copy_from_slice(&LINKTYPE_RAW.to_le_bytes());
    header
}

/// What stands before a packet, or in the place of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptureRecord {
    /// A packet of so many bytes.
    Packet {
        /// When it passed, since 1970.
        at: Duration,
        /// Its length.
        bytes: u32,
    },
    /// It is over.
    End {
        /// Packets that found no room.
        lost: u32,
    },
}

impl CaptureRecord {
    /// As it is written.
    #[must_use]
    pub fn to_bytes(self) -> [u8; PCAP_RECORD_BYTES] {
        let fields = match self {
            Self::Packet { at, bytes } => {
                // Unsigned, the format's seconds last until 2106.
                let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
                [seconds, at.subsec_micros(), bytes, bytes]
            }
            Self::End { lost } => [0, 0, END, lost],
        };
        let mut record = [0; PCAP_RECORD_BYTES];
        for (place, field) in record.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        record
    }

    /// As it was written; `None` for what nobody here writes.
    #[must_use]
    pub fn from_bytes(record: [u8; PCAP_RECORD_BYTES]) -> Option<Self> {
        let [seconds, micros, bytes, total] = [0, 4, 8, 12].map(|at| {
            let field = [record[at], record[at + 1], record[at + 2], record[at + 3]];
            u32::from_le_bytes(field)
        });
        match bytes {
            END => Some(Self::End { lost: total }),
            bytes if bytes == total && bytes <= SNAPSHOT_BYTES && micros < 1_000_000 => {
                let at = Duration::new(seconds.into(), micros * 1_000);
                Some(Self::Packet { at, bytes })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_and_nonsense_is_none() {
        let packet = CaptureRecord::Packet {
            at: Duration::new(1_800_000_000, 123_456_000),
            bytes: 1_420,
        };
        let end = CaptureRecord::End { lost: 7 };
        for record in [packet, end] {
            assert_eq!(CaptureRecord::from_bytes(record.to_bytes()), Some(record));
        }
        let mut longer = packet.to_bytes();
        longer[15] = 1;
        assert_eq!(CaptureRecord::from_bytes(longer), None);
        assert_eq!(pcap_header()[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
    }
}
