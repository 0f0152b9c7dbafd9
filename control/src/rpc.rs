//! JSON-RPC 2.0 over HTTP and WebSocket: the methods, and the two listeners.
//!
//! Whoever reaches the operator's listener is the operator, so it listens on loopback only,
//! and takes no request that a web page sends. The public listener has the public methods alone.
//!
//! An error's `message` says what is wrong; its `data` is an [`ApiError`]: a stable code, what,
//! and the mend. `rpc.discover` says what there is, in full; `control/README.md` has the list.

mod listeners;
mod methods;
mod openrpc;
mod subscriptions;

use jsonrpsee::{core::SubscriptionResult, proc_macros::rpc, types::ErrorObjectOwned};
use serde_json::{Map, Value};
use topnet_account::{Address, ChannelId, Hash};
use topnet_api::{
    AccountView, ApiError, BatchView, BlockSummary, BlockView, ChainName, ChainReport, ChainTip,
    ChannelReport, ChannelStatus, ChannelView, ClaimReport, CloseProgress, DayEarnings, HexBytes,
    HistoryEntry, HistoryPlace, HostedService, MarketOffer, Offer, PaidClaim, ProviderStatus,
    RecoverySubject, ServiceView, SessionGrant, SessionReport, SessionRequest, SessionStopped,
    StateProof, StateSubject, SubmittedTransaction, TransactionStatus,
};

pub use listeners::{ListenError, Listeners};
pub use methods::MethodTables;
use openrpc::described;
pub use topnet_api::REFUSED;

described! {
    fn describe_public;

    /// What anybody may ask.
    #[rpc(server, client)]
    pub trait Public {
        /// What this provider offers.
        #[method(name = "offers")]
        async fn offers(&self) -> Result<Vec<Offer>, ErrorObjectOwned>;

        /// The chains that this provider answers for, with their tips.
        #[method(name = "chains")]
        async fn chains(&self) -> Result<Vec<ChainReport>, ErrorObjectOwned>;

        /// A chain that this provider answers for, with its tip.
        #[method(name = "chain")]
        async fn chain(&self, chain: ChainName) -> Result<ChainReport, ErrorObjectOwned>;

        /// Hands a signed transaction to a chain.
        #[method(name = "submit")]
        async fn submit(
            &self,
            chain: ChainName,
            transaction: HexBytes,
        ) -> Result<SubmittedTransaction, ErrorObjectOwned>;

        /// What became of a transaction.
        #[method(name = "transaction")]
        async fn transaction(
            &self,
            chain: ChainName,
            id: Hash,
        ) -> Result<TransactionStatus, ErrorObjectOwned>;

        /// An account as of a chain's newest final block.
        #[method(name = "account")]
        async fn account(
            &self,
            chain: ChainName,
            address: Address,
        ) -> Result<AccountView, ErrorObjectOwned>;

        /// A channel as of its chain's newest final block.
        #[method(name = "channel")]
        async fn channel(&self, id: ChannelId) -> Result<ChannelView, ErrorObjectOwned>;

        /// The channels that an account pays or is paid by, in the order of their ids: those behind
        /// `after`, at most a thousand in an answer.
        #[method(name = "channels")]
        async fn channels(
            &self,
            party: Address,
            after: Option<ChannelId>,
        ) -> Result<Vec<ChannelView>, ErrorObjectOwned>;

        /// A service as the main chain knows it.
        #[method(name = "service")]
        async fn service(&self, chain: ChainName) -> Result<ServiceView, ErrorObjectOwned>;

        /// The final block at a height, with what its transactions did.
        #[method(name = "block")]
        async fn block(&self, chain: ChainName, height: u64) -> Result<BlockView, ErrorObjectOwned>;

        /// Final blocks from one height to another, both included, in order: at most a hundred in an
        /// answer, fewer where they are full. Without `from_height` or `to_height` the newest.
        #[method(name = "blocks")]
        async fn blocks(
            &self,
            chain: ChainName,
            from_height: Option<u64>,
            to_height: Option<u64>,
        ) -> Result<Vec<BlockSummary>, ErrorObjectOwned>;

        /// What happened to an account and its channels on a chain, the newest first: what comes
        /// before the place `before`, at most a hundred in an answer. What a block's proposer
        /// earns by it is left out.
        #[method(name = "account_history")]
        async fn account_history(
            &self,
            chain: ChainName,
            address: Address,
            before: Option<HistoryPlace>,
        ) -> Result<Vec<HistoryEntry>, ErrorObjectOwned>;

        /// Batches that a service has cut for main, in order: from the one with the number `from`
        /// on, at most a thousand in an answer.
        #[method(name = "batches")]
        async fn batches(
            &self,
            chain: ChainName,
            from: Option<u64>,
        ) -> Result<Vec<BatchView>, ErrorObjectOwned>;

        /// Claims that were paid on a channel, in the order of their blocks, from the one at
        /// `from_height` on, at most a thousand in an answer.
        #[method(name = "paid_claims")]
        async fn paid_claims(
            &self,
            id: ChannelId,
            from_height: Option<u64>,
        ) -> Result<Vec<PaidClaim>, ErrorObjectOwned>;

        /// Each new final block of a chain. Whoever falls behind is told of the newest.
        #[subscription(name = "subscribe_blocks" => "block_final", unsubscribe = "unsubscribe_blocks", item = ChainTip)]
        async fn subscribe_blocks(&self, chain: ChainName) -> SubscriptionResult;

        /// A channel at once, and within a second whenever its chain says something else of it.
        #[subscription(name = "subscribe_channel" => "channel_changed", unsubscribe = "unsubscribe_channel", item = ChannelView)]
        async fn subscribe_channel(&self, id: ChannelId) -> SubscriptionResult;

        /// Each batch of a service when main has accepted it, in order from the number `from` on, or
        /// from the next on; none is left out.
        #[subscription(name = "subscribe_batches" => "batch_accepted", unsubscribe = "unsubscribe_batches", item = BatchView)]
        async fn subscribe_batches(&self, chain: ChainName, from: Option<u64>) -> SubscriptionResult;

        /// What providers offer on main for a service, in the order of their addresses: those behind
        /// `after`, at most a hundred in an answer. Ask one at its `rpc_url` for all that it says.
        #[method(name = "market")]
        async fn market(
            &self,
            chain: ChainName,
            after: Option<Address>,
        ) -> Result<Vec<MarketOffer>, ErrorObjectOwned>;

        /// The transaction that takes something out of a service that main holds dead, with its
        /// proof. Anybody may submit it on main; the money goes to whom it belongs.
        #[method(name = "recovery")]
        async fn recovery(
            &self,
            chain: ChainName,
            subject: RecoverySubject,
        ) -> Result<HexBytes, ErrorObjectOwned>;

        /// Proves what stands in a chain's state, for whoever knows the chain's validators.
        #[method(name = "prove")]
        async fn prove(
            &self,
            chain: ChainName,
            subject: StateSubject,
        ) -> Result<StateProof, ErrorObjectOwned>;

        /// What a chain starts from: its rules and validators, as its genesis file says it. Its hash is
        /// the chain's id.
        #[method(name = "genesis")]
        async fn genesis(
            &self,
            chain: ChainName,
        ) -> Result<Map<String, Value>, ErrorObjectOwned>;

        /// Starts a session, with the consent of the channel's signer key.
        #[method(name = "session_start")]
        async fn session_start(
            &self,
            request: SessionRequest,
        ) -> Result<SessionGrant, ErrorObjectOwned>;

        /// Stops a session, with the consent of the channel's signer key.
        #[method(name = "session_stop")]
        async fn session_stop(
            &self,
            request: SessionRequest,
        ) -> Result<SessionStopped, ErrorObjectOwned>;
    }
}

