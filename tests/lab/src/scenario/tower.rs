//! A payer that closes in mid-download while metering is dead and settlement has lost what it held:
//! a tower on another machine has it.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::report::Report;

use super::{
    READY_WAIT,
    lab::{Lab, Opened, number, text},
    outage::Victim,
    without_metering::CLAIM_WAIT,
};

/// Where the download is when metering dies: enough for a claim to be worth its fee.
const KILL_AT_BYTES: u64 = 80 << 20;

impl Lab<'_> {
    /// Kills metering, removes settlement's claims, closes as the payer, sees the tower's claim in
    /// time, and reconciles when metering is back.
    pub(super) fn tower_elsewhere(&mut self, report: &mut Report) -> Result<Opened> {
        let interrupt = self.options.interrupt;
        let (channel, download) = self.lose_metering(KILL_AT_BYTES, report)?;
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

        let close = self.close_as_payer(&channel)?;
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
        let closed = self.close_as_payee(&channel, download, report)?;
        Self::note_payers_close(
            report,
            "to close its channel while metering is dead and settlement has lost its claims",
            &format!("the tower on another machine claimed {redeemable} nTOP"),
            [claimed, closed],
            &close,
        );
        Ok(channel)
    }

    /// What the tower holds of a channel.
    fn claim_elsewhere(&self, channel: &str) -> Result<Option<Value>> {
        let tower = self.tower.as_ref().context("there is no tower")?;
        tower.claim(&self.topology, self.options.interrupt, channel)
    }
}
