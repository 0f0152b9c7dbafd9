//! Checks what the compiler does not: who may depend on whom, where unsafe code may live, and
//! that the unit's size has one home. Documentation of public items is clippy's part.

use crate::workspace::{Package, Workspace};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may use outside its tests. Contracts are at the top; a
/// consumer of a process depends on the contract that it speaks, never on the process.
const ARROWS: &[(&str, &[&str])] = &[
    // Contracts and pure logic.
    ("topnet-account", &[]),
    ("topnet-ebpf-abi", &[]),
    ("topnet-unit", &["topnet-ebpf-abi"]),
    ("topnet-checksum", &[]),
    ("topnet-nat", &["topnet-checksum"]),
    ("topnet-channel", &["topnet-account", "topnet-unit"]),
    ("topnet-log", &["topnet-account", "topnet-unit"]),
    ("topnet-ledger", &["topnet-account", "topnet-channel"]),
    ("topnet-api", &["topnet-account"]),
    // With the NAT's own bounds and defaults.
    ("topnet-config", &["topnet-account", "topnet-nat"]),
    ("topnet-metrics", &[]),
    ("topnet-offload", &["topnet-checksum"]),
    ("topnet-uapi", &[]),
    // Apart from the log, so that only those who keep or read segments have a store's client.
    (
        "topnet-archive",
        &["topnet-account", "topnet-config", "topnet-log"],
    ),
    // What processes are made of.
    (
        "topnet-books",
        &[
            "topnet-account",
            "topnet-api",
            "topnet-channel",
            "topnet-log",
            "topnet-unit",
        ],
    ),
    ("topnet-link", &["topnet-account", "topnet-channel"]),
    (
        "topnet-wallet",
        &[
            "topnet-account",
            "topnet-api",
            "topnet-channel",
            "topnet-ledger",
            "topnet-link",
            "topnet-unit",
        ],
    ),
    ("topnet-light", &["topnet-account", "topnet-ledger"]),
    (
        "topnet-chain",
        &["topnet-account", "topnet-ledger", "topnet-light"],
    ),
    (
        // A process too, and what settlement's own tower has in common with it.
        "topnet-tower",
        &[
            "topnet-account",
            "topnet-api",
            "topnet-channel",
            "topnet-config",
            "topnet-ledger",
            "topnet-light",
            "topnet-metrics",
        ],
    ),
    // Processes.
    (
        "topnet-dataplane",
        &[
            "topnet-account",
            "topnet-api",
            "topnet-checksum",
            "topnet-config",
            "topnet-ebpf-abi",
            "topnet-nat",
            "topnet-offload",
            "topnet-uapi",
            "topnet-unit",
        ],
    ),
    (
        "topnet-metering",
        &[
            "topnet-account",
            "topnet-api",
            "topnet-archive",
            "topnet-books",
            "topnet-channel",
            "topnet-config",
            "topnet-link",
            "topnet-log",
            "topnet-unit",
            // For the encrypted key file, whose format lives with the wallet.
            "topnet-wallet",
        ],
    ),
    (
        "topnet-settlement",
        &[
            "topnet-account",
            "topnet-api",
            "topnet-chain",
            "topnet-channel",
            "topnet-config",
            "topnet-ledger",
            // For the store of held claims, the decision what to do about them, and the way to a
            // tower elsewhere: none of it is that process's state.
            "topnet-tower",
            // For the encrypted key file, whose format lives with the wallet.
            "topnet-wallet",
        ],
    ),
    (
        "topnet-control",
        &[
            "topnet-account",
            "topnet-api",
            // The command reads the service log wherever it is.
            "topnet-archive",
            "topnet-channel",
            "topnet-config",
            "topnet-ledger",
            // The command makes and checks proofs.
            "topnet-light",
            "topnet-log",
            "topnet-metrics",
            "topnet-uapi",
            "topnet-unit",
            // The command is also the payer's side.
            "topnet-wallet",
        ],
    ),
    // Doors and tests.
    ("topnet-machine", &[]),
    ("topnet-netns", &[]),
    ("topnet-small-disk", &[]),
    (
        "topnet-lab",
        &[
            "topnet-account",
            "topnet-api",
            // For programs that break the rules of payments and claims on purpose.
            "topnet-channel",
            "topnet-ledger",
            "topnet-link",
            "topnet-machine",
            "topnet-netns",
            "topnet-small-disk",
            "topnet-unit",
            "topnet-wallet",
        ],
    ),
    (
        "topnet-sim",
        &[
            "topnet-account",
            "topnet-api",
            "topnet-books",
            "topnet-channel",
            "topnet-log",
            "topnet-unit",
        ],
    ),
    ("topnet-dependencies", &[]),
    ("xtask", &[]),
];

