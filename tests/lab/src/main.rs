//! `topnet-lab`: runs scenarios. Called by `cargo xtask lab`, with root's rights.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::Write,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use topnet_lab::{
    interrupt::Interrupt,
    report::Report,
    scenario::{Kept, Options, Scenario, run},
};

#[derive(Parser)]
#[command(
    name = "topnet-lab",
    about = "Runs the whole product in three network namespaces"
)]
struct Arguments {
    /// Which scenario to run, or `all`
    #[arg(long, value_name = "NAME", default_value = "paid-download")]
    scenario: String,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// Write the reconciliation as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Carry packets by the kernel's sockets and not by AF_XDP, whatever the scenario is
    #[arg(long)]
    kernel: bool,
    /// Workers of the data plane, whatever the scenario is
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
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
}

fn main() -> ExitCode {
    match play(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(arguments: &Arguments) -> Result<bool> {
    if arguments.list {
        for scenario in Scenario::ALL {
            println!("{:<15} {}", scenario.name(), scenario.about());
        }
        return Ok(true);
    }
    let chosen: Vec<_> = Scenario::ALL
        .into_iter()
        .filter(|scenario| match arguments.scenario.as_str() {
            "all" => scenario.is_short(),
            name => scenario.name() == name,
        })
        .collect();
    ensure!(
        !chosen.is_empty(),
        "there is no scenario `{}`; --list names them",
        arguments.scenario
    );
    ensure!(
        !arguments.keep || chosen.len() == 1,
        "--keep leaves one scenario running; name it with --scenario"
    );
    ensure!(
        rustix::process::geteuid().is_root(),
        "network namespaces need root; run `cargo xtask lab`, which asks for it"
    );
    let interrupt = Interrupt::listen()?;
    let mut reports = Vec::new();
    let mut failed = None;
    for scenario in chosen {
        match one(scenario, arguments, &interrupt) {
            Ok(report) => reports.push(report),
            Err(error) => {
                // What was measured so far is still written.
                failed = Some(error.context(format!("scenario {}", scenario.name())));
                break;
            }
        }
    }
    if let Some(file) = &arguments.json {
        write_json(file, &reports)?;
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(reports.iter().all(|report| report.ok)),
    }
}

fn one(scenario: Scenario, arguments: &Arguments, interrupt: &Interrupt) -> Result<Report> {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4} {prefix}: {msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(scenario.name());
    bar.enable_steady_tick(Duration::from_millis(120));
    let hidden = bar.is_hidden();
    let last = std::cell::RefCell::new(String::new());
    let progress = |what: &str| {
        bar.set_message(what.to_owned());
        // Without a terminal each step is a line, but not each number that counts up.
        let step = what.split(':').next().unwrap_or_default().to_owned();
        if hidden && *last.borrow() != step {
            println!("{}: {step}", scenario.name());
            *last.borrow_mut() = step;
        }
    };
    let options = Options {
        interrupt,
        kernel_sockets: arguments.kernel,
        workers: arguments.workers,
        keep: arguments.keep,
        rounds: arguments.rounds,
        minutes: arguments.minutes,
        seed: arguments.seed.unwrap_or_else(any_seed),
        progress: &progress,
    };
    let outcome = run(scenario, &options);
    bar.finish_and_clear();
    let (report, kept) = outcome?;
    print!("{}", report.table());
    if let Some(kept) = kept {
        look_around(&kept);
    }
    Ok(report)
}

/// Some number; whoever wants it again finds it in what the lab prints.
fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::from(now.subsec_nanos()))
}

fn look_around(kept: &Kept) {
    let directory = kept.directory.display();
    let [client, provider, _] = &kept.namespaces;
    println!("everything is left running; the next run removes it. To look around:");
    println!("  ls {directory}/logs");
    println!(
        "  ip netns exec {provider} {directory}/bin/topnet --config {directory}/provider/topnet.toml status"
    );
    println!(
        "  ip netns exec {provider} {directory}/bin/topnet --config {directory}/provider/topnet.toml channel show {}",
        kept.channel
    );
    println!(
        "  ip netns exec {client} {directory}/bin/topnet --config {directory}/client/topnet/topnet.toml wallet balance"
    );
    println!("  ip netns exec {client} wg show");
}

fn write_json(file: &PathBuf, reports: &[Report]) -> Result<()> {
    // A file that a user made in a sticky directory may be written by root but not made anew.
    let opened = File::options().write(true).truncate(true).open(file);
    let mut opened = opened
        .or_else(|_| File::create(file))
        .with_context(|| format!("cannot write {}", file.display()))?;
    let text = serde_json::to_string_pretty(reports)?;
    writeln!(opened, "{text}").with_context(|| format!("cannot write {}", file.display()))
}
