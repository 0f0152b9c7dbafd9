//! What providers offer to everybody, as it stands on main.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use topnet_account::{Address, Amount, Hash, PublicKey};

use crate::{BlockRef, ChainName};

/// What a provider tells on main of what it offers. The whole [`Offer`](crate::Offer) is the
/// provider's own to tell, at `rpc_url`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OfferTerms {
    /// What one unit costs.
    pub unit_price: Amount,
    /// Channels that close faster are not served, in blocks of the service's chain.
    pub close_window_blocks_min: u32,
    /// The key that the payment endpoint proves to hold.
    pub payment_key: PublicKey,
    /// Host and UDP port of the payment endpoint.
    pub payment_address: String,
    /// Where the provider's RPC is.
    pub rpc_url: String,
    /// What the provider calls itself.
    pub name: String,
    /// Where it is.
    pub region: String,
}

/// An offer that stands on main.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MarketOffer {
    /// Whom a channel must pay.
    pub provider: Address,
    /// Genesis of the service's chain.
    pub service: Hash,
    /// What is offered.
    #[serde(flatten)]
    pub terms: OfferTerms,
    /// What the provider has locked with it.
    pub deposit: Amount,
    /// The block of main that it was published in last.
    pub block: BlockRef,
    /// When that was, milliseconds since 1970.
    pub time_ms: u64,
}

/// What the payee's account is to offer on main.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOffer {
    /// The service.
    pub chain: ChainName,
    /// What is offered.
    pub terms: OfferTerms,
}
