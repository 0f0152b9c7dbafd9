//! The passphrase of key files: from a file, the environment, or whoever sits at the terminal.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
    process::{Command, Stdio},
};

use zeroize::Zeroizing;

use super::error::CliError;

/// The environment's.
const VARIABLE: &str = "TOPNET_PASSPHRASE";
/// A passphrase file larger than this is not one.
const FILE_BYTES_MAX: u64 = 4_096;
/// What a terminal gives in one line.
const LINE_BYTES: usize = 4_096;

/// The passphrase in `file` if there is one, else in the environment, else typed. `repeat` asks
/// twice, for a new key.
pub(super) fn passphrase(file: Option<&Path>, repeat: bool) -> Result<Zeroizing<String>, CliError> {
    if let Some(file) = file {
        return from_file(file);
    }
    if let Ok(passphrase) = std::env::var(VARIABLE) {
        return not_empty(Zeroizing::new(passphrase), VARIABLE);
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::new(
            "passphrase",
            "the key file needs its passphrase, and there is no terminal to ask at",
            format!("set {VARIABLE}, or passphrase_file in the configuration"),
        ));
    }
    let passphrase = ask("Passphrase: ")?;
    if repeat && *ask("Again: ")? != *passphrase {
        return Err(CliError::new("passphrase", "the two differ", "try again"));
    }
    not_empty(passphrase, "the terminal")
}

/// The first line of a file, for the processes' own passphrase files.
pub(super) fn from_file(path: &Path) -> Result<Zeroizing<String>, CliError> {
    let bytes = fs::metadata(path)
        .map_err(|error| CliError::file(path, error))?
        .len();
    if bytes > FILE_BYTES_MAX {
        return Err(CliError::file(path, "it is too long for a passphrase"));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|e| CliError::file(path, e))?);
    let line = text.lines().next().unwrap_or_default();
    not_empty(Zeroizing::new(line.to_owned()), &path.display().to_string())
}

fn not_empty(passphrase: Zeroizing<String>, whence: &str) -> Result<Zeroizing<String>, CliError> {
    if passphrase.is_empty() {
        let what = format!("the passphrase from {whence} is empty");
        return Err(CliError::new(
            "passphrase",
            what,
            "choose one of several words",
        ));
    }
    Ok(passphrase)
}

fn ask(prompt: &str) -> Result<Zeroizing<String>, CliError> {
    ask_unseen(prompt).map_err(|error| {
        CliError::new(
            "passphrase",
            format!("cannot read it: {error}"),
            format!("set {VARIABLE}"),
        )
    })
}

/// Asks at the terminal for a line that is not shown.
pub(super) fn ask_unseen(prompt: &str) -> io::Result<Zeroizing<String>> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    let hidden = echo(false);
    // With room from the start, so that no half of it stays behind where it grew.
    let mut line = Zeroizing::new(String::with_capacity(LINE_BYTES));
    let read = io::stdin().lock().read_line(&mut line);
    if hidden {
        echo(true);
        eprintln!();
    }
    read?;
    let length = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(length);
    Ok(line)
}

/// Has the terminal show what is typed, or not. Says whether that worked: where there is no
/// `stty` the passphrase is seen, and still read.
fn echo(shown: bool) -> bool {
    let mode = if shown { "echo" } else { "-echo" };
    Command::new("stty")
        .arg(mode)
        .stdin(Stdio::inherit())
        .status()
        .is_ok_and(|s| s.success())
}
