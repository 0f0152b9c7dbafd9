//! Answers the other processes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tarpc::context::Context;
use tokio::sync::watch;
use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{
    AccountView, ApiError, BlockRef, BlockView, ChainName, ChainParameters, ChainTip, ChannelState,
    ChannelView, ClaimBytes, ClaimReport, CloseProgress, DayEarnings, ExecutedTransaction,
    HeldClaim, HexBytes, PaidClaim, ServiceView, Settlement, StateProof, StateSubject,
    SubmittedTransaction, TransactionStatus,
};
use topnet_chain::{Chain, FinalBlock, Standing};
use topnet_ledger::{
    CodecError, Genesis,
    event::decode_events,
    genesis::Role,
    machine::{Receipt, Rejection},
    state::{
        self, Account, Channel, Record as _, Service as ServiceRecord, account_key, channel_key,
        outbox_entry_key, service_key,
    },
    transaction::transaction_id,
};

use crate::{
    close::{Closer, unavailable, unknown_channel},
    describe::describe,
    index::{Index, TransactionRecord},
    relay::record,
    tower::Tower,
};

/// Longest wait for a block that is newer than one that the asker has.
const TIP_WAIT_MAX: Duration = Duration::from_secs(5);

/// A chain that runs here.
#[derive(Clone)]
pub(crate) struct RunningChain {
    pub chain: Chain,
    pub genesis: Arc<Genesis>,
    /// Height up to which the index has it.
    pub indexed: watch::Receiver<u64>,
}

/// Settlement's answers. Clones answer the same.
#[derive(Clone)]
pub struct Service {
    pub(crate) chains: Arc<BTreeMap<ChainName, RunningChain>>,
    pub(crate) main: ChainName,
    pub(crate) service: ChainName,
    pub(crate) index: Index,
    pub(crate) closer: Closer,
    pub(crate) tower: Tower,
    pub(crate) payee: Address,
}

