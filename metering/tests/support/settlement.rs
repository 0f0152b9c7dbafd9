//! In the place of settlement: one channel, as the test wants it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use tarpc::context::Context;
use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{
    AccountView, ApiError, BatchView, BlockRef, BlockSummary, BlockView, ChainName,
    ChainParameters, ChainTip, ChannelState, ChannelView, ClaimBytes, ClaimReport, CloseProgress,
    DayEarnings, HandoverStatus, HeldClaim, HistoryEntry, HistoryPlace, HostedService, MarketOffer,
    NewOffer, NewService, PaidClaim, RecoverySubject, ServiceView, Settlement, StateProof,
    StateSubject, SubmittedTransaction, TransactionStatus,
};

use super::{CHANNEL, PAYEE, not_here, signer};

/// What the chains would say.
#[derive(Debug)]
pub struct Chain {
    /// The newest headers are old, and get no younger.
    pub stalled: AtomicBool,
    /// The last claim that was handed over, by channel.
    pub held: Mutex<BTreeMap<ChannelId, ClaimBytes>>,
    pub close_window_blocks: u64,
    pub state: Mutex<ChannelState>,
}

#[derive(Clone)]
pub(super) struct ChainService(pub(super) Arc<Chain>);

impl Settlement for ChainService {
    async fn chains(self, _: Context) -> Vec<ChainParameters> {
        let parameters = |chain| ChainParameters {
            chain,
            genesis: Hash::ZERO,
            block_interval_ms: 100,
            epoch_blocks: 10,
            closing_fee: Amount::ZERO,
            close_window_min: 1,
            allocation_min: Amount::ZERO,
        };
        vec![parameters(ChainName::main()), parameters(ChainName::vpn())]
    }

    async fn tip(self, _: Context, chain: ChainName) -> Result<ChainTip, ApiError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let stalled = self.0.stalled.load(Ordering::Relaxed);
        let time_ms = if stalled { 1 } else { now.as_millis() as u64 };
        let block = BlockRef {
            chain,
            height: 1,
            hash: Hash::ZERO,
        };
        Ok(ChainTip {
            block,
            state_root: Hash::ZERO,
            time_ms,
        })
    }

    async fn channel(self, _: Context, id: ChannelId) -> Result<ChannelView, ApiError> {
        if id != CHANNEL {
            return Err(not_here());
        }
        Ok(ChannelView {
            id,
            chain: ChainName::vpn(),
            payer: signer().address(),
            payee: PAYEE,
            signer: signer().public_key(),
            allocation: Amount::from_ntop(1_000_000),
            backed: Amount::from_ntop(1_000_000),
            paid: Amount::ZERO,
            close_window: self.0.close_window_blocks,
            expiry: u64::MAX,
            state: *self.0.state.lock().unwrap(),
        })
    }

    async fn block(self, _: Context, _: ChainName, _: u64) -> Result<BlockView, ApiError> {
        Err(not_here())
    }

    async fn blocks(
        self,
        _: Context,
        _: ChainName,
        _: Option<u64>,
        _: Option<u64>,
    ) -> Result<Vec<BlockSummary>, ApiError> {
        Err(not_here())
    }

    async fn history(
        self,
        _: Context,
        _: ChainName,
        _: Address,
        _: Option<HistoryPlace>,
    ) -> Result<Vec<HistoryEntry>, ApiError> {
        Err(not_here())
    }

    async fn batches(self, _: Context, _: ChainName, _: u64) -> Result<Vec<BatchView>, ApiError> {
        Err(not_here())
    }

    async fn tip_above(self, _: Context, _: ChainName, _: u64) -> Result<ChainTip, ApiError> {
        Err(not_here())
    }

    async fn paid_claims(
        self,
        _: Context,
        _: ChannelId,
        _: u64,
    ) -> Result<Vec<PaidClaim>, ApiError> {
        Err(not_here())
    }

    async fn earnings(self, _: Context, _: Address, _: u64) -> Result<Vec<DayEarnings>, ApiError> {
        Err(not_here())
    }

    async fn prove(
        self,
        _: Context,
        _: ChainName,
        _: StateSubject,
    ) -> Result<StateProof, ApiError> {
        Err(not_here())
    }

    async fn genesis(self, _: Context, _: ChainName) -> Result<String, ApiError> {
        Err(not_here())
    }

    async fn hold(self, _: Context, claims: Vec<HeldClaim>) -> Result<u64, ApiError> {
        let count = claims.len() as u64;
        if self.0.stalled.load(Ordering::Relaxed) {
            return Err(not_here());
        }
        let mut held = self.0.held.lock().unwrap();
        held.extend(claims.into_iter().map(|held| (held.channel, held.claim)));
        Ok(count)
    }

    async fn claims(self, _: Context, _: Option<ChannelId>) -> Result<Vec<ClaimReport>, ApiError> {
        Err(not_here())
    }

    async fn services(self, _: Context) -> Result<Vec<HostedService>, ApiError> {
        Err(not_here())
    }

    async fn create_service(self, _: Context, _: NewService) -> Result<(), ApiError> {
        Err(not_here())
    }

    async fn stop_service(self, _: Context, _: ChainName) -> Result<(), ApiError> {
        Err(not_here())
    }

    async fn start_service(self, _: Context, _: ChainName) -> Result<(), ApiError> {
        Err(not_here())
    }

    async fn market(
        self,
        _: Context,
        _: ChainName,
        _: Option<Address>,
    ) -> Result<Vec<MarketOffer>, ApiError> {
        Err(not_here())
    }

    async fn publish_offer(
        self,
        _: Context,
        _: NewOffer,
    ) -> Result<Option<SubmittedTransaction>, ApiError> {
        Err(not_here())
    }

    async fn retract_offer(
        self,
        _: Context,
        _: ChainName,
    ) -> Result<Option<SubmittedTransaction>, ApiError> {
        Err(not_here())
    }

    async fn recovery(
        self,
        _: Context,
        _: ChainName,
        _: RecoverySubject,
    ) -> Result<Vec<u8>, ApiError> {
        Err(not_here())
    }

    async fn towers(self, _: Context) -> Vec<HandoverStatus> {
        Vec::new()
    }

    async fn payee(self, _: Context) -> Address {
        PAYEE
    }

    async fn submit(
        self,
        _: Context,
        _: ChainName,
        _: Vec<u8>,
    ) -> Result<SubmittedTransaction, ApiError> {
        Err(not_here())
    }

    async fn transaction(
        self,
        _: Context,
        _: ChainName,
        _: Hash,
    ) -> Result<TransactionStatus, ApiError> {
        Err(not_here())
    }

    async fn account(self, _: Context, _: ChainName, _: Address) -> Result<AccountView, ApiError> {
        Err(not_here())
    }

    async fn closing(
        self,
        _: Context,
        _: Address,
        _: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        Ok(Vec::new())
    }

    async fn channels(
        self,
        _: Context,
        _: Address,
        _: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        Err(not_here())
    }

    async fn service(self, _: Context, _: ChainName) -> Result<ServiceView, ApiError> {
        Err(not_here())
    }

    async fn close(
        self,
        _: Context,
        _: ChannelId,
        _: Option<ClaimBytes>,
    ) -> Result<CloseProgress, ApiError> {
        Err(not_here())
    }
}
