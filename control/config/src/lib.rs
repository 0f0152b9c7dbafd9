//! One TOML file that configures every process.
//!
//! [`Config::load`] reads it, refuses keys that it does not know by name and line, checks
//! what can be checked without touching the machine, and resolves relative paths against
//! the file's directory. [`Config::check_machine`] looks at the machine too: files and
//! interfaces that the configuration names. What a value *does* is the business of the
//! process that reads it; `control/config/example.toml` shows them all.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod archive;
mod control;
mod dataplane;
mod default;
mod error;
mod inner;
mod log;
mod metering;
mod nat;
mod process;
mod rates;
mod reach;
mod settlement;
mod subnet;
mod tower;
mod unmetered;
mod wallet;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

pub use archive::Archive;
pub use control::{Control, Offer};
pub use dataplane::{Dataplane, Io, WORKERS_MAX};
pub use error::{ConfigError, Problem};
pub use inner::InnerNetwork;
pub use log::log_to_stderr;
pub use metering::{Metering, SEGMENT_LINES_MAX};
pub use nat::Nat;
pub use process::Process;
pub use rates::Rates;
pub use reach::Reach;
pub use settlement::Settlement;
pub use subnet::{Ipv4Subnet, Ipv6Subnet, Subnet, SubnetError};
pub use tower::Tower;
pub use unmetered::Unmetered;
pub use wallet::Wallet;

use error::Problems;

/// A configuration file larger than this is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What `sockaddr_un` has room for, less the sockets' own names.
const RUNTIME_DIR_BYTES_MAX: usize = 107 - 20;

/// The whole file. A machine has the sections of the processes that it runs: a provider
/// has all but `[tower]` and `[wallet]`, a tower and a client have theirs alone.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the processes' Unix sockets are. Emptied by a reboot.
    #[serde(default = "default::runtime_dir")]
    pub runtime_dir: PathBuf,
    /// What must survive a reboot; each process has its own directory in it.
    #[serde(default = "default::data_dir")]
    pub data_dir: PathBuf,
    /// The fast path.
    pub dataplane: Option<Dataplane>,
    /// The payee.
    pub metering: Option<Metering>,
    /// The chains.
    pub settlement: Option<Settlement>,
    /// RPC and sessions.
    pub control: Option<Control>,
    /// Other machines' claims.
    pub tower: Option<Tower>,
    /// The payer.
    pub wallet: Option<Wallet>,
    /// Where this came from; errors name it.
    #[serde(skip)]
    path: PathBuf,
}

