//! What is told to whoever subscribed, as long as the connection lasts.
//!
//! Strangers may subscribe, so it costs little: all subscribers to a chain's blocks share one
//! question to settlement, a channel and a service's batches are looked at once a second, and
//! there are only so many subscriptions at once. Nothing queues up: whoever reads slowly is told of
//! the newest and not of all, but for batches, which are kept and so told one after the other.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jsonrpsee::{PendingSubscriptionSink, SubscriptionSink, core::SubscriptionResult};
use serde::Serialize;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    time::{MissedTickBehavior, interval},
};
use topnet_account::ChannelId;
use topnet_api::{ApiError, BatchView, ChainName, ChainTip};

use super::refused;
use crate::provider::Provider;

/// Subscriptions at once, of all connections.
const SUBSCRIPTIONS_MAX: usize = 1_024;
/// Between attempts to hear of a settlement that does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How often a channel, or a service's batches, are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What subscriptions share.
#[derive(Debug)]
pub(super) struct Subscriptions {
    places: Arc<Semaphore>,
    /// The newest final block of each chain that somebody follows.
    tips: Mutex<HashMap<ChainName, watch::Receiver<ChainTip>>>,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(SUBSCRIPTIONS_MAX)),
            tips: Mutex::default(),
        }
    }
}

impl Subscriptions {
    /// Each new final block of a chain.
    pub(super) async fn blocks(
        &self,
        provider: &Arc<Provider>,
        pending: PendingSubscriptionSink,
        chain: ChainName,
    ) -> SubscriptionResult {
        let subscribed = async {
            let place = self.place()?;
            Ok((place, self.tips(provider, chain.clone()).await?))
        };
        let (_place, mut tips) = match subscribed.await {
            Ok(subscribed) => subscribed,
            Err(error) => return refuse(pending, error).await,
        };
        let sink = pending.accept().await?;
        loop {
            let tip = tips.borrow_and_update().clone();
            if !tell(&sink, &tip).await {
                return Ok(());
            }
            tokio::select! {
                changed = tips.changed() => if changed.is_err() {
                    // Whoever told them had just found that nobody listens.
                    match self.tips(provider, chain.clone()).await {
                        Ok(others) => tips = others,
                        Err(_) => return Ok(()),
                    }
                },
                () = sink.closed() => return Ok(()),
            }
        }
    }

    /// A channel at once, and whenever it has changed.
    pub(super) async fn channel(
        &self,
        provider: &Arc<Provider>,
        pending: PendingSubscriptionSink,
        id: ChannelId,
    ) -> SubscriptionResult {
        let subscribed = async {
            let place = self.place()?;
            Ok((place, provider.channel(id).await?))
        };
        let (_place, mut view) = match subscribed.await {
            Ok(subscribed) => subscribed,
            Err(error) => return refuse(pending, error).await,
        };
        let sink = pending.accept().await?;
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if !tell(&sink, &view).await {
            return Ok(());
        }
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = sink.closed() => return Ok(()),
            }
            // A settlement that does not answer comes back.
            if let Ok(now) = provider.channel(id).await
                && now != view
            {
                view = now;
                if !tell(&sink, &view).await {
                    return Ok(());
                }
            }
        }
    }

    /// Each batch of a service that main has accepted, from number `from` on or from the next.
    pub(super) async fn batches(
        &self,
        provider: &Arc<Provider>,
        pending: PendingSubscriptionSink,
        chain: ChainName,
        from: Option<u64>,
    ) -> SubscriptionResult {
        let subscribed = async {
            let place = self.place()?;
            // What does not exist is refused, not waited for.
            let known = provider.service(chain.clone()).await?;
            Ok((place, from.unwrap_or(known.batches)))
        };
        let (_place, mut next) = match subscribed.await {
            Ok(subscribed) => subscribed,
            Err(error) => return refuse(pending, error).await,
        };
        let sink = pending.accept().await?;
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = sink.closed() => return Ok(()),
            }
            // A settlement that does not answer comes back.
            let batches = provider.batches(chain.clone(), next).await;
            let accepted = |batch: &BatchView| batch.main_block.is_some();
            for batch in batches
                .unwrap_or_default()
                .iter()
                .take_while(|b| accepted(b))
            {
                if !tell(&sink, batch).await {
                    return Ok(());
                }
                next = batch.number.saturating_add(1);
            }
        }
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            ApiError::new(
                "subscriptions_max",
                format!("{SUBSCRIPTIONS_MAX} subscriptions are taken"),
                "try again later, or ask now and then instead",
            )
        })
    }

    /// A chain's tips, as long as somebody follows them.
    async fn tips(
        &self,
        provider: &Arc<Provider>,
        chain: ChainName,
    ) -> Result<watch::Receiver<ChainTip>, ApiError> {
        let mut followed = self.tips.lock().await;
        // A follower ends when nobody listens, and leaves its last word behind.
        followed.retain(|_, tips| tips.has_changed().is_ok());
        if let Some(tips) = followed.get(&chain) {
            return Ok(tips.clone());
        }
        // What does not exist is refused, not waited for.
        let tip = provider.tip(chain.clone()).await?;
        let (teller, tips) = watch::channel(tip);
        followed.insert(chain.clone(), tips.clone());
        tokio::spawn(follow(Arc::clone(provider), chain, teller));
        Ok(tips)
    }
}

async fn follow(provider: Arc<Provider>, chain: ChainName, teller: watch::Sender<ChainTip>) {
    // One listener is the table of those that are followed.
    while teller.receiver_count() > 1 {
        let height = teller.borrow().block.height;
        match provider.tip_above(chain.clone(), height).await {
            Ok(tip) if tip.block.height > height => {
                teller.send_replace(tip);
            }
            Ok(_) => {}
            // It comes back; the subscribers see that their view grows old.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn refuse(pending: PendingSubscriptionSink, error: ApiError) -> SubscriptionResult {
    pending.reject(refused(error)).await;
    Ok(())
}

/// False if nobody listens any more.
async fn tell<T: Serialize>(sink: &SubscriptionSink, value: &T) -> bool {
    match serde_json::value::to_raw_value(value) {
        Ok(message) => sink.send(message).await.is_ok(),
        Err(_) => false,
    }
}
