//! The directory of one run: programs, keys, state, logs. Removed with the run.

use anyhow::{Context, Result};
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use topnet_small_disk::unmount_below;

/// On disk rather than in memory, because the programs with their symbols are large.
const PARENT: &str = "/var/tmp";
const PREFIX: &str = "topnet-lab-";
/// The logs of the last run that failed.
const FAILED: &str = "topnet-failed-logs";
/// Locked by the run that owns the directory.
const OWNER: &str = "owner.lock";

/// The directory, and the lock that says that it is in use.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    _owner: File,
    keep: bool,
}

impl RunDir {
    /// Makes a new one, and removes those that killed or kept runs left behind.
    pub fn create() -> Result<RunDir> {
        sweep();
        let path = Path::new(PARENT).join(format!("{PREFIX}{}", std::process::id()));
        let make = || {
            fs::create_dir(&path)?;
            // Other users' processes find their files below; who may read which is said there.
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
            let owner = File::create(path.join(OWNER))?;
            owner.lock()?;
            fs::create_dir(path.join("logs"))?;
            Ok::<_, std::io::Error>(owner)
        };
        let owner = make().with_context(|| format!("cannot make {}", path.display()))?;
        Ok(RunDir {
            path,
            _owner: owner,
            keep: false,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where a process writes what it has to say.
    pub fn log(&self, process: &str) -> PathBuf {
        self.path.join("logs").join(format!("{process}.log"))
    }

    /// A directory in it that belongs to one user and is closed to all others.
    pub fn private(&self, name: &str, uid: u32, gid: u32) -> Result<PathBuf> {
        let path = self.join(name);
        let make = || {
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o700))?;
            chown(&path, Some(uid), Some(gid))
        };
        make().with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Puts a program of the build where every user can reach it; a home directory is often
    /// closed to others.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let built = std::env::current_exe()?
            .parent()
            .context("this program has no directory")?
            .join(name);
        let place = self.join("bin").join(name);
        let put = || {
            fs::create_dir_all(self.join("bin"))?;
            if place.exists() {
                return Ok(());
            }
            // Another file system takes a copy.
            fs::hard_link(&built, &place).or_else(|_| fs::copy(&built, &place).map(drop))
        };
        put().with_context(|| {
            format!(
                "cannot take {} along; `cargo xtask lab` builds it",
                built.display()
            )
        })?;
        Ok(place)
    }

    /// Puts the logs where they outlive the run, in the place of those of an earlier one.
    pub fn save_logs(&self) -> Result<PathBuf> {
        let saved = Path::new(PARENT).join(FAILED);
        if saved.exists() {
            fs::remove_dir_all(&saved)
                .with_context(|| format!("cannot remove {}", saved.display()))?;
        }
        // Whoever still writes goes on writing into the same files.
        fs::rename(self.join("logs"), &saved)
            .with_context(|| format!("cannot move the logs to {}", saved.display()))?;
        Ok(saved)
    }

    /// Leaves the directory behind; the next run removes it.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Removes directories whose owner is gone.
fn sweep() {
    let Ok(entries) = fs::read_dir(PARENT) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !ours || !directory {
            continue;
        }
        let in_use =
            File::open(entry.path().join(OWNER)).is_ok_and(|file| file.try_lock().is_err());
        if in_use {
            continue;
        }
        unmount_below(&entry.path());
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            eprintln!("cannot remove {}: {error}", entry.path().display());
        }
    }
}
