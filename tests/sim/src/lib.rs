//! Runs the payment path in seeded worlds and checks every unit.
//!
//! Real are both ends of the payment protocol (`topnet-channel`), metering's books
//! (`topnet-books`), the tables and the unit ring (`topnet-unit`). Models are the data plane
//! that spends credit, disks that lose what was not synced, links that break, the chains' views,
//! and time. A seed decides everything; the same seed gives the same events in the same order,
//! which a hash over all of them shows.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod check;
mod disk;
mod forger;
mod link;
mod meter;
mod plan;
mod plane;
mod random;
mod trace;
mod wallet;
mod world;

use std::fmt;

use world::World;

/// How worlds are run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// Links also lose, repeat and reorder messages, which the real ones do not.
    pub datagram_chaos: bool,
    /// Print every event.
    pub trace: bool,
}

/// A world in which every invariant held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Over every event.
    pub hash: u64,
    /// What happened in it.
    pub coverage: Coverage,
}

/// A world in which one did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which world.
    pub seed: u64,
    /// The step after which it was seen.
    pub step: u32,
    /// What did not hold.
    pub invariant: String,
    /// Over every event up to there.
    pub hash: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            step,
            invariant,
            hash,
        } = self;
        write!(
            f,
            "seed {seed}, step {step}, trace {hash:016x}: {invariant}"
        )
    }
}

macro_rules! coverage {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How often things happened, so that nobody trusts a world in which nothing did.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Coverage {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Coverage {
            /// Adds another world's.
            pub fn add(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }

            /// Names and counts.
            pub fn counts(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

coverage! {
    /// Tokens that left a wallet.
    tokens,
    /// Vouchers that left a wallet.
    rolls,
    /// Links that a wallet gave up after a refusal.
    refusals,
    /// Messages of dishonest payers.
    forgeries,
    /// Deaths of a data plane.
    planes_killed,
    /// Deaths of metering.
    meterings_killed,
    /// Deaths of a wallet.
    wallets_killed,
    /// Deaths of both at once that lost the provider bytes.
    losses,
    /// Links that broke.
    links_broken,
    /// Wallets that lost their journal, or got an old one.
    forgotten,
    /// Slots that were given or taken.
    slots_changed,
    /// Top-ups.
    top_ups,
    /// Channels that their payer closed.
    closed,
    /// Times that settlement went away.
    settlement_down,
    /// Times that the disk refused a batch.
    refused,
    /// Vouchers that were proved apart.
    proved,
    /// Units that the operator forgave.
    written_off,
    /// Times that metering's clock was set.
    clocks_set,
    /// Channels that came near to their expiry.
    expired,
    /// Last claims.
    finished,
}

/// Runs the world of a seed.
pub fn run(seed: u64, settings: Settings) -> Result<Outcome, Failure> {
    World::run(seed, settings)
}
