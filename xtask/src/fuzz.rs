//! Looks for bytes that upset a parser or a state machine, with libFuzzer.
//!
//! Nothing has to be installed and the compiler stays the pinned one: what counts the branches
//! is an ordinary pass of LLVM, and libFuzzer comes as a library. No sanitizer runs with it: the
//! code under test has no unsafe blocks but the few of `topnet-unit`, and what fails in safe code
//! panics.
//!
//! What a run has learnt stays in the target directory for the next one; `--keep` puts a small
//! part of it into `tests/fuzz/corpus`, for every test run.

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What makes the compiler count branches and comparisons.
const INSTRUMENTS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// A target that takes longer for one input hangs, even on a machine that does much else.
const INPUT_SECONDS_MAX: u32 = 60;
/// A target that takes more memory is upset.
const MEMORY_MIB_MAX: u32 = 2048;
const INPUT_BYTES_MAX: u32 = 4096;
/// What `--keep` leaves of one target's inputs.
const KEPT_FILES_MAX: usize = 40;
const KEPT_BYTES_MAX: u64 = 12_000;
/// Inputs with this beginning were found to upset a target once. They stay.
const FOUND: &str = "found-";
/// How many of the last lines are shown when a target panics.
const TAIL_LINES: usize = 60;

/// What `cargo xtask fuzz` takes.
#[derive(Args)]
pub struct FuzzArguments {
    /// Which targets to run, one after the other; all of them if none is named
    targets: Vec<String>,
    /// How long each of them runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// List the targets
    #[arg(long)]
    list: bool,
    /// Run one target with this input alone
    #[arg(long, value_name = "FILE", conflicts_with = "keep")]
    input: Option<PathBuf>,
    /// In the end, keep a small set of inputs that reach the most, for every test run
    #[arg(long)]
    keep: bool,
}

