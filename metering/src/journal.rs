//! What survives a crash: one record a channel, and its facts, in RocksDB.
//!
//! Keys: `v` names format and version; `c` and a channel's id hold the payee's record, as
//! `topnet-channel` lays it out; `t` and the id hold the [`Facts`]; `n`, the id and a level hold
//! the peak of that level in the tree over the channel's part of the service log, with the lines
//! and units that it was made at; `p` says up to where the service log counts. A batch is written
//! as a whole and synced before [`Journal::commit`] returns. The newest record of a channel says
//! everything, so there is nothing to replay.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rocksdb::{DB, DBCompressionType, Direction, IteratorMode, Options, WriteBatch, WriteOptions};
use tokio::sync::watch;
use topnet_account::{ChannelId, Hash};
use topnet_books::{Entry, LogHead, NewLine, Stored, facts::Facts};
use topnet_log::{Frontier, LEVELS_MAX, Line, LogError, Position, SEGMENT_LINES, Segments};

const VERSION_KEY: &[u8] = b"v";
const VERSION: &[u8] = b"topnet-metering-journal/1";
const RECORD: u8 = b'c';
const FACTS: u8 = b't';
const NODE: u8 = b'n';
const NODE_BYTES: usize = 8 + 8 + Hash::SIZE;
const POSITION_KEY: &[u8] = b"p";
/// The service log's directory below the journal's.
const LOG_DIR: &str = "service-log";
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
    /// The service log beside it.
    #[error(transparent)]
    Log(#[from] LogError),
    /// It was damaged, or something else was put in its place.
    #[error("the journal in {path} is damaged at channel {channel}; restore it from a backup")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// At which channel.
        channel: String,
    },
}

/// A key with its value.
type Item = Result<(Box<[u8]>, Box<[u8]>), JournalError>;

/// The open journal, and the service log beside it.
pub struct Journal {
    path: PathBuf,
    /// `None` after a write that failed: nobody knows what it left until it is opened anew.
    database: Option<DB>,
    synced: WriteOptions,
    log: Segments,
    /// Up to where the log counts.
    position: Position,
    /// The segment that lines go to; those below are sealed for good.
    sealed: watch::Sender<u64>,
}

