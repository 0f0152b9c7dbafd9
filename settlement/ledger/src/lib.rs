//! Applies transactions to balances, channels and escrow: the pure state machine of
//! the main chain and of every service chain.
//!
//! | question | module |
//! |---|---|
//! | what consensus and the machine need from each other | [`machine`] |
//! | what a chain starts from, its rules and fees | [`genesis`] |
//! | what can be asked of a chain, and each request's rule | [`transaction`] |
//! | what a chain remembers, and under which keys | [`state`] |
//! | what providers offer | [`offer`] |
//! | what a chain tells its readers | [`event`] |
//! | what a chain tells another chain | [`outbox`] |
//! | where all the money is | [`conservation`] |
//!
//! A wallet makes a transaction with [`transaction::Message::sign`] and sends
//! [`transaction::Transaction::to_bytes`]. A node runs a [`Ledger`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod codec;
pub mod conservation;
pub mod event;
mod execute;
pub mod genesis;
mod ledger;
pub mod machine;
pub mod offer;
pub mod outbox;
mod refusal;
pub mod state;
pub mod transaction;
mod walks;

pub use codec::CodecError;
pub use genesis::Genesis;
pub use ledger::Ledger;
pub use transaction::Transaction;
