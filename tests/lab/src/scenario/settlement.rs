//! A payer that closes in mid-download while metering is dead.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    product::CLOSE_WINDOW_BLOCKS,
    report::{Cheat, Report},
    users,
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
const KILL_AT_BYTES: u64 = 96 << 20;
/// From the payer's close until the tower's claim is final: a quarter of the close window, and
/// some. Less than the window, because what came later would be no claim in time.
const CLAIM_WAIT: Duration = Duration::from_secs(9);
/// From metering's return until the payee's close is on main: an epoch, and some.
const CLOSE_WAIT: Duration = Duration::from_secs(60);

impl Lab<'_> {
    /// Kills metering, closes as the payer, sees the claim that settlement held in time, and
    /// reconciles when metering is back.
    pub(super) fn settlement(&mut self, report: &mut Report) -> Result<Opened> {
        let interrupt = self.options.interrupt;
        let channel = self.begin(ALLOCATION_UNITS, report)?;
        self.topology.limit_origin(RATE_BYTES_PER_S)?;
        let mut download = self.begin_download(DOWNLOAD_BYTES)?;
        self.say("downloading until metering dies");
        interrupt.wait("the download is on its way", TRANSFER_WAIT, || {
            Ok((download.bytes() >= KILL_AT_BYTES).then_some(()))
        })?;
        self.kill(Victim::Metering, report)?;

        self.say("closing the channel as its payer");
        let closing = self.client_asks(&["wallet", "close", &channel.id])?;
        let height = number(&closing["block"]["height"]).context("the close is in no block")?;
        let deadline = height + u64::from(CLOSE_WINDOW_BLOCKS);
        self.say("waiting for the claim that nobody asks for");
        let claim = interrupt.wait("the tower's claim is final", CLAIM_WAIT, || {
            let claim = self.claim(&channel.id)?;
            Ok(claim["service_block"]["height"].is_u64().then_some(claim))
        })?;
        let claimed = number(&claim["service_block"]["height"]).context("no block")?;
        let paid = number(&claim["paid"]).context("nothing is paid")?;
        ensure!(paid > 0, "the claim paid nothing");
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
            tried: "to close its channel while metering is dead".into(),
            answer: format!(
                "what settlement held was claimed in block {claimed}, {paid} nTOP, with metering \
                 dead; the rest was closed in block {closed}; the deadline was {deadline}"
            ),
            refused: claimed < closed && closed <= deadline,
        });
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
