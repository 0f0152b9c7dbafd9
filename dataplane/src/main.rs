//! The data plane's process.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use topnet_config::{Config, log_to_stderr};

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
    log_to_stderr("info,boringtun=off,tarpc=warn");
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
