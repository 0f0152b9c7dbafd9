//! The scenarios: what a provider and a client do, step by step, with nothing in their place.

mod lab;
mod paid_download;
mod reconcile;
mod unpaid_stops;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{interrupt::Interrupt, report::Report};

use self::lab::Lab;

const TRANSFER_WAIT: Duration = Duration::from_secs(120);
const STILL_WAIT: Duration = Duration::from_secs(30);

/// A scenario by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Download, upload, close, settle.
    PaidDownload,
    /// The wallet is stopped in the middle of the download and returns.
    UnpaidStops,
}

impl Scenario {
    /// Every scenario, in the order in which `all` runs them.
    pub const ALL: [Self; 2] = [Self::PaidDownload, Self::UnpaidStops];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::PaidDownload => "paid-download",
            Self::UnpaidStops => "unpaid-stops",
        }
    }

    /// What it shows, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Self::PaidDownload => {
                "a WireGuard client downloads and uploads, pays by the unit, and the main chain settles"
            }
            Self::UnpaidStops => {
                "the wallet stops in mid-download: traffic stops within the window, and goes on when it returns"
            }
        }
    }
}

/// How a scenario is run.
pub struct Options<'a> {
    /// Signals.
    pub interrupt: &'a Interrupt,
    /// Leaves everything running.
    pub keep: bool,
    /// Told what is done now.
    pub progress: &'a dyn Fn(&str),
}

/// What `--keep` leaves.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Keys, logs, state, programs.
    pub directory: PathBuf,
    /// Its namespaces' names.
    pub namespaces: [String; 3],
    /// The channel.
    pub channel: String,
}

/// Runs a scenario from nothing to the removal of all that it made.
pub fn run(scenario: Scenario, options: &Options<'_>) -> Result<(Report, Option<Kept>)> {
    let began = Instant::now();
    let mut lab = Lab::build(options)?;
    let outcome = lab.play(scenario);
    let (mut report, channel) = match outcome {
        Ok(outcome) => outcome,
        Err(error) => return Err(error.context(lab.last_words())),
    };
    report.scenario = scenario.name().to_owned();
    report.ok = report.mismatches().is_empty();
    report.seconds = began.elapsed().as_secs_f64();
    report.machine = topnet_machine::machine();
    report.commit = topnet_machine::commit();
    let kept = options.keep.then(|| lab.keep(channel));
    Ok((report, kept))
}
