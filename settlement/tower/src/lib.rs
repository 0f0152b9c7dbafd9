//! Holds payees' claims, and says when each is to be made.
//!
//! | what | module |
//! |---|---|
//! | reads a claim and says what it is worth | [`claim`] |
//! | keeps the best claim of each channel on disk | [`held`] |
//! | decides what is to be done about one | [`decision`] |
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod claim;
pub mod decision;
pub mod held;

pub use held::HeldError;
