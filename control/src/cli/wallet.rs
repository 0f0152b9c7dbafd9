//! `topnet wallet`: the payer.

mod pay;
mod report;

use std::time::{Duration, Instant};

use topnet_account::{Amount, ChannelId, Hash};
use topnet_api::{ChainName, ChainParameters, Offer, TransactionStatus};
use topnet_channel::SecretKey;
use topnet_config::{Config, Wallet};
use topnet_wallet::{
    chain::{OpenTerms, Owner, Rpc},
    key_file::{self, Cost},
    probe,
};

use super::{
    arguments::{Options, Patience, WalletCommand, WalletOpen},
    error::CliError,
    output::Output,
    passphrase::passphrase,
};
use report::{Balance, Identity, OpenedReport, TransactionReport};

/// How often the service's chain is asked whether it has credited a fund.
const POLL: Duration = Duration::from_millis(100);

pub(super) async fn execute(
    options: &Options,
    command: WalletCommand,
    output: Output,
) -> Result<(), CliError> {
    // These need no key, and no provider.
    match command {
        WalletCommand::Create => return create(options, output),
        WalletCommand::Address => return address(options, output),
        _ => {}
    }
    let wallet = OpenWallet::open(options)?;
    match command {
        WalletCommand::Create | WalletCommand::Address => Ok(()),
        WalletCommand::Balance { service } => {
            output.print(&wallet.balance(service).await?);
            Ok(())
        }
        WalletCommand::Fund {
            amount,
            service,
            patience,
        } => {
            let service = wallet.rpc.chain(&service).await?.parameters;
            wallet.fund(service, amount, patience, output).await
        }
        WalletCommand::Withdraw {
            amount,
            service,
            patience,
        } => {
            let service = wallet.rpc.chain(&service).await?.parameters;
            let id = wallet.owner().withdraw(&service, amount).await?;
            wallet.finish(&service.chain, id, patience, output).await
        }
        WalletCommand::Transfer {
            to,
            amount,
            chain,
            patience,
        } => {
            let chain = wallet.rpc.chain(&chain).await?.parameters;
            let id = wallet.owner().transfer(&chain, to, amount).await?;
            wallet.finish(&chain.chain, id, patience, output).await
        }
        WalletCommand::Open(open) => wallet.open_channel(open, output).await,
        WalletCommand::TopUp {
            channel,
            amount,
            patience,
        } => {
            let service = wallet.chain_of(channel).await?;
            let id = wallet.owner().top_up(&service, channel, amount).await?;
            wallet.finish(&service.chain, id, patience, output).await
        }
        WalletCommand::Pay(arguments) => pay::pay(&wallet, arguments, output).await,
        WalletCommand::Status { channel } => report::status(&wallet, channel, output).await,
        WalletCommand::Close { channel, patience } => {
            let service = wallet.chain_of(channel).await?;
            let id = wallet.owner().close(&service, channel).await?;
            wallet.finish(&service.chain, id, patience, output).await
        }
    }
}

fn create(options: &Options, output: Output) -> Result<(), CliError> {
    let config = Config::load(&options.config)?;
    let wallet = config.wallet()?;
    let passphrase = passphrase(wallet.passphrase_file.as_deref(), true)?;
    let key = key_file::create(&wallet.key_file, passphrase.as_bytes(), Cost::DEFAULT)
        .map_err(key_error)?;
    output.print(&Identity::of(&key.public_key()));
    Ok(())
}

fn address(options: &Options, output: Output) -> Result<(), CliError> {
    let config = Config::load(&options.config)?;
    let key = key_file::read_public(&config.wallet()?.key_file).map_err(key_error)?;
    output.print(&Identity::of(&key));
    Ok(())
}

fn key_error(error: key_file::KeyFileError) -> CliError {
    let mend = "see [wallet] key_file; `topnet wallet create` makes a key";
    CliError::new("key_file", error.to_string(), mend)
}

/// A wallet with its key and its provider.
pub(super) struct OpenWallet {
    config: Wallet,
    pub(super) secret: SecretKey,
    pub(super) rpc: Rpc,
}

impl OpenWallet {
    /// The wallet that the configuration names, opened with its passphrase.
    pub(super) fn open(options: &Options) -> Result<Self, CliError> {
        let config = Config::load(&options.config)?.wallet()?.clone();
        let rpc = Rpc::new(options.rpc.as_ref().unwrap_or(&config.rpc_url))?;
        let passphrase = passphrase(config.passphrase_file.as_deref(), false)?;
        let secret = key_file::read(&config.key_file, passphrase.as_bytes()).map_err(key_error)?;
        Ok(Self {
            config,
            secret,
            rpc,
        })
    }

    fn owner(&self) -> Owner<'_> {
        Owner {
            secret: &self.secret,
            rpc: &self.rpc,
        }
    }

    async fn offer(&self) -> Result<Offer, CliError> {
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
        let address = self.secret.address();
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
        service: ChainParameters,
        amount: Amount,
        patience: Patience,
        output: Output,
    ) -> Result<(), CliError> {
        let started = Instant::now();
        let main = self.rpc.chain(&ChainName::main()).await?.parameters;
        let before = self
            .rpc
            .account(&service.chain, self.secret.address())
            .await?
            .balance;
        let id = self.owner().fund(&main, &service, amount).await?;
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
                    .account(&service.chain, self.secret.address())
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

    async fn open_channel(&self, open: WalletOpen, output: Output) -> Result<(), CliError> {
        let offer = self.offer().await?;
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
        // No money is bound to somebody who cannot prove to be who the offer says.
        probe(offer.payment.address, offer.payment.key, &self.secret)
            .await
            .map_err(|error| {
                CliError::new(
                    "payee_unreachable",
                    format!("the payment endpoint {}: {error}", offer.payment.address),
                    "try again later, or choose another provider",
                )
            })?;
        let service = self.rpc.chain(&offer.service).await?.parameters;
        let terms = OpenTerms {
            payee: offer.payee,
            allocation: open.allocation,
            close_window,
            expiry_blocks: open.expiry_blocks,
        };
        let opened = self.owner().open(&service, terms).await?;
        let status = self
            .wait(&service.chain, opened.transaction, open.patience, output)
            .await?;
        output.print(&OpenedReport {
            channel: opened.channel,
            transaction: TransactionReport::new(service.chain, opened.transaction, status),
        });
        Ok(())
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
