//! What the wallet's words print.

use std::{fs, path::PathBuf};

use serde::Serialize;
use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{BlockRef, ChainName, ChannelView, TransactionStatus};
use topnet_wallet::{History, Limit, PayStatus};

use super::{OpenWallet, statement::history_error};
use crate::cli::{
    error::CliError,
    output::Output,
    text::{Table, Text, bytes},
};

/// What the wallet has.
#[derive(Debug, Serialize)]
pub(super) struct Balance {
    pub(super) address: Address,
    /// On the main chain.
    pub(super) main: Amount,
    /// The service's chain.
    pub(super) service: ChainName,
    /// On that chain.
    pub(super) service_balance: Amount,
}

impl Text for Balance {
    fn text(&self) -> String {
        Table::new(self.address)
            .row("main", self.main)
            .row(&self.service.to_string(), self.service_balance)
            .end()
    }
}

/// What became of the wallet's transaction.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct TransactionReport {
    id: Hash,
    chain: ChainName,
    /// The final block that it stands in; `None` if nobody waited.
    block: Option<BlockRef>,
    /// What it did.
    events: Vec<String>,
    /// A fund has arrived on the service's chain; only of funds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) credited: Option<bool>,
}

impl TransactionReport {
    pub(super) fn new(chain: ChainName, id: Hash, status: Option<TransactionStatus>) -> Self {
        let (block, events) = match status {
            Some(status) => (status.block, status.events),
            None => (None, Vec::new()),
        };
        Self {
            id,
            chain,
            block,
            events,
            credited: None,
        }
    }

    fn rows(&self, table: Table) -> Table {
        let state = match &self.block {
            Some(block) => format!("in block {} of {}", block.height, block.chain),
            None => format!("submitted to {}", self.chain),
        };
        let table = table.row("transaction", self.id).row("state", state);
        let table = self
            .events
            .iter()
            .fold(table, |table, event| table.row("did", event));
        table.row_if("credited", self.credited.map(|_| "on the service's chain"))
    }
}

impl Text for TransactionReport {
    fn text(&self) -> String {
        self.rows(Table::new(&self.chain)).end()
    }
}

/// A channel that was opened.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct OpenedReport {
    pub(in crate::cli) channel: ChannelId,
    pub(super) transaction: TransactionReport,
}

impl Text for OpenedReport {
    fn text(&self) -> String {
        self.transaction.rows(Table::new(self.channel)).end()
    }
}

/// One of the wallet's channels.
#[derive(Debug, Serialize)]
struct WalletChannel {
    channel: ChannelId,
    /// As its chain has it.
    chain: ChannelView,
    /// As `topnet wallet pay` wrote it last; `None` if it never paid.
    paying: Option<PayStatus>,
}

/// Where `pay` shows how it stands, unless it is told otherwise.
pub(super) fn status_file(wallet: &OpenWallet, channel: ChannelId) -> PathBuf {
    wallet.config.state_dir.join(format!("{channel}.json"))
}

/// `topnet wallet status`.
pub(super) async fn status(
    wallet: &OpenWallet,
    only: Option<ChannelId>,
    output: Output,
) -> Result<(), CliError> {
    let channels = match only {
        Some(channel) => vec![wallet.rpc.channel(channel).await?],
        // A machine that only pays knows the channels that it has paid on.
        None if wallet.keys.has_no_account() => {
            let known = History::channels(&wallet.config.state_dir).map_err(history_error)?;
            let mut channels = Vec::new();
            for channel in known {
                channels.push(wallet.rpc.channel(channel).await?);
            }
            channels
        }
        None => {
            let own = wallet.keys.account()?;
            let all = wallet.rpc.channels(own).await?;
            all.into_iter()
                .filter(|channel| channel.payer == own)
                .collect()
        }
    };
    let mut reports = Vec::new();
    for chain in channels {
        let paying = read_status(&status_file(wallet, chain.id))?;
        reports.push(WalletChannel {
            channel: chain.id,
            chain,
            paying,
        });
    }
    output.print(reports.as_slice());
    Ok(())
}

pub(super) fn read_status(path: &std::path::Path) -> Result<Option<PayStatus>, CliError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| CliError::file(path, error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CliError::file(path, error)),
    }
}

impl Text for WalletChannel {
    fn text(&self) -> String {
        let paying = self.paying.as_ref().map(Text::text);
        self.chain.text() + &paying.unwrap_or_default()
    }
}

impl Text for PayStatus {
    fn text(&self) -> String {
        let units = |count: u64| format!("{count} units");
        Table::new(format_args!("paying on {}", self.channel))
            .row("state", format_args!("{:?}", self.state))
            .row_if("reason", self.reason.as_ref())
            .row_if("held back by", self.limit.map(limit_name))
            .row(
                "released",
                format_args!("{} ({})", units(self.released_units), self.promised),
            )
            .row("payee has", units(self.accepted_units))
            .row("payee says owed", units(self.owed_units))
            .row("payee counted", bytes(self.metered_bytes))
            .row("interface counted", bytes(self.interface_bytes))
            .row_if("transfer counted", self.transfer_bytes.map(bytes))
            .row("credit left", bytes(self.credit_bytes))
            .row("ahead at most", units(self.lead_units_max))
            .row_if(
                "warning",
                self.meter_above_own
                    .then_some("the payee counts more than we pay for"),
            )
            .row_if(
                "note",
                self.meter_below_own
                    .then_some("the payee counts less than our interface"),
            )
            .end()
    }
}

fn limit_name(limit: Limit) -> &'static str {
    match limit {
        Limit::HourlySpend => "hourly_spend_ntop_max",
        Limit::HourlyVolume => "hourly_volume_bytes_max",
        Limit::Rate => "rate_bytes_per_s_max",
    }
}
