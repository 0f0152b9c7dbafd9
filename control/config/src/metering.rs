//! `[metering]`: where payments come in, and the terms that a payer is offered.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use topnet_account::Amount;

use crate::{Archive, Base, Section, default, error::Problems};

/// The most lines that a segment of the service log may have; 352 MiB, which have to go through
/// memory.
pub const SEGMENT_LINES_MAX: u64 = 1 << 22;

/// What metering is told. The terms in it are also what control publishes as the offer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metering {
    /// UDP address on which payers connect by QUIC.
    #[serde(default = "default::any::<7_447>")]
    pub payment_listen: SocketAddr,
    /// Encrypted key file of the payment connection's identity; its public half is in the offer.
    pub key_file: PathBuf,
    /// File with the key file's passphrase; the environment's `TOPNET_PASSPHRASE` if left out.
    pub passphrase_file: Option<PathBuf>,
    /// The journal; `metering` in the data directory if left out.
    #[serde(default)]
    pub journal_dir: PathBuf,
    /// The service log; `service-log` in the journal's directory if left out.
    #[serde(default)]
    pub service_log_dir: PathBuf,
    /// Days that the service log is kept; 0 keeps it for ever.
    #[serde(default = "default::u32::<400>")]
    pub service_log_days: u32,
    /// Lines of a segment of the service log, of 88 bytes each; a full one goes to the archive.
    #[serde(default = "default::u64::<{ 1 << 19 }>")]
    pub service_log_segment_lines: u64,
    /// The service that is sold.
    #[serde(default = "default::vpn")]
    pub service: String,
    /// Price of one unit in nTOP.
    pub unit_price_ntop: u64,
    /// How far the payer's count may stay behind ours, in millionths.
    #[serde(default = "default::u32::<5_000>")]
    pub epsilon_ppm: u32,
    /// The most units that we let a payer pay ahead.
    #[serde(default = "default::u64::<64>")]
    pub window_units_max: u64,
    /// Channels that close faster are not served.
    #[serde(default = "default::u64::<6_000>")]
    pub close_window_blocks_min: u64,
    /// Units per channel that we write off before we end its sessions.
    #[serde(default = "default::u64::<2>")]
    pub write_off_units_max: u64,
    /// Payers that may be connected at once.
    #[serde(default = "default::u32::<16_384>")]
    pub connections_max: u32,
    /// Where sealed segments of the service log are kept.
    #[serde(default)]
    pub archive: Archive,
}

impl Metering {
    /// Price of one unit.
    pub const fn unit_price(&self) -> Amount {
        Amount::from_ntop(self.unit_price_ntop)
    }
}

impl Section for Metering {
    fn resolve(&mut self, base: &Base<'_>) {
        base.join(&mut self.key_file);
        base.join_optional(&mut self.passphrase_file);
        base.join_data(&mut self.journal_dir, "metering");
        if self.service_log_dir.as_os_str().is_empty() {
            self.service_log_dir = self.journal_dir.join("service-log");
        } else {
            base.join(&mut self.service_log_dir);
        }
        self.archive.resolve(base, &self.service_log_dir);
    }

    fn check(&self, problems: &mut Problems<'_>) {
        if self.payment_listen.port() == 0 {
            problems.add(
                "payment_listen",
                "port 0 cannot be offered to anybody",
                "choose a fixed port, such as 7447",
            );
        }
        if self.service.is_empty() || self.service.len() > 32 {
            problems.add(
                "service",
                "the name is empty or too long",
                "choose 1 to 32 bytes: vpn",
            );
        }
        if self.unit_price_ntop == 0 {
            problems.add(
                "unit_price_ntop",
                "a unit that costs nothing cannot be paid for",
                "set the price of 512 KiB in nTOP",
            );
        }
        if self.epsilon_ppm > 100_000 {
            problems.add(
                "epsilon_ppm",
                format!("{} is more than a tenth", self.epsilon_ppm),
                "set millionths: 5000 is 0.5 %",
            );
        }
        if !(1..=256).contains(&self.window_units_max) {
            problems.add(
                "window_units_max",
                format!("{} is out of range", self.window_units_max),
                "choose 1 to 256 units",
            );
        }
        if self.close_window_blocks_min == 0 {
            problems.add(
                "close_window_blocks_min",
                "with no close window a payer can leave before a claim is in a block",
                "choose how many blocks you need to claim: 6000 are ten minutes at 100 ms",
            );
        }
        if self.connections_max == 0 {
            problems.add("connections_max", "nobody could pay", "choose at least 1");
        }
        if !(1..=SEGMENT_LINES_MAX).contains(&self.service_log_segment_lines) {
            problems.add(
                "service_log_segment_lines",
                format!("{} is out of range", self.service_log_segment_lines),
                format!("choose 1 to {SEGMENT_LINES_MAX}: a segment is archived in one piece"),
            );
        }
        self.archive.check(problems);
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        let mut files = vec![("key_file", self.key_file.as_path())];
        files.extend(
            self.passphrase_file
                .iter()
                .map(|path| ("passphrase_file", path.as_path())),
        );
        files
    }
}
