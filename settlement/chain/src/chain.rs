//! What the rest of the process sees of a chain.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};
use topnet_account::{Hash, PublicKey};
use topnet_ledger::machine::{Key, Receipt, Rejection, Values};
use topnet_light::Header;

use crate::{
    intake::Intake,
    machine::AnyMachine,
    mempool::{Mempool, Standing},
};

/// The newest final block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Its header.
    pub header: Header,
    /// Its hash.
    pub hash: Hash,
}

impl Tip {
    pub(crate) fn of(header: &Header) -> Self {
        Self {
            hash: header.hash(),
            header: header.clone(),
        }
    }

    /// Its height.
    pub fn height(&self) -> u64 {
        self.header.height()
    }
}

/// A final block, with what its transactions did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalBlock {
    /// Its hash.
    pub hash: Hash,
    /// Its header.
    pub header: Header,
    /// Its transactions, in the order of execution.
    pub transactions: Vec<Vec<u8>>,
    /// One receipt for each of them.
    pub receipts: Vec<Receipt>,
    /// What the block did that no single transaction did, encoded like a receipt's events.
    pub block_events: Vec<u8>,
}

/// Proves to anybody who knows the validators that a block is final: the encoded header, then
/// the certificate. [`crate::EngineVerifier`] checks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalityProof {
    /// Height of the block that is proved.
    pub height: u64,
    /// The proof.
    pub bytes: Vec<u8>,
}

/// Values of the final state, all as of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateView {
    /// Height of the block.
    pub height: u64,
    /// Value of each key that was asked for.
    pub values: Values,
}

/// A value of the final state, with the proof of it: the header and certificate of its block, the
/// value, and its way up to the state root. [`crate::EngineVerifier::prove_value`] checks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvedValue {
    /// Height of the block whose state it is.
    pub height: u64,
    /// The proof.
    pub bytes: Vec<u8>,
}

/// What can be shown of a key.
pub(crate) enum Proved {
    Value(ProvedValue),
    /// Nothing stands under it.
    Absent,
    /// The newest block has no certificate of its own, and the state before it is gone.
    Uncertified,
}

/// The chain's node has ended; the log says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chain's node has ended; its log says why, start the process again")]
pub struct ChainEnded;

pub(crate) enum Query {
    Block {
        height: u64,
        answer: oneshot::Sender<Option<FinalBlock>>,
    },
    Proof {
        height: u64,
        answer: oneshot::Sender<Option<FinalityProof>>,
    },
    Value {
        key: Key,
        answer: oneshot::Sender<Proved>,
    },
    Read {
        keys: Vec<Key>,
        answer: oneshot::Sender<StateView>,
    },
}

/// A running chain. Clones are the same chain; any runtime may use it.
#[derive(Clone)]
pub struct Chain {
    pub(crate) parts: Arc<ChainParts>,
}

pub(crate) struct ChainParts {
    pub name: String,
    pub genesis: Hash,
    pub validators: Vec<PublicKey>,
    pub block_interval: Duration,
    pub machine: Arc<dyn AnyMachine>,
    pub mempool: Arc<Mempool>,
    pub intake: Intake,
    pub tip: watch::Receiver<Tip>,
    pub queries: mpsc::Sender<Query>,
}

impl Chain {
    /// The chain's name in this process.
    pub fn name(&self) -> &str {
        &self.parts.name
    }

    /// Hash of the chain's genesis.
    pub fn genesis(&self) -> Hash {
        self.parts.genesis
    }

    /// Who votes.
    pub fn validators(&self) -> &[PublicKey] {
        &self.parts.validators
    }

    /// Time between blocks.
    pub fn block_interval(&self) -> Duration {
        self.parts.block_interval
    }

    /// The machine's state before the first block.
    pub fn genesis_state(&self) -> BTreeMap<Key, Vec<u8>> {
        self.parts.machine.genesis()
    }

    /// Hands a transaction to the mempool and gives its id. It is checked against the final
    /// state, so one that is final already is refused like any that cannot stand; one that
    /// waits may be handed over again. Being taken promises nothing: watch for the final block,
    /// and submit again after a restart.
    pub async fn submit(&self, transaction: Vec<u8>) -> Result<Hash, Rejection> {
        self.parts.intake.take(transaction).await
    }

    /// What the mempool knows of a transaction.
    pub fn standing(&self, id: &Hash) -> Standing {
        self.parts.mempool.standing(id)
    }

    /// The newest final block.
    pub fn tip(&self) -> Tip {
        self.parts.tip.borrow().clone()
    }

    /// Follows the newest final block. A follower that falls behind skips tips, and reads the
    /// blocks between with [`Chain::block_at`], where none is ever missing.
    pub fn tips(&self) -> watch::Receiver<Tip> {
        self.parts.tip.clone()
    }

    /// Waits until the block at `height` is final.
    pub async fn reached(&self, height: u64) -> Result<Tip, ChainEnded> {
        let mut tips = self.tips();
        let tip = tips.wait_for(|tip| tip.height() >= height).await;
        tip.map(|tip| tip.clone()).map_err(|_| ChainEnded)
    }

    /// The final block at `height`; `None` above the tip.
    pub async fn block_at(&self, height: u64) -> Result<Option<FinalBlock>, ChainEnded> {
        self.ask(|answer| Query::Block { height, answer }).await
    }

    /// Proof of the first block from `height` on that has a certificate of its own; `None`
    /// if there is none yet. A block without one is final through a later block's.
    pub async fn proof_from(&self, height: u64) -> Result<Option<FinalityProof>, ChainEnded> {
        self.ask(|answer| Query::Proof { height, answer }).await
    }

    /// Values of the final state.
    pub async fn read(&self, keys: Vec<Key>) -> Result<StateView, ChainEnded> {
        self.ask(|answer| Query::Read { keys, answer }).await
    }

    /// The value under `key` in the final state, with a proof for whoever knows the validators
    /// alone; `None` if there is none. Waits for a block with a certificate of its own.
    pub async fn prove_value(&self, key: &Key) -> Result<Option<ProvedValue>, ChainEnded> {
        loop {
            let height = self.tip().height();
            let key = key.clone();
            match self.ask(|answer| Query::Value { key, answer }).await? {
                Proved::Value(proved) => return Ok(Some(proved)),
                Proved::Absent => return Ok(None),
                Proved::Uncertified => self.reached(height + 1).await?,
            };
        }
    }

    async fn ask<T>(
        &self,
        query: impl FnOnce(oneshot::Sender<T>) -> Query,
    ) -> Result<T, ChainEnded> {
        let (answer, answered) = oneshot::channel();
        self.parts
            .queries
            .send(query(answer))
            .await
            .map_err(|_| ChainEnded)?;
        answered.await.map_err(|_| ChainEnded)
    }
}
