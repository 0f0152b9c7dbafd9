//! Closes, claims, opens and transfers through a whole validator: decoded, verified, executed,
//! committed, final, on disk.
//!
//! | part | module | what is real |
//! |---|---|---|
//! | chain | [`node`] | mempool, consensus with one validator, block and state storage |
//! | ledger | [`loaded`] | the product's, over a state that was not brought about by transactions |
//! | people | [`parties`] | their keys and signatures |

mod loaded;
mod node;
mod parties;

use std::{sync::Arc, thread};

use anyhow::{Context as _, Result};
use topnet_account::Hash;
use topnet_channel::TOKENS_PER_VOUCHER_MAX;
use topnet_ledger::Transaction;

use self::{
    node::{Driven, Node},
    parties::{PAYEES, PAYERS, Parties, UNITS_BEFORE},
};
use crate::{
    lane::{Better, Case, Contender, Lane, Latency, Measurement},
    lanes::{Setup, Size, VERSION},
    taken::Taken,
};

/// The chains.
pub struct SettlementLane {
    setup: Setup,
}

impl SettlementLane {
    /// A lane whose rounds end when a signal comes.
    pub fn new(setup: Setup) -> SettlementLane {
        SettlementLane { setup }
    }
}

/// What is asked of the chain.
#[derive(Clone, Copy)]
enum Work {
    /// A payee's close whose claim has a token of this index.
    Close(u16),
    /// A claim without closing.
    Claim(u16),
    Open,
    Transfer,
}

impl Work {
    fn transaction(self, parties: &Parties, chain: &Hash, number: u64) -> Transaction {
        match self {
            Work::Close(index) => parties.close(chain, number, index),
            Work::Claim(index) => parties.claim(chain, number, index),
            Work::Open => parties.open(chain, number),
            Work::Transfer => parties.transfer(chain, number),
        }
    }

    /// Units that one transaction settles.
    fn units(self) -> u64 {
        match self {
            Work::Close(index) | Work::Claim(index) => UNITS_BEFORE + u64::from(index),
            Work::Open | Work::Transfer => 0,
        }
    }

    /// Channels that must be there before.
    fn channels(self, count: u64) -> u64 {
        match self {
            Work::Close(_) | Work::Claim(_) => count,
            Work::Open | Work::Transfer => 0,
        }
    }
}

impl Lane for SettlementLane {
    fn name(&self) -> &'static str {
        "settlement"
    }

    fn about(&self) -> &'static str {
        "closes, claims, opens and transfers through a validator, on disk"
    }

    fn cases(&self) -> Result<Vec<Case>> {
        let size = self.setup.size;
        let parties = Arc::new(Parties::new()?);
        let contender = |work: Work| {
            let parties = Arc::clone(&parties);
            Contender::new(VERSION, move || {
                round(Arc::clone(&parties), work, size.transactions())
            })
        };
        let case = |name: &str, metric: &str, ours: Work, peers: &[(&str, Work)]| Case {
            name: format!("settlement/{name}"),
            metric: metric.to_owned(),
            unit: "1/s".to_owned(),
            better: Better::Higher,
            mode: format!(
                "{} transactions, one validator, blocks each 100 ms, from the first handed in to \
                 the last final; {PAYERS} payers, {PAYEES} payees; made before; whoever hands them \
                 in is in the same process and his CPU time counts too",
                size.transactions(),
            ),
            ours: contender(ours),
            peers: peers
                .iter()
                .map(|(name, work)| ((*name).to_owned(), contender(*work)))
                .collect(),
        };
        let half = TOKENS_PER_VOUCHER_MAX / 2;
        Ok(vec![
            case(
                "closes",
                "closes_per_s",
                Work::Close(0),
                &[
                    ("token index 128", Work::Close(half)),
                    ("token index 256", Work::Close(TOKENS_PER_VOUCHER_MAX)),
                ],
            ),
            case("claims", "claims_per_s", Work::Claim(0), &[]),
            case("opens", "opens_per_s", Work::Open, &[]),
            case("transfers", "transfers_per_s", Work::Transfer, &[]),
            state_case(size, parties),
        ])
    }
}