impl Service {
    fn chain(&self, name: &ChainName) -> Result<&RunningChain, ApiError> {
        self.chains.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.chains.keys().map(|name| name.0.as_str()).collect();
            let mend = format!("name one of {}", known.join(", "));
            ApiError::new(
                "chain_unknown",
                format!("no chain `{name}` runs here"),
                mend,
            )
        })
    }

    fn indexed(&self, chain: &ChainName, id: &Hash) -> Result<Option<TransactionRecord>, ApiError> {
        self.index.transaction(chain, id).map_err(unavailable)
    }

    /// Waits until the index has all that is final now.
    async fn catch_up(&self, running: &RunningChain) -> Result<(), ApiError> {
        let height = running.chain.tip().height();
        let mut indexed = running.indexed.clone();
        let reached = indexed.wait_for(|reached| *reached >= height).await;
        reached.map(|_| ()).map_err(unavailable)
    }

    async fn status(&self, name: &ChainName, id: Hash) -> Result<TransactionStatus, ApiError> {
        let running = self.chain(name)?;
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
                self.catch_up(running).await?;
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

    /// Channels as of the newest final block; one that is not there is left out.
    async fn views(&self, ids: Vec<ChannelId>) -> Result<Vec<ChannelView>, ApiError> {
        let running = self.chain(&self.service)?;
        let keys = ids.iter().map(channel_key).collect();
        let state = running.chain.read(keys).await.map_err(unavailable)?;
        let view = |id: ChannelId| {
            let value = state.values.get(&channel_key(&id)).cloned().flatten()?;
            Some(Channel::from_bytes(&value).map(|channel| self.view(id, &channel)))
        };
        ids.into_iter()
            .filter_map(view)
            .collect::<Result<_, _>>()
            .map_err(unavailable)
    }

    fn view(&self, id: ChannelId, channel: &Channel) -> ChannelView {
        ChannelView {
            id,
            chain: self.service.clone(),
            payer: channel.payer,
            payee: channel.payee,
            signer: channel.signer,
            allocation: channel.allocation,
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
}

impl Settlement for Service {
    async fn chains(self, _: Context) -> Vec<ChainParameters> {
        let chains = self.chains.iter();
        chains
            .map(|(name, running)| parameters(name, &running.genesis))
            .collect()
    }

    async fn tip(self, _: Context, chain: ChainName) -> Result<ChainTip, ApiError> {
        let tip = self.chain(&chain)?.chain.tip();
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
        let running = self.chain(&chain)?;
        let id = transaction_id(&transaction);
        if self.indexed(&chain, &id)?.is_some() {
            return Ok(SubmittedTransaction { id });
        }
        let Err(reason) = running.chain.submit(transaction).await else {
            return Ok(SubmittedTransaction { id });
        };
        // It may have become final before the index has it; then the state bears it out no more.
        self.catch_up(running).await?;
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
        let running = self.chain(&chain)?;
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
        let chain = &self.chain(&self.service)?.chain;
        let channel: Option<Channel> =
            record(chain, channel_key(&id)).await.map_err(unavailable)?;
        channel
            .map(|channel| self.view(id, &channel))
            .ok_or_else(|| unknown_channel(&id))
    }

    async fn channels(
        self,
        _: Context,
        party: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        self.catch_up(self.chain(&self.service)?).await?;
        let ids = self.index.channels_of(&party, after.as_ref());
        self.views(ids.map_err(unavailable)?).await
    }

    async fn closing(
        self,
        _: Context,
        payee: Address,
        after: Option<ChannelId>,
    ) -> Result<Vec<ChannelView>, ApiError> {
        self.catch_up(self.chain(&self.service)?).await?;
        let ids = self.index.closing_of(&payee, after.as_ref());
        self.views(ids.map_err(unavailable)?).await
    }

    async fn service(self, _: Context, chain: ChainName) -> Result<ServiceView, ApiError> {
        let id = self.chain(&chain)?.chain.genesis();
        let main = &self.chain(&self.main)?.chain;
        let found: Option<ServiceRecord> =
            record(main, service_key(&id)).await.map_err(unavailable)?;
        let Some(found) = found else {
            let mend = "name a service's chain; topnet_chains lists them";
            return Err(ApiError::new(
                "service_unknown",
                format!("main knows no service `{chain}`"),
                mend,
            ));
        };
        Ok(ServiceView {
            chain,
            escrow: found.escrow,
            batches: found.inbox.next,
        })
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
        let running = self.chain(&chain)?;
        let found = running.chain.block_at(height).await.map_err(unavailable)?;
        let found = found.ok_or_else(|| {
            let tip = running.chain.tip().height();
            ApiError::new(
                "block_unknown",
                format!("chain `{chain}` has no final block {height}; the newest is {tip}"),
                "name one up to the newest",
            )
        })?;
        block_view(chain, &found).map_err(unavailable)
    }

    async fn tip_above(
        self,
        context: Context,
        chain: ChainName,
        height: u64,
    ) -> Result<ChainTip, ApiError> {
        let running = self.chain(&chain)?;
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
        self.catch_up(self.chain(&self.service)?).await?;
        self.index.paid_claims(&id, height).map_err(unavailable)
    }

    async fn earnings(
        self,
        _: Context,
        payee: Address,
        from_ms: u64,
    ) -> Result<Vec<DayEarnings>, ApiError> {
        self.catch_up(self.chain(&self.service)?).await?;
        self.index.earnings(&payee, from_ms).map_err(unavailable)
    }

    async fn prove(
        self,
        _: Context,
        chain: ChainName,
        subject: StateSubject,
    ) -> Result<StateProof, ApiError> {
        let running = self.chain(&chain)?;
        let key = match (&subject, &running.genesis.role) {
            (StateSubject::Account(address), _) => account_key(address),
            (StateSubject::Channel(id), Role::Service { .. }) => channel_key(id),
            (StateSubject::Batch(seq), Role::Service { main }) => {
                outbox_entry_key(&main.genesis, *seq)
            }
            (StateSubject::Service(id), Role::Main { .. }) => service_key(id),
            (StateSubject::Channel(_) | StateSubject::Batch(_), Role::Main { .. })
            | (StateSubject::Service(_), Role::Service { .. }) => {
                return Err(ApiError::new(
                    "subject_elsewhere",
                    format!("chain `{chain}` keeps no such thing"),
                    "channels and batches are on a service's chain, services on main",
                ));
            }
        };
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
        let genesis = &self.chain(&chain)?.genesis;
        serde_json::to_string(&**genesis).map_err(unavailable)
    }

    async fn hold(self, _: Context, claims: Vec<HeldClaim>) -> Result<u64, ApiError> {
        self.tower.hold(claims).await
    }

    async fn claims(
        self,
        _: Context,
        after: Option<ChannelId>,
    ) -> Result<Vec<ClaimReport>, ApiError> {
        self.catch_up(self.chain(&self.service)?).await?;
        self.tower.reports(after).await.map_err(unavailable)
    }
}

fn block_view(chain: ChainName, block: &FinalBlock) -> Result<BlockView, CodecError> {
    let lines = |events: &[u8]| -> Result<Vec<String>, CodecError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        Ok(decode_events(events)?.iter().map(describe).collect())
    };
    let executed = |receipt: &Receipt| {
        Ok(ExecutedTransaction {
            id: receipt.id,
            events: lines(&receipt.events)?,
        })
    };
    let header = &block.header;
    Ok(BlockView {
        block: BlockRef {
            chain,
            height: header.height(),
            hash: block.hash,
        },
        parent: header.parent(),
        time_ms: header.time_ms(),
        proposer: header.proposer(),
        body_root: header.body_root(),
        state_root: header.state_root(),
        outbox: header.outbox(),
        transactions: block
            .receipts
            .iter()
            .map(executed)
            .collect::<Result<_, CodecError>>()?,
        events: lines(&block.block_events)?,
    })
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
