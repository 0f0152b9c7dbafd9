//! Lends subscribers public addresses and ports: carrier-grade NAT44 (RFC 6888) as a state
//! machine without clock, socket, thread or randomness of its own.
//!
//! A *subscriber* is whoever sits behind one tunnel. It gets one address of the pool (paired
//! pooling) and ports on it in *blocks*; only a block that is lent or given back is logged. A
//! *mapping* lends one external port to one inner address and port, whoever the remote is. A
//! *flow* is what a mapping has to do with one remote: it lets that remote's packets in and
//! keeps the time. A mapping lives as long as one of its flows; a block stays with its
//! subscriber for a while after its last mapping.
//!
//! | question | module |
//! |---|---|
//! | what can be set, and within which limits | [`config`] |
//! | how a packet is judged and rewritten | [`Nat44`] |
//! | why a packet was refused | [`Refusal`] |
//! | what nobody can take from a subscriber | [`Limits::sure_flows`], [`Limits::sure_mappings`] |
//! | how a subscriber leaves | [`Nat44::remove`], then [`Nat44::sweep`] |
//! | which TCP packet leads where | `tcp` |
//! | what is logged | [`BlockEvent`] |
//! | what stands in the tables | [`Counters`], [`SubscriberStatus`], [`MappingStatus`] |
//! | which of several NATs a packet is for | [`Whose`] |
//! | how the state outlives the process | [`Nat44::snapshot`], [`Nat44::restore`] |
//!
//! Left to others: whether a packet's source may send at all, header checksums of what arrives,
//! the time to live, routing, how many mappings a subscriber may begin in a second, and
//! answering refused packets (a refused inbound SYN is silent, as RFC 5382 REQ-4 a allows).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chains;
pub mod config;
mod events;
mod flows;
mod fragments;
mod hash;
mod hosts;
mod icmp;
mod inward;
mod leaving;
mod mappings;
mod nat;
mod outward;
mod packet;
mod part;
mod pool;
mod refusal;
mod restore;
mod share;
mod snapshot;
mod status;
mod subscribers;
mod tcp;

pub use config::{Config, ConfigError, Filtering, Limits, PoolPart, Timeouts};
pub use events::{BlockEvent, BlockEventKind};
pub use nat::Nat44;
pub use outward::Outward;
pub use packet::Protocol;
pub use part::{FragmentId, Whose};
pub use refusal::Refusal;
pub use restore::RestoreError;
pub use status::{Counters, MappingStatus, SubscriberStatus};

/// Whoever sits behind one tunnel; the number is the caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subscriber(pub u32);
