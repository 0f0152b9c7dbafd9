//! What changes, looked at again and again: one line each, with rates.

use std::{
    collections::HashMap,
    fmt::Write,
    hash::Hash,
    time::{Duration, Instant},
};

use topnet_account::ChannelId;
use topnet_api::{ChannelStatus, ProviderStatus, SessionReport};

use super::{arguments::Options, client::Rpc, error::CliError, output::Output, text::bytes};
use crate::rpc::OperatorClient;

/// `topnet channels --watch`: those with a payer or a slot.
pub(super) async fn channels(
    options: &Options,
    seconds: u64,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::operator(options)?;
    let mut rates = Rates::default();
    loop {
        let status = rpc.check(rpc.client.status().await)?;
        let mut channels: Vec<ChannelStatus> = Vec::new();
        loop {
            let after = channels.last().map(|channel| channel.channel);
            let page = rpc.check(rpc.client.live_channels(after).await)?;
            if page.is_empty() {
                break;
            }
            channels.extend(page);
        }
        let counts = channels
            .iter()
            .map(|channel| (channel.channel, channel.usage_bytes));
        rates.look(counts);
        output.show(&channels, &channels_page(&status, &channels, &rates));
        if wait(seconds).await {
            return Ok(());
        }
    }
}

/// `topnet sessions --watch`.
pub(super) async fn sessions(
    options: &Options,
    seconds: u64,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::operator(options)?;
    let mut rates = Rates::default();
    loop {
        let status = rpc.check(rpc.client.status().await)?;
        let sessions = rpc.check(rpc.client.sessions().await)?;
        let counts = sessions.iter().filter_map(|report| {
            let traffic = report.traffic.as_ref()?;
            let total = traffic.up_bytes.saturating_add(traffic.down_bytes);
            Some((report.session.to_string(), total))
        });
        rates.look(counts);
        output.show(&sessions, &sessions_page(&status, &sessions, &rates));
        if wait(seconds).await {
            return Ok(());
        }
    }
}

/// True if it is time to end.
async fn wait(seconds: u64) -> bool {
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(seconds)) => false,
        _ = tokio::signal::ctrl_c() => true,
    }
}

/// How fast totals rise from one look to the next.
struct Rates<K> {
    at: Instant,
    totals: HashMap<K, u64>,
    per_second: HashMap<K, u64>,
}

impl<K: Hash + Eq + Clone> Default for Rates<K> {
    fn default() -> Self {
        Self {
            at: Instant::now(),
            totals: HashMap::new(),
            per_second: HashMap::new(),
        }
    }
}

impl<K: Hash + Eq + Clone> Rates<K> {
    fn look(&mut self, totals: impl Iterator<Item = (K, u64)>) {
        let passed = self.at.elapsed();
        self.at = Instant::now();
        let totals: HashMap<K, u64> = totals.collect();
        self.per_second = rates_between(&self.totals, &totals, passed);
        self.totals = totals;
    }

    fn of(&self, key: &K) -> u64 {
        self.per_second.get(key).copied().unwrap_or(0)
    }

    fn sum(&self) -> u64 {
        self.per_second
            .values()
            .fold(0, |sum, rate| sum.saturating_add(*rate))
    }
}

/// Of what was not there before nobody knows how fast it rises.
fn rates_between<K: Hash + Eq + Clone>(
    before: &HashMap<K, u64>,
    now: &HashMap<K, u64>,
    passed: Duration,
) -> HashMap<K, u64> {
    let millis = passed.as_millis().max(1);
    let rate = |(key, total): (&K, &u64)| {
        let risen = u128::from(total.saturating_sub(*before.get(key)?));
        let rate = u64::try_from(risen * 1000 / millis).unwrap_or(u64::MAX);
        Some((key.clone(), rate))
    };
    now.iter().filter_map(rate).collect()
}

