//! Pays one unit with one hash: vouchers, tokens, claims and both ends of the payment
//! protocol, as values and state machines without sockets, clocks, files or threads.
//!
//! A *voucher* is a signed, cumulative promise that also carries the root of a hash
//! chain; each *token* is the next pre-image of that chain and pays one unit under the
//! voucher; a *claim* is a voucher with at most one token, and is what a ledger redeems.
//! [`Payer`] and [`Payee`] are the two ends of a channel.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod claim;
mod key;
mod message;
mod payee;
mod payer;
mod payer_record;
mod promises;
mod record;
mod token;
mod voucher;
mod window;

pub use claim::Claim;
pub use key::{KeyError, SecretKey, verify};
pub use message::{
    MESSAGE_BYTES_MAX, MessageError, Meter, Offer, PROTOCOL_VERSION, PayeeMessage, PayerMessage,
    Promise, RefusalCode, Roll,
};
pub use payee::{
    Payee, PayeeState, PayeeTerms, Proved, SLOTS_PER_CHANNEL_MAX, SlotUse, Taken, Unproved,
};
pub use payer::{Durable, Payer, PayerFault, PayerStatus, PayerTerms, Unsaved};
pub use payer_record::PayerRecord;
pub use promises::PROMISES_PER_CHANNEL_MAX;
pub use record::{RecordError, record_channel};
pub use token::{Preimage, Salt, TOKENS_PER_VOUCHER_MAX, Token, TokenChain, walk_back};
pub use voucher::{SIGNED_VOUCHER_BYTES, SignedVoucher, VOUCHER_BYTES, Voucher, VoucherError};
pub use window::{own_bytes_max, window_units};
