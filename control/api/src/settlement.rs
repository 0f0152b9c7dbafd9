//! What settlement is asked: submit, look up, close.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey, StateSubject};

use crate::{
    ApiError, BatchView, BlockSummary, BlockView, ClaimBytes, HandoverStatus, HexBytes,
    HistoryEntry, HistoryPlace, MarketOffer, NewOffer,
};

/// Which chain: `main`, or a service's.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
#[schemars(example = ChainName::main())]
pub struct ChainName(pub String);

impl ChainName {
    /// The main chain.
    pub fn main() -> Self {
        Self("main".to_owned())
    }

    /// The service chain of the VPN service.
    pub fn vpn() -> Self {
        Self("vpn".to_owned())
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ChainName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

/// A place in a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BlockRef {
    /// The chain.
    pub chain: ChainName,
    /// The height.
    pub height: u64,
    /// The block's hash.
    pub hash: Hash,
}

/// What every signer and payer must know of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChainParameters {
    /// The chain.
    pub chain: ChainName,
    /// Hash of its genesis, signed into every transaction.
    pub genesis: Hash,
    /// Milliseconds between blocks.
    pub block_interval_ms: u64,
    /// Blocks between batches.
    pub epoch_blocks: u64,
    /// Set aside beside an allocation.
    pub closing_fee: Amount,
    /// The shortest close window, in blocks.
    pub close_window_min: u64,
    /// The smallest allocation.
    pub allocation_min: Amount,
}

/// A chain's newest final block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChainTip {
    /// The block.
    pub block: BlockRef,
    /// Root of the state after it.
    pub state_root: Hash,
    /// The header's time, milliseconds since 1970, bounded by the voters' clocks.
    pub time_ms: u64,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountView {
    /// Whose.
    pub address: Address,
    /// What it has.
    pub balance: Amount,
    /// The nonce of its next transaction.
    pub nonce: u64,
}

/// Where a channel is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ChannelState {
    /// Pays.
    Open,
    /// Closed by the payer or by expiry; claims are still taken up to the deadline.
    Closing {
        /// Height after which anybody may finalise.
        deadline: u64,
    },
    /// Over.
    Closed,
}

/// A channel on its service chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChannelView {
    /// The channel.
    pub id: ChannelId,
    /// The service chain that it is on.
    pub chain: ChainName,
    /// Who pays.
    pub payer: Address,
    /// Who is paid.
    pub payee: Address,
    /// Who signs vouchers.
    pub signer: PublicKey,
    /// The most that can be redeemed.
    pub allocation: Amount,
    /// What of the allocation stands in the last state of its chain that main has accepted: so
    /// much can be redeemed also if the service dies.
    pub backed: Amount,
    /// Redeemed so far, fees included.
    pub paid: Amount,
    /// Blocks between a payer's close and finalisation.
    pub close_window: u64,
    /// Height from which anybody may close.
    pub expiry: u64,
    /// Where it is in its life.
    #[serde(flatten)]
    pub state: ChannelState,
}

/// A service as the main chain knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    /// The service chain.
    pub chain: ChainName,
    /// Hash of its genesis.
    pub genesis: Hash,
    /// Locked on main for it.
    pub escrow: Amount,
    /// Batches accepted.
    pub batches: u64,
    /// Payouts that wait on main for an epoch with room for them.
    pub waiting: Amount,
    /// Who registered it and has the deposit back; `None` if it stands in main's genesis.
    pub owner: Option<Address>,
    /// What the owner has locked.
    pub deposit: Amount,
    /// Height of the newest of its blocks that main has accepted a batch under.
    pub accepted_height: u64,
    /// The first height of main at which it is dead, if it brings no batch until then.
    pub dead_from: u64,
    /// Main holds it dead, for good.
    pub dead: bool,
    /// Somebody has begun to recover what is in it.
    pub recovering: bool,
}

/// A service chain of this place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostedService {
    /// The chain.
    pub chain: ChainName,
    /// Hash of its genesis.
    pub genesis: Hash,
    /// Whether it runs.
    pub state: HostedState,
    /// Its newest final block; `None` while it is stopped.
    pub height: Option<u64>,
    /// What main knows of it; `None` until it is registered there.
    pub on_main: Option<ServiceView>,
    /// What keeps it from being registered.
    pub problem: Option<String>,
}

/// Whether a service chain runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostedState {
    /// It makes blocks.
    Running,
    /// The operator has stopped it.
    Stopped,
    /// Main holds it dead: it makes no blocks, and answers.
    Halted,
}

/// What a new service chain is to be like; what is left out is as on the main chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewService {
    /// 1 to 32 lower-case letters, digits and dashes.
    pub chain: ChainName,
    /// Milliseconds between blocks.
    pub block_interval_ms: Option<u64>,
    /// Blocks between batches.
    pub epoch_blocks: Option<u64>,
}

