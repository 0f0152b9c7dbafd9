//! Results as people read them.

use std::{
    fmt::Write,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use humantime::Rfc3339Timestamp;
use topnet_account::Amount;
use topnet_api::{
    AccountView, ChainReport, ChannelReport, ChannelState, ChannelStatus, ChannelView, ClaimReport,
    ClaimStage, CloseProgress, DayEarnings, Offer, ProviderStatus, ServiceView, SessionGrant,
    SessionReport, SessionStopped, SubmittedTransaction, TransactionStatus,
};

/// Something that a person can read. Ends with a line break, if it is not empty.
pub(super) trait Text {
    fn text(&self) -> String;
}

/// One after another, with an empty line between.
impl<T: Text> Text for [T] {
    fn text(&self) -> String {
        if self.is_empty() {
            return "none\n".to_owned();
        }
        self.iter().map(Text::text).collect::<Vec<_>>().join("\n")
    }
}

/// Names and values in two columns.
pub(super) struct Table(String);

impl Table {
    pub(super) fn new(title: impl std::fmt::Display) -> Self {
        Self(format!("{title}\n"))
    }

    pub(super) fn row(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "  {name:<18} {value}");
        self
    }

    pub(super) fn row_if(self, name: &str, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.row(name, value),
            None => self,
        }
    }

    pub(super) fn end(self) -> String {
        self.0
    }
}

/// Bytes as people say them.
pub(super) fn bytes(count: u64) -> String {
    const STEPS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match STEPS.iter().find(|(_, size)| count >= *size) {
        Some((unit, size)) => format!("{:.2} {unit}", count as f64 / *size as f64),
        None => format!("{count} B"),
    }
}

/// A time as people write it, in milliseconds since 1970.
pub(super) fn time(ms: u64) -> String {
    dated(ms, humantime::format_rfc3339_millis)
}

/// The same without what is less than a second.
pub(super) fn time_seconds(ms: u64) -> String {
    dated(ms, humantime::format_rfc3339_seconds)
}

/// Years have four digits; what is later is a clock that lies, or a stranger's RPC.
fn dated(ms: u64, format: fn(SystemTime) -> Rfc3339Timestamp) -> String {
    const YEAR_10000_MS: u64 = 253_402_300_800_000;
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(ms));
    match time.filter(|_| ms < YEAR_10000_MS) {
        Some(time) => format(time).to_string(),
        None => format!("{ms} ms since 1970"),
    }
}

impl Text for Offer {
    fn text(&self) -> String {
        let name = if self.name.is_empty() {
            "(no name)"
        } else {
            &self.name
        };
        let per_gb = self
            .unit_price
            .checked_mul(1_000_000_000)
            .map(|price| Amount::from_ntop(price.ntop() / self.unit_bytes.max(1)));
        Table::new(format_args!("{name} {}", self.region))
            .row("service", &self.service)
            .row(
                "price",
                format_args!("{} per {}", self.unit_price, bytes(self.unit_bytes)),
            )
            .row_if("price per GB", per_gb)
            .row("payee", self.payee)
            .row(
                "payment",
                format_args!("{} key {}", self.payment.address, self.payment.key),
            )
            .row(
                "wireguard",
                format_args!(
                    "{} key {}",
                    self.wireguard_endpoint, self.wireguard_public_key
                ),
            )
            .row(
                "window",
                format_args!("{} units at most", self.window_units_max),
            )
            .row(
                "count may differ",
                format_args!("{} %", f64::from(self.epsilon_ppm) / 10_000.0),
            )
            .row(
                "close window",
                format_args!("{} blocks at least", self.close_window_blocks_min),
            )
            .end()
    }
}

impl Text for ChainReport {
    fn text(&self) -> String {
        let parameters = &self.parameters;
        Table::new(&parameters.chain)
            .row("height", self.height)
            .row("tip", self.tip)
            .row("genesis", parameters.genesis)
            .row(
                "block interval",
                format_args!("{} ms", parameters.block_interval_ms),
            )
            .row("epoch", format_args!("{} blocks", parameters.epoch_blocks))
            .row("closing fee", parameters.closing_fee)
            .row(
                "allocation",
                format_args!("{} at least", parameters.allocation_min),
            )
            .row(
                "close window",
                format_args!("{} blocks at least", parameters.close_window_min),
            )
            .end()
    }
}

impl Text for AccountView {
    fn text(&self) -> String {
        Table::new(self.address)
            .row("balance", self.balance)
            .row("nonce", self.nonce)
            .end()
    }
}

impl Text for ServiceView {
    fn text(&self) -> String {
        Table::new(&self.chain)
            .row("escrow", self.escrow)
            .row("batches", self.batches)
            .row("waiting", self.waiting)
            .row("accepted", format!("block {}", self.accepted_height))
            .row(
                "dead",
                match self.dead {
                    true => "yes: `topnet wallet recover` brings home what is in it".to_owned(),
                    false => format!("from block {} of main, if it stays silent", self.dead_from),
                },
            )
            .end()
    }
}

