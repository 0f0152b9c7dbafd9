//! `topnet wallet statement` and `verify-receipt`: what was paid, and the proof.

use std::{fs, path::Path};

use serde::Deserialize;
use topnet_account::ChannelId;
use topnet_wallet::{
    History, HistoryError, Journal, Known, PayStatus, Proved, Receipt, Statement, to_csv,
};

use super::{
    OpenWallet,
    report::{read_status, status_file},
};
use crate::cli::{
    arguments::{StatementFormat, WalletStatement},
    error::CliError,
    output::Output,
    since::{ms, now_ms},
    text::{Table, Text, bytes},
};

/// A receipt or a list of statements that is longer is none.
const RECEIPTS_BYTES_MAX: u64 = 64 << 20;

/// Prints the statement of each channel that the wallet's directory knows, or of one.
pub(super) async fn statement(
    wallet: &OpenWallet,
    arguments: WalletStatement,
    output: Output,
) -> Result<(), CliError> {
    let state_dir = &wallet.config.state_dir;
    let known = History::channels(state_dir).map_err(history_error)?;
    let channels = match arguments.channel {
        Some(channel) if !known.contains(&channel) => {
            return Err(CliError::new(
                "channel",
                format!("{} knows nothing of channel {channel}", state_dir.display()),
                "correct the channel, or [wallet] state_dir",
            ));
        }
        Some(channel) => vec![channel],
        None => known,
    };
    let since_ms = arguments.since.map(|since| since.before(now_ms()));
    let mut statements = Vec::new();
    // One that does not answer once will not answer for each channel.
    let mut unreachable = arguments.offline.then(|| "it was not asked".to_owned());
    for channel in channels {
        let statement = of_files(state_dir, wallet, channel, since_ms)?;
        let answer = match &unreachable {
            Some(reason) => Err(reason.clone()),
            None => match wallet.rpc.channel(channel).await {
                Ok(view) => Ok(view),
                Err(error) => {
                    let reason = error.to_string();
                    if !matches!(error, topnet_wallet::chain::RpcError::Refused(_)) {
                        unreachable = Some(reason.clone());
                    }
                    Err(reason)
                }
            },
        };
        statements.push(statement.with_chain(answer));
    }
    match arguments.format {
        StatementFormat::Csv if !output.json => print!("{}", to_csv(&statements)),
        StatementFormat::Json => Output { json: true }.print(statements.as_slice()),
        StatementFormat::Csv | StatementFormat::Table => output.print(statements.as_slice()),
    }
    Ok(())
}

fn of_files(
    state_dir: &Path,
    wallet: &OpenWallet,
    channel: ChannelId,
    since_ms: Option<u64>,
) -> Result<Statement, CliError> {
    let journal = Journal::look(state_dir, channel).map_err(|error| {
        let mend = "see [wallet] state_dir";
        CliError::new("journal", error.to_string(), mend)
    })?;
    let history = History::read(state_dir, channel).map_err(history_error)?;
    let path = status_file(wallet, channel);
    let status: Option<PayStatus> = read_status(&path)?;
    let written_ms = fs::metadata(&path)
        .and_then(|metadata| metadata.modified())
        .map_or(0, ms);
    let known = Known {
        channel,
        journal: &journal,
        history: &history,
        status: status.as_ref().map(|status| (status, written_ms)),
    };
    Ok(Statement::of(known, since_ms))
}

pub(super) fn history_error(error: HistoryError) -> CliError {
    CliError::new("history", error.to_string(), "see [wallet] state_dir")
}

/// Checks a receipt, or all receipts of a statement in JSON. Needs no wallet and no provider.
pub(in crate::cli) fn verify_receipt(path: &Path, output: Output) -> Result<(), CliError> {
    let length = fs::metadata(path)
        .map_err(|error| CliError::file(path, error))?
        .len();
    if length > RECEIPTS_BYTES_MAX {
        return Err(CliError::file(path, "it is too long for receipts"));
    }
    let text = fs::read(path).map_err(|error| CliError::file(path, error))?;
    let receipts = find_receipts(&text).map_err(|error| CliError::file(path, error))?;
    if receipts.is_empty() {
        let mend = "give a receipt out of `topnet wallet statement --format json`";
        let what = format!("{} holds no receipt", path.display());
        return Err(CliError::new("receipt", what, mend));
    }
    let proved = receipts
        .iter()
        .map(Receipt::verify)
        .collect::<Result<Vec<Proved>, _>>()
        .map_err(|error| {
            let what = format!("a receipt in {} proves nothing: {error}", path.display());
            CliError::new("receipt", what, "ask for the whole receipt again")
        })?;
    output.print(proved.as_slice());
    Ok(())
}

fn find_receipts(text: &[u8]) -> Result<Vec<Receipt>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Row {
        receipt: Option<Receipt>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Document {
        Receipt(Receipt),
        Row(Row),
        Rows(Vec<Row>),
    }
    Ok(match serde_json::from_slice(text)? {
        Document::Receipt(receipt) => vec![receipt],
        Document::Row(row) => row.receipt.into_iter().collect(),
        Document::Rows(rows) => rows.into_iter().filter_map(|row| row.receipt).collect(),
    })
}

impl Text for Statement {
    fn text(&self) -> String {
        let parties = self.parties.as_ref();
        let chain = self.chain.as_ref();
        let exact = |count: u64| format!("{count} ({})", bytes(count));
        let state = chain.map(|chain| format!("{:?}", chain.state));
        Table::new(self.channel)
            .row_if("paid to", parties.map(|parties| parties.payee))
            .row_if(
                "who is",
                parties
                    .map(|parties| &parties.provider)
                    .filter(|name| !name.is_empty())
                    // A terminal obeys control characters; a name shall not command it.
                    .map(|name| name.escape_default()),
            )
            .row_if("from, ms", self.from_ms)
            .row_if("until, ms", self.until_ms)
            .row("we counted least", exact(self.own_bytes_least))
            .row("we counted most", exact(self.own_bytes_most))
            .row("they counted", exact(self.metered_bytes))
            .row("more than our most", exact(self.metered_above_bytes))
            .row("less than our least", exact(self.metered_below_bytes))
            .row("owed", format_args!("{} units", self.owed_units))
            .row(
                "paid",
                format_args!("{} units ({})", self.paid_units, self.promised),
            )
            .row_if("on chain", state)
            .row_if("  allocation", chain.map(|chain| chain.allocation))
            .row_if("  redeemed", chain.map(|chain| chain.redeemed))
            .row_if("  refund", chain.and_then(|chain| chain.refund))
            .row_if("chain unknown", self.chain_unknown.as_ref())
            .row_if(
                "receipt",
                self.receipt
                    .as_ref()
                    .map(|receipt| format!("{} token {}", receipt.voucher, receipt.index)),
            )
            .row_if(
                "  token",
                self.receipt.as_ref().map(|receipt| &receipt.preimage),
            )
            .end()
    }
}

impl Text for Proved {
    fn text(&self) -> String {
        Table::new(self.channel)
            .row("signed by", self.signer)
            .row("voucher", self.seq)
            .row("promised", self.amount)
            .row("for", format_args!("{} units", self.units))
            .end()
    }
}
