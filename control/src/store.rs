//! The session book on disk: one JSON file, replaced whole and synced before it counts.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::book::SessionBook;

/// Where the book is kept. While this exists no other control keeps one there.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    _lock: File,
}

/// A book that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error(
        "{path}: {source}; make the directory writable for this user, or mend [control] state_dir"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another control has the directory.
    #[error("another control runs with {0}; stop it, or give this one its own [control] state_dir")]
    InUse(PathBuf),
    /// The file is not a book of this version.
    #[error(
        "{path} is not a session book that this version reads: {problem}; \
         move it away to start without sessions"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Store {
    /// Keeps the book in `dir`, which is made if it is missing.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("sessions.json");
        let io = |source| StoreError::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(dir).map_err(io)?;
        let lock = File::create(dir.join("lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// The stored book, or an empty one.
    pub fn load(&self) -> Result<SessionBook, StoreError> {
        let malformed = |problem: String| StoreError::Malformed {
            path: self.path.clone(),
            problem,
        };
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(SessionBook::default());
            }
            Err(source) => return Err(self.io(source)),
        };
        let book: SessionBook =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        book.readable()
            .ok_or_else(|| malformed("it has another version".to_owned()))
    }

    /// Replaces the stored book. When this returns, a crash leaves the new one.
    pub fn save(&self, book: &SessionBook) -> Result<(), StoreError> {
        self.replace(book).map_err(|source| self.io(source))
    }

    fn replace(&self, book: &SessionBook) -> io::Result<()> {
        let draft = self.path.with_extension("json.new");
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(book)?)?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        // The new name is durable only when its directory is.
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use topnet_account::ChannelId;
    use topnet_api::{SessionRequest, WireguardPublicKey};

    use super::*;
    use crate::book::Bounds;

    #[test]
    fn book_comes_back_and_a_torn_draft_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("control")).unwrap();
        assert_eq!(store.load().unwrap(), SessionBook::default());

        let mut book = SessionBook::default();
        let bounds = Bounds {
            inner_subnet: "10.78.0.0/16".parse().unwrap(),
            gateway_address: Ipv4Addr::new(10, 78, 0, 1),
            reserved: None,
            sessions_max: 4,
            sessions_per_channel_max: 2,
        };
        let key = WireguardPublicKey([7; 32]);
        book.start(
            &SessionRequest::unsigned(ChannelId([1; 32]), key, 5),
            &bounds,
        )
        .unwrap();
        book.begin_close(ChannelId([2; 32]));
        store.save(&book).unwrap();
        fs::write(store.path.with_extension("json.new"), "{").unwrap();
        assert_eq!(store.load().unwrap(), book);
    }

    #[test]
    fn two_controls_never_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        let second = Store::open(dir.path());
        assert!(matches!(second, Err(StoreError::InUse(_))), "{second:?}");
        drop(first);
        Store::open(dir.path()).unwrap();
    }

    #[test]
    fn what_is_not_a_book_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        for text in [
            "",
            "{}",
            r#"{"version":9,"revision":0,"sessions":{},"last_requests":{},"closing":[]}"#,
        ] {
            fs::write(&store.path, text).unwrap();
            let words = store.load().unwrap_err().to_string();
            assert!(
                words.contains("sessions.json") && words.contains("move it away"),
                "{words}"
            );
            assert_eq!(fs::read_to_string(&store.path).unwrap(), text);
        }
    }
}
