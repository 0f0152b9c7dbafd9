//! A small file system of the run's own, so that a disk can be full.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};

use crate::process::User;

/// What fills the disk up.
const BALLOON: &str = "balloon";
const PAGE_BYTES: u64 = 4096;
/// No log reserves more ahead.
const RESERVED_BYTES_MAX: u64 = 1 << 30;

/// A tmpfs. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    keep: bool,
}

impl SmallDisk {
    /// Mounts one of `bytes` on the directory `path`, as its owner's alone.
    pub fn mount(path: &Path, bytes: u64, owner: User) -> Result<Self> {
        let options = format!(
            "size={bytes},uid={},gid={},mode=0700,nosuid,nodev,noexec",
            owner.uid, owner.gid
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "topnet-lab"]);
        run(mount.arg(path))?;
        Ok(Self {
            path: path.to_owned(),
            keep: false,
        })
    }

    /// Takes all the room that is left, and what logs have reserved ahead of what they hold:
    /// otherwise they would not feel it for thousands of records.
    pub fn fill(&self) -> Result<Balloon> {
        let balloon = Balloon(self.path.join(BALLOON));
        let blow = || {
            let mut file = File::create(&balloon.0)?;
            take_room(&mut file)?;
            for entry in fs::read_dir(&self.path)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    free_reserved(&path)?;
                }
            }
            take_room(&mut file)
        };
        blow().with_context(|| format!("cannot fill {}", self.path.display()))?;
        Ok(balloon)
    }

    /// Leaves it mounted; the next run unmounts it.
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
    // Whole pieces first; the last of it a page at a time.
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
pub struct Balloon(PathBuf);

impl Drop for Balloon {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
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
    if let Err(error) = run(Command::new("umount").arg("--lazy").arg(path)) {
        eprintln!("{error:#}");
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", words.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_mounted_below_is_found() {
        let table = "proc /proc proc rw 0 0\n\
                     topnet-lab /var/tmp/lab-1/data/metering tmpfs rw,size=9000k 0 0\n\
                     topnet-lab /var/tmp/lab-12/data tmpfs rw 0 0\n";
        assert_eq!(
            mounted_below(table, Path::new("/var/tmp/lab-1")),
            [PathBuf::from("/var/tmp/lab-1/data/metering")]
        );
    }
}
