//! `topnet wallet`: the payer.

pub(super) mod keys;
pub(super) mod pay;
mod recover;
mod report;
mod statement;

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::Path,
    time::{Duration, Instant},
};

use topnet_account::{Amount, ChannelId, Hash};
use topnet_api::{ChainName, ChainParameters, ChannelView, Offer, TransactionStatus};
use topnet_channel::SecretKey;
use topnet_config::{Config, Wallet};
use topnet_wallet::{
    History, Parties,
    chain::{OpenTerms, Owner, Rpc},
    probe,
};

use super::{
    arguments::{Options, Patience, WalletCommand, WalletOpen},
    error::CliError,
    output::Output,
};
use keys::Keyring;
use report::{Balance, OpenedReport, TransactionReport};
use statement::history_error;

/// How often the service's chain is asked whether it has credited a fund.
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn execute(
    options: &Options,
    command: WalletCommand,
    output: Output,
) -> Result<(), CliError> {
    if let WalletCommand::VerifyReceipt { file } = &command {
        return statement::verify_receipt(file, output);
    }
    let wallet = OpenWallet::open(options)?;
    let config = &wallet.config;
    match command {
        WalletCommand::Create => keys::create(config, output),
        WalletCommand::Restore { phrase } => keys::restore(config, &phrase, output),
        WalletCommand::SessionKey {
            index,
            out,
            passphrase_file,
            phrase,
        } => {
            let file = passphrase_file.or_else(|| config.passphrase_file.clone());
            keys::session_key(file.as_deref(), index, out, &phrase, output)
        }
        WalletCommand::Address => keys::address(config, output),
        WalletCommand::Balance { service } => {
            output.print(&wallet.balance(service).await?);
            Ok(())
        }
        WalletCommand::Fund {
            amount,
            service,
            patience,
        } => {
            let key = wallet.keys.account_key()?;
            let service = wallet.rpc.chain(&service).await?.parameters;
            let owner = wallet.owner(&key);
            wallet.fund(owner, service, amount, patience, output).await
        }
        WalletCommand::Withdraw {
            amount,
            service,
            patience,
        } => {
            let key = wallet.keys.account_key()?;
            let service = wallet.rpc.chain(&service).await?.parameters;
            let id = wallet.owner(&key).withdraw(&service, amount).await?;
            wallet.finish(&service.chain, id, patience, output).await
        }
        WalletCommand::Transfer {
            to,
            amount,
            chain,
            patience,
        } => {
            let key = wallet.keys.account_key()?;
            let chain = wallet.rpc.chain(&chain).await?.parameters;
            let id = wallet.owner(&key).transfer(&chain, to, amount).await?;
            wallet.finish(&chain.chain, id, patience, output).await
        }
        WalletCommand::Open(open) => {
            // Whoever has no account here need not ask a provider.
            wallet.keys.account()?;
            let offer = wallet.offer().await?;
            output.print(&wallet.open_channel(offer, open, |_| Ok(()), output).await?);
            Ok(())
        }
        WalletCommand::TopUp {
            channel,
            amount,
            patience,
        } => {
            let key = wallet.keys.account_key()?;
            // More money only to somebody who is there and is the channel's payee.
            let view = wallet.rpc.channel(channel).await?;
            let offer = wallet.offer().await?;
            if view.payee != offer.payee {
                return Err(another_payee(channel));
            }
            let signer = wallet.keys.key_of(view.signer)?;
            wallet
                .probe(&offer, signer.as_ref().unwrap_or(&key))
                .await?;
            let service = wallet.rpc.chain(&view.chain).await?.parameters;
            let id = wallet.owner(&key).top_up(&service, channel, amount).await?;
            wallet.finish(&service.chain, id, patience, output).await
        }
        WalletCommand::Recover { service, patience } => {
            recover::recover(&wallet, service, patience, output).await
        }
        WalletCommand::Pay(arguments) => pay::pay(&wallet, arguments, output).await,
        WalletCommand::Statement(arguments) => {
            statement::statement(&wallet, arguments, output).await
        }
        WalletCommand::VerifyReceipt { .. } => Ok(()),
        WalletCommand::Status { channel } => report::status(&wallet, channel, output).await,
        WalletCommand::Close { channel, patience } => {
            output.print(&wallet.close(channel, patience, output).await?);
            Ok(())
        }
    }
}

