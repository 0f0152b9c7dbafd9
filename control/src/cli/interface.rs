//! A WireGuard interface of this machine, asked and configured as `wg` does it.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use topnet_uapi::{AnswerError, AnswerReader, DeviceStatus, Limits, Request, Set};
use zeroize::Zeroizing;

use super::error::CliError;

/// How long an interface may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 16;

/// Where an interface is configured.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    socket: PathBuf,
    /// What to do if it does not answer.
    mend: String,
}

impl Interface {
    /// The interface whose socket is in `directory`.
    pub(super) fn new(directory: &Path, name: &str) -> Self {
        Self {
            socket: directory.join(format!("{name}.sock")),
            mend: "start the data plane (its configuration needs [dataplane.unmetered]), run this \
                   as root or as its user, and look into its log"
                .to_owned(),
        }
    }

    /// The same with another word on what to do if it does not answer.
    #[must_use]
    pub(super) fn with_mend(self, mend: String) -> Self {
        Self { mend, ..self }
    }

    /// True if somebody answers for it.
    pub(super) fn answers(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    /// Its state.
    pub(super) fn status(&self) -> Result<DeviceStatus, CliError> {
        self.ask(&Request::Get)
    }

    /// Does what `set` says, or nothing of it.
    pub(super) fn apply(&self, set: Set) -> Result<(), CliError> {
        self.ask(&Request::Set(set)).map(drop)
    }

    fn ask(&self, request: &Request) -> Result<DeviceStatus, CliError> {
        let broken = |error: std::io::Error| {
            let what = format!("{}: {error}", self.socket.display());
            CliError::new("interface", what, &self.mend)
        };
        let mut stream = UnixStream::connect(&self.socket).map_err(broken)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
        stream
            .write_all(request.to_text().as_bytes())
            .map_err(broken)?;
        let mut reader = AnswerReader::new(Limits::default());
        let mut buffer = Zeroizing::new(vec![0; READ_BYTES]);
        loop {
            let read = stream.read(&mut buffer).map_err(broken)?;
            if read == 0 {
                return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
            }
            if let Some(answer) = reader.read(&mut &buffer[..read]) {
                return answer.map_err(|error| self.refused(error));
            }
        }
    }

    fn refused(&self, error: AnswerError) -> CliError {
        CliError::new("interface_refused", error.to_string(), &self.mend)
    }
}
