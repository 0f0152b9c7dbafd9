//! Opens a channel and pays for what it counted itself.
//!
//! The shell around the payer's state machine in `topnet-channel`: the encrypted key
//! ([`key_file`]), the [`Journal`] that a promise must be in before it leaves, the payer's own
//! count ([`ByteCounter`]), the conversation with the payee ([`pay`]), and the provider's
//! public RPC for what happens on chain ([`chain`]).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod allowance;
pub mod chain;
mod counter;
mod history;
mod hold_back;
mod journal;
pub mod key_file;
mod limits;
mod pay;
mod phrase;
mod probe;
mod receipt;
mod statement;
mod status;
mod wireguard;

pub use allowance::{Allowance, AllowanceError};
pub use counter::{ByteCounter, Counted, OwnCount, Reading, Readings};
pub use history::{Checkpoint, History, HistoryError, Parties};
pub use journal::{Journal, JournalError, Remembered};
pub use limits::{Grant, Limit, Limits};
pub use pay::{PayError, PayTerms, pay};
pub use phrase::{KeyPath, Phrase, PhraseError};
pub use probe::{ProbeError, probe};
pub use receipt::{Proved, Receipt, ReceiptError};
pub use statement::{Known, OnChain, Statement, to_csv};
pub use status::{PayState, PayStatus};
pub use wireguard::WireguardCounter;
