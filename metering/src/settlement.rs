//! How the chains reach the books: a task that asks settlement, again and again.

use std::{path::Path, path::PathBuf, sync::Arc, time::Duration};

use tarpc::{client::RpcError, context};
use tokio::{
    sync::{Mutex, Semaphore},
    time::{MissedTickBehavior, interval},
};
use topnet_account::{Address, ChannelId};
use topnet_api::{
    ApiError, ChainName, ChainTip, ChannelView, ConnectError, HeldClaim, SettlementClient,
    SocketName, connect,
};
use topnet_books::Tips;
use tracing::{debug, info, warn};

use crate::event::{Ended, Event, Handle};

/// How often the newest final headers are asked for. Short close windows need it often.
const TIPS_INTERVAL: Duration = Duration::from_millis(100);
/// How often the channels in use are looked at.
const CHANNELS_INTERVAL: Duration = Duration::from_millis(500);
/// Between attempts to reach a settlement that does not answer.
const RETRY: Duration = Duration::from_millis(200);
/// The same before it has answered for the first time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How often claims that have grown are handed over, and how many at a time. With more channels
/// in use each has its turn.
const CLAIMS_INTERVAL: Duration = Duration::from_secs(1);
const CLAIMS_MAX: usize = 2_000;
/// Look-ups of unknown channels at once; more wait.
const LOOK_UPS_MAX: usize = 16;

/// Why settlement gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It is not there.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It went away, or took too long.
    #[error("settlement does not answer: {0}")]
    Rpc(#[from] RpcError),
    /// It answers that it cannot be.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

/// The way to settlement, made anew when it breaks.
#[derive(Clone, Debug)]
pub struct LookUp {
    path: PathBuf,
    client: Arc<Mutex<Option<SettlementClient>>>,
    look_ups: Arc<Semaphore>,
}

impl LookUp {
    /// The way to the settlement whose socket is below `runtime_dir`.
    pub fn below(runtime_dir: &Path) -> Self {
        Self {
            path: SocketName::Settlement.below(runtime_dir),
            client: Arc::default(),
            look_ups: Arc::new(Semaphore::new(LOOK_UPS_MAX)),
        }
    }

    /// A channel as of its chain's newest final block.
    pub async fn channel(&self, channel: ChannelId) -> Result<ChannelView, AskError> {
        let _place = self.look_ups.acquire().await;
        let client = self.client().await?;
        let answer = client.channel(context::current(), channel).await;
        Ok(self.heard(answer).await??)
    }

    /// Whom channels pay.
    pub async fn payee(&self) -> Result<Address, AskError> {
        let client = self.client().await?;
        let answer = client.payee(context::current()).await;
        self.heard(answer).await
    }

    /// A chain's pace.
    async fn block_interval_ms(&self, chain: &ChainName) -> Result<u64, AskError> {
        let client = self.client().await?;
        let answer = client.chains(context::current()).await;
        let chains = self.heard(answer).await?;
        let found = chains.iter().find(|parameters| parameters.chain == *chain);
        found
            .map(|parameters| parameters.block_interval_ms)
            .ok_or_else(|| {
                AskError::Refused(ApiError::new(
                    "chain_unknown",
                    format!("settlement runs no chain {chain}"),
                    "name a service that it has in [metering] service",
                ))
            })
    }

    /// Has settlement hold claims; they are on its disk when this returns.
    async fn hold(&self, claims: Vec<HeldClaim>) -> Result<u64, AskError> {
        let client = self.client().await?;
        let answer = client.hold(context::current(), claims).await;
        Ok(self.heard(answer).await??)
    }

    async fn tip(&self, chain: ChainName) -> Result<ChainTip, AskError> {
        let client = self.client().await?;
        let answer = client.tip(context::current(), chain).await;
        Ok(self.heard(answer).await??)
    }

    async fn client(&self) -> Result<SettlementClient, AskError> {
        let mut client = self.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let transport = connect(&self.path).await?;
        let new = SettlementClient::new(tarpc::client::Config::default(), transport).spawn();
        Ok(client.insert(new).clone())
    }

    /// Forgets a client that broke.
    async fn heard<T>(&self, answer: Result<T, RpcError>) -> Result<T, AskError> {
        if answer.is_err() {
            *self.client.lock().await = None;
        }
        Ok(answer?)
    }
}

/// Tells the keeper whom channels pay, and the newest final headers, until metering ends. What settlement does not
/// say grows old by itself, and freezes.
pub async fn watch_chains(handle: Handle, chain: LookUp, service: ChainName) -> Result<(), Ended> {
    let mut ticks = interval(TIPS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut block_interval_ms = None;
    let payee = loop {
        match chain.payee().await {
            Ok(payee) => break payee,
            Err(error) => info!(%error, "waiting for settlement"),
        }
        tokio::time::sleep(FIRST_RETRY).await;
    };
    handle.tell(Event::Payee(payee)).await?;
    loop {
        ticks.tick().await;
        match tips(&chain, &service, &mut block_interval_ms).await {
            Ok(tips) => handle.tell(Event::Tips(tips)).await?,
            Err(error) => {
                debug!(%error, "no tips");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn tips(
    chain: &LookUp,
    service: &ChainName,
    block_interval_ms: &mut Option<u64>,
) -> Result<Tips, AskError> {
    let interval_ms = match *block_interval_ms {
        Some(interval_ms) => interval_ms,
        None => *block_interval_ms.insert(chain.block_interval_ms(service).await?),
    };
    let tip = chain.tip(service.clone()).await?;
    Ok(Tips {
        service_height: tip.block.height,
        service_time_ms: tip.time_ms,
        main_time_ms: chain.tip(ChainName::main()).await?.time_ms,
        block_interval_ms: interval_ms,
    })
}

/// Hands claims that have grown to settlement, until metering ends: it makes them in time if
/// metering or its disk is gone.
pub async fn hand_over_claims(handle: Handle, chain: LookUp) -> Result<(), Ended> {
    let mut ticks = interval(CLAIMS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = false;
    loop {
        ticks.tick().await;
        let claims = handle
            .ask(|answer| Event::Claims(CLAIMS_MAX, answer))
            .await?;
        if claims.is_empty() {
            continue;
        }
        let channels: Vec<ChannelId> = claims.iter().map(|claim| claim.channel).collect();
        let held = chain.hold(claims).await;
        if let Err(error) = &held {
            handle.tell(Event::ClaimsLost(channels)).await?;
            if !trouble {
                warn!(%error, "claims cannot be handed over; trying again");
            }
            tokio::time::sleep(FIRST_RETRY).await;
        }
        trouble = held.is_err();
    }
}

/// Tells the keeper what the chain says of the channels in use, until metering ends.
pub async fn watch_channels(handle: Handle, chain: LookUp) -> Result<(), Ended> {
    let mut ticks = interval(CHANNELS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for channel in handle.ask(Event::Active).await? {
            match chain.channel(channel).await {
                Ok(view) => handle.tell(Event::Channel(Box::new(view))).await?,
                Err(error) => debug!(%channel, %error, "no news of the channel"),
            }
        }
    }
}
