//! What is shown while connected, and at the end.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use topnet_account::{Amount, ChannelId};
use topnet_api::Offer;
use topnet_uapi::DeviceStatus;
use topnet_wallet::PayStatus;

use super::offer::plain;
use crate::cli::{
    output::Output,
    text::{Table, Text, bytes},
};

/// Keys that are older are dead (REJECT_AFTER_TIME): nothing passes.
const KEYS_LIVE_S: u64 = 180;

/// The page that is drawn again and again.
pub(super) struct Page<'a> {
    offer: &'a Offer,
    channel: ChannelId,
    interface: &'a str,
    before: Option<(Instant, u64, u64)>,
}

/// One look, for programs.
#[derive(Debug, Serialize)]
struct Look<'a> {
    interface: &'a str,
    /// Inner bytes sent and received.
    up_bytes: u64,
    down_bytes: u64,
    /// Since the look before.
    up_bits_per_s: u64,
    down_bits_per_s: u64,
    unit_price: Amount,
    #[serde(flatten)]
    paying: &'a PayStatus,
}

impl<'a> Page<'a> {
    pub(super) fn new(offer: &'a Offer, channel: ChannelId, interface: &'a str) -> Self {
        Self {
            offer,
            channel,
            interface,
            before: None,
        }
    }

    pub(super) fn show(
        &mut self,
        paying: &PayStatus,
        device: Option<&DeviceStatus>,
        output: Output,
    ) -> std::io::Result<()> {
        let peer = device.and_then(|device| device.peers.first());
        let (up, down) = peer.map_or((0, 0), |peer| (peer.tx_bytes, peer.rx_bytes));
        let now = Instant::now();
        let (up_rate, down_rate) = match self.before.replace((now, up, down)) {
            Some((at, up_before, down_before)) => {
                let passed = now - at;
                (rate(up_before, up, passed), rate(down_before, down, passed))
            }
            None => (0, 0),
        };
        let look = Look {
            interface: self.interface,
            up_bytes: up,
            down_bytes: down,
            up_bits_per_s: up_rate,
            down_bits_per_s: down_rate,
            unit_price: self.offer.unit_price,
            paying,
        };
        let heard = peer.and_then(|peer| peer.last_handshake);
        let state = match (&paying.reason, heard.and_then(age_s)) {
            (Some(reason), _) => plain(reason),
            (None, None) => "waiting for the provider's handshake".to_owned(),
            (None, Some(age)) if age > KEYS_LIVE_S => {
                format!("the provider has not answered for {age} s")
            }
            (None, Some(_)) => "connected".to_owned(),
        };
        let page = Table::new(format!("{} by {}", self.interface, plain(&self.offer.name)))
            .row("state", state)
            .row("up", format!("{} ({})", bytes(up), bits(up_rate)))
            .row("down", format!("{} ({})", bytes(down), bits(down_rate)))
            .row("paid", format!("{} units", paying.released_units))
            .row(
                "price",
                format!(
                    "{} a unit of {}",
                    self.offer.unit_price,
                    bytes(self.offer.unit_bytes)
                ),
            )
            .row("spent", paying.promised)
            .row("channel", self.channel)
            .row_if(
                "limit",
                paying.limit.as_ref().map(|limit| format!("{limit:?}")),
            )
            .end();
        let mut out = std::io::stdout().lock();
        if output.json {
            writeln!(out, "{}", serde_json::to_string(&look).unwrap_or_default())?;
        } else if out.is_terminal() {
            // Home, the page, and away with what is left of the one before.
            write!(out, "\x1b[H\x1b[2J{page}")?;
        } else {
            writeln!(out, "{page}")?;
        }
        out.flush()
    }
}

/// Seconds since a time since 1970.
fn age_s(at: Duration) -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.saturating_sub(at).as_secs())
}

fn rate(before: u64, now: u64, passed: Duration) -> u64 {
    let bits = now.saturating_sub(before).saturating_mul(8) as f64;
    (bits / passed.as_secs_f64().max(f64::EPSILON)) as u64
}

fn bits(per_second: u64) -> String {
    match per_second {
        rate if rate >= 1_000_000_000 => format!("{:.2} Gbit/s", rate as f64 / 1e9),
        rate if rate >= 1_000_000 => format!("{:.1} Mbit/s", rate as f64 / 1e6),
        rate => format!("{:.1} kbit/s", rate as f64 / 1e3),
    }
}

/// What a connection came to.
#[derive(Debug, Serialize)]
pub(super) struct Spent {
    channel: ChannelId,
    seconds: u64,
    units: u64,
    unit_price: Amount,
    spent: Amount,
    /// What this side counted: inner bytes, both ways.
    own_bytes: u64,
    /// What the provider counted.
    metered_bytes: u64,
}

impl Spent {
    /// What has come to the channel since `before`.
    pub(super) fn new(
        offer: &Offer,
        status: &PayStatus,
        before: Option<&PayStatus>,
        connected: Duration,
    ) -> Self {
        let own = |status: &PayStatus| status.transfer_bytes.unwrap_or(status.interface_bytes);
        let less = |now: u64, of: fn(&PayStatus) -> u64| now.saturating_sub(before.map_or(0, of));
        let promised = before.map_or(Amount::ZERO, |before| before.promised);
        Self {
            channel: status.channel,
            seconds: connected.as_secs(),
            units: less(status.released_units, |before| before.released_units),
            unit_price: offer.unit_price,
            spent: status
                .promised
                .checked_sub(promised)
                .unwrap_or(Amount::ZERO),
            own_bytes: own(status).saturating_sub(before.map_or(0, own)),
            metered_bytes: less(status.metered_bytes, |before| before.metered_bytes),
        }
    }

    /// For programs in a line, as what came before.
    pub(super) fn print(&self, output: Output) {
        let words = match output.json {
            true => serde_json::to_string(self).unwrap_or_default() + "\n",
            false => self.text(),
        };
        // Whoever read it may be gone; what is to be closed is closed all the same.
        let _ = std::io::stdout().write_all(words.as_bytes());
    }
}

impl Text for Spent {
    fn text(&self) -> String {
        Table::new(format!("channel {}", self.channel))
            .row("connected", format!("{} s", self.seconds))
            .row("paid", format!("{} units", self.units))
            .row("spent", self.spent)
            .row("counted here", bytes(self.own_bytes))
            .row("counted there", bytes(self.metered_bytes))
            .end()
    }
}
