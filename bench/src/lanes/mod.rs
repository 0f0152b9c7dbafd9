//! The lanes. Each is a module of its own.

mod credit;
mod forward;
mod metering;
mod settlement;
mod token;
mod vpn;

use crate::lane::Lane;
use clap::ValueEnum;
use std::path::PathBuf;
use topnet_lab::interrupt::Interrupt;

pub use metering::{Role, play};
pub use vpn::run_data_plane;

/// Of everything that is ours.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What lanes are made with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What waits in them asks it.
    pub interrupt: Interrupt,
    /// This program's file, for lanes that need other processes.
    pub program: PathBuf,
    /// How much they measure.
    pub size: Size,
}

/// How much a lane measures. The lanes `token`, `forward` and `vpn` have one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// Shows only that it runs.
    #[value(hide = true)]
    Tiny,
    /// A look: a minute.
    Quick,
    /// A few minutes a round.
    Standard,
    /// What is promised, at the size at which it is promised.
    Full,
}

impl Size {
    /// What this size has of four.
    fn of<T>(self, [tiny, quick, standard, full]: [T; 4]) -> T {
        match self {
            Size::Tiny => tiny,
            Size::Quick => quick,
            Size::Standard => standard,
            Size::Full => full,
        }
    }
}

/// Every lane, in the order in which they run.
pub fn all(setup: &Setup) -> Vec<Box<dyn Lane>> {
    vec![
        Box::new(token::TokenLane),
        Box::new(forward::ForwardLane::new(setup.interrupt.clone())),
        Box::new(vpn::VpnLane::new(setup.clone())),
        Box::new(metering::MeteringLane::new(setup.clone())),
        Box::new(settlement::SettlementLane::new(setup.clone())),
    ]
}
