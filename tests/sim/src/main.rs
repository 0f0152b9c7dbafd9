//! `topnet-sim`: runs worlds on all cores and stops at the first that breaks an invariant.
#![forbid(unsafe_code)]

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use topnet_sim::{Coverage, Failure, Settings, run};

/// Runs the payment path in seeded worlds and checks every unit.
#[derive(Parser)]
#[command(name = "cargo xtask sim")]
struct Arguments {
    /// How many worlds
    #[arg(long, value_name = "N", default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    from: u64,
    /// Only this world
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Links also lose, repeat and reorder messages
    #[arg(long)]
    datagram_chaos: bool,
    /// Print every event of the world, with --seed
    #[arg(long, requires = "seed")]
    trace: bool,
}

struct Progress {
    next: AtomicU64,
    done: AtomicU64,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    coverage: Coverage,
    /// Of all worlds, in whatever order they were done.
    hash: u64,
    failure: Option<Failure>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = Settings {
        datagram_chaos: arguments.datagram_chaos,
        trace: arguments.trace,
    };
    let seeds = match arguments.seed {
        Some(seed) => seed..seed + 1,
        None => arguments.from..arguments.from + arguments.seeds,
    };
    let progress = Progress {
        next: AtomicU64::new(seeds.start),
        done: AtomicU64::new(0),
        found: Mutex::default(),
    };
    let began = Instant::now();
    let threads = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let count = seeds.end - seeds.start;
    thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| work(&progress, seeds.end, settings));
        }
        let mut told = 0;
        while progress.next.load(Ordering::Relaxed) < seeds.end {
            thread::sleep(Duration::from_millis(100));
            let seconds = began.elapsed().as_secs();
            if seconds >= told + 5 {
                told = seconds;
                eprintln!(
                    "{} of {count} worlds",
                    progress.done.load(Ordering::Relaxed)
                );
            }
        }
    });
    let found = progress
        .found
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = found.failure {
        eprintln!("{failure}");
        let chaos = if arguments.datagram_chaos {
            " --datagram-chaos"
        } else {
            ""
        };
        eprintln!("cargo xtask sim --seed {}{chaos} --trace", failure.seed);
        return ExitCode::FAILURE;
    }
    let seconds = began.elapsed().as_secs_f64();
    for (name, times) in found.coverage.counts() {
        println!("  {name:<18} {times:>12}");
    }
    println!(
        "{count} worlds, trace {:016x}, {seconds:.1} s, {:.0} worlds/s",
        found.hash,
        count as f64 / seconds
    );
    ExitCode::SUCCESS
}

fn work(progress: &Progress, end: u64, settings: Settings) {
    loop {
        let seed = progress.next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return;
        }
        let result = catch_unwind(AssertUnwindSafe(|| run(seed, settings)));
        let result = result.unwrap_or_else(|_| {
            Err(Failure {
                seed,
                step: 0,
                invariant: "it panicked; see above".to_owned(),
                hash: 0,
            })
        });
        progress.done.fetch_add(1, Ordering::Relaxed);
        let mut found = progress
            .found
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(outcome) => {
                found.coverage.add(outcome.coverage);
                found.hash = found.hash.wrapping_add(outcome.hash);
            }
            Err(failure) => {
                let first = found.failure.as_ref().is_none_or(|known| seed < known.seed);
                if first {
                    found.failure = Some(failure);
                }
                progress.next.store(end, Ordering::Relaxed);
                return;
            }
        }
    }
}
