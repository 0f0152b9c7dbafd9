//! `topnet-metering --config FILE`: the payee.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use topnet_config::{Config, log_to_stderr};
use topnet_metering::run::{RunError, run};

/// How long threads that wait for a disk may hold up the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Turns counted units into paid units and raises credit.
#[derive(Debug, Parser)]
#[command(name = "topnet-metering", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, value_name = "FILE", default_value = "/etc/topnet/topnet.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    log_to_stderr("info,tarpc=warn");
    die_of_panics();
    match start(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A task that panics must not leave the others running on half of what they need: a metering
/// without its view of the chain, or without its payment port, looks alive and earns nothing.
/// Whatever was given out is journalled, so dying at once loses nothing, and the service manager
/// starts it anew.
fn die_of_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn start(arguments: &Arguments) -> Result<(), RunError> {
    let config = Config::load(&arguments.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| RunError::System {
            what: "start the runtime",
            source,
        })?;
    let ended = runtime.block_on(run(config));
    // The archive's folder may be on a disk that does not answer; what is under way there may be
    // left at any point.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    ended
}
