//! What the chains' state does not answer by itself: transactions by id, channels by who pays
//! and who is paid, what happened to an account, claims that were paid, earnings by day, batches,
//! which block of main settled a close.
//!
//! Made of final blocks alone. Each block and the cursor behind it are written at once, so a
//! crash leaves the index at some earlier block, from where it goes on. An index of another
//! version or of other chains is dropped and made anew. The closes that the payee asked for
//! are not derived from anything; they stand apart, are synced, and survive that.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rocksdb::{
    ColumnFamilyDescriptor, DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions,
};
use serde::{Serialize, de::DeserializeOwned};
use topnet_account::{Address, ChannelId, Hash};
use topnet_api::{BlockRef, ChainName, DayEarnings, PaidClaim};
use topnet_ledger::{
    machine::Key,
    outbox::OutboxHead,
    state::{Heads, Record as _, heads_key as heads_state_key},
};

mod history;
mod offers;
mod record;
mod take;

pub(crate) use record::{BatchRecord, ChannelRecord, CloseRecord, DayRecord, TransactionRecord};
use record::{
    batch_key, claimed_key, cursor_key, day_key, genesis_key, heads_key, outbox_key, outboxes_key,
    party_key, payout_key, transaction_key,
};

/// A key and its value, as stored.
type Entry = (Box<[u8]>, Box<[u8]>);

/// Raised whenever the format below changes.
const VERSION: u32 = 5;
/// Channels of one party, claims on a channel or days of a payee in one answer, at most.
pub(crate) const PAGE_MAX: usize = 1_000;
const DAY_MS: u64 = 86_400_000;

const META: &str = "meta";
const TRANSACTIONS: &str = "transactions";
const CHANNELS: &str = "channels";
const PARTIES: &str = "parties";
const CLOSING: &str = "closing";
const BATCHES: &str = "batches";
const CUTS: &str = "cuts";
const HISTORY: &str = "history";
const OFFERS: &str = "offers";
const PAYOUTS: &str = "payouts";
const OUTBOXES: &str = "outboxes";
const HEADS: &str = "heads";
const CLAIMED: &str = "claimed";
const DAYS: &str = "days";
const CLOSES: &str = "closes";
/// The cursor is noted at least once in so many blocks.
const CURSOR_BLOCKS: u64 = 64;
/// Key of the version and the chains that an index was made for.
const IDENTITY: &[u8] = b"identity";
/// All that is made of blocks.
const DERIVED: [&str; 14] = [
    META,
    TRANSACTIONS,
    CHANNELS,
    PARTIES,
    CLOSING,
    BATCHES,
    CUTS,
    HISTORY,
    OFFERS,
    PAYOUTS,
    OUTBOXES,
    HEADS,
    CLAIMED,
    DAYS,
];

/// The index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database said no.
    #[error(
        "index at {path}: {source}; free the disk, or move the directory away: all but the closes under way is made anew"
    )]
    Database {
        /// The directory.
        path: PathBuf,
        /// What it said.
        source: rocksdb::Error,
    },
    /// A record that this version did not write.
    #[error(
        "index at {path}: a record of `{table}` cannot be read: {problem}; move the directory away: all but the closes under way is made anew"
    )]
    Record {
        /// The directory.
        path: PathBuf,
        /// Where it stands.
        table: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// The index. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Index {
    database: Arc<DB>,
    path: PathBuf,
    /// One block is taken in at a time.
    taking: Arc<Mutex<()>>,
}

