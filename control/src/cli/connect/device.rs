//! The tunnel's device: this project's own WireGuard interface, as a process of its own.

use std::{
    fs,
    io::Read,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
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
        let log = directory.join(format!("{name}.log"));
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&log)
            .map_err(|error| CliError::file(&log, error))?;
        // What a killed run left is not to be taken for this one's.
        let _ = fs::remove_file(directory.join(format!("{name}.sock")));
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
            // A Ctrl-C at the terminal is for this process, which ends the device last.
            .process_group(0)
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
        loop {
            if let Ok(Some(_)) = device.child.try_wait() {
                return Err(device.failed("the tunnel's device cannot be made"));
            }
            if device.interface().answers() {
                break;
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
        let mend = format!(
            "look into {}; connecting again makes the device anew",
            self.log.display()
        );
        Interface::new(&self.directory, &self.name).with_mend(mend)
    }

    /// Where it answers.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join(format!("{}.sock", self.name))
    }

    /// True if it has ended by itself.
    pub(super) fn is_gone(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Why it has ended.
    pub(super) fn lost(&self) -> CliError {
        self.failed("the tunnel's device is gone")
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
