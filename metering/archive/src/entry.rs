//! What the manifest says of one segment.

use std::{fmt, path::Path, str::FromStr};

use serde::{Serialize, Serializer};
use topnet_config::SEGMENT_LINES_MAX;
use topnet_log::{LINE_BYTES, Line, LogError, read_sealed};

const TITLE: &str = "topnet-log segment/1";
/// With head and seal. Whoever reads has room for no more, whatever an entry says.
const OBJECT_BYTES_MAX: u64 = (SEGMENT_LINES_MAX + 2) * LINE_BYTES as u64;
/// Every field has fewer digits.
pub(crate) const ENTRY_BYTES_MAX: usize = 1024;

/// The BLAKE3 hash of an object's bytes, which is its name; written in hex as `b3sum` does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectHash([u8; blake3::OUT_LEN]);

/// Not a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not 64 hex digits")]
pub struct ObjectHashError;

impl ObjectHash {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Of what a hasher was shown.
    pub(crate) fn from_hasher(hasher: &blake3::Hasher) -> Self {
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for ObjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for ObjectHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ObjectHash {
    type Err = ObjectHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| ObjectHashError)?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Serialize for ObjectHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One segment, as the manifest has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The segment's number in its log.
    pub number: u64,
    /// Its object's name.
    pub hash: ObjectHash,
    /// Its length.
    pub bytes: u64,
    /// Its lines.
    pub lines: u64,
    /// The earliest time that a line carries, in milliseconds since 1970.
    pub first_ms: u64,
    /// The latest.
    pub last_ms: u64,
}

impl Entry {
    /// What the manifest has to say of a sealed segment, after every byte of it was checked; its
    /// lines are shown to `each`. `place` is where the bytes come from, for errors.
    pub(crate) fn of(
        place: &Path,
        number: u64,
        bytes: &[u8],
        mut each: impl FnMut(&Line),
    ) -> Result<Self, LogError> {
        let (mut lines, mut first_ms, mut last_ms) = (0, u64::MAX, 0);
        read_sealed(place, number, bytes, |line| {
            lines += 1;
            first_ms = first_ms.min(line.time_ms);
            last_ms = last_ms.max(line.time_ms);
            each(line);
        })?;
        Ok(Self {
            number,
            hash: ObjectHash::of(bytes),
            bytes: bytes.len() as u64,
            lines,
            first_ms: first_ms.min(last_ms),
            last_ms,
        })
    }

    /// As it is stored: text, so that a person with nothing but the store can find the way. The
    /// last line is the hash of those above it.
    pub(crate) fn to_text(self) -> String {
        let Self {
            number,
            hash,
            bytes,
            lines,
            first_ms,
            last_ms,
        } = self;
        let told = format!(
            "{TITLE}\nnumber {number}\nblake3 {hash}\nbytes {bytes}\nlines {lines}\n\
             first_ms {first_ms}\nlast_ms {last_ms}\n"
        );
        let check = ObjectHash::of(told.as_bytes());
        format!("{told}check {check}\n")
    }

    /// Reads [`to_text`](Self::to_text) of segment `number`, or says what is wrong.
    pub(crate) fn from_text(number: u64, text: &[u8]) -> Result<Self, String> {
        let entry = std::str::from_utf8(text).ok().and_then(Self::fields);
        let entry = entry.filter(|entry| entry.to_text().as_bytes() == text);
        let entry = entry.ok_or("it is cut off, or not as it was written")?;
        if entry.number != number {
            return Err(format!("it is about segment {}", entry.number));
        }
        if entry.bytes > OBJECT_BYTES_MAX {
            return Err(format!("no segment has {} bytes", entry.bytes));
        }
        Ok(entry)
    }

    fn fields(text: &str) -> Option<Self> {
        let mut lines = text.lines().skip(1);
        let mut field = || Some(lines.next()?.split_once(' ')?.1);
        Some(Self {
            number: field()?.parse().ok()?,
            hash: field()?.parse().ok()?,
            bytes: field()?.parse().ok()?,
            lines: field()?.parse().ok()?,
            first_ms: field()?.parse().ok()?,
            last_ms: field()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stores hold these bytes: they change only with the version.
    #[test]
    fn golden_entry() {
        let entry = Entry {
            number: 7,
            hash: ObjectHash::of(b"a segment"),
            bytes: 440,
            lines: 3,
            first_ms: 1_700_000_000_001,
            last_ms: 1_700_000_000_002,
        };
        let text = entry.to_text();
        assert_eq!(
            text,
            "topnet-log segment/1\nnumber 7\n\
             blake3 38a3cccffb0c49eff43212d9264c33b98ead210688a3cf0dae1deed345a6a9ac\n\
             bytes 440\nlines 3\nfirst_ms 1700000000001\nlast_ms 1700000000002\n\
             check b6fd1106c8be559784d9e23ad3425975efc6053026cd4dac4e54f5f1d69c5c6e\n"
        );
        assert!(text.len() < ENTRY_BYTES_MAX);
        assert_eq!(Entry::from_text(7, text.as_bytes()), Ok(entry));
        assert!(Entry::from_text(8, text.as_bytes()).is_err());
        let endless = Entry {
            bytes: u64::MAX,
            ..entry
        };
        assert!(Entry::from_text(7, endless.to_text().as_bytes()).is_err());
        for at in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[at] ^= 1;
            assert!(Entry::from_text(7, &damaged).is_err(), "{at}");
            assert!(Entry::from_text(7, &text.as_bytes()[..at]).is_err(), "{at}");
        }
    }
}