/// What every section does after it was read.
trait Section {
    /// Makes paths absolute.
    fn resolve(&mut self, base: &Base<'_>);
    /// Reports values that cannot work, on any machine.
    fn check(&self, problems: &mut Problems<'_>);
    /// Files that must exist before the process starts, by key.
    fn files(&self) -> Vec<(&'static str, &Path)>;
}

/// What relative paths are relative to.
struct Base<'a> {
    dir: &'a Path,
    data_dir: PathBuf,
    runtime_dir: PathBuf,
}

impl Base<'_> {
    fn join(&self, path: &mut PathBuf) {
        *path = self.dir.join(&path);
    }

    fn join_optional(&self, path: &mut Option<PathBuf>) {
        if let Some(path) = path {
            self.join(path);
        }
    }

    /// An empty path stands for `name` in the data directory.
    fn join_data(&self, path: &mut PathBuf, name: &str) {
        if path.as_os_str().is_empty() {
            *path = self.data_dir.join(name);
        } else {
            self.join(path);
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error: std::io::Error| ConfigError::Unreadable {
            path: path.to_owned(),
            error: error.to_string(),
        };
        let bytes = fs::metadata(path).map_err(unreadable)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(unreadable(std::io::Error::other(format!(
                "it has {bytes} bytes; a configuration has at most {FILE_BYTES_MAX}"
            ))));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        // Absolute, so that a process that changes its directory still finds its files.
        let path = std::path::absolute(path).map_err(unreadable)?;
        Self::parse(&text, &path)
    }

    /// Reads `text` as the content of the file at `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text)
            .map_err(|error| ConfigError::refused(path, vec![Problem::from_toml(&error, text)]))?;
        config.path = path.to_owned();
        config.resolve(path.parent().unwrap_or(Path::new("")));
        let mut problems = Problems::new(text);
        config.check(&mut problems);
        match problems.into_list() {
            list if list.is_empty() => Ok(config),
            list => Err(ConfigError::refused(path, list)),
        }
    }

    /// The file that was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `[dataplane]`, or an error that says that it is missing.
    pub fn dataplane(&self) -> Result<&Dataplane, ConfigError> {
        self.dataplane
            .as_ref()
            .ok_or_else(|| self.missing("dataplane"))
    }

    /// `[metering]`, or an error that says that it is missing.
    pub fn metering(&self) -> Result<&Metering, ConfigError> {
        self.metering
            .as_ref()
            .ok_or_else(|| self.missing("metering"))
    }

    /// `[settlement]`, or an error that says that it is missing.
    pub fn settlement(&self) -> Result<&Settlement, ConfigError> {
        self.settlement
            .as_ref()
            .ok_or_else(|| self.missing("settlement"))
    }

    /// `[control]`, or an error that says that it is missing.
    pub fn control(&self) -> Result<&Control, ConfigError> {
        self.control.as_ref().ok_or_else(|| self.missing("control"))
    }

    /// `[tower]`, or an error that says that it is missing.
    pub fn tower(&self) -> Result<&Tower, ConfigError> {
        self.tower.as_ref().ok_or_else(|| self.missing("tower"))
    }

    /// `[wallet]`, or an error that says that it is missing.
    pub fn wallet(&self) -> Result<&Wallet, ConfigError> {
        self.wallet.as_ref().ok_or_else(|| self.missing("wallet"))
    }

    /// What this machine lacks of what the file names: key and genesis files, interfaces.
    pub fn check_machine(&self) -> Vec<Problem> {
        let missing_files = self.sections().into_iter().flat_map(|(section, content)| {
            content
                .files()
                .into_iter()
                .filter(|(_, path)| !path.exists())
                .map(move |(key, path)| Problem {
                    line: None,
                    place: format!("{section}.{key}"),
                    what: format!("{} does not exist", path.display()),
                    mend: "correct the path, or make the file with `topnet init`".to_owned(),
                })
                .collect::<Vec<_>>()
        });
        let interfaces = self
            .dataplane
            .iter()
            .flat_map(Dataplane::missing_interfaces);
        let archive = self.metering.iter();
        let archive = archive.filter_map(|metering| metering.archive.machine());
        missing_files.chain(interfaces).chain(archive).collect()
    }

    fn missing(&self, section: &'static str) -> ConfigError {
        let problem = Problem {
            line: None,
            place: section.to_owned(),
            what: "the section is missing".to_owned(),
            mend: format!("add [{section}]; `topnet init` writes a complete file to start from"),
        };
        ConfigError::refused(&self.path, vec![problem])
    }

    fn sections(&self) -> Vec<(&'static str, &dyn Section)> {
        fn named<'a, S: Section>(
            name: &'static str,
            section: &'a Option<S>,
        ) -> Option<(&'static str, &'a dyn Section)> {
            section
                .as_ref()
                .map(|section| (name, section as &dyn Section))
        }
        [
            named("dataplane", &self.dataplane),
            named("metering", &self.metering),
            named("settlement", &self.settlement),
            named("control", &self.control),
            named("tower", &self.tower),
            named("wallet", &self.wallet),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn resolve(&mut self, dir: &Path) {
        self.runtime_dir = dir.join(&self.runtime_dir);
        self.data_dir = dir.join(&self.data_dir);
        let base = Base {
            dir,
            data_dir: self.data_dir.clone(),
            runtime_dir: self.runtime_dir.clone(),
        };
        self.dataplane
            .iter_mut()
            .for_each(|section| section.resolve(&base));
        self.metering
            .iter_mut()
            .for_each(|section| section.resolve(&base));
        self.settlement
            .iter_mut()
            .for_each(|section| section.resolve(&base));
        self.control
            .iter_mut()
            .for_each(|section| section.resolve(&base));
        self.tower
            .iter_mut()
            .for_each(|section| section.resolve(&base));
        self.wallet
            .iter_mut()
            .for_each(|section| section.resolve(&base));
    }

    fn check(&self, problems: &mut Problems<'_>) {
        for (name, section) in self.sections() {
            problems.enter(name);
            section.check(problems);
        }
        if let (Some(dataplane), Some(control)) = (&self.dataplane, &self.control) {
            problems.enter("control.offer");
            dataplane.check_resolvers(&control.offer.dns, problems);
        }
        problems.enter("");
        let bytes = self.runtime_dir.as_os_str().len();
        if bytes > RUNTIME_DIR_BYTES_MAX {
            problems.add(
                "runtime_dir",
                format!(
                    "{} has {bytes} bytes; with more than {RUNTIME_DIR_BYTES_MAX} the sockets in \
                     it cannot be reached",
                    self.runtime_dir.display()
                ),
                "choose a shorter directory, such as /run/topnet",
            );
        }
    }
}

#[cfg(test)]
mod tests;
