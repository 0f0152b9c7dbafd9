//! The tunnel's device: this project's own WireGuard interface, as a process of its own.

use std::{
    fs,
    io::Read,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::cli::{error::CliError, interface::Interface};

/// What stands beside the `topnet` command.
const PROGRAM: &str = "topnet-wireguard";
/// How long the device may take to stand.
const START_PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// What is shown of what the process said.
const WORDS_BYTES_MAX: u64 = 4096;

/// A device that stands. It goes with this value, and with this process however that ends.
#[derive(Debug)]
pub(super) struct Device {
    name: String,
    directory: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Device {
    /// Makes the device `name`; its socket and log are in `directory`.
    pub(super) async fn start(name: &str, directory: &Path) -> Result<Self, CliError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| CliError::file(directory, error))?;
        let log = directory.join(format!("{name}.log"));
        let file = fs::File::create(&log).map_err(|error| CliError::file(&log, error))?;
        let program = std::env::current_exe()
            .map_err(|error| CliError::file(Path::new("topnet"), error))?
            .with_file_name(PROGRAM);
        let child = Command::new(&program)
            // The device ends when this process does not hold the other end any more.
            .args(["--until-stdin-ends", "--socket-dir"])
            .arg(directory)
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|error| {
                CliError::new(
                    "device",
                    format!("cannot run {}: {error}", program.display()),
                    format!("install {PROGRAM} beside topnet"),
                )
            })?;
        let mut device = Self {
            name: name.to_owned(),
            directory: directory.to_owned(),
            log,
            child,
        };
        let began = Instant::now();
        while !device.interface().answers() {
            if let Ok(Some(_)) = device.child.try_wait() {
                return Err(device.failed("the tunnel's device cannot be made"));
            }
            if began.elapsed() > START_PATIENCE {
                return Err(device.failed("the tunnel's device does not answer"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(device)
    }

    /// What it is configured with.
    pub(super) fn interface(&self) -> Interface {
        Interface::new(&self.directory, &self.name)
    }

    /// Where it answers.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join(format!("{}.sock", self.name))
    }

    /// True if it has ended by itself.
    pub(super) fn is_gone(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn failed(&self, what: &str) -> CliError {
        let mut words = String::new();
        if let Ok(log) = fs::File::open(&self.log) {
            let _ = log.take(WORDS_BYTES_MAX).read_to_string(&mut words);
        }
        let words = words.lines().last().unwrap_or("it said nothing");
        CliError::new(
            "device",
            format!("{what}: {words}"),
            "making a device takes CAP_NET_ADMIN and /dev/net/tun: run this as root, or allow both \
             to this user",
        )
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The end of its standard input is what it ends with, cleanly.
        drop(self.child.stdin.take());
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if began.elapsed() > START_PATIENCE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(POLL);
        }
    }
}
