//! What an operator sees over JSON-RPC, put together from all processes.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use topnet_account::{Address, ChannelId};

use crate::{
    ApiError, ChainReport, ChannelStatus, ChannelView, CloseProgress, DropCount, HandoverStatus,
    IoStatus, MeteringStatus, NatStatus, SessionId,
};

/// The provider at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProviderStatus {
    /// The account that channels pay to; nothing while settlement does not answer.
    pub payee: Option<Address>,
    /// Every process, whether it answers and what is wrong if not.
    pub processes: Vec<ProcessReport>,
    /// The data plane's input and output, drops and records; nothing while it does not answer.
    pub dataplane: Option<DataplaneReport>,
    /// How metering stands; nothing while it does not answer.
    pub metering: Option<MeteringStatus>,
    /// Empty while settlement does not answer.
    pub chains: Vec<ChainReport>,
    /// Sessions that may have service.
    pub sessions: u64,
    /// Revision of the set of sessions, which the data plane shall reach.
    pub revision: u64,
    /// Channels whose close is under way.
    pub closing: Vec<ChannelId>,
    /// Towers on other machines that held claims are handed to; empty while settlement does not
    /// answer.
    pub towers: Vec<HandoverStatus>,
    /// Bytes forwarded beyond what was paid for, over all channels.
    pub unpaid_bytes: u64,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessReport {
    /// `dataplane`, `metering`, `settlement`, `control`.
    pub process: String,
    /// It answered just now.
    pub answers: bool,
    /// What is wrong and the mend.
    pub error: Option<ApiError>,
}

/// The data plane without its sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataplaneReport {
    /// Random name of this run.
    pub boot: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// How packets come in and go out.
    pub io: IoStatus,
    /// The last installed revision.
    pub revision: u64,
    /// All drops by reason.
    pub drops: Vec<DropCount>,
    /// Unit records that found the ring full.
    pub ring_overflows: u64,
    /// Packets that one worker received and another one's session was for.
    pub passed_packets: u64,
    /// The public addresses that clients share, if they do.
    pub nat: Option<NatStatus>,
}

/// One session: what control wants and what the data plane has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionReport {
    /// Its name.
    pub session: SessionId,
    /// The channel that pays.
    pub channel: ChannelId,
    /// Its address in the tunnel.
    pub inner_address: Ipv4Addr,
    /// Why the data plane has not installed it, if so.
    pub refused: Option<ApiError>,
    /// What the data plane counts; nothing while it is not installed there.
    pub traffic: Option<SessionTraffic>,
}

/// What the data plane knows of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionTraffic {
    /// Where its packets came from last.
    pub endpoint: Option<SocketAddr>,
    /// Billable bytes from the peer.
    pub up_bytes: u64,
    /// Billable bytes to the peer.
    pub down_bytes: u64,
    /// Bytes that passed for nothing once the credit was used up, both ways
    /// (`dataplane.rates.unpaid_bits_per_s`).
    pub given_bytes: u64,
    /// Seconds since the last completed handshake.
    pub handshake_age_s: Option<u64>,
    /// The slot.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
    /// Billable bytes of the whole slot.
    pub slot_usage_bytes: u64,
    /// The slot's limit, absolute like its usage.
    pub slot_limit_bytes: u64,
}

/// One channel as chain, metering and control see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChannelReport {
    /// The channel.
    pub channel: ChannelId,
    /// On its chain; nothing if settlement does not answer or does not know it.
    pub chain: Option<ChannelView>,
    /// With the payee; nothing if it never paid.
    pub metering: Option<ChannelStatus>,
    /// Its sessions.
    pub sessions: Vec<SessionId>,
    /// How far its close is; nothing if none was asked for.
    pub close: Option<CloseProgress>,
}
