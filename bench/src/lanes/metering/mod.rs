//! Counting, paying and journalling: the payment path with its real parts in separate processes,
//! and what stands in for the rest named in each case's mode.
//!
//! | process | module | what is real |
//! |---|---|---|
//! | data plane | [`plane`] | accounting, tables, ring and hand-over; packets are numbers |
//! | payee | [`payee`] | books, keeper, RocksDB journal, QUIC listener; the chains say yes |
//! | payers | [`payers`] | payer's state machine and QUIC link; no disk, no count of their own |
//!
//! The processes are this program again ([`process`]). Nothing is pinned to a CPU.

mod connections;
mod cost;
mod durable;
mod feed;
mod flood;
mod overrun;
mod parties;
mod payee;
mod payers;
mod plane;
mod process;
mod provider;
mod quic;
mod recovery;
mod refuse;
mod ring;

use std::time::Duration;

use anyhow::Result;

pub use self::process::Role;
use crate::{
    lane::{Case, Lane},
    lanes::{Setup, Size, VERSION},
};

/// The payment path.
pub struct MeteringLane {
    setup: Setup,
}

impl MeteringLane {
    /// A lane whose rounds end when a signal comes.
    pub fn new(setup: Setup) -> MeteringLane {
        MeteringLane { setup }
    }
}

impl Lane for MeteringLane {
    fn name(&self) -> &'static str {
        "metering"
    }

    fn about(&self) -> &'static str {
        "unit records, durable credit, payers over QUIC, refusals, memory, recovery and what a \
         paid unit costs"
    }

    fn cases(&self) -> Result<Vec<Case>> {
        let setup = &self.setup;
        let mut cases = vec![ring::case(setup), durable::case(setup)];
        cases.extend(quic::cases(setup));
        cases.extend(flood::cases(setup));
        cases.extend([
            refuse::case(setup),
            connections::case(setup),
            cost::case(setup),
            overrun::case(setup),
            recovery::case(setup),
        ]);
        Ok(cases)
    }
}

/// Plays a role in another's case.
pub fn play(role: Role) -> Result<()> {
    // What the product says when something is wrong; more with RUST_LOG.
    topnet_config::log_to_stderr("warn");
    match role {
        Role::Plane => plane::play(),
        Role::Payee => payee::play(),
        Role::Payers => payers::play(),
        Role::Producer => ring::play(),
        Role::Flood => flood::play(),
        Role::Opener => recovery::play(),
    }
}

/// How much of everything a size has.
impl Size {
    /// Between two measurements with the same processes.
    fn rest(self) -> Duration {
        self.of([200, 1_000, 1_000, 2_000].map(Duration::from_millis))
    }

    fn ring_seconds(self) -> f64 {
        self.of([0.1, 0.5, 2.0, 5.0])
    }

    fn channels(self) -> u32 {
        self.of([50, 2_000, 10_000, 10_000])
    }

    fn durable_seconds(self) -> f64 {
        self.of([0.3, 2.0, 8.0, 20.0])
    }

    fn payers(self) -> u32 {
        self.of([10, 200, 1_000, 1_000])
    }

    fn quic_seconds(self) -> f64 {
        self.of([1.0, 4.0, 20.0, 60.0])
    }

    fn cost_seconds(self) -> f64 {
        self.of([0.3, 2.0, 8.0, 20.0])
    }

    fn vouchers(self) -> u32 {
        self.of([20, 500, 5_000, 5_000])
    }

    fn connections(self) -> u32 {
        self.of([20, 500, 2_000, 10_000])
    }

    fn journalled_channels(self) -> u32 {
        self.of([1_000, 50_000, 200_000, 1_000_000])
    }
}