impl Text for SubmittedTransaction {
    fn text(&self) -> String {
        format!("{}\n", self.id)
    }
}

impl Text for TransactionStatus {
    fn text(&self) -> String {
        let state = match &self.block {
            Some(block) => format!("in block {} of {}", block.height, block.chain),
            None => "waiting for a block".to_owned(),
        };
        let table = Table::new(self.id).row("state", state);
        self.events
            .iter()
            .fold(table, |table, event| table.row("did", event))
            .end()
    }
}

impl Text for ChannelView {
    fn text(&self) -> String {
        on_chain(Table::new(self.id), self).end()
    }
}

fn on_chain(table: Table, view: &ChannelView) -> Table {
    let state = match view.state {
        ChannelState::Open => "open".to_owned(),
        ChannelState::Closing { deadline } => format!("closing, final at block {deadline}"),
        ChannelState::Closed => "closed".to_owned(),
    };
    table
        .row("state", state)
        .row("chain", &view.chain)
        .row("payer", view.payer)
        .row("payee", view.payee)
        .row("signer", view.signer)
        .row("allocation", view.allocation)
        .row("paid", view.paid)
        .row("close window", format_args!("{} blocks", view.close_window))
        .row("expiry", format_args!("block {}", view.expiry))
}

fn with_payee(table: Table, status: &ChannelStatus) -> Table {
    let state = match &status.reason {
        Some(reason) => format!("{}: {reason}", status.state),
        None => status.state.clone(),
    };
    table
        .row("metering", state)
        .row(
            "payer",
            if status.connected {
                "connected"
            } else {
                "not connected"
            },
        )
        .row("metered", bytes(status.metered_bytes))
        .row("owed", format_args!("{} units", status.owed_units))
        .row("accepted", format_args!("{} units", status.accepted_units))
        .row(
            "written off",
            format_args!("{} units", status.written_off_units),
        )
        .row(
            "window",
            format_args!("{} units at most", status.window_units_max),
        )
        .row("redeemable", status.redeemable)
        .row("unpaid", bytes(status.unpaid_bytes))
}

impl Text for ChannelReport {
    fn text(&self) -> String {
        let mut table = Table::new(self.channel);
        if let Some(view) = &self.chain {
            table = on_chain(table, view);
        }
        if let Some(status) = &self.metering {
            table = with_payee(table, status);
        }
        table = self
            .sessions
            .iter()
            .fold(table, |table, session| table.row("session", session));
        match &self.close {
            Some(progress) => closing(table, progress).end(),
            None => table.end(),
        }
    }
}

impl Text for CloseProgress {
    fn text(&self) -> String {
        closing(Table::new(self.channel), self).end()
    }
}

fn closing(table: Table, progress: &CloseProgress) -> Table {
    let block = |block: &topnet_api::BlockRef| format!("{} {}", block.height, block.hash);
    table
        .row("close", progress.transaction)
        .row_if("service block", progress.service_block.as_ref().map(block))
        .row_if("main block", progress.main_block.as_ref().map(block))
        .row_if("redeemed", progress.redeemed)
        .row_if("payee's fees", progress.payee_fees)
        .row_if("refund", progress.refund)
}

impl Text for DayEarnings {
    fn text(&self) -> String {
        let day = time_seconds(self.day_ms);
        let day = day.split('T').next().unwrap_or_default();
        Table::new(format_args!("{day} on {}", self.chain))
            .row("paid", self.payout)
            .row("fees", self.fees)
            .row("units", self.units)
            .row("claims", self.claims)
            .end()
    }
}

impl Text for ClaimReport {
    fn text(&self) -> String {
        let stage = match self.stage {
            ClaimStage::Accepted => "accepted: paid for, and not claimed",
            ClaimStage::Claiming => "claiming: waits for a block",
            ClaimStage::Claimed => "claimed on the service's chain",
            ClaimStage::Settled => "settled on main",
        };
        let block = |block: &topnet_api::BlockRef| format!("{} {}", block.height, block.hash);
        Table::new(self.channel)
            .row("stage", stage)
            .row("redeemable", self.redeemable)
            .row("paid", self.paid)
            .row_if(
                "deadline",
                self.deadline.map(|height| format!("block {height}")),
            )
            .row_if("claim", self.transaction)
            .row_if("service block", self.service_block.as_ref().map(block))
            .row_if("main block", self.main_block.as_ref().map(block))
            .row_if("alarm", self.alarm.as_ref())
            .end()
    }
}

