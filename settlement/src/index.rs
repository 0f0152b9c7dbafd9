//! What the chains' state does not answer by itself: transactions by id, channels by who pays
//! and who is paid, which block of main settled a close.
//!
//! Made of final blocks alone. Each block and the cursor behind it are written at once, so a
//! crash leaves the index at some earlier block, from where it goes on. An index of another
//! version or of other chains is dropped and made anew. The closes that the payee asked for
//! are not derived from anything; they stand apart, are synced, and survive that.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use rocksdb::{
    ColumnFamilyDescriptor, DB, Direction, IteratorMode, Options, WriteBatch, WriteOptions,
};
use serde::{Serialize, de::DeserializeOwned};
use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{BlockRef, ChainName, HexBytes};
use topnet_chain::FinalBlock;
use topnet_ledger::event::{Event, decode_events};

mod record;

pub(crate) use record::{BatchRecord, ChannelEnd, ChannelRecord, CloseRecord, TransactionRecord};
use record::{cursor_key, outbox_key, party_key, payout_key, transaction_key};

/// A key and its value, as stored.
type Entry = (Box<[u8]>, Box<[u8]>);

/// Raised whenever the format below changes.
const VERSION: u32 = 2;
/// Channels of one party in one answer, at most.
pub(crate) const CHANNELS_MAX: usize = 1_000;

const META: &str = "meta";
const TRANSACTIONS: &str = "transactions";
const CHANNELS: &str = "channels";
const PARTIES: &str = "parties";
const CLOSING: &str = "closing";
const BATCHES: &str = "batches";
const PAYOUTS: &str = "payouts";
const OUTBOXES: &str = "outboxes";
const CLOSES: &str = "closes";
/// The cursor is noted at least once in so many blocks.
const CURSOR_BLOCKS: u64 = 64;
/// Key of the version and the chains that an index was made for.
const IDENTITY: &[u8] = b"identity";
/// All that is made of blocks.
const DERIVED: [&str; 8] = [
    META,
    TRANSACTIONS,
    CHANNELS,
    PARTIES,
    CLOSING,
    BATCHES,
    PAYOUTS,
    OUTBOXES,
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
}

