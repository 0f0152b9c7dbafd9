//! The methods, answered by [`Provider`].

use std::sync::Arc;

use jsonrpsee::{
    PendingSubscriptionSink,
    core::{RegisterMethodError, SubscriptionResult, async_trait},
    server::Methods as MethodTable,
    types::ErrorObjectOwned,
};
use serde_json::{Map, Value};
use topnet_account::{Address, ChannelId, Hash};
use topnet_api::{
    AccountView, ApiError, BatchView, BlockSummary, BlockView, ChainName, ChainReport,
    ChannelReport, ChannelStatus, ChannelView, ClaimReport, CloseProgress, DayEarnings, HexBytes,
    HistoryEntry, HistoryPlace, HostedService, MarketOffer, NewService, Offer, PaidClaim,
    ProviderStatus, RecoverySubject, ServiceView, SessionGrant, SessionReport, SessionRequest,
    SessionStopped, StateProof, StateSubject, SubmittedTransaction, TransactionStatus,
};

use super::{
    OperatorServer, PublicServer, describe_operator, describe_public, openrpc::Description,
    refused, subscriptions::Subscriptions,
};
use crate::provider::Provider;

/// Channels in one answer.
const PAGE_MAX: usize = 1000;

/// What each listener answers.
#[derive(Clone, Debug)]
pub struct MethodTables {
    /// The operator's methods and the public ones.
    pub operator: MethodTable,
    /// The public methods.
    pub public: MethodTable,
}

impl MethodTables {
    /// Fails if two methods have one name.
    pub fn of(provider: &Arc<Provider>) -> Result<Self, RegisterMethodError> {
        let methods = Methods(Arc::clone(provider), Arc::default());
        let mut public = PublicServer::into_rpc(methods.clone());
        let mut operator = OperatorServer::into_rpc(methods);
        operator.merge(public.clone())?;

        let mut description = Description::new("topnet: methods for anybody");
        describe_public(&mut description);
        description.serve(&mut public)?;
        let mut description = Description::new("topnet: methods for the operator");
        describe_operator(&mut description);
        describe_public(&mut description);
        description.serve(&mut operator)?;
        Ok(Self {
            operator: operator.into(),
            public: public.into(),
        })
    }
}

/// Answers both kinds of method.
#[derive(Clone, Debug)]
pub(super) struct Methods(pub(super) Arc<Provider>, pub(super) Arc<Subscriptions>);

#[async_trait]
impl PublicServer for Methods {
    async fn offers(&self) -> Result<Vec<Offer>, ErrorObjectOwned> {
        let offer = self.0.offer().await.map_err(refused)?;
        Ok(vec![offer])
    }

    async fn chains(&self) -> Result<Vec<ChainReport>, ErrorObjectOwned> {
        self.0.chains().await.map_err(refused)
    }

    async fn chain(&self, chain: ChainName) -> Result<ChainReport, ErrorObjectOwned> {
        self.0.chain(chain).await.map_err(refused)
    }

    async fn submit(
        &self,
        chain: ChainName,
        transaction: HexBytes,
    ) -> Result<SubmittedTransaction, ErrorObjectOwned> {
        self.0.submit(chain, transaction).await.map_err(refused)
    }

    async fn transaction(
        &self,
        chain: ChainName,
        id: Hash,
    ) -> Result<TransactionStatus, ErrorObjectOwned> {
        self.0.transaction(chain, id).await.map_err(refused)
    }

    async fn account(
        &self,
        chain: ChainName,
        address: Address,
    ) -> Result<AccountView, ErrorObjectOwned> {
        self.0.account(chain, address).await.map_err(refused)
    }

    async fn channel(&self, id: ChannelId) -> Result<ChannelView, ErrorObjectOwned> {
        self.0.channel(id).await.map_err(refused)
    }

