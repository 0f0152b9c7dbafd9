//! `topnet channel`: a channel with its payee.

use std::time::{Duration, Instant};

use topnet_account::{Amount, ChannelId};
use topnet_api::CloseProgress;

use super::{
    arguments::{ChannelCommand, Options, Wait},
    client::Rpc,
    error::CliError,
    output::Output,
};
use crate::rpc::OperatorClient;

/// How often progress is asked for.
const POLL: Duration = Duration::from_millis(500);

pub(super) async fn execute(
    options: &Options,
    command: ChannelCommand,
    output: Output,
) -> Result<(), CliError> {
    let rpc = Rpc::operator(options)?;
    match command {
        ChannelCommand::Show { channel } => {
            output.print(&rpc.check(rpc.client.provider_channel(channel).await)?);
        }
        ChannelCommand::Close { channel, wait } => {
            output.print(&close(&rpc, channel, wait, output).await?);
        }
    }
    Ok(())
}

async fn close(
    rpc: &Rpc,
    channel: ChannelId,
    wait: Wait,
    output: Output,
) -> Result<CloseProgress, CliError> {
    let started = Instant::now();
    let mut progress = rpc.check(rpc.client.channel_close(channel).await)?;
    if !wait.wait {
        return Ok(progress);
    }
    output.progress(&format!("close submitted: {}", progress.transaction));
    let mut said_closed = false;
    while !is_settled(&progress) {
        if started.elapsed() > Duration::from_secs(wait.timeout) {
            let where_it_is = match &progress.service_block {
                Some(block) => format!("closed in block {} of {}", block.height, block.chain),
                None => "submitted".to_owned(),
            };
            return Err(CliError::new(
                "timeout",
                format!("channel {channel} is {where_it_is}, not settled yet"),
                "it goes on by itself: look again with `topnet channel show`, or wait longer with --timeout",
            ));
        }
        tokio::time::sleep(POLL).await;
        progress = rpc.check(rpc.client.channel_close(channel).await)?;
        if let (Some(block), false) = (&progress.service_block, said_closed) {
            output.progress(&format!(
                "closed in block {} of {}",
                block.height, block.chain
            ));
            said_closed = true;
        }
    }
    Ok(progress)
}

/// True if the payout is on main, or there is none.
fn is_settled(progress: &CloseProgress) -> bool {
    let nothing_owed = progress.service_block.is_some() && progress.redeemed == Some(Amount::ZERO);
    progress.main_block.is_some() || nothing_owed
}
