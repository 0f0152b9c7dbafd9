//! Opens a channel and pays for what it counted itself.
//!
//! The shell around the payer's state machine in `topnet-channel`. The `topnet wallet` command is
//! made of it, and so can any other client be:
//!
//! * [`Phrase`] makes a wallet's keys from words on paper, and [`key_file`] keeps them encrypted;
//! * [`probe`] greets a provider before money is bound to it;
//! * [`chain`] does what happens on chain, over the provider's public RPC;
//! * [`pay`] pays on one channel, out of the payer's own count (a [`ByteCounter`]), within
//!   [`Limits`], and writes every promise into the [`Journal`] before it leaves;
//! * [`Statement`] says afterwards what was used and paid, and a [`Receipt`] proves it.
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//!
//! use topnet_account::Amount;
//! use topnet_channel::PayerTerms;
//! use topnet_wallet::{
//!     Journal, KeyPath, Limits, PayTerms, Phrase, WireguardCounter,
//!     chain::{OpenTerms, Owner, Rpc},
//!     pay, probe,
//! };
//!
//! # async fn example(stop: impl Future<Output = ()>) -> Result<(), Box<dyn std::error::Error>> {
//! // The account's key moves money; the session key can only pay with what a channel holds.
//! let phrase = Phrase::generate()?;
//! let account = phrase.key(KeyPath::Funding);
//! let session = phrase.key(KeyPath::Session(0));
//!
//! let rpc = Rpc::new("http://203.0.113.1:8545")?;
//! let offer = rpc.offers().await?.pop().ok_or("nothing is offered")?;
//! probe(offer.payment.address, offer.payment.key, &session).await?;
//!
//! let service = rpc.chain(&offer.service).await?.parameters;
//! let terms = OpenTerms {
//!     payee: offer.payee,
//!     allocation: Amount::from_ntop(1_000_000_000),
//!     close_window: offer.close_window_blocks_min.try_into()?,
//!     expiry_blocks: 6_048_000,
//!     signer: session.public_key(),
//! };
//! let owner = Owner {
//!     secret: &account,
//!     rpc: &rpc,
//! };
//! let opened = owner.open(&service, terms).await?;
//! let patience = Duration::from_secs(60);
//! rpc.wait_final(&service.chain, opened.transaction, patience).await?;
//!
//! // A session is started with `rpc.start_session`, and WireGuard configured with its answer.
//! let terms = PayTerms {
//!     address: offer.payment.address,
//!     payee: offer.payment.key,
//!     payer: PayerTerms {
//!         channel: opened.channel,
//!         allocation: terms.allocation,
//!         unit_price_max: Amount::from_ntop(30_000),
//!         window_max: 64,
//!     },
//!     epsilon_ppm_max: 5_000,
//!     provider: offer.payee,
//!     limits: Limits {
//!         hourly_spend: Some(Amount::from_ntop(100_000_000)),
//!         ..Limits::default()
//!     },
//!     status_file: None,
//! };
//! let journal = Journal::open(Path::new("wallet"), opened.channel)?;
//! let counter = WireguardCounter::new("wg0", offer.wireguard_public_key.0);
//! let status = pay(&session, terms, journal, Box::new(counter), stop).await?;
//! println!("{} units for {}", status.released_units, status.promised);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod allowance;
pub mod chain;
mod counter;
mod history;
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
pub use limits::{Grant, Limit, Limits, Moment, Promised};
pub use pay::{PayError, PayTerms, pay};
pub use phrase::{KeyPath, Phrase, PhraseError};
pub use probe::{ProbeError, probe};
pub use receipt::{Proved, Receipt, ReceiptError};
pub use statement::{Known, OnChain, Statement, to_csv};
pub use status::{PayState, PayStatus};
pub use wireguard::WireguardCounter;
