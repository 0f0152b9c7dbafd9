//! Applies transactions to balances, channels and escrow: the pure state machine of
//! the main chain and of every service chain.
#![forbid(unsafe_code)]

pub mod machine;
