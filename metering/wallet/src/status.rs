//! How paying stands, for people and programs.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use topnet_account::{Amount, ChannelId};
use tracing::warn;

use crate::{Checkpoint, Limit};

/// How often the file is written while nothing but numbers change.
const WRITE_INTERVAL: Duration = Duration::from_millis(250);

/// Where paying is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayState {
    /// No link, or one that has just begun.
    Connecting,
    /// Units are paid as they come due.
    Paying,
    /// Over.
    Ended,
}

/// How paying on one channel stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayStatus {
    /// The channel.
    pub channel: ChannelId,
    /// Where the payee listens.
    pub payee: SocketAddr,
    /// Where paying is.
    pub state: PayState,
    /// Why it is not paying.
    pub reason: Option<String>,
    /// Which of the wallet's limits holds it back now.
    #[serde(default)]
    pub limit: Option<Limit>,
    /// Units paid for, whether or not the payee has them yet.
    pub released_units: u64,
    /// What they are worth.
    pub promised: Amount,
    /// Units that the payee says it has.
    pub accepted_units: u64,
    /// Units that the payee says are owed.
    pub owed_units: u64,
    /// Bytes that the payee says it counted.
    pub metered_bytes: u64,
    /// Bytes that the payee says may still pass.
    pub credit_bytes: u64,
    /// The furthest that paying was ever ahead of what was owed.
    pub lead_units_max: u64,
    /// Our count at the tunnel interface: at most what is billed.
    pub interface_bytes: u64,
    /// Our count of WireGuard's transfer: at least what is billed. `None` if it cannot be read.
    pub transfer_bytes: Option<u64>,
    /// The most that we pay for: our higher count, with the tolerance.
    pub own_bytes_max: u64,
    /// The payee counts more than we pay for.
    pub meter_above_own: bool,
    /// The payee counts less than the interface, tolerance aside: it had dropped what we sent.
    pub meter_below_own: bool,
}

impl PayStatus {
    /// What a history keeps of it, as of `at_ms`.
    pub fn checkpoint(&self, at_ms: u64) -> Checkpoint {
        Checkpoint {
            at_ms,
            own_bytes_least: self.interface_bytes,
            own_bytes_most: self
                .interface_bytes
                .max(self.transfer_bytes.unwrap_or_default()),
            metered_bytes: self.metered_bytes,
            released_units: self.released_units,
            accepted_units: self.accepted_units,
            owed_units: self.owed_units,
            promised: self.promised,
        }
    }
}

/// A file that always holds one whole status.
#[derive(Debug)]
pub(crate) struct StatusFile {
    path: PathBuf,
    written: Option<(Instant, PayStatus)>,
}

impl StatusFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            written: None,
        }
    }

    /// Writes the status if it is news.
    pub(crate) fn offer(&mut self, status: &PayStatus) {
        let is_news = self.written.as_ref().is_none_or(|(at, written)| {
            let turned = (written.state, &written.reason, written.limit)
                != (status.state, &status.reason, status.limit);
            turned || (at.elapsed() >= WRITE_INTERVAL && written != status)
        });
        if is_news {
            self.write(status);
        }
    }

    /// Writes the status. One that cannot be written is no reason not to pay.
    pub(crate) fn write(&mut self, status: &PayStatus) {
        let mut beside = self.path.clone().into_os_string();
        beside.push(".new");
        let written = serde_json::to_vec_pretty(status)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&beside, text))
            .and_then(|()| fs::rename(&beside, &self.path));
        if let Err(error) = written {
            warn!(path = %self.path.display(), %error, "the status file cannot be written");
        }
        self.written = Some((Instant::now(), status.clone()));
    }
}
