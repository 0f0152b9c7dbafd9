//! A validator alone on its chain, on disk, and the drive of transactions through it: handed in
//! as fast as it takes them, until the last is final.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::Semaphore};
use topnet_account::Hash;
use topnet_chain::{
    Chain, ChainConfig, ChainRuntime, EngineVerifier, Validator, limits::MEMPOOL_TRANSACTIONS,
};
use topnet_ledger::{
    Genesis, Ledger,
    genesis::{Counterpart, Role, Rules},
    machine::Machine as _,
};

use super::{loaded::Loaded, parties::Parties};
use crate::{lane::histogram_ns, place::Place, taken::Taken};

/// As most chains have it.
const BLOCK_INTERVAL: Duration = Duration::from_millis(100);
/// So many hand in at one time, each one transaction after the other.
const SUBMITTERS: usize = 4_096;
/// Most transactions that are handed in and not final: fewer than may wait, so that none has to
/// leave for another.
const WINDOW: usize = MEMPOOL_TRANSACTIONS / 2;
/// Without a new block for so long, nothing is measured any more.
const STILL: Duration = Duration::from_secs(120);

/// A running chain.
pub struct Node {
    pub machine: Loaded,
    chain: Chain,
    engine: Option<ChainRuntime>,
    runtime: Runtime,
    directory: TempDir,
}

/// What a drive came to.
pub struct Driven {
    pub transactions: u64,
    pub elapsed_s: f64,
    pub taken: Taken,
    pub blocks: u64,
    pub transactions_per_block_max: usize,
    pub bytes: u64,
    /// From the first try to hand it in to the final block.
    pub latency: Histogram<u64>,
}

/// A service chain without a main chain: nothing is funded in a measurement, and batches wait.
fn genesis(parties: &Parties) -> Genesis {
    let validators = vec![parties.validator_key()];
    Genesis {
        name: "bench".to_owned(),
        salt: Hash([0x5a; 32]),
        block_interval_ms: BLOCK_INTERVAL.as_millis() as u64,
        epoch_blocks: 100,
        validators: validators.clone(),
        rules: Rules::default(),
        role: Role::Service {
            main: Counterpart {
                name: "main".to_owned(),
                genesis: Hash([1; 32]),
                validators,
            },
        },
        balances: std::collections::BTreeMap::new(),
    }
}

impl Node {
    /// Starts a chain whose state has so many accounts and open channels.
    pub fn start(parties: Arc<Parties>, accounts: u64, channels: u64) -> Result<Node> {
        let ledger = Ledger::new(genesis(&parties), EngineVerifier)?;
        let machine = Loaded {
            ledger,
            parties,
            accounts,
            channels,
        };
        let directory = Place::Disk.directory()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let (engine, chain) = launch(&runtime, directory.path().join("chains"), &machine)?;
        let mut node = Node {
            machine,
            chain,
            engine: Some(engine),
            runtime,
            directory,
        };
        let fills = node.machine.fills();
        for fills in fills.chunks(16) {
            node.drive(fills)?;
        }
        Ok(node)
    }

    /// The chain's id.
    pub fn id(&self) -> Hash {
        *self.machine.ledger.chain()
    }

    /// Stops the chain and starts it again; gives how long it took until it took part.
    pub fn restart(&mut self) -> Result<Duration> {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
        let start = Instant::now();
        let path = self.directory.path().join("chains");
        let (engine, chain) = launch(&self.runtime, path, &self.machine)?;
        self.engine = Some(engine);
        self.chain = chain;
        Ok(start.elapsed())
    }

    /// Bytes of all that is stored.
    pub fn disk_bytes(&self) -> Result<u64> {
        Ok(crate::taken::bytes_below(self.directory.path())?)
    }

