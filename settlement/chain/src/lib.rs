//! Runs ledgers under BFT consensus: every chain of a process is a validator on the Commonware
//! engine, and the ledger never sees the engine.
//!
//! [`ChainRuntime`] owns the engine's thread and its storage directory; [`ChainRuntime::launch`]
//! runs a [`Machine`](topnet_ledger::machine::Machine) on it and gives a [`Chain`], the one
//! handle to submit, to follow and to read. [`EngineVerifier`] is the engine's cryptography, for
//! the ledger and for whoever checks another chain's certificates; light clients have it from
//! `topnet-light`, without the engine.
//!
//! How a block comes about: the proposer waits until the parent is old enough, takes
//! candidates from the mempool, lets the machine execute them on the parent's state and puts
//! state root and outbox into the header; the others execute the same, and vote only if they
//! come to the same. Consensus, block storage and state storage are the engine's (simplex,
//! marshal, QMDB); pace, mempool, block format and receipts are ours.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, dead_code))]

mod application;
mod block;
mod chain;
mod execute;
mod intake;
pub mod limits;
mod machine;
mod mempool;
// Wiring the engine makes the compiler generate all of it, which takes minutes. The unit tests
// are about what stands beside it; tests/chain.rs runs it.
#[cfg(not(test))]
mod node;
mod pace;
#[cfg(not(test))]
mod past;
mod receipts;
#[cfg(not(test))]
mod runtime;
mod state;

pub use chain::{Chain, ChainEnded, FinalBlock, FinalityProof, ProvedValue, StateView, Tip};
pub use mempool::Standing;
#[cfg(not(test))]
pub use past::PastState;
#[cfg(not(test))]
pub use runtime::{ChainConfig, ChainRuntime, EngineEnded, StartError, Validator};
pub use topnet_light::{EngineVerifier, Header};
