//! What the system says that a process has, and what a directory takes.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result};

/// What a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// All memory that is there (VmRSS): its own and what it shows of files, its program's too.
    pub resident_bytes: u64,
    /// What of it is no file's (RssAnon, RssShmem). The rest is the system's to take back.
    pub own_bytes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// What a process has now.
pub fn of(pid: u32) -> Result<Vitals> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let of = |name: &str| number_in(&text, name).with_context(|| format!("{file} has no {name}"));
    let open = format!("/proc/{pid}/fd");
    let open = fs::read_dir(&open).with_context(|| format!("cannot read {open}"))?;
    Ok(Vitals {
        resident_bytes: of("VmRSS")? * 1024,
        own_bytes: (of("RssAnon")? + of("RssShmem")?) * 1024,
        descriptors: open.count() as u64,
        threads: of("Threads")?,
    })
}

/// The process that was started as a program of this name with this as one of its words.
pub fn pid_of(program: &str, word: &str) -> Result<u32> {
    let pids = fs::read_dir("/proc").context("cannot read /proc")?;
    let mut pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let found = pids.find(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_line_of(&line, program, word)
    });
    found.with_context(|| format!("no process is `{program} … {word}`"))
}

/// What the files below a directory take on its disk. What goes while it is looked at is not there.
pub fn disk_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() {
            disk_bytes(&entry.path())
        } else {
            // In units of 512, whatever the disk's blocks are (stat(2)).
            metadata.blocks() * 512
        })
    });
    sizes.sum()
}

/// A number behind its name and a colon, as `/proc` has it.
fn number_in(text: &str, name: &str) -> Option<u64> {
    let mut values = text.lines().filter_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found == name).then_some(value)
    });
    values.next()?.split_whitespace().next()?.parse().ok()
}

/// Words of a command line end in a zero each.
fn is_line_of(line: &[u8], program: &str, word: &str) -> bool {
    let mut words = line.split(|byte| *byte == 0);
    let first = words.next().unwrap_or_default();
    let is_program = first.rsplit(|byte| *byte == b'/').next() == Some(program.as_bytes());
    is_program && words.any(|each| each == word.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_and_a_thread_are_seen() {
        let own = std::process::id();
        let before = of(own).unwrap();
        assert!(before.own_bytes > 0 && before.own_bytes <= before.resident_bytes);
        let files: Vec<_> = (0..40).map(|_| fs::File::open("/dev/null")).collect();
        let (leave, left) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || left.recv());
        let after = of(own).unwrap();
        drop((files, leave));
        let _ = thread.join();
        // Other tests have a few of both beside.
        assert!(
            after.descriptors > before.descriptors,
            "{before:?} {after:?}"
        );
        assert!(after.threads > 1);
    }

    #[test]
    fn numbers_and_command_lines_are_read_as_the_kernel_writes_them() {
        let text = "Name:\ttopnet\nVmRSS:\t    1234 kB\nRssAnon:\t 7 kB\nThreads:\t5\n";
        assert_eq!(number_in(text, "VmRSS"), Some(1234));
        assert_eq!(number_in(text, "Threads"), Some(5));
        assert_eq!(number_in(text, "Rss"), None);
        let line = b"/a/bin/topnet-wireguard\0wg7\0";
        assert!(is_line_of(line, "topnet-wireguard", "wg7"));
        assert!(!is_line_of(line, "topnet-wireguard", "wg"));
        assert!(!is_line_of(line, "wireguard", "wg7"));
        assert!(!is_line_of(b"", "topnet-wireguard", "wg7"));
    }

    #[test]
    fn a_directory_takes_what_all_files_below_it_take() {
        let directory = std::env::temp_dir().join(format!("topnet-vitals-{}", std::process::id()));
        fs::create_dir_all(directory.join("below")).unwrap();
        for (name, bytes) in [("one", 10_000), ("below/two", 20_000)] {
            fs::write(directory.join(name), vec![1; bytes]).unwrap();
        }
        let taken = disk_bytes(&directory);
        fs::remove_dir_all(&directory).unwrap();
        assert!((30_000..60_000).contains(&taken), "{taken}");
        assert_eq!(disk_bytes(&directory), 0);
    }
}