/// `cargo xtask fuzz`.
pub fn run(workspace: &Workspace, arguments: &FuzzArguments) -> Result<()> {
    let known = targets(workspace)?;
    if arguments.list {
        known.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    for name in &arguments.targets {
        ensure!(
            known.contains(name),
            "there is no target `{name}`; `cargo xtask fuzz --list` names them"
        );
    }
    let chosen = if arguments.targets.is_empty() {
        &known
    } else {
        &arguments.targets
    };
    let engine = Engine::build(workspace)?;
    if let Some(input) = &arguments.input {
        let [target] = chosen.as_slice() else {
            bail!("name the one target that {} is for", input.display());
        };
        return engine.run_one(target, input);
    }
    let mut findings = 0;
    let mut runs = 0;
    for target in chosen {
        let outcome = engine.fuzz(target, arguments.seconds)?;
        println!("{}", outcome.line(target));
        runs += outcome.runs;
        if let Some(finding) = &outcome.finding {
            findings += 1;
            println!("{}", finding.output);
            println!(
                "  again: cargo xtask fuzz {target} --input {}",
                finding.input.display()
            );
        } else if arguments.keep {
            let kept = engine.keep(target)?;
            println!(
                "  kept {kept} inputs in {}",
                engine.corpus(target).display()
            );
        }
    }
    println!(
        "{} targets, {} s each, {runs} runs, {findings} findings",
        chosen.len(),
        arguments.seconds
    );
    ensure!(findings == 0, "some targets were upset; see above");
    Ok(())
}

/// Every target has a directory of inputs; a test of theirs compares the two.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let corpus = workspace.root.join("tests/fuzz/corpus");
    let mut names = Vec::new();
    for entry in fs::read_dir(&corpus).with_context(|| corpus.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The built fuzzer, and where it reads and writes.
struct Engine {
    program: PathBuf,
    root: PathBuf,
    /// What runs have learnt and found.
    state: PathBuf,
}

impl Engine {
    fn build(workspace: &Workspace) -> Result<Self> {
        let host = host(workspace)?;
        let state = workspace.target.join("fuzz");
        let status = workspace
            .cargo()
            .args(["build", "--release", "--manifest-path"])
            .arg(workspace.root.join("tests/fuzz/engine/Cargo.toml"))
            // With a target named, build scripts and macros are compiled without instruments.
            .args(["--target", &host])
            .env("CARGO_TARGET_DIR", &state)
            .env("RUSTFLAGS", INSTRUMENTS.join(" "))
            .status()
            .context("cannot start cargo")?;
        ensure!(status.success(), "the fuzzer could not be built; see above");
        Ok(Self {
            program: state.join(host).join("release/engine"),
            root: workspace.root.clone(),
            state,
        })
    }

    /// Inputs that every test run looks at.
    fn corpus(&self, target: &str) -> PathBuf {
        self.root.join("tests/fuzz/corpus").join(target)
    }

    /// A directory of this target's, made if it is not there.
    fn directory(&self, what: &str, target: &str) -> Result<PathBuf> {
        let directory = self.state.join(what).join(target);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(directory)
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.env("TOPNET_FUZZ_TARGET", target);
        command.arg(format!("-timeout={INPUT_SECONDS_MAX}"));
        command.arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
        command
    }

    fn run_one(&self, target: &str, input: &Path) -> Result<()> {
        let status = self.command(target).arg(input).status()?;
        ensure!(status.success(), "{target} is upset by {}", input.display());
        println!("{target} takes {}", input.display());
        Ok(())
    }

    fn fuzz(&self, target: &str, seconds: u64) -> Result<Outcome> {
        let learnt = self.directory("learnt", target)?;
        let found = self.directory("found", target)?;
        let bar = ProgressBar::new(seconds).with_style(
            ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {prefix} {wide_msg}")?
                .progress_chars("=> "),
        );
        bar.set_prefix(target.to_owned());
        let start = Instant::now();
        let mut child = self
            .command(target)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .arg("-print_final_stats=1")
            .args([&learnt, &self.corpus(target)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let output = child.stderr.take().context("the fuzzer has no output")?;
        let mut reading = Reading::default();
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            reading.take(line);
            bar.set_position(start.elapsed().as_secs().min(seconds));
            bar.set_message(format!(
                "{} branches, {} runs",
                reading.branches, reading.runs
            ));
        }
        let status = child.wait()?;
        bar.finish_and_clear();
        let finding = reading.finding(status.success());
        ensure!(
            status.success() || finding.is_some(),
            "{target} ended with {status} and left no input:\n{}",
            reading.tail()
        );
        Ok(Outcome {
            time: start.elapsed(),
            runs: reading.runs,
            branches: reading.branches,
            finding,
        })
    }

    /// Replaces what is kept by a small set that reaches nearly as much; how many that are.
    fn keep(&self, target: &str) -> Result<usize> {
        let corpus = self.corpus(target);
        let small = self.directory("small", target)?;
        fs::remove_dir_all(&small)?;
        fs::create_dir(&small)?;
        let status = self
            .command(target)
            .arg("-set_cover_merge=1")
            .args([&small, &self.directory("learnt", target)?, &corpus])
            .stderr(Stdio::null())
            .status()?;
        ensure!(status.success(), "the inputs of {target} cannot be merged");
        for file in files(&corpus)? {
            if !file.name.starts_with(FOUND) {
                fs::remove_file(&file.path)?;
            }
        }
        for file in choose(files(&small)?) {
            fs::copy(&file.path, corpus.join(&file.name))?;
        }
        Ok(files(&corpus)?.len())
    }
}

/// Short ones and long ones, within the bounds of what is kept: the short ones alone reach little.
fn choose(inputs: Vec<Input>) -> Vec<Input> {
    let every = inputs.len().div_ceil(KEPT_FILES_MAX).max(1);
    let mut chosen: Vec<Input> = inputs.into_iter().rev().step_by(every).collect();
    let mut bytes: u64 = chosen.iter().map(|input| input.bytes).sum();
    while bytes > KEPT_BYTES_MAX {
        bytes -= chosen.remove(0).bytes;
    }
    chosen
}

/// An input in a file.
struct Input {
    bytes: u64,
    name: String,
    path: PathBuf,
}

/// The shortest first.
fn files(directory: &Path) -> Result<Vec<Input>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        files.push(Input {
            bytes: entry.metadata()?.len(),
            name: entry.file_name().to_string_lossy().into_owned(),
            path: entry.path(),
        });
    }
    files.sort_by(|left, right| (left.bytes, &left.name).cmp(&(right.bytes, &right.name)));
    Ok(files)
}

fn host(workspace: &Workspace) -> Result<String> {
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .arg("-vV")
        .current_dir(&workspace.root)
        .output()
        .context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not name its host")?.to_owned())
}

/// How one target fared.
struct Outcome {
    time: Duration,
    runs: u64,
    branches: u64,
    finding: Option<Finding>,
}

impl Outcome {
    fn line(&self, target: &str) -> String {
        let seconds = self.time.as_secs_f64();
        let state = match &self.finding {
            None => "ok".to_owned(),
            Some(finding) => format!("FOUND {}", finding.input.display()),
        };
        format!(
            "{target:<16} {seconds:>5.0} s {:>11} runs {:>8.0}/s {:>6} branches  {state}",
            self.runs,
            self.runs as f64 / seconds.max(0.001),
            self.branches,
        )
    }
}

/// An input that upsets a target, and what the target said.
struct Finding {
    input: PathBuf,
    output: String,
}

/// What libFuzzer says while it runs.
#[derive(Default)]
struct Reading {
    runs: u64,
    branches: u64,
    input: Option<PathBuf>,
    tail: VecDeque<String>,
}

impl Reading {
    /// A line such as `#4096 NEW cov: 61 ft: 75 corp: 12/90b …`, one of the last figures, or
    /// something else.
    fn take(&mut self, line: String) {
        if let Some((runs, rest)) = line
            .strip_prefix('#')
            .and_then(|rest| rest.split_once('\t'))
            && let Ok(runs) = runs.trim().parse()
        {
            self.runs = runs;
            if let Some(branches) = number_after(rest, "cov: ") {
                self.branches = branches;
            }
            return;
        }
        if let Some(runs) = number_after(&line, "stat::number_of_executed_units: ") {
            self.runs = runs;
        }
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.input = Some(PathBuf::from(path.trim()));
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn tail(&self) -> String {
        let lines: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    fn finding(&self, success: bool) -> Option<Finding> {
        let input = self.input.clone().filter(|_| !success)?;
        let output = self.tail();
        Some(Finding { input, output })
    }
}

fn number_after(text: &str, word: &str) -> Option<u64> {
    let (_, rest) = text.split_once(word)?;
    rest.trim_start().split(' ').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_short_and_long_and_within_its_bounds() {
        let inputs = |count: u64, bytes: u64| -> Vec<Input> {
            let input = |nth| Input {
                bytes: nth * bytes,
                name: String::new(),
                path: PathBuf::new(),
            };
            (1..=count).map(input).collect()
        };
        for (count, bytes) in [
            (0, 1),
            (1, 1),
            (40, 1),
            (41, 1),
            (1_000, 1),
            (300, 30),
            (9, 9_000),
        ] {
            let chosen = choose(inputs(count, bytes));
            let sum: u64 = chosen.iter().map(|input| input.bytes).sum();
            assert!(chosen.len() <= KEPT_FILES_MAX && sum <= KEPT_BYTES_MAX);
            assert_eq!(chosen.is_empty(), count == 0, "{count} of {bytes}");
        }
        let chosen = choose(inputs(100, 1));
        assert!(chosen.iter().any(|input| input.bytes > 90));
        assert!(chosen.iter().any(|input| input.bytes < 10));
    }

    #[test]
    fn libfuzzers_words_are_understood() {
        let mut reading = Reading::default();
        for line in [
            "INFO: Running with entropic power schedule (0xFF, 100).",
            "#2\tINITED cov: 61 ft: 61 corp: 1/1b exec/s: 0 rss: 40Mb",
            "#4096\tpulse  cov: 75 ft: 90 corp: 12/90b lim: 43 exec/s: 2048 rss: 45Mb",
        ] {
            reading.take(line.to_owned());
        }
        assert_eq!((reading.runs, reading.branches), (4096, 75));
        assert!(reading.finding(true).is_none());
        for line in [
            "thread '<unnamed>' panicked at tests/fuzz/src/wire.rs:15:9:",
            "artifact_prefix='/t/'; Test unit written to /t/crash-da39a3ee",
            "stat::number_of_executed_units: 5000",
        ] {
            reading.take(line.to_owned());
        }
        assert_eq!(reading.runs, 5000);
        assert!(reading.finding(true).is_none(), "it ended well");
        let finding = reading.finding(false).unwrap();
        assert_eq!(finding.input, Path::new("/t/crash-da39a3ee"));
        assert!(finding.output.contains("panicked at"));
    }
}
