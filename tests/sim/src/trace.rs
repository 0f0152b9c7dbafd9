//! What happened, as one number, and as text for whoever asks.

use std::fmt::{self, Write};

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// A hash (64-bit FNV-1a) over every event of a world.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    hash: u64,
    shown: bool,
}

impl Trace {
    pub(crate) fn new(shown: bool) -> Self {
        Self {
            hash: FNV_OFFSET,
            shown,
        }
    }

    /// An event at a virtual time.
    pub(crate) fn note(&mut self, now_us: u64, event: fmt::Arguments<'_>) {
        self.bytes(&now_us.to_le_bytes());
        // Writing into a hash cannot fail.
        let _ = self.write_fmt(event);
        if self.shown {
            eprintln!("{:>9}.{:03} ms  {event}", now_us / 1000, now_us % 1000);
        }
    }

    /// The bytes of a message or a record.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

impl Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes());
        Ok(())
    }
}