/// What can be taken out of a dead service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecoverySubject {
    /// The beginning, once for each service.
    Begin,
    /// An account's balance, to the same account on main.
    Account(Address),
    /// A channel, which goes on on main, closing.
    Channel(ChannelId),
    /// A fund that was not credited, by its number, back to its funder.
    Fund(u64),
}

/// A transaction that the mempool took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubmittedTransaction {
    /// Its id.
    pub id: Hash,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TransactionStatus {
    /// Its id.
    pub id: Hash,
    /// The final block that it stands in; nothing while it waits.
    pub block: Option<BlockRef>,
    /// What it did, one line an event.
    pub events: Vec<String>,
}

/// How far a payee's close has come: accrued → submitted → closed → batched → settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CloseProgress {
    /// The channel.
    pub channel: ChannelId,
    /// The close transaction.
    pub transaction: Hash,
    /// The service chain's block that it stands in.
    pub service_block: Option<BlockRef>,
    /// The main chain's block that accepted the batch with the payout.
    pub main_block: Option<BlockRef>,
    /// Redeemed by the payee, fees included.
    pub redeemed: Option<Amount>,
    /// The payee's fees.
    pub payee_fees: Option<Amount>,
    /// Returned to the payer.
    pub refund: Option<Amount>,
}

/// A claim that was paid out, a close's included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PaidClaim {
    /// The transaction.
    pub transaction: Hash,
    /// The block that it stands in.
    pub block: BlockRef,
    /// Units that it claims in all.
    pub units: u64,
    /// Paid by it, the fee included.
    pub payout: Amount,
    /// Out of the payout.
    pub fee: Amount,
    /// Paid on the channel up to and with it.
    pub paid: Amount,
    /// Root of the service log that it names; only that of a payee's close is anybody's word.
    pub log_root: Hash,
}

/// What claims brought a payee on one day (UTC, by the blocks' clock).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DayEarnings {
    /// When the day began, milliseconds since 1970.
    pub day_ms: u64,
    /// The service's chain.
    pub chain: ChainName,
    /// Claims, closes included.
    pub claims: u64,
    /// Units that they claimed beyond those before.
    pub units: u64,
    /// Paid out, fees included.
    pub payout: Amount,
    /// The payee's fees.
    pub fees: Amount,
}

/// That something stands in the state of a chain, for whoever knows the chain's validators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StateProof {
    /// The chain's name.
    pub chain: ChainName,
    /// Hash of the chain's genesis.
    pub genesis: Hash,
    /// Height of the block whose state it is.
    pub height: u64,
    /// What is proved.
    pub subject: StateSubject,
    /// Header and certificate of the block, the value, and its way up to the state root.
    pub proof: HexBytes,
}

/// A claim that is to be made in time, whatever becomes of metering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldClaim {
    /// The channel.
    pub channel: ChannelId,
    /// The best claim on it so far.
    pub claim: ClaimBytes,
}

/// How far a claim has come.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ClaimStage {
    /// Paid for by the payer, and held here.
    Accepted,
    /// Handed to the service chain, and not final.
    Claiming,
    /// Paid out on the service chain.
    Claimed,
    /// In the payee's balance on the main chain.
    Settled,
}

/// What settlement holds of a channel, and how far it has come with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClaimReport {
    /// The channel.
    pub channel: ChannelId,
    /// How far the claim has come.
    pub stage: ClaimStage,
    /// What the best claim is worth in all.
    pub redeemable: Amount,
    /// Redeemed so far, fees included.
    pub paid: Amount,
    /// When it is claimed at the latest if nothing else happens, milliseconds since 1970.
    pub due_ms: Option<u64>,
    /// The last height at which it can be claimed, once the channel is about to end.
    pub deadline: Option<u64>,
    /// The transaction that was handed in last.
    pub transaction: Option<Hash>,
    /// The service chain's block that it stands in.
    pub service_block: Option<BlockRef>,
    /// The main chain's block from which on the payee has the money there.
    pub main_block: Option<BlockRef>,
    /// What may cost money if nobody does anything.
    pub alarm: Option<String>,
}

