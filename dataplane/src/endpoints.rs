//! Where peers were heard last, so that a new run or a new session can greet them there.
//!
//! A peer whose keys vanished with a run of the gateway notices only after 15 seconds of
//! silence (WireGuard's KEEPALIVE_TIMEOUT + REKEY_TIMEOUT). A gateway that knows where the peer
//! was starts the handshake itself. The file is a hint, rewritten at most once a second: lost
//! or old, it costs those 15 seconds and nothing else.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;

use crate::files::replace_private;

/// Name of the file in the runtime directory.
const FILE: &str = "endpoints";

/// The last known endpoints, by the peer's public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    path: PathBuf,
    known: HashMap<[u8; 32], SocketAddr>,
    known_max: usize,
    changed: bool,
}

impl Endpoints {
    /// What the last run left in `runtime_dir`. At most `known_max` are kept.
    #[must_use]
    pub fn load(runtime_dir: &Path, known_max: usize) -> Self {
        let path = runtime_dir.join(FILE);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let known = text.lines().filter_map(parse).take(known_max).collect();
        Self {
            path,
            known,
            known_max,
            changed: false,
        }
    }

    /// Where the peer was last.
    #[must_use]
    pub fn of(&self, key: &[u8; 32]) -> Option<SocketAddr> {
        self.known.get(key).copied()
    }

    /// Notes where a peer is. When there is no room, peers that are not noted again make some.
    pub fn note(&mut self, key: [u8; 32], endpoint: SocketAddr) {
        if self.known.get(&key) == Some(&endpoint) {
            return;
        }
        if self.known.len() >= self.known_max && !self.known.contains_key(&key) {
            let Some(victim) = self.known.keys().next().copied() else {
                return;
            };
            self.known.remove(&victim);
        }
        self.known.insert(key, endpoint);
        self.changed = true;
    }

    /// What is to be written, and where, if anything changed since the last call.
    pub fn take_changes(&mut self) -> Option<(PathBuf, String)> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let line = |(key, at): (&[u8; 32], &SocketAddr)| format!("{} {at}\n", BASE64.encode(key));
        Some((self.path.clone(), self.known.iter().map(line).collect()))
    }
}

/// Replaces the file as a whole: a reader sees the old or the new one. Where peers are is nobody
/// else's business.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    replace_private(path, text.as_bytes())
}

fn parse(line: &str) -> Option<([u8; 32], SocketAddr)> {
    let (key, endpoint) = line.split_once(' ')?;
    let key = BASE64.decode(key.as_bytes()).ok()?.try_into().ok()?;
    Some((key, endpoint.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_noted_is_read_back_and_damage_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let mut endpoints = Endpoints::load(dir.path(), 2);
        let at = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        endpoints.note([1; 32], at(1));
        endpoints.note([2; 32], at(2));
        let (path, text) = endpoints.take_changes().unwrap();
        assert_eq!(endpoints.take_changes(), None);
        endpoints.note([2; 32], at(2));
        assert_eq!(endpoints.take_changes(), None, "nothing new");
        write(&path, &format!("junk\n{text}a b\n")).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it is the data plane's alone");
        let loaded = Endpoints::load(dir.path(), 2);
        assert_eq!(
            (loaded.of(&[1; 32]), loaded.of(&[2; 32])),
            (Some(at(1)), Some(at(2)))
        );
        endpoints.note([3; 32], at(3));
        assert_eq!(endpoints.known.len(), 2, "bounded");
        assert_eq!(endpoints.of(&[3; 32]), Some(at(3)));
    }
}
