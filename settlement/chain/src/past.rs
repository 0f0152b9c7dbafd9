//! The state of a chain as it was after an earlier block.
//!
//! Storage proves what stands in the newest state and nothing else. When another chain has
//! accepted an older root and this chain has gone on from there, values must be proved against
//! that one: the blocks up to it are executed once more, beside the chain, in storage of its
//! own. Started again, it goes on where it was.

use std::sync::Arc;

use commonware_codec::Encode as _;
use commonware_glue::stateful::db::{DatabaseSet as _, Merkleized as _};
use commonware_runtime::Supervisor as _;
use tokio::sync::{mpsc, oneshot, watch};
use topnet_ledger::machine::Key;
use topnet_light::{StateValue, hash_of};
use tracing::{error, info};

use crate::{
    chain::{Chain, ChainEnded},
    execute::{replay, seal},
    limits::QUERIES_MAX,
    machine::AnyMachine,
    node::page_cache,
    state::{self, Context, Databases},
};

/// Blocks between two syncs to disk. A crash costs as many once more.
const BLOCKS_PER_SYNC: u64 = 1_024;

type Question = (Key, oneshot::Sender<Option<Vec<u8>>>);

/// A past state. Clones are the same one; it ends with the last of them.
#[derive(Clone)]
pub struct PastState {
    height: u64,
    questions: mpsc::Sender<Question>,
    reached: watch::Receiver<u64>,
}

impl PastState {
    /// Height of the block after which the state was like this.
    pub fn height(&self) -> u64 {
        self.height
    }

    /// The block up to which it has been made anew.
    pub fn reached(&self) -> u64 {
        *self.reached.borrow()
    }

    /// The value under `key`, with the way from it to the state's root; `None` if there is none.
    /// Waits until the state stands.
    /// [`Verifier::state_value`](topnet_ledger::machine::Verifier::state_value) checks it.
    pub async fn prove(&self, key: &Key) -> Result<Option<Vec<u8>>, ChainEnded> {
        let (answer, answered) = oneshot::channel();
        let question = (key.clone(), answer);
        self.questions
            .send(question)
            .await
            .map_err(|_| ChainEnded)?;
        answered.await.map_err(|_| ChainEnded)
    }
}

/// What makes a past state and answers about it.
pub(crate) struct Past {
    chain: Chain,
    height: u64,
    questions: mpsc::Receiver<Question>,
    reached: watch::Sender<u64>,
}

impl Past {
    pub(crate) fn of(chain: Chain, height: u64) -> (PastState, Self) {
        let (questions, asked) = mpsc::channel(QUERIES_MAX);
        let (reached, reports) = watch::channel(0);
        let state = PastState {
            height,
            questions,
            reached: reports,
        };
        let past = Self {
            chain,
            height,
            questions: asked,
            reached,
        };
        (state, past)
    }

    /// Makes the state and answers until nobody can ask any more.
    pub(crate) async fn run(mut self, context: Context) {
        let chain = self.chain.name().to_owned();
        let partition = format!("{chain}-past-{}", self.height);
        let config = state::config(&partition, page_cache());
        let databases = <Databases as commonware_glue::stateful::db::DatabaseSet<Context>>::init(
            context.child("past"),
            config,
            None,
        )
        .await;
        let height = self.height;
        info!(%chain, height, "a past state is being made out of the blocks");
        if let Err(problem) = self.catch_up(&databases).await {
            error!(%chain, height, problem, "a past state cannot be made");
            return;
        }
        info!(%chain, height, "a past state stands");
        while let Some((key, answer)) = self.questions.recv().await {
            let (_, found) = state::prove(&databases, &key).await;
            let proved = found.map(|(value, proof)| StateValue { value, proof });
            // An asker that does not wait any more needs no answer.
            let _ = answer.send(proved.map(|proved| proved.encode().to_vec()));
        }
    }

    async fn catch_up(&self, databases: &Databases) -> Result<(), &'static str> {
        let machine: &Arc<dyn AnyMachine> = &self.chain.parts.machine;
        let genesis = machine.genesis();
        let (start, _) = state::read(databases, &[]).await;
        for height in start + 1..=self.height {
            let block = self.chain.block_at(height).await;
            let block = block.map_err(|_| "the chain has ended")?;
            let block = block.ok_or("a block is not in storage")?;
            let env = block.header.env();
            let batch = databases.new_batches().await;
            let transactions = &block.transactions;
            let replayed = replay(&**machine, &batch, &env, &genesis, transactions).await;
            let mut executed = replayed.map_err(|_| "a final block cannot be executed")?;
            let sealed = seal(batch, height, &genesis, &mut executed).await;
            if hash_of(&sealed.root()) != block.header.state_root() {
                return Err("a block leads to another state than its header says");
            }
            databases.apply(sealed).await;
            if height == self.height || height.is_multiple_of(BLOCKS_PER_SYNC) {
                if !databases.finalize().await.durable().await {
                    return Err("the process ends");
                }
                self.reached.send_replace(height);
            }
        }
        self.reached.send_replace(self.height);
        Ok(())
    }
}