    async fn channels(
        &self,
        party: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ErrorObjectOwned> {
        self.0.channels_of(party, after).await.map_err(refused)
    }

    async fn service(&self, chain: ChainName) -> Result<ServiceView, ErrorObjectOwned> {
        self.0.service(chain).await.map_err(refused)
    }

    async fn block(&self, chain: ChainName, height: u64) -> Result<BlockView, ErrorObjectOwned> {
        self.0.block(chain, height).await.map_err(refused)
    }

    async fn blocks(
        &self,
        chain: ChainName,
        from_height: Option<u64>,
        to_height: Option<u64>,
    ) -> Result<Vec<BlockSummary>, ErrorObjectOwned> {
        let blocks = self.0.blocks(chain, from_height, to_height).await;
        blocks.map_err(refused)
    }

    async fn account_history(
        &self,
        chain: ChainName,
        address: Address,
        before: Option<HistoryPlace>,
    ) -> Result<Vec<HistoryEntry>, ErrorObjectOwned> {
        let history = self.0.history(chain, address, before).await;
        history.map_err(refused)
    }

    async fn batches(
        &self,
        chain: ChainName,
        from: Option<u64>,
    ) -> Result<Vec<BatchView>, ErrorObjectOwned> {
        let batches = self.0.batches(chain, from.unwrap_or(0)).await;
        batches.map_err(refused)
    }

    async fn paid_claims(
        &self,
        id: ChannelId,
        from_height: Option<u64>,
    ) -> Result<Vec<PaidClaim>, ErrorObjectOwned> {
        let claims = self.0.paid_claims(id, from_height.unwrap_or(0)).await;
        claims.map_err(refused)
    }

    async fn subscribe_blocks(
        &self,
        pending: PendingSubscriptionSink,
        chain: ChainName,
    ) -> SubscriptionResult {
        self.1.blocks(&self.0, pending, chain).await
    }

    async fn subscribe_channel(
        &self,
        pending: PendingSubscriptionSink,
        id: ChannelId,
    ) -> SubscriptionResult {
        self.1.channel(&self.0, pending, id).await
    }

    async fn subscribe_batches(
        &self,
        pending: PendingSubscriptionSink,
        chain: ChainName,
        from: Option<u64>,
    ) -> SubscriptionResult {
        self.1.batches(&self.0, pending, chain, from).await
    }

    async fn market(
        &self,
        chain: ChainName,
        after: Option<Address>,
    ) -> Result<Vec<MarketOffer>, ErrorObjectOwned> {
        self.0.market(chain, after).await.map_err(refused)
    }

    async fn recovery(
        &self,
        chain: ChainName,
        subject: RecoverySubject,
    ) -> Result<HexBytes, ErrorObjectOwned> {
        self.0.recovery(chain, subject).await.map_err(refused)
    }

    async fn prove(
        &self,
        chain: ChainName,
        subject: StateSubject,
    ) -> Result<StateProof, ErrorObjectOwned> {
        self.0.prove(chain, subject).await.map_err(refused)
    }

    async fn genesis(&self, chain: ChainName) -> Result<Map<String, Value>, ErrorObjectOwned> {
        let genesis = self.0.genesis(chain).await.map_err(refused)?;
        serde_json::from_str(&genesis).map_err(|error| {
            let mend = "settlement and control are of different versions: start the same";
            refused(ApiError::new("process_failed", error.to_string(), mend))
        })
    }

    async fn session_start(
        &self,
        request: SessionRequest,
    ) -> Result<SessionGrant, ErrorObjectOwned> {
        self.0.start_session(request).await.map_err(refused)
    }

    async fn session_stop(
        &self,
        request: SessionRequest,
    ) -> Result<SessionStopped, ErrorObjectOwned> {
        self.0.stop_session(request).await.map_err(refused)
    }
}

#[async_trait]
impl OperatorServer for Methods {
    async fn status(&self) -> Result<ProviderStatus, ErrorObjectOwned> {
        Ok(self.0.status().await)
    }

    async fn sessions(&self) -> Result<Vec<SessionReport>, ErrorObjectOwned> {
        Ok(self.0.session_reports().await)
    }

    async fn provider_channels(&self) -> Result<Vec<ChannelReport>, ErrorObjectOwned> {
        self.0.channel_reports().await.map_err(refused)
    }

    async fn live_channels(
        &self,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelStatus>, ErrorObjectOwned> {
        let page = self.0.live_channels(after, PAGE_MAX).await;
        page.map_err(refused)
    }

    async fn claims(&self, after: Option<ChannelId>) -> Result<Vec<ClaimReport>, ErrorObjectOwned> {
        self.0.claims(after).await.map_err(refused)
    }

    async fn earnings(&self, from_ms: Option<u64>) -> Result<Vec<DayEarnings>, ErrorObjectOwned> {
        let earnings = self.0.earnings(from_ms.unwrap_or(0)).await;
        earnings.map_err(refused)
    }

    async fn provider_channel(&self, id: ChannelId) -> Result<ChannelReport, ErrorObjectOwned> {
        self.0.channel_report(id).await.map_err(refused)
    }

    async fn channel_close(&self, id: ChannelId) -> Result<CloseProgress, ErrorObjectOwned> {
        self.0.close_channel(id).await.map_err(refused)
    }

    async fn offer_publish(&self) -> Result<Option<SubmittedTransaction>, ErrorObjectOwned> {
        self.0.publish_offer().await.map_err(refused)
    }

    async fn offer_retract(&self) -> Result<Option<SubmittedTransaction>, ErrorObjectOwned> {
        self.0.retract_offer().await.map_err(refused)
    }

    async fn services(&self) -> Result<Vec<HostedService>, ErrorObjectOwned> {
        self.0.services().await.map_err(refused)
    }

    async fn service_create(
        &self,
        chain: ChainName,
        block_interval_ms: Option<u64>,
        epoch_blocks: Option<u64>,
    ) -> Result<(), ErrorObjectOwned> {
        let new = NewService {
            chain,
            block_interval_ms,
            epoch_blocks,
        };
        self.0.create_service(new).await.map_err(refused)
    }

    async fn service_stop(&self, chain: ChainName) -> Result<(), ErrorObjectOwned> {
        self.0.stop_service(chain).await.map_err(refused)
    }

    async fn service_start(&self, chain: ChainName) -> Result<(), ErrorObjectOwned> {
        self.0.start_service(chain).await.map_err(refused)
    }
}