/// A state as large as a country's: what it takes to keep, to open, and what it costs each close.
fn state_case(size: Size, parties: Arc<Parties>) -> Case {
    let (accounts, channels) = (size.accounts(), size.channels_open());
    let ours = move || {
        let count = size.transactions().min(channels);
        let mut node = Node::start(Arc::clone(&parties), accounts, channels)?;
        let transactions = made(&parties, &node.id(), Work::Close(0), count)?;
        let driven = node.drive(&transactions)?;
        let (resident, disk) = (Taken::now()?.resident_bytes, node.disk_bytes()?);
        let start_s = node.restart()?.as_secs_f64();
        let records = (accounts + channels) as f64;
        Ok(measurement(&driven, Work::Close(0))
            .with("memory", resident as f64 / records, "bytes per record")
            .with("disk", disk as f64 / records, "bytes per record")
            .with("start", start_s, "s"))
    };
    Case {
        name: "settlement/state".to_owned(),
        metric: "closes_per_s".to_owned(),
        unit: "1/s".to_owned(),
        better: Better::Higher,
        mode: format!(
            "the closes of settlement/closes over {accounts} accounts and {channels} open \
             channels; memory is the whole process's, with the transactions that are handed in; \
             start is until the chain takes part again",
        ),
        ours: Contender::new(VERSION, ours),
        peers: Vec::new(),
    }
}

impl Size {
    fn accounts(self) -> u64 {
        self.of([20_000, 100_000, 1_000_000, 10_000_000])
    }

    fn channels_open(self) -> u64 {
        self.of([1_000, 50_000, 200_000, 1_000_000])
    }

    fn transactions(self) -> u64 {
        self.of([300, 50_000, 200_000, 400_000])
    }
}

fn round(parties: Arc<Parties>, work: Work, count: u64) -> Result<Measurement> {
    let channels = work.channels(count);
    let mut node = Node::start(Arc::clone(&parties), PAYERS + PAYEES, channels)?;
    let transactions = made(&parties, &node.id(), work, count)?;
    let driven = node.drive(&transactions)?;
    Ok(measurement(&driven, work))
}

/// Signs on all CPUs.
fn made(parties: &Parties, chain: &Hash, work: Work, count: u64) -> Result<Vec<Vec<u8>>> {
    let threads = thread::available_parallelism()?.get() as u64;
    let part = count.div_ceil(threads);
    thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|thread| {
                let numbers = thread * part..count.min((thread + 1) * part);
                let made = move || {
                    let each = |number| work.transaction(parties, chain, number).to_bytes();
                    numbers.map(each).collect::<Vec<_>>()
                };
                scope.spawn(made)
            })
            .collect();
        let mut made = Vec::with_capacity(count as usize);
        for part in parts {
            made.extend(part.join().ok().context("a thread ended with a panic")?);
        }
        Ok(made)
    })
}

fn measurement(driven: &Driven, work: Work) -> Measurement {
    let (count, bytes) = (driven.transactions as f64, driven.bytes as f64);
    let measured = Measurement::new(
        count / driven.elapsed_s,
        driven.transactions,
        driven.taken.cpu_s,
    )
    .with_latency(Latency::of_ns(&driven.latency))
    .with("CPU", driven.taken.cpu_s / count * 1e6, "us")
    .with("CPUs", driven.taken.cpu_s / driven.elapsed_s, "cores")
    .with("blocks", driven.blocks as f64, "blocks")
    .with(
        "in the fullest block",
        driven.transactions_per_block_max as f64,
        "transactions",
    )
    .with("bytes", bytes / count, "bytes")
    .with(
        "disk bytes",
        driven.taken.disk_bytes as f64 / count,
        "bytes",
    );
    let units = count * work.units() as f64;
    if units == 0.0 {
        return measured;
    }
    measured
        .with("units settled", units / driven.elapsed_s, "1/s")
        .with("bytes per million units", bytes / units * 1e6, "bytes")
}
