//! Downloads and uploads with curl, which nobody here wrote.

use crate::interrupt::Interrupt;
use crate::process::{Lifetime, Process, User, as_user};
use crate::run_dir::RunDir;
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use topnet_netns::Namespace;

/// A curl that runs.
#[derive(Debug)]
pub struct Transfer {
    process: Process,
    /// What it writes, if it downloads.
    file: Option<PathBuf>,
}

/// Who transfers, and where.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The client's namespace.
    pub namespace: &'a Namespace,
    /// Where logs go.
    pub run_dir: &'a RunDir,
    /// Whom curl runs as.
    pub user: User,
}

impl Client<'_> {
    /// Starts to fetch `url` into `file`.
    pub fn download(&self, url: &str, file: &Path) -> Result<Transfer> {
        let file_argument = file.as_os_str();
        let process = self.curl("download", None, |command| {
            command.arg("--output").arg(file_argument).arg(url);
        })?;
        Ok(Transfer {
            process,
            file: Some(file.to_owned()),
        })
    }

    /// Starts to put `file` at `url`, at most `rate` bytes a second.
    pub fn upload(&self, file: &Path, url: &str, rate: Option<u64>) -> Result<Transfer> {
        let process = self.curl("upload", rate, |command| {
            command.arg("--upload-file").arg(file).arg(url);
        })?;
        Ok(Transfer {
            process,
            file: None,
        })
    }

    fn curl(
        &self,
        name: &str,
        rate: Option<u64>,
        arguments: impl FnOnce(&mut std::process::Command),
    ) -> Result<Process> {
        let mut command = as_user(self.user, Lifetime::Run, Path::new("/usr/bin/curl"));
        // A transfer is ended by whoever waits for it, not by curl.
        command.args(["--silent", "--show-error", "--fail", "--no-progress-meter"]);
        if let Some(rate) = rate {
            command.args(["--limit-rate", &rate.to_string()]);
        }
        arguments(&mut command);
        let log = self.run_dir.log(&format!("curl-{name}"));
        Process::start(self.namespace, &format!("curl {name}"), command, &log)
    }
}

impl Transfer {
    /// Bytes of the download that are on disk.
    pub fn bytes(&self) -> u64 {
        self.file
            .as_ref()
            .and_then(|file| fs::metadata(file).ok())
            .map_or(0, |metadata| metadata.len())
    }

    /// True once curl has ended, however.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_some())
    }

    /// Waits until it is complete, telling `progress` the bytes so far.
    pub fn finish(
        mut self,
        interrupt: &Interrupt,
        limit: Duration,
        mut progress: impl FnMut(u64),
    ) -> Result<()> {
        let what = format!("{} is complete", self.process.name());
        interrupt.wait(&what, limit, || {
            progress(self.bytes());
            Ok(self.process.ended()?.map(drop))
        })?;
        self.process.wait_success(interrupt, limit)
    }
}
