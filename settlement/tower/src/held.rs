//! Claims that are held for channels: the one thing here that the chains do not know.
//!
//! Each channel has the claim that was worth most. It is on disk before whoever brought it hears
//! that it is held, so from then on its owner's disk may be lost. A second table has the
//! channels in the order in which their claims fall due.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rocksdb::{
    ColumnFamilyDescriptor, DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions,
};
use serde::{Deserialize, Serialize};
use topnet_account::{Amount, ChannelId, Hash};
use topnet_api::{ClaimBytes, HexBytes};

use crate::register::Place;

const CLAIMS: &str = "claims";
const DUE: &str = "due";
/// Claims in one answer, at most.
pub const CLAIMS_MAX: usize = 1_000;
const TIME_BYTES: usize = 8;

/// The claims cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// The database said no.
    #[error(
        "held claims at {path}: {source}; free the disk, or move the directory away: whoever brought the claims brings them again"
    )]
    Database {
        /// The directory.
        path: PathBuf,
        /// What it said.
        source: rocksdb::Error,
    },
    /// A record that this version did not write.
    #[error(
        "held claims at {path}: a record cannot be read: {problem}; move the directory away: whoever brought the claims brings them again"
    )]
    Record {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// A channel's claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRecord {
    voucher: HexBytes,
    index: u16,
    preimage: Hash,
    log_root: Hash,
    /// What it is worth in all.
    pub redeemable: Amount,
    /// What was seen to be paid on the channel when the claim was looked at last.
    pub paid: Amount,
    /// When it falls due, milliseconds since 1970; `None` when it has nothing more to bring.
    pub due_ms: Option<u64>,
    /// The transaction that was handed in last.
    pub submitted: Option<Hash>,
    /// Where a tower elsewhere has seen the channel, so that after a start it need not ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<Place>,
    /// Nothing will be paid on the channel any more, and no service's death changes that.
    #[serde(default)]
    pub over: bool,
}

/// When a claim falls due that nobody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// At most this long after it was held.
    pub interval_ms: u64,
    /// At once when so much is unclaimed; never for that reason if `None`.
    pub exposure: Option<Amount>,
}

/// All claims that are held. Clones are the same.
#[derive(Clone)]
pub struct Held {
    database: Arc<DB>,
    path: PathBuf,
    /// Records are read and replaced by one at a time.
    changing: Arc<Mutex<()>>,
}

impl HeldRecord {
    /// The claim as it was brought.
    pub fn claim(&self) -> ClaimBytes {
        ClaimBytes {
            voucher: self.voucher.0.clone(),
            index: self.index,
            preimage: self.preimage.0,
            log_root: self.log_root,
        }
    }

    /// What it would pay, as far as is known here: more may be paid by now.
    pub fn unpaid(&self) -> Amount {
        let unpaid = self.redeemable.checked_sub(self.paid);
        unpaid.unwrap_or(Amount::ZERO)
    }
}

