//! What this process has taken of the machine so far.

use std::{fs, io, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::lane::process_cpu_s;

/// What a process has taken of the machine so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// CPU time of all threads, in the kernel too.
    pub cpu_s: f64,
    /// Bytes that it has had written to disks.
    pub disk_bytes: u64,
    /// Memory that it holds now.
    pub resident_bytes: u64,
    /// The most that it ever held.
    pub resident_bytes_max: u64,
}

impl Taken {
    /// By this process.
    pub fn now() -> Result<Taken> {
        let io = fs::read_to_string("/proc/self/io")?;
        let status = fs::read_to_string("/proc/self/status")?;
        Ok(Taken {
            cpu_s: process_cpu_s(),
            disk_bytes: number(&io, "write_bytes:")?,
            resident_bytes: 1024 * number(&status, "VmRSS:")?,
            resident_bytes_max: 1024 * number(&status, "VmHWM:")?,
        })
    }

    /// Since `before`; memory is as it is.
    #[must_use]
    pub fn since(self, before: Taken) -> Taken {
        Taken {
            cpu_s: self.cpu_s - before.cpu_s,
            disk_bytes: self.disk_bytes.saturating_sub(before.disk_bytes),
            ..self
        }
    }
}

/// Memory that another process holds now.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(1024 * number(&status, "VmRSS:")?)
}

fn number(text: &str, name: &str) -> Result<u64> {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("the kernel does not say {name}"))
}

/// Bytes of all files below a directory.
pub fn bytes_below(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            bytes_below(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_its_memory_and_that_time_goes_on() {
        let before = Taken::now().unwrap();
        let memory = std::hint::black_box(vec![1_u8; 8 << 20]);
        let after = Taken::now().unwrap();
        assert!(after.cpu_s > before.cpu_s);
        assert!(after.resident_bytes_max >= before.resident_bytes + memory.len() as u64 / 2);
        assert_eq!(after.since(before).resident_bytes, after.resident_bytes);
    }
}