impl Journal {
    /// Opens the journal in `path`, or begins one, with the service log in a directory below.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        Self::open_with_log(path, &path.join(LOG_DIR), SEGMENT_LINES)
    }

    /// Opens the journal in `path` and the service log in `log_dir`, or begins them. Segments of
    /// the log get `segment_lines` lines.
    pub fn open_with_log(
        path: &Path,
        log_dir: &Path,
        segment_lines: u64,
    ) -> Result<Self, JournalError> {
        let database = open_database(path)?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let failed = |what| failed(path, what);
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
        let position = match database.get(POSITION_KEY).map_err(failed("read"))? {
            Some(bytes) => Some(position_from(&bytes).ok_or_else(|| damaged(path, POSITION_KEY))?),
            None => None,
        };
        let log = Segments::open(log_dir, position, segment_lines)?;
        // Lines count from here, so a crash before the first commit leaves none behind.
        database
            .put_opt(POSITION_KEY, position_bytes(log.position()), &synced)
            .map_err(failed("begin"))?;
        Ok(Self {
            path: path.to_owned(),
            database: Some(database),
            synced,
            position: log.position(),
            sealed: watch::Sender::new(log.position().segment),
            log,
        })
    }

    /// The number below which segments of the log are sealed for good. It grows when a commit is
    /// durable: what a commit that failed has sealed is cut again.
    pub fn sealed(&self) -> watch::Receiver<u64> {
        self.sealed.subscribe()
    }

    /// Every channel, in the order of ids.
    pub fn stored(&self) -> Result<Vec<Stored>, JournalError> {
        let Some(database) = &self.database else {
            return Ok(Vec::new());
        };
        // All three are in the order of ids.
        let mut records = self.items(database, RECORD).peekable();
        let mut nodes = self.items(database, NODE).peekable();
        let mut stored = Vec::new();
        for item in self.items(database, FACTS) {
            let (key, value) = item?;
            let damaged = || damaged(&self.path, &key);
            let id = key[1..].try_into().map_err(|_| damaged())?;
            let channel = ChannelId(id);
            let facts = Facts::from_bytes(&value).ok_or_else(damaged)?;
            let mut record = None;
            while let Some(item) = records.next_if(|item| is_up_to(item, &channel)) {
                let (key, value) = item?;
                if key[1..] == channel.0 {
                    record = Some(value.into_vec());
                }
            }
            let mut peaks = Peaks::default();
            while let Some(item) = nodes.next_if(|item| is_up_to(item, &channel)) {
                let (key, value) = item?;
                if key[1..].starts_with(&channel.0) {
                    let level = key.get(KEY_BYTES).copied();
                    level
                        .and_then(|level| peaks.take(level, &value))
                        .ok_or_else(damaged)?;
                }
            }
            stored.push(Stored {
                channel,
                facts,
                record,
                log: peaks.head().ok_or_else(damaged)?,
            });
        }
        Ok(stored)
    }

    /// What stands under one kind of key.
    fn items<'a>(&'a self, database: &'a DB, kind: u8) -> impl Iterator<Item = Item> + 'a {
        database
            .iterator(IteratorMode::From(&[kind], Direction::Forward))
            .map(|item| item.map_err(failed(&self.path, "read")))
            .take_while(move |item| item.as_ref().map_or(true, |(key, _)| key[0] == kind))
    }

    /// Writes all entries or none, and returns when they are on disk: the lines of the service
    /// log first, and with everything else up to where they count. After an error the same
    /// entries may be tried again; nothing else may be committed before.
    pub fn commit(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        if entries.is_empty() {
            return Ok(());
        }
        let written = self.write(entries);
        if written.is_err() {
            self.database = None;
        }
        written
    }

    fn write(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        if self.database.is_none() {
            self.log.rewind(self.position)?;
            self.database = Some(open_database(&self.path)?);
        }
        let new_lines = entries.iter().filter_map(|entry| entry.line);
        let lines: Vec<Line> = new_lines.map(|new| new.line).collect();
        self.log.append(&lines)?;
        self.log.sync()?;
        let mut batch = WriteBatch::default();
        for entry in entries {
            let channel = entry.channel;
            if entry.forget {
                batch.delete(place(FACTS, channel));
                batch.delete(place(RECORD, channel));
                for level in 0..LEVELS_MAX as u8 {
                    batch.delete(node_place(channel, level));
                }
            }
            if let Some(facts) = &entry.facts {
                batch.put(place(FACTS, channel), facts.to_bytes());
            }
            if let Some(record) = &entry.record {
                batch.put(place(RECORD, channel), record);
            }
            if let Some(new) = &entry.line {
                batch.put(node_place(channel, new.peak.level), node_bytes(new));
            }
        }
        if !lines.is_empty() {
            batch.put(POSITION_KEY, position_bytes(self.log.position()));
        }
        if let Some(database) = &self.database {
            database
                .write_opt(batch, &self.synced)
                .map_err(failed(&self.path, "write"))?;
        }
        self.position = self.log.position();
        let segment = self.position.segment;
        self.sealed.send_if_modified(|sealed| {
            let grown = *sealed != segment;
            *sealed = segment;
            grown
        });
        Ok(())
    }
}

fn open_database(path: &Path) -> Result<DB, JournalError> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_keep_log_file_num(LOG_FILES_MAX);
    DB::open(&options, path).map_err(failed(path, "open"))
}

fn failed(path: &Path, what: &'static str) -> impl FnOnce(rocksdb::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError::Database { what, path, source }
}

/// A value that nobody can read.
fn damaged(path: &Path, key: &[u8]) -> JournalError {
    let channel = key.iter().skip(1).map(|byte| format!("{byte:02x}"));
    JournalError::Damaged {
        path: path.to_owned(),
        channel: channel.collect(),
    }
}

/// The peaks that a channel's keys hold, stale ones too.
#[derive(Default)]
struct Peaks {
    lines: u64,
    units: u64,
    of_level: BTreeMap<u8, Hash>,
}

impl Peaks {
    fn take(&mut self, level: u8, value: &[u8]) -> Option<()> {
        let (lines, rest) = value.split_first_chunk::<8>()?;
        let (units, hash) = rest.split_first_chunk::<8>()?;
        let (lines, units) = (u64::from_le_bytes(*lines), u64::from_le_bytes(*units));
        if lines > self.lines {
            (self.lines, self.units) = (lines, units);
        }
        self.of_level.insert(level, Hash(hash.try_into().ok()?));
        Some(())
    }

    /// `None` if one is missing; without any there are no lines.
    fn head(&self) -> Option<Option<LogHead>> {
        if self.of_level.is_empty() {
            return Some(None);
        }
        let tree = Frontier::restore(self.lines, |level| self.of_level.get(&level).copied())?;
        let units = self.units;
        Some(Some(LogHead { units, tree }))
    }
}