impl Held {
    /// Opens what is held at `path`, or begins with nothing.
    pub fn open(path: &Path) -> Result<Self, HeldError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_keep_log_file_num(4);
        let tables =
            [CLAIMS, DUE].map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
        let database = DB::open_cf_descriptors(&options, path, tables);
        let database = database.map_err(|source| HeldError::Database {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            database: Arc::new(database),
            path: path.to_owned(),
            changing: Arc::default(),
        })
    }

    /// A channel's claim.
    pub fn get(&self, channel: &ChannelId) -> Result<Option<HeldRecord>, HeldError> {
        let bytes = self.database.get_cf(self.table(CLAIMS), channel.as_ref());
        let bytes = bytes.map_err(|source| self.failed(source))?;
        bytes.map(|bytes| self.decode(&bytes)).transpose()
    }

    /// Keeps those of the claims that are worth more than what is kept; gives which. They are on
    /// disk when this returns.
    pub fn hold(
        &self,
        claims: &[(ChannelId, ClaimBytes, Amount)],
        pace: Pace,
        now_ms: u64,
    ) -> Result<Vec<ChannelId>, HeldError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut batch, mut kept) = (WriteBatch::default(), Vec::new());
        let mut best: BTreeMap<&ChannelId, (&ClaimBytes, &Amount)> = BTreeMap::new();
        for (channel, claim, redeemable) in claims {
            let known = best.get(channel).map(|(_, known)| *known);
            if known.is_none_or(|known| redeemable > known) {
                best.insert(channel, (claim, redeemable));
            }
        }
        for (channel, (claim, redeemable)) in best {
            let before = self.get(channel)?;
            let of_before =
                |amount: fn(&HeldRecord) -> Amount| before.as_ref().map_or(Amount::ZERO, amount);
            let (worth_before, paid) = (
                of_before(|held| held.redeemable),
                of_before(|held| held.paid),
            );
            if *redeemable <= worth_before {
                continue;
            }
            let mut due_ms = now_ms.saturating_add(pace.interval_ms);
            if let Some(due_before) = before.as_ref().and_then(|held| held.due_ms) {
                due_ms = due_ms.min(due_before);
            }
            let unclaimed = redeemable.checked_sub(paid).unwrap_or(Amount::ZERO);
            if pace.exposure.is_some_and(|exposure| unclaimed >= exposure) {
                due_ms = due_ms.min(now_ms);
            }
            let held = HeldRecord {
                voucher: HexBytes(claim.voucher.clone()),
                index: claim.index,
                preimage: Hash(claim.preimage),
                log_root: claim.log_root,
                redeemable: *redeemable,
                paid,
                due_ms: Some(due_ms),
                submitted: before.as_ref().and_then(|held| held.submitted),
                place: before.as_ref().and_then(|held| held.place.clone()),
                over: false,
            };
            self.replace(&mut batch, channel, before.as_ref(), &held)?;
            kept.push(*channel);
        }
        self.write(batch)?;
        Ok(kept)
    }

    /// Changes what is noted of a channel's claim; a better claim that came meanwhile stays.
    pub fn change(
        &self,
        channel: &ChannelId,
        change: impl FnOnce(&mut HeldRecord),
    ) -> Result<(), HeldError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = self.get(channel)? else {
            return Ok(());
        };
        let mut held = before.clone();
        change(&mut held);
        if held == before {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        self.replace(&mut batch, channel, Some(&before), &held)?;
        self.write(batch)
    }

    /// Holds nothing for a channel any more.
    pub fn forget(&self, channel: &ChannelId) -> Result<(), HeldError> {
        self.forget_if(channel, |_| true).map(|_| ())
    }

    /// The same if its claim is such a one; false if it is another.
    pub fn forget_if(
        &self,
        channel: &ChannelId,
        is_such: impl FnOnce(&HeldRecord) -> bool,
    ) -> Result<bool, HeldError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = self.get(channel)? else {
            return Ok(true);
        };
        if !is_such(&before) {
            return Ok(false);
        }
        let mut batch = WriteBatch::default();
        batch.delete_cf(self.table(CLAIMS), channel.as_ref());
        if let Some(due_ms) = before.due_ms {
            batch.delete_cf(self.table(DUE), due_key(due_ms, channel));
        }
        self.write(batch)?;
        Ok(true)
    }

    /// Channels whose claims are due, the longest first.
    pub fn due(&self, now_ms: u64, count: usize) -> Result<Vec<ChannelId>, HeldError> {
        let items = self.scan(DUE, &[]);
        let due = items.map(|item| {
            let key = item?;
            let (time, channel) = key.split_at_checked(TIME_BYTES).unwrap_or_default();
            match (
                <[u8; TIME_BYTES]>::try_from(time),
                <[u8; 32]>::try_from(channel),
            ) {
                (Ok(time), Ok(channel)) => Ok((u64::from_be_bytes(time), ChannelId(channel))),
                _ => Err(self.unreadable("a key of another length")),
            }
        });
        due.take_while(|due| !matches!(due, Ok((due_ms, _)) if *due_ms > now_ms))
            .take(count)
            .map(|due| due.map(|(_, channel)| channel))
            .collect()
    }

    /// Channels with a claim, in their order from behind `after` on, at most [`CLAIMS_MAX`].
    pub fn channels(&self, after: Option<&ChannelId>) -> Result<Vec<ChannelId>, HeldError> {
        let from = after.map_or(&[][..], AsRef::as_ref);
        let id = |key: Box<[u8]>| {
            let id = <[u8; 32]>::try_from(&*key);
            id.map(ChannelId)
                .map_err(|_| self.unreadable("a key of another length"))
        };
        self.scan(CLAIMS, from)
            .map(|item| id(item?))
            .filter(|id| !matches!((id, after), (Ok(id), Some(after)) if id == after))
            .take(CLAIMS_MAX)
            .collect()
    }

    fn replace(
        &self,
        batch: &mut WriteBatch,
        channel: &ChannelId,
        before: Option<&HeldRecord>,
        held: &HeldRecord,
    ) -> Result<(), HeldError> {
        let bytes = serde_json::to_vec(held).map_err(|error| self.unreadable(error))?;
        batch.put_cf(self.table(CLAIMS), channel.as_ref(), bytes);
        let due = self.table(DUE);
        if let Some(due_ms) = before.and_then(|before| before.due_ms) {
            batch.delete_cf(due, due_key(due_ms, channel));
        }
        if let Some(due_ms) = held.due_ms {
            batch.put_cf(due, due_key(due_ms, channel), []);
        }
        Ok(())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), HeldError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        let written = self.database.write_opt(batch, &options);
        written.map_err(|source| self.failed(source))
    }

    fn scan(
        &self,
        table: &'static str,
        from: &[u8],
    ) -> impl Iterator<Item = Result<Box<[u8]>, HeldError>> {
        let mode = IteratorMode::From(from, Direction::Forward);
        let items = self.database.iterator_cf(self.table(table), mode);
        items.map(|item| {
            item.map(|(key, _)| key)
                .map_err(|source| self.failed(source))
        })
    }

    fn decode(&self, bytes: &[u8]) -> Result<HeldRecord, HeldError> {
        serde_json::from_slice(bytes).map_err(|error| self.unreadable(error))
    }

    fn table(&self, name: &'static str) -> &rocksdb::ColumnFamily {
        self.database
            .cf_handle(name)
            .expect("every table is made when the claims are opened")
    }

    fn failed(&self, source: rocksdb::Error) -> HeldError {
        HeldError::Database {
            path: self.path.clone(),
            source,
        }
    }

    fn unreadable(&self, problem: impl ToString) -> HeldError {
        HeldError::Record {
            path: self.path.clone(),
            problem: problem.to_string(),
        }
    }
}

