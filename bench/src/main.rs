//! `topnet-bench`: runs lanes and writes their records. Called by `cargo xtask bench`.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use topnet_bench::lane::{Figure, Lane, Latency};
use topnet_bench::lanes::{Role, Setup, Size};
use topnet_bench::record::Record;
use topnet_bench::run::{ROUNDS_MAX, Setting, run};
use topnet_lab::interrupt::Interrupt;

#[derive(Parser)]
#[command(
    name = "topnet-bench",
    about = "Measures topnet beside its peers",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// Which lanes to run; all of them if none is named
    lanes: Vec<String>,
    /// Run only the cases whose names hold this
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// How much to measure
    #[arg(long, value_name = "SIZE", value_enum, default_value_t = Size::Standard)]
    size: Size,
    /// List the lanes
    #[arg(long)]
    list: bool,
    /// Write the records as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each contender is measured, interleaved with the others
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(ROUNDS_MAX)))]
    rounds: u32,
}

#[derive(Subcommand)]
enum Other {
    /// Another process of a case, which the case starts
    #[command(hide = true)]
    StandIn {
        /// What it does
        role: Role,
    },
    /// The product's data plane, which the lane vpn starts
    #[command(hide = true)]
    Gateway {
        /// Its configuration
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.other {
        Some(Other::StandIn { role }) => topnet_bench::lanes::play(role),
        Some(Other::Gateway { config }) => topnet_bench::lanes::run_data_plane(&config),
        None => measure(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let known = topnet_bench::lanes::all(&Setup {
        interrupt: interrupt.clone(),
        program: std::env::current_exe().context("cannot find this program's file")?,
        size: arguments.size,
    });
    if arguments.list {
        for lane in &known {
            println!("{:<12} {}", lane.name(), lane.about());
        }
        return Ok(());
    }
    for name in &arguments.lanes {
        if !known.iter().any(|lane| lane.name() == name) {
            let names: Vec<&str> = known.iter().map(|lane| lane.name()).collect();
            bail!("no lane `{name}`; there are: {}", names.join(", "));
        }
    }
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures mean nothing; use cargo xtask bench");
    }
    let setting = Setting {
        rounds: arguments.rounds,
        machine: topnet_machine::machine(),
        commit: topnet_machine::commit(),
    };
    println!("{} at {}", setting.machine, setting.commit);
    let chosen = known.iter().filter(|lane| {
        arguments.lanes.is_empty() || arguments.lanes.iter().any(|name| name == lane.name())
    });
    let mut records = Vec::new();
    for lane in chosen {
        let case = arguments.case.as_deref();
        records.extend(measure_lane(lane.as_ref(), case, &setting, &interrupt)?);
    }
    if let Some(case) = arguments.case.as_deref().filter(|_| records.is_empty()) {
        bail!("no case has `{case}` in its name");
    }
    if let Some(path) = &arguments.json {
        write_json(path, &records).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn measure_lane(
    lane: &dyn Lane,
    case: Option<&str>,
    setting: &Setting,
    interrupt: &Interrupt,
) -> Result<Vec<Record>> {
    let mut cases = lane
        .cases()
        .with_context(|| format!("lane {} cannot be prepared", lane.name()))?;
    cases.retain(|known| case.is_none_or(|case| known.name.contains(case)));
    let measurements: usize = cases.iter().map(|case| 1 + case.peers.len()).sum();
    let bar = ProgressBar::new(measurements as u64 * u64::from(setting.rounds)).with_style(
        ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {pos}/{len} {wide_msg}")?
            .progress_chars("=> "),
    );
    let mut records = Vec::new();
    let mut before = 0;
    for case in cases {
        let in_case = (1 + case.peers.len()) as u64 * u64::from(setting.rounds);
        let record = run(lane.name(), case, setting, |message, done| {
            bar.set_message(message.to_owned());
            bar.set_position(before + done);
            interrupt.check()
        })?;
        before += in_case;
        bar.suspend(|| print(&record));
        records.push(record);
    }
    bar.finish_and_clear();
    Ok(records)
}

fn print(record: &Record) {
    println!(
        "{} {} ({}): {} {}  [{} … {}], {} rounds, {:.2} CPU-s",
        record.case,
        record.metric,
        record.mode,
        figure(record.value),
        record.unit,
        figure(record.min),
        figure(record.max),
        record.rounds,
        record.cpu_s
    );
    print_more(record.latency, &record.beside);
    for (name, peer) in &record.peers {
        let ratio = record.ratios.get(name).copied().unwrap_or(f64::NAN);
        println!(
            "    beside {name} {}: {}  [{} … {}], ours is {ratio:.2} of it",
            peer.version,
            figure(peer.value),
            figure(peer.min),
            figure(peer.max)
        );
        print_more(peer.latency, &peer.beside);
    }
}

fn print_more(latency: Option<Latency>, beside: &BTreeMap<String, Figure>) {
    if let Some(latency) = latency {
        println!(
            "        latency in us: p50 {}, p99 {}, p99.9 {}, max {}",
            figure(latency.p50_us),
            figure(latency.p99_us),
            figure(latency.p999_us),
            figure(latency.max_us)
        );
    }
    for (name, Figure { value, unit }) in beside {
        println!("        {name}: {} {unit}", figure(*value));
    }
}

/// A rate is told without its fraction; of a few nanoseconds the fraction is half the news.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        ..0.1 => 4,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// The file may be another user's, made for us by an unelevated caller; asking the kernel to
/// create it would then be refused in a shared directory.
fn write_json(path: &Path, records: &[Record]) -> io::Result<()> {
    let mut existing = File::options();
    existing.write(true).truncate(true);
    let mut file = existing.open(path).or_else(|_| File::create(path))?;
    serde_json::to_writer_pretty(&mut file, records)?;
    writeln!(file)
}