described! {
    fn describe_operator;

    /// What only the operator may ask.
    #[rpc(server, client)]
    pub trait Operator {
        /// The provider at a glance.
        #[method(name = "status")]
        async fn status(&self) -> Result<ProviderStatus, ErrorObjectOwned>;

        /// Every session.
        #[method(name = "sessions")]
        async fn sessions(&self) -> Result<Vec<SessionReport>, ErrorObjectOwned>;

        /// Every channel that pays this provider.
        #[method(name = "provider_channels")]
        async fn provider_channels(&self) -> Result<Vec<ChannelReport>, ErrorObjectOwned>;

        /// How channels with a payer or a slot stand with metering, in the order of their ids: those
        /// behind `after`, at most a thousand in an answer.
        #[method(name = "live_channels")]
        async fn live_channels(
            &self,
            after: Option<ChannelId>,
        ) -> Result<Vec<ChannelStatus>, ErrorObjectOwned>;

        /// Claims that settlement holds and makes in time, in the order of their channels: those behind
        /// `after`, at most a thousand in an answer.
        #[method(name = "claims")]
        async fn claims(&self, after: Option<ChannelId>) -> Result<Vec<ClaimReport>, ErrorObjectOwned>;

        /// What claims brought this provider, by day (UTC) and chain, from the day that `from_ms` is
        /// in, at most a thousand in an answer.
        #[method(name = "earnings")]
        async fn earnings(&self, from_ms: Option<u64>) -> Result<Vec<DayEarnings>, ErrorObjectOwned>;

        /// A channel that pays this provider.
        #[method(name = "provider_channel")]
        async fn provider_channel(&self, id: ChannelId) -> Result<ChannelReport, ErrorObjectOwned>;

        /// Ends a channel's sessions, and closes it on its chain with its last claim. Asking again
        /// gives the progress.
        #[method(name = "channel_close")]
        async fn channel_close(&self, id: ChannelId) -> Result<CloseProgress, ErrorObjectOwned>;

        /// Publishes on main what this provider offers, in the place of what it offered before. The
        /// payee's account locks a deposit. Null if the same stands there already.
        #[method(name = "offer_publish")]
        async fn offer_publish(&self) -> Result<Option<SubmittedTransaction>, ErrorObjectOwned>;

        /// Takes this provider's offer from main; the deposit returns. Null if there is none.
        #[method(name = "offer_retract")]
        async fn offer_retract(&self) -> Result<Option<SubmittedTransaction>, ErrorObjectOwned>;

        /// The service chains of this place, running or not.
        #[method(name = "services")]
        async fn services(&self) -> Result<Vec<HostedService>, ErrorObjectOwned>;

        /// Makes a service chain, runs it and registers it on main, where the payee's account
        /// locks the deposit. Blocks and batches are as far apart as main's unless said otherwise.
        /// Repeating it changes nothing.
        #[method(name = "service_create")]
        async fn service_create(
            &self,
            chain: ChainName,
            block_interval_ms: Option<u64>,
            epoch_blocks: Option<u64>,
        ) -> Result<(), ErrorObjectOwned>;

        /// Stops a service chain until it is started again. Silent for too long it is dead.
        #[method(name = "service_stop")]
        async fn service_stop(&self, chain: ChainName) -> Result<(), ErrorObjectOwned>;

        /// Starts a service chain that was stopped.
        #[method(name = "service_start")]
        async fn service_start(&self, chain: ChainName) -> Result<(), ErrorObjectOwned>;
    }
}

fn refused(error: ApiError) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(REFUSED, error.to_string(), Some(error))
}