impl Index {
    /// Opens the index of the chains around the main chain with this genesis.
    pub(crate) fn open(path: &Path, main: &Hash) -> Result<Self, IndexError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_keep_log_file_num(4);
        let tables = DERIVED.iter().chain([&CLOSES]);
        let tables = tables.map(|name| ColumnFamilyDescriptor::new(*name, Options::default()));
        let failed = |source| IndexError::Database {
            path: path.to_owned(),
            source,
        };
        let mut database = DB::open_cf_descriptors(&options, path, tables).map_err(failed)?;
        let identity = serde_json::json!({ "version": VERSION, "main": main }).to_string();
        let meta = database
            .cf_handle(META)
            .map(|meta| database.get_cf(meta, IDENTITY));
        let found = meta.transpose().map_err(failed)?.flatten();
        if found.as_deref() != Some(identity.as_bytes()) {
            for table in DERIVED {
                database.drop_cf(table).map_err(failed)?;
                database
                    .create_cf(table, &Options::default())
                    .map_err(failed)?;
            }
        }
        let index = Self {
            database: Arc::new(database),
            path: path.to_owned(),
            taking: Arc::default(),
        };
        let mut batch = index.batch();
        batch.put_bytes(META, IDENTITY, identity.as_bytes());
        batch.write()?;
        Ok(index)
    }

    /// Prepares for the blocks of a chain that starts as `genesis` and `state` say.
    pub(crate) fn begin(
        &self,
        chain: &ChainName,
        genesis: &Hash,
        state: &BTreeMap<Key, Vec<u8>>,
    ) -> Result<(), IndexError> {
        let known: Option<Hash> = self.get(META, &genesis_key(chain))?;
        match known {
            Some(known) if known == *genesis => return Ok(()),
            Some(_) => {
                let problem = format!("it knows another chain `{chain}`");
                return Err(self.unreadable(META, problem));
            }
            None => {}
        }
        let heads = state.get(&heads_state_key());
        let heads = heads.map_or(Ok(Heads::default()), |bytes| Heads::from_bytes(bytes));
        let Heads(heads) = heads.map_err(|error| self.unreadable(META, error))?;
        let mut batch = self.batch();
        batch.put(META, &outboxes_key(chain), &stored_heads(&heads))?;
        batch.put(META, &genesis_key(chain), genesis)?;
        batch.write()
    }

    /// Height of the next block of `chain` to be taken in.
    pub(crate) fn cursor(&self, chain: &ChainName) -> Result<u64, IndexError> {
        Ok(self.get(META, &cursor_key(chain))?.unwrap_or(1))
    }

    pub(crate) fn transaction(
        &self,
        chain: &ChainName,
        id: &Hash,
    ) -> Result<Option<TransactionRecord>, IndexError> {
        self.get(TRANSACTIONS, &transaction_key(chain, id))
    }

    pub(crate) fn channel(&self, id: &ChannelId) -> Result<Option<ChannelRecord>, IndexError> {
        self.get(CHANNELS, id.as_ref())
    }

    /// Channels that `party` pays or is paid by, in the order of their ids, from behind `after`
    /// on, at most [`PAGE_MAX`].
    pub(crate) fn channels_of(
        &self,
        party: &Address,
        after: Option<&ChannelId>,
    ) -> Result<Vec<ChannelId>, IndexError> {
        self.channels_in(PARTIES, party, after)
    }

    /// The same for channels that pay `payee` and that are about to end.
    pub(crate) fn closing_of(
        &self,
        payee: &Address,
        after: Option<&ChannelId>,
    ) -> Result<Vec<ChannelId>, IndexError> {
        self.channels_in(CLOSING, payee, after)
    }

    fn channels_in(
        &self,
        table: &'static str,
        party: &Address,
        after: Option<&ChannelId>,
    ) -> Result<Vec<ChannelId>, IndexError> {
        let from = after.map_or_else(|| party.as_bytes().to_vec(), |id| party_key(party, id));
        let id = |key: &[u8]| {
            let id = key
                .get(Address::SIZE..)
                .and_then(|id| <[u8; 32]>::try_from(id).ok());
            id.map(ChannelId)
                .ok_or_else(|| self.unreadable(table, "a key of another length"))
        };
        self.scan(table, &from, party.as_bytes())
            .map(|item| id(&item?.0))
            .filter(|id| !matches!((id, after), (Ok(id), Some(after)) if id == after))
            .take(PAGE_MAX)
            .collect()
    }

    /// Claims that were paid on a channel, from the block at `height` on, at most [`PAGE_MAX`].
    pub(crate) fn paid_claims(
        &self,
        channel: &ChannelId,
        height: u64,
    ) -> Result<Vec<PaidClaim>, IndexError> {
        self.scan(CLAIMED, &claimed_key(channel, height, 0), channel.as_ref())
            .take(PAGE_MAX)
            .map(|item| self.decode(CLAIMED, &item?.1))
            .collect()
    }

    /// What a payee earned by day, from the day that `from_ms` is in, at most [`PAGE_MAX`].
    pub(crate) fn earnings(
        &self,
        payee: &Address,
        from_ms: u64,
    ) -> Result<Vec<DayEarnings>, IndexError> {
        let first = day_key(payee, from_ms / DAY_MS * DAY_MS, &ChainName(String::new()));
        let earnings = |(key, value): Entry| {
            let malformed = || self.unreadable(DAYS, "a key of another shape");
            let rest = key.get(Address::SIZE..).ok_or_else(malformed)?;
            let (day, chain) = rest.split_at_checked(8).ok_or_else(malformed)?;
            let day = day.try_into().map_err(|_| malformed())?;
            let chain = String::from_utf8(chain.to_vec()).map_err(|_| malformed())?;
            let record: DayRecord = self.decode(DAYS, &value)?;
            Ok(DayEarnings {
                day_ms: u64::from_be_bytes(day),
                chain: ChainName(chain),
                claims: record.claims,
                units: record.units,
                payout: record.payout,
                fees: record.fees,
            })
        };
        self.scan(DAYS, &first, payee.as_bytes())
            .take(PAGE_MAX)
            .map(|item| earnings(item?))
            .collect()
    }

    /// The first accepted batch that the service cut at `height` or later.
    pub(crate) fn batch_from(
        &self,
        service: &Hash,
        height: u64,
    ) -> Result<Option<BatchRecord>, IndexError> {
        self.first(BATCHES, &batch_key(service, height), service.as_ref())
    }

    /// The block of main with the first payout to `account` in batch `seq` or a later one.
    pub(crate) fn payout_from(
        &self,
        service: &Hash,
        account: &Address,
        seq: u64,
    ) -> Result<Option<BlockRef>, IndexError> {
        let key = payout_key(service, account, seq);
        let prefix = &key[..Hash::SIZE + Address::SIZE];
        self.first(PAYOUTS, &key, prefix)
    }

    /// Where all outboxes of a chain stood when one of them first stood at `head`.
    pub(crate) fn outboxes_at(
        &self,
        chain: &ChainName,
        head: &OutboxHead,
    ) -> Result<Option<Vec<OutboxHead>>, IndexError> {
        let key = heads_key(chain, &head.destination, head.next);
        let stored: Option<Vec<StoredHead>> = self.get(HEADS, &key)?;
        Ok(stored.map(heads_of))
    }

    /// The first block whose header has this outbox commitment.
    pub(crate) fn outbox_height(
        &self,
        chain: &ChainName,
        commitment: &Hash,
    ) -> Result<Option<u64>, IndexError> {
        self.get(OUTBOXES, &outbox_key(chain, commitment))
    }

    pub(crate) fn close(&self, id: &ChannelId) -> Result<Option<CloseRecord>, IndexError> {
        self.get(CLOSES, id.as_ref())
    }

    /// Keeps a close; it is on disk when this returns.
    pub(crate) fn keep_close(
        &self,
        id: &ChannelId,
        record: &CloseRecord,
    ) -> Result<(), IndexError> {
        let mut batch = self.batch();
        batch.put(CLOSES, id.as_ref(), record)?;
        batch.write_synced()
    }

    /// Forgets a close that could not be submitted.
    pub(crate) fn drop_close(&self, id: &ChannelId) -> Result<(), IndexError> {
        let mut batch = self.batch();
        batch.delete(CLOSES, id.as_ref());
        batch.write_synced()
    }

    /// All closes that were ever asked for.
    pub(crate) fn closes(&self) -> Result<Vec<(ChannelId, CloseRecord)>, IndexError> {
        let each = |(key, value): Entry| {
            let id = <[u8; 32]>::try_from(&*key).map_err(|error| self.unreadable(CLOSES, error))?;
            Ok((ChannelId(id), self.decode(CLOSES, &value)?))
        };
        self.scan(CLOSES, &[], &[])
            .map(|item| each(item?))
            .collect()
    }

    fn scan(
        &self,
        table: &'static str,
        from: &[u8],
        prefix: &[u8],
    ) -> impl Iterator<Item = Result<Entry, IndexError>> {
        let mode = IteratorMode::From(from, Direction::Forward);
        let prefix = prefix.to_vec();
        self.database
            .iterator_cf(self.table(table), mode)
            .take_while(move |item| {
                item.as_ref()
                    .map_or(true, |(key, _)| key.starts_with(&prefix))
            })
            .map(|item| item.map_err(|source| self.failed(source)))
    }

    fn first<T: DeserializeOwned>(
        &self,
        table: &'static str,
        from: &[u8],
        prefix: &[u8],
    ) -> Result<Option<T>, IndexError> {
        let found = self.scan(table, from, prefix).next().transpose()?;
        found
            .map(|(_, value)| self.decode(table, &value))
            .transpose()
    }

    fn get<T: DeserializeOwned>(
        &self,
        table: &'static str,
        key: &[u8],
    ) -> Result<Option<T>, IndexError> {
        self.bytes(table, key)?
            .map(|bytes| self.decode(table, &bytes))
            .transpose()
    }

    fn bytes(&self, table: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.database
            .get_cf(self.table(table), key)
            .map_err(|source| self.failed(source))
    }

    fn decode<T: DeserializeOwned>(
        &self,
        table: &'static str,
        bytes: &[u8],
    ) -> Result<T, IndexError> {
        serde_json::from_slice(bytes).map_err(|error| self.unreadable(table, error))
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            index: self,
            writes: WriteBatch::default(),
        }
    }

    fn table(&self, name: &'static str) -> &rocksdb::ColumnFamily {
        self.database
            .cf_handle(name)
            .expect("every table is made when the index is opened")
    }

    fn failed(&self, source: rocksdb::Error) -> IndexError {
        IndexError::Database {
            path: self.path.clone(),
            source,
        }
    }

    fn unreadable(&self, table: &'static str, problem: impl ToString) -> IndexError {
        IndexError::Record {
            path: self.path.clone(),
            table,
            problem: problem.to_string(),
        }
    }
}

