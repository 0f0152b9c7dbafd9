//! What other processes may ask metering, on its Unix socket.

use tarpc::context::Context;
use topnet_account::{ChannelId, PublicKey};
use topnet_api::{ApiError, ChannelStatus, FinalClaim, Metering, MeteringStatus};

use crate::keeper::{Ended, Event, Handle};

/// Answers with what the keeper says.
#[derive(Clone, Debug)]
pub struct Service {
    /// The way to the keeper.
    pub handle: Handle,
    /// The key that the payment listener proves.
    pub identity: PublicKey,
}

impl Metering for Service {
    async fn channels(self, _: Context) -> Vec<ChannelStatus> {
        self.handle.ask(Event::Statuses).await.unwrap_or_default()
    }

    async fn channel(self, _: Context, id: ChannelId) -> Result<ChannelStatus, ApiError> {
        let status = self.handle.ask(|answer| Event::Status(id, answer)).await;
        status.map_err(ending)?.ok_or_else(|| unknown(id))
    }

    async fn finish(self, _: Context, id: ChannelId) -> Result<FinalClaim, ApiError> {
        let claim = self.handle.ask(|answer| Event::Finish(id, answer)).await;
        claim.map_err(ending)?.ok_or_else(|| unknown(id))
    }

    async fn status(self, _: Context) -> MeteringStatus {
        let overview = self.handle.ask(Event::Overview).await.ok();
        let counters = overview
            .as_ref()
            .map(|overview| overview.counters)
            .unwrap_or_default();
        let ending = || Some(Ended.to_string());
        MeteringStatus {
            identity: self.identity,
            dataplane_boot: overview.as_ref().and_then(|overview| overview.boot.clone()),
            connections: overview.as_ref().map_or(0, |overview| overview.connections),
            tokens: counters.tokens,
            records: counters.records,
            commits: counters.commits,
            frozen: overview.map_or_else(ending, |overview| overview.frozen),
        }
    }
}

fn unknown(id: ChannelId) -> ApiError {
    ApiError::new(
        "channel_unknown",
        format!("metering knows no channel {id}: it never paid here and never had a session"),
        "check the channel's id and its payee",
    )
}

fn ending(ended: Ended) -> ApiError {
    ApiError::new("ending", ended.to_string(), "ask again when it is back")
}
