//! `topnet-tower --config FILE`: holds claims for providers elsewhere, and makes them in time.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use topnet_config::{Config, log_to_stderr};
use topnet_tower::start::Tower;
use tracing::info;

/// Holds payees' claims and makes them in time.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file.
    #[arg(long)]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    log_to_stderr("info,jsonrpsee=warn");
    let config = Config::load(&arguments.config)?;
    let mut tower = Tower::start(config.tower()?).await?;
    info!(address = %tower.address(), "the tower answers");
    let mut terminate = signal(SignalKind::terminate())?;
    let fault = tokio::select! {
        reason = tower.ended() => Some(reason),
        _ = terminate.recv() => None,
        _ = tokio::signal::ctrl_c() => None,
    };
    tower.stop().await;
    match fault {
        None => Ok(()),
        Some(reason) => anyhow::bail!("{reason}"),
    }
}
