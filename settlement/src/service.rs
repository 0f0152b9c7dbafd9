//! Answers the other processes.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tarpc::context::Context;
use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{
    AccountView, ApiError, BatchView, BlockRef, BlockSummary, BlockView, ChainName,
    ChainParameters, ChainTip, ChannelState, ChannelView, ClaimBytes, ClaimReport, CloseProgress,
    DayEarnings, HandoverStatus, HeldClaim, HexBytes, HistoryEntry, HistoryPlace, HostedService,
    HostedState, MarketOffer, NewOffer, NewService, PaidClaim, RecoverySubject, ServiceView,
    Settlement, StateProof, StateSubject, SubmittedTransaction, TransactionStatus,
};
use topnet_chain::Standing;
use topnet_ledger::{
    Genesis,
    event::decode_events,
    genesis::Role,
    machine::Rejection,
    state::{
        self, Account, Channel, Record as _, Service as ServiceRecord, account_key, channel_key,
        name_key, subject_key,
    },
    transaction::transaction_id,
};

use crate::{
    chains::{Chains, Running},
    close::{Closer, dead_service, unavailable, unknown_channel},
    describe::describe,
    history,
    index::{Index, TransactionRecord},
    market::Market,
    registrar::Registrar,
    relay::record,
    rescue::Rescue,
    tower::Tower,
};

/// Longest wait for a block that is newer than one that the asker has.
const TIP_WAIT_MAX: Duration = Duration::from_secs(5);

/// Settlement's answers. Clones answer the same.
#[derive(Clone)]
pub struct Service {
    pub(crate) chains: Chains,
    pub(crate) index: Index,
    pub(crate) closer: Closer,
    pub(crate) tower: Tower,
    pub(crate) registrar: Registrar,
    pub(crate) market: Market,
    pub(crate) rescue: Rescue,
    pub(crate) payee: Address,
}

impl Service {
    fn indexed(&self, chain: &ChainName, id: &Hash) -> Result<Option<TransactionRecord>, ApiError> {
        self.index.transaction(chain, id).map_err(unavailable)
    }

    /// Waits until the index has all that is final now on every chain.
    async fn catch_up(&self) -> Result<(), ApiError> {
        for running in self.chains.running() {
            let caught_up = running.catch_up().await;
            // One that was stopped meanwhile has nothing to say.
            if self.chains.get(&running.name).is_ok() {
                caught_up?;
            }
        }
        Ok(())
    }

    async fn status(&self, name: &ChainName, id: Hash) -> Result<TransactionStatus, ApiError> {
        let running = self.chains.get(name)?;
        if let Some(found) = self.indexed(name, &id)? {
            return status_of(id, &found);
        }
        match running.chain.standing(&id) {
            Standing::Waiting(reason) => {
                let events = reason
                    .map(|reason| format!("waits: {reason}"))
                    .into_iter()
                    .collect();
                Ok(TransactionStatus {
                    id,
                    block: None,
                    events,
                })
            }
            Standing::Dropped(reason) => Err(refused(reason)),
            Standing::Unknown => {
                // It may have left the mempool for a block that the index has yet to see.
                running.catch_up().await?;
                if let Some(found) = self.indexed(name, &id)? {
                    return status_of(id, &found);
                }
                Err(ApiError::new(
                    "transaction_unknown",
                    format!("no transaction {id} is on chain `{name}` or waits here"),
                    "submit it again: what waits is forgotten when settlement restarts",
                ))
            }
        }
    }

    /// Channels as of the newest final blocks; one that is not there is left out.
    async fn views(&self, ids: Vec<ChannelId>) -> Result<Vec<ChannelView>, ApiError> {
        let mut by_chain: BTreeMap<ChainName, Vec<ChannelId>> = BTreeMap::new();
        for id in &ids {
            if let Some(known) = self.index.channel(id).map_err(unavailable)? {
                by_chain.entry(known.chain).or_default().push(*id);
            }
        }
        let mut views = HashMap::new();
        for (name, ids) in by_chain {
            // A chain that is stopped tells nothing of its channels.
            let Ok(running) = self.chains.get(&name) else {
                continue;
            };
            let keys = ids.iter().map(channel_key).collect();
            let state = running.chain.read(keys).await.map_err(unavailable)?;
            let accepted = self.accepted_height(&running).await?;
            for id in ids {
                if let Some(Some(value)) = state.values.get(&channel_key(&id)) {
                    let channel = Channel::from_bytes(value).map_err(unavailable)?;
                    let backed = self.backed(&id, &channel, accepted)?;
                    views.insert(id, view(&name, id, &channel, backed));
                }
            }
        }
        Ok(ids.iter().filter_map(|id| views.remove(id)).collect())
    }

