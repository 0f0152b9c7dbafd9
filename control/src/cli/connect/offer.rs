//! Which offer is taken, and that it is what it was said to be.

use topnet_api::{MarketOffer, Offer};

use crate::cli::{arguments::Connect, error::CliError, output::Output, wallet::OpenWallet};

/// Providers that are tried before it is given up.
const TRIES_MAX: usize = 8;

/// The offer of the provider that the wallet names, or the cheapest on main that stands.
pub(super) async fn take(
    wallet: OpenWallet,
    connect: &Connect,
    output: Output,
) -> Result<(OpenWallet, Offer), CliError> {
    let Some(service) = &connect.cheapest else {
        let offer = wallet.offer().await?;
        check_price(&wallet, &offer)?;
        say(&offer, output);
        return Ok((wallet, offer));
    };
    let mut market = wallet.rpc.market(service).await?;
    market.sort_by_key(|offer| offer.terms.unit_price);
    let most = wallet.config.unit_price_max();
    market.retain(|offer| offer.terms.unit_price <= most);
    let mut wallet = wallet;
    let mut last = None;
    for listed in market.into_iter().take(TRIES_MAX) {
        wallet = wallet.at(&listed.terms.rpc_url)?;
        match ask(&wallet, &listed).await {
            Ok(offer) if offer.service == *service => {
                say(&offer, output);
                return Ok((wallet, offer));
            }
            Ok(offer) => {
                output.progress(&format!("{} offers {}", plain(&offer.name), offer.service))
            }
            Err(error) => {
                output.progress(&plain(&error.0.what));
                last = Some(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        CliError::new(
            "no_offer",
            format!("nobody offers {service} on main for {most} a unit"),
            "wait, raise unit_price_ntop_max, or name a provider in [wallet] rpc_url",
        )
    }))
}

/// The whole offer behind one on main. Whoever answers must be who offered, and ask no more.
async fn ask(wallet: &OpenWallet, listed: &MarketOffer) -> Result<Offer, CliError> {
    let offer = wallet.offer().await?;
    let same = offer.payee == listed.provider
        && offer.payment.key == listed.terms.payment_key
        && offer.unit_price <= listed.terms.unit_price;
    match same {
        true => Ok(offer),
        false => Err(CliError::new(
            "another_offer",
            format!(
                "{} does not make the offer that {} has on main",
                listed.terms.rpc_url, listed.provider
            ),
            "name a provider in [wallet] rpc_url",
        )),
    }
}

fn check_price(wallet: &OpenWallet, offer: &Offer) -> Result<(), CliError> {
    let most = wallet.config.unit_price_max();
    if offer.unit_price <= most {
        return Ok(());
    }
    Err(CliError::new(
        "price",
        format!(
            "the provider asks {} a unit, more than the {most} that [wallet] allows",
            offer.unit_price
        ),
        "choose another provider, or raise unit_price_ntop_max",
    ))
}

fn say(offer: &Offer, output: Output) {
    output.progress(&format!(
        "{} offers {} for {} KiB, at {}",
        plain(&offer.name),
        offer.unit_price,
        offer.unit_bytes >> 10,
        offer.wireguard_endpoint
    ));
}

/// Words of others without what a terminal would act on.
pub(super) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
