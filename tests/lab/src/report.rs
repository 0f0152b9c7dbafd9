//! What a scenario measured, as JSON for programs and a table for people, and whether it holds.

use serde::Serialize;
use topnet_unit::units_owed;

/// One scenario's reconciliation.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// Everything holds.
    pub ok: bool,
    /// Billable bytes.
    pub bytes: Bytes,
    /// The client's own counts beside.
    pub client: Client,
    /// Units on their way to the main chain.
    pub units: Units,
    /// Money.
    pub amount_ntop: Amounts,
    /// Fees.
    pub fees_ntop: Fees,
    /// What was transferred.
    pub files: Vec<Transferred>,
    /// What was ended in the middle.
    pub kills: Vec<Kill>,
    /// Bytes forwarded beyond what was paid for.
    pub unpaid_bytes: u64,
    /// Runs of the data plane.
    pub boots: u64,
    /// Where to look it up.
    pub evidence: Evidence,
    /// How packets came in and went out.
    pub io: Io,
    /// How long it took.
    pub seconds: f64,
    /// On what.
    pub machine: String,
    /// Of what.
    pub commit: String,
}

/// Billable bytes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Bytes {
    /// As the tables say.
    pub usage: u64,
    /// As the journal says.
    pub metered: u64,
    /// Of the usage, what came from the client.
    pub up: u64,
    /// Of the usage, what went to the client.
    pub down: u64,
}

/// The client's own counts. A packet may be lost before it is billed on its way up, and after
/// it was on its way down: so at most what it sent is billed, and at least what it received.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Client {
    /// At the tunnel interface, both ways.
    pub interface_bytes: u64,
    /// Of these, sent.
    pub sent_bytes: u64,
    /// Of these, received.
    pub received_bytes: u64,
    /// WireGuard's transfer, with its overhead.
    pub transfer_bytes: u64,
}

/// Units on their way.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Units {
    /// Begun.
    pub owed: u64,
    /// Paid for by durable tokens.
    pub accepted: u64,
    /// Paid by the wallet.
    pub released: u64,
    /// The furthest that the wallet was ever ahead.
    pub window_max: u64,
    /// Paid out by the service chain.
    pub redeemed: u64,
    /// Accepted by the main chain.
    pub settled: u64,
    /// Bytes of the last unit that were not used.
    pub remainder_bytes: u64,
}

/// Money, in nTOP.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Amounts {
    /// Redeemed by the payee, its fees included.
    pub redeemed: u64,
    /// By how much the payee's balance on main changed.
    pub payee_main_delta: i128,
    /// By how much the payer's balance on main changed.
    pub payer_main_delta: i128,
}

/// Fees, in nTOP, from the chains' rules and events.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Fees {
    /// For funding and opening.
    pub payer: u64,
    /// Out of the payout.
    pub payee: u64,
}

/// A file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Transferred {
    /// Its length.
    pub bytes: u64,
    /// At the origin.
    pub sha256_origin: String,
    /// At the client.
    pub sha256_client: String,
}

/// A process that was ended in the middle.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Kill {
    /// Which.
    pub process: String,
    /// When: bytes of the download that had arrived.
    pub at_bytes: u64,
    /// From its return until bytes arrived again.
    pub resumed_ms: u64,
}

/// Where to look it up.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Evidence {
    /// The channel.
    pub channel: String,
    /// The payee's close.
    pub close_tx: String,
    /// Block of the close on the service chain.
    pub service_block: u64,
    /// Block of the batch on main.
    pub main_block: u64,
}

/// How packets came in and went out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Io {
    /// As the data plane says.
    pub backend: String,
    /// As the data plane says.
    pub mode: String,
}

impl Report {
    /// Everything that does not hold, in words.
    pub fn mismatches(&self) -> Vec<String> {
        let units = &self.units;
        let amounts = &self.amount_ntop;
        let redeemed = i128::from(amounts.redeemed);
        let payee_delta = redeemed - i128::from(self.fees_ntop.payee);
        let payer_delta = -redeemed - i128::from(self.fees_ntop.payer);
        let held = [
            (
                "owed is what the bytes come to",
                units.owed == units_owed(self.bytes.metered, 0),
            ),
            ("metered = usage", self.bytes.metered == self.bytes.usage),
            ("something was used", units.owed > 0),
            ("owed = redeemed", units.owed == units.redeemed),
            ("redeemed = settled", units.redeemed == units.settled),
            ("settled ≤ accepted", units.settled <= units.accepted),
            ("accepted ≤ released", units.accepted <= units.released),
            (
                "released ≤ owed + window",
                units.released <= units.owed + units.window_max,
            ),
            ("nothing was forwarded unpaid", self.unpaid_bytes == 0),
            (
                "payee's delta = redeemed − its fees",
                amounts.payee_main_delta == payee_delta,
            ),
            (
                "payer's delta = −redeemed − its fees",
                amounts.payer_main_delta == payer_delta,
            ),
            (
                "billed up + billed down = usage",
                self.bytes.up + self.bytes.down == self.bytes.usage,
            ),
            (
                "billed up ≤ what the client sent",
                self.bytes.up <= self.client.sent_bytes,
            ),
            (
                "billed down ≥ what the client received",
                self.bytes.down >= self.client.received_bytes,
            ),
            (
                "WireGuard moved no less than was billed",
                self.client.transfer_bytes >= self.bytes.usage,
            ),
            (
                "every file is right",
                self.files
                    .iter()
                    .all(|f| f.sha256_origin == f.sha256_client),
            ),
        ];
        let broken = held.into_iter().filter(|(_, holds)| !holds);
        broken.map(|(rule, _)| rule.to_owned()).collect()
    }

