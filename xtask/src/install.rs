//! Installs packages and tools, showing how far it is.

use crate::doctor::Installable;
use crate::elevate;
use crate::workspace::Workspace;
use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version is pinned, so that two machines give one verdict; a debug build of it compiles in
/// a third of the time and checks this workspace in seconds.
pub const CARGO_DENY: &[&str] = &["install", "--locked", "--debug", "cargo-deny@0.20.2"];

/// A peer of the bench's lane vpn, pinned so that two machines measure beside the same.
const BORINGTUN_CLI: &str = "boringtun-cli";
const BORINGTUN_CLI_VERSION: &str = "0.7.1";

/// What real machines tell of name servers.
const OPENRESOLV: &str = "openresolv";

/// Installs `packages` with apt-get. Standard output carries apt's machine-readable progress,
/// everything else goes to standard error.
///
/// A package that brings a service (nginx) would start it and have it started at every boot. The
/// policy file is Debian's way to forbid the first while packages are configured; one that the
/// administrator made is left alone.
const SCRIPT: &str = r#"
set -eu
exec 3>&1 1>&2
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
had_nginx=$(dpkg-query --show --showformat='${db:Status-Status}' nginx-common 2>/dev/null || true)
export DEBIAN_FRONTEND=noninteractive
apt-get update -q -o APT::Status-Fd=3 -o DPkg::Lock::Timeout=120
apt-get install -q -y --no-install-recommends -o APT::Status-Fd=3 -o DPkg::Lock::Timeout=120 "$@"
if [ "$had_nginx" != installed ] && [ -d /run/systemd/system ]; then
    systemctl disable --quiet nginx.service 2>/dev/null || true
fi
"#;

/// How many of the last lines are shown when an installation fails.
const TAIL_LINES: usize = 20;

/// Installs all of them.
pub fn install(workspace: &Workspace, things: &[Installable]) -> Result<()> {
    let packages: Vec<&str> = things
        .iter()
        .filter_map(|thing| match thing {
            Installable::Package(name) => Some(*name),
            Installable::CargoDeny => None,
        })
        .collect();
    if !packages.is_empty() {
        install_packages(&packages)?;
    }
    if things.contains(&Installable::CargoDeny) {
        println!("installing cargo-deny");
        let status = workspace.cargo().args(CARGO_DENY).status()?;
        ensure!(
            status.success(),
            "cargo-deny could not be installed; try `cargo {}` yourself",
            CARGO_DENY.join(" ")
        );
    }
    Ok(())
}

/// The file of boringtun-cli, which is built below the target directory the first time.
pub fn boringtun_cli(workspace: &Workspace) -> Result<PathBuf> {
    let tools = workspace.target.join("tools");
    let root = tools.join(format!("{BORINGTUN_CLI}-{BORINGTUN_CLI_VERSION}"));
    let program = root.join("bin").join(BORINGTUN_CLI);
    if program.exists() {
        return Ok(program);
    }
    println!("installing {BORINGTUN_CLI} {BORINGTUN_CLI_VERSION} to measure beside");
    let package = format!("{BORINGTUN_CLI}@{BORINGTUN_CLI_VERSION}");
    let status = workspace
        .cargo()
        .args(["install", "--locked", "--root"])
        .arg(&root)
        .arg(&package)
        .status()?;
    ensure!(
        status.success(),
        "{package} could not be installed; see above, or try `cargo install --locked {package}`"
    );
    Ok(program)
}

/// Where openresolv is unpacked, below the target directory; `None` with a word about it where
/// that is not possible. It is never installed: it would take over how the machine resolves names,
/// and whatever did that before would be removed.
pub fn openresolv(workspace: &Workspace) -> Option<PathBuf> {
    let root = workspace.target.join("tools").join(OPENRESOLV);
    if root.join("sbin/resolvconf").exists() {
        return Some(root);
    }
    println!("unpacking {OPENRESOLV} for the lab");
    match unpack(OPENRESOLV, &root) {
        Ok(()) => Some(root),
        Err(error) => {
            println!("the lab leaves out what needs {OPENRESOLV}: {error:#}");
            None
        }
    }
}

/// Fetches a Debian package, which apt checks, and unpacks it into a directory.
fn unpack(package: &str, root: &Path) -> Result<()> {
    std::fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    let script =
        r#"apt-get download -q "$1" >&2 && dpkg-deb --extract "$1"_*.deb . && rm "$1"_*.deb"#;
    let output = Command::new("sh")
        .args(["-c", script, "unpack", package])
        .current_dir(root)
        .output()
        .context("cannot start sh")?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.success(),
        "{}; `apt-get update` may help",
        words
            .trim()
            .lines()
            .last()
            .unwrap_or("apt-get said nothing")
    );
    Ok(())
}

fn install_packages(packages: &[&str]) -> Result<()> {
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "this machine has no apt-get; install what corresponds to: {}",
        packages.join(" ")
    );
    println!("installing {}", packages.join(" "));
    let bar = ProgressBar::new(100).with_style(
        ProgressStyle::with_template("{elapsed:>4} [{bar:30}] {pos:>3} % {wide_msg}")?
            .progress_chars("=> "),
    );
    let mut child = elevate::command(Path::new("/bin/sh"), &[])?
        .args(["-c", SCRIPT, "install"])
        .args(packages)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start apt-get")?;
    let errors = child.stderr.take().context("no standard error")?;
    let log = std::thread::spawn(move || {
        BufReader::new(errors)
            .lines()
            .map_while(Result::ok)
            .collect::<Vec<String>>()
    });
    let status = child.stdout.take().context("no standard output")?;
    for line in BufReader::new(status).lines().map_while(Result::ok) {
        if let Some((percent, message)) = progress(&line) {
            bar.set_position(percent);
            bar.set_message(message.to_owned());
        }
    }
    let ended = child.wait()?;
    bar.finish_and_clear();
    let log = log.join().unwrap_or_default();
    if !ended.success() {
        let from = log.len().saturating_sub(TAIL_LINES);
        eprintln!("{}", log[from..].join("\n"));
    }
    ensure!(
        ended.success(),
        "apt-get could not install {}; its last words are above",
        packages.join(" ")
    );
    Ok(())
}

/// Reads a line of apt's status: `dlstatus:N:PERCENT:TEXT` while it downloads,
/// `pmstatus:PACKAGE:PERCENT:TEXT` while it installs. Each is half of the way.
fn progress(line: &str) -> Option<(u64, &str)> {
    let mut fields = line.splitn(4, ':');
    let kind = fields.next()?;
    let _what = fields.next()?;
    let percent = fields.next()?.parse::<f64>().ok()?.clamp(0.0, 100.0);
    let message = fields.next()?.trim();
    // Truncation is what a progress bar wants.
    let half = (percent / 2.0) as u64;
    match kind {
        "dlstatus" => Some((half, message)),
        "pmstatus" => Some((50 + half, message)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_status_lines_move_the_bar() {
        for (line, expected) in [
            (
                "dlstatus:3:50.0000:Retrieving file 3 of 9",
                Some((25, "Retrieving file 3 of 9")),
            ),
            (
                "pmstatus:curl:100.0:Installed curl (amd64)",
                Some((100, "Installed curl (amd64)")),
            ),
            ("pmerror:curl:10.0:broken", None),
            ("Reading package lists...", None),
            ("", None),
        ] {
            assert_eq!(progress(line), expected, "{line}");
        }
    }
}
