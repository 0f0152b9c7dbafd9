//! The payee's closes: durable before they are submitted, submitted until they are final.

use std::sync::Arc;

use tokio::sync::Mutex;
use topnet_account::{Amount, ChannelId};
use topnet_api::{ApiError, ChainName, ClaimBytes, CloseProgress, HexBytes};
use topnet_chain::{ChainEnded, Standing};
use topnet_channel::SecretKey;
use topnet_ledger::{
    state::{Channel, ChannelState, channel_key},
    transaction::{CloseByPayee, Message as _},
};
use topnet_tower::{
    claim::{check, claim_body, malformed},
    held::Held,
};
use tracing::{info, warn};

use crate::{
    chains::{Chains, Running, unless_stopped},
    index::{CloseRecord, Index, IndexError},
    relay::record,
    settled::settled,
    start::TaskError,
};

/// Closes channels for the payee.
#[derive(Clone)]
pub(crate) struct Closer {
    pub chains: Chains,
    pub payee: Arc<SecretKey>,
    pub index: Index,
    pub held: Held,
    /// One close is signed at a time, so that a channel never has two.
    pub signing: Arc<Mutex<()>>,
}

impl Closer {
    /// Signs, keeps and submits the close of `id`, or finds the one that was kept before.
    pub(crate) async fn close(
        &self,
        id: ChannelId,
        claim: Option<ClaimBytes>,
    ) -> Result<CloseProgress, ApiError> {
        let _signing = self.signing.lock().await;
        if let Some(kept) = self.index.close(&id).map_err(unavailable)?
            && kept.refused.is_none()
            && !self.is_superseded(&id, &kept).map_err(unavailable)?
        {
            return self.progress(&id, &kept).await;
        }
        let (home, channel) = self.channel(&id).await?;
        if home.halted {
            return Err(dead_service(&home.name));
        }
        if channel.payee != self.payee.address() {
            return Err(ApiError::new(
                "not_the_payee",
                format!(
                    "channel {id} pays {}, not {}",
                    channel.payee,
                    self.payee.address()
                ),
                "close it where the payee's key is",
            ));
        }
        if channel.state == ChannelState::Closed {
            return Err(ApiError::new(
                "channel_closed",
                format!("channel {id} is closed already"),
                "look at the channel for what was paid",
            ));
        }
        let claim = self
            .best(&id, &channel, claim)?
            .map(|claim| claim_body(&id, &channel, &claim))
            .transpose()
            .map_err(|fault| malformed(&id, fault))?;
        let close = CloseByPayee { channel: id, claim };
        let transaction = close.sign(&home.chain.genesis(), &self.payee);
        let kept = CloseRecord {
            chain: home.name.clone(),
            id: transaction.id(),
            transaction: HexBytes(transaction.to_bytes()),
            refused: None,
        };
        self.keep(id, kept.clone()).await?;
        match home.chain.submit(kept.transaction.0.clone()).await {
            Ok(_) => info!(channel = %id, transaction = %kept.id, "closing"),
            Err(reason) if is_passing(reason.code) => {
                info!(channel = %id, %reason, "the close waits for room");
            }
            Err(reason) => {
                self.index.drop_close(&id).map_err(unavailable)?;
                let mend = "ask metering for the claim again";
                return Err(ApiError::new(reason.code, reason.text, mend));
            }
        }
        self.progress(&id, &kept).await
    }

    /// True if the close was for a chain that died with it: the channel has gone on on main.
    fn is_superseded(&self, id: &ChannelId, kept: &CloseRecord) -> Result<bool, IndexError> {
        let home = self.index.channel(id)?;
        Ok(home.is_some_and(|home| home.end.is_none() && home.chain != kept.chain))
    }

    /// The claim that was brought, or the one that is held if that is worth more: a metering that
    /// has lost its journal does not know what it had.
    fn best(
        &self,
        id: &ChannelId,
        channel: &Channel,
        claim: Option<ClaimBytes>,
    ) -> Result<Option<ClaimBytes>, ApiError> {
        let Some(held) = self.held.get(id).map_err(unavailable)? else {
            return Ok(claim);
        };
        let worth = match &claim {
            Some(brought) => match check(id, brought) {
                Ok((_, worth)) => worth,
                // Whoever brought it is told so when it is submitted.
                Err(_) => return Ok(claim),
            },
            None => Amount::ZERO,
        };
        let bytes = held.claim();
        // One that the chain would refuse must not stand in the way of the close.
        let stands = check(id, &bytes).is_ok_and(|(held, _)| held.is_signed_by(&channel.signer));
        if held.redeemable <= worth || !stands {
            return Ok(claim);
        }
        warn!(channel = %id, held = %held.redeemable, brought = %worth, "more is held than was brought; closing with that");
        Ok(Some(bytes))
    }

