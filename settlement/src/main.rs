//! `topnet-settlement --config FILE`: the chains' process.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use topnet_api::{Settlement as _, SocketName, listen, serve_connections};
use topnet_config::{Config, log_to_stderr};
use topnet_settlement::{Inputs, Settlement};
use tracing::info;

/// Runs the main chain and the service's chain, and settles between them.
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
    log_to_stderr("info,commonware=warn,commonware_storage::qmdb=error,tarpc=warn");
    let config = Config::load(&arguments.config)?;
    let inputs = Inputs::load(config.settlement()?)?;
    let mut settlement = Settlement::start(inputs).await?;
    let path = SocketName::Settlement.below(&config.runtime_dir);
    let incoming = listen(&path).await.with_context(|| {
        format!(
            "{}: cannot listen; let this user write to runtime_dir",
            path.display()
        )
    })?;
    let service = settlement.service();
    let answering = tokio::spawn(async move {
        serve_connections(incoming, service.serve()).await;
    });
    info!(socket = %path.display(), "settlement answers");

    let mut terminate = signal(SignalKind::terminate())?;
    let fault = tokio::select! {
        reason = settlement.ended() => Some(reason),
        _ = terminate.recv() => None,
        _ = tokio::signal::ctrl_c() => None,
    };
    answering.abort();
    settlement.stop().await;
    match fault {
        None => Ok(()),
        Some(reason) => anyhow::bail!("{reason}"),
    }
}
