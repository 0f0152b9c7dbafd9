//! The channel that pays: one that is open already, or a new one that is closed at the end.

use std::{
    cell::Cell,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use topnet_account::ChannelId;
use topnet_api::{ChannelState, ChannelView, Offer};
use topnet_ledger::genesis::Rules;
use topnet_wallet::Journal;

use super::read_status;
use crate::cli::{
    arguments::{Connect, Patience, WalletOpen},
    error::CliError,
    output::Output,
    wallet::OpenWallet,
};

/// How long a channel's opening or closing may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Units that an open channel must still be able to pay to be worth a connection.
const UNITS_MIN: u64 = 64;

/// Ends the name of a channel's marker.
const MARKER: &str = ".close-at-end";

/// What pays.
pub(super) struct Channel {
    /// As its chain has it.
    pub(super) view: ChannelView,
    /// True if it was opened to be closed: now, or by a run that did not come to it.
    closes: bool,
}

impl Channel {
    /// The channel that was named, one that can pay, or a new one.
    pub(super) async fn find_or_open(
        wallet: &OpenWallet,
        offer: &Offer,
        connect: &Connect,
        output: Output,
    ) -> Result<Self, CliError> {
        let found = match connect.channel {
            Some(id) => Some(wallet.rpc.channel(id).await?),
            None => find(wallet, offer).await?,
        };
        if let Some(view) = found {
            output.progress(&format!("channel {} pays", view.id));
            // Whoever pays on it already would be in the way; nothing is bound yet.
            drop(
                Journal::open(&wallet.config.state_dir, view.id).map_err(|error| {
                    CliError::new(
                        "journal",
                        error.to_string(),
                        "one `topnet wallet pay` or `connect` runs on a channel at a time",
                    )
                })?,
            );
            let closes = marker(wallet, view.id).exists();
            return Ok(Self { view, closes });
        }
        let Some(allocation) = connect.allocation else {
            return Err(CliError::new(
                "no_channel",
                "no open channel of this wallet can pay this provider",
                "say how much a new one may pay: --allocation",
            ));
        };
        output.progress("opening a channel");
        let begun = Cell::new(None);
        let note = |id: ChannelId| {
            begun.set(Some(id));
            let path = marker(wallet, id);
            fs::write(&path, "").map_err(|error| CliError::file(&path, error))
        };
        let open = WalletOpen {
            allocation,
            close_window: None,
            expiry_blocks: Rules::default().service_silence,
            signer: None,
            patience: patience(),
        };
        let opened = async {
            let opened = wallet
                .open_channel(offer.clone(), open, note, output)
                .await?;
            Ok::<_, CliError>(wallet.rpc.channel(opened.channel).await?)
        };
        match (opened.await, begun.get()) {
            (Ok(view), _) => Ok(Self { view, closes: true }),
            (Err(error), None) => Err(error),
            (Err(CliError(error)), Some(id)) => Err(CliError::new(
                &error.code,
                format!("channel {id} may be open: {}", error.what),
                format!(
                    "the next `topnet connect` uses or closes it, or `topnet wallet close {id}`"
                ),
            )),
        }
    }

    /// Closes what earlier runs have opened to be closed and had no time to. What cannot be closed
    /// now is left to the next run.
    pub(super) async fn close_others(&self, wallet: &OpenWallet, output: Output) {
        let files = fs::read_dir(&wallet.config.state_dir);
        let files = files.into_iter().flatten().flatten();
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        let left: Vec<ChannelId> = names
            .filter_map(|name| name.strip_suffix(MARKER)?.parse().ok())
            .filter(|id| *id != self.view.id)
            .collect();
        for id in left {
            output.progress(&format!(
                "closing channel {id}, which an earlier run has left"
            ));
            if let Err(error) = close(wallet, id, true, output).await {
                output.progress(&format!("channel {id} is not closed: {}", error.0.what));
            }
        }
    }

    /// Closes it, if it was opened to be closed.
    pub(super) async fn end(
        self,
        wallet: &OpenWallet,
        connect: &Connect,
        output: Output,
    ) -> Result<(), CliError> {
        let id = self.view.id;
        if !self.closes {
            return Ok(());
        }
        if connect.keep_channel {
            let _ = fs::remove_file(marker(wallet, id));
            return Ok(());
        }
        close(wallet, id, false, output).await.map_err(|error| {
            CliError::new(
                &error.0.code,
                format!("channel {id} is not closed: {}", error.0.what),
                format!("close it: `topnet wallet close {id}`"),
            )
        })?;
        let _ = fs::remove_file(marker(wallet, id));
        output.progress(&format!(
            "channel {id} closes; what is left of it returns after {} blocks",
            self.view.close_window
        ));
        Ok(())
    }
}

/// Closes a channel, unless somebody has begun to.
async fn close(
    wallet: &OpenWallet,
    id: ChannelId,
    no_wait: bool,
    output: Output,
) -> Result<(), CliError> {
    if wallet.rpc.channel(id).await?.state == ChannelState::Open {
        let patience = Patience {
            no_wait,
            ..patience()
        };
        wallet.close(id, patience, output).await?;
    }
    let _ = fs::remove_file(marker(wallet, id));
    let _ = fs::remove_file(sessions_file(wallet, id));
    Ok(())
}

/// Stands while the channel may have sessions of this command's.
pub(super) fn sessions_file(wallet: &OpenWallet, id: ChannelId) -> PathBuf {
    wallet.config.state_dir.join(format!("{id}.sessions"))
}

/// An open channel to whoever makes the offer, with enough left.
async fn find(wallet: &OpenWallet, offer: &Offer) -> Result<Option<ChannelView>, CliError> {
    let height = wallet.rpc.chain(&offer.service).await?.height;
    let needed = offer
        .unit_price
        .checked_mul(offer.headroom_units_min.max(UNITS_MIN));
    for channel in wallet.rpc.channels(wallet.keys.account()?).await? {
        // What is promised may not be redeemed yet.
        let status = read_status(&wallet.status_file(channel.id), SystemTime::UNIX_EPOCH);
        let promised = status.map_or(channel.paid, |status| status.promised.max(channel.paid));
        let rest = channel.allocation.checked_sub(promised);
        let usable = channel.payee == offer.payee
            && channel.chain == offer.service
            && channel.state == ChannelState::Open
            && channel.close_window >= offer.close_window_blocks_min
            // Near its expiry anybody may close it.
            && channel.expiry > height.saturating_add(channel.close_window)
            && rest >= needed;
        if usable && wallet.keys.key_of(channel.signer)?.is_some() {
            return Ok(Some(channel));
        }
    }
    Ok(None)
}

/// Stands while a channel is to be closed at the end, even if this run does not come to it.
fn marker(wallet: &OpenWallet, id: ChannelId) -> PathBuf {
    wallet.config.state_dir.join(format!("{id}{MARKER}"))
}

fn patience() -> Patience {
    Patience {
        no_wait: false,
        timeout: PATIENCE.as_secs(),
    }
}
