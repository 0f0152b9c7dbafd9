//! The `topnet-control` process: puts the parts together and waits to be told to stop.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use topnet_config::{Config, log_to_stderr};

use crate::{provider::Provider, reconcile::Reconciler, rpc::Listeners};

/// Answers Dapps and operators, and owns who may have a session.
#[derive(Debug, Parser)]
#[command(name = "topnet-control", version)]
struct Arguments {
    /// The configuration of all processes.
    #[arg(long, default_value = "/etc/topnet/topnet.toml")]
    config: PathBuf,
}

/// Runs until SIGTERM or SIGINT.
pub fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    log_to_stderr("info,tarpc=warn");
    let config = Config::load(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime; raise the limit on threads (`ulimit -u`)")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let control = config.control()?.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let provider = Arc::new(Provider::open(config)?);
    let listeners = Listeners::start(&provider, &control).await?;
    let reconciler = Reconciler::start(&provider);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping; sessions stay as they are");
    listeners.stop().await;
    reconciler.stop().await;
    Ok(())
}