/// Settlement's service.
#[tarpc::service]
pub trait Settlement {
    /// The chains that run here.
    async fn chains() -> Vec<ChainParameters>;
    /// A chain's newest final block.
    async fn tip(chain: ChainName) -> Result<ChainTip, ApiError>;
    /// Hands a signed transaction to a chain's mempool. Repeating it is harmless.
    async fn submit(
        chain: ChainName,
        transaction: Vec<u8>,
    ) -> Result<SubmittedTransaction, ApiError>;
    /// What became of a transaction.
    async fn transaction(chain: ChainName, id: Hash) -> Result<TransactionStatus, ApiError>;
    /// An account as of the newest final block; one never seen has nothing.
    async fn account(chain: ChainName, address: Address) -> Result<AccountView, ApiError>;
    /// A channel as of the newest final block.
    async fn channel(id: ChannelId) -> Result<ChannelView, ApiError>;
    /// Channels by payer or payee, in the order of their ids, from behind `after` on; an answer
    /// that is empty is the last.
    async fn channels(
        party: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError>;
    /// Channels by payee that are about to end without the payee's doing, paged in the same way.
    async fn closing(
        payee: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError>;
    /// A service as the main chain knows it.
    async fn service(chain: ChainName) -> Result<ServiceView, ApiError>;
    /// The service chains of this place.
    async fn services() -> Result<Vec<HostedService>, ApiError>;
    /// Makes a service chain, runs it and registers it on main with the payee's key. Repeating it
    /// changes nothing.
    async fn create_service(new: NewService) -> Result<(), ApiError>;
    /// Stops a service chain until it is started again. Silent for too long it is dead.
    async fn stop_service(chain: ChainName) -> Result<(), ApiError>;
    /// Starts a service chain that was stopped.
    async fn start_service(chain: ChainName) -> Result<(), ApiError>;
    /// What is offered on main for a service, in the order of the providers' addresses from behind
    /// `after` on; an answer that is empty is the last.
    async fn market(chain: ChainName, after: Option<Address>)
    -> Result<Vec<MarketOffer>, ApiError>;
    /// Publishes the payee's offer on main, in the place of its last one for the service; gives
    /// the transaction. Nothing if the same stands there already.
    async fn publish_offer(offer: NewOffer) -> Result<Option<SubmittedTransaction>, ApiError>;
    /// Takes the payee's offer for a service away; gives the transaction. Nothing if there is none.
    async fn retract_offer(chain: ChainName) -> Result<Option<SubmittedTransaction>, ApiError>;
    /// The transaction that takes something out of a dead service, with its proof. Anybody may
    /// submit it on main.
    async fn recovery(chain: ChainName, subject: RecoverySubject) -> Result<Vec<u8>, ApiError>;
    /// The payee's own address, whose key settlement holds.
    async fn payee() -> Address;
    /// Signs and submits the payee's close with its last claim (`None`: nothing was owed), and
    /// submits it again until it is final. Repeating it gives the progress.
    async fn close(id: ChannelId, claim: Option<ClaimBytes>) -> Result<CloseProgress, ApiError>;
    /// Keeps claims, on disk when this returns, and makes them in time: those that are worth more
    /// than what is kept already. Gives how many were.
    async fn hold(claims: Vec<HeldClaim>) -> Result<u64, ApiError>;
    /// Claims that are held, in the order of their channels, from behind `after` on; an answer
    /// that is empty is the last.
    async fn claims(after: Option<ChannelId>) -> Result<Vec<ClaimReport>, ApiError>;
    /// How far towers on other machines have what is held.
    async fn towers() -> Vec<HandoverStatus>;
    /// Proves what stands in a chain's state. What does not stand there is refused as
    /// `state_absent`; its absence cannot be proved.
    async fn prove(chain: ChainName, subject: StateSubject) -> Result<StateProof, ApiError>;
    /// What a chain starts from, as its genesis file says it.
    async fn genesis(chain: ChainName) -> Result<String, ApiError>;
    /// The final block at a height.
    async fn block(chain: ChainName, height: u64) -> Result<BlockView, ApiError>;
    /// Final blocks from one height to another, both included, in order: at most a hundred, fewer
    /// where they are full, and always one if there is one. Without `from` or `to` the newest.
    async fn blocks(
        chain: ChainName,
        from: Option<u64>,
        to: Option<u64>,
    ) -> Result<Vec<BlockSummary>, ApiError>;
    /// What happened to an account and its channels on a chain, the newest first, before a place
    /// if one is named; an answer that is empty is the last.
    async fn history(
        chain: ChainName,
        account: Address,
        before: Option<HistoryPlace>,
    ) -> Result<Vec<HistoryEntry>, ApiError>;
    /// Batches that a service has cut, in order from the one with this number on; an answer that
    /// is empty is the last.
    async fn batches(chain: ChainName, from: u64) -> Result<Vec<BatchView>, ApiError>;
    /// The newest final block, as soon as it is above `height`; after some seconds whatever it is.
    async fn tip_above(chain: ChainName, height: u64) -> Result<ChainTip, ApiError>;
    /// Claims that were paid on a channel, from the block at `height` on; an answer that is empty
    /// is the last.
    async fn paid_claims(id: ChannelId, height: u64) -> Result<Vec<PaidClaim>, ApiError>;
    /// What a payee earned, by day, from the day that `from_ms` is in; an answer that is empty is
    /// the last.
    async fn earnings(payee: Address, from_ms: u64) -> Result<Vec<DayEarnings>, ApiError>;
}
