//! The `topnet` command: what RPC does, from a shell, and what only a shell can do.
//!
//! Every word prints for people, or with `--json` the values of [`topnet_api`] for programs.
//! An error goes to standard error, with `--json` as `{"error": {"code", "what", "mend"}}`, and
//! the command ends with 1.

mod arguments;
mod chain;
mod channel;
mod client;
mod connect;
mod error;
mod history;
mod init;
mod interface;
mod log;
mod market;
mod output;
mod passphrase;
mod private_file;
mod proof;
mod provider;
mod run;
mod session;
mod since;
mod stop;
mod text;
mod vpn;
mod wallet;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command, Watch};
use error::CliError;
use output::Output;

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output {
        json: arguments.json,
    };
    match execute(arguments, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: Arguments, output: Output) -> Result<(), CliError> {
    let Arguments {
        options,
        command,
        json: _,
    } = arguments;
    // These need no runtime; the first replaces this process.
    let command = match command {
        Command::Run { process } => return run::run(&options, process),
        Command::Init(init) => return init::init(init, output),
        Command::CheckConfig => return run::check_config(&options, output),
        Command::Vpn(command) => return vpn::execute(&options, command, output),
        command => command,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| {
            CliError::new(
                "runtime",
                format!("cannot start the runtime: {error}"),
                "raise the limit on threads (`ulimit -u`)",
            )
        })?;
    runtime.block_on(async {
        match command {
            Command::Run { .. } | Command::Init(_) | Command::CheckConfig | Command::Vpn(_) => {
                Ok(())
            }
            Command::Status => provider::status(&options, output).await,
            Command::Sessions(Watch { watch: None }) => provider::sessions(&options, output).await,
            Command::Sessions(Watch { watch: Some(s) }) => {
                watch::sessions(&options, s, output).await
            }
            Command::Channels(Watch { watch: None }) => provider::channels(&options, output).await,
            Command::Channels(Watch { watch: Some(s) }) => {
                watch::channels(&options, s, output).await
            }
            Command::Channel(command) => channel::execute(&options, command, output).await,
            Command::Genesis { chain } => proof::genesis(&options, chain, output).await,
            Command::Prove { out, subject } => {
                proof::prove(&options, subject, out.as_deref(), output).await
            }
            Command::Verify { file, genesis } => proof::verify(&file, &genesis, output),
            Command::Log(command) => log::execute(&options, command, output).await,
            Command::Claims => provider::claims(&options, output).await,
            Command::Earnings { since } => provider::earnings(&options, since, output).await,
            Command::Block { height, chain } => {
                history::block(&options, chain, height, output).await
            }
            Command::Blocks { chain, from, to } => {
                history::blocks(&options, chain, from, to, output).await
            }
            Command::History {
                address,
                chain,
                count,
            } => history::history(&options, chain, address, count, output).await,
            Command::Batches { chain, from } => {
                history::batches(&options, chain, from, output).await
            }
            Command::Market { chain } => market::market(&options, chain, output).await,
            Command::Offer(command) => market::offer(&options, command, output).await,
            Command::Offers => provider::offers(&options, output).await,
            Command::Account { address, chain } => {
                provider::account(&options, chain, address, output).await
            }
            Command::Tx(command) => provider::transaction(&options, command, output).await,
            Command::Chain { command, chain } => {
                chain::execute(&options, command, chain, output).await
            }
            Command::Service { chain } => provider::service(&options, chain, output).await,
            Command::Session(command) => session::execute(&options, command, output).await,
            Command::Connect(arguments) => connect::execute(&options, arguments, output).await,
            Command::Wallet(command) => wallet::execute(&options, command, output).await,
        }
    })
}
