//! A payer that closes in mid-download while metering is dead.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{report::Report, users};

use super::{
    READY_WAIT,
    lab::{Lab, Opened, number, text},
    without_metering::CLAIM_WAIT,
};

/// Where the download is when metering dies: enough for a claim to be worth its fee.
const KILL_AT_BYTES: u64 = 96 << 20;

impl Lab<'_> {
    /// Kills metering, closes as the payer, sees the claim that settlement held in time, and
    /// reconciles when metering is back.
    pub(super) fn settlement(&mut self, report: &mut Report) -> Result<Opened> {
        let interrupt = self.options.interrupt;
        let (channel, download) = self.lose_metering(KILL_AT_BYTES, report)?;
        let close = self.close_as_payer(&channel)?;
        self.say("waiting for the claim that nobody asks for");
        let claim = interrupt.wait("the tower's claim is final", CLAIM_WAIT, || {
            let claim = self.claim(&channel.id)?;
            Ok(claim["service_block"]["height"].is_u64().then_some(claim))
        })?;
        let claimed = number(&claim["service_block"]["height"]).context("no block")?;
        let paid = number(&claim["paid"]).context("nothing is paid")?;
        ensure!(paid > 0, "the claim paid nothing");
        let closed = self.close_as_payee(&channel, download, report)?;
        ensure!(
            closed <= close.deadline,
            "closed in block {closed}, after the deadline"
        );
        Self::note_payers_close(
            report,
            "to close its channel while metering is dead",
            &format!("what settlement held was claimed, {paid} nTOP, with metering dead,"),
            [claimed, closed],
            &close,
        );
        self.wait_settled(&channel.id)?;
        self.prove(&channel.id, report.units.owed)?;
        Ok(channel)
    }

    /// Whoever trusts nobody but the validators sees the channel's end and its last unit's line.
    fn prove(&self, channel: &str, owed: u64) -> Result<()> {
        self.say("proving the channel and its last unit to somebody who trusts nobody here");
        let interrupt = self.options.interrupt;
        let provider = &self.topology.provider;
        // Nobody else may read the service log.
        let topnet = self.provider.topnet.run_by(users::METERING);
        let ask = |words: &[&str]| -> Result<Value> { topnet.ask(provider, interrupt, words) };
        let genesis = self.run_dir.join("provider/genesis/vpn.json");
        let genesis = genesis.to_str().context("a path that is not UTF-8")?;
        let file = self.run_dir.join("proof.json");
        let path = file.to_str().context("a path that is not UTF-8")?;
        let last = owed.to_string();
        for subject in [vec!["channel", channel], vec!["unit", channel, &last]] {
            let proof = ask(&[&["prove"][..], &subject].concat())?;
            fs::write(&file, proof.to_string())?;
            let shown = ask(&["verify", path, "--genesis", genesis])?;
            let value = match subject[0] {
                "unit" => {
                    ensure!(
                        number(&shown["units"]) == Some(owed),
                        "the line is about other units: {shown}"
                    );
                    shown["channel"]["value"].clone()
                }
                _ => shown["value"].clone(),
            };
            ensure!(value["state"] == "closed", "not closed: {value}");
            // One digit of the proof is another.
            let forged = match proof.to_string().rfind("0x") {
                Some(at) => {
                    let mut text = proof.to_string();
                    let digit = if &text[at + 9..=at + 9] == "0" {
                        "1"
                    } else {
                        "0"
                    };
                    text.replace_range(at + 9..=at + 9, digit);
                    text
                }
                None => anyhow::bail!("a proof without bytes"),
            };
            fs::write(&file, forged)?;
            let believed = ask(&["verify", path, "--genesis", genesis]);
            ensure!(believed.is_err(), "a forged proof is believed");
        }
        Ok(())
    }

    /// What settlement holds of a channel.
    fn claim(&self, channel: &str) -> Result<Value> {
        let interrupt = self.options.interrupt;
        let provider = &self.topology.provider;
        let claims: Vec<Value> = self.provider.topnet.ask(provider, interrupt, &["claims"])?;
        let found = claims.into_iter().find(|claim| claim["channel"] == channel);
        found.with_context(|| format!("settlement holds no claim on {channel}"))
    }

    /// The operator sees that it is over, and nothing to worry about.
    fn wait_settled(&self, channel: &str) -> Result<()> {
        let interrupt = self.options.interrupt;
        let claim = interrupt.wait("the claim is settled", READY_WAIT, || {
            let claim = self.claim(channel)?;
            Ok((text(&claim["stage"]).as_deref() == Some("settled")).then_some(claim))
        })?;
        ensure!(
            claim["alarm"].is_null(),
            "an alarm is left: {}",
            claim["alarm"]
        );
        Ok(())
    }
}
