//! What happened on a chain: its blocks, what they did to an account, a service's batches.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use topnet_account::{Address, Amount, Hash};

use crate::BlockRef;

/// What a final block's header says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockHeader {
    /// Which.
    #[serde(flatten)]
    pub block: BlockRef,
    /// The block before it.
    pub parent: Hash,
    /// The proposer's clock, milliseconds since 1970.
    pub time_ms: u64,
    /// Who is paid the proposer's half of the fees.
    pub proposer: Address,
    /// Commits to the transactions.
    pub body_root: Hash,
    /// Commits to what they and the block itself did.
    pub receipts_root: Hash,
    /// Root of the state after it.
    pub state_root: Hash,
    /// What other chains check.
    pub outbox: Hash,
}

/// A final block, and how much is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockSummary {
    /// Its header.
    #[serde(flatten)]
    pub header: BlockHeader,
    /// Transactions in it.
    pub transaction_count: u64,
}

/// A final block, and what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockView {
    /// Its header.
    #[serde(flatten)]
    pub header: BlockHeader,
    /// Its transactions in the order of execution, with what each did, one line an event.
    pub transactions: Vec<ExecutedTransaction>,
    /// What the block did by itself, one line an event.
    pub events: Vec<String>,
}

/// A transaction in a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutedTransaction {
    /// Its id.
    pub id: Hash,
    /// What it did, one line an event.
    pub events: Vec<String>,
}

/// A place in a chain, finer than a block.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct HistoryPlace {
    /// The block's height.
    pub height: u64,
    /// Which of its transactions, from 0; what the block did by itself comes behind them all.
    pub index: u32,
}

/// What one transaction did to an account, or a block by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryEntry {
    /// Where.
    pub place: HistoryPlace,
    /// The block's time, milliseconds since 1970.
    pub time_ms: u64,
    /// The transaction; nothing for what the block did by itself.
    pub transaction: Option<Hash>,
    /// What it did to the account and its channels, one line an event.
    pub events: Vec<String>,
}

/// A batch that a service has cut for main.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchView {
    /// Its number, from 0.
    pub number: u64,
    /// The service's block that cut it.
    pub service_block: BlockRef,
    /// Payouts in it.
    pub payouts: u32,
    /// All that leaves the service, burn included.
    pub total: Amount,
    /// The burn.
    pub burn: Amount,
    /// The block of main that accepted it; nothing until then. Payouts beyond what a service may
    /// pay out in an epoch of main wait there.
    pub main_block: Option<BlockRef>,
}