/// True while `item` is of a channel up to `channel`, or cannot be read.
fn is_up_to(item: &Item, channel: &ChannelId) -> bool {
    match item {
        Ok((key, _)) => key.get(1..KEY_BYTES).is_none_or(|id| id <= &channel.0[..]),
        Err(_) => true,
    }
}

fn node_bytes(new: &NewLine) -> [u8; NODE_BYTES] {
    let mut bytes = [0; NODE_BYTES];
    bytes[..8].copy_from_slice(&new.lines.to_le_bytes());
    bytes[8..16].copy_from_slice(&new.line.units.to_le_bytes());
    bytes[16..].copy_from_slice(new.peak.hash.as_bytes());
    bytes
}

fn position_bytes(position: Position) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&position.segment.to_le_bytes());
    bytes[8..].copy_from_slice(&position.lines.to_le_bytes());
    bytes
}

fn position_from(bytes: &[u8]) -> Option<Position> {
    let (segment, lines) = bytes.split_first_chunk::<8>()?;
    Some(Position {
        segment: u64::from_le_bytes(*segment),
        lines: u64::from_le_bytes(lines.try_into().ok()?),
    })
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

fn node_place(channel: ChannelId, level: u8) -> [u8; KEY_BYTES + 1] {
    let mut key = [level; KEY_BYTES + 1];
    key[..KEY_BYTES].copy_from_slice(&place(NODE, channel));
    key
}

#[cfg(test)]
mod tests {
    use topnet_account::{Amount, PublicKey};
    use topnet_archive::{Archive, waiting};
    use topnet_log::{numbers, prove, read_segment};
    use topnet_unit::{BootId, Slot};

    use super::*;

    fn lines_of(log_dir: &Path, number: u8) -> Vec<Line> {
        let channel = ChannelId([number; 32]);
        let numbers = numbers(log_dir).unwrap().into_iter();
        let lines = numbers.flat_map(|number| read_segment(log_dir, number).unwrap());
        lines.filter(|line| line.channel == channel).collect()
    }

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
            line: None,
            forget: false,
        }
    }

    /// A kill leaves the files as they are at that moment: so does a copy of them.
    fn killed(dir: &Path) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(dir).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_dir() {
                let below = copy.path().join(file.file_name());
                std::fs::create_dir(&below).unwrap();
                for file in std::fs::read_dir(file.path()).unwrap() {
                    let file = file.unwrap();
                    std::fs::copy(file.path(), below.join(file.file_name())).unwrap();
                }
            } else if file.file_name() != "LOCK" {
                std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
            }
        }
        copy
    }

    #[test]
    fn what_was_committed_survives_a_kill_and_the_newest_wins() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
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
            log: None,
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
        let database = journal.database.as_ref().unwrap();
        database.put(VERSION_KEY, b"something/2").unwrap();
        drop(journal);
        let newer = Journal::open(dir.path());
        assert!(
            matches!(newer, Err(JournalError::Version { found, .. }) if found == "something/2")
        );
    }

    /// Entries of one channel that each log one unit more.
    fn logged(number: u8, head: &mut LogHead, record: &[u8]) -> Entry {
        let line = Line {
            channel: ChannelId([number; 32]),
            units_before: head.units,
            units: head.units + 1,
            channel_bytes: head.units * 1000,
            time_ms: 5,
            boot: BootId([6; 16]),
            slot: Slot {
                index: 1,
                generation: 1,
            },
        };
        let peak = head.tree.append(&line);
        head.units += 1;
        let lines = head.tree.size();
        Entry {
            line: Some(NewLine { line, lines, peak }),
            ..entry(number, record)
        }
    }

    #[test]
    fn the_log_is_as_durable_as_the_records_and_a_torn_batch_leaves_no_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let (mut one, mut two) = (LogHead::default(), LogHead::default());
        for round in 0..9 {
            let mut entries = vec![logged(1, &mut one, b"one")];
            if round % 2 == 0 {
                entries.push(logged(2, &mut two, b"two"));
            }
            if round % 3 == 2 {
                // A batch of which the log got something and the records nothing.
                let lines: Vec<Line> = entries.iter().map(|e| e.line.unwrap().line).collect();
                journal.log.append(&lines).unwrap();
                journal.database = None;
            }
            journal.commit(&entries).unwrap();
            let copy = killed(dir.path());
            let again = Journal::open(copy.path()).unwrap();
            let heads: Vec<_> = again.stored().unwrap();
            let heads: Vec<_> = heads
                .into_iter()
                .map(|stored| stored.log.unwrap())
                .collect();
            assert_eq!(heads, [one.clone(), two.clone()]);
            for (number, head) in [(1, &one), (2, &two)] {
                let log_dir = copy.path().join(LOG_DIR);
                let lines = lines_of(&log_dir, number);
                let mut tree = Frontier::default();
                for line in &lines {
                    tree.append(line);
                }
                assert_eq!(tree, head.tree);
            }
        }
    }

    /// What a batch that failed has sealed is cut again: the archive must not have taken it.
    #[tokio::test]
    async fn a_segment_is_sealed_for_good_only_when_the_commit_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join(LOG_DIR);
        let config = topnet_config::Archive {
            dir: log_dir.join("archive"),
            ..topnet_config::Archive::default()
        };
        let archive = Archive::open(&log_dir, &config).unwrap();
        let open = |path: &Path| Journal::open_with_log(path, &path.join(LOG_DIR), 2).unwrap();
        let mut journal = open(dir.path());
        let sealed = journal.sealed();
        let mut head = LogHead::default();
        let mut committed = 0;
        for round in 0..9 {
            let entries = [logged(1, &mut head, b"one")];
            // A batch of which the log got something and the records nothing.
            let line = entries[0].line.unwrap().line;
            journal.log.append(&[line, line, line]).unwrap();
            journal.log.sync().unwrap();
            journal.database = None;
            for number in waiting(&log_dir, *sealed.borrow()).unwrap() {
                archive.take(number).await.unwrap();
            }
            journal.commit(&entries).unwrap();
            committed += 1;
            let lines = archive.lines_of(&ChannelId([1; 32])).await.unwrap();
            assert_eq!(lines.len(), committed, "{round}");
            assert_eq!(prove(&lines, 0).unwrap().root(), Some(root(&head)));
        }
        assert_eq!(*sealed.borrow(), 5);
        assert_eq!(waiting(&log_dir, 5).unwrap(), [4]);
        assert_eq!(numbers(&log_dir).unwrap(), [4, 5]);
        assert_eq!(archive.verify().await.unwrap().findings, []);
        drop(journal);

        // What an earlier run has sealed is taken over by the next.
        let journal = open(dir.path());
        assert_eq!(*journal.sealed().borrow(), 5);
        archive.take(4).await.unwrap();
        let lines = archive.lines_of(&ChannelId([1; 32])).await.unwrap();
        assert_eq!(prove(&lines, 0).unwrap().root(), Some(root(&head)));
    }

    fn root(head: &LogHead) -> Hash {
        let lines = head.tree.size();
        topnet_log::log_root(&ChannelId([1; 32]), lines, &head.tree.root())
    }

    #[test]
    fn a_channel_that_is_forgotten_leaves_its_lines_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let mut head = LogHead::default();
        let entries = [logged(1, &mut head, b"one"), entry(2, b"two")];
        journal.commit(&entries).unwrap();
        let gone = Entry {
            facts: None,
            record: None,
            forget: true,
            ..entry(1, b"")
        };
        journal.commit(&[gone]).unwrap();
        let left: Vec<_> = journal.stored().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].channel, ChannelId([2; 32]));
        let database = journal.database.as_ref().unwrap();
        assert_eq!(journal.items(database, NODE).count(), 0);
        let log_dir = dir.path().join(LOG_DIR);
        let lines = lines_of(&log_dir, 1);
        assert_eq!(lines.len(), 1);
    }

    /// Journals hold these bytes: they change only with the version.
    #[test]
    fn golden_peak_and_position() {
        let mut head = LogHead::default();
        logged(9, &mut head, b"");
        let new = logged(9, &mut head, b"").line.unwrap();
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|b| format!("{b:02x}")).collect() };
        assert_eq!(
            hex(&node_bytes(&new)),
            format!("02000000000000000200000000000000{}", hex(&new.peak.hash.0))
        );
        assert_eq!(
            hex(&node_place(ChannelId([9; 32]), 1)),
            format!("6e{}01", "09".repeat(32))
        );
        let position = Position {
            segment: 3,
            lines: 4,
        };
        let bytes = position_bytes(position);
        assert_eq!(hex(&bytes), "03000000000000000400000000000000");
        assert_eq!(position_from(&bytes), Some(position));
        assert_eq!(position_from(&bytes[1..]), None);
    }
}
