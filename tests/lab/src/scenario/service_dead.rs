//! A service whose chain dies in mid-download.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::report::{Cheat, Report};

use super::{
    READY_WAIT, STILL_WAIT, TRANSFER_WAIT,
    lab::{Lab, Opened, number, text},
};

/// Dead after 15 s of silence; its channels can be claimed for 10 s.
pub(super) const RULES: &[(&str, u32)] = &[("--service-silence", 150), ("--recovery-window", 100)];
const DOWNLOAD_BYTES: u64 = 320 << 20;
const RATE_BYTES_PER_S: u64 = 16 << 20;
const ALLOCATION_UNITS: u64 = 960;
/// Where the download is when the chain is stopped.
const STOP_AT_BYTES: u64 = 48 << 20;
/// What the payer leaves on the service beside the channel.
const LEFT_NTOP: u64 = 2_000_000_000;
/// How long nothing must arrive to call it cut off.
const STILL_FOR: Duration = Duration::from_secs(3);
/// From the stop to the death, and some.
const DEATH_WAIT: Duration = Duration::from_secs(40);
const CLOSE_WAIT: Duration = Duration::from_secs(40);

impl Lab<'_> {
    /// Stops the service's chain for good in mid-download, sees the payer cut off, what is owed
    /// paid on main and the rest come home, and reconciles.
    pub(super) fn service_dead(&mut self, report: &mut Report) -> Result<Opened> {
        let interrupt = self.options.interrupt;
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        let left = LEFT_NTOP.to_string();
        self.client_asks(&["wallet", "fund", &left])?;
        report.fees_ntop.payer += self.fee("main", "fund")?;
        let opened = number(&self.client_asks(&["chain", "vpn"])?["height"]);
        let opened = opened.context("the chain has no height")?;
        self.topology.limit_origin(RATE_BYTES_PER_S)?;
        let mut download = self.begin_download(DOWNLOAD_BYTES)?;
        self.say("downloading until the service's chain stops");
        interrupt.wait("the download is on its way", TRANSFER_WAIT, || {
            let accepted = number(&self.service()?["accepted_height"]);
            let is_accepted = accepted.is_some_and(|height| height >= opened);
            Ok((download.bytes() >= STOP_AT_BYTES && is_accepted).then_some(()))
        })?;
        self.operator(&["chain", "stop", "vpn"])?;
        let stopped_at = Instant::now();
        let (mut last, mut since) = (download.bytes(), Instant::now());
        interrupt.wait("the payer is cut off", STILL_WAIT, || {
            let bytes = download.bytes();
            if bytes != last {
                (last, since) = (bytes, Instant::now());
            }
            Ok((since.elapsed() >= STILL_FOR).then_some(()))
        })?;
        ensure!(!download.transfer.ended()?, "the download was over first");
        let cut_off = since.duration_since(stopped_at);
        drop(download);
        self.count_client(&channel.id, report)?;

        self.say("waiting until main holds the service dead");
        interrupt.wait("the service is dead", DEATH_WAIT, || {
            Ok((self.service()?["dead"] == true).then_some(()))
        })?;
        let halted = self.operator(&["chain", "start", "vpn"])?;
        ensure!(halted["state"] == "halted", "it runs: {halted}");

        self.say("bringing home what is in it");
        // What the payer has beside the channel he asks for himself; the channel comes by itself.
        interrupt.wait("the accepted state is made anew", READY_WAIT, || {
            let asked = self.client_asks(&["wallet", "recover"]);
            let done = asked.is_ok_and(|done| done.to_string().contains("recovered"));
            Ok(done.then_some(()))
        })?;
        let close: Value = interrupt.wait("the close on main", CLOSE_WAIT, || {
            let close = self.channel(&channel.id)?["close"].clone();
            Ok(close["main_block"]["height"].is_u64().then_some(close))
        })?;
        ensure!(
            text(&close["service_block"]["chain"]).as_deref() == Some("main"),
            "closed elsewhere: {close}"
        );
        let service = interrupt.wait("nothing is left in the service", READY_WAIT, || {
            let service = self.service()?;
            Ok((number(&service["escrow"]) == Some(0)).then_some(service))
        })?;
        // The account's recovery and the channel's: the latter out of what was set aside.
        report.fees_ntop.payer += 2 * self.fee("main", "recover")?;
        self.reconcile(&channel, &close, report)?;
        report.cheats.push(Cheat {
            who: "a service".into(),
            tried: "to die in mid-download".into(),
            answer: format!(
                "the payer was cut off {} ms after its chain's last block; main held it dead from \
                 block {}, paid what was owed in block {}, and has nothing of it left",
                cut_off.as_millis(),
                service["dead_from"],
                close["main_block"]["height"]
            ),
            refused: true,
        });
        Ok(channel)
    }

    /// The service as main knows it.
    fn service(&self) -> Result<Value> {
        self.client_asks(&["service", "vpn"])
    }

    fn operator(&self, words: &[&str]) -> Result<Value> {
        let interrupt = self.options.interrupt;
        let provider = &self.topology.provider;
        self.provider.topnet.ask(provider, interrupt, words)
    }
}
