//! The end of every scenario: counts at rest, the close, and what came of it on the main chain.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use topnet_unit::UNIT_BYTES;

use crate::report::{Amounts, Bytes, Client, Evidence, Fees, Io, Report, Units, Ways};

use super::{
    STILL_WAIT,
    lab::{Lab, Opened, number, paying_status, text},
};

impl Lab<'_> {
    /// What every scenario ends with: what was counted is at rest, the payee closes, and main has
    /// the money.
    pub(super) fn close_and_reconcile(
        &mut self,
        channel: &Opened,
        report: &mut Report,
    ) -> Result<()> {
        self.provider.check()?;
        self.count(&channel.id, report)?;
        self.say("closing the channel and waiting for the main chain");
        let words = ["channel", "close", &channel.id, "--wait", "--timeout", "60"];
        let interrupt = self.options.interrupt;
        let provider = &self.topology.provider;
        let close: Value = self.provider.topnet.ask(provider, interrupt, &words)?;
        self.reconcile(channel, &close, report)
    }

    /// Waits until the traffic is over.
    pub(super) fn wait_until_counts_rest(&self, channel: &str) -> Result<()> {
        let interrupt = self.options.interrupt;
        let mut last = (0, Instant::now());
        interrupt.wait("the counts rest", STILL_WAIT, || {
            let metering = self.channel(channel)?["metering"].clone();
            let usage = number(&metering["usage_bytes"]).context("no usage")?;
            if usage != last.0 {
                last = (usage, Instant::now());
            }
            let rests = last.1.elapsed() >= Duration::from_millis(700);
            let journalled = number(&metering["metered_bytes"]) == Some(usage);
            Ok((rests && journalled).then_some(()))
        })
    }

    /// The same, and the client's own counts then.
    pub(super) fn count_client(&self, channel: &str, report: &mut Report) -> Result<()> {
        self.wait_until_counts_rest(channel)?;
        let interrupt = self.options.interrupt;
        // No handshake or keepalive of the last moment is billed: neither count needs the tunnel
        // to be down, but what comes after belongs to nobody.
        let tunnel = self.tunnel.as_ref().context("no tunnel")?;
        let (received_bytes, sent_bytes) = tunnel.interface_bytes(&self.topology.client)?;
        report.client = Client {
            interface_bytes: received_bytes + sent_bytes,
            sent_bytes,
            received_bytes,
            transfer_bytes: tunnel.transfer_bytes(&self.topology.client, interrupt)?,
        };
        Ok(())
    }

    /// The same, and the session's counts beside.
    fn count(&self, channel: &str, report: &mut Report) -> Result<()> {
        self.say("waiting until the last unit is paid");
        self.count_client(channel, report)?;
        self.note_session(report)?;
        self.note_window(report)
    }

    /// What the data plane counted of the one session.
    pub(super) fn note_session(&self, report: &mut Report) -> Result<()> {
        let interrupt = self.options.interrupt;
        // While the session stands: its counters go with it.
        let sessions =
            self.provider
                .topnet
                .ask::<Value>(&self.topology.provider, interrupt, &["sessions"])?;
        let traffic = &sessions[0]["traffic"];
        let ways = |name: &str| number(&traffic[name]).context("no session counts");
        report.bytes.last_run = Some(Ways {
            up: ways("up_bytes")?,
            down: ways("down_bytes")?,
        });
        let io = self.provider.status(&self.topology, interrupt)?["dataplane"]["io"].clone();
        report.io = Io {
            backend: text(&io["backend"]).unwrap_or_default(),
            mode: text(&io["mode"]).unwrap_or_default(),
        };
        Ok(())
    }

    /// How far ahead the wallet was. It counts from its own start: an end takes that along.
    pub(super) fn note_window(&self, report: &mut Report) -> Result<()> {
        let status = paying_status(&self.wallet.status_file())?;
        let lead = number(&status["lead_units_max"]).context("no lead")?;
        report.units.window_max = report.units.window_max.max(lead);
        Ok(())
    }

    /// Puts together what metering, the wallet, the tables and both chains say of a channel
    /// whose `close` is on main.
    pub(super) fn reconcile(
        &mut self,
        channel: &Opened,
        close: &Value,
        report: &mut Report,
    ) -> Result<()> {
        let interrupt = self.options.interrupt;
        if let Some(mut paying) = self.paying.take() {
            paying.stop();
        }
        let status = paying_status(&self.wallet.status_file())?;
        let shown = self.channel(&channel.id)?;
        let metering = &shown["metering"];
        let of = |value: &Value, name: &str| {
            number(&value[name]).with_context(|| format!("no {name} in {value}"))
        };
        report.boots = self.watch.boots();
        report.beyond_credit_bytes = self.watch.beyond_credit_max();
        let usage = of(metering, "usage_bytes")?;
        report.bytes = Bytes {
            usage,
            metered: of(metering, "metered_bytes")?,
            lost: report.counted().saturating_sub(usage),
            ..report.bytes
        };
        let redeemed = of(close, "redeemed")?;
        let price = of(&status, "promised")?
            .checked_div(of(&status, "released_units")?)
            .context("nothing was released")?;
        let owed = of(metering, "owed_units")?;
        ensure!(
            redeemed.is_multiple_of(price),
            "{redeemed} is no whole number of units at {price}"
        );
        let (service_block, main_block) = (&close["service_block"], &close["main_block"]);
        let after = interrupt.wait("main has both payouts", STILL_WAIT, || {
            let balances = (
                self.main_balance(&self.wallet.address)?,
                self.main_balance(&self.provider.payee)?,
            );
            // Both stand in the same batch; a balance that has not moved yet would show it.
            Ok(
                (balances.1 != channel.before.1 && main_block["height"].is_u64())
                    .then_some(balances),
            )
        })?;
        report.fees_ntop = Fees {
            payee: of(close, "payee_fees")?,
            ..report.fees_ntop
        };
        report.amount_ntop = Amounts {
            redeemed,
            payer_main_delta: i128::from(after.0) - i128::from(channel.before.0),
            payee_main_delta: i128::from(after.1) - i128::from(channel.before.1),
        };
        let settled = u64::try_from(report.amount_ntop.payee_main_delta)
            .ok()
            .and_then(|delta| delta.checked_add(report.fees_ntop.payee))
            .context("the payee lost money")?;
        report.units = Units {
            owed,
            accepted: of(metering, "accepted_units")?,
            released: of(&status, "released_units")?,
            window_max: report.units.window_max.max(of(&status, "lead_units_max")?),
            redeemed: redeemed / price,
            settled: settled / price,
            remainder_bytes: owed * UNIT_BYTES - report.bytes.metered,
        };
        report.unpaid_bytes = of(metering, "unpaid_bytes")?;
        report.evidence = Evidence {
            channel: channel.id.clone(),
            close_tx: text(&close["transaction"]).unwrap_or_default(),
            close_chain: text(&service_block["chain"]).unwrap_or_default(),
            close_block: of(service_block, "height")?,
            main_block: of(main_block, "height")?,
        };
        Ok(())
    }
}
