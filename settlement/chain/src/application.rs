//! Runs the machine inside consensus: builds blocks, checks those of others, applies final ones.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::pending,
    sync::{Arc, Mutex, PoisonError},
};

use commonware_consensus::{marshal::ancestry::Ancestry, simplex::scheme::ed25519::Scheme};
use commonware_cryptography::sha256::Digest;
use commonware_glue::stateful::{
    Application as StatefulApplication, Finality, Input, Proposed,
    db::{DatabaseSet, Merkleized as _},
};
use commonware_storage::qmdb::sync::Target;
use commonware_utils::non_empty_range;
use futures::StreamExt as _;
use tokio::sync::watch;
use topnet_account::{Address, Hash};
use topnet_ledger::machine::{BlockEnv, Executed, Key, Rejection};
use topnet_light::{
    Context as ConsensusContext, Header, HeaderFields, StateTarget, hash_of, public_key_of,
};
use tracing::{debug, warn};

use crate::{
    block::{Block, body_root},
    chain::Tip,
    execute::{execute, replay, seal},
    machine::AnyMachine,
    mempool::{Candidates, Mempool, Room},
    pace::now_ms,
    receipts::{Outcome, Receipts},
    state::{Batch, Context, Databases, SealedBatch},
};

/// What the application works with. Everything that affects execution comes from the block
/// and the state; the rest is bookkeeping of this node.
pub(crate) struct Parts {
    pub chain: Hash,
    pub machine: Arc<dyn AnyMachine>,
    pub genesis_block: Block,
    pub genesis_state: Arc<BTreeMap<Key, Vec<u8>>>,
    pub mempool: Arc<Mempool>,
    pub receipts: Receipts,
    pub tip: watch::Sender<Tip>,
}

/// The application that the engine drives.
#[derive(Clone)]
pub(crate) struct Application {
    parts: Arc<Parts>,
    /// What blocks did that were executed in this run and are not yet final.
    executed: Arc<Mutex<HashMap<Digest, (u64, Outcome)>>>,
}

impl Application {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts: Arc::new(parts),
            executed: Arc::default(),
        }
    }

    fn remember(&self, block: Digest, height: u64, outcome: Outcome) {
        let mut executed = self.executed.lock().unwrap_or_else(PoisonError::into_inner);
        executed.insert(block, (height, outcome));
    }

    /// What a block did that became final; its rivals are forgotten.
    fn recall(&self, block: Digest, height: u64) -> Outcome {
        let mut executed = self.executed.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, outcome) = executed
            .remove(&block)
            .expect("the engine executes a block in this run before it applies it");
        executed.retain(|_, (other, _)| *other > height);
        outcome
    }

    /// Builds a block of the best candidates. Those that cannot stand take no room from those
    /// that were left out for want of it: the block is built once more without them.
    async fn build(&self, batch: &Batch, env: &BlockEnv) -> Executed {
        let Parts {
            machine, mempool, ..
        } = &*self.parts;
        let mut passed_over = HashSet::new();
        loop {
            let Candidates { transactions, all } = mempool.candidates(Room::BLOCK, &passed_over);
            let reads = machine.reads(env, &transactions);
            let mut executed = execute(batch, env, &self.parts.genesis_state, reads, |values| {
                machine.build(env, transactions.clone(), values)
            })
            .await;
            let rejected = std::mem::take(&mut executed.rejected);
            let last = all || rejected.is_empty() || !passed_over.is_empty();
            passed_over.extend(rejected.iter().map(|(bytes, _)| machine.id(bytes)));
            self.refuse(rejected);
            if last {
                return executed;
            }
        }
    }

    /// Tells the mempool what a proposal could not include. A transaction that stands in a
    /// block that is about to become final cannot stand twice, which is no fault of it.
    fn refuse(&self, rejected: Vec<(Vec<u8>, Rejection)>) {
        for (transaction, reason) in rejected {
            let id = self.parts.machine.id(&transaction);
            let executed = self.executed.lock().unwrap_or_else(PoisonError::into_inner);
            let stands = executed
                .values()
                .flat_map(|(_, outcome)| &outcome.receipts)
                .any(|receipt| receipt.id == id);
            drop(executed);
            if !stands {
                debug!(%id, %reason, "a transaction cannot stand");
                self.parts.mempool.refused(&id, reason);
            }
        }
    }

    /// The rules that a vote depends on and that can be told without the state.
    fn well_formed(&self, block: &Block, parent: &Header) -> Result<(), &'static str> {
        let header = &block.header;
        if header.chain() != self.parts.chain {
            return Err("another chain's block");
        }
        if header.height() != parent.height() + 1 {
            return Err("the height does not follow the parent's");
        }
        if header.time_ms() <= parent.time_ms() {
            return Err("the time does not follow the parent's");
        }
        if header.body_root() != body_root(&block.transactions) {
            return Err("the body root is not the transactions'");
        }
        if !block.transactions.is_empty()
            && !self.parts.machine.signatures_hold(&block.transactions)
        {
            return Err("a signature does not hold");
        }
        Ok(())
    }

    /// Executes somebody's block; `None` if it is invalid for good.
    async fn replay(&self, block: &Block, batch: Batch) -> Option<SealedBatch> {
        let header = &block.header;
        let env = header.env();
        let Parts {
            machine,
            genesis_state,
            ..
        } = &*self.parts;
        let transactions = &block.transactions;
        let replayed = replay(&**machine, &batch, &env, genesis_state, transactions).await;
        let mut executed = match replayed {
            Ok(executed) => executed,
            Err(reason) => {
                warn!(height = header.height(), %reason, "a block holds what cannot stand");
                return None;
            }
        };
        if executed.outbox != header.outbox() {
            warn!(
                height = header.height(),
                "a block's outbox is not what it leads to"
            );
            return None;
        }
        let outcome = Outcome::take(&mut executed);
        if outcome.root() != header.receipts_root() {
            warn!(
                height = header.height(),
                "a block's receipts are not what it leads to"
            );
            return None;
        }
        let sealed = seal(batch, header.height(), genesis_state, &mut executed).await;
        // The engine compares the log alone.
        if hash_of(&sealed.root()) != header.state_root() {
            warn!(
                height = header.height(),
                "a block's state root is not what it leads to"
            );
            return None;
        }
        self.remember(header.digest(), header.height(), outcome);
        Some(sealed)
    }
}

