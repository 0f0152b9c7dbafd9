//! Pays one unit with one hash: vouchers, tokens, claims and both ends of the payment
//! protocol, as values and state machines without sockets, clocks, files or threads.
//!
//! A *voucher* is a signed, cumulative promise that also carries the root of a hash
//! chain; each *token* is the next pre-image of that chain and pays one unit under the
//! voucher; a *claim* is a voucher with at most one token, and is what a ledger redeems.
#![forbid(unsafe_code)]

mod claim;
mod key;
mod token;
mod voucher;

pub use claim::Claim;
pub use key::{KeyError, SecretKey, verify};
pub use token::{Preimage, Salt, TOKENS_PER_VOUCHER_MAX, Token, TokenChain, walk_back};
pub use voucher::{SIGNED_VOUCHER_BYTES, SignedVoucher, VOUCHER_BYTES, Voucher, VoucherError};
