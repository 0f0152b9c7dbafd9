//! Runs a single program with root's rights, and nothing else.

use anyhow::{Result, bail};
use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

/// What an elevated program may know of the caller's environment.
const KEPT: &[&str] = &["CI", "NO_COLOR", "RUST_BACKTRACE", "RUST_LOG", "TERM"];

/// How this user becomes root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The caller is root.
    Root,
    /// sudo works without a password, or its ticket is fresh.
    Sudo,
    /// sudo is there and will ask.
    SudoAsks,
    /// No way that we know.
    None,
}

/// Finds out, without asking for a password.
pub fn privilege() -> Privilege {
    if rustix::process::geteuid().is_root() {
        return Privilege::Root;
    }
    let silent = |arguments: &[&str]| {
        Command::new("sudo")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if silent(&["-n", "true"]) {
        Privilege::Sudo
    } else if silent(&["-V"]) {
        Privilege::SudoAsks
    } else {
        Privilege::None
    }
}

/// A command that runs `program` as root with a small environment of the caller's and
/// `variables`.
pub fn command(program: &Path, variables: &[(&str, &str)]) -> Result<Command> {
    let mut command = match privilege() {
        Privilege::Root => Command::new("env"),
        Privilege::Sudo | Privilege::SudoAsks => {
            let mut sudo = Command::new("sudo");
            sudo.args([
                "--prompt",
                "topnet needs root for this part; password of %u: ",
            ]);
            sudo.arg("env");
            sudo
        }
        Privilege::None => bail!(
            "{} needs root and there is no sudo: install sudo, or run as root",
            program.display()
        ),
    };
    let kept = KEPT
        .iter()
        .filter_map(|name| Some((*name, env::var(name).ok()?)));
    for (name, value) in kept {
        command.arg(format!("{name}={value}"));
    }
    command.arg(assignment("PATH", system_path()));
    for (name, value) in variables {
        command.arg(format!("{name}={value}"));
    }
    command.arg(program);
    Ok(command)
}

/// The caller's PATH with the directories of system programs, which Debian leaves out of a
/// user's.
pub fn system_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = env::split_paths(&path).collect();
    for directory in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        if !directories
            .iter()
            .any(|known| known == Path::new(directory))
        {
            directories.push(directory.into());
        }
    }
    env::join_paths(directories).unwrap_or(path)
}

fn assignment(name: &str, value: OsString) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}