impl Text for SessionReport {
    fn text(&self) -> String {
        let table = Table::new(self.session)
            .row("channel", self.channel)
            .row("inner address", self.inner_address)
            .row_if("refused", self.refused.as_ref());
        let Some(traffic) = &self.traffic else {
            return table.row("data plane", "not installed").end();
        };
        let left = traffic
            .slot_limit_bytes
            .saturating_sub(traffic.slot_usage_bytes);
        table
            .row_if("endpoint", traffic.endpoint)
            .row("up", bytes(traffic.up_bytes))
            .row("down", bytes(traffic.down_bytes))
            .row_if(
                "given",
                Some(traffic.given_bytes)
                    .filter(|given| *given > 0)
                    .map(bytes),
            )
            .row_if(
                "handshake",
                traffic.handshake_age_s.map(|age| format!("{age} s ago")),
            )
            .row(
                "slot",
                format_args!("{} generation {}", traffic.slot, traffic.generation),
            )
            .row("credit left", bytes(left))
            .end()
    }
}

impl Text for SessionGrant {
    fn text(&self) -> String {
        self.wireguard.to_wg_quick(None)
    }
}

impl Text for SessionStopped {
    fn text(&self) -> String {
        let state = if self.stopped {
            "stopped"
        } else {
            "was not there"
        };
        format!("session {} {state}\n", self.session)
    }
}

impl Text for ProviderStatus {
    fn text(&self) -> String {
        let mut table = Table::new("provider").row_if("payee", self.payee);
        for process in &self.processes {
            let state = match &process.error {
                Some(error) => format!("{}; {}", error.what, error.mend),
                None => "answers".to_owned(),
            };
            table = table.row(&process.process, state);
        }
        if let Some(dataplane) = &self.dataplane {
            let io = &dataplane.io;
            let dropped: u64 = dataplane.drops.iter().map(|drop| drop.packets).sum();
            table = table
                .row(
                    "io",
                    format_args!("{} {} ({})", io.backend, io.mode, io.reason),
                )
                .row("interfaces", io.interfaces.join(", "))
                .row("workers", io.workers)
                .row_if(
                    "passed on",
                    (io.workers > 1)
                        .then_some(format_args!("{} packets", dataplane.passed_packets)),
                )
                .row("listens at", listening(&io.addresses))
                .row("dropped", format_args!("{dropped} packets"));
            let reasons = dataplane.drops.iter().filter(|drop| drop.packets > 0);
            table = reasons.fold(table, |table, drop| {
                table.row("", format_args!("{} {}", drop.packets, drop.reason))
            });
        }
        if let Some(nat) = self.dataplane.as_ref().and_then(|it| it.nat.as_ref()) {
            table = table
                .row(
                    "nat blocks",
                    format_args!(
                        "{} of {} lent to {} clients, {} rest",
                        nat.blocks_lent, nat.blocks, nat.clients, nat.blocks_resting
                    ),
                )
                .row(
                    "nat flows",
                    format_args!(
                        "{} of {}, of {} mappings of {}",
                        nat.flows, nat.flows_max, nat.mappings, nat.mappings_max
                    ),
                );
        }
        if let Some(metering) = &self.metering {
            table = table
                .row("payers", format_args!("{} connected", metering.connections))
                .row("tokens", metering.tokens)
                .row_if("frozen", metering.frozen.as_ref())
                .row(
                    "log archive",
                    format_args!("{} segments wait", metering.archive.waiting_segments),
                )
                .row_if("", metering.archive.problem.as_ref());
        }
        for chain in &self.chains {
            table = table.row(
                &format!("chain {}", chain.parameters.chain),
                format_args!("height {}", chain.height),
            );
        }
        table = table
            .row(
                "sessions",
                format_args!("{} (revision {})", self.sessions, self.revision),
            )
            .row("unpaid", bytes(self.unpaid_bytes));
        for tower in &self.towers {
            let state = match (&tower.problem, tower.unconfirmed) {
                (Some(problem), lacks) => format!("lacks {lacks} claims: {problem}"),
                (None, 0) => "has all claims".to_owned(),
                (None, lacks) => format!("lacks {lacks} claims"),
            };
            table = table.row(&format!("tower {}", tower.url), state);
        }
        self.closing
            .iter()
            .fold(table, |table, channel| table.row("closing", channel))
            .end()
    }
}

fn listening(addresses: &[IpAddr]) -> String {
    if addresses.is_empty() {
        return "every address".to_owned();
    }
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_calendar_has_is_told_as_it_is() {
        for (ms, told) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
            (253_402_300_800_000, "253402300800000 ms since 1970"),
            (u64::MAX, "18446744073709551615 ms since 1970"),
        ] {
            assert_eq!(time(ms), told);
        }
        assert_eq!(time_seconds(1_999), "1970-01-01T00:00:01Z");
        let day = DayEarnings {
            day_ms: u64::MAX,
            chain: topnet_api::ChainName::vpn(),
            claims: 1,
            units: 3,
            payout: Amount::ZERO,
            fees: Amount::ZERO,
        };
        assert!(day.text().starts_with("18446744073709551615 ms"));
    }
}
