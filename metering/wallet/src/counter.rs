//! The payer's own count: what it saw go through the tunnel, whatever the payee says.
//!
//! Beside a foreign WireGuard client there are two counts. The tunnel interface counts inner
//! packets, but the header of an offloaded super-packet once only: a little too low. WireGuard
//! counts a peer's transfer with its own overhead: a little too high. The truth lies between.

use std::io;

/// Bytes that the payer sent and received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// From the payer.
    pub up_bytes: u64,
    /// To the payer.
    pub down_bytes: u64,
}

impl Counted {
    /// Both ways; `None` if it cannot be counted.
    pub fn total_bytes(&self) -> Option<u64> {
        self.up_bytes.checked_add(self.down_bytes)
    }
}

/// A counter's state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What it shows.
    pub counted: Counted,
    /// Which counter it is: another incarnation of the interface or peer has another number and
    /// begins at zero.
    pub incarnation: u32,
}

/// Both counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// The tunnel interface's: at most what is billed. `None` while there is no interface.
    pub interface: Option<Reading>,
    /// The WireGuard peer's transfer: at least what is billed. `None` where it cannot be read.
    pub transfer: Option<Reading>,
}

/// Where the payer's own count comes from.
pub trait ByteCounter: Send {
    /// Both counts now.
    fn read(&mut self) -> io::Result<Readings>;
}

/// A counter's total over all its incarnations since the channel's first reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Track {
    total: Counted,
    last: Counted,
    /// [`NEVER_READ`], [`ABSENT`], or the incarnation that was read last and one more bit.
    incarnation: u64,
}

/// Counting begins with the next reading.
const NEVER_READ: u64 = 0;
/// There was no counter yet when counting began: the next reading counts whole.
const ABSENT: u64 = 1;

impl Track {
    const BYTES: usize = 5 * size_of::<u64>();

    /// Takes a reading in. The first one is where counting begins; one of another incarnation,
    /// or one that went back, began at zero.
    fn take(&mut self, reading: Reading) -> Option<()> {
        let counted = reading.counted;
        let incarnation = 1 << 32 | u64::from(reading.incarnation);
        let begins = self.incarnation == NEVER_READ;
        let goes_on = self.incarnation == incarnation
            && counted.up_bytes >= self.last.up_bytes
            && counted.down_bytes >= self.last.down_bytes;
        let before = match (begins, goes_on) {
            (true, _) => counted,
            (false, true) => self.last,
            (false, false) => Counted::default(),
        };
        let up_bytes = self
            .total
            .up_bytes
            .checked_add(counted.up_bytes - before.up_bytes)?;
        let down_bytes = self
            .total
            .down_bytes
            .checked_add(counted.down_bytes - before.down_bytes)?;
        self.total = Counted {
            up_bytes,
            down_bytes,
        };
        self.last = counted;
        self.incarnation = incarnation;
        Some(())
    }

    /// There is no such counter now.
    fn miss(&mut self) {
        if self.incarnation == NEVER_READ {
            self.incarnation = ABSENT;
        }
    }

    fn words(&self) -> [u64; 5] {
        let Self {
            total,
            last,
            incarnation,
        } = self;
        [
            total.up_bytes,
            total.down_bytes,
            last.up_bytes,
            last.down_bytes,
            *incarnation,
        ]
    }

    fn from_words(words: [u64; 5]) -> Self {
        let [total_up, total_down, last_up, last_down, incarnation] = words;
        Self {
            total: Counted {
                up_bytes: total_up,
                down_bytes: total_down,
            },
            last: Counted {
                up_bytes: last_up,
                down_bytes: last_down,
            },
            incarnation,
        }
    }
}

/// The payer's own count of one channel, as it is journalled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnCount {
    interface: Track,
    transfer: Track,
}

impl OwnCount {
    /// Length of [`to_bytes`](Self::to_bytes).
    pub const BYTES: usize = 2 * Track::BYTES;

    /// A count that one counter knows exactly, as our own client's does.
    pub fn of(counted: Counted) -> Self {
        let track = Track {
            total: counted,
            last: counted,
            incarnation: ABSENT,
        };
        Self {
            interface: track,
            transfer: Track::default(),
        }
    }