/// These measure and test across the layers: they may use every crate, and nobody uses them.
const ACROSS: &[&str] = &["topnet-bench", "topnet-fuzz", "topnet-tests"];

/// Where unsafe code may live: shared memory, the AF_XDP sockets, the BPF glue and program.
const ISLANDS: &[&str] = &[
    "dataplane/src/io/",
    "dataplane/src/xdp.rs",
    "dataplane/unit/src/",
    "ebpf/program/",
];

/// A crate that is an island as a whole.
const ISLAND_CRATE: &str = "topnet-unit";

/// A crate with an island in it cannot say `forbid`. It says `deny`, and allows it where the
/// island begins.
const WITH_ISLAND: &str = "topnet-dataplane";

/// The only file that knows the unit's size.
const UNIT_HOME: &str = "dataplane/unit/src/";
/// Where bytes are cut into units.
const UNIT_CUT: &str = "dataplane/unit/src/unit.rs";

/// The unit's size as a search term. Written so that this file does not hold it.
fn unit_literals() -> [String; 2] {
    let (thousands, rest) = ("524", "288");
    [format!("{thousands}{rest}"), format!("{thousands}_{rest}")]
}

/// `cargo xtask tidy`.
pub fn run(workspace: &Workspace) -> Result<()> {
    let problems = check(workspace)?;
    for problem in &problems {
        eprintln!("{problem}");
    }
    let clippy = clippy(workspace)
        .status()
        .context("cannot start cargo clippy")?;
    ensure!(problems.is_empty(), "{} things are untidy", problems.len());
    ensure!(
        clippy.success(),
        "clippy, which asks for documentation on public items too, is not content: see above"
    );
    println!("tidy");
    Ok(())
}

/// clippy with the workspace's lints, every warning an error.
pub fn clippy(workspace: &Workspace) -> std::process::Command {
    let mut command = workspace.cargo();
    command.args(["clippy", "--workspace", "--all-targets", "--quiet"]);
    command.args(["--", "--deny", "warnings"]);
    command
}

/// Everything but clippy; one line per problem.
pub fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    arrows(&workspace.packages, &mut problems);
    spare_arrows(&workspace.packages, &mut problems);
    for package in &workspace.packages {
        manifest(workspace, package, &mut problems)?;
        roots(workspace, package, &mut problems)?;
    }
    let mut files = Vec::new();
    rust_files(&workspace.root, &workspace.target, &mut files)?;
    for file in files {
        let text = fs::read_to_string(&file)
            .with_context(|| format!("{} cannot be read", file.display()))?;
        source(workspace.short(&file), &text, &mut problems);
    }
    problems.sort();
    Ok(problems)
}

