//! The one door to the project: `cargo xtask COMMAND`.
//!
//! Everything that a person or CI does with the sources is a command here. Builds run as whoever
//! calls; only the runner that needs privileges is elevated (see [`elevate`]).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod doctor;
mod ebpf;
mod elevate;
mod fuzz;
mod install;
mod kernel;
mod openrpc;
mod packages;
mod runners;
mod test;
mod tidy;
mod workspace;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use workspace::Workspace;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The one door to topnet"
)]
struct Arguments {
    #[command(subcommand)]
    command: Door,
}

#[derive(Subcommand)]
enum Door {
    /// List what the machine must have, what is missing and what mends it
    Doctor {
        /// Install the missing packages and tools
        #[arg(long)]
        install: bool,
        /// Print the list as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run every test: formatting, lints, layering, licences, tests, tests that need root, lab
    Test {
        /// Leave out what needs root
        #[arg(long)]
        fast: bool,
        /// Install what is missing without asking
        #[arg(long)]
        yes: bool,
    },
    /// Run the whole product in three network namespaces and reconcile it to the byte
    Lab(runners::LabArguments),
    /// Measure topnet beside its peers
    Bench(runners::BenchArguments),
    /// Run the payment path in seeded worlds, with crashes, and check every unit
    Sim(runners::SimArguments),
    /// Look for bytes that upset a parser or a state machine of the payment path
    Fuzz(fuzz::FuzzArguments),
    /// Have OpenRPC's own test tool call the RPC as its documents say; needs npm
    Openrpc,
    /// Check the layering, the islands of unsafe code, the one home of the unit, the documentation
    Tidy,
    /// Build the BPF object from ebpf/program
    Ebpf {
        /// Change nothing: compare the object with the sources
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = Workspace::load().and_then(|workspace| match arguments.command {
        Door::Doctor { install, json } => doctor::run(&workspace, install, json),
        Door::Test { fast, yes } => test::run(&workspace, fast, yes),
        Door::Lab(arguments) => runners::lab(&workspace, arguments),
        Door::Bench(arguments) => runners::bench(&workspace, arguments),
        Door::Sim(arguments) => runners::sim(&workspace, arguments),
        Door::Fuzz(arguments) => fuzz::run(&workspace, &arguments),
        Door::Openrpc => openrpc::run(&workspace),
        Door::Tidy => tidy::run(&workspace),
        Door::Ebpf { check: false } => ebpf::build(&workspace),
        Door::Ebpf { check: true } => ebpf::check(&workspace),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Creates `file` as the calling user, so that an elevated runner writes into the user's file
/// instead of leaving one of root's.
fn own_file(file: &std::path::Path) -> anyhow::Result<PathBuf> {
    use anyhow::Context;
    std::fs::File::options()
        .create(true)
        .append(true)
        .open(file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file.canonicalize()?)
}
