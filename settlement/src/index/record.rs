//! The index's records, stored as JSON, and the keys that they stand under.

use serde::{Deserialize, Serialize};
use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{BlockRef, ChainName, HexBytes, HistoryPlace};

/// A transaction in a final block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransactionRecord {
    pub block: BlockRef,
    pub events: HexBytes,
}

/// A channel's parties, and what it came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChannelRecord {
    /// Where it goes on: its service's chain, or main once it was recovered.
    pub chain: ChainName,
    pub payer: Address,
    pub payee: Address,
    /// Of all claims, the payee's close included.
    pub payee_fees: Amount,
    /// Units that the claims so far were for.
    pub units: u64,
    /// Its allocation from which height of its service's chain on, in order.
    pub allocations: Vec<(u64, Amount)>,
    pub end: Option<ChannelEnd>,
}

impl ChannelRecord {
    /// Heights that are remembered, at most: what is forgotten counts as never backed, and a
    /// payer that tops up more often within one batch of the service is not worth more.
    const ALLOCATIONS_MAX: usize = 32;

    /// Takes note of an allocation that grew.
    pub(super) fn allocate(&mut self, height: u64, allocation: Amount) {
        if self.allocations.len() == Self::ALLOCATIONS_MAX {
            self.allocations.remove(0);
        }
        self.allocations.push((height, allocation));
    }

    /// The allocation as it stood at a height of the service's chain.
    pub(crate) fn allocation_at(&self, height: u64) -> Amount {
        let until = self.allocations.iter().rev().find(|(at, _)| *at <= height);
        until.map_or(Amount::ZERO, |(_, allocation)| *allocation)
    }
}

/// How a channel ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChannelEnd {
    pub transaction: Hash,
    pub block: BlockRef,
    /// Redeemed over the channel's life, fees included.
    pub paid: Amount,
    pub refund: Amount,
}

/// A batch that main accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BatchRecord {
    pub seq: u64,
    pub main_block: BlockRef,
}

/// A batch that a service has cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CutRecord {
    pub block: BlockRef,
    pub payouts: u16,
    pub total: Amount,
    pub burn: Amount,
}

/// A payout of a batch that waits on main.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WaitingRecord {
    pub account: Address,
    pub seq: u64,
}

/// A close that the payee asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CloseRecord {
    /// The chain that it was signed for.
    pub chain: ChainName,
    pub id: Hash,
    pub transaction: HexBytes,
    /// Why it can never stand, once that is known.
    pub refused: Option<String>,
}

/// What claims brought a payee on one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DayRecord {
    pub claims: u64,
    pub units: u64,
    pub payout: Amount,
    pub fees: Amount,
}

/// By channel, then in the order of blocks, then of the block's claims on it.
pub(super) fn claimed_key(channel: &ChannelId, height: u64, place: u32) -> Vec<u8> {
    [
        channel.as_ref(),
        &height.to_be_bytes()[..],
        &place.to_be_bytes(),
    ]
    .concat()
}

/// By payee, then by day, then by chain.
pub(super) fn day_key(payee: &Address, day_ms: u64, chain: &ChainName) -> Vec<u8> {
    [
        &payee.as_bytes()[..],
        &day_ms.to_be_bytes(),
        chain.0.as_bytes(),
    ]
    .concat()
}

pub(super) fn cursor_key(chain: &ChainName) -> Vec<u8> {
    [b"cursor/", chain.0.as_bytes()].concat()
}

pub(super) fn transaction_key(chain: &ChainName, id: &Hash) -> Vec<u8> {
    [&chain_prefix(chain)[..], id.as_ref()].concat()
}

pub(super) fn outbox_key(chain: &ChainName, commitment: &Hash) -> Vec<u8> {
    [&chain_prefix(chain)[..], commitment.as_ref()].concat()
}

pub(super) fn party_key(party: &Address, channel: &ChannelId) -> Vec<u8> {
    [&party.as_bytes()[..], channel.as_ref()].concat()
}

/// By service, then by the height at which it was cut.
pub(super) fn batch_key(service: &Hash, height: u64) -> Vec<u8> {
    [service.as_ref(), &height.to_be_bytes()[..]].concat()
}

/// By the service's chain, then by number.
pub(super) fn cut_key(chain: &ChainName, number: u64) -> Vec<u8> {
    [&chain_prefix(chain)[..], &number.to_be_bytes()].concat()
}

/// By account and chain, then the newest first.
pub(super) fn history_key(account: &Address, chain: &ChainName, place: HistoryPlace) -> Vec<u8> {
    [
        &history_prefix(account, chain)[..],
        &(!place.height).to_be_bytes(),
        &(!place.index).to_be_bytes(),
    ]
    .concat()
}

pub(super) fn history_prefix(account: &Address, chain: &ChainName) -> Vec<u8> {
    [&account.as_bytes()[..], &chain_prefix(chain)].concat()
}

/// No chain's name has a slash in it, so none begins like another's.
pub(super) fn chain_prefix(chain: &ChainName) -> Vec<u8> {
    [chain.0.as_bytes(), b"/"].concat()
}

/// By service and account, then by batch.
pub(super) fn payout_key(service: &Hash, account: &Address, seq: u64) -> Vec<u8> {
    [
        service.as_ref(),
        &account.as_bytes()[..],
        &seq.to_be_bytes(),
    ]
    .concat()
}

/// By service, then by place in its queue on main.
pub(super) fn waiting_key(service: &Hash, place: u64) -> Vec<u8> {
    [b"waiting/", service.as_ref(), &place.to_be_bytes()[..]].concat()
}

/// By chain, then by where its outbox to `destination` stands.
pub(super) fn heads_key(chain: &ChainName, destination: &Hash, next: u64) -> Vec<u8> {
    [
        &chain_prefix(chain)[..],
        destination.as_ref(),
        &next.to_be_bytes(),
    ]
    .concat()
}

/// A chain's genesis.
pub(super) fn genesis_key(chain: &ChainName) -> Vec<u8> {
    [b"genesis/", chain.0.as_bytes()].concat()
}

/// Where a chain's outboxes stand after the blocks that were taken in.
pub(super) fn outboxes_key(chain: &ChainName) -> Vec<u8> {
    [b"outboxes/", chain.0.as_bytes()].concat()
}

/// By service, then by provider.
pub(super) fn market_key(service: &Hash, provider: &Address) -> Vec<u8> {
    [service.as_ref(), &provider.as_bytes()[..]].concat()
}

/// Who has a service's deposit back.
pub(super) fn owner_key(service: &Hash) -> Vec<u8> {
    [b"owner/", service.as_ref()].concat()
}