impl StatefulApplication<Context> for Application {
    type SigningScheme = Scheme;
    type Context = ConsensusContext;
    type Block = Block;
    type Databases = Databases;
    type Captured = ();
    type Provider = ();
    type Input = ();

    fn sync_targets(block: &Block) -> StateTarget {
        block.header.state_log().clone()
    }

    async fn genesis(&mut self) -> Block {
        self.parts.genesis_block.clone()
    }

    async fn propose(
        &mut self,
        (_, context): (Context, ConsensusContext),
        mut ancestry: impl Ancestry<Block>,
        batch: Batch,
        _: Input<(), ()>,
    ) -> Option<Proposed<Self, Context>> {
        let parent = ancestry.next().await?;
        let chain = &self.parts.chain;
        let parent = &parent.inner().header;
        let env = BlockEnv {
            chain: *chain,
            height: parent.height() + 1,
            proposer: Address::of(&public_key_of(&context.leader)),
        };
        let mut executed = self.build(&batch, &env).await;
        let genesis = &self.parts.genesis_state;
        let merkleized = seal(batch, env.height, genesis, &mut executed).await;
        let bounds = merkleized.bounds();
        let outcome = Outcome::take(&mut executed);
        let header = Header::new(HeaderFields {
            chain: *chain,
            height: env.height,
            context,
            time_ms: now_ms().max(parent.time_ms() + 1),
            body_root: body_root(&executed.included),
            receipts_root: outcome.root(),
            state_root: hash_of(&merkleized.root()),
            state_log: Target::new(
                merkleized.ops_root(),
                non_empty_range!(merkleized.sync_boundary(), bounds.tip.size),
            ),
            outbox: executed.outbox,
        });
        let digest = header.digest();
        self.remember(digest, env.height, outcome);
        let block = Block {
            header,
            transactions: executed.included,
        };
        Some(Proposed { block, merkleized })
    }

    async fn process(
        &mut self,
        _: (Context, ConsensusContext),
        mut ancestry: impl Ancestry<Block>,
        batch: Batch,
        finality: Finality,
    ) -> Option<SealedBatch> {
        // An ancestry that ends early means missing data, which is no verdict.
        let Some(block) = ancestry.next().await else {
            return pending().await;
        };
        if finality == Finality::Finalized {
            return self.replay(block.inner(), batch).await;
        }
        let Some(parent) = ancestry.next().await else {
            return pending().await;
        };
        if let Err(reason) = self.well_formed(block.inner(), &parent.inner().header) {
            warn!(
                height = block.inner().header.height(),
                reason, "a block is invalid"
            );
            return None;
        }
        self.replay(block.inner(), batch).await
    }

    async fn capture(
        &mut self,
        _: (Context, ConsensusContext),
        _: &Block,
        _: &SealedBatch,
        _: <Databases as DatabaseSet<Context>>::Readers,
    ) {
    }

    async fn finalized(
        &mut self,
        _: (Context, ConsensusContext),
        block: &Block,
        (): (),
        _: <Databases as DatabaseSet<Context>>::Readers,
    ) {
        let header = &block.header;
        let digest = header.digest();
        let outcome = self.recall(digest, header.height());
        self.parts
            .receipts
            .keep(header.height(), digest, &outcome)
            .await;
        for receipt in &outcome.receipts {
            self.parts.mempool.included(&receipt.id);
        }
        self.parts.tip.send_replace(Tip::of(header));
    }
}
