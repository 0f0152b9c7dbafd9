//! `topnet chain`: the chains, and the service chains that run here.

use topnet_api::{ChainName, HostedService, HostedState};

use super::{
    arguments::{ChainCommand, Options},
    client::Rpc,
    error::CliError,
    output::Output,
    text::{Table, Text},
};
use crate::rpc::{OperatorClient, PublicClient};

pub(super) async fn execute(
    options: &Options,
    command: Option<ChainCommand>,
    chain: Option<ChainName>,
    output: Output,
) -> Result<(), CliError> {
    let Some(command) = command else {
        return tips(options, chain, output).await;
    };
    let rpc = Rpc::operator(options)?;
    let chain = match command {
        ChainCommand::List => {
            output.print(rpc.check(rpc.client.services().await)?.as_slice());
            return Ok(());
        }
        ChainCommand::Create {
            chain,
            block_interval_ms,
            epoch_blocks,
        } => {
            let created = rpc
                .client
                .service_create(chain.clone(), block_interval_ms, epoch_blocks)
                .await;
            rpc.check(created)?;
            output.progress("it runs; main knows it in a few blocks");
            chain
        }
        ChainCommand::Stop { chain } => {
            rpc.check(rpc.client.service_stop(chain.clone()).await)?;
            output.progress("stopped; a service that is silent for too long is dead");
            chain
        }
        ChainCommand::Start { chain } => {
            rpc.check(rpc.client.service_start(chain.clone()).await)?;
            chain
        }
    };
    let services = rpc.check(rpc.client.services().await)?;
    let service = services.into_iter().find(|service| service.chain == chain);
    let service = service.ok_or_else(|| {
        CliError::new(
            "service_unknown",
            format!("service `{chain}` is gone"),
            "look at settlement's log",
        )
    })?;
    output.print(&service);
    Ok(())
}

async fn tips(options: &Options, chain: Option<ChainName>, output: Output) -> Result<(), CliError> {
    let rpc = Rpc::public(options)?;
    match chain {
        Some(chain) => output.print(&rpc.check(rpc.client.chain(chain).await)?),
        None => output.print(rpc.check(rpc.client.chains().await)?.as_slice()),
    }
    Ok(())
}

impl Text for HostedService {
    fn text(&self) -> String {
        let state = match self.state {
            HostedState::Running => "running",
            HostedState::Stopped => "stopped",
            HostedState::Halted => "halted: main holds it dead",
        };
        let table = Table::new(&self.chain)
            .row("genesis", self.genesis)
            .row("state", state)
            .row_if("height", self.height);
        let table = match &self.on_main {
            None => table.row("on main", "not registered"),
            Some(known) => table
                .row("escrow", known.escrow)
                .row("batches", known.batches)
                .row("dead from", format!("block {} of main", known.dead_from)),
        };
        table.row_if("problem", self.problem.as_ref()).end()
    }
}
