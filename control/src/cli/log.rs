//! `topnet log`: the segments of the provider's service log, in the directory and the archive.
//! It reads both by itself, so it works while metering is dead, and with the store alone.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::Serialize;
use topnet_archive::{Archive, Finding, Restored, Segment, State, Verdict};
use topnet_config::{Config, Metering};

use super::{
    arguments::{LogCommand, Options, SegmentName},
    error::CliError,
    output::Output,
    text::{Table, Text, bytes, time_seconds},
};

/// What was fetched.
#[derive(Debug, Serialize)]
struct Fetched {
    number: u64,
    bytes: u64,
    file: String,
}

pub(super) async fn execute(
    options: &Options,
    command: LogCommand,
    output: Output,
) -> Result<(), CliError> {
    let config = Config::load(&options.config)?;
    let archive = archive(config.metering()?)?;
    match command {
        LogCommand::List => output.print(archive.segments().await?.as_slice()),
        LogCommand::Fetch { segment, out } => {
            output.print(&fetch(&archive, segment, &out).await?);
        }
        LogCommand::Verify => return verify(&archive, output).await,
        LogCommand::Restore => {
            let restored = archive.restore().await?;
            output.print(&restored);
            return hold(&restored.findings, &archive);
        }
    }
    Ok(())
}

/// The archive, to read.
pub(super) fn archive(metering: &Metering) -> Result<Archive, CliError> {
    let log_dir = &metering.service_log_dir;
    Ok(Archive::open_to_read(log_dir, &metering.archive)?)
}

async fn fetch(archive: &Archive, segment: SegmentName, out: &Path) -> Result<Fetched, CliError> {
    let number = match segment {
        SegmentName::Number(number) => number,
        SegmentName::Hash(hash) => archive.number_by(&hash).await?,
    };
    let bytes = archive.segment(number).await?;
    write_whole(out, &bytes).map_err(|error| CliError::file(out, error))?;
    Ok(Fetched {
        number,
        bytes: bytes.len() as u64,
        file: out.display().to_string(),
    })
}

/// Writes a file that is whole and durable or not there: a half one would be read as a segment
/// where `out` is in the log's directory. What stood there before stays until then.
fn write_whole(out: &Path, bytes: &[u8]) -> io::Result<()> {
    // A pipe or a device is no file that could be replaced.
    if fs::metadata(out).is_ok_and(|found| !found.is_file()) {
        let mut file = fs::OpenOptions::new().write(true).open(out)?;
        return file.write_all(bytes);
    }
    let name = out.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut new = name.to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = out.with_file_name(new);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, out));
    if written.is_err() {
        // The first error says more.
        let _ = fs::remove_file(&new);
        return written;
    }
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty());
    fs::File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}

async fn verify(archive: &Archive, output: Output) -> Result<(), CliError> {
    let verdict = archive.verify().await?;
    output.print(&verdict);
    hold(&verdict.findings, archive)
}

/// An error if there are findings.
fn hold(findings: &[Finding], archive: &Archive) -> Result<(), CliError> {
    match findings.len() {
        0 => Ok(()),
        count => Err(CliError::new(
            "log_damaged",
            format!(
                "{count} segments of the service log do not hold; the archive is {}",
                archive.name()
            ),
            "mend what is listed, and run the same again",
        )),
    }
}

impl Text for Segment {
    fn text(&self) -> String {
        let state = match self.state {
            State::Open => "open: lines go to it",
            State::Sealed => "sealed, waits for the archive",
            State::Unsealed => "without a seal: its journal was lost",
            State::Archived => "archived",
        };
        let times = (self.lines > 0).then(|| {
            let (first, last) = (time_seconds(self.first_ms), time_seconds(self.last_ms));
            format!("{first} to {last}")
        });
        Table::new(format_args!("segment {}", self.number))
            .row("state", state)
            .row("lines", self.lines)
            .row_if("time", times)
            .row_if("hash", self.hash)
            .row("place", &self.place)
            .row_if("problem", self.problem.as_ref())
            .end()
    }
}

impl Text for Fetched {
    fn text(&self) -> String {
        let size = bytes(self.bytes);
        format!("segment {}: {size} in {}\n", self.number, self.file)
    }
}

impl Text for Restored {
    fn text(&self) -> String {
        let found = self.findings.iter().map(Finding::text);
        format!(
            "{} entries written\n{}",
            self.entries,
            found.collect::<String>()
        )
    }
}

impl Text for Verdict {
    fn text(&self) -> String {
        let Self {
            segments,
            lines,
            findings,
        } = self;
        let found = findings.iter().map(Finding::text);
        format!(
            "{segments} segments with {lines} lines hold\n{}",
            found.collect::<String>()
        )
    }
}

impl Text for Finding {
    fn text(&self) -> String {
        format!("segment {}: {}\n  {}\n", self.number, self.what, self.mend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_with_times_of_no_calendar_is_listed() {
        let segment = Segment {
            number: 1,
            state: State::Archived,
            lines: 1,
            first_ms: 0,
            last_ms: u64::MAX,
            hash: None,
            place: String::new(),
            problem: None,
        };
        assert!(segment.text().contains("to 18446744073709551615 ms"));
    }
}
