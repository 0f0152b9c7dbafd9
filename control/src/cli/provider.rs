//! What a provider's RPC tells.

use topnet_account::Address;
use topnet_api::{ChainName, DayEarnings};

use super::{
    arguments::{Options, TxCommand},
    client::Rpc,
    error::CliError,
    output::Output,
    since::{Since, now_ms},
};
use crate::rpc::{OperatorClient, PublicClient};

pub(super) async fn status(options: &Options, output: Output) -> Result<(), CliError> {
    let rpc = Rpc::operator(options)?;
    output.print(&rpc.check(rpc.client.status().await)?);
    Ok(())
}

pub(super) async fn sessions(options: &Options, output: Output) -> Result<(), CliError> {
    let rpc = Rpc::operator(options)?;
    output.print(rpc.check(rpc.client.sessions().await)?.as_slice());
    Ok(())
}

pub(super) async fn channels(options: &Options, output: Output) -> Result<(), CliError> {
    let rpc = Rpc::operator(options)?;
    output.print(rpc.check(rpc.client.provider_channels().await)?.as_slice());
    Ok(())
}

pub(super) async fn claims(options: &Options, output: Output) -> Result<(), CliError> {
    let rpc = Rpc::operator(options)?;
    let (mut claims, mut after) = (Vec::new(), None);
    loop {
        let page = rpc.check(rpc.client.claims(after).await)?;
        let Some(last) = page.last() else {
            break;
        };
        after = Some(last.channel);
        claims.extend(page);
    }
    output.print(claims.as_slice());
    Ok(())
}

pub(super) async fn earnings(
    options: &Options,
    since: Option<Since>,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::operator(options)?;
    let mut from_ms = since.map_or(0, |since| since.before(now_ms()));
    let mut days: Vec<DayEarnings> = Vec::new();
    loop {
        let page = rpc.check(rpc.client.earnings(Some(from_ms)).await)?;
        // A page may end within a day that several chains have a part in.
        let known = |day: &DayEarnings| days.iter().rev().any(|other| other == day);
        let new: Vec<DayEarnings> = page.into_iter().filter(|day| !known(day)).collect();
        let Some(last) = new.last() else {
            break;
        };
        from_ms = last.day_ms;
        days.extend(new);
    }
    output.print(days.as_slice());
    Ok(())
}

pub(super) async fn offers(options: &Options, output: Output) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    output.print(rpc.check(rpc.client.offers().await)?.as_slice());
    Ok(())
}

pub(super) async fn account(
    options: &Options,
    chain: ChainName,
    address: Address,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    output.print(&rpc.check(rpc.client.account(chain, address).await)?);
    Ok(())
}

pub(super) async fn transaction(
    options: &Options,
    command: TxCommand,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    match command {
        TxCommand::Submit { transaction, chain } => {
            output.print(&rpc.check(rpc.client.submit(chain, transaction).await)?);
        }
        TxCommand::Show { id, chain } => {
            output.print(&rpc.check(rpc.client.transaction(chain, id).await)?);
        }
    }
    Ok(())
}

pub(super) async fn service(
    options: &Options,
    chain: ChainName,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    output.print(&rpc.check(rpc.client.service(chain).await)?);
    Ok(())
}
