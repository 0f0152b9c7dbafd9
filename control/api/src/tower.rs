//! What a tower is asked by those whose claims it holds, and by whoever watches it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use topnet_account::{Address, ChannelId, Hash};

use crate::ApiError;

/// What became of claims that a tower was brought. Those that are neither kept nor refused were no
/// better than what it holds or than what is paid, or pay less than a claim costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HoldReport {
    /// How many are on its disk from now on.
    pub kept: u64,
    /// Those that it does not take.
    pub refused: Vec<RefusedClaim>,
}

/// A claim that a tower does not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedClaim {
    /// The channel.
    pub channel: ChannelId,
    /// Why, and the mend.
    pub error: ApiError,
}

/// A tower at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TowerStatus {
    /// Hash of the main chain's genesis, which all that it believes rests on.
    pub main_genesis: Hash,
    /// Whose claims it holds.
    pub payees: Vec<Address>,
    /// Channels that it holds a claim for.
    pub held: u64,
    /// Of these, those whose claim is due and not yet paid.
    pub due: u64,
    /// Of these, those that may cost money if nobody does anything.
    pub alarms: u64,
    /// Where it asks and submits.
    pub nodes: Vec<NodeStatus>,
}

/// A node that a tower asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// Its RPC.
    pub url: String,
    /// When it last gave an answer that holds, milliseconds since 1970.
    pub answered_ms: Option<u64>,
    /// What was wrong when it was asked last.
    pub problem: Option<String>,
}

/// How far a tower elsewhere has what settlement holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HandoverStatus {
    /// The tower's RPC.
    pub url: String,
    /// Claims that have grown since it confirmed them last, or that it never confirmed.
    pub unconfirmed: u64,
    /// When it last confirmed any, milliseconds since 1970.
    pub confirmed_ms: Option<u64>,
    /// What was wrong when it was last brought claims.
    pub problem: Option<String>,
}
