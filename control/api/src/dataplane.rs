//! What the data plane is asked: which sessions to have, and which slots they got.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use topnet_account::ChannelId;

use crate::ApiError;

/// A WireGuard peer that may have service, paid by a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredSession {
    /// The channel that pays; all its sessions share one slot.
    pub channel: ChannelId,
    /// The peer's Curve25519 public key. Only the public half ever leaves the client.
    pub wireguard_public_key: [u8; 32],
    /// The one inner address that the peer may use.
    pub inner_address: Ipv4Addr,
}

/// Everything that the data plane shall have installed; what is not in it is removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredSessions {
    /// Rises with every change. An older set than the last is refused.
    pub revision: u64,
    /// The sessions.
    pub sessions: Vec<DesiredSession>,
}

/// One session as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledSession {
    /// The peer.
    pub wireguard_public_key: [u8; 32],
    /// The slot that its channel counts into.
    pub slot: u32,
    /// The slot's generation.
    pub generation: u32,
}

/// The answer to an installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallReport {
    /// Random name of this run of the data plane.
    pub boot: String,
    /// What stands now.
    pub installed: Vec<InstalledSession>,
    /// Sessions that found no place (no free slot yet), by peer key, with the reason. They are
    /// tried again at the next installation.
    pub refused: Vec<(Vec<u8>, ApiError)>,
}

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    /// Sessions may count into it.
    Live,
    /// Its sessions are gone and nothing counts into it any more: its totals are final. It is
    /// free again once metering has journalled them and acknowledged the generation.
    Retired,
}

/// A slot in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The channel that the slot counts for.
    pub channel: ChannelId,
    /// Index into the tables.
    pub slot: u32,
    /// Use of the slot.
    pub generation: u32,
    /// `Usage.bytes` when this generation began. A generation's bytes are Usage less this.
    pub base_bytes: u64,
    /// Where it is in its life.
    pub state: SlotState,
}

/// All slots in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignments {
    /// Random name of this run of the data plane.
    pub boot: String,
    /// The slots.
    pub slots: Vec<Assignment>,
}

/// How packets come in and go out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IoStatus {
    /// `af_xdp`.
    pub backend: String,
    /// `native-copy`, `native-zerocopy` or `generic`.
    pub mode: String,
    /// Why this one was chosen.
    pub reason: String,
    /// The data interfaces.
    pub interfaces: Vec<String>,
    /// Threads that carry packets.
    pub workers: u32,
    /// Where WireGuard is listened for; nothing: at every address of the machine.
    pub addresses: Vec<IpAddr>,
}

/// Packets dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DropCount {
    /// Stable, snake_case.
    pub reason: String,
    /// Packets since start.
    pub packets: u64,
}

/// The public addresses that clients share, and what is lent of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NatStatus {
    /// Blocks of ports, all addresses together.
    pub blocks: u32,
    /// Those that clients have.
    pub blocks_lent: u32,
    /// Those that nobody has and that are not lent again yet.
    pub blocks_resting: u32,
    /// Clients that have a block.
    pub clients: u32,
    /// Ports in use: inner ends that have one.
    pub mappings: u32,
    /// The most that there can be.
    pub mappings_max: u32,
    /// What ports in use have to do with one remote each.
    pub flows: u32,
    /// The most that there can be.
    pub flows_max: u32,
    /// Packets dropped because there was no room, or the client had its share, by reason, zero
    /// ones too. They are among all drops.
    pub refused: Vec<DropCount>,
}

/// One session's counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// The channel that pays.
    pub channel: ChannelId,
    /// The peer.
    pub wireguard_public_key: [u8; 32],
    /// Its inner address.
    pub inner_address: Ipv4Addr,
    /// Where its packets came from last.
    pub endpoint: Option<SocketAddr>,
    /// Billable bytes from the peer.
    pub up_bytes: u64,
    /// Billable bytes to the peer.
    pub down_bytes: u64,
    /// Bytes that passed for nothing once the credit was used up, both ways.
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

/// What an operator sees of the data plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataplaneStatus {
    /// Random name of this run.
    pub boot: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Packet input and output.
    pub io: IoStatus,
    /// The public key of the gateway's WireGuard end.
    pub wireguard_public_key: [u8; 32],
    /// The last installed revision.
    pub revision: u64,
    /// All drops by reason, zero ones too.
    pub drops: Vec<DropCount>,
    /// Sessions.
    pub sessions: Vec<SessionStatus>,
    /// Unit records that found the ring full. Losing one loses nothing.
    pub ring_overflows: u64,
    /// Packets that one worker received and another one's session was for.
    pub passed_packets: u64,
    /// The shared addresses, if clients share any.
    pub nat: Option<NatStatus>,
}

/// The data plane's service.
#[tarpc::service]
pub trait Dataplane {
    /// Makes exactly these sessions stand.
    async fn install(desired: DesiredSessions) -> Result<InstallReport, ApiError>;
    /// All slots in use, live and retired.
    async fn assignments() -> Assignments;
    /// Metering has journalled the last totals of a retired generation: the slot is free.
    async fn acknowledge(boot: String, slot: u32, generation: u32) -> Result<(), ApiError>;
    /// State and counters.
    async fn status() -> DataplaneStatus;
}