    /// Height of the last state of a service that main has accepted; nothing on main itself.
    async fn accepted_height(&self, home: &Running) -> Result<Option<u64>, ApiError> {
        if let Role::Main { .. } = home.genesis.role {
            return Ok(None);
        }
        let service = self.chains.on_main(&home.chain.genesis()).await;
        let service = service.map_err(unavailable)?;
        Ok(Some(service.map_or(0, |service| service.height)))
    }

    /// What of a channel's allocation main would bring back from a dead service.
    fn backed(
        &self,
        id: &ChannelId,
        channel: &Channel,
        accepted: Option<u64>,
    ) -> Result<Amount, ApiError> {
        let Some(accepted) = accepted else {
            return Ok(channel.allocation);
        };
        let known = self.index.channel(id).map_err(unavailable)?;
        Ok(known.map_or(Amount::ZERO, |known| known.allocation_at(accepted)))
    }

    fn must_be_hosted(&self, chain: &ChainName) -> Result<(), ApiError> {
        if self.chains.hosted().contains_key(chain) {
            return Ok(());
        }
        Err(ApiError::new(
            "service_unknown",
            format!("no service `{chain}` was created here"),
            "`topnet chain list` names those that were",
        ))
    }

    /// Hash of the genesis of a service's chain, which may be stopped.
    fn service_id(&self, chain: &ChainName) -> Result<Hash, ApiError> {
        if let Some(hosted) = self.chains.hosted().get(chain) {
            return Ok(hosted.record.genesis.hash());
        }
        let running = self.chains.get(chain)?;
        match running.genesis.role {
            Role::Service { .. } => Ok(running.chain.genesis()),
            Role::Main { .. } => Err(no_service(chain)),
        }
    }

    /// Hash of the genesis of the service that has a name on main, wherever it runs.
    async fn named_on_main(&self, chain: &ChainName) -> Result<Hash, ApiError> {
        if let Ok(id) = self.service_id(chain) {
            return Ok(id);
        }
        let found = record(&self.chains.main().chain, name_key(&chain.0)).await;
        found.map_err(unavailable)?.ok_or_else(|| no_service(chain))
    }

    fn service_view(&self, name: &ChainName, id: Hash, found: &ServiceRecord) -> ServiceView {
        let rules = &self.chains.main().genesis.rules;
        ServiceView {
            chain: name.clone(),
            genesis: id,
            escrow: found.escrow,
            batches: found.inbox.next,
            waiting: found.waiting_amount,
            owner: found.owner,
            deposit: found.deposit,
            accepted_height: found.height,
            dead_from: found.dead_from(rules),
            dead: self.chains.is_dead(found),
            recovering: found.recovery.is_some(),
        }
    }
}

fn no_service(chain: &ChainName) -> ApiError {
    ApiError::new(
        "service_unknown",
        format!("main knows no service `{chain}`"),
        "name a service's chain; `topnet chain` lists them",
    )
}

fn view(chain: &ChainName, id: ChannelId, channel: &Channel, backed: Amount) -> ChannelView {
    ChannelView {
        id,
        chain: chain.clone(),
        payer: channel.payer,
        payee: channel.payee,
        signer: channel.signer,
        allocation: channel.allocation,
        backed,
        paid: channel.paid,
        close_window: channel.close_window.into(),
        expiry: channel.expiry,
        state: match channel.state {
            state::ChannelState::Open => ChannelState::Open,
            state::ChannelState::Closing { deadline } => ChannelState::Closing { deadline },
            state::ChannelState::Closed => ChannelState::Closed,
        },
    }
}

impl Settlement for Service {
    async fn chains(self, _: Context) -> Vec<ChainParameters> {
        let chains = self.chains.running();
        chains
            .iter()
            .map(|running| parameters(&running.name, &running.genesis))
            .collect()
    }

    async fn tip(self, _: Context, chain: ChainName) -> Result<ChainTip, ApiError> {
        let tip = self.chains.get(&chain)?.chain.tip();
        Ok(ChainTip {
            block: BlockRef {
                chain,
                height: tip.height(),
                hash: tip.hash,
            },
            state_root: tip.header.state_root(),
            time_ms: tip.header.time_ms(),
        })
    }

    async fn submit(
        self,
        _: Context,
        chain: ChainName,
        transaction: Vec<u8>,
    ) -> Result<SubmittedTransaction, ApiError> {
        let running = self.chains.get(&chain)?;
        let id = transaction_id(&transaction);
        if self.indexed(&chain, &id)?.is_some() {
            return Ok(SubmittedTransaction { id });
        }
        if running.halted {
            return Err(dead_service(&chain));
        }
        let Err(reason) = running.chain.submit(transaction).await else {
            return Ok(SubmittedTransaction { id });
        };
        // It may have become final before the index has it; then the state bears it out no more.
        running.catch_up().await?;
        match self.indexed(&chain, &id)? {
            Some(_) => Ok(SubmittedTransaction { id }),
            None => Err(refused(reason)),
        }
    }

