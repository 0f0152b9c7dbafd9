//! Files of a wallet: its journal and its key.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use topnet_account::ChannelId;
use topnet_wallet::{Journal, JournalError, OwnCount, key_file};

const CHANNEL: ChannelId = ChannelId([9; 32]);
const JOURNAL_MAGIC: &[u8] = b"topnet-wallet-journal/1\n";
const CHECK_BYTES: usize = 8;

thread_local! {
    static DIRECTORY: TempDir = directory();
}

/// In memory where that is possible: a journal syncs, and a fuzzer opens thousands a second.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory)
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn in_directory<T>(with: impl FnOnce(&Path) -> T) -> T {
    DIRECTORY.with(|directory| with(directory.path()))
}

/// A journal, either as the bytes are or as records whose checks are right. It opens or is
/// called damaged; what it remembers is remembered again, and it takes what comes next.
pub(crate) fn wallet_journal(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let bytes = if kind % 2 == 0 {
        bytes.to_vec()
    } else {
        journal_of(bytes)
    };
    in_directory(|directory| {
        fs::write(directory.join(format!("{CHANNEL}.journal")), &bytes).unwrap();
        let open = || Journal::open(directory, CHANNEL);
        let remembered = match open() {
            Ok(journal) => journal.remembered().clone(),
            Err(JournalError::Damaged { at, .. }) => {
                assert!(at <= bytes.len() as u64);
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut journal = open().unwrap();
        assert_eq!(*journal.remembered(), remembered);
        let own = OwnCount::default();
        journal.save_count(own).unwrap();
        drop(journal);
        let journal = open().unwrap();
        assert_eq!(journal.remembered().own, own);
        assert_eq!(journal.remembered().payer(), remembered.payer());
    });
}

/// Records with right checks, each out of its kind, its length and that many bytes.
fn journal_of(mut rest: &[u8]) -> Vec<u8> {
    let mut journal = JOURNAL_MAGIC.to_vec();
    while let Some(([kind, low, high], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high]) % 600).min(after.len());
        let (payload, after) = after.split_at(length);
        let mut record = vec![*kind];
        record.extend((payload.len() as u16).to_le_bytes());
        record.extend(payload);
        let mut context = Sha256::new();
        context.update((journal.len() as u64).to_le_bytes());
        context.update(&record);
        record.extend(&context.finalize()[..CHECK_BYTES]);
        journal.extend(record);
        rest = after;
    }
    journal
}

/// A key file. Opening one costs what it says, so only a cheap one is opened.
pub(crate) fn key_file(bytes: &[u8]) {
    let path = in_directory(|directory| write_private(directory.join("key.json"), bytes));
    let Ok(public) = key_file::read_public(&path) else {
        assert!(key_file::read(&path, b"golden").is_err());
        return;
    };
    if is_cheap(bytes)
        && let Ok(secret) = key_file::read(&path, b"golden")
    {
        assert_eq!(secret.public_key(), public);
    }
}

fn write_private(path: PathBuf, bytes: &[u8]) -> PathBuf {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    file.write_all(bytes).unwrap();
    path
}

fn is_cheap(bytes: &[u8]) -> bool {
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(bytes) else {
        return false;
    };
    let at_most = |key: &str, most| document[key].as_u64().is_some_and(|value| value <= most);
    at_most("memory_kib", 256) && at_most("passes", 2) && at_most("lanes", 2)
}
