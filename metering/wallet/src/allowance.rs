//! What a wallet may still promise one provider, on disk: the same for all of the wallet's
//! processes, and after a restart.
//!
//! The file is written once whole, with [`MAGIC`] in its first block, and then changed in place:
//! two blocks take turns, each with a number that rises, a [`Promised`] and a check over both.
//! The higher number counts; a block that a crash has torn does not check, and then the other
//! still does. What is granted is synced before it is given out. A grant that is not used, as
//! when the process dies, stays counted: the limits are never passed, only reached too soon.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use ring::digest;
use rustix::{
    fs::{FlockOperation, flock},
    time::{ClockId, clock_gettime},
};
use topnet_account::{Address, Amount};
use topnet_unit::UnitCount;

use crate::limits::{Grant, Limits, Moment, Promised};

/// Format and version.
const MAGIC: &[u8; 19] = b"topnet-allowance/1\n";
/// Blocks do not share a sector, so that tearing one leaves the other.
const BLOCK_BYTES: usize = 4096;
const FILE_BYTES: u64 = 3 * BLOCK_BYTES as u64;
const SEQ_BYTES: usize = 8;
const CHECK_BYTES: usize = 8;
const RECORD_BYTES: usize = SEQ_BYTES + Promised::BYTES + CHECK_BYTES;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

const _: () = assert!(RECORD_BYTES <= BLOCK_BYTES);

/// Why the limits cannot be kept. Whoever cannot keep them must not pay.
#[derive(Debug, thiserror::Error)]
pub enum AllowanceError {
    /// The file cannot be used: mend its path, permissions or disk.
    #[error("cannot {what} {path}, where the limits are kept: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is none of ours, or was damaged.
    #[error(
        "{path} keeps no limits that this version can read; move it away, and an hour begins anew"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
}

/// What one provider may still be promised. Any number of processes may have it open.
#[derive(Debug)]
pub struct Allowance {
    path: PathBuf,
    file: File,
    limits: Limits,
    boot: [u8; 16],
}

impl Allowance {
    /// The allowance for `provider`, the account that is paid, below the wallet's directory.
    /// Begins a new hour where there is none yet.
    pub fn open(
        state_dir: &Path,
        provider: Address,
        limits: Limits,
    ) -> Result<Self, AllowanceError> {
        let path = state_dir.join(format!("{provider}.allowance"));
        let failed = |what| {
            let path = path.clone();
            move |source| AllowanceError::File { what, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(failed("make the directory of"))?;
        let boot = boot_id().map_err(failed("learn the boot id for"))?;
        if !path.exists() {
            begin(&path, moment(boot)).map_err(failed("begin"))?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed("open"))?;
        let allowance = Self {
            path,
            file,
            limits,
            boot,
        };
        allowance.read()?;
        Ok(allowance)
    }

    /// Promises up to `units` at `unit_price` each, as many as the limits allow now. Nothing for
    /// the moment if another process has the file just now.
    pub fn ask(&self, units: UnitCount, unit_price: Amount) -> Result<Grant, AllowanceError> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Ok(Grant {
                    units: 0,
                    limit: None,
                });
            }
            Err(errno) => return Err(self.failed("lock", errno.into())),
        }
        let granted = self.ask_locked(units, unit_price, moment(self.boot));
        flock(&self.file, FlockOperation::Unlock)
            .map_err(|errno| self.failed("unlock", errno.into()))?;
        granted
    }

    fn ask_locked(
        &self,
        units: UnitCount,
        unit_price: Amount,
        now: Moment,
    ) -> Result<Grant, AllowanceError> {
        let (seq, mut promised) = self.read()?;
        let grant = promised.handle_ask(&self.limits, units, unit_price, now);
        // Where nothing is granted nothing is to be remembered: the next look counts the time
        // that passed from the last one.
        if grant.units > 0 {
            let seq = seq.checked_add(1).ok_or_else(|| self.damaged())?;
            self.file
                .write_all_at(&record(seq, &promised), place(seq))
                .and_then(|()| self.file.sync_data())
                .map_err(|error| self.failed("write", error))?;
        }
        Ok(grant)
    }

    /// The newest state that checks.
    fn read(&self) -> Result<(u64, Promised), AllowanceError> {
        let mut bytes = vec![0; FILE_BYTES as usize];
        self.file
            .read_exact_at(&mut bytes, 0)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.damaged(),
                _ => self.failed("read", error),
            })?;
        if !bytes.starts_with(MAGIC) {
            return Err(self.damaged());
        }
        let blocks = bytes[BLOCK_BYTES..].chunks_exact(BLOCK_BYTES);
        blocks
            .filter_map(parse)
            .max_by_key(|(seq, _)| *seq)
            .ok_or_else(|| self.damaged())
    }

    fn damaged(&self) -> AllowanceError {
        AllowanceError::Damaged {
            path: self.path.clone(),
        }
    }

    fn failed(&self, what: &'static str, source: io::Error) -> AllowanceError {
        AllowanceError::File {
            what,
            path: self.path.clone(),
            source,
        }
    }
}