    /// Submits again what is kept and not final, for good.
    pub(crate) async fn run(self) -> Result<(), TaskError> {
        loop {
            for (id, kept) in self.index.closes()? {
                unless_stopped(self.retry(id, kept).await)?;
            }
            tokio::time::sleep(self.chains.look_interval()).await;
        }
    }

    async fn retry(&self, id: ChannelId, kept: CloseRecord) -> Result<(), TaskError> {
        if kept.refused.is_some() || self.index.transaction(&kept.chain, &kept.id)?.is_some() {
            return Ok(());
        }
        // A chain that is stopped takes it when it is started again, a dead one never.
        let running = self.chains.get(&kept.chain).ok();
        let Some(Running { chain, .. }) = running.filter(|running| !running.halted) else {
            return Ok(());
        };
        if let Standing::Waiting(_) = chain.standing(&kept.id) {
            return Ok(());
        }
        // The state knows before the index does.
        let channel: Option<Channel> = record(&chain, channel_key(&id)).await?;
        let closed = channel.is_some_and(|channel| channel.state == ChannelState::Closed);
        if closed {
            let end = self.index.channel(&id)?.and_then(|record| record.end);
            if end.is_some_and(|end| end.transaction != kept.id) {
                let refused = "the channel was closed by somebody else".to_owned();
                warn!(channel = %id, refused, "a close came too late");
                let kept = CloseRecord {
                    refused: Some(refused),
                    ..kept
                };
                self.index.keep_close(&id, &kept)?;
            }
            return Ok(());
        }
        if let Standing::Dropped(reason) = chain.standing(&kept.id) {
            warn!(channel = %id, %reason, "a close was dropped; submitting it again");
        }
        if let Err(reason) = chain.submit(kept.transaction.0).await {
            warn!(channel = %id, %reason, "a close is refused; trying again");
        }
        Ok(())
    }

    /// How far a close has come.
    async fn progress(
        &self,
        id: &ChannelId,
        kept: &CloseRecord,
    ) -> Result<CloseProgress, ApiError> {
        let mut progress = CloseProgress {
            channel: *id,
            transaction: kept.id,
            service_block: None,
            main_block: None,
            redeemed: None,
            payee_fees: None,
            refund: None,
        };
        let Some(channel) = self.index.channel(id).map_err(unavailable)? else {
            return Ok(progress);
        };
        let Some(end) = channel.end else {
            return Ok(progress);
        };
        let parties = [channel.payer, channel.payee];
        let settled = settled(&self.chains, &parties, &end.block).await;
        progress.main_block = settled.map_err(unavailable)?;
        progress.redeemed = Some(end.paid);
        progress.payee_fees = Some(channel.payee_fees);
        progress.refund = Some(end.refund);
        progress.transaction = end.transaction;
        progress.service_block = Some(end.block);
        Ok(progress)
    }

    async fn channel(&self, id: &ChannelId) -> Result<(Running, Channel), ApiError> {
        let found = self.chains.channel(id).await.map_err(unavailable)?;
        found.ok_or_else(|| unknown_channel(id))
    }

    async fn keep(&self, id: ChannelId, record: CloseRecord) -> Result<(), ApiError> {
        let index = self.index.clone();
        tokio::task::spawn_blocking(move || index.keep_close(&id, &record))
            .await
            .map_err(|_| unavailable(ChainEnded))?
            .map_err(unavailable)
    }
}

/// Refusals that say nothing about the transaction.
fn is_passing(code: &str) -> bool {
    matches!(
        code,
        "mempool_full" | "account_queue_full" | "nonce_taken" | "chain_ended"
    )
}

/// What whoever wants something of a dead service is told.
pub(crate) fn dead_service(name: &ChainName) -> ApiError {
    ApiError::new(
        "service_dead",
        format!("main holds service `{name}` dead: nothing happens on its chain any more"),
        "recover what is in it: `topnet wallet recover`",
    )
}

pub(crate) fn unknown_channel(id: &ChannelId) -> ApiError {
    let mend = "check the id; a channel that was just opened shows with its block";
    ApiError::new("channel_unknown", format!("there is no channel {id}"), mend)
}

pub(crate) fn unavailable(error: impl std::fmt::Display) -> ApiError {
    let mend = "settlement's log says more; it is started again";
    ApiError::new("settlement_unavailable", error.to_string(), mend)
}
