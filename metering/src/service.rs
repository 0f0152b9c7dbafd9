//! What other processes may ask metering, on its Unix socket.

use tarpc::context::Context;
use topnet_account::{ChannelId, PublicKey};
use topnet_api::{ApiError, ChannelStatus, FinalClaim, Metering, MeteringStatus};

use crate::{
    archive::Progress,
    event::{Ended, Event, Handle, Overview, Page},
};

/// Answers with what the keeper says.
#[derive(Clone, Debug)]
pub struct Service {
    /// The way to the keeper.
    pub handle: Handle,
    /// The key that the payment listener proves.
    pub identity: PublicKey,
    /// How the service log's archive stands.
    pub archive: Progress,
}

impl Metering for Service {
    async fn channels(self, _: Context, all: bool, after: Option<ChannelId>) -> Vec<ChannelStatus> {
        let page = Page { all, after };
        let ask = |answer| Event::Statuses { page, answer };
        self.handle.ask(ask).await.unwrap_or_default()
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
        let overview = self.handle.ask(Event::Overview).await;
        let overview = overview.unwrap_or_else(|ended| Overview {
            frozen: Some(ended.to_string()),
            ..Overview::default()
        });
        let counters = overview.counters;
        MeteringStatus {
            identity: self.identity,
            dataplane_boot: overview.boot,
            connections: overview.connections,
            channels: overview.channels,
            tokens: counters.tokens,
            refusals: counters.refusals,
            written_off_units: counters.written_off,
            records: counters.records,
            ring_waiting: overview.ring_waiting,
            commits: counters.commits,
            commit_us: overview.commit_us,
            unit_us: overview.unit_us,
            unpaid_bytes_now: overview.unpaid_bytes_now,
            unbacked: overview.unbacked,
            journal_fault: overview.journal_fault,
            frozen: overview.frozen,
            archive: self.archive.status(),
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
