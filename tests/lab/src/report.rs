//! What a scenario measured, as JSON for programs and a table for people, and whether it holds.

mod soak;

use serde::Serialize;
use topnet_unit::{UNIT_BYTES, units_owed};

use crate::watch::Boot;

pub use self::soak::{Done, Level, Soak};

/// The most units that a wallet pays ahead, if nothing else is configured.
pub const WINDOW_UNITS_MAX: u64 = 64;

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
    /// What was stopped and started in order.
    pub restarts: Vec<Restart>,
    /// What was tried to get more than is due.
    pub cheats: Vec<Cheat>,
    /// What happened by chance.
    pub chaos: Option<Chaos>,
    /// What grew, and what did not, in a run of that scenario.
    pub soak: Option<Soak>,
    /// Bytes forwarded beyond what was paid for, as metering says.
    pub unpaid_bytes: u64,
    /// The furthest that a slot was seen above its credit, by the lab's own look at the tables.
    pub beyond_credit_bytes: u64,
    /// Runs of the data plane.
    pub boots: Vec<Boot>,
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
    /// Over all runs of the data plane, as metering has read their tables.
    pub usage: u64,
    /// As the journal says.
    pub metered: u64,
    /// Counted in tables that nobody read to their end: data plane and metering died at once.
    pub lost: u64,
    /// Each way in the last run of the data plane; `None` if its session went first.
    pub last_run: Option<Ways>,
}

/// Bytes each way.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Ways {
    /// From the client.
    pub up: u64,
    /// To the client.
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
    /// What the traffic did meanwhile.
    pub traffic: Traffic,
    /// The longest that nothing arrived, from the end until the traffic flows again.
    pub stalled_ms: u64,
    /// From its return until bytes arrive that were paid for after it.
    pub resumed_ms: u64,
}

/// A process that was stopped and started in order.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Restart {
    /// Which.
    pub process: String,
    /// The longest that no datagram came back, of one every 10 ms.
    pub outage_ms: u64,
    /// From the order to stop until a running download had more bytes.
    pub download_ms: u64,
}

impl Restart {
    /// What an orderly restart may cost: anybody on a call hears a gap and no more.
    pub const OUTAGE_MS_MAX: u64 = 1_000;
}

/// What traffic does while a process is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
    /// Nothing was to be seen of it.
    #[default]
    WentOn,
    /// It ran to its credit limit, and stopped there.
    StoppedAtLimit,
    /// It stopped before its limit.
    Stopped,
}

/// An attempt to get more than is due.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cheat {
    /// Who tries.
    pub who: String,
    /// What is tried.
    pub tried: String,
    /// What came of it.
    pub answer: String,
    /// It came to nothing, in the way that it should.
    pub refused: bool,
}

/// What happened by chance, in a run of that scenario.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Chaos {
    /// What decided.
    pub seed: u64,
    /// Every round, in order.
    pub rounds: Vec<Round>,
    /// Processes that were ended, one at a time.
    pub kills: u64,
    /// Pairs of processes that were ended at once.
    pub double_kills: u64,
    /// Of these, data plane and metering: what they counted last may be the provider's loss.
    pub double_deaths: u64,
    /// Processes that were stopped for a moment.
    pub pauses: u64,
    /// Times that metering's disk was full.
    pub full_disks: u64,
    /// Processes that ended though nobody ended them, each with the round.
    pub exits: Vec<String>,
    /// The most that all tables together were seen above what was paid; with what was lost.
    pub beyond_paid_bytes: u64,
    /// Files that came through.
    pub files: u64,
    /// The longest until paid traffic flowed again, each way.
    pub resumed_ms_max: u64,
}

/// One round of chaos.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Round {
    /// What was done.
    pub action: String,
    /// What metering and others did of themselves.
    pub noticed: String,
    /// From then until paid traffic flowed again, each way.
    pub resumed_ms: u64,
}

