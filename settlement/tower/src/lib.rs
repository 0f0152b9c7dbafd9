//! Holds payees' claims and makes them in time.
//!
//! A claim needs no key of the payee: anybody may submit it, and its fee comes out of what it
//! pays. So whoever holds its bytes can make it, on any machine. Settlement does so beside its
//! chains, with the parts of this crate that are marked; `topnet-tower` does it elsewhere, for one
//! provider or several, over nodes that it need not trust.
//!
//! | what | module | settlement's too |
//! |---|---|---|
//! | reads a claim and says what it is worth | [`claim`] | yes |
//! | keeps the best claim of each channel on disk | [`held`] | yes |
//! | decides what is to be done about one | [`decision`] | yes |
//! | brings claims to a tower elsewhere, over its methods | [`rpc`] | yes |
//! | knows which channels are watched, and when to look again | `register` | |
//! | asks nodes and checks what they prove | `nodes`, one by one `node` | |
//! | looks at channels and claims | `watch` | |
//! | takes claims from strangers | `desk` | |
//! | listens | `listener` | |
//! | starts all of it | [`start`] | |
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod claim;
pub mod decision;
mod desk;
pub mod held;
mod listener;
mod node;
mod nodes;
mod register;
pub mod rpc;
pub mod start;
mod watch;

use std::{
    sync::OnceLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

pub use held::HeldError;

/// The time of day, in milliseconds since 1970. It decides when a claim is worth its fee and how
/// old a header is; no amount follows from it.
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds that this process has run, which nobody sets back or forward: whatever is to be
/// done again after a while goes by this.
pub(crate) fn uptime_ms() -> u64 {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let elapsed = STARTED.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