/// Writes the file beside its place and links it there. Where another process was faster, its
/// file stays.
fn begin(path: &Path, now: Moment) -> io::Result<()> {
    let mut bytes = vec![0; FILE_BYTES as usize];
    bytes[..MAGIC.len()].copy_from_slice(MAGIC);
    let at = place(1) as usize;
    bytes[at..at + RECORD_BYTES].copy_from_slice(&record(1, &Promised::new(now)));
    static BESIDE: AtomicU64 = AtomicU64::new(0);
    let number = BESIDE.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_extension(format!("{}-{number}.new", std::process::id()));
    let _ = fs::remove_file(&beside);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    let linked = file
        .write_all_at(&bytes, 0)
        .and_then(|()| file.sync_all())
        .and_then(|()| match fs::hard_link(&beside, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        });
    let _ = fs::remove_file(&beside);
    linked?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Which block holds the state of this number.
fn place(seq: u64) -> u64 {
    (1 + seq % 2) * BLOCK_BYTES as u64
}

fn record(seq: u64, promised: &Promised) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..SEQ_BYTES].copy_from_slice(&seq.to_le_bytes());
    bytes[SEQ_BYTES..][..Promised::BYTES].copy_from_slice(&promised.to_bytes());
    let check = check(&bytes[..RECORD_BYTES - CHECK_BYTES]);
    bytes[RECORD_BYTES - CHECK_BYTES..].copy_from_slice(&check);
    bytes
}

fn parse(block: &[u8]) -> Option<(u64, Promised)> {
    let (content, rest) = block.split_at_checked(RECORD_BYTES - CHECK_BYTES)?;
    if check(content) != rest.get(..CHECK_BYTES)? {
        return None;
    }
    let (seq, promised) = content.split_at(SEQ_BYTES);
    let seq = u64::from_le_bytes(seq.try_into().ok()?);
    Some((seq, Promised::from_bytes(promised.try_into().ok()?)))
}

fn check(content: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    let digest = digest::digest(&digest::SHA256, content);
    check.copy_from_slice(&digest.as_ref()[..CHECK_BYTES]);
    check
}

fn boot_id() -> io::Result<[u8; 16]> {
    let mut text = String::new();
    File::open(BOOT_ID)?.take(64).read_to_string(&mut text)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(io::Error::other)
}

fn moment(boot: [u8; 16]) -> Moment {
    let since_boot = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(since_boot.tv_sec).unwrap_or(0);
    let millis = u64::try_from(since_boot.tv_nsec / 1_000_000).unwrap_or(0);
    // A clock before 1970 is one that was put back.
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Moment {
        boot,
        boot_ms: seconds * 1_000 + millis,
        wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::limits::Limit;

    const PRICE: Amount = Amount::from_ntop(7);
    const PROVIDER: Address = Address([4; 32]);

    fn open(dir: &tempfile::TempDir, units: u64) -> Result<Allowance, AllowanceError> {
        let limits = Limits {
            hourly_spend: Some(Amount::from_ntop(7 * units)),
            ..Limits::default()
        };
        Allowance::open(&dir.path().join("wallet"), PROVIDER, limits)
    }

    fn file(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join(format!("wallet/{PROVIDER}.allowance"))
    }

    #[test]
    fn a_restart_and_another_process_have_the_same_hour() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(&dir, 10).unwrap();
        let second = open(&dir, 10).unwrap();
        assert_eq!(first.ask(4, PRICE).unwrap().units, 4);
        assert_eq!(second.ask(4, PRICE).unwrap().units, 4);
        drop((first, second));
        let grant = open(&dir, 10).unwrap().ask(4, PRICE).unwrap();
        let limit = Some(Limit::HourlySpend);
        assert_eq!(grant, Grant { units: 2, limit });
        // Another provider has its own.
        let other = Allowance::open(dir.path(), Address([5; 32]), Limits::default()).unwrap();
        assert_eq!(other.ask(4, PRICE).unwrap().units, 4);
        let mode = fs::metadata(file(&dir)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn processes_at_once_never_promise_more_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let granted: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let allowance = open(&dir, 100).unwrap();
                        (0..50)
                            .map(|_| allowance.ask(1, PRICE).unwrap().units)
                            .sum::<u64>()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .sum()
        });
        let left = open(&dir, 100).unwrap().ask(100, PRICE).unwrap().units;
        assert_eq!(granted + left, 100);
    }

    #[test]
    fn a_torn_write_leaves_the_state_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let allowance = open(&dir, 10).unwrap();
        for _ in 0..3 {
            allowance.ask(2, PRICE).unwrap();
        }
        let (seq, _) = allowance.read().unwrap();
        let whole = fs::read(file(&dir)).unwrap();
        for torn in [0, 1, SEQ_BYTES, 500, RECORD_BYTES - 1] {
            let mut bytes = whole.clone();
            let at = place(seq) as usize;
            bytes[at + torn] ^= 1;
            fs::write(file(&dir), &bytes).unwrap();
            let (read, _) = allowance.read().unwrap();
            assert_eq!(read, seq - 1, "{torn}");
        }
    }

    #[test]
    fn what_is_no_allowance_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir, 10).unwrap();
        let whole = fs::read(file(&dir)).unwrap();
        let zeroed = [&whole[..BLOCK_BYTES], &[0; 2 * BLOCK_BYTES]].concat();
        let newer = [&b"topnet-allowance/2\n"[..], &whole[MAGIC.len()..]].concat();
        for bytes in [&b""[..], &whole[..BLOCK_BYTES], &zeroed, &newer] {
            fs::write(file(&dir), bytes).unwrap();
            assert!(matches!(
                open(&dir, 10),
                Err(AllowanceError::Damaged { .. })
            ));
        }
    }
}
