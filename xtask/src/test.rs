//! Every test, in the order in which a failure is cheapest: formatting, tidiness and lints,
//! licences, tests, tests that need root, the lab.
//!
//! The binaries that cargo builds are run here one by one, because those named `root_*` run
//! elevated while the rest, and the compiler, do not.

use crate::doctor::{self, Group};
use crate::elevate;
use crate::runners;
use crate::tidy;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A test binary that takes longer hangs.
const BINARY_WAIT_MAX: Duration = Duration::from_secs(20 * 60);

/// Passed, failed, skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Tally {
    const PASSED: Tally = Tally {
        passed: 1,
        failed: 0,
        skipped: 0,
    };
    const FAILED: Tally = Tally {
        passed: 0,
        failed: 1,
        skipped: 0,
    };

    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn skipped(count: u64) -> Tally {
        Tally {
            skipped: count,
            ..Tally::default()
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// `cargo xtask test`. `fast` leaves out what needs root.
pub fn run(workspace: &Workspace, fast: bool, yes: bool) -> Result<()> {
    let groups: &[Group] = if fast {
        &[Group::Build, Group::Test]
    } else {
        &[Group::Build, Group::Test, Group::Lab]
    };
    doctor::ensure(workspace, groups, yes)?;
    let mut tally = Tally::default();
    tally.add(checks(workspace));
    match build_tests(workspace) {
        Ok(binaries) => tally.add(run_binaries(&binaries, fast)?),
        Err(error) => {
            eprintln!("FAILED build of the tests: {error:#}");
            tally.add(Tally::FAILED);
        }
    }
    tally.add(documentation_tests(workspace)?);
    tally.add(if fast {
        report("lab", "skipped: needs root");
        Tally::skipped(1)
    } else {
        lab(workspace)
    });
    println!("{tally}");
    if tally.failed > 0 {
        bail!("some tests failed");
    }
    Ok(())
}

fn report(name: &str, state: &str) {
    println!("{name:<44} {state}");
}

/// What is not a test but must hold. Each counts as one.
fn checks(workspace: &Workspace) -> Tally {
    let mut format = workspace.cargo();
    format.args(["fmt", "--all", "--check"]);
    let mut deny = workspace.cargo();
    deny.args(["deny", "--log-level", "error", "check"]);
    deny.args(["bans", "licenses", "sources"]);

    // Atomics are others under the model checker, so the ring is compiled apart.
    let mut loom = workspace.cargo();
    loom.args(["test", "--quiet", "--package", "topnet-unit", "--lib"]);
    loom.env("RUSTFLAGS", "--cfg loom");
    loom.env("CARGO_TARGET_DIR", workspace.target.join("loom"));

    let mut tally = Tally::default();
    tally.add(checked("fmt", || succeed(format)));
    tally.add(checked("tidy", || tidy::demand(workspace)));
    tally.add(checked("clippy", || succeed(tidy::clippy(workspace))));
    tally.add(checked("cargo-deny", || succeed(deny)));
    tally.add(checked("unit ring under loom", || succeed(loom)));
    tally.add(checked("BPF object", || crate::ebpf::check(workspace)));
    tally
}

fn checked(name: &str, check: impl FnOnce() -> Result<()>) -> Tally {
    let start = Instant::now();
    match check() {
        Ok(()) => {
            report(name, &format!("ok  {:.1} s", start.elapsed().as_secs_f64()));
            Tally::PASSED
        }
        Err(error) => {
            report(name, "FAILED");
            eprintln!("{error:#}");
            Tally::FAILED
        }
    }
}

fn succeed(mut command: Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("see above");
    }
    Ok(())
}

/// A built test binary.
#[derive(Debug)]
struct TestBinary {
    /// `package::target`.
    name: String,
    executable: PathBuf,
    /// Tests run in their package's directory, as under cargo.
    directory: PathBuf,
    needs_root: bool,
}

/// What we read of cargo's messages.
#[derive(Deserialize)]
struct Artifact {
    reason: String,
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
    target: Option<ArtifactTarget>,
    profile: Option<ArtifactProfile>,
}

#[derive(Deserialize)]
struct ArtifactTarget {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct ArtifactProfile {
    test: bool,
}

/// Builds all tests; cargo shows its own progress.
fn build_tests(workspace: &Workspace) -> Result<Vec<TestBinary>> {
    let mut child = workspace
        .cargo()
        .args(["test", "--workspace", "--no-run"])
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let messages = child.stdout.take().context("cargo has no output")?;
    let mut binaries = Vec::new();
    for line in BufReader::new(messages).lines() {
        let line = line?;
        if let Ok(artifact) = serde_json::from_str::<Artifact>(&line) {
            binaries.extend(test_binary(workspace, artifact));
        }
    }
    if !child.wait()?.success() {
        bail!("cargo test --no-run failed; see above");
    }
    binaries
        .sort_by(|left, right| (left.needs_root, &left.name).cmp(&(right.needs_root, &right.name)));
    Ok(binaries)
}

fn test_binary(workspace: &Workspace, artifact: Artifact) -> Option<TestBinary> {
    let target = artifact.target?;
    if artifact.reason != "compiler-artifact" || !artifact.profile?.test {
        return None;
    }
    let manifest = artifact.manifest_path?;
    let package = workspace
        .packages
        .iter()
        .find(|package| package.manifest_path == manifest)?;
    let kind = target.kind.first()?;
    Some(TestBinary {
        name: if kind == "lib" {
            package.name.clone()
        } else {
            format!("{}::{}", package.name, target.name)
        },
        executable: artifact.executable?,
        directory: package.directory().to_owned(),
        needs_root: kind == "test" && target.name.starts_with("root_"),
    })
}

fn run_binaries(binaries: &[TestBinary], fast: bool) -> Result<Tally> {
    let bar = ProgressBar::new(binaries.len() as u64).with_style(
        ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {pos}/{len} {wide_msg}")?
            .progress_chars("=> "),
    );
    let mut tally = Tally::default();
    for binary in binaries {
        bar.set_message(binary.name.clone());
        let result = if binary.needs_root && fast {
            Tally::skipped(count_tests(binary)?)
        } else {
            bar.suspend(|| run_binary(binary))?
        };
        bar.suspend(|| {
            if result != Tally::default() {
                report(&binary.name, &result.to_string());
            }
        });
        tally.add(result);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(tally)
}

fn count_tests(binary: &TestBinary) -> Result<u64> {
    let output = Command::new(&binary.executable)
        .args(["--list", "--format", "terse"])
        .current_dir(&binary.directory)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter(|line| line.ends_with(": test")).count() as u64)
}

/// Runs one binary to its end and reads its summary. Its output is shown only if it failed.
fn run_binary(binary: &TestBinary) -> Result<Tally> {
    let mut command = if binary.needs_root {
        let directory = binary.directory.to_string_lossy();
        let variables = [
            ("TOPNET_ROOT_TESTS", "1"),
            ("CARGO_MANIFEST_DIR", directory.as_ref()),
        ];
        let mut command = elevate::command(&binary.executable, &variables)?;
        // Links and ports of two such tests would meet.
        command.arg("--test-threads=1");
        command
    } else {
        let mut command = Command::new(&binary.executable);
        command.env("CARGO_MANIFEST_DIR", &binary.directory);
        command
    };
    let log = Log::new()?;
    let mut child = command
        .current_dir(&binary.directory)
        .stdin(Stdio::null())
        .stdout(log.writer()?)
        .stderr(log.writer()?)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.executable.display()))?;
    let deadline = Instant::now() + BINARY_WAIT_MAX;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let output = log.read()?;
    let tally = tally_of(&output, status.success());
    if tally.failed > 0 {
        println!("{output}");
    }
    Ok(tally)
}