/// An outbox's destination, next number and root.
type StoredHead = (Hash, u64, Hash);

fn stored_heads(heads: &[OutboxHead]) -> Vec<StoredHead> {
    let stored = |head: &OutboxHead| (head.destination, head.next, head.root);
    heads.iter().map(stored).collect()
}

fn heads_of(stored: Vec<StoredHead>) -> Vec<OutboxHead> {
    let head = |(destination, next, root)| OutboxHead {
        destination,
        next,
        root,
    };
    stored.into_iter().map(head).collect()
}

/// Writes that happen all or none.
struct Batch<'a> {
    index: &'a Index,
    writes: WriteBatch,
}

impl Batch<'_> {
    fn put<T: Serialize>(
        &mut self,
        table: &'static str,
        key: &[u8],
        value: &T,
    ) -> Result<(), IndexError> {
        let value =
            serde_json::to_vec(value).map_err(|error| self.index.unreadable(table, error))?;
        self.put_bytes(table, key, &value);
        Ok(())
    }

    fn put_bytes(&mut self, table: &'static str, key: &[u8], value: &[u8]) {
        self.writes.put_cf(self.index.table(table), key, value);
    }

    fn delete(&mut self, table: &'static str, key: &[u8]) {
        self.writes.delete_cf(self.index.table(table), key);
    }

    fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    fn write(self) -> Result<(), IndexError> {
        let written = self.index.database.write(self.writes);
        written.map_err(|source| self.index.failed(source))
    }

    fn write_synced(self) -> Result<(), IndexError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        let written = self.index.database.write_opt(self.writes, &options);
        written.map_err(|source| self.index.failed(source))
    }
}
