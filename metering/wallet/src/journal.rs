//! What the payer has promised on one channel, and what it has counted: an append-only file.
//!
//! The file begins with [`MAGIC`]. A record is its kind (one byte), its payload's length
//! (`u16`), the payload, and the first eight bytes of a SHA-256 over the file's position and
//! all that; numbers are little-endian. A promise's payload is the own count and the payer's
//! record, a count's is the own count alone. A record is synced before [`Journal::save`] gives
//! out what may leave with it. A torn tail, as a crash leaves it, is cut off at opening; a
//! damaged record with whole ones after it is refused, because what it said may have been sent.
//!
//! Everything in it is cumulative, so only the newest record matters; a file that has grown
//! long is replaced by one that holds only that.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ring::digest;
use rustix::fs::{FlockOperation, flock};
use topnet_account::ChannelId;
use topnet_channel::{Durable, PayerRecord, Unsaved};

use crate::OwnCount;

/// Format and version.
const MAGIC: &[u8; 24] = b"topnet-wallet-journal/1\n";
/// A file longer than this is replaced by its newest records.
const FILE_BYTES_MAX: u64 = 1 << 20;
const HEAD_BYTES: usize = 3;
const CHECK_BYTES: usize = 8;
const PAYLOAD_BYTES_MAX: usize = 512;
const RECORD_BYTES_MAX: usize = HEAD_BYTES + PAYLOAD_BYTES_MAX + CHECK_BYTES;

const KIND_PROMISE: u8 = 1;
const KIND_COUNT: u8 = 2;

/// What the journal remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The payer's newest record, as it was written.
    record: Option<Vec<u8>>,
    /// The newest own count.
    pub own: OwnCount,
}

impl Remembered {
    /// The payer's newest record.
    pub fn payer(&self) -> Option<PayerRecord> {
        // It was read once when it was taken in.
        self.record
            .as_deref()
            .and_then(|record| PayerRecord::from_bytes(record).ok())
    }
}

/// Why there is no journal, or no more of it. Whoever cannot journal must not pay.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be used: mend its path, permissions or disk.
    #[error("cannot {what} the wallet's journal {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another wallet pays from this channel.
    #[error("another wallet holds {0}; stop it first, two would promise the same money")]
    Held(PathBuf),
    /// The file is no journal, or was damaged.
    #[error(
        "{path} is damaged at byte {at}: {reason}; move it away, then the payee shows what was promised"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong there.
        reason: &'static str,
    },
}

/// The journal of one channel, held by one process at a time.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    remembered: Remembered,
    /// After a failed write nobody knows what is on the disk.
    failed: bool,
    /// Released with the process, however it ends.
    _lock: File,
}

impl Journal {
    /// Opens the journal of `channel` in the wallet's directory, or begins one.
    pub fn open(state_dir: &Path, channel: ChannelId) -> Result<Self, JournalError> {
        let path = state_dir.join(format!("{channel}.journal"));
        let failed = |what| {
            let path = path.clone();
            move |source| JournalError::File { what, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(failed("make the directory of"))?;
        let lock = hold(&path)?;
        let mut bytes = Vec::new();
        open_options()
            .open(&path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(failed("open"))?;
        if bytes.len() < MAGIC.len() && MAGIC.starts_with(&bytes) {
            replace(&path, &Remembered::default()).map_err(failed("begin"))?;
        }
        Self::load(&path, lock)
    }

    /// What the journal of `channel` remembers, without holding it: a wallet may be paying.
    /// Nothing where there is no journal.
    pub fn look(state_dir: &Path, channel: ChannelId) -> Result<Remembered, JournalError> {
        let path = state_dir.join(format!("{channel}.journal"));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Remembered::default());
            }
            Err(source) => {
                let what = "read";
                return Err(JournalError::File { what, path, source });
            }
        };
        if MAGIC.starts_with(&bytes) {
            return Ok(Remembered::default());
        }
        // A record that is being written looks like a torn one.
        let (remembered, _) = replay(&bytes).map_err(|(at, reason)| JournalError::Damaged {
            path,
            at: at as u64,
            reason,
        })?;
        Ok(remembered)
    }