    /// Takes new readings in; `None` if the total cannot be counted any more.
    pub fn take(&mut self, readings: Readings) -> Option<()> {
        let Some(interface) = readings.interface else {
            self.interface.miss();
            self.transfer.miss();
            return Some(());
        };
        self.interface.take(interface)?;
        match readings.transfer {
            Some(transfer) => self.transfer.take(transfer),
            None => Some(()),
        }
    }

    /// What the tunnel interface saw: at most what is billed.
    pub fn interface(&self) -> Counted {
        self.interface.total
    }

    /// What WireGuard transferred: at least what is billed. `None` where it was never read.
    pub fn transfer(&self) -> Option<Counted> {
        (self.transfer.incarnation > ABSENT).then_some(self.transfer.total)
    }

    /// The most that the payer believes to have used.
    pub fn most(&self) -> Counted {
        let interface = self.interface();
        let transfer = self.transfer().unwrap_or_default();
        Counted {
            up_bytes: interface.up_bytes.max(transfer.up_bytes),
            down_bytes: interface.down_bytes.max(transfer.down_bytes),
        }
    }

    /// As it is journalled: little-endian words.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let words = self
            .interface
            .words()
            .into_iter()
            .chain(self.transfer.words());
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let mut words = [0; 10];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        let [a, b, c, d, e, rest @ ..] = words;
        Some(Self {
            interface: Track::from_words([a, b, c, d, e]),
            transfer: Track::from_words(rest),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(up_bytes: u64, down_bytes: u64) -> Counted {
        Counted {
            up_bytes,
            down_bytes,
        }
    }

    fn reading(incarnation: u32, up_bytes: u64, down_bytes: u64) -> Readings {
        let interface = Reading {
            counted: counted(up_bytes, down_bytes),
            incarnation,
        };
        Readings {
            interface: Some(interface),
            transfer: None,
        }
    }

    #[test]
    fn counting_begins_with_the_first_reading_and_survives_new_incarnations() {
        let mut own = OwnCount::default();
        let steps = [
            (reading(4, 1000, 2000), counted(0, 0)),
            (reading(4, 1010, 2500), counted(10, 500)),
            (reading(4, 1010, 2500), counted(10, 500)),
            // The interface was made again: it begins at zero.
            (reading(5, 5000, 100), counted(5010, 600)),
            // It went back: made again under the same number.
            (reading(5, 3, 101), counted(5013, 701)),
            // It is gone for a while.
            (Readings::default(), counted(5013, 701)),
            (reading(5, 4, 101), counted(5014, 701)),
        ];
        for (step, expected) in steps {
            own.take(step).unwrap();
            assert_eq!(own.interface(), expected);
            let restored = OwnCount::from_bytes(&own.to_bytes()).unwrap();
            assert_eq!(restored, own);
        }
        assert_eq!(own.transfer(), None);
        assert_eq!(own.take(reading(6, u64::MAX, 0)), None);
    }

    #[test]
    fn a_counter_that_comes_after_the_beginning_counts_whole() {
        let mut own = OwnCount::default();
        own.take(Readings::default()).unwrap();
        own.take(reading(4, 1000, 2000)).unwrap();
        assert_eq!(own.interface(), counted(1000, 2000));
    }

    #[test]
    fn the_most_is_the_transfer_where_it_is_known() {
        let mut own = OwnCount::default();
        for bytes in [0, 100] {
            let interface = Reading {
                counted: counted(bytes, 2 * bytes),
                incarnation: 1,
            };
            let transfer = Reading {
                counted: counted(bytes * 2, bytes * 3),
                incarnation: 1,
            };
            own.take(Readings {
                interface: Some(interface),
                transfer: Some(transfer),
            })
            .unwrap();
        }
        assert_eq!(own.interface(), counted(100, 200));
        assert_eq!(own.transfer(), Some(counted(200, 300)));
        assert_eq!(own.most(), counted(200, 300));
    }
}
