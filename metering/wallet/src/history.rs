//! How a channel's counts went on, for statements: a file of JSON lines beside its journal.
//!
//! One kind of line says whose channel it is, the other how it stood at one moment, a
//! *checkpoint*. Every number is cumulative, so what was used between two checkpoints is a
//! difference, and a line that is missing makes it coarser and never wrong. A torn last line, as
//! a crash leaves it, is cut off before the next is written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use topnet_account::{Address, Amount, ChannelId, PublicKey};

/// A history longer than this is not read: at a line in a quarter of an hour it is twenty years.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Whose channel it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parties {
    /// The channel.
    pub channel: ChannelId,
    /// The chain that it is on.
    pub chain: String,
    /// Whose money it is.
    pub payer: Address,
    /// Who is paid.
    pub payee: Address,
    /// What the payee calls itself; nobody has proved it.
    pub provider: String,
    /// Who signs vouchers.
    pub signer: PublicKey,
    /// The most that can be redeemed.
    pub allocation: Amount,
}

/// How the channel stood at one moment, as both ends counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// When, in milliseconds since 1970 by the wall clock.
    pub at_ms: u64,
    /// Our count at the tunnel's interface: at most what is billed.
    pub own_bytes_least: u64,
    /// Our higher count: at least what is billed, where WireGuard's transfer can be read.
    pub own_bytes_most: u64,
    /// What the payee says it counted.
    pub metered_bytes: u64,
    /// Units paid for.
    pub released_units: u64,
    /// Units that the payee says it has.
    pub accepted_units: u64,
    /// Units that the payee says are owed.
    pub owed_units: u64,
    /// What the released units are worth.
    pub promised: Amount,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Parties(Parties),
    Checkpoint(Checkpoint),
}

/// Why a history cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be used: mend its path, permissions or disk.
    #[error("cannot {what} the channel's history {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line in the middle is none of ours.
    #[error("{path}:{line} is no line of a channel's history; remove it, the others stand alone")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
}

/// All that is known of a channel's past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Whose it is, as it was said last.
    pub parties: Option<Parties>,
    /// In the order in which they were written.
    pub checkpoints: Vec<Checkpoint>,
}

impl History {
    /// Reads what is there of `channel` in the wallet's directory; nothing is no error.
    pub fn read(state_dir: &Path, channel: ChannelId) -> Result<Self, HistoryError> {
        let path = file(state_dir, channel);
        let failed = |source| HistoryError::File {
            what: "read",
            path: path.clone(),
            source,
        };
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file
                .take(FILE_BYTES_MAX)
                .read_to_string(&mut text)
                .map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
        };
        let mut history = Self::default();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for (index, line) in text[..whole].lines().enumerate() {
            match serde_json::from_str(line) {
                Ok(Line::Parties(parties)) => history.parties = Some(parties),
                Ok(Line::Checkpoint(checkpoint)) => history.checkpoints.push(checkpoint),
                Err(_) => {
                    let line = index + 1;
                    return Err(HistoryError::Line { path, line });
                }
            }
        }
        Ok(history)
    }

    /// The last checkpoint that was written no later than `at_ms`.
    pub fn at(&self, at_ms: u64) -> Option<&Checkpoint> {
        // The wall clock may have been set in between: the order of writing counts.
        self.checkpoints
            .iter()
            .rev()
            .find(|checkpoint| checkpoint.at_ms <= at_ms)
    }

    /// Writes down whose channel it is, if that is news.
    pub fn note_parties(state_dir: &Path, parties: &Parties) -> Result<(), HistoryError> {
        let known = Self::read(state_dir, parties.channel)?.parties;
        if known.as_ref() == Some(parties) {
            return Ok(());
        }
        append(
            &file(state_dir, parties.channel),
            &Line::Parties(parties.clone()),
        )
    }

    /// Writes down how the channel stands.
    pub fn note_checkpoint(
        state_dir: &Path,
        channel: ChannelId,
        checkpoint: Checkpoint,
    ) -> Result<(), HistoryError> {
        append(&file(state_dir, channel), &Line::Checkpoint(checkpoint))
    }

    /// The channels that the wallet's directory knows of, by their histories and journals.
    pub fn channels(state_dir: &Path) -> Result<Vec<ChannelId>, HistoryError> {
        let failed = |source| HistoryError::File {
            what: "look for",
            path: state_dir.to_owned(),
            source,
        };
        let entries = match fs::read_dir(state_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut channels = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let channel = name.to_str().and_then(|name| {
                let name = name
                    .strip_suffix(".history")
                    .or_else(|| name.strip_suffix(".journal"))?;
                name.parse::<ChannelId>().ok()
            });
            channels.extend(channel);
        }
        channels.sort();
        channels.dedup();
        Ok(channels)
    }
}