    /// The wallet's directory, which the journal is in.
    pub fn state_dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// What was remembered.
    pub fn remembered(&self) -> &Remembered {
        &self.remembered
    }

    /// Writes and syncs the record of something that is to leave, and the own count with it.
    pub fn save<T>(
        &mut self,
        unsaved: Unsaved<T>,
        own: OwnCount,
    ) -> Result<Durable<T>, JournalError> {
        self.append(KIND_PROMISE, &[&own.to_bytes(), unsaved.record()].concat())?;
        self.remembered = Remembered {
            record: Some(unsaved.record().to_vec()),
            own,
        };
        Ok(unsaved.saved())
    }

    /// Writes and syncs the own count.
    pub fn save_count(&mut self, own: OwnCount) -> Result<(), JournalError> {
        self.append(KIND_COUNT, &own.to_bytes())?;
        self.remembered.own = own;
        Ok(())
    }

    fn load(path: &Path, lock: File) -> Result<Self, JournalError> {
        let failed = |what| {
            move |source| JournalError::File {
                what,
                path: path.into(),
                source,
            }
        };
        let mut file = open_options().open(path).map_err(failed("open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("read"))?;
        let (remembered, good) = replay(&bytes).map_err(|(at, reason)| JournalError::Damaged {
            path: path.into(),
            at: at as u64,
            reason,
        })?;
        let length = good as u64;
        if good < bytes.len() {
            file.set_len(length)
                .map_err(failed("cut the torn tail of"))?;
            file.sync_all().map_err(failed("sync"))?;
        }
        Ok(Self {
            path: path.into(),
            file,
            length,
            remembered,
            failed: false,
            _lock: lock,
        })
    }

    fn append(&mut self, kind: u8, payload: &[u8]) -> Result<(), JournalError> {
        if self.failed {
            let source = io::Error::other("an earlier write failed; restart the wallet");
            return Err(JournalError::File {
                what: "write",
                path: self.path.clone(),
                source,
            });
        }
        self.failed = true;
        self.write(kind, payload)
            .map_err(|source| JournalError::File {
                what: "write",
                path: self.path.clone(),
                source,
            })?;
        self.failed = false;
        Ok(())
    }

    fn write(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        if self.length > FILE_BYTES_MAX {
            self.length = replace(&self.path, &self.remembered)?;
            self.file = open_options().open(&self.path)?;
        }
        let record = record(self.length, kind, payload);
        self.file.write_all(&record)?;
        self.file.sync_data()?;
        self.length += record.len() as u64;
        Ok(())
    }
}

fn open_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options
}

/// A lock of its own file, because the journal itself is replaced.
fn hold(path: &Path) -> Result<File, JournalError> {
    let lock_path = path.with_extension("lock");
    let failed = |source| JournalError::File {
        what: "lock",
        path: lock_path.clone(),
        source,
    };
    let lock = open_options().open(&lock_path).map_err(failed)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(JournalError::Held(path.into())),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Puts a file with only what is `remembered` in the place of `path`; gives its length.
fn replace(path: &Path, remembered: &Remembered) -> io::Result<u64> {
    let mut bytes = MAGIC.to_vec();
    let own = remembered.own.to_bytes();
    let newest = match &remembered.record {
        Some(payer) => record(
            bytes.len() as u64,
            KIND_PROMISE,
            &[&own, &payer[..]].concat(),
        ),
        None => record(bytes.len() as u64, KIND_COUNT, &own),
    };
    bytes.extend_from_slice(&newest);
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(bytes.len() as u64)
}

fn record(position: u64, kind: u8, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&(payload.len() as u16).to_le_bytes());
    bytes.extend_from_slice(payload);
    let check = check(position, &bytes);
    bytes.extend_from_slice(&check);
    bytes
}

fn check(position: u64, bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&position.to_le_bytes());
    context.update(bytes);
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&context.finish().as_ref()[..CHECK_BYTES]);
    check
}

