//! Finds and ends the processes of one namespace.
//!
//! A namespace lives on, nameless, while a process is in it; so removing one means ending what
//! runs in it. Only processes whose own network namespace is the one removed are touched, and
//! through a pidfd, so that a number used again in between cannot hit a stranger.

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long removed processes get to disappear after SIGKILL.
const EXIT_WAIT: Duration = Duration::from_secs(2);

/// Which namespace a file under `/proc/PID/ns` or `/run/netns` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceId {
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// Reads the identity; `None` if the file is gone or may not be read.
    pub fn of(path: &Path) -> Option<NamespaceId> {
        let metadata = fs::metadata(path).ok()?;
        Some(NamespaceId {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    fn of_process(pid: Pid) -> Option<NamespaceId> {
        let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
        NamespaceId::of(Path::new(&path))
    }
}

/// Ends every process in the namespace, except this one, and waits until they are gone.
pub fn end_all(id: NamespaceId) {
    let deadline = Instant::now() + EXIT_WAIT;
    loop {
        let pids = inside(id);
        if pids.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in pids {
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            if NamespaceId::of_process(pid) == Some(id) {
                // It may have ended by itself meanwhile, which is what we want.
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        sleep(Duration::from_millis(20));
    }
}

/// The processes in the namespace, without this one.
fn inside(id: NamespaceId) -> Vec<Pid> {
    let own = rustix::process::getpid();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(Pid::from_raw)
        .filter(|&pid| pid != own && NamespaceId::of_process(pid) == Some(id))
        .collect()
}
