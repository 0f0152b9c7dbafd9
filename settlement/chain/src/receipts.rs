//! What final blocks did, kept on disk by height.
//!
//! The engine calls the finalised hook again after a crash until a block's effects are
//! durable, so a receipt that is written there before the hook returns is never missing.

use std::sync::Arc;

use commonware_codec::{Buf, EncodeSize, Error as CodecError, RangeCfg, Read, Write};
use commonware_cryptography::sha256::Digest;
use commonware_runtime::{BufMut, Supervisor as _, buffer::paged::CacheRef};
use commonware_storage::{
    archive::{Archive as _, Identifier, prunable},
    translator::EightCap,
};
use commonware_utils::NZUsize;
use tokio::sync::Mutex;
use topnet_account::Hash;
use topnet_ledger::machine::{Executed, Receipt};
use topnet_light::{digest_of, domain_digest, hash_of};

use crate::{
    limits::{ARCHIVE_ITEMS_PER_SECTION, BLOCK_TRANSACTIONS_MAX, EVENTS_BYTES_MAX},
    state::Context,
};

const RECEIPTS_DOMAIN: &[u8] = b"topnet/receipts/1";

/// What a block did: each transaction, and the block by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// One receipt for each transaction, in their order.
    pub receipts: Vec<Receipt>,
    /// What no single transaction did.
    pub block_events: Vec<u8>,
}

impl Outcome {
    /// Takes it out of what execution gave.
    pub(crate) fn take(executed: &mut Executed) -> Self {
        Self {
            receipts: std::mem::take(&mut executed.receipts),
            block_events: std::mem::take(&mut executed.block_events),
        }
    }

    /// What a header commits to: the receipts' number, each one's id and events, and the block's
    /// events. Each events' length goes before it, so that no two outcomes make the same bytes.
    pub(crate) fn root(&self) -> Hash {
        let length = |bytes: &[u8]| (bytes.len() as u64).to_be_bytes();
        let count = (self.receipts.len() as u64).to_be_bytes();
        let lengths: Vec<[u8; 8]> = self
            .receipts
            .iter()
            .map(|one| length(&one.events))
            .collect();
        let block_length = length(&self.block_events);
        let mut parts: Vec<&[u8]> = vec![&count];
        for (receipt, length) in self.receipts.iter().zip(&lengths) {
            parts.extend([receipt.id.as_ref(), length, &receipt.events]);
        }
        parts.extend([&block_length[..], &self.block_events]);
        hash_of(&domain_digest(RECEIPTS_DOMAIN, &parts))
    }
}

/// An outcome as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    receipts: Vec<(Digest, Vec<u8>)>,
    block_events: Vec<u8>,
}

impl Write for Stored {
    fn write(&self, buf: &mut impl BufMut) {
        self.receipts.write(buf);
        self.block_events.write(buf);
    }
}

impl EncodeSize for Stored {
    fn encode_size(&self) -> usize {
        self.receipts.encode_size() + self.block_events.encode_size()
    }
}

impl Read for Stored {
    type Cfg = ();

    fn read_cfg(buf: &mut impl Buf, (): &()) -> Result<Self, CodecError> {
        let events = (RangeCfg::from(0..=EVENTS_BYTES_MAX), ());
        let receipts = (RangeCfg::from(0..=BLOCK_TRANSACTIONS_MAX), ((), events));
        Ok(Self {
            receipts: Vec::read_cfg(buf, &receipts)?,
            block_events: Vec::read_cfg(buf, &events)?,
        })
    }
}

impl Stored {
    fn of(outcome: &Outcome) -> Self {
        let check = |events: &Vec<u8>| {
            let length = events.len();
            assert!(
                length <= EVENTS_BYTES_MAX,
                "events have at most {EVENTS_BYTES_MAX} bytes"
            );
            events.clone()
        };
        let receipts = outcome.receipts.iter();
        Self {
            receipts: receipts
                .map(|receipt| (digest_of(&receipt.id), check(&receipt.events)))
                .collect(),
            block_events: check(&outcome.block_events),
        }
    }

    fn into_outcome(self) -> Outcome {
        let receipts = self.receipts.into_iter();
        Outcome {
            receipts: receipts
                .map(|(id, events)| Receipt {
                    id: hash_of(&id),
                    events,
                })
                .collect(),
            block_events: self.block_events,
        }
    }
}

type Archive = prunable::Archive<EightCap, Context, Digest, Stored>;

/// The receipts of one chain.
#[derive(Clone)]
pub(crate) struct Receipts {
    // Writing consumes the archive and gives it back; it is absent only after a failed write,
    // which ends the node.
    archive: Arc<Mutex<Option<Archive>>>,
}

const LOST: &str = "receipts are lost only by a failed write, which ends the node";

impl Receipts {
    pub(crate) async fn open(context: &Context, partition: &str, page_cache: CacheRef) -> Self {
        let config = prunable::Config {
            translator: EightCap,
            metadata_partition: format!("{partition}-receipts-metadata"),
            key_partition: format!("{partition}-receipts-key"),
            key_page_cache: page_cache,
            value_partition: format!("{partition}-receipts-value"),
            compression: None,
            codec_config: (),
            items_per_section: ARCHIVE_ITEMS_PER_SECTION,
            key_write_buffer: NZUsize!(16 * 1024),
            value_write_buffer: NZUsize!(64 * 1024),
            replay_buffer: NZUsize!(64 * 1024),
        };
        let archive = prunable::Archive::init(context.child("receipts"), config)
            .await
            .expect("the chain's receipts can be opened");
        Self {
            archive: Arc::new(Mutex::new(Some(archive))),
        }
    }

    /// Keeps what a block did; it is on disk when this returns. A block that did nothing costs
    /// nothing, and one that was kept before is not written again.
    pub(crate) async fn keep(&self, height: u64, block: Digest, outcome: &Outcome) {
        if *outcome == Outcome::default() {
            return;
        }
        let mut slot = self.archive.lock().await;
        let archive = slot.take().expect(LOST);
        let archive = archive
            .put_sync(height, block, &Stored::of(outcome))
            .await
            .expect("the chain's receipts can be written");
        *slot = Some(archive);
    }

    /// What the final block at `height` did.
    pub(crate) async fn at(&self, height: u64) -> Outcome {
        let slot = self.archive.lock().await;
        let found = slot
            .as_ref()
            .expect(LOST)
            .get(Identifier::Index(height))
            .await
            .expect("the chain's receipts can be read");
        found.map(Stored::into_outcome).unwrap_or_default()
    }
}