/// What `bytes` remember, and how many of them are good. Records are synced one by one, so a
/// crash tears at most the last one: short, or with zeros in it. Anything else is damage.
fn replay(bytes: &[u8]) -> Result<(Remembered, usize), (usize, &'static str)> {
    if !bytes.starts_with(MAGIC) {
        return Err((0, "it is no wallet journal of version 1"));
    }
    let mut remembered = Remembered::default();
    let mut at = MAGIC.len();
    while at < bytes.len() {
        let Some(content) = whole_record(bytes, at) else {
            let others_follow = (at + 1..bytes.len()).any(|at| whole_record(bytes, at).is_some());
            if others_follow || bytes.len() - at > RECORD_BYTES_MAX {
                return Err((at, "a record does not check, and it is not the last"));
            }
            break;
        };
        let payload = &content[HEAD_BYTES..];
        remembered
            .apply(content[0], payload)
            .ok_or((at, "a record of an unknown form"))?;
        at += content.len() + CHECK_BYTES;
    }
    Ok((remembered, at))
}

/// The record at `at` without its check, if it is all there and checks.
fn whole_record(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    let head = rest.get(..HEAD_BYTES)?;
    let payload = usize::from(u16::from_le_bytes([head[1], head[2]]));
    let content = rest.get(..HEAD_BYTES + payload)?;
    let written = rest.get(HEAD_BYTES + payload..HEAD_BYTES + payload + CHECK_BYTES)?;
    (check(at as u64, content) == written).then_some(content)
}