    async fn transaction(
        self,
        _: Context,
        chain: ChainName,
        id: Hash,
    ) -> Result<TransactionStatus, ApiError> {
        self.status(&chain, id).await
    }

    async fn account(
        self,
        _: Context,
        chain: ChainName,
        address: Address,
    ) -> Result<AccountView, ApiError> {
        let running = self.chains.get(&chain)?;
        let account: Option<Account> = record(&running.chain, account_key(&address))
            .await
            .map_err(unavailable)?;
        let Account { nonce, balance, .. } = account.unwrap_or_default();
        Ok(AccountView {
            address,
            balance,
            nonce,
        })
    }

    async fn channel(self, _: Context, id: ChannelId) -> Result<ChannelView, ApiError> {
        let found = self.chains.channel(&id).await.map_err(unavailable)?;
        let (home, channel) = found.ok_or_else(|| unknown_channel(&id))?;
        let accepted = self.accepted_height(&home).await?;
        let backed = self.backed(&id, &channel, accepted)?;
        Ok(view(&home.name, id, &channel, backed))
    }

    async fn channels(
        self,
        _: Context,
        party: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        self.catch_up().await?;
        let ids = self.index.channels_of(&party, after.as_ref());
        self.views(ids.map_err(unavailable)?).await
    }

    async fn closing(
        self,
        _: Context,
        payee: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        self.catch_up().await?;
        let ids = self.index.closing_of(&payee, after.as_ref());
        self.views(ids.map_err(unavailable)?).await
    }

    async fn service(self, _: Context, chain: ChainName) -> Result<ServiceView, ApiError> {
        let id = self.service_id(&chain)?;
        let found = self.chains.on_main(&id).await.map_err(unavailable)?;
        let found = found.ok_or_else(|| no_service(&chain))?;
        Ok(self.service_view(&chain, id, &found))
    }

    async fn services(self, _: Context) -> Result<Vec<HostedService>, ApiError> {
        let mut services = Vec::new();
        for (chain, hosted) in self.chains.hosted() {
            let genesis = hosted.record.genesis.hash();
            let found = self.chains.on_main(&genesis).await.map_err(unavailable)?;
            let running = hosted.running;
            services.push(HostedService {
                genesis,
                state: match &running {
                    None => HostedState::Stopped,
                    Some(running) if running.halted => HostedState::Halted,
                    Some(_) => HostedState::Running,
                },
                height: running.map(|running| running.chain.tip().height()),
                on_main: found.map(|found| self.service_view(&chain, genesis, &found)),
                problem: hosted.problem,
                chain,
            });
        }
        Ok(services)
    }

    async fn create_service(self, _: Context, new: NewService) -> Result<(), ApiError> {
        self.registrar.create(new).await
    }

    async fn stop_service(self, _: Context, chain: ChainName) -> Result<(), ApiError> {
        self.must_be_hosted(&chain)?;
        self.chains.stop(&chain).await.map_err(unavailable)
    }

    async fn start_service(self, _: Context, chain: ChainName) -> Result<(), ApiError> {
        self.must_be_hosted(&chain)?;
        self.chains.resume(&chain).await.map_err(unavailable)
    }

    async fn market(
        self,
        _: Context,
        chain: ChainName,
        after: Option<Address>,
    ) -> Result<Vec<MarketOffer>, ApiError> {
        let service = self.named_on_main(&chain).await?;
        self.chains.main().catch_up().await?;
        let offers = self.index.offers(&service, after.as_ref());
        offers.map_err(unavailable)
    }

    async fn publish_offer(
        self,
        _: Context,
        offer: NewOffer,
    ) -> Result<Option<SubmittedTransaction>, ApiError> {
        let service = self.named_on_main(&offer.chain).await?;
        self.market.publish(service, offer).await
    }

    async fn retract_offer(
        self,
        _: Context,
        chain: ChainName,
    ) -> Result<Option<SubmittedTransaction>, ApiError> {
        let service = self.named_on_main(&chain).await?;
        self.market.retract(service).await
    }

    async fn recovery(
        self,
        _: Context,
        chain: ChainName,
        subject: RecoverySubject,
    ) -> Result<Vec<u8>, ApiError> {
        let running = self.chains.get(&chain)?;
        let transaction = self.rescue.prove(&running, &subject).await?;
        Ok(transaction.to_bytes())
    }

    async fn payee(self, _: Context) -> Address {
        self.payee
    }

    async fn close(
        self,
        _: Context,
        id: ChannelId,
        claim: Option<ClaimBytes>,
    ) -> Result<CloseProgress, ApiError> {
        self.closer.close(id, claim).await
    }

    async fn block(self, _: Context, chain: ChainName, height: u64) -> Result<BlockView, ApiError> {
        history::block(&self.chains.get(&chain)?, height).await
    }

