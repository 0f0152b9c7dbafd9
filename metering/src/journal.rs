//! What survives a crash: one record a channel, and its facts, in RocksDB.
//!
//! Keys: `v` names format and version; `c` and a channel's id hold the payee's record, as
//! `topnet-channel` lays it out; `t` and the id hold the [`Facts`]. A batch is written as a
//! whole and synced before [`Journal::commit`] returns. The newest record of a channel says
//! everything, so there is nothing to replay.

use std::path::{Path, PathBuf};

use rocksdb::{DB, DBCompressionType, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use topnet_account::ChannelId;
use topnet_books::{Entry, Stored, facts::Facts};

const VERSION_KEY: &[u8] = b"v";
const VERSION: &[u8] = b"topnet-metering-journal/1";
const RECORD: u8 = b'c';
const FACTS: u8 = b't';
const KEY_BYTES: usize = 1 + ChannelId::SIZE;

/// Records are small and overwritten often: a small write buffer keeps recovery short.
const WRITE_BUFFER_BYTES: usize = 8 << 20;
const WAL_BYTES_MAX: u64 = 64 << 20;
const LOG_FILES_MAX: usize = 3;

/// Why there is no journal, or no more of it. Without one no credit may rise.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// RocksDB cannot: free the disk, mend the permissions, or stop the other process.
    #[error(
        "cannot {what} the journal in {path}: {source}; is the disk full, or another metering running?"
    )]
    Database {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
    /// Another release wrote it.
    #[error(
        "the journal in {path} has the format `{found}`, this release reads {}; run the release that wrote it",
        String::from_utf8_lossy(VERSION)
    )]
    Version {
        /// Where.
        path: PathBuf,
        /// As it says.
        found: String,
    },
    /// It was damaged, or something else was put in its place.
    #[error("the journal in {path} is damaged at channel {channel}; restore it from a backup")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// At which channel.
        channel: String,
    },
}

/// The open journal.
pub struct Journal {
    path: PathBuf,
    database: DB,
    synced: WriteOptions,
}

impl Journal {
    /// Opens the journal in `path`, or begins one.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let failed = |what| {
            move |source| JournalError::Database {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        options.set_keep_log_file_num(LOG_FILES_MAX);
        let database = DB::open(&options, path).map_err(failed("open"))?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        match database.get(VERSION_KEY).map_err(failed("read"))? {
            Some(found) if found == VERSION => {}
            Some(found) => {
                let found = String::from_utf8_lossy(&found).into_owned();
                return Err(JournalError::Version {
                    path: path.to_owned(),
                    found,
                });
            }
            None => database
                .put_opt(VERSION_KEY, VERSION, &synced)
                .map_err(failed("begin"))?,
        }
        Ok(Self {
            path: path.to_owned(),
            database,
            synced,
        })
    }

    /// Every channel.
    pub fn stored(&self) -> Result<Vec<Stored>, JournalError> {
        let mut stored = Vec::new();
        let mode = IteratorMode::From(&[FACTS], Direction::Forward);
        for item in self.database.iterator(mode) {
            let (key, value) = item.map_err(|source| self.failed("read", source))?;
            if key.first() != Some(&FACTS) {
                break;
            }
            let damaged = || self.damaged(&key);
            let id = key[1..].try_into().map_err(|_| damaged())?;
            let channel = ChannelId(id);
            let facts = Facts::from_bytes(&value).ok_or_else(damaged)?;
            let record = self
                .database
                .get(place(RECORD, channel))
                .map_err(|source| self.failed("read", source))?;
            stored.push(Stored {
                channel,
                facts,
                record,
            });
        }
        Ok(stored)
    }

    /// Writes all entries or none, and returns when they are on disk.
    pub fn commit(&self, entries: &[Entry]) -> Result<(), JournalError> {
        let mut batch = WriteBatch::default();
        for entry in entries {
            if let Some(facts) = &entry.facts {
                batch.put(place(FACTS, entry.channel), facts.to_bytes());
            }
            if let Some(record) = &entry.record {
                batch.put(place(RECORD, entry.channel), record);
            }
        }
        self.database
            .write_opt(batch, &self.synced)
            .map_err(|source| self.failed("write", source))
    }

    /// A record that nobody can read.
    pub(crate) fn damaged(&self, key: &[u8]) -> JournalError {
        let channel = key
            .iter()
            .skip(1)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        JournalError::Damaged {
            path: self.path.clone(),
            channel,
        }
    }

    fn failed(&self, what: &'static str, source: rocksdb::Error) -> JournalError {
        JournalError::Database {
            what,
            path: self.path.clone(),
            source,
        }
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn place(kind: u8, channel: ChannelId) -> [u8; KEY_BYTES] {
    let mut key = [kind; KEY_BYTES];
    key[1..].copy_from_slice(channel.as_bytes());
    key
}

#[cfg(test)]
mod tests {
    use topnet_account::{Amount, PublicKey};

    use super::*;

    fn facts(number: u8) -> Facts {
        Facts {
            signer: PublicKey([number; 32]),
            allocation: Amount::from_ntop(u64::from(number)),
            close_window_blocks: 10,
            window_units_max: 0,
            unpaid_bytes_max: 0,
        }
    }

    fn entry(number: u8, record: &[u8]) -> Entry {
        Entry {
            channel: ChannelId([number; 32]),
            facts: Some(facts(number)),
            record: Some(record.to_vec()),
        }
    }

    /// A kill leaves the files as they are at that moment: so does a copy of them.
    fn killed(dir: &Path) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(dir).unwrap() {
            let file = file.unwrap();
            if file.file_name() != "LOCK" {
                std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
            }
        }
        copy
    }

    #[test]
    fn what_was_committed_survives_a_kill_and_the_newest_wins() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.stored().unwrap(), []);
        journal
            .commit(&[entry(1, b"one"), entry(2, b"two")])
            .unwrap();
        let newer = Entry {
            facts: None,
            ..entry(1, b"newer")
        };
        journal.commit(&[newer]).unwrap();
        let copy = killed(dir.path());
        let again = Journal::open(copy.path()).unwrap();
        let stored = |number: u8, record: &[u8]| Stored {
            channel: ChannelId([number; 32]),
            facts: facts(number),
            record: Some(record.to_vec()),
        };
        assert_eq!(
            again.stored().unwrap(),
            [stored(1, b"newer"), stored(2, b"two")]
        );
    }

    #[test]
    fn another_version_and_another_process_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let second = Journal::open(dir.path());
        assert!(matches!(
            second,
            Err(JournalError::Database { what: "open", .. })
        ));
        journal.database.put(VERSION_KEY, b"something/2").unwrap();
        drop(journal);
        let newer = Journal::open(dir.path());
        assert!(
            matches!(newer, Err(JournalError::Version { found, .. }) if found == "something/2")
        );
    }
}
