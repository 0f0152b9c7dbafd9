//! The end of every scenario: counts at rest, the close, and what came of it on the main chain.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use topnet_unit::UNIT_BYTES;

use crate::report::{Amounts, Bytes, Client, Evidence, Fees, Io, Report, Units};

use super::{
    STILL_WAIT,
    lab::{Lab, number, paying_status, text},
};

impl Lab<'_> {
    /// Ends the traffic, then takes the client's own counts.
    pub(super) fn count(&mut self, channel: &str, report: &mut Report) -> Result<()> {
        self.say("waiting until the last unit is paid");
        let interrupt = self.options.interrupt;
        let status_file = self.wallet.status_file();
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
        })?;
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
        // While the session stands: its counters go with it.
        let sessions =
            self.provider
                .topnet
                .ask::<Value>(&self.topology.provider, interrupt, &["sessions"])?;
        let traffic = &sessions[0]["traffic"];
        report.bytes.up = number(&traffic["up_bytes"]).context("no session counts")?;
        report.bytes.down = number(&traffic["down_bytes"]).context("no session counts")?;
        let io = self.provider.status(&self.topology, interrupt)?["dataplane"]["io"].clone();
        report.io = Io {
            backend: text(&io["backend"]).unwrap_or_default(),
            mode: text(&io["mode"]).unwrap_or_default(),
        };
        let status = paying_status(&status_file)?;
        report.units.window_max = number(&status["lead_units_max"]).context("no lead")?;
        Ok(())
    }

    /// Closes the channel, waits for main and reconciles.
    pub(super) fn settle(
        &mut self,
        channel: &str,
        before: (u64, u64),
        report: &mut Report,
    ) -> Result<()> {
        self.say("closing the channel and waiting for the main chain");
        let interrupt = self.options.interrupt;
        let words = ["channel", "close", channel, "--wait", "--timeout", "60"];
        let close: Value = self
            .provider
            .topnet
            .ask(&self.topology.provider, interrupt, &words)?;
        if let Some(mut paying) = self.paying.take() {
            paying.stop();
        }
        let status = paying_status(&self.wallet.status_file())?;
        let shown = self.channel(channel)?;
        let metering = &shown["metering"];
        let of = |value: &Value, name: &str| {
            number(&value[name]).with_context(|| format!("no {name} in {value}"))
        };
        report.bytes = Bytes {
            usage: of(metering, "usage_bytes")?,
            metered: of(metering, "metered_bytes")?,
            ..report.bytes
        };
        let redeemed = of(&close, "redeemed")?;
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
            Ok((balances.1 != before.1 && main_block["height"].is_u64()).then_some(balances))
        })?;
        report.fees_ntop = Fees {
            payee: of(&close, "payee_fees")?,
            ..report.fees_ntop
        };
        report.amount_ntop = Amounts {
            redeemed,
            payer_main_delta: i128::from(after.0) - i128::from(before.0),
            payee_main_delta: i128::from(after.1) - i128::from(before.1),
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
            channel: channel.to_owned(),
            close_tx: text(&close["transaction"]).unwrap_or_default(),
            service_block: of(service_block, "height")?,
            main_block: of(main_block, "height")?,
        };
        Ok(())
    }
}
