//! What is told to whoever subscribed, as long as the connection lasts.
//!
//! Nothing queues up: whoever reads slowly is told of the newest and not of all. How many
//! subscriptions a connection may have, and how many connections there are, the listeners say.

use std::time::Duration;

use jsonrpsee::{PendingSubscriptionSink, SubscriptionSink, core::SubscriptionResult};
use serde::Serialize;
use topnet_account::ChannelId;
use topnet_api::{ApiError, ChainName};

use super::refused;
use crate::provider::Provider;

/// Between attempts to hear of a settlement that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Each new final block of a chain.
pub(super) async fn blocks(
    provider: &Provider,
    pending: PendingSubscriptionSink,
    chain: ChainName,
) -> SubscriptionResult {
    // What does not exist is refused, not waited for.
    let tip = match provider.tip(chain.clone()).await {
        Ok(tip) => tip,
        Err(error) => return refuse(pending, error).await,
    };
    let sink = pending.accept().await?;
    let mut height = tip.block.height;
    if !tell(&sink, &tip).await {
        return Ok(());
    }
    while !sink.is_closed() {
        match provider.tip_above(chain.clone(), height).await {
            Ok(tip) if tip.block.height > height => {
                height = tip.block.height;
                if !tell(&sink, &tip).await {
                    break;
                }
            }
            Ok(_) => {}
            // It comes back; the subscriber's own chain view grows old meanwhile, and he sees that.
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
    Ok(())
}

/// A channel at once, and whenever it has changed.
pub(super) async fn channel(
    provider: &Provider,
    pending: PendingSubscriptionSink,
    id: ChannelId,
) -> SubscriptionResult {
    let mut view = match provider.channel(id).await {
        Ok(view) => view,
        Err(error) => return refuse(pending, error).await,
    };
    let sink = pending.accept().await?;
    let chain = view.chain.clone();
    let mut height = 0;
    if !tell(&sink, &view).await {
        return Ok(());
    }
    while !sink.is_closed() {
        let seen = async {
            height = provider
                .tip_above(chain.clone(), height)
                .await?
                .block
                .height;
            provider.channel(id).await
        };
        match seen.await {
            Ok(now) if now != view => {
                view = now;
                if !tell(&sink, &view).await {
                    break;
                }
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
    Ok(())
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