/// Where to look it up.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Evidence {
    /// The channel.
    pub channel: String,
    /// The payee's close.
    pub close_tx: String,
    /// The chain that it is on: the service's, or main if that is dead.
    pub close_chain: String,
    /// Its block there.
    pub close_block: u64,
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
            (
                "released ≤ owed + the widest window there is",
                units.released <= units.owed + WINDOW_UNITS_MAX,
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
                "billed up + billed down = what the last run counted",
                self.bytes.last_run.is_none_or(|ways| {
                    Some(ways.up + ways.down) == self.boots.last().map(|boot| boot.bytes)
                }),
            ),
            (
                "billed up ≤ what the client sent",
                self.bytes
                    .last_run
                    .is_none_or(|ways| ways.up <= self.client.sent_bytes),
            ),
            (
                "billed down ≥ what the client received",
                self.billed_down_max() >= self.client.received_bytes,
            ),
            (
                "usage + lost = all that the data plane's runs counted",
                self.bytes.usage + self.bytes.lost == self.counted(),
            ),
            (
                "nothing is lost unless data plane and metering die at once",
                self.bytes.lost <= self.double_deaths() * WINDOW_UNITS_MAX * UNIT_BYTES,
            ),
            (
                "only what was lost is ever beyond what was paid",
                self.chaos
                    .as_ref()
                    .is_none_or(|chaos| chaos.beyond_paid_bytes <= self.bytes.lost),
            ),
            (
                "no slot is ever above its credit",
                self.beyond_credit_bytes == 0,
            ),
            (
                "every cheat comes to nothing",
                self.cheats.iter().all(|cheat| cheat.refused),
            ),
            (
                "an orderly restart is over within a second",
                self.restarts
                    .iter()
                    .all(|restart| restart.outage_ms < Restart::OUTAGE_MS_MAX),
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
        let grew = self.soak.iter().flat_map(Soak::mismatches);
        broken
            .map(|(rule, _)| rule.to_owned())
            .chain(grew)
            .collect()
    }

    /// All that the runs of the data plane counted.
    pub fn counted(&self) -> u64 {
        self.boots.iter().map(|boot| boot.bytes).sum()
    }

    /// The most that can have been billed down: of earlier runs of the data plane nobody knows
    /// which way their bytes went.
    fn billed_down_max(&self) -> u64 {
        let up = self.bytes.last_run.map_or(0, |ways| ways.up);
        self.counted().saturating_sub(up)
    }

    fn double_deaths(&self) -> u64 {
        self.chaos.as_ref().map_or(0, |chaos| chaos.double_deaths)
    }

    /// The table.
    pub fn table(&self) -> String {
        let units = &self.units;
        let [up, down] = match self.bytes.last_run {
            // Of one run among several it would be no sum of anything above.
            Some(ways) if self.boots.len() == 1 => [ways.up, ways.down].map(|n| n.to_string()),
            _ => ["", ""].map(str::to_owned),
        };
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
            (
                "  lost",
                self.bytes.lost.to_string(),
                "counted in tables that died with metering",
            ),
            ("  up", up, "from the client"),
            (
                "    client sent",
                self.client.sent_bytes.to_string(),
                "at its tunnel interface; no less",
            ),
            ("  down", down, "to the client"),
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
            (
                "  above credit",
                self.beyond_credit_bytes.to_string(),
                "the most, sampled in the tables",
            ),
        ];
        let mut text = format!("{} ({:.1} s)\n", self.scenario, self.seconds);
        for (name, value, note) in rows {
            text.push_str(&format!("  {name:<22} {value:>14}   {note}\n"));
        }
        self.add_events(&mut text);
        for mismatch in self.mismatches() {
            text.push_str(&format!("  DOES NOT HOLD: {mismatch}\n"));
        }
        text.push_str(&format!(
            "  close {} in {} block {}, main block {}\n",
            self.evidence.close_tx,
            self.evidence.close_chain,
            self.evidence.close_block,
            self.evidence.main_block
        ));
        text
    }

    /// What was done to the run.
    fn add_events(&self, text: &mut String) {
        for kill in &self.kills {
            let traffic = match kill.traffic {
                Traffic::WentOn => "traffic went on",
                Traffic::StoppedAtLimit => "traffic stopped at its limit",
                Traffic::Stopped => "traffic stopped",
            };
            text.push_str(&format!(
                "  kill {:<17} {:>14}   bytes had arrived; {traffic}, flowed {} ms after the return, \
                 stood still for {} ms\n",
                kill.process, kill.at_bytes, kill.resumed_ms, kill.stalled_ms
            ));
        }
        for restart in &self.restarts {
            text.push_str(&format!(
                "  restart {:<14} {:>14}   ms without a datagram (outage); a download went on after {} ms\n",
                restart.process, restart.outage_ms, restart.download_ms
            ));
        }
        for Cheat {
            who,
            tried,
            answer,
            refused,
        } in &self.cheats
        {
            let came = if *refused { "refused" } else { "NOT REFUSED" };
            text.push_str(&format!("  {who}: {tried}: {came}: {answer}\n"));
        }
        if let Some(chaos) = &self.chaos {
            text.push_str(&format!(
                "  chaos: seed {}, {} rounds: {} kills, {} double kills ({} of data plane and \
                 metering), {} pauses, {} full disks; {} files came through, traffic flowed again \
                 after {} ms at most; {} bytes beyond what was paid at most\n",
                chaos.seed,
                chaos.rounds.len(),
                chaos.kills,
                chaos.double_kills,
                chaos.double_deaths,
                chaos.pauses,
                chaos.full_disks,
                chaos.files,
                chaos.resumed_ms_max,
                chaos.beyond_paid_bytes
            ));
            for exit in &chaos.exits {
                text.push_str(&format!("    {exit}\n"));
            }
        }
        if let Some(soak) = &self.soak {
            text.push_str(&soak.rows());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(bytes: u64) -> Boot {
        Boot {
            boot: String::new(),
            bytes,
        }
    }

    fn last_run(report: &mut Report) -> &mut Ways {
        report.bytes.last_run.as_mut().unwrap()
    }

    fn good() -> Report {
        Report {
            bytes: Bytes {
                usage: UNIT_BYTES + 1,
                metered: UNIT_BYTES + 1,
                lost: 0,
                last_run: Some(Ways {
                    up: 1,
                    down: UNIT_BYTES - 1,
                }),
            },
            boots: [1, UNIT_BYTES].map(boot).into(),
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
        type Spoil = fn(&mut Report);
        let spoils: [(Spoil, &str); 20] = [
            (|r| r.units.redeemed -= 1, "owed = redeemed"),
            (|r| r.units.settled -= 1, "redeemed = settled"),
            (|r| r.units.owed += 1, "owed = redeemed"),
            (|r| r.units.released = 5, "released ≤"),
            (
                |r| (r.units.released, r.units.window_max) = (3 + WINDOW_UNITS_MAX, 99),
                "the widest window",
            ),
            (|r| r.units.accepted = 5, "accepted ≤ released"),
            (|r| r.bytes.metered -= 1, "metered = usage"),
            (|r| r.unpaid_bytes = 1, "unpaid"),
            (|r| r.amount_ntop.payee_main_delta -= 1, "payee's delta"),
            (|r| r.amount_ntop.payer_main_delta -= 1, "payer's delta"),
            (|r| r.client.sent_bytes -= 1, "billed up ≤"),
            (|r| r.client.received_bytes += 1, "billed down ≥"),
            (|r| last_run(r).down += 1, "billed up + billed down"),
            (|r| last_run(r).up -= 1, "billed up + billed down"),
            (|r| r.boots[0].bytes += 1, "usage + lost"),
            (|r| r.boots[0].bytes -= 1, "usage + lost"),
            (|r| r.bytes.lost += 1, "nothing is lost"),
            (|r| r.beyond_credit_bytes = 1, "above its credit"),
            (|r| r.cheats.push(Cheat::default()), "every cheat"),
            (
                |r| {
                    let sha256_origin = "other".to_owned();
                    r.files.push(Transferred {
                        sha256_origin,
                        ..Transferred::default()
                    });
                },
                "every file",
            ),
        ];
        for (number, (spoil, named)) in spoils.iter().enumerate() {
            let mut report = good();
            spoil(&mut report);
            let mismatches = report.mismatches();
            let is_named = mismatches.iter().any(|rule| rule.contains(named));
            assert!(is_named, "{number}: {named}: {mismatches:?}");
        }
    }

    #[test]
    fn what_a_double_death_loses_is_counted_apart_and_bounded() {
        let mut report = good();
        report.boots[0].bytes += 7;
        report.bytes.lost = 7;
        assert_eq!(
            report.mismatches(),
            ["nothing is lost unless data plane and metering die at once"]
        );
        report.chaos = Some(Chaos {
            double_deaths: 1,
            ..Chaos::default()
        });
        assert_eq!(report.mismatches(), [""; 0]);
        let beyond = |bytes| {
            move |report: &mut Report| {
                if let Some(chaos) = &mut report.chaos {
                    chaos.beyond_paid_bytes = bytes;
                }
            }
        };
        beyond(8)(&mut report);
        assert_eq!(report.mismatches().len(), 1);
        beyond(7)(&mut report);
        assert_eq!(report.mismatches(), [""; 0]);
        let window = WINDOW_UNITS_MAX * UNIT_BYTES;
        report.boots[0].bytes += window;
        report.bytes.lost += window;
        assert_eq!(report.mismatches().len(), 1);
    }
}
