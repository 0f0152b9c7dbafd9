//! `topnet wallet pay`: pays as long as it runs.

use std::path::PathBuf;

use topnet_account::{Amount, ChannelId};
use topnet_api::{ChannelState, ChannelView, Offer};
use topnet_channel::PayerTerms;
use topnet_config::log_to_stderr;
use topnet_wallet::{
    Journal, Limits, Parties, PayStatus, PayTerms, WireguardCounter, pay as pay_until,
};

use super::{OpenWallet, another_payee, make_private, report::status_file};
use crate::cli::{arguments::WalletPay, error::CliError, output::Output, stop::Stop};

/// Pays until it is told to stop, or until the payee has finished the channel.
pub(super) async fn pay(
    wallet: &OpenWallet,
    arguments: WalletPay,
    output: Output,
) -> Result<(), CliError> {
    log_to_stderr("info,tarpc=warn");
    let mut stop = Stop::listen()?;
    let offer = wallet.offer().await?;
    let channel = wallet.rpc.channel(arguments.channel).await?;
    let counter = WireguardCounter::new(&arguments.interface, offer.wireguard_public_key.0);
    let how = HowToPay {
        counter,
        unit_price_max: wallet.config.unit_price_max(),
        status_file: arguments.status_file,
    };
    let paying = wallet.pay_on(&channel, &offer, how, stop.wait(), output);
    output.print(&paying.await?);
    Ok(())
}

/// What is counted, and how much a unit may cost.
pub(in crate::cli) struct HowToPay {
    pub(in crate::cli) counter: WireguardCounter,
    pub(in crate::cli) unit_price_max: Amount,
    /// Where to show how it stands; the wallet's own place if there is none.
    pub(in crate::cli) status_file: Option<PathBuf>,
}

impl OpenWallet {
    /// Pays on a channel until `stop` is ready, or until the payee has finished it.
    pub(in crate::cli) async fn pay_on(
        &self,
        channel: &ChannelView,
        offer: &Offer,
        how: HowToPay,
        stop: impl Future<Output = ()>,
        output: Output,
    ) -> Result<PayStatus, CliError> {
        let HowToPay {
            counter,
            unit_price_max,
            status_file,
        } = how;
        let secret = self.signer(channel)?;
        if channel.payee != offer.payee {
            return Err(another_payee(channel.id));
        }
        if channel.state == ChannelState::Closed {
            return Err(CliError::new(
                "channel",
                format!("channel {} is closed", channel.id),
                "open another with `topnet wallet open`",
            ));
        }
        let config = &self.config;
        make_private(&config.state_dir)?;
        let parties = Parties {
            channel: channel.id,
            chain: channel.chain.to_string(),
            payer: channel.payer,
            payee: channel.payee,
            provider: offer.name.clone(),
            signer: channel.signer,
            allocation: channel.allocation,
        };
        self.note_parties(&parties, output);
        let journal = Journal::open(&config.state_dir, channel.id).map_err(|error| {
            CliError::new(
                "journal",
                error.to_string(),
                "see [wallet] state_dir; one `pay` runs at a time",
            )
        })?;
        let terms = PayTerms {
            address: offer.payment.address,
            payee: offer.payment.key,
            payer: PayerTerms {
                channel: channel.id,
                allocation: channel.allocation,
                unit_price_max,
                window_max: config.window_units_max,
            },
            epsilon_ppm_max: config.epsilon_ppm_max,
            provider: channel.payee,
            limits: Limits {
                hourly_spend: config.hourly_spend_ntop_max.map(Amount::from_ntop),
                hourly_volume_bytes: config.hourly_volume_bytes_max,
                rate_bytes_per_s: config.rate_bytes_per_s_max,
            },
            status_file: Some(status_file.unwrap_or_else(|| self.status_file(channel.id))),
        };
        output.progress(&format!(
            "paying {} on channel {}",
            offer.payment.address, channel.id
        ));
        pay_until(&secret, terms, journal, Box::new(counter), stop)
            .await
            .map_err(|error| {
                CliError::new(
                    "pay",
                    error.to_string(),
                    "see `topnet wallet status`; what is promised is kept in [wallet] state_dir",
                )
            })
    }

    /// Where it is shown how paying on a channel stands.
    pub(in crate::cli) fn status_file(&self, channel: ChannelId) -> PathBuf {
        status_file(self, channel)
    }
}
