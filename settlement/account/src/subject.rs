use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Address, ChannelId, Hash};

/// What can be proved of a chain's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateSubject {
    /// An account.
    Account(Address),
    /// A channel; on its service's chain, or on main if it was recovered from a dead service.
    Channel(ChannelId),
    /// A batch to main by its number; on the service's chain that cut it.
    Batch(u64),
    /// A service as main knows it, by the hash of its genesis; on main.
    Service(Hash),
    /// A provider's offer for a service; on main.
    Offer {
        /// The provider.
        provider: Address,
        /// Hash of the service's genesis.
        service: Hash,
    },
}
