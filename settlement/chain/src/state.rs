//! The state of a chain on disk: QMDB, an authenticated log of updates with an index in memory
//! and a bit for each update that says whether it is the current one.
//!
//! Keys are hashed, so that a machine may name them as it likes. Every block's commit carries
//! the block's height, so that a reader learns as of which block it read. A value that is there
//! can be proved to be the current one against the state root in the block's header; that
//! nothing stands under a key cannot be proved.

use std::{collections::BTreeMap, convert::Infallible, future::pending, num::NonZeroUsize};

use commonware_codec::RangeCfg;
use commonware_cryptography::{Sha256, sha256::Digest};
use commonware_glue::stateful::db::{AttachableResolver, DatabaseSet, Shared, Unmerkleized as _};
use commonware_parallel::Sequential;
use commonware_runtime::buffer::paged::CacheRef;
use commonware_storage::{
    journal::contiguous::variable::Config as LogConfig,
    merkle::full::Config as MerkleConfig,
    mmr,
    qmdb::{
        Error as DatabaseError,
        any::unordered::variable::Operation,
        current::{VariableConfig, unordered::variable},
        sync::{self, Request, source},
    },
    translator::EightCap,
};
use commonware_utils::{NZU64, NZUsize};
use topnet_ledger::machine::{Key, Values};
use topnet_light::{STATUS_BYTES, ValueProof, key_digest};

use crate::limits::VALUE_BYTES_MAX;

/// The engine's runtime: tasks, clock, storage, network.
pub(crate) type Context = commonware_runtime::tokio::Context;
pub(crate) type Database =
    variable::Db<mmr::Family, Context, Digest, Vec<u8>, Sha256, EightCap, STATUS_BYTES, Sequential>;
pub(crate) type Databases = Shared<Database>;
pub(crate) type Batch = <Databases as DatabaseSet<Context>>::Unmerkleized;
pub(crate) type SealedBatch = <Databases as DatabaseSet<Context>>::Merkleized;
pub(crate) type DatabaseConfig = <Databases as DatabaseSet<Context>>::Config;

const BUFFER_BYTES: NonZeroUsize = NZUsize!(64 * 1024);

/// Where and how a chain's state is stored.
pub(crate) fn config(partition: &str, page_cache: CacheRef) -> DatabaseConfig {
    VariableConfig {
        merkle_config: MerkleConfig {
            journal_partition: format!("{partition}-state-merkle"),
            metadata_partition: format!("{partition}-state-metadata"),
            items_per_blob: NZU64!(262_144),
            write_buffer: BUFFER_BYTES,
            replay_buffer: BUFFER_BYTES,
            strategy: Sequential,
            page_cache: page_cache.clone(),
        },
        journal_config: LogConfig {
            partition: format!("{partition}-state-log"),
            items_per_section: NZU64!(65_536),
            compression: None,
            codec_config: ((), (RangeCfg::from(0..=VALUE_BYTES_MAX), ())),
            page_cache,
            write_buffer: BUFFER_BYTES,
            replay_buffer: BUFFER_BYTES,
        },
        grafted_metadata_partition: format!("{partition}-state-status"),
        translator: EightCap,
        init_cache: Some(NZUsize!(65_536)),
        init_buffer: NZUsize!(2 * 1024 * 1024),
        init_concurrency: (),
    }
}

/// Reads the keys that `values` lacks through a batch.
pub(crate) async fn load(batch: &Batch, keys: Vec<Key>, values: &mut Values) {
    let keys: Vec<Key> = keys
        .into_iter()
        .filter(|key| !values.contains_key(key))
        .collect();
    let digests: Vec<Digest> = keys.iter().map(key_digest).collect();
    let wanted: Vec<&Digest> = digests.iter().collect();
    let found = batch
        .get_many(&wanted)
        .await
        .expect("the chain's state can be read");
    values.extend(keys.into_iter().zip(found));
}

/// Writes a block's changes into a batch and computes the state's root after it.
pub(crate) async fn seal(
    mut batch: Batch,
    height: u64,
    writes: BTreeMap<Key, Option<Vec<u8>>>,
) -> SealedBatch {
    for (key, value) in writes {
        let length = value.as_ref().map_or(0, Vec::len);
        assert!(
            length <= VALUE_BYTES_MAX,
            "a machine writes at most {VALUE_BYTES_MAX} bytes"
        );
        batch = batch.write(key_digest(&key), value);
    }
    let batch = batch.with_metadata(height.to_be_bytes().to_vec());
    batch
        .merkleize()
        .await
        .expect("the chain's state can be read")
}

/// A value of the final state with the proof of it; the height of the block first.
pub(crate) async fn prove(
    databases: &Databases,
    key: &Key,
) -> (u64, Option<(Vec<u8>, ValueProof)>) {
    let digest = key_digest(key);
    let database = databases.read().await;
    let height = height_of(&database).await;
    let value = database.get(&digest).await;
    let Some(value) = value.expect("the chain's state can be read") else {
        return (height, None);
    };
    match database.key_value_proof(digest).await {
        Ok(proof) => (height, Some((value, proof))),
        Err(DatabaseError::KeyNotFound) => (height, None),
        Err(error) => panic!("the chain's state can be read: {error}"),
    }
}

async fn height_of(database: &Database) -> u64 {
    let metadata = database
        .get_metadata()
        .await
        .expect("the chain's state can be read");
    metadata
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

/// Reads keys from the final state, all as of one block, whose height comes first.
pub(crate) async fn read(databases: &Databases, keys: &[Key]) -> (u64, Vec<Option<Vec<u8>>>) {
    let digests: Vec<Digest> = keys.iter().map(key_digest).collect();
    let wanted: Vec<&Digest> = digests.iter().collect();
    let database = databases.read().await;
    let height = height_of(&database).await;
    let values = database
        .get_many(&wanted)
        .await
        .expect("the chain's state can be read");
    (height, values)
}

/// A source of state that has none. A validator that falls behind replays blocks, which
/// marshal fetches from its peers; fetching the state itself is not offered yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoStateSync;

impl sync::Source for NoStateSync {
    type Family = mmr::Family;
    type Digest = Digest;
    type Op = Operation<mmr::Family, Digest, Vec<u8>>;
    type Error = Infallible;

    async fn serve(&self, _: Request<mmr::Family>) -> source::Result<Self> {
        pending().await
    }
}

impl AttachableResolver<Database> for NoStateSync {
    async fn attach_database(&self, _: Shared<Database>) {}
}