/// Now, as histories have it.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

fn file(state_dir: &Path, channel: ChannelId) -> PathBuf {
    state_dir.join(format!("{channel}.history"))
}

fn append(path: &Path, line: &Line) -> Result<(), HistoryError> {
    let write = || {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let end = end_of_whole_lines(&mut file)?;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        file.write_all(&bytes)?;
        file.sync_data()
    };
    write().map_err(|source| HistoryError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

/// Where the last whole line ends. A line is far shorter than what is looked at.
fn end_of_whole_lines(file: &mut File) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    let from = length.saturating_sub(4096);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(4096).read_to_end(&mut tail)?;
    let end = tail.iter().rposition(|byte| *byte == b'\n');
    Ok(end.map_or(from, |end| from + end as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: ChannelId = ChannelId([9; 32]);

    fn checkpoint(at_ms: u64) -> Checkpoint {
        Checkpoint {
            at_ms,
            metered_bytes: at_ms * 10,
            promised: Amount::from_ntop(u64::MAX - 1),
            ..Checkpoint::default()
        }
    }

    fn parties(provider: &str) -> Parties {
        Parties {
            channel: CHANNEL,
            chain: "vpn".to_owned(),
            payer: Address([2; 32]),
            payee: Address([1; 32]),
            provider: provider.to_owned(),
            signer: PublicKey([3; 32]),
            allocation: Amount::from_ntop(1_000_000),
        }
    }

    #[test]
    fn what_was_noted_is_read_and_a_torn_line_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            History::read(dir.path(), CHANNEL).unwrap(),
            History::default()
        );
        History::note_parties(dir.path(), &parties("One")).unwrap();
        History::note_checkpoint(dir.path(), CHANNEL, checkpoint(5)).unwrap();
        let path = file(dir.path(), CHANNEL);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], b"{\"kind\":\"mom"].concat()).unwrap();
        assert_eq!(
            History::read(dir.path(), CHANNEL).unwrap().checkpoints,
            [checkpoint(5)]
        );
        // Known already; then a new name, and a new checkpoint.
        History::note_parties(dir.path(), &parties("One")).unwrap();
        History::note_parties(dir.path(), &parties("Two, \"Inc.\"\n")).unwrap();
        History::note_checkpoint(dir.path(), CHANNEL, checkpoint(9)).unwrap();
        let history = History::read(dir.path(), CHANNEL).unwrap();
        assert_eq!(history.parties, Some(parties("Two, \"Inc.\"\n")));
        assert_eq!(history.checkpoints, [checkpoint(5), checkpoint(9)]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4);
        assert_eq!(History::channels(dir.path()).unwrap(), [CHANNEL]);

        let damaged = fs::read_to_string(&path).unwrap().replacen('{', "[", 1);
        fs::write(&path, damaged).unwrap();
        assert!(matches!(
            History::read(dir.path(), CHANNEL),
            Err(HistoryError::Line { line: 1, .. })
        ));
    }

    #[test]
    fn the_checkpoint_before_is_the_last_that_was_written() {
        let history = History {
            parties: None,
            // The clock was put back between the second and the third.
            checkpoints: [10, 20, 15, 30].map(checkpoint).to_vec(),
        };
        let at = |ms| history.at(ms).map(|checkpoint| checkpoint.at_ms);
        assert_eq!(at(9), None);
        assert_eq!(at(10), Some(10));
        assert_eq!(at(20), Some(15));
        assert_eq!(at(u64::MAX), Some(30));
    }
}