impl Index {
    /// Opens the index of chains that are called and start as `chains` says.
    pub(crate) fn open(path: &Path, chains: &[(ChainName, Hash)]) -> Result<Self, IndexError> {
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
        let identity = serde_json::json!({ "version": VERSION, "chains": chains }).to_string();
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
        };
        let mut batch = index.batch();
        batch.put_bytes(META, IDENTITY, identity.as_bytes());
        batch.write()?;
        Ok(index)
    }

    /// Height of the next block of `chain` to be taken in.
    pub(crate) fn cursor(&self, chain: &ChainName) -> Result<u64, IndexError> {
        Ok(self.get(META, &cursor_key(chain))?.unwrap_or(1))
    }

    /// Takes a final block in. Blocks come in order of height, one chain beside the other.
    pub(crate) fn apply(&self, chain: &ChainName, block: &FinalBlock) -> Result<(), IndexError> {
        let height = block.header.height();
        let place = BlockRef {
            chain: chain.clone(),
            height,
            hash: block.hash,
        };
        let mut batch = self.batch();
        let mut channels = HashMap::new();
        for receipt in &block.receipts {
            let record = TransactionRecord {
                block: place.clone(),
                events: HexBytes(receipt.events.clone()),
            };
            batch.put(TRANSACTIONS, &transaction_key(chain, &receipt.id), &record)?;
            for event in self.events(TRANSACTIONS, &receipt.events)? {
                self.take(&mut batch, &mut channels, &place, &receipt.id, &event)?;
            }
        }
        for event in self.events(META, &block.block_events)? {
            self.take(&mut batch, &mut channels, &place, &Hash::ZERO, &event)?;
        }
        for (id, record) in channels {
            batch.put(CHANNELS, id.as_ref(), &record)?;
        }
        let outbox_key = outbox_key(chain, &block.header.outbox());
        let outbox_known = self.bytes(OUTBOXES, &outbox_key)?.is_some();
        if !outbox_known {
            batch.put(OUTBOXES, &outbox_key, &height)?;
        }
        // Most blocks say nothing; seeing some of them again after a crash costs less than
        // noting each.
        if batch.is_empty() && !height.is_multiple_of(CURSOR_BLOCKS) {
            return Ok(());
        }
        batch.put(META, &cursor_key(chain), &(height + 1))?;
        batch.write()
    }

    fn events(&self, table: &'static str, bytes: &[u8]) -> Result<Vec<Event>, IndexError> {
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        decode_events(bytes).map_err(|error| self.unreadable(table, error))
    }

    fn take(
        &self,
        batch: &mut Batch<'_>,
        channels: &mut HashMap<ChannelId, ChannelRecord>,
        place: &BlockRef,
        transaction: &Hash,
        event: &Event,
    ) -> Result<(), IndexError> {
        match event {
            Event::Opened {
                channel,
                payer,
                payee,
                ..
            } => {
                let (payer, payee) = (*payer, *payee);
                let payee_fees = Amount::ZERO;
                let record = ChannelRecord {
                    payer,
                    payee,
                    payee_fees,
                    end: None,
                };
                channels.insert(*channel, record);
                for party in [payer, payee] {
                    batch.put_bytes(PARTIES, &party_key(&party, channel), &[]);
                }
            }
            Event::Claimed { channel, fee, .. } => {
                if let Some(record) = self.known(channels, channel)? {
                    record.payee_fees = record
                        .payee_fees
                        .checked_add(*fee)
                        .ok_or_else(|| self.unreadable(CHANNELS, "fees overflow"))?;
                }
            }
            Event::Closed {
                channel,
                paid,
                refund,
            }
            | Event::Finalised {
                channel,
                paid,
                refund,
                ..
            } => {
                if let Some(record) = self.known(channels, channel)? {
                    batch.delete(CLOSING, &party_key(&record.payee, channel));
                    record.end = Some(ChannelEnd {
                        transaction: *transaction,
                        block: place.clone(),
                        paid: *paid,
                        refund: *refund,
                    });
                }
            }
            Event::Closing { channel, .. } => {
                if let Some(record) = self.known(channels, channel)? {
                    batch.put_bytes(CLOSING, &party_key(&record.payee, channel), &[]);
                }
            }
            Event::BatchAccepted { seq, height, .. } => {
                let record = BatchRecord {
                    seq: *seq,
                    main_block: place.clone(),
                };
                batch.put(BATCHES, &height.to_be_bytes(), &record)?;
            }
            Event::PaidOut { seq, account, .. } => {
                batch.put(PAYOUTS, &payout_key(account, *seq), place)?;
            }
            Event::Transferred { .. }
            | Event::Funded { .. }
            | Event::Credited { .. }
            | Event::Withdrawn { .. }
            | Event::ToppedUp { .. }
            | Event::BatchCut { .. } => {}
        }
        Ok(())
    }

    fn known<'a>(
        &self,
        channels: &'a mut HashMap<ChannelId, ChannelRecord>,
        id: &ChannelId,
    ) -> Result<Option<&'a mut ChannelRecord>, IndexError> {
        if !channels.contains_key(id)
            && let Some(record) = self.channel(id)?
        {
            channels.insert(*id, record);
        }
        Ok(channels.get_mut(id))
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
    /// on, at most [`CHANNELS_MAX`].
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
            .take(CHANNELS_MAX)
            .collect()
    }

    /// The first accepted batch that the service cut at `height` or later.
    pub(crate) fn batch_from(&self, height: u64) -> Result<Option<BatchRecord>, IndexError> {
        self.first(BATCHES, &height.to_be_bytes(), &[])
    }

    /// The block of main with the first payout to `account` in batch `seq` or a later one.
    pub(crate) fn payout_from(
        &self,
        account: &Address,
        seq: u64,
    ) -> Result<Option<BlockRef>, IndexError> {
        self.first(PAYOUTS, &payout_key(account, seq), account.as_bytes())
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
