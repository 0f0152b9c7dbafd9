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
        check_replaceable(path)?;
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
        check_replaceable(path)?;
        fs::rename(fresh, path).map_err(|error| CliError::file(path, error))
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // It is not there any more if it was put in its place.
        let _ = fs::remove_file(&self.fresh);
    }
}

/// Refuses a device, a pipe, a link: who names one means what it leads to, and everybody else on the
/// machine would miss it.
pub(super) fn check_replaceable(path: &Path) -> Result<(), CliError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => Err(CliError::new(
            "file",
            format!("{} is not a regular file", path.display()),
            "name a file, or one that is not there yet; standard output is `-`, or no --out at all",
        )),
        // Whatever else is wrong is said by whoever opens it.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::{fs::symlink, net::UnixListener};

    #[test]
    fn only_a_regular_file_gives_up_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |path: &Path| PrivateFile::stage(path, b"new")?.put();
        for path in [at("fresh"), at("fresh")] {
            write(&path).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
        }
        let _socket = UnixListener::bind(at("socket")).unwrap();
        symlink(at("fresh"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        fs::create_dir(at("dir")).unwrap();
        for name in ["socket", "link", "dangling", "dir"] {
            let before = fs::symlink_metadata(at(name)).unwrap().file_type();
            // Before anything rests on it.
            let staged = PrivateFile::stage(&at(name), b"new");
            let refused = staged.err().unwrap().0;
            assert!(refused.what.contains("not a regular file"), "{refused}");
            let after = fs::symlink_metadata(at(name)).unwrap().file_type();
            assert_eq!(before, after, "{name}");
            assert!(!at(&format!("{name}.new")).exists(), "{name}");
        }
    }

    #[test]
    fn what_came_while_it_was_staged_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let staged = PrivateFile::stage(&path, b"new").unwrap();
        symlink("elsewhere", &path).unwrap();
        staged.put().unwrap_err();
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    }
}
