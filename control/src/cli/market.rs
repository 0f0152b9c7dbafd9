//! What is offered on main, and what of it is ours.

use std::time::{Duration, Instant};

use topnet_api::{ChainName, MarketOffer};

use super::{
    arguments::{OfferCommand, Options, Patience},
    client::Rpc,
    error::CliError,
    output::Output,
    text::{Table, Text, time},
};
use crate::rpc::{OperatorClient, PublicClient};

/// How often main is asked for the order.
const POLL: Duration = Duration::from_millis(200);

pub(super) async fn market(
    options: &Options,
    chain: ChainName,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    let (mut offers, mut after): (Vec<MarketOffer>, _) = (Vec::new(), None);
    loop {
        let page = rpc.check(rpc.client.market(chain.clone(), after).await)?;
        let Some(last) = page.last() else {
            break;
        };
        rpc.advance(&mut after, last.provider)?;
        offers.extend(page);
    }
    offers.sort_by_key(|offer| offer.terms.unit_price);
    output.print(offers.as_slice());
    Ok(())
}

pub(super) async fn offer(
    options: &Options,
    command: OfferCommand,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::operator(options)?;
    let (submitted, patience, done) = match command {
        OfferCommand::Publish { patience } => {
            let submitted = rpc.client.offer_publish().await;
            (submitted, patience, "the same offer stands on main already")
        }
        OfferCommand::Retract { patience } => {
            let submitted = rpc.client.offer_retract().await;
            (submitted, patience, "no offer of ours stands on main")
        }
    };
    let Some(submitted) = rpc.check(submitted)? else {
        output.nothing(done);
        return Ok(());
    };
    let Patience { no_wait, timeout } = patience;
    if no_wait {
        output.print(&submitted);
        return Ok(());
    }
    output.progress(&format!(
        "transaction {}: waiting for a block of main",
        submitted.id
    ));
    let started = Instant::now();
    loop {
        let status = rpc.client.transaction(ChainName::main(), submitted.id);
        let status = rpc.check(status.await)?;
        if status.block.is_some() {
            output.print(&status);
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(timeout) {
            return Err(CliError::new(
                "timeout",
                format!("main has not taken transaction {} yet", submitted.id),
                "look again with `topnet tx show`, or ask for the same once more",
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

impl Text for MarketOffer {
    fn text(&self) -> String {
        let terms = &self.terms;
        let name = match terms.name.as_str() {
            "" => "(no name)",
            name => name,
        };
        Table::new(format_args!("{name} {}", terms.region))
            .row("price", format_args!("{} per unit", terms.unit_price))
            .row("provider", self.provider)
            .row("RPC", &terms.rpc_url)
            .row(
                "payment",
                format_args!("{} key {}", terms.payment_address, terms.payment_key),
            )
            .row(
                "close window",
                format_args!("{} blocks at least", terms.close_window_blocks_min),
            )
            .row("deposit", self.deposit)
            .row(
                "published",
                format_args!("block {}, {}", self.block.height, time(self.time_ms)),
            )
            .end()
    }
}
