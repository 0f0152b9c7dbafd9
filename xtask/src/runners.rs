//! The lab and the benchmarks: built as the user, run with root's rights. The simulation needs none.

use crate::doctor::{self, Group};
use crate::workspace::Workspace;
use crate::{elevate, install, own_file};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells the bench where boringtun-cli is.
const BORINGTUN_ENV: &str = "TOPNET_BORINGTUN_CLI";
/// Tells the lab where openresolv is unpacked.
const OPENRESOLV_ENV: &str = "TOPNET_OPENRESOLV";

/// What `cargo xtask lab` takes.
#[derive(Args)]
pub struct LabArguments {
    /// Which scenario to run, or `all`
    #[arg(long, value_name = "NAME", default_value = "paid-download")]
    scenario: String,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// Write the reconciliation as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds of chaos
    #[arg(long, value_name = "N", default_value_t = 100)]
    rounds: u64,
    /// Minutes of a soak; it needs two of them to judge anything
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..))]
    minutes: u64,
    /// What chaos does, and when; another each time if left out
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Leave everything running and print how to look around
    #[arg(long)]
    keep: bool,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
}

/// What `cargo xtask bench` takes.
#[derive(Args)]
pub struct BenchArguments {
    /// Which lanes to run; all of them if none is named
    lanes: Vec<String>,
    /// List the lanes
    #[arg(long)]
    list: bool,
    /// Write the records as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each contender is measured, interleaved with the others
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Run only the cases whose names hold this
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// How much to measure: quick, standard or full
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
}

/// What `cargo xtask sim` takes.
#[derive(Args)]
pub struct SimArguments {
    /// How many worlds to run, on all cores
    #[arg(long, value_name = "N", default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    from: u64,
    /// Run only this world
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Let links also lose, repeat and reorder messages
    #[arg(long)]
    datagram_chaos: bool,
    /// Print every event of the world that --seed names
    #[arg(long, requires = "seed")]
    trace: bool,
}

/// `cargo xtask lab`.
pub fn lab(workspace: &Workspace, arguments: LabArguments) -> Result<()> {
    if arguments.list {
        let mut list = workspace.cargo();
        list.args(["run", "--quiet", "--package", "topnet-lab", "--", "--list"]);
        return become_command(list);
    }
    doctor::ensure(workspace, &[Group::Build, Group::Lab], arguments.yes)?;
    build_lab(workspace)?;
    let mut words = vec!["--scenario".to_owned(), arguments.scenario];
    words.extend(["--rounds".to_owned(), arguments.rounds.to_string()]);
    words.extend(["--minutes".to_owned(), arguments.minutes.to_string()]);
    if let Some(seed) = arguments.seed {
        words.extend(["--seed".to_owned(), seed.to_string()]);
    }
    if arguments.keep {
        words.push("--keep".to_owned());
    }
    if let Some(file) = &arguments.json {
        words.extend(json_argument(file)?);
    }
    become_command(lab_command(workspace, &words)?)
}

/// Builds the lab and every program that it starts.
pub fn build_lab(workspace: &Workspace) -> Result<()> {
    // Naming any test makes cargo choose the features that it chooses for `cargo test` and
    // clippy. Otherwise the lab and the tests would each build RocksDB and the rest of the
    // libraries once.
    build(
        workspace
            .cargo()
            .args(["build", "--workspace", "--bins", "--test", "root_netns"]),
    )
}

/// The elevated lab with these arguments.
pub fn lab_command(workspace: &Workspace, arguments: &[String]) -> Result<Command> {
    let commit = workspace.commit();
    let mut variables = vec![("TOPNET_COMMIT", commit.as_str())];
    let needs_openresolv = |word: &String| word == "vpn-connect" || word == "all";
    let openresolv = match arguments.iter().any(needs_openresolv) {
        true => install::openresolv(workspace),
        false => None,
    };
    let openresolv = openresolv.as_deref().and_then(Path::to_str);
    variables.extend(openresolv.map(|root| (OPENRESOLV_ENV, root)));
    let mut command = elevate::command(&workspace.binary("debug", "topnet-lab"), &variables)?;
    command.args(arguments);
    Ok(command)
}

/// `cargo xtask bench`.
pub fn bench(workspace: &Workspace, arguments: BenchArguments) -> Result<()> {
    doctor::ensure(workspace, &[Group::Build, Group::Lab], arguments.yes)?;
    // Only release figures are figures.
    build(
        workspace
            .cargo()
            .args(["build", "--release", "--package", "topnet-bench", "--bins"]),
    )?;
    let commit = workspace.commit();
    let mut variables = vec![("TOPNET_COMMIT", commit.as_str())];
    let boringtun = if needs_boringtun(&arguments) {
        let file = install::boringtun_cli(workspace)?;
        Some(
            file.to_str()
                .context("a path that is not UTF-8")?
                .to_owned(),
        )
    } else {
        None
    };
    variables.extend(boringtun.iter().map(|file| (BORINGTUN_ENV, file.as_str())));
    let mut command = elevate::command(&workspace.binary("release", "topnet-bench"), &variables)?;
    if arguments.list {
        command.arg("--list");
    }
    if let Some(rounds) = arguments.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    if let Some(case) = &arguments.case {
        command.args(["--case", case]);
    }
    if let Some(size) = &arguments.size {
        command.args(["--size", size]);
    }
    if let Some(file) = &arguments.json {
        command.args(json_argument(file)?);
    }
    command.args(&arguments.lanes);
    become_command(command)
}

/// Only the lane vpn has it for a peer.
fn needs_boringtun(arguments: &BenchArguments) -> bool {
    let named = |lane: &String| lane == "vpn";
    !arguments.list && (arguments.lanes.is_empty() || arguments.lanes.iter().any(named))
}

/// `cargo xtask sim`.
pub fn sim(workspace: &Workspace, arguments: SimArguments) -> Result<()> {
    build(
        workspace
            .cargo()
            .args(["build", "--release", "--package", "topnet-sim", "--bins"]),
    )?;
    let mut command = Command::new(workspace.binary("release", "topnet-sim"));
    match arguments.seed {
        Some(seed) => command.args(["--seed", &seed.to_string()]),
        None => command.args([
            "--seeds",
            &arguments.seeds.to_string(),
            "--from",
            &arguments.from.to_string(),
        ]),
    };
    if arguments.datagram_chaos {
        command.arg("--datagram-chaos");
    }
    if arguments.trace {
        command.arg("--trace");
    }
    become_command(command)
}

fn build(command: &mut Command) -> Result<()> {
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the build failed; see above");
    Ok(())
}

fn json_argument(file: &Path) -> Result<[String; 2]> {
    let file = own_file(file)?;
    let text = file
        .to_str()
        .with_context(|| format!("{} is not UTF-8", file.display()))?;
    Ok(["--json".to_owned(), text.to_owned()])
}

/// Replaces this process, so that a signal from the terminal reaches the runner, which cleans up,
/// and the shell waits for it.
fn become_command(mut command: Command) -> Result<()> {
    Err(command.exec()).with_context(|| format!("cannot start {:?}", command.get_program()))
}