fn due_key(due_ms: u64, channel: &ChannelId) -> Vec<u8> {
    [&due_ms.to_be_bytes()[..], channel.as_ref()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        interval_ms: 100,
        exposure: None,
    };

    fn claim(worth: u64) -> (ChannelId, ClaimBytes, Amount) {
        let bytes = ClaimBytes {
            voucher: vec![worth as u8],
            index: 0,
            preimage: [0; 32],
            log_root: Hash::ZERO,
        };
        (ChannelId([1; 32]), bytes, Amount::from_ntop(worth))
    }

    #[test]
    fn only_what_is_worth_more_is_kept_and_falls_due_when_the_first_would_have() {
        let dir = tempfile::tempdir().unwrap();
        let held = Held::open(dir.path()).unwrap();
        let channel = ChannelId([1; 32]);
        let worth = |held: &Held| held.get(&channel).unwrap().unwrap().redeemable.ntop();
        assert_eq!(held.hold(&[claim(5)], PACE, 1_000).unwrap(), [channel]);
        assert_eq!(held.hold(&[claim(5), claim(4)], PACE, 1_050).unwrap(), []);
        // The best of several on one channel, in any order.
        let several = [claim(5), claim(6), claim(4)];
        assert_eq!(held.hold(&several, PACE, 1_050).unwrap(), [channel]);
        assert_eq!(worth(&held), 6);
        assert_eq!(held.due(1_099, 10).unwrap(), []);
        assert_eq!(held.due(1_100, 10).unwrap(), [channel]);
        assert_eq!(held.due(u64::MAX, 0).unwrap(), []);

        // Claimed: it falls due again only for more.
        held.change(&channel, |held| held.due_ms = None).unwrap();
        assert_eq!(held.due(u64::MAX, 10).unwrap(), []);
        held.hold(&[claim(7)], PACE, 2_000).unwrap();
        assert_eq!(held.due(2_099, 10).unwrap(), []);
        assert_eq!(held.due(2_100, 10).unwrap(), [channel]);

        // So much is unclaimed that it cannot wait.
        let pace = Pace {
            exposure: Some(Amount::from_ntop(5)),
            ..PACE
        };
        held.change(&channel, |held| {
            held.paid = Amount::from_ntop(7);
            held.due_ms = None;
        })
        .unwrap();
        held.hold(&[claim(11)], pace, 3_000).unwrap();
        assert_eq!(held.due(3_000, 10).unwrap(), []);
        held.hold(&[claim(12)], pace, 3_001).unwrap();
        assert_eq!(held.due(3_001, 10).unwrap(), [channel]);

        drop(held);
        let held = Held::open(dir.path()).unwrap();
        assert_eq!(worth(&held), 12);
        assert_eq!(held.channels(None).unwrap(), [channel]);
        assert_eq!(held.channels(Some(&channel)).unwrap(), []);

        let of = |worth| move |held: &HeldRecord| held.redeemable == Amount::from_ntop(worth);
        assert!(!held.forget_if(&channel, of(11)).unwrap());
        assert_eq!(worth(&held), 12);
        assert!(held.forget_if(&channel, of(12)).unwrap());
        assert_eq!(held.get(&channel).unwrap(), None);
        assert_eq!(held.channels(None).unwrap(), []);
        assert_eq!(held.due(u64::MAX, 10).unwrap(), []);
        held.forget(&channel).unwrap();
    }
}