/// Makes a directory that only its owner may enter, if it is not there.
pub(super) fn make_private(dir: &Path) -> Result<(), CliError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| CliError::file(dir, error))
}

fn another_payee(channel: ChannelId) -> CliError {
    CliError::new(
        "channel",
        format!("channel {channel} pays another provider"),
        "set [wallet] rpc_url to that provider's",
    )
}

/// A wallet and its provider.
pub(super) struct OpenWallet {
    pub(super) config: Wallet,
    pub(super) keys: Keyring,
    pub(super) rpc: Rpc,
}

impl OpenWallet {
    /// The wallet that the configuration names.
    pub(super) fn open(options: &Options) -> Result<Self, CliError> {
        let config = Config::load(&options.config)?.wallet()?.clone();
        let rpc = Rpc::new(options.rpc.as_ref().unwrap_or(&config.rpc_url))?;
        let keys = Keyring::of(&config);
        Ok(Self { config, keys, rpc })
    }

    /// The same wallet with another provider's RPC.
    pub(super) fn at(mut self, url: &str) -> Result<Self, CliError> {
        self.rpc = Rpc::new(url)?;
        Ok(self)
    }

    fn owner<'a>(&'a self, secret: &'a SecretKey) -> Owner<'a> {
        let rpc = &self.rpc;
        Owner { secret, rpc }
    }

    /// The key that signs for `channel`, as its chain says.
    pub(super) async fn signer_of(&self, channel: ChannelId) -> Result<SecretKey, CliError> {
        self.signer(&self.rpc.channel(channel).await?)
    }

    fn signer(&self, channel: &ChannelView) -> Result<SecretKey, CliError> {
        self.keys.key_of(channel.signer)?.ok_or_else(|| {
            CliError::new(
                "channel",
                format!("another key than this wallet's signs for channel {}", channel.id),
                "use the wallet that it was opened for; `topnet wallet address` shows the keys here",
            )
        })
    }

    pub(super) async fn offer(&self) -> Result<Offer, CliError> {
        self.rpc.offers().await?.into_iter().next().ok_or_else(|| {
            CliError::new(
                "no_offer",
                "the provider offers nothing",
                "choose another provider",
            )
        })
    }

    async fn chain_of(&self, channel: ChannelId) -> Result<ChainParameters, CliError> {
        let chain = self.rpc.channel(channel).await?.chain;
        Ok(self.rpc.chain(&chain).await?.parameters)
    }

    async fn balance(&self, service: ChainName) -> Result<Balance, CliError> {
        let address = self.keys.account()?;
        Ok(Balance {
            address,
            main: self.rpc.account(&ChainName::main(), address).await?.balance,
            service_balance: self.rpc.account(&service, address).await?.balance,
            service,
        })
    }

    /// Money is there when the service's chain has credited it, not when main has locked it.
    async fn fund(
        &self,
        owner: Owner<'_>,
        service: ChainParameters,
        amount: Amount,
        patience: Patience,
        output: Output,
    ) -> Result<(), CliError> {
        let started = Instant::now();
        let main = self.rpc.chain(&ChainName::main()).await?.parameters;
        let before = self
            .rpc
            .account(&service.chain, owner.secret.address())
            .await?
            .balance;
        let id = owner.fund(&main, &service, amount).await?;
        let status = self.wait(&main.chain, id, patience, output).await?;
        let mut report = TransactionReport::new(main.chain, id, status);
        if !patience.no_wait {
            output.progress(&format!(
                "locked on main; waiting for chain {}",
                service.chain
            ));
            let expected = before.checked_add(amount).unwrap_or(Amount::MAX);
            loop {
                let balance = self
                    .rpc
                    .account(&service.chain, owner.secret.address())
                    .await?
                    .balance;
                if balance >= expected {
                    report.credited = Some(true);
                    break;
                }
                if started.elapsed() > Duration::from_secs(patience.timeout) {
                    return Err(CliError::new(
                        "timeout",
                        format!("chain {} has not credited {amount} yet", service.chain),
                        "it does so by itself: look again with `topnet wallet balance`",
                    ));
                }
                tokio::time::sleep(POLL).await;
            }
        }
        output.print(&report);
        Ok(())
    }

