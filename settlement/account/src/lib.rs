//! The names that money has: amounts, keys, addresses and 32-byte ids, and what stands under them
//! in a chain's state.
//!
//! These are values without behaviour. What may happen to them is the ledger's
//! business; who signs what is decided where the signed bytes are laid out.
#![forbid(unsafe_code)]

mod address;
mod amount;
mod bytes;
mod subject;

pub use address::{Address, AddressError};
pub use amount::{Amount, AmountError, NTOP_PER_TOP};
pub use bytes::{ChannelId, Hash, HexError, PublicKey, Signature};
pub use subject::StateSubject;
