//! Measures topnet beside its peers.
//!
//! A *lane* is a subject (`token`, `forward`), a *case* one figure of it, a *contender* whoever
//! is measured for that figure: we, and the peers. Contenders are measured in turn, round after
//! round, in one run on one machine, so that whatever else the machine does hits all of them;
//! the figure is the median of the rounds. What comes out is a [`record::Record`] per case.
//!
//! To add a lane: a module under [`lanes`], and a line in [`lanes::all`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cpus;
pub mod lane;
pub mod lanes;
pub mod place;
pub mod record;
pub mod run;
pub mod taken;
