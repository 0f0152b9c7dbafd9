//! Runs the main chain and any number of service chains, carries what they tell one another,
//! closes the payee's channels and answers for all of it.
//!
//! | task | module |
//! |---|---|
//! | reads what the configuration names and starts everything | [`start`](Settlement::start) |
//! | runs the chains, each on an engine of its own; which ones | `chains`, `services` |
//! | registers services on main | `registrar` |
//! | publishes the payee's offers | `market` |
//! | brings home what is in a dead service | `rescue` |
//! | follows final blocks into an index that can be made anew at any time | `index`, `follow` |
//! | brings funds to the service and batches to main | `relay` |
//! | submits the payee's closes until they are final | `close` |
//! | holds the best claim of each channel, and makes it in time | `tower`, with [`topnet_tower`] |
//! | hands what is held to towers on other machines | `handover` |
//! | says when what a service paid is on main | `settled` |
//! | answers on the process's socket | `service`, `history` |
//!
//! Everything here but closes, held claims and the list of services can be made anew from the
//! chains. Whatever is submitted is
//! derived from the chains' own state and submitted again until it shows there, so a crash at
//! any moment costs time and nothing else.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chains;
mod close;
mod describe;
mod follow;
mod handover;
mod history;
mod index;
mod market;
mod registrar;
mod relay;
mod rescue;
mod service;
mod services;
mod settled;
mod start;
mod tower;

pub use index::IndexError;
pub use service::Service;
pub use services::ServicesError;
pub use start::{Inputs, Settlement, StartError};