impl Remembered {
    fn apply(&mut self, kind: u8, payload: &[u8]) -> Option<()> {
        match kind {
            KIND_PROMISE => {
                let (own, payer) = payload.split_at_checked(OwnCount::BYTES)?;
                PayerRecord::from_bytes(payer).ok()?;
                self.own = OwnCount::from_bytes(own)?;
                self.record = Some(payer.to_vec());
            }
            KIND_COUNT => self.own = OwnCount::from_bytes(payload)?,
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use topnet_account::Amount;
    use topnet_channel::{
        Meter, Offer, PROTOCOL_VERSION, PayeeMessage, Payer, PayerTerms, SecretKey,
    };
    use topnet_unit::UNIT_BYTES;

    use super::*;
    use crate::Counted;

    const CHANNEL: ChannelId = ChannelId([9; 32]);

    /// A payer that is asked to pay one unit more at each step.
    struct Steps {
        payer: Payer,
        units: u64,
    }

    impl Steps {
        fn new() -> Self {
            let terms = PayerTerms {
                channel: CHANNEL,
                allocation: Amount::from_ntop(1_000_000),
                unit_price_max: Amount::from_ntop(7),
                window_max: 1,
            };
            let secret = SecretKey::from_seed([3; 32]).unwrap();
            let mut payer = Payer::new(secret, terms, None);
            let _ = payer.hello();
            let offer = Offer {
                version: PROTOCOL_VERSION,
                unit_price: Amount::from_ntop(7),
                epsilon_ppm: 0,
                window_max: 1,
            };
            payer.handle_message(&PayeeMessage::Offer(offer)).unwrap();
            payer.handle_message(&PayeeMessage::Resume(None)).unwrap();
            Self { payer, units: 0 }
        }

        fn save(&mut self, journal: &mut Journal) {
            let own = own(self.units);
            while let Some(unsaved) = self.payer.poll_send() {
                let _ = journal.save(unsaved, own).unwrap().release();
            }
            self.units += 1;
            self.payer.handle_own_bytes(self.units * UNIT_BYTES);
            let meter = Meter {
                owed: self.units,
                ..Meter::default()
            };
            self.payer
                .handle_message(&PayeeMessage::Meter(meter))
                .unwrap();
        }
    }

    fn own(units: u64) -> OwnCount {
        OwnCount::of(Counted {
            up_bytes: units,
            down_bytes: units * UNIT_BYTES,
        })
    }

    /// A child that another test starts has our locks too, until it runs its program.
    fn open(dir: &tempfile::TempDir) -> Result<Journal, JournalError> {
        loop {
            match Journal::open(dir.path(), CHANNEL) {
                Err(JournalError::Held(_)) => std::thread::yield_now(),
                opened => return opened,
            }
        }
    }

    #[test]
    fn what_was_saved_is_remembered_by_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(&dir).unwrap();
        assert_eq!(*journal.remembered(), Remembered::default());
        let mut steps = Steps::new();
        (0..5).for_each(|_| steps.save(&mut journal));
        journal.save_count(own(9)).unwrap();
        let expected = journal.remembered().clone();
        drop(journal);
        let journal = open(&dir).unwrap();
        assert_eq!(*journal.remembered(), expected);
        assert_eq!(Journal::look(dir.path(), CHANNEL).unwrap(), expected);
        let unknown = Journal::look(dir.path(), ChannelId([1; 32])).unwrap();
        assert_eq!(unknown, Remembered::default());
        let record = expected.payer().unwrap();
        assert_eq!(record.promise, steps.payer.promise());
        assert_eq!(record.promise.unwrap().index, 5);
        assert_eq!(expected.own, own(9));
    }

    #[test]
    fn every_torn_tail_is_cut_and_every_damage_before_it_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(&dir).unwrap();
        let path = journal.path.clone();
        let mut steps = Steps::new();
        steps.save(&mut journal);
        let before_last = journal.length as usize;
        let expected = journal.remembered().clone();
        steps.save(&mut journal);
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for length in before_last..whole.len() {
            for zeros in [0, whole.len() - length] {
                let torn = [&whole[..length], &vec![0; zeros][..]].concat();
                if torn == whole {
                    continue;
                }
                fs::write(&path, &torn).unwrap();
                let journal = open(&dir).unwrap();
                assert_eq!(*journal.remembered(), expected, "{length}");
                assert_eq!(fs::metadata(&path).unwrap().len(), before_last as u64);
            }
        }
        for at in 0..before_last {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            fs::write(&path, &damaged).unwrap();
            assert!(
                matches!(open(&dir), Err(JournalError::Damaged { .. })),
                "{at}"
            );
        }
    }

    #[test]
    fn a_file_torn_at_its_beginning_is_begun_again() {
        for length in 0..MAGIC.len() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(format!("{CHANNEL}.journal"));
            fs::write(&path, &MAGIC[..length]).unwrap();
            open(&dir).unwrap().save_count(own(3)).unwrap();
            assert_eq!(open(&dir).unwrap().remembered().own, own(3));
        }
    }

    #[test]
    fn a_long_file_is_replaced_by_its_newest_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(&dir).unwrap();
        let mut steps = Steps::new();
        (0..20).for_each(|_| steps.save(&mut journal));
        let long = journal.length;
        journal.length = FILE_BYTES_MAX + 1;
        steps.save(&mut journal);
        assert!(journal.length < long);
        steps.save(&mut journal);
        let expected = journal.remembered().clone();
        drop(journal);
        assert_eq!(*open(&dir).unwrap().remembered(), expected);
        assert_eq!(expected.payer().unwrap().promise, steps.payer.promise());
    }

    #[test]
    fn two_wallets_cannot_hold_one_channel() {
        let dir = tempfile::tempdir().unwrap();
        let _held = open(&dir).unwrap();
        let second = Journal::open(dir.path(), CHANNEL);
        assert!(matches!(second, Err(JournalError::Held(_))));
    }
}
