//! A payer that closes in mid-download while metering is dead and settlement has lost what it held:
//! a tower on another machine has it.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    product::CLOSE_WINDOW_BLOCKS,
    report::{Cheat, Report},
};

use super::{
    READY_WAIT, TRANSFER_WAIT,
    lab::{Lab, Opened, number, text},
    outage::Victim,
};

const DOWNLOAD_BYTES: u64 = 320 << 20;
const RATE_BYTES_PER_S: u64 = 16 << 20;
/// Units that the channel can pay for: the download and half as much again.
const ALLOCATION_UNITS: u64 = 960;
/// Where the download is when metering dies: enough for a claim to be worth its fee.
const KILL_AT_BYTES: u64 = 80 << 20;
/// From the payer's close until the tower's claim is final: half of the close window, and some.
/// Less than the window, because what came later would be no claim in time.
const CLAIM_WAIT: Duration = Duration::from_secs(9);
/// From metering's return until the payee's close is on main: an epoch, and some.
const CLOSE_WAIT: Duration = Duration::from_secs(60);

impl Lab<'_> {
    /// Kills metering, removes settlement's claims, closes as the payer, sees the tower's claim in
    /// time, and reconciles when metering is back.
    pub(super) fn tower_elsewhere(&mut self, report: &mut Report) -> Result<Opened> {
        let interrupt = self.options.interrupt;
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        self.topology.limit_origin(RATE_BYTES_PER_S)?;
        let mut download = self.begin_download(DOWNLOAD_BYTES)?;
        self.say("downloading until metering dies");
        interrupt.wait("the download is on its way", TRANSFER_WAIT, || {
            Ok((download.bytes() >= KILL_AT_BYTES).then_some(()))
        })?;
        self.kill(Victim::Metering, report)?;
        self.say("waiting until the tower has what settlement has");
        let held = interrupt.wait("the tower has all claims", READY_WAIT, || {
            let status = self.provider.status(&self.topology, interrupt)?;
            let lacks = number(&status["towers"][0]["unconfirmed"]);
            let held = self.claim_elsewhere(&channel.id)?;
            Ok(held.filter(|_| lacks == Some(0)))
        })?;
        let redeemable = number(&held["redeemable"]).context("nothing is held")?;
        self.kill(Victim::Settlement, report)?;
        let claims = self.run_dir.join("data/settlement/claims");
        fs::remove_dir_all(&claims)
            .with_context(|| format!("cannot remove {}", claims.display()))?;
        self.revive(Victim::Settlement, &channel.id)?;

        // Control finds it again by itself; a close that is asked for twice would be refused.
        interrupt.wait("settlement answers", READY_WAIT, || {
            Ok(self.client_asks(&["chain", "vpn"]).ok())
        })?;

        self.say("closing the channel as its payer");
        let closing = self.client_asks(&["wallet", "close", &channel.id])?;
        let height = number(&closing["block"]["height"]).context("the close is in no block")?;
        let deadline = height + u64::from(CLOSE_WINDOW_BLOCKS);
        self.say("waiting for the claim of the tower");
        let claim = interrupt.wait("the tower's claim is final", CLAIM_WAIT, || {
            let claim = self.claim_elsewhere(&channel.id)?;
            Ok(claim.filter(|claim| claim["stage"] == "claimed"))
        })?;
        ensure!(
            number(&claim["paid"]) == Some(redeemable),
            "not what was held: {claim}"
        );
        let transaction = text(&claim["transaction"]).context("the tower claimed nothing")?;
        let shown = self.client_asks(&["tx", "show", &transaction, "--chain", "vpn"])?;
        let claimed = number(&shown["block"]["height"]).context("no block")?;
        ensure!(!download.transfer.ended()?, "the download was over first");
        drop(download);

        self.revive(Victim::Metering, &channel.id)?;
        self.say("waiting for the payee's close on the main chain");
        let close: Value = interrupt.wait("the payee's close is on main", CLOSE_WAIT, || {
            let close = self.channel(&channel.id)?["close"].clone();
            Ok(close["main_block"]["height"].is_u64().then_some(close))
        })?;
        let closed = number(&close["service_block"]["height"]).context("no block")?;
        self.count_client(&channel.id, report)?;
        report.fees_ntop.payer += self.fee("vpn", "close")?;
        self.reconcile(&channel, &close, report)?;
        report.cheats.push(Cheat {
            who: "a payer".into(),
            tried: "to close its channel while metering is dead and settlement has lost its claims"
                .into(),
            answer: format!(
                "the tower on another machine claimed in block {claimed}, {redeemable} nTOP; the \
                 rest was closed in block {closed}; the deadline was {deadline}"
            ),
            refused: (height..=deadline).contains(&claimed) && claimed < closed,
        });
        Ok(channel)
    }

    /// What the tower holds of a channel.
    fn claim_elsewhere(&self, channel: &str) -> Result<Option<Value>> {
        let tower = self.tower.as_ref().context("there is no tower")?;
        tower.claim(&self.topology, self.options.interrupt, channel)
    }
}