    /// Hands the transactions in and waits until all are final.
    pub fn drive(&mut self, transactions: &[Vec<u8>]) -> Result<Driven> {
        let transactions: Arc<[Vec<u8>]> = transactions.into();
        let before = Taken::now()?;
        let start = Instant::now();
        let (chain, machine) = (self.chain.clone(), self.machine.clone());
        let driven = self.runtime.block_on(async {
            let from = chain.tip().height();
            let next = Arc::new(AtomicUsize::new(0));
            let window = Arc::new(Semaphore::new(WINDOW));
            let submitters: Vec<_> = (0..SUBMITTERS.min(transactions.len()))
                .map(|_| {
                    let (chain, transactions) = (chain.clone(), Arc::clone(&transactions));
                    let (next, window) = (Arc::clone(&next), Arc::clone(&window));
                    tokio::spawn(submit(chain, transactions, next, window))
                })
                .collect();
            let follow = follow(&chain, from, transactions.len(), &window);
            let blocks = follow.await?;
            let mut begun = HashMap::with_capacity(transactions.len());
            for submitter in submitters {
                for (place, at) in submitter.await?? {
                    begun.insert(machine.id(&transactions[place]), at);
                }
            }
            summary(start, &blocks, &begun)
        })?;
        Ok(Driven {
            taken: Taken::now()?.since(before),
            bytes: transactions.iter().map(|bytes| bytes.len() as u64).sum(),
            ..driven
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop();
        }
    }
}

fn launch(runtime: &Runtime, storage: PathBuf, machine: &Loaded) -> Result<(ChainRuntime, Chain)> {
    let engine = ChainRuntime::start(&storage)?;
    let parties = &machine.parties;
    let loopback = ([127, 0, 0, 1], 0).into();
    let config = ChainConfig {
        name: "bench".to_owned(),
        genesis: *machine.ledger.chain(),
        validators: vec![Validator {
            key: parties.validator_key(),
            address: loopback,
        }],
        seed: *parties.validator().seed(),
        listen: loopback,
        block_interval: BLOCK_INTERVAL,
        mempool_transactions_max: MEMPOOL_TRANSACTIONS,
        halted: false,
    };
    let chain = runtime.block_on(engine.launch(machine.clone(), config))?;
    Ok((engine, chain))
}

/// Hands in one transaction after the other; gives which, and when each was tried first.
async fn submit(
    chain: Chain,
    transactions: Arc<[Vec<u8>]>,
    next: Arc<AtomicUsize>,
    window: Arc<Semaphore>,
) -> Result<Vec<(usize, Instant)>> {
    let mut begun = Vec::new();
    loop {
        let place = next.fetch_add(1, Ordering::Relaxed);
        let Some(bytes) = transactions.get(place) else {
            return Ok(begun);
        };
        // Given back by the final block.
        window.acquire().await?.forget();
        begun.push((place, Instant::now()));
        while let Err(reason) = chain.submit(bytes.clone()).await {
            let passes = matches!(
                reason.code,
                "mempool_full" | "account_queue_full" | "nonce_ahead"
            );
            ensure!(passes, "transaction {place} is refused: {reason}");
            let height = chain.tip().height();
            chain.reached(height + 1).await?;
        }
    }
}

/// What is known of a block when the drive is over: when it became final, and its transactions.
type Seen = (Instant, Vec<Hash>);

/// Reads blocks as they become final, as whoever follows a chain does, until so many
/// transactions are.
async fn follow(
    chain: &Chain,
    from: u64,
    transactions: usize,
    window: &Semaphore,
) -> Result<Vec<Seen>> {
    let (mut height, mut left, mut blocks) = (from, transactions, Vec::new());
    while left > 0 {
        height += 1;
        tokio::time::timeout(STILL, chain.reached(height))
            .await
            .context("the chain stands still")??;
        let now = Instant::now();
        let block = chain.block_at(height).await?;
        let block = block.context("a final block is not stored")?;
        left = left
            .checked_sub(block.receipts.len())
            .context("more is final than was handed in")?;
        window.add_permits(block.receipts.len());
        let ids = block.receipts.iter().map(|receipt| receipt.id).collect();
        blocks.push((now, ids));
    }
    Ok(blocks)
}

fn summary(start: Instant, blocks: &[Seen], begun: &HashMap<Hash, Instant>) -> Result<Driven> {
    let mut latency = histogram_ns()?;
    for (at, ids) in blocks {
        for id in ids {
            let begun = begun.get(id).context("a stranger's transaction is final")?;
            let ns = at.saturating_duration_since(*begun).as_nanos();
            latency.saturating_record(u64::try_from(ns)?.max(1));
        }
    }
    let (end, _) = blocks.last().context("nothing was handed in")?;
    Ok(Driven {
        transactions: latency.len(),
        elapsed_s: end.saturating_duration_since(start).as_secs_f64(),
        taken: Taken::default(),
        blocks: blocks.len() as u64,
        transactions_per_block_max: blocks.iter().map(|(_, ids)| ids.len()).max().unwrap_or(0),
        bytes: 0,
        latency,
    })
}
