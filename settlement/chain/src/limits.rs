//! Every bound of a chain node, in one place.

use std::{num::NonZeroU64, time::Duration};

use commonware_utils::NZU64;
use topnet_ledger::machine::NONCES_AHEAD_MAX;
pub use topnet_light::{VALIDATORS_MAX, VALUE_BYTES_MAX};

/// Longest transaction: a batch of 1,000 outbox entries with its certificate fits.
pub const TRANSACTION_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of transactions in a block.
pub const BLOCK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most transactions in a block: with blocks each 100 ms more than two CPUs check.
pub const BLOCK_TRANSACTIONS_MAX: usize = 16_384;
/// Longest events of one receipt.
pub const EVENTS_BYTES_MAX: usize = 1024 * 1024;

/// How many transactions may wait, usually.
pub const MEMPOOL_TRANSACTIONS: usize = 65_536;
/// Most bytes of transactions that wait.
pub(crate) const MEMPOOL_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Most waiting transactions of one account: as many as may wait for each other.
pub(crate) const MEMPOOL_ACCOUNT_MAX: usize = NONCES_AHEAD_MAX as usize;
/// Most waiting transactions that no account pays for.
pub(crate) const MEMPOOL_FREE_MAX: usize = 64;
/// Of a block's room, transactions that no account pays for have at most one part in so many.
pub(crate) const BLOCK_FREE_PART: usize = 4;
/// Proposals that may pass a waiting transaction over before it is dropped: long enough for a
/// missing nonce or credit to arrive, short enough that its sender learns of the fault.
pub(crate) const MEMPOOL_REFUSALS_MAX: u32 = 50;
/// Most transactions that are checked for the mempool at once: a batch of signatures gets no
/// cheaper by much beyond.
pub(crate) const INTAKE_BATCH_MAX: usize = 1_024;
/// Most transactions that wait to be checked; whoever comes then waits to hand his in.
pub(crate) const INTAKE_WAITING_MAX: usize = 8_192;
/// Most dropped transactions whose reason is remembered.
pub(crate) const MEMPOOL_REASONS_MAX: usize = 4_096;

/// Most blocks whose arrival is remembered.
pub(crate) const HELD_BLOCKS_MAX: usize = 1_024;
/// Longest delay that consensus allows the network.
pub(crate) const NETWORK_DELAY_MAX: Duration = Duration::from_millis(250);
/// How far a header's time may be ahead of a voter's clock before the vote waits.
pub(crate) const CLOCK_DRIFT_MAX: Duration = Duration::from_millis(500);
/// Items in one file of an archive; fixed for the life of the data.
pub(crate) const ARCHIVE_ITEMS_PER_SECTION: NonZeroU64 = NZU64!(65_536);
/// Most queries of one chain that wait for an answer.
pub(crate) const QUERIES_MAX: usize = 1_024;

// A block must be able to carry any transaction that may stand in one.
const _: () = assert!(TRANSACTION_BYTES_MAX <= BLOCK_BYTES_MAX / BLOCK_FREE_PART);
// What is free is never evicted, so it must leave room for what pays.
const _: () = assert!(MEMPOOL_FREE_MAX * TRANSACTION_BYTES_MAX <= MEMPOOL_BYTES_MAX / 2);
const _: () = assert!(MEMPOOL_ACCOUNT_MAX <= MEMPOOL_TRANSACTIONS);
const _: () = assert!(BLOCK_BYTES_MAX <= MEMPOOL_BYTES_MAX);
