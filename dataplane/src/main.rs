//! The data plane's process.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use topnet_config::Config;
use tracing_subscriber::EnvFilter;

/// Forwards sessions' packets, counts them and stops at the credit limit.
#[derive(Parser)]
#[command(name = "topnet-dataplane", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // boringtun reports every peer that went to sleep as an error, tarpc every request five times.
    let quiet = || "info,boringtun=off,tarpc=warn".into();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| quiet());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("topnet-dataplane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(topnet_dataplane::run(&config, &arguments.config))?;
    Ok(())
}