    /// The table.
    pub fn table(&self) -> String {
        let units = &self.units;
        let rows = [
            (
                "billed bytes",
                self.bytes.usage.to_string(),
                "counted by the fast path",
            ),
            (
                "  journalled",
                self.bytes.metered.to_string(),
                "by metering",
            ),
            ("  up", self.bytes.up.to_string(), "from the client"),
            (
                "    client sent",
                self.client.sent_bytes.to_string(),
                "at its tunnel interface; no less",
            ),
            ("  down", self.bytes.down.to_string(), "to the client"),
            (
                "    client received",
                self.client.received_bytes.to_string(),
                "at its tunnel interface; no more",
            ),
            (
                "  client's transfer",
                self.client.transfer_bytes.to_string(),
                "both ways as WireGuard counts, with its overhead",
            ),
            ("units owed", units.owed.to_string(), "begun"),
            (
                "  accepted",
                units.accepted.to_string(),
                "paid for by durable tokens",
            ),
            (
                "  released",
                units.released.to_string(),
                "paid by the wallet, window included",
            ),
            (
                "  redeemed",
                units.redeemed.to_string(),
                "paid out by the service chain",
            ),
            (
                "  settled",
                units.settled.to_string(),
                "accepted by the main chain",
            ),
            (
                "redeemed nTOP",
                self.amount_ntop.redeemed.to_string(),
                "fees included",
            ),
            (
                "  payee on main",
                format!("{:+}", self.amount_ntop.payee_main_delta),
                "redeemed less its fees",
            ),
            (
                "  payer on main",
                format!("{:+}", self.amount_ntop.payer_main_delta),
                "redeemed and its fees",
            ),
            (
                "unpaid bytes",
                self.unpaid_bytes.to_string(),
                "forwarded beyond what was paid",
            ),
        ];
        let mut text = format!("{} ({:.1} s)\n", self.scenario, self.seconds);
        for (name, value, note) in rows {
            text.push_str(&format!("  {name:<22} {value:>14}   {note}\n"));
        }
        for mismatch in self.mismatches() {
            text.push_str(&format!("  DOES NOT HOLD: {mismatch}\n"));
        }
        text.push_str(&format!(
            "  close {} in vpn block {}, main block {}\n",
            self.evidence.close_tx, self.evidence.service_block, self.evidence.main_block
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use topnet_unit::UNIT_BYTES;

    use super::*;

    fn good() -> Report {
        Report {
            bytes: Bytes {
                usage: UNIT_BYTES + 1,
                metered: UNIT_BYTES + 1,
                up: 1,
                down: UNIT_BYTES,
            },
            client: Client {
                interface_bytes: UNIT_BYTES + 1,
                sent_bytes: 1,
                received_bytes: UNIT_BYTES,
                transfer_bytes: UNIT_BYTES + 9,
            },
            units: Units {
                owed: 2,
                accepted: 3,
                released: 4,
                window_max: 2,
                redeemed: 2,
                settled: 2,
                remainder_bytes: UNIT_BYTES - 1,
            },
            amount_ntop: Amounts {
                redeemed: 50,
                payee_main_delta: 45,
                payer_main_delta: -57,
            },
            fees_ntop: Fees { payer: 7, payee: 5 },
            ..Report::default()
        }
    }

    #[test]
    fn a_mismatch_of_one_is_named() {
        assert_eq!(good().mismatches(), [""; 0]);
        let spoils: [fn(&mut Report); 12] = [
            |r| r.units.redeemed -= 1,
            |r| r.units.settled -= 1,
            |r| r.units.owed += 1,
            |r| r.units.released = 5,
            |r| r.units.accepted = 5,
            |r| r.bytes.metered -= 1,
            |r| r.unpaid_bytes = 1,
            |r| r.amount_ntop.payee_main_delta -= 1,
            |r| r.amount_ntop.payer_main_delta -= 1,
            |r| r.client.sent_bytes -= 1,
            |r| r.client.received_bytes += 1,
            |r| r.bytes.down += 1,
        ];
        for (number, spoil) in spoils.iter().enumerate() {
            let mut report = good();
            spoil(&mut report);
            assert!(!report.mismatches().is_empty(), "{number}");
        }
    }
}
