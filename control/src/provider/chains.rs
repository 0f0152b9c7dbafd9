//! What is settlement's to say, passed on to whoever asks.

use topnet_account::{Address, ChannelId, Hash};
use topnet_api::{
    AccountView, ApiError, BatchView, BlockSummary, BlockView, ChainName, ChainParameters,
    ChainReport, ChainTip, ChannelView, ClaimReport, DayEarnings, HandoverStatus, HexBytes,
    HistoryEntry, HistoryPlace, HostedService, MarketOffer, NewService, PaidClaim, RecoverySubject,
    ServiceView, SettlementClient, StateProof, StateSubject, SubmittedTransaction,
    TransactionStatus,
};

use super::Provider;

impl Provider {
    /// Hands a signed transaction to a chain.
    pub async fn submit(
        &self,
        chain: ChainName,
        transaction: HexBytes,
    ) -> Result<SubmittedTransaction, ApiError> {
        let ask = |client: SettlementClient, context| {
            let (chain, bytes) = (chain.clone(), transaction.0.clone());
            async move { client.submit(context, chain, bytes).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// What became of a transaction.
    pub async fn transaction(
        &self,
        chain: ChainName,
        id: Hash,
    ) -> Result<TransactionStatus, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.transaction(context, chain, id).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// An account on a chain.
    pub async fn account(
        &self,
        chain: ChainName,
        address: Address,
    ) -> Result<AccountView, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.account(context, chain, address).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// A channel on its chain.
    pub async fn channel(&self, id: ChannelId) -> Result<ChannelView, ApiError> {
        let ask =
            |client: SettlementClient, context| async move { client.channel(context, id).await };
        self.processes.settlement.ask(ask).await?
    }

    /// The channels that an account pays or is paid by, in the order of their ids: those behind
    /// `after`, as many as settlement gives at once.
    pub async fn channels_of(
        &self,
        party: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        let ask = |client: SettlementClient, context| async move {
            client.channels(context, party, after).await
        };
        self.processes.settlement.ask(ask).await?
    }

    /// The channels that pay `payee` and are about to end without its doing, in the same way.
    pub async fn closing_of(
        &self,
        payee: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        let ask = |client: SettlementClient, context| async move {
            client.closing(context, payee, after).await
        };
        self.processes.settlement.ask(ask).await?
    }

    /// The final block at a height.
    pub async fn block(&self, chain: ChainName, height: u64) -> Result<BlockView, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.block(context, chain, height).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// Final blocks in a row, as many as settlement gives at once.
    pub async fn blocks(
        &self,
        chain: ChainName,
        from: Option<u64>,
        to: Option<u64>,
    ) -> Result<Vec<BlockSummary>, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.blocks(context, chain, from, to).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// What happened to an account on a chain, the newest first, as much as settlement gives at
    /// once.
    pub async fn history(
        &self,
        chain: ChainName,
        account: Address,
        before: Option<HistoryPlace>,
    ) -> Result<Vec<HistoryEntry>, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.history(context, chain, account, before).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// Batches that a service has cut, from the one with this number on, as many as settlement
    /// gives at once.
    pub async fn batches(&self, chain: ChainName, from: u64) -> Result<Vec<BatchView>, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.batches(context, chain, from).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// The newest final block, as soon as it is above `height`; after some seconds whatever it is.
    pub async fn tip_above(&self, chain: ChainName, height: u64) -> Result<ChainTip, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.tip_above(context, chain, height).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// Claims that were paid on a channel, from the block at `height` on.
    pub async fn paid_claims(
        &self,
        id: ChannelId,
        height: u64,
    ) -> Result<Vec<PaidClaim>, ApiError> {
        let ask = |client: SettlementClient, context| async move {
            client.paid_claims(context, id, height).await
        };
        self.processes.settlement.ask(ask).await?
    }

    /// What this provider earned, by day, from the day that `from_ms` is in.
    pub async fn earnings(&self, from_ms: u64) -> Result<Vec<DayEarnings>, ApiError> {
        let payee = self.payee().await?;
        let ask = |client: SettlementClient, context| async move {
            client.earnings(context, payee, from_ms).await
        };
        self.processes.settlement.ask(ask).await?
    }

    /// Proves what stands in a chain's state.
    pub async fn prove(
        &self,
        chain: ChainName,
        subject: StateSubject,
    ) -> Result<StateProof, ApiError> {
        let ask = |client: SettlementClient, context| {
            let (chain, subject) = (chain.clone(), subject.clone());
            async move { client.prove(context, chain, subject).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// The service chains of this place.
    pub async fn services(&self) -> Result<Vec<HostedService>, ApiError> {
        let ask = |client: SettlementClient, context| async move { client.services(context).await };
        self.processes.settlement.ask(ask).await?
    }

    /// Makes a service chain, runs it and has it registered on main.
    pub async fn create_service(&self, new: NewService) -> Result<(), ApiError> {
        let ask = |client: SettlementClient, context| {
            let new = new.clone();
            async move { client.create_service(context, new).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// Stops a service chain until it is started again.
    pub async fn stop_service(&self, chain: ChainName) -> Result<(), ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.stop_service(context, chain).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// Starts a service chain that was stopped.
    pub async fn start_service(&self, chain: ChainName) -> Result<(), ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.start_service(context, chain).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// What is offered on main for a service, as much as settlement gives at once.
    pub async fn market(
        &self,
        chain: ChainName,
        after: Option<Address>,
    ) -> Result<Vec<MarketOffer>, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.market(context, chain, after).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// Publishes on main what this provider offers.
    pub async fn publish_offer(&self) -> Result<Option<SubmittedTransaction>, ApiError> {
        let offer = self.new_offer().await?;
        let ask = |client: SettlementClient, context| {
            let offer = offer.clone();
            async move { client.publish_offer(context, offer).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// Takes from main what this provider offers.
    pub async fn retract_offer(&self) -> Result<Option<SubmittedTransaction>, ApiError> {
        let chain = self.offered_service()?;
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.retract_offer(context, chain).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// The transaction that takes something out of a dead service.
    pub async fn recovery(
        &self,
        chain: ChainName,
        subject: RecoverySubject,
    ) -> Result<HexBytes, ApiError> {
        let ask = |client: SettlementClient, context| {
            let (chain, subject) = (chain.clone(), subject.clone());
            async move { client.recovery(context, chain, subject).await }
        };
        self.processes.settlement.ask(ask).await?.map(HexBytes)
    }

    /// What a chain starts from, as its genesis file says it.
    pub async fn genesis(&self, chain: ChainName) -> Result<String, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.genesis(context, chain).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// Claims that are held, behind `after` in the order of their channels, as many as settlement
    /// gives at once.
    pub async fn claims(&self, after: Option<ChannelId>) -> Result<Vec<ClaimReport>, ApiError> {
        let ask =
            |client: SettlementClient, context| async move { client.claims(context, after).await };
        self.processes.settlement.ask(ask).await?
    }

    /// How far towers on other machines have the claims that are held.
    pub async fn towers(&self) -> Result<Vec<HandoverStatus>, ApiError> {
        let ask = |client: SettlementClient, context| async move { client.towers(context).await };
        self.processes.settlement.ask(ask).await
    }

    /// A service as the main chain knows it.
    pub async fn service(&self, chain: ChainName) -> Result<ServiceView, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.service(context, chain).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    /// All chains, with their tips.
    pub async fn chains(&self) -> Result<Vec<ChainReport>, ApiError> {
        let mut reports = Vec::new();
        for parameters in self.chain_parameters().await? {
            let tip = self.tip(parameters.chain.clone()).await?;
            reports.push(ChainReport {
                parameters,
                height: tip.block.height,
                tip: tip.block.hash,
                time_ms: tip.time_ms,
            });
        }
        Ok(reports)
    }

    /// One chain, with its tip.
    pub async fn chain(&self, name: ChainName) -> Result<ChainReport, ApiError> {
        let chains = self.chains().await?;
        let names: Vec<String> = chains
            .iter()
            .map(|chain| chain.parameters.chain.to_string())
            .collect();
        chains
            .into_iter()
            .find(|chain| chain.parameters.chain == name)
            .ok_or_else(|| {
                ApiError::new(
                    "chain_unknown",
                    format!("there is no chain `{name}` here"),
                    format!("use one of {}", names.join(", ")),
                )
            })
    }

    /// The account that channels pay to.
    pub(crate) async fn payee(&self) -> Result<Address, ApiError> {
        if let Some(payee) = self.known.lock().await.payee {
            return Ok(payee);
        }
        let ask = |client: SettlementClient, context| async move { client.payee(context).await };
        let payee = self.processes.settlement.ask(ask).await?;
        self.known.lock().await.payee = Some(payee);
        Ok(payee)
    }

    pub(crate) async fn tip(&self, chain: ChainName) -> Result<ChainTip, ApiError> {
        let ask = |client: SettlementClient, context| {
            let chain = chain.clone();
            async move { client.tip(context, chain).await }
        };
        self.processes.settlement.ask(ask).await?
    }

    pub(super) async fn chain_parameters(&self) -> Result<Vec<ChainParameters>, ApiError> {
        let known = self.known.lock().await.chains.clone();
        if !known.is_empty() {
            return Ok(known);
        }
        let ask = |client: SettlementClient, context| async move { client.chains(context).await };
        let chains = self.processes.settlement.ask(ask).await?;
        self.known.lock().await.chains.clone_from(&chains);
        Ok(chains)
    }
}