/// Sums the summaries in a test harness's output. A binary that ended badly without a failed
/// test (a crash, a hang, a harness of its own) counts as one failure.
fn tally_of(output: &str, success: bool) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines() {
        if let Some(summary) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                summary
                    .split(['.', ';'])
                    .filter_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok())
                    .sum::<u64>()
            };
            tally.add(Tally {
                passed: count("passed"),
                failed: count("failed"),
                skipped: count("ignored"),
            });
        }
    }
    if !success && tally.failed == 0 {
        tally.failed = 1;
    }
    tally
}

fn documentation_tests(workspace: &Workspace) -> Result<Tally> {
    let output = workspace
        .cargo()
        .args(["test", "--workspace", "--doc", "--no-fail-fast", "--quiet"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo test --doc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tally = tally_of(&text, output.status.success());
    if tally.failed > 0 {
        println!("{text}");
    }
    report("examples in the documentation", &tally.to_string());
    Ok(tally)
}

/// One entry of the lab's JSON, as far as it counts here.
#[derive(Deserialize)]
struct ScenarioResult {
    scenario: String,
    ok: bool,
}

/// Every scenario counts as one test; a lab that does not get as far as its report, as a failure.
fn lab(workspace: &Workspace) -> Tally {
    match lab_results(workspace) {
        Ok(results) => {
            let mut tally = Tally::default();
            for result in results {
                let (state, one) = if result.ok {
                    ("ok", Tally::PASSED)
                } else {
                    ("FAILED", Tally::FAILED)
                };
                report(&format!("lab {}", result.scenario), state);
                tally.add(one);
            }
            tally
        }
        Err(error) => {
            report("lab", "FAILED");
            eprintln!("{error:#}");
            Tally::FAILED
        }
    }
}

fn lab_results(workspace: &Workspace) -> Result<Vec<ScenarioResult>> {
    runners::build_lab(workspace)?;
    let log = Log::new()?;
    let arguments = [
        "--scenario".to_owned(),
        "all".to_owned(),
        "--json".to_owned(),
        log.path.display().to_string(),
    ];
    let status = runners::lab_command(workspace, &arguments)?
        .status()
        .context("cannot start the lab")?;
    let text = log.read()?;
    let results: Vec<ScenarioResult> = serde_json::from_str(&text)
        .with_context(|| format!("the lab ended with {status} and left no report"))?;
    if !status.success() && results.iter().all(|result| result.ok) {
        bail!("the lab ended with {status}");
    }
    Ok(results)
}

/// A file of this user's that another process writes, removed in the end.
struct Log {
    path: PathBuf,
}

impl Log {
    fn new() -> Result<Log> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("topnet-test-{}-{number}.log", std::process::id()));
        fs::File::create_new(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Log { path })
    }

    fn writer(&self) -> Result<fs::File> {
        append(&self.path)
    }

    fn read(&self) -> Result<String> {
        let bytes = fs::read(&self.path)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn append(path: &Path) -> Result<fs::File> {
    Ok(fs::File::options().append(true).open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_summed_and_a_crash_is_a_failure() {
        let good = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        let bad = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured";
        let tally = |passed, failed, skipped| Tally {
            passed,
            failed,
            skipped,
        };
        for (output, success, expected) in [
            (good.to_owned(), true, tally(12, 0, 1)),
            (format!("{good}\n{bad}"), false, tally(15, 2, 1)),
            ("thread panicked".to_owned(), false, tally(0, 1, 0)),
            (good.to_owned(), false, tally(12, 1, 1)),
            (String::new(), true, tally(0, 0, 0)),
        ] {
            assert_eq!(tally_of(&output, success), expected, "{output}");
        }
        assert_eq!(tally(1, 2, 3).to_string(), "1 passed, 2 failed, 3 skipped");
    }
}