    async fn blocks(
        self,
        _: Context,
        chain: ChainName,
        from: Option<u64>,
        to: Option<u64>,
    ) -> Result<Vec<BlockSummary>, ApiError> {
        history::blocks(&self.chains.get(&chain)?, from, to).await
    }

    async fn history(
        self,
        _: Context,
        chain: ChainName,
        account: Address,
        before: Option<HistoryPlace>,
    ) -> Result<Vec<HistoryEntry>, ApiError> {
        self.chains.get(&chain)?.catch_up().await?;
        let history = self.index.history(&chain, &account, before);
        history.map_err(unavailable)
    }

    async fn batches(
        self,
        _: Context,
        chain: ChainName,
        from: u64,
    ) -> Result<Vec<BatchView>, ApiError> {
        let service = self.service_id(&chain)?;
        self.catch_up().await?;
        let batches = self.index.batches(&chain, &service, from);
        batches.map_err(unavailable)
    }

    async fn tip_above(
        self,
        context: Context,
        chain: ChainName,
        height: u64,
    ) -> Result<ChainTip, ApiError> {
        let running = self.chains.get(&chain)?;
        let above = running.chain.reached(height.saturating_add(1));
        // Whoever waits asks again; a chain that stands still must not keep him.
        let _ = tokio::time::timeout(TIP_WAIT_MAX, above).await;
        self.tip(context, chain).await
    }

    async fn paid_claims(
        self,
        _: Context,
        id: ChannelId,
        height: u64,
    ) -> Result<Vec<PaidClaim>, ApiError> {
        self.catch_up().await?;
        self.index.paid_claims(&id, height).map_err(unavailable)
    }

    async fn earnings(
        self,
        _: Context,
        payee: Address,
        from_ms: u64,
    ) -> Result<Vec<DayEarnings>, ApiError> {
        self.catch_up().await?;
        self.index.earnings(&payee, from_ms).map_err(unavailable)
    }

    async fn prove(
        self,
        _: Context,
        chain: ChainName,
        subject: StateSubject,
    ) -> Result<StateProof, ApiError> {
        let running = self.chains.get(&chain)?;
        let key = subject_key(&subject, &running.genesis.role).ok_or_else(|| {
            ApiError::new(
                "subject_elsewhere",
                format!("chain `{chain}` keeps no such thing"),
                "batches are on a service's chain, services and offers on main",
            )
        })?;
        let proved = running.chain.prove_value(&key).await.map_err(unavailable)?;
        let proved = proved.ok_or_else(|| {
            ApiError::new(
                "state_absent",
                format!("nothing of that name stands in the state of `{chain}`"),
                "check the name; an account without money or orders is not kept",
            )
        })?;
        Ok(StateProof {
            chain,
            genesis: running.chain.genesis(),
            height: proved.height,
            subject,
            proof: HexBytes(proved.bytes),
        })
    }

    async fn genesis(self, _: Context, chain: ChainName) -> Result<String, ApiError> {
        let genesis = self.chains.get(&chain)?.genesis;
        serde_json::to_string(&*genesis).map_err(unavailable)
    }

    async fn hold(self, _: Context, claims: Vec<HeldClaim>) -> Result<u64, ApiError> {
        self.tower.hold(claims).await
    }

    async fn claims(
        self,
        _: Context,
        after: Option<ChannelId>,
    ) -> Result<Vec<ClaimReport>, ApiError> {
        self.catch_up().await?;
        self.tower.reports(after).await.map_err(unavailable)
    }

    async fn towers(self, _: Context) -> Vec<HandoverStatus> {
        self.tower.handover.statuses()
    }
}

fn parameters(name: &ChainName, genesis: &Genesis) -> ChainParameters {
    let rules = &genesis.rules;
    ChainParameters {
        chain: name.clone(),
        genesis: genesis.hash(),
        block_interval_ms: genesis.block_interval_ms,
        epoch_blocks: genesis.epoch_blocks,
        // A genesis whose fees overflow is refused at start.
        closing_fee: rules.fees.closing().unwrap_or(Amount::ZERO),
        close_window_min: rules.close_window_min.into(),
        allocation_min: rules.allocation_min,
    }
}

fn status_of(id: Hash, found: &TransactionRecord) -> Result<TransactionStatus, ApiError> {
    let events = decode_events(&found.events.0).map_err(unavailable)?;
    Ok(TransactionStatus {
        id,
        block: Some(found.block.clone()),
        events: events.iter().map(describe).collect(),
    })
}

fn refused(reason: Rejection) -> ApiError {
    let mend = match reason.code {
        "mempool_full" | "account_queue_full" | "evicted" => "submit it again in a few blocks",
        _ => "make a transaction that follows the chain's state, and submit that",
    };
    ApiError::new(reason.code, reason.text, mend)
}
