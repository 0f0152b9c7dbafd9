//! Every process dies once in the middle of one download.

use anyhow::Result;

use crate::report::Report;

use super::{
    TRANSFER_WAIT,
    lab::{Lab, Opened},
    outage::Victim,
};

const DOWNLOAD_BYTES: u64 = 320 << 20;
/// Slow enough that the download outlives all kills.
const RATE_BYTES_PER_S: u64 = 16 << 20;
/// Units that the channel can pay for: the download and half as much again.
const ALLOCATION_UNITS: u64 = 960;

impl Lab<'_> {
    pub(super) fn crash(&mut self, report: &mut Report) -> Result<Opened> {
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        self.topology.limit_origin(RATE_BYTES_PER_S)?;
        let download = self.begin_download(DOWNLOAD_BYTES)?;
        let steps = Victim::ALL.len() as u64 + 1;
        for (step, victim) in (1..).zip(Victim::ALL) {
            let at_bytes = DOWNLOAD_BYTES * step / steps;
            self.say(&format!("downloading: to {} MiB", at_bytes >> 20));
            let interrupt = self.options.interrupt;
            interrupt.wait("the next part has arrived", TRANSFER_WAIT, || {
                Ok((download.bytes() >= at_bytes).then_some(()))
            })?;
            let bytes = || download.bytes();
            let kill = self.outage(victim, &channel.id, &bytes, DOWNLOAD_BYTES, report)?;
            self.provider.check()?;
            report.kills.push(kill);
        }
        self.finish_download(download, report)?;
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }
}
