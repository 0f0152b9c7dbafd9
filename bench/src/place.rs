//! Where a case keeps what it writes.

use anyhow::{Context, Result};
use tempfile::TempDir;

/// Where a case keeps its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where temporary files outlive a reboot, which is a disk.
    Disk,
    /// Where a sync costs nothing.
    Memory,
}

impl Place {
    /// A directory that goes when it is dropped.
    pub fn directory(self) -> Result<TempDir> {
        let below = match self {
            Place::Disk => "/var/tmp",
            Place::Memory => "/dev/shm",
        };
        tempfile::Builder::new()
            .prefix("topnet-bench-")
            .tempdir_in(below)
            .with_context(|| format!("cannot make a directory in {below}"))
    }
}
