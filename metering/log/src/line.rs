//! One line of the service log, as it is stored and hashed.

use topnet_account::ChannelId;
use topnet_unit::{BootId, Slot, UnitCount};

/// Length of a line.
pub const LINE_BYTES: usize = 32 + 4 * 8 + 16 + 4 + 4;

/// Units of one channel that were begun since its last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whose.
    pub channel: ChannelId,
    /// Units begun before.
    pub units_before: UnitCount,
    /// Units begun by now: this line is about those in between, at least one.
    pub units: UnitCount,
    /// Billable bytes by now, over all slots that the channel ever had.
    pub channel_bytes: u64,
    /// When they were seen, in milliseconds since 1970, by the provider's clock. Informs; no
    /// money follows from it.
    pub time_ms: u64,
    /// The run of the data plane that counted last; zeros if none did.
    pub boot: BootId,
    /// The slot that counted last there.
    pub slot: Slot,
}

impl Line {
    /// As it is stored: the fields in their order, integers little-endian.
    pub fn to_bytes(&self) -> [u8; LINE_BYTES] {
        let mut bytes = [0; LINE_BYTES];
        bytes[..32].copy_from_slice(self.channel.as_bytes());
        let words = [
            self.units_before,
            self.units,
            self.channel_bytes,
            self.time_ms,
        ];
        for (place, word) in bytes[32..64].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[64..80].copy_from_slice(&self.boot.0);
        bytes[80..84].copy_from_slice(&self.slot.index.to_le_bytes());
        bytes[84..].copy_from_slice(&self.slot.generation.to_le_bytes());
        bytes
    }

    /// Reads [`to_bytes`](Self::to_bytes); `None` if the line is about no unit.
    pub fn from_bytes(bytes: &[u8; LINE_BYTES]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(field(bytes, at));
        let half = |at: usize| u32::from_le_bytes(field(bytes, at));
        let line = Self {
            channel: ChannelId(field(bytes, 0)),
            units_before: word(32),
            units: word(40),
            channel_bytes: word(48),
            time_ms: word(56),
            boot: BootId(field(bytes, 64)),
            slot: Slot {
                index: half(80),
                generation: half(84),
            },
        };
        (line.units_before < line.units).then_some(line)
    }

    /// True if the line is about `unit`, counted from 1.
    pub fn covers(&self, unit: UnitCount) -> bool {
        self.units_before < unit && unit <= self.units
    }
}

/// `N` bytes at `at`, which the constants above keep inside.
fn field<const N: usize>(bytes: &[u8; LINE_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
pub(crate) fn example(channel: u8, units: UnitCount) -> Line {
    Line {
        channel: ChannelId([channel; 32]),
        units_before: units - 1,
        units,
        channel_bytes: units * 1000,
        time_ms: 1_700_000_000_000 + units,
        boot: BootId([3; 16]),
        slot: Slot {
            index: 4,
            generation: 5,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments hold these bytes and claims their hashes: they change only with the version.
    #[test]
    fn golden_line() {
        let line = example(9, 2);
        let bytes = line.to_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            format!(
                "{}01000000000000000200000000000000d0070000000000000268e5cf8b010000{}0400000005000000",
                "09".repeat(32),
                "03".repeat(16)
            )
        );
        assert_eq!(Line::from_bytes(&bytes), Some(line));
    }

    #[test]
    fn a_line_about_no_unit_is_none() {
        let mut line = example(9, 2);
        line.units_before = 2;
        assert_eq!(Line::from_bytes(&line.to_bytes()), None);
        assert!(!line.covers(2));
        assert!(example(9, 2).covers(2) && !example(9, 2).covers(1) && !example(9, 2).covers(3));
    }
}
