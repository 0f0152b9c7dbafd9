//! What metering is asked: how channels stand, and the last claim of one.

use serde::{Deserialize, Serialize};
use topnet_account::{Amount, ChannelId, PublicKey};

use crate::ApiError;

/// How one channel stands with the payee.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The widest prepaid window that the payer has shown, in units.
    pub window_units_max: u64,
    /// Bytes forwarded beyond what was paid for.
    pub unpaid_bytes: u64,
    /// What the best claim is worth.
    pub redeemable: Amount,
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
}

/// What an operator sees of metering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeteringStatus {
    /// The key that the payment connection proves; it is in the offer.
    pub identity: PublicKey,
    /// Boot id of the attached data plane, if there is one.
    pub dataplane_boot: Option<String>,
    /// Payers connected.
    pub connections: u64,
    /// Tokens accepted since start.
    pub tokens: u64,
    /// Unit records drained since start.
    pub records: u64,
    /// Journal commits since start.
    pub commits: u64,
    /// True while credit is frozen for all channels, with the reason.
    pub frozen: Option<String>,
}

/// Metering's service.
#[tarpc::service]
pub trait Metering {
    /// All channels in the journal.
    async fn channels() -> Vec<ChannelStatus>;
    /// One channel; refused as `channel_unknown` if it never paid.
    async fn channel(id: ChannelId) -> Result<ChannelStatus, ApiError>;
    /// Closes credit for good, journals the last totals and gives the claim under the newest
    /// voucher that begins at or before what is owed. Repeating it gives the same answer. A
    /// channel that never paid is refused as `channel_unknown`.
    async fn finish(id: ChannelId) -> Result<FinalClaim, ApiError>;
    /// State and counters.
    async fn status() -> MeteringStatus;
}