fn arrows(packages: &[Package], problems: &mut Vec<String>) {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for package in packages {
        let name = package.name.as_str();
        if ACROSS.contains(&name) {
            continue;
        }
        let Some(targets) = allowed.get(name) else {
            problems.push(format!(
                "{name} has no place in the layering: add it to ARROWS in xtask/src/tidy.rs"
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let ours = dependency.path.is_some();
            let in_tests = dependency.kind.as_deref() == Some("dev");
            if ours && !in_tests && !targets.contains(&dependency.name.as_str()) {
                problems.push(format!(
                    "{name} depends on {}: depend on the contract between them instead, or argue \
                     for the arrow in ARROWS in xtask/src/tidy.rs",
                    dependency.name
                ));
            }
        }
    }
}

/// An arrow that nobody draws would let in tomorrow what nobody argued for.
fn spare_arrows(packages: &[Package], problems: &mut Vec<String>) {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for package in packages {
        let targets = allowed.get(package.name.as_str()).copied();
        for target in targets.unwrap_or_default() {
            let is_drawn = package.dependencies.iter().any(|dependency| {
                dependency.name == *target && dependency.kind.as_deref() != Some("dev")
            });
            if !is_drawn {
                problems.push(format!(
                    "{} may depend on {target} and does not: take the arrow out of ARROWS in \
                     xtask/src/tidy.rs",
                    package.name
                ));
            }
        }
    }
}

/// Without `[lints] workspace = true` a crate would escape every lint, documentation included.
fn manifest(workspace: &Workspace, package: &Package, problems: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(&package.manifest_path)?;
    let inherits = text
        .split_once("[lints]")
        .is_some_and(|(_, rest)| rest.trim_start().starts_with("workspace = true"));
    if !inherits {
        problems.push(format!(
            "{}: add `[lints]` with `workspace = true`",
            workspace.short(&package.manifest_path).display()
        ));
    }
    Ok(())
}

/// The root of every library and binary forbids unsafe code, or denies it if an island is below.
fn roots(workspace: &Workspace, package: &Package, problems: &mut Vec<String>) -> Result<()> {
    if package.name == ISLAND_CRATE {
        return Ok(());
    }
    for target in &package.targets {
        if !target
            .kind
            .iter()
            .any(|kind| kind == "lib" || kind == "bin")
        {
            continue;
        }
        let text = fs::read_to_string(&target.src_path)?;
        let denied = text.contains("#![deny(unsafe_code)]");
        let island = package.name == WITH_ISLAND && denied;
        if !text.contains("#![forbid(unsafe_code)]") && !island {
            problems.push(format!(
                "{}: begins without #![forbid(unsafe_code)]",
                workspace.short(&target.src_path).display()
            ));
        }
    }
    Ok(())
}

/// What holds for a single file.
fn source(path: &Path, text: &str, problems: &mut Vec<String>) {
    let island = ISLANDS.iter().any(|island| path.starts_with(island));
    let unit_home = path.starts_with(UNIT_HOME);
    let literals = unit_literals();
    for (index, line) in text.lines().enumerate() {
        let code = code_of(line);
        let place = || format!("{}:{}", path.display(), index + 1);
        if !island && has_unsafe(&code) {
            problems.push(format!(
                "{}: unsafe code outside the islands ({})",
                place(),
                ISLANDS.join(", ")
            ));
        }
        if !unit_home && code.contains("const UNIT_BYTES") {
            problems.push(format!(
                "{}: UNIT_BYTES has one home, {UNIT_HOME}: use topnet_unit::UNIT_BYTES",
                place()
            ));
        }
        if path != Path::new(UNIT_CUT) && !is_test(path) && code.contains("div_ceil(UNIT_BYTES") {
            problems.push(format!(
                "{}: bytes are cut into units in {UNIT_CUT} alone: use topnet_unit::units_owed",
                place()
            ));
        }
        if !unit_home
            && literals
                .iter()
                .any(|literal| line.contains(literal.as_str()))
        {
            problems.push(format!(
                "{}: the unit's size written out: use topnet_unit::UNIT_BYTES",
                place()
            ));
        }
    }
}

/// Tests may count by themselves, to check those who do not.
fn is_test(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.iter().any(|part| part == "tests")
}

/// The line without its texts and its comment.
fn code_of(line: &str) -> String {
    let quoted_quotes = line.replace("\\\"", "").replace("'\"'", "");
    let outside_of_texts: String = quoted_quotes.split('"').step_by(2).collect();
    let code = outside_of_texts.split("//").next();
    code.unwrap_or_default().to_owned()
}

/// True if the line opens an unsafe block, function, trait or implementation. A line that ends
/// with the word opens one on the next.
fn has_unsafe(code: &str) -> bool {
    let spaced = code.replace('{', " { ");
    let words: Vec<&str> = spaced
        .split(|character: char| !(character.is_alphanumeric() || "_{".contains(character)))
        .filter(|word| !word.is_empty())
        .collect();
    let opens = |next: &str| matches!(next, "{" | "fn" | "impl" | "trait" | "extern");
    words
        .windows(2)
        .any(|pair| pair[0] == "unsafe" && opens(pair[1]))
        || words.last() == Some(&"unsafe")
}

fn rust_files(directory: &Path, target: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if entry.file_type()?.is_dir() {
            if !hidden && name != "target" && path != target {
                rust_files(&path, target, into)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

/// Fails with the problems, for callers that have no other use for them.
pub fn demand(workspace: &Workspace) -> Result<()> {
    let problems = check(workspace)?;
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn problems_of(path: &str, text: &str) -> usize {
        let mut problems = Vec::new();
        source(Path::new(path), text, &mut problems);
        problems.len()
    }

    #[test]
    fn a_line_breaks_a_rule_only_outside_its_island() {
        let [plain, grouped] = unit_literals();
        for (path, text, expected) in [
            ("control/src/a.rs", "unsafe { read() }", 1),
            ("control/src/a.rs", "unsafe{ read() }", 1),
            ("control/src/a.rs", "pub unsafe fn f() {}", 1),
            ("control/src/a.rs", "let x = unsafe", 1),
            ("control/src/a.rs", "#![forbid(unsafe_code)]", 0),
            ("control/src/a.rs", "// unsafe { here } is only told of", 0),
            ("control/src/a.rs", "f(\"unsafe { is only told of }\")", 0),
            ("control/src/a.rs", "f('\"', unsafe { g(\"\") })", 1),
            ("dataplane/unit/src/a.rs", "unsafe { read() }", 0),
            ("dataplane/src/io/a.rs", "unsafe { read() }", 0),
            ("dataplane/src/a.rs", "unsafe { read() }", 1),
            ("control/src/a.rs", "pub const UNIT_BYTES: u64 = 1;", 1),
            (
                "dataplane/unit/src/a.rs",
                "pub const UNIT_BYTES: u64 = 1;",
                0,
            ),
            ("metering/src/a.rs", "bytes.div_ceil(UNIT_BYTES)", 1),
            ("metering/tests/a.rs", "bytes.div_ceil(UNIT_BYTES)", 0),
            (UNIT_CUT, "bytes.div_ceil(UNIT_BYTES)", 0),
            ("control/src/a.rs", plain.as_str(), 1),
            ("control/src/a.rs", grouped.as_str(), 1),
            ("dataplane/unit/src/a.rs", grouped.as_str(), 0),
        ] {
            assert_eq!(problems_of(path, text), expected, "{path}: {text}");
        }
    }

    #[test]
    fn an_arrow_that_is_not_drawn_is_told() {
        let package = |name: &str, dependency: &str, kind: Option<&str>| Package {
            name: name.into(),
            manifest_path: "Cargo.toml".into(),
            dependencies: vec![Dependency {
                name: dependency.into(),
                kind: kind.map(str::to_owned),
                path: dependency.starts_with("topnet").then(|| "x".into()),
            }],
            targets: Vec::new(),
        };
        for (name, dependency, kind, expected) in [
            ("topnet-metering", "topnet-unit", None, 0),
            ("topnet-metering", "topnet-dataplane", None, 1),
            ("topnet-metering", "topnet-dataplane", Some("build"), 1),
            ("topnet-metering", "topnet-dataplane", Some("dev"), 0),
            ("topnet-metering", "serde", None, 0),
            ("topnet-unheard-of", "serde", None, 1),
            ("topnet-bench", "topnet-dataplane", None, 0),
        ] {
            let mut problems = Vec::new();
            arrows(&[package(name, dependency, kind)], &mut problems);
            assert_eq!(problems.len(), expected, "{name} → {dependency}");
        }
    }

    #[test]
    fn an_arrow_that_nobody_draws_is_told() {
        let drawn = |kind: Option<&str>| Package {
            name: "topnet-api".into(),
            manifest_path: "Cargo.toml".into(),
            dependencies: vec![Dependency {
                name: "topnet-account".into(),
                kind: kind.map(str::to_owned),
                path: Some("x".into()),
            }],
            targets: Vec::new(),
        };
        for (kind, expected) in [(None, 0), (Some("dev"), 1)] {
            let mut problems = Vec::new();
            spare_arrows(&[drawn(kind)], &mut problems);
            assert_eq!(problems.len(), expected, "{kind:?}");
        }
    }

    #[test]
    fn arrows_lead_only_to_crates_that_stand_above() {
        let order: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
        for (index, (name, targets)) in ARROWS.iter().enumerate() {
            for target in *targets {
                let above = order.iter().position(|other| other == target);
                assert!(
                    above.is_some_and(|above| above < index),
                    "{name} → {target}: a cycle, or a crate that is not listed"
                );
            }
        }
    }
}
