//! The wallet stops in the middle of a download and returns.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use topnet_unit::UNIT_BYTES;

use crate::report::{Kill, Report, Traffic};

use super::{
    RESUME_WAIT, STILL_WAIT, TRANSFER_WAIT,
    lab::{Lab, Opened, number},
    paid_download::{ALLOCATION_UNITS, DOWNLOAD_BYTES, Download},
};

/// Where the download is when the wallet is stopped.
const STOP_AT_BYTES: u64 = DOWNLOAD_BYTES / 4;
/// How long nothing must arrive to call it stopped.
const STILL_FOR: Duration = Duration::from_secs(3);

impl Lab<'_> {
    pub(super) fn unpaid_stops(&mut self, report: &mut Report) -> Result<Opened> {
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let download = self.begin_download(DOWNLOAD_BYTES)?;
        self.stop_and_return(&download, &channel.id, report)?;
        self.finish_download(download, report)?;
        self.upload(report)?;
        self.close_and_reconcile(&channel, report)?;
        Ok(channel)
    }

    /// Stops the wallet in the middle of the download, sees the traffic stop within what was
    /// paid ahead, and lets it return.
    fn stop_and_return(
        &mut self,
        download: &Download,
        channel: &str,
        report: &mut Report,
    ) -> Result<()> {
        let interrupt = self.options.interrupt;
        interrupt.wait("a quarter has arrived", TRANSFER_WAIT, || {
            Ok((download.bytes() >= STOP_AT_BYTES).then_some(()))
        })?;
        self.say("stopping the wallet");
        self.paying
            .take()
            .context("the wallet does not run")?
            .stop();
        let at_stop = self.channel(channel)?;
        let at_bytes = download.bytes();
        let (mut last, mut since) = (at_bytes, Instant::now());
        interrupt.wait("traffic stops", STILL_WAIT, || {
            let bytes = download.bytes();
            if bytes != last {
                (last, since) = (bytes, Instant::now());
            }
            Ok((since.elapsed() >= STILL_FOR).then_some(()))
        })?;
        let stopped = self.channel(channel)?;
        let metering = &stopped["metering"];
        let accepted = number(&metering["accepted_units"]).context("no accepted units")?;
        let usage = number(&metering["usage_bytes"]).context("no usage")?;
        ensure!(
            usage <= accepted * UNIT_BYTES,
            "{usage} bytes passed, {accepted} units are paid"
        );
        let room = accepted * UNIT_BYTES - usage;
        // Less than a packet's room is left: it was the limit that stopped it.
        ensure!(room < 1500, "traffic stopped {room} bytes before its limit");
        let paid_then = number(&at_stop["metering"]["accepted_units"]).unwrap_or(0);
        self.say(&format!(
            "stopped {} units after the last payment seen; the wallet returns",
            accepted - paid_then
        ));

        let returned = Instant::now();
        self.pay(channel)?;
        interrupt.wait("traffic resumes", RESUME_WAIT, || {
            Ok((download.bytes() > last).then_some(()))
        })?;
        report.kills.push(Kill {
            process: "wallet".to_owned(),
            at_bytes,
            traffic: Traffic::StoppedAtLimit,
            stalled_ms: u64::try_from(since.elapsed().as_millis())?,
            resumed_ms: u64::try_from(returned.elapsed().as_millis())?,
        });
        Ok(())
    }
}
