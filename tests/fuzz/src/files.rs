//! Files of a wallet: its journal, its key, what it remembers of the past and of its limits.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use topnet_account::{Address, Amount, ChannelId};
use topnet_unit::UNIT_BYTES;
use topnet_wallet::{
    Allowance, AllowanceError, Checkpoint, History, HistoryError, Journal, JournalError, Known,
    Limits, Moment, OwnCount, Promised, Receipt, Remembered, Statement, key_file, to_csv,
};

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

/// A channel's history, and the same lines as receipts. What is read makes a statement, and the
/// next line that is written is read after it.
pub(crate) fn statement(bytes: &[u8]) {
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(receipt) = serde_json::from_slice::<Receipt>(line) {
            let shown = serde_json::to_vec(&receipt).unwrap();
            assert_eq!(serde_json::from_slice::<Receipt>(&shown).unwrap(), receipt);
            let _ = receipt.verify();
        }
    }
    in_directory(|directory| {
        fs::write(directory.join(format!("{CHANNEL}.history")), bytes).unwrap();
        let read = || History::read(directory, CHANNEL);
        let history = match read() {
            Ok(history) => history,
            Err(HistoryError::Line { line, .. }) => {
                assert!(line <= bytes.split(|byte| *byte == b'\n').count());
                return;
            }
            Err(HistoryError::File { .. }) => {
                assert!(std::str::from_utf8(bytes).is_err());
                return;
            }
        };
        let journal = Remembered::default();
        let known = Known {
            channel: CHANNEL,
            journal: &journal,
            history: &history,
            status: None,
        };
        let since = history.checkpoints.first().map(|first| first.at_ms);
        let statements = [None, since].map(|since_ms| Statement::of(known, since_ms));
        assert!(to_csv(&statements).lines().count() > statements.len());
        serde_json::to_string(&statements[0]).unwrap();

        let checkpoint = Checkpoint {
            at_ms: u64::MAX,
            ..Checkpoint::default()
        };
        History::note_checkpoint(directory, CHANNEL, checkpoint).unwrap();
        let after = read().unwrap();
        let (last, before) = after.checkpoints.split_last().unwrap();
        assert_eq!((last, before), (&checkpoint, &history.checkpoints[..]));
        assert_eq!(after.parties, history.parties);
    });
}

/// A file of limits as the bytes are; and what such a file may hold, asked again and again while
/// clocks jump. No more is ever granted than was asked for,
/// nor at once than an hour allows, and the same question again gets no more.
pub(crate) fn allowance(bytes: &[u8]) {
    let limits = Limits {
        hourly_spend: Some(Amount::from_ntop(1_000)),
        hourly_volume_bytes: Some(300 * UNIT_BYTES),
        rate_bytes_per_s: Some(50 * UNIT_BYTES),
    };
    let Some((state, mut rest)) = bytes.split_first_chunk::<{ Promised::BYTES }>() else {
        allowance_file(bytes, limits);
        return;
    };
    let mut promised = Promised::from_bytes(state);
    assert_eq!(promised.to_bytes(), *state);
    let mut now = Moment::default();
    while let Some(([boot, units, price, time @ ..], after)) = rest.split_first_chunk::<7>() {
        rest = after;
        let [wall, high, low, scale] = time.map(u64::from);
        now.boot = [boot & 3; 16];
        now.boot_ms = (high << 8 | low) << (scale % 48);
        now.wall_ms = now.wall_ms.wrapping_add(wall << (scale % 56));
        let asked = u64::from(*units);
        let price = Amount::from_ntop(u64::from(*price));
        let before = promised.clone();
        let grant = promised.handle_ask(&limits, asked, price, now);
        assert!(grant.units <= asked && (grant.units == asked || grant.limit.is_some()));
        assert_eq!(Promised::from_bytes(&promised.to_bytes()), promised);
        // The same ask at the same moment, in a copy: what the limits leave only falls.
        let mut again = promised.clone();
        let second = again.handle_ask(&limits, asked, price, now);
        assert!(second.units <= grant.units, "{before:?}");
        assert!(
            grant.units <= 300 && (price.is_zero() || grant.units * price.ntop() <= 1_000),
            "{grant:?}"
        );
    }
}

fn allowance_file(bytes: &[u8], limits: Limits) {
    const PROVIDER: Address = Address([4; 32]);
    in_directory(|directory| {
        let path = directory.join(format!("{PROVIDER}.allowance"));
        fs::write(path, bytes).unwrap();
        match Allowance::open(directory, PROVIDER, limits) {
            Ok(allowance) => assert!(allowance.ask(1, Amount::from_ntop(1)).is_ok()),
            Err(AllowanceError::Damaged { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    });
}
