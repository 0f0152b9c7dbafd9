//! What scenarios share in which a payer closes in mid-download while metering is dead.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    product::CLOSE_WINDOW_BLOCKS,
    report::{Cheat, Report},
};

use super::{
    TRANSFER_WAIT,
    lab::{Lab, Opened, number},
    outage::Victim,
    paid_download::Download,
};

const DOWNLOAD_BYTES: u64 = 320 << 20;
const RATE_BYTES_PER_S: u64 = 16 << 20;
/// Units that the channel can pay for: the download and half as much again.
const ALLOCATION_UNITS: u64 = 960;
/// From the payer's close until a claim is final. Less than the close window, because what came
/// later would be no claim in time.
pub(super) const CLAIM_WAIT: Duration = Duration::from_secs(9);
/// From metering's return until the payee's close is on main: an epoch, and some.
const CLOSE_WAIT: Duration = Duration::from_secs(60);

/// A payer's close.
pub(super) struct PayersClose {
    /// The service's block that it stands in.
    pub(super) height: u64,
    /// The last block that takes claims.
    pub(super) deadline: u64,
}

impl Lab<'_> {
    /// Opens a channel, downloads `kill_at` bytes of many more, and kills metering.
    pub(super) fn lose_metering(
        &mut self,
        kill_at: u64,
        report: &mut Report,
    ) -> Result<(Opened, Download)> {
        let interrupt = self.options.interrupt;
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        self.topology.limit_origin(RATE_BYTES_PER_S)?;
        let download = self.begin_download(DOWNLOAD_BYTES)?;
        self.say("downloading until metering dies");
        interrupt.wait("the download is on its way", TRANSFER_WAIT, || {
            Ok((download.bytes() >= kill_at).then_some(()))
        })?;
        self.kill(Victim::Metering, report)?;
        Ok((channel, download))
    }

    /// Closes the channel as its payer.
    pub(super) fn close_as_payer(&self, channel: &Opened) -> Result<PayersClose> {
        self.say("closing the channel as its payer");
        let closing = self.client_asks(&["wallet", "close", &channel.id])?;
        let height = number(&closing["block"]["height"]).context("the close is in no block")?;
        let deadline = height + u64::from(CLOSE_WINDOW_BLOCKS);
        Ok(PayersClose { height, deadline })
    }

    /// Brings metering back, waits until the payee's close is on main and reconciles; gives the
    /// service's block of that close.
    pub(super) fn close_as_payee(
        &mut self,
        channel: &Opened,
        mut download: Download,
        report: &mut Report,
    ) -> Result<u64> {
        ensure!(!download.transfer.ended()?, "the download was over first");
        drop(download);
        self.revive(Victim::Metering, &channel.id)?;
        self.say("waiting for the payee's close on the main chain");
        let interrupt = self.options.interrupt;
        let close: Value = interrupt.wait("the payee's close is on main", CLOSE_WAIT, || {
            let close = self.channel(&channel.id)?["close"].clone();
            Ok(close["main_block"]["height"].is_u64().then_some(close))
        })?;
        let closed = number(&close["service_block"]["height"]).context("no block")?;
        self.count_client(&channel.id, report)?;
        report.fees_ntop.payer += self.fee("vpn", "close")?;
        self.reconcile(channel, &close, report)?;
        Ok(closed)
    }

    /// Notes that the payer got nothing by it: what was claimed is in time, and before the end.
    pub(super) fn note_payers_close(
        report: &mut Report,
        tried: &str,
        claim: &str,
        [claimed, closed]: [u64; 2],
        close: &PayersClose,
    ) {
        report.cheats.push(Cheat {
            who: "a payer".into(),
            tried: tried.into(),
            answer: format!(
                "{claim} in block {claimed}; the rest was closed in block {closed}; the deadline \
                 was {}",
                close.deadline
            ),
            refused: (close.height..=close.deadline).contains(&claimed) && claimed < closed,
        });
    }
}
