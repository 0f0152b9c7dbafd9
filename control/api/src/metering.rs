//! What metering is asked: how channels stand, and the last claim of one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use topnet_account::{Amount, ChannelId, Hash, PublicKey};

use crate::ApiError;

/// How one channel stands with the payee.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChannelStatus {
    /// The channel.
    pub channel: ChannelId,
    /// Billable bytes over all slots that the channel ever had, journalled.
    pub metered_bytes: u64,
    /// The same as the tables say now: never less.
    pub usage_bytes: u64,
    /// Units begun.
    pub owed_units: u64,
    /// Units paid for by durable tokens.
    pub accepted_units: u64,
    /// Units written off.
    pub written_off_units: u64,
    /// Units paid for and not begun: the prepaid window as it is.
    pub window_units: u64,
    /// The widest that the payer has shown.
    pub window_units_max: u64,
    /// What the payer says that it has counted itself, at most; 0 before its first token.
    pub payer_bytes: u64,
    /// Bytes forwarded beyond what is paid for: the provider's exposure.
    pub unpaid_bytes_now: u64,
    /// The most that this ever was.
    pub unpaid_bytes: u64,
    /// What the best claim is worth.
    pub redeemable: Amount,
    /// What of it would be lost if the service died now: main has accepted no state yet in which
    /// the channel has so much.
    pub unbacked: Amount,
    /// `open`, `frozen`, `finished`, with the reason where there is one.
    pub state: String,
    /// Why it is frozen or refused last.
    pub reason: Option<String>,
    /// A payer is connected.
    pub connected: bool,
}

/// The last claim of a channel, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalClaim {
    /// How the channel stands, final.
    pub status: ChannelStatus,
    /// The claim in the ledger's encoding; empty where nothing is owed.
    pub claim: Option<ClaimBytes>,
}

/// A claim as it goes to the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimBytes {
    /// The signed voucher, `SignedVoucher::to_bytes`.
    pub voucher: Vec<u8>,
    /// The token's place.
    pub index: u16,
    /// The token's pre-image.
    pub preimage: [u8; 32],
    /// Root of the channel's part of the service log; zero where there is none.
    pub log_root: Hash,
}

/// What an operator sees of metering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MeteringStatus {
    /// The key that the payment connection proves; it is in the offer.
    pub identity: PublicKey,
    /// Boot id of the attached data plane, if there is one.
    pub dataplane_boot: Option<String>,
    /// Payers connected.
    pub connections: u64,
    /// Channels known, live or not.
    pub channels: u64,
    /// Tokens since start that were not refused, repeats included.
    pub tokens: u64,
    /// Payers' messages refused since start.
    pub refusals: u64,
    /// Units written off since start.
    pub written_off_units: u64,
    /// Unit records drained since start.
    pub records: u64,
    /// Unit records that wait in the rings.
    pub ring_waiting: u64,
    /// Journal commits since start.
    pub commits: u64,
    /// How long a commit takes, log and journal together.
    pub commit_us: Latency,
    /// From a unit's first byte until it is journalled.
    pub unit_us: Latency,
    /// Bytes forwarded beyond what is paid for, over all channels: the provider's exposure.
    pub unpaid_bytes_now: u64,
    /// What is redeemable and would be lost if the service died now, over all channels in use:
    /// main has accepted no state yet in which their channels have so much.
    pub unbacked: Amount,
    /// Why the journal cannot be written, while that is so. Nobody gets credit meanwhile.
    pub journal_fault: Option<String>,
    /// Why credit is frozen for all channels, while that is so.
    pub frozen: Option<String>,
    /// How the service log's archive stands.
    pub archive: ArchiveStatus,
}

/// What an operator sees of the service log's archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ArchiveStatus {
    /// Sealed segments that are not in it yet. They stay in the log's directory until they are.
    pub waiting_segments: u64,
    /// Segments that it has taken since start.
    pub archived_segments: u64,
    /// Why it takes none, while that is so. Payments go on meanwhile.
    pub problem: Option<String>,
}

/// Percentiles since start, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Latency {
    /// Half took no longer.
    pub p50: u64,
    /// 99 of 100 took no longer.
    pub p99: u64,
    /// 999 of 1000 took no longer.
    pub p999: u64,
    /// None took longer.
    pub max: u64,
    /// Of how many.
    pub count: u64,
}

/// Metering's service.
#[tarpc::service]
pub trait Metering {
    /// Channels with a payer or a slot, or `all` in the journal, in the order of their ids from
    /// behind `after` on, a page at a time; an answer that is empty is the last.
    async fn channels(all: bool, after: Option<ChannelId>) -> Vec<ChannelStatus>;
    /// One channel; refused as `channel_unknown` if it never paid.
    async fn channel(id: ChannelId) -> Result<ChannelStatus, ApiError>;
    /// Closes credit for good, journals the last totals and gives the claim under the newest
    /// voucher that begins at or before what is owed. Repeating it gives the same answer. A
    /// channel that never paid is refused as `channel_unknown`.
    async fn finish(id: ChannelId) -> Result<FinalClaim, ApiError>;
    /// State and counters.
    async fn status() -> MeteringStatus;
}
