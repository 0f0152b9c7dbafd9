//! A small file system for a test's own use, so that a disk can be full. Needs root.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::fs::{FallocateFlags, fallocate};

/// What fills the disk up.
const BALLOON: &str = "balloon";
const PAGE_BYTES: u64 = 4096;
/// No log reserves more ahead.
const RESERVED_BYTES_MAX: u64 = 1 << 30;
/// Room that becomes free is taken within this.
const PAUSE: Duration = Duration::from_millis(1);

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The command that mounts.
    #[error("{path}: {problem}; mounting needs root")]
    Mount {
        /// The directory.
        path: PathBuf,
        /// What the command said.
        problem: String,
    },
    /// Filling it up.
    #[error("cannot fill {path}: {source}")]
    Fill {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A tmpfs. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    keep: bool,
}

impl SmallDisk {
    /// Mounts one of `bytes` on the directory `path`, for `owner` (user, group) alone.
    pub fn mount(path: &Path, bytes: u64, owner: (u32, u32)) -> Result<Self, DiskError> {
        let (uid, gid) = owner;
        let options = format!("size={bytes},uid={uid},gid={gid},mode=0700,nosuid,nodev,noexec");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "topnet-small-disk"]);
        run(mount.arg(path)).map_err(|problem| DiskError::Mount {
            path: path.to_owned(),
            problem,
        })?;
        Ok(Self {
            path: path.to_owned(),
            keep: false,
        })
    }

    /// Takes all the room that is left and all that becomes free, and what logs have reserved
    /// ahead of what they hold: otherwise they would not feel it for thousands of records.
    pub fn fill(&self) -> Result<Balloon, DiskError> {
        let path = self.path.join(BALLOON);
        let blow = || {
            let mut file = File::create(&path)?;
            take_room(&mut file)?;
            for entry in fs::read_dir(&self.path)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    free_reserved(&path)?;
                }
            }
            take_room(&mut file)?;
            Ok(file)
        };
        let file = blow().map_err(|source| DiskError::Fill {
            path: self.path.clone(),
            source,
        })?;
        Ok(Balloon::of(path, file))
    }

    /// Leaves it mounted; [`unmount_below`] unmounts it.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if !self.keep {
            unmount(&self.path);
        }
    }
}

fn take_room(file: &mut File) -> io::Result<()> {
    // Whole pieces first; the last of it a byte at a time.
    for piece in [&[0u8; 1 << 16][..], &[0; PAGE_BYTES as usize], &[0; 1]] {
        loop {
            match file.write(piece) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Frees what is reserved behind a log's end. A page is left alone, so that what is appended at
/// this moment is safe.
fn free_reserved(log: &Path) -> io::Result<()> {
    let file = File::options().write(true).open(log)?;
    let from = file.metadata()?.len().next_multiple_of(PAGE_BYTES) + PAGE_BYTES;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(&file, punch, from, RESERVED_BYTES_MAX)?)
}

/// What takes the room. Gives it back when dropped.
#[derive(Debug)]
pub struct Balloon {
    path: PathBuf,
    burst: Arc<AtomicBool>,
    blowing: Option<JoinHandle<()>>,
}

impl Balloon {
    fn of(path: PathBuf, mut file: File) -> Self {
        let burst = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&burst);
        let blowing = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // What cannot be taken now is tried for again.
                let _ = take_room(&mut file);
                thread::sleep(PAUSE);
            }
        });
        Self {
            path,
            burst,
            blowing: Some(blowing),
        }
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        self.burst.store(true, Ordering::Relaxed);
        let ended = self.blowing.take().map(JoinHandle::join);
        if let Some(Err(_)) = ended {
            eprintln!("{}: what filled the disk has panicked", self.path.display());
        }
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Unmounts what a run that was killed left mounted in its directory.
pub fn unmount_below(directory: &Path) {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for place in mounted_below(&table, directory) {
        unmount(&place);
    }
}

/// Where something is mounted below `directory`, in the kernel's table: source, place, and more.
fn mounted_below(table: &str, directory: &Path) -> Vec<PathBuf> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|place| place.starts_with(directory))
        .collect()
}

fn unmount(path: &Path) {
    // Lazily: whoever still looks at it must not keep it here.
    if let Err(problem) = run(Command::new("umount").arg("--lazy").arg(path)) {
        eprintln!("{}: {problem}", path.display());
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
    let words = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", words.trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_mounted_below_is_found() {
        let table = "proc /proc proc rw 0 0\n\
                     topnet-small-disk /var/tmp/lab-1/data/metering tmpfs rw,size=9000k 0 0\n\
                     topnet-small-disk /var/tmp/lab-12/data tmpfs rw 0 0\n";
        assert_eq!(
            mounted_below(table, Path::new("/var/tmp/lab-1")),
            [PathBuf::from("/var/tmp/lab-1/data/metering")]
        );
    }
}
