//! The words of `topnet log`.

use std::{path::PathBuf, str::FromStr};

use clap::Subcommand;
use topnet_archive::ObjectHash;

/// What is to be done with the service log, on the provider's machine.
#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum LogCommand {
    /// List the segments, and where each is.
    List,
    /// Write a sealed segment into a file, after checking every byte of it.
    Fetch {
        /// Its number, or its object's hash.
        segment: SegmentName,
        /// Where to write it.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Read everything again, and name what is damaged or missing.
    Verify,
    /// Write the entries that the directory lacks out of the store, and the other way round.
    Restore,
}

/// How a segment is called.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) enum SegmentName {
    Number(u64),
    Hash(ObjectHash),
}

impl FromStr for SegmentName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(number));
        }
        let hash = text.parse().map(Self::Hash);
        hash.map_err(|_| "neither a number nor 64 hex digits; `topnet log list` shows both")
    }
}
