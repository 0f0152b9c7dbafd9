//! The lanes. Each is a module of its own.

mod forward;
mod metering;
mod token;

use crate::lane::Lane;
use clap::ValueEnum;
use std::path::PathBuf;
use topnet_lab::interrupt::Interrupt;

pub use metering::{Role, play};

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

/// How much a lane measures. The lanes `token` and `forward` have one size.
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

/// Every lane, in the order in which they run.
pub fn all(setup: &Setup) -> Vec<Box<dyn Lane>> {
    vec![
        Box::new(token::TokenLane),
        Box::new(forward::ForwardLane::new(setup.interrupt.clone())),
        Box::new(metering::MeteringLane::new(setup.clone())),
    ]
}
