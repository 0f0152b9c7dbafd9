//! A payer that closes its channel while it still downloads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    product::CLOSE_WINDOW_BLOCKS,
    report::{Cheat, Report},
};

use super::{
    STILL_WAIT, TRANSFER_WAIT,
    lab::{Lab, Opened, number},
};

const DOWNLOAD_BYTES: u64 = 96 << 20;
/// Where the download is when the payer closes.
const CLOSE_AT_BYTES: u64 = 8 << 20;
/// How long nothing must arrive to call it cut off.
const STILL_FOR: Duration = Duration::from_secs(3);
/// From the payer's close until the payee's is on main: its deadline, an epoch, and some.
const CLOSE_WAIT: Duration = Duration::from_secs(60);

impl Lab<'_> {
    /// Closes as the payer in mid-download, sees it cut off and the payee's claim in time, and
    /// reconciles.
    pub(super) fn payer_closes(&mut self, channel: &Opened, report: &mut Report) -> Result<()> {
        let interrupt = self.options.interrupt;
        let mut download = self.begin_download(DOWNLOAD_BYTES)?;
        self.say("downloading until the payer closes");
        interrupt.wait("the download is on its way", TRANSFER_WAIT, || {
            Ok((download.bytes() >= CLOSE_AT_BYTES).then_some(()))
        })?;
        self.say("closing the channel as its payer");
        let closing = self.client_asks(&["wallet", "close", &channel.id])?;
        let height = number(&closing["block"]["height"]).context("the close is in no block")?;
        let deadline = height + u64::from(CLOSE_WINDOW_BLOCKS);
        let closed_at = Instant::now();
        let (mut last, mut since) = (download.bytes(), Instant::now());
        interrupt.wait("the payer is cut off", STILL_WAIT, || {
            let bytes = download.bytes();
            if bytes != last {
                (last, since) = (bytes, Instant::now());
            }
            Ok((since.elapsed() >= STILL_FOR).then_some(()))
        })?;
        ensure!(!download.transfer.ended()?, "the download was over first");
        let cut_off = since.duration_since(closed_at);
        drop(download);

        self.say("waiting for the payee's claim on the main chain");
        let close: Value = interrupt.wait("the payee's close is on main", CLOSE_WAIT, || {
            let close = self.channel(&channel.id)?["close"].clone();
            Ok(close["main_block"]["height"].is_u64().then_some(close))
        })?;
        let claimed = number(&close["service_block"]["height"]).context("no block")?;
        self.count_client(&channel.id, report)?;
        report.fees_ntop.payer += self.fee("vpn", "close")?;
        report.cheats.push(Cheat {
            who: "a payer".into(),
            tried: "to close its channel while it downloads".into(),
            answer: format!(
                "cut off {} ms after its close in block {height}; the payee claimed in block \
                 {claimed}, the deadline was {deadline}",
                cut_off.as_millis()
            ),
            refused: claimed <= deadline,
        });
        self.reconcile(channel, &close, report)
    }
}
