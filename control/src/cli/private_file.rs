//! Files that are their owner's alone, in the place of what was there.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::error::CliError;

/// A file that nobody else may read, written beside its place. Unless it is [put](Self::put) there,
/// what was there stays.
pub(super) struct PrivateFile {
    fresh: PathBuf,
    path: PathBuf,
}

impl PrivateFile {
    pub(super) fn stage(path: &Path, bytes: &[u8]) -> Result<Self, CliError> {
        let mut fresh = path.to_owned().into_os_string();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        // What is there may be open to others, or lead elsewhere.
        let _ = fs::remove_file(&fresh);
        let staged = Self {
            fresh,
            path: path.to_owned(),
        };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&staged.fresh)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            })
            .map_err(|error| CliError::file(path, error))?;
        Ok(staged)
    }

    /// Puts it in its place.
    pub(super) fn put(self) -> Result<(), CliError> {
        let Self { fresh, path } = &self;
        fs::rename(fresh, path).map_err(|error| CliError::file(path, error))
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // It is not there any more if it was put in its place.
        let _ = fs::remove_file(&self.fresh);
    }
}