fn channels_page(
    status: &ProviderStatus,
    channels: &[ChannelStatus],
    rates: &Rates<ChannelId>,
) -> String {
    let mut page = head(status, rates.sum());
    line(
        &mut page,
        format_args!(
            "{:<12} {:<9} {:>10} {:>10} {:>6} {:>10} {:>12} {:>12}  what",
            "channel", "state", "owed", "paid", "ahead", "unpaid", "rate /s", "redeemable"
        ),
    );
    for channel in channels {
        let id = channel.channel.to_string();
        let payer = if channel.connected { "" } else { "no payer; " };
        line(
            &mut page,
            format_args!(
                "{:<12} {:<9} {:>10} {:>10} {:>6} {:>10} {:>12} {:>12}  {payer}{}",
                format!("{}…", id.chars().take(10).collect::<String>()),
                channel.state,
                channel.owed_units,
                channel.accepted_units,
                channel.window_units,
                bytes(channel.unpaid_bytes_now),
                bytes(rates.of(&channel.channel)),
                channel.redeemable.to_string(),
                channel.reason.as_deref().unwrap_or_default(),
            ),
        );
    }
    page
}

fn sessions_page(
    status: &ProviderStatus,
    sessions: &[SessionReport],
    rates: &Rates<String>,
) -> String {
    let mut page = head(status, rates.sum());
    line(
        &mut page,
        format_args!(
            "{:<12} {:<16} {:>12} {:>12} {:>12} {:>12} {:>10}  endpoint",
            "channel", "inner address", "up", "down", "rate /s", "credit left", "handshake"
        ),
    );
    for session in sessions {
        let channel: String = session.channel.to_string().chars().take(10).collect();
        let (address, channel) = (session.inner_address, format!("{channel}…"));
        let Some(traffic) = &session.traffic else {
            let why = session.refused.as_ref().map(ToString::to_string);
            let why = why.unwrap_or_else(|| "not installed".to_owned());
            line(&mut page, format_args!("{channel:<12} {address:<16} {why}"));
            continue;
        };
        let left = traffic
            .slot_limit_bytes
            .saturating_sub(traffic.slot_usage_bytes);
        let handshake = traffic.handshake_age_s.map(|age| format!("{age} s"));
        let endpoint = traffic.endpoint.map(|endpoint| endpoint.to_string());
        line(
            &mut page,
            format_args!(
                "{channel:<12} {address:<16} {:>12} {:>12} {:>12} {:>12} {:>10}  {}",
                bytes(traffic.up_bytes),
                bytes(traffic.down_bytes),
                bytes(rates.of(&session.session.to_string())),
                bytes(left),
                handshake.unwrap_or_else(|| "none".to_owned()),
                endpoint.unwrap_or_default(),
            ),
        );
    }
    page
}

/// The line that matters stands first: what could be lost.
fn head(status: &ProviderStatus, rate: u64) -> String {
    let mut page = String::new();
    let metering = status.metering.as_ref();
    let payers = metering.map_or(0, |metering| metering.connections);
    line(
        &mut page,
        format_args!(
            "unpaid {}   {} sessions   {payers} payers   {}/s",
            bytes(status.unpaid_bytes),
            status.sessions,
            bytes(rate),
        ),
    );
    match metering {
        None => line(&mut page, format_args!("metering does not answer")),
        Some(metering) => {
            let (commit, unit) = (&metering.commit_us, &metering.unit_us);
            line(
                &mut page,
                format_args!(
                    "commit p50 {} p99 {} µs   unit to journal p50 {} p99 {} µs   rings {} waiting",
                    commit.p50, commit.p99, unit.p50, unit.p99, metering.ring_waiting
                ),
            );
            if let Some(reason) = &metering.frozen {
                line(&mut page, format_args!("FROZEN: {reason}"));
            }
        }
    }
    page.push('\n');
    page
}

fn line(page: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(page, "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_what_was_there_before_and_never_negative() {
        let before = HashMap::from([("a", 1_000), ("b", 500), ("gone", 1)]);
        let now = HashMap::from([("a", 3_000), ("b", 100), ("new", 9_999)]);
        let rates = rates_between(&before, &now, Duration::from_millis(500));
        assert_eq!(rates, HashMap::from([("a", 4_000), ("b", 0)]));
    }
}