    /// Opens a channel to whoever makes the offer. `note` is told which one before it is waited for.
    pub(super) async fn open_channel(
        &self,
        offer: Offer,
        open: WalletOpen,
        note: impl FnOnce(ChannelId) -> Result<(), CliError>,
        output: Output,
    ) -> Result<OpenedReport, CliError> {
        let account = self.keys.account_key()?;
        if offer.unit_price > self.config.unit_price_max() {
            return Err(CliError::new(
                "price",
                format!(
                    "the provider asks {} a unit, more than the {} that [wallet] allows",
                    offer.unit_price,
                    self.config.unit_price_max()
                ),
                "choose another provider, or raise unit_price_ntop_max",
            ));
        }
        let wanted = open
            .close_window
            .map_or(offer.close_window_blocks_min, u64::from);
        let close_window = u32::try_from(wanted).map_err(|_| {
            let what = format!("a close window of {wanted} blocks is longer than any chain's");
            CliError::new("close_window", what, "choose another provider")
        })?;
        // Opened, not only read: a channel whose signer somebody else has put into the file would
        // be theirs.
        let session = match open.signer {
            Some(_) => None,
            None => Some(self.keys.session_key()?),
        };
        let ours = session.as_ref().unwrap_or(&account);
        self.probe(&offer, ours).await?;
        let signer = open.signer.unwrap_or_else(|| ours.public_key());
        let service = self.rpc.chain(&offer.service).await?.parameters;
        let terms = OpenTerms {
            payee: offer.payee,
            allocation: open.allocation,
            close_window,
            expiry_blocks: open.expiry_blocks,
            signer,
        };
        let opened = self.owner(&account).open(&service, terms).await?;
        let parties = Parties {
            channel: opened.channel,
            chain: service.chain.to_string(),
            payer: account.address(),
            payee: offer.payee,
            provider: offer.name,
            signer,
            allocation: open.allocation,
        };
        self.note_parties(&parties, output);
        note(opened.channel)?;
        let status = self
            .wait(&service.chain, opened.transaction, open.patience, output)
            .await?;
        Ok(OpenedReport {
            channel: opened.channel,
            transaction: TransactionReport::new(service.chain, opened.transaction, status),
        })
    }

    /// Starts a channel's close window.
    pub(super) async fn close(
        &self,
        channel: ChannelId,
        patience: Patience,
        output: Output,
    ) -> Result<TransactionReport, CliError> {
        let key = self.keys.account_key()?;
        let service = self.chain_of(channel).await?;
        let id = self.owner(&key).close(&service, channel).await?;
        let status = self.wait(&service.chain, id, patience, output).await?;
        Ok(TransactionReport::new(service.chain, id, status))
    }

    /// No money is bound to somebody who cannot prove to be who the offer says.
    async fn probe(&self, offer: &Offer, key: &SecretKey) -> Result<(), CliError> {
        probe(offer.payment.address, offer.payment.key, key)
            .await
            .map_err(|error| {
                CliError::new(
                    "payee_unreachable",
                    format!("the payment endpoint {}: {error}", offer.payment.address),
                    "try again later, or choose another provider",
                )
            })
    }

    /// For statements. The channel is there all the same.
    fn note_parties(&self, parties: &Parties, output: Output) {
        let state_dir = &self.config.state_dir;
        let noted = make_private(state_dir)
            .and_then(|()| History::note_parties(state_dir, parties).map_err(history_error));
        if let Err(error) = noted {
            output.progress(&format!(
                "statements will lack the parties: {}",
                error.0.what
            ));
        }
    }

    /// Waits for a transaction, if that is wanted, and prints what became of it.
    async fn finish(
        &self,
        chain: &ChainName,
        id: Hash,
        patience: Patience,
        output: Output,
    ) -> Result<(), CliError> {
        let status = self.wait(chain, id, patience, output).await?;
        output.print(&TransactionReport::new(chain.clone(), id, status));
        Ok(())
    }

    async fn wait(
        &self,
        chain: &ChainName,
        id: Hash,
        patience: Patience,
        output: Output,
    ) -> Result<Option<TransactionStatus>, CliError> {
        if patience.no_wait {
            return Ok(None);
        }
        output.progress(&format!("transaction {id}: waiting for a block of {chain}"));
        let patience = Duration::from_secs(patience.timeout);
        Ok(Some(self.rpc.wait_final(chain, id, patience).await?))
    }
}
