//! Random files and their digests: what came through must be what was sent.

use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// A file's length and SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

/// Fills a new file with random bytes.
pub fn write_random(path: &Path, bytes: u64) -> io::Result<Digest> {
    let mut file = File::create_new(path)?;
    consume(File::open("/dev/urandom")?.take(bytes), |piece| {
        file.write_all(piece)
    })
}

/// Reads a file.
pub fn digest(path: &Path) -> io::Result<Digest> {
    consume(File::open(path)?, |_| Ok(()))
}

fn consume(
    mut source: impl Read,
    mut sink: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Digest> {
    let mut buffer = vec![0; 1 << 20];
    let mut hash = Sha256::new();
    let mut bytes = 0;
    loop {
        let length = source.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        let piece = &buffer[..length];
        sink(piece)?;
        hash.update(piece);
        bytes += length as u64;
    }
    let sha256 = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(Digest { bytes, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_file_has_its_length_and_digests_alike_when_read() {
        let path = std::env::temp_dir().join(format!("topnet-lab-{}", std::process::id()));
        let written = write_random(&path, 3_000_001).unwrap();
        let read = digest(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(written.bytes, 3_000_001);
        assert_eq!(written, read);
        assert_eq!(written.sha256.len(), 64);
    }
}
