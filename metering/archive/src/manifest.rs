//! The manifest's entries in the log's directory, one file each.
//!
//! `NUMBER.manifest` is an entry. `NUMBER.forgotten` is one whose segment is being removed from
//! the store: it counts for nothing any more, and says what is still to be removed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use topnet_log::{LogError, MANIFEST_SUFFIX, numbers, numbers_with, segment_name};

use crate::{ArchiveError, Entry};

const FORGOTTEN_SUFFIX: &str = "forgotten";
const NEW_SUFFIX: &str = "manifest-new";

#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    dir: PathBuf,
}

impl Manifest {
    pub(crate) fn below(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Numbers of the segments whose files are in the directory. A directory that is not there,
    /// as for somebody who has the store alone, holds none.
    pub(crate) fn files(&self) -> Result<Vec<u64>, LogError> {
        Ok(if_there(numbers(&self.dir))?.unwrap_or_default())
    }

    /// Numbers of the entries.
    pub(crate) fn entries(&self) -> Result<Vec<u64>, LogError> {
        Ok(if_there(numbers_with(&self.dir, MANIFEST_SUFFIX))?.unwrap_or_default())
    }

    /// Numbers of the segments that are being removed.
    pub(crate) fn forgotten(&self) -> Result<Vec<u64>, LogError> {
        Ok(if_there(numbers_with(&self.dir, FORGOTTEN_SUFFIX))?.unwrap_or_default())
    }

    /// The entry of a segment, if there is one.
    pub(crate) fn entry(&self, number: u64) -> Result<Option<Entry>, ArchiveError> {
        self.read(number, MANIFEST_SUFFIX)
    }

    /// The entry of a segment that is being removed.
    pub(crate) fn forgotten_entry(&self, number: u64) -> Result<Option<Entry>, ArchiveError> {
        self.read(number, FORGOTTEN_SUFFIX)
    }

    fn read(&self, number: u64, suffix: &str) -> Result<Option<Entry>, ArchiveError> {
        let path = self.path(number, suffix);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let unusable = |reason| ArchiveError::Entry {
            place: path.display().to_string(),
            reason,
        };
        Entry::from_text(number, &text).map(Some).map_err(unusable)
    }

    /// Writes an entry; it is durable when this returns.
    pub(crate) fn write(&self, entry: &Entry) -> Result<(), ArchiveError> {
        let path = self.path(entry.number, MANIFEST_SUFFIX);
        let new = self.path(entry.number, NEW_SUFFIX);
        let write = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&new)?;
            file.write_all(entry.to_text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            self.sync()
        };
        write().map_err(failed("write", &path))
    }

    /// From here on the segment counts for nothing; durable when this returns.
    pub(crate) fn begin_forgetting(&self, number: u64) -> Result<(), ArchiveError> {
        let path = self.path(number, MANIFEST_SUFFIX);
        fs::rename(&path, self.path(number, FORGOTTEN_SUFFIX))
            .and_then(|()| self.sync())
            .map_err(failed("forget", &path))
    }

    /// Nothing is left to be removed.
    pub(crate) fn end_forgetting(&self, number: u64) -> Result<(), ArchiveError> {
        let path = self.path(number, FORGOTTEN_SUFFIX);
        fs::remove_file(&path).map_err(failed("forget", &path))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn path(&self, number: u64, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", segment_name(number)))
    }
}

/// What was found; `None` if nothing is there.
pub(crate) fn if_there<T>(found: Result<T, LogError>) -> Result<Option<T>, LogError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(LogError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError + use<> {
    let path = path.to_owned();
    move |source| ArchiveError::Manifest { what, path, source }
}
