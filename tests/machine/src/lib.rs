//! Names the machine and the commit that a record was made with, the same way for the lab and
//! the benchmarks.
#![forbid(unsafe_code)]

use std::fs;

/// Set by `cargo xtask`, which runs as the user who may ask git.
pub const COMMIT_ENV: &str = "TOPNET_COMMIT";

/// Processor, CPUs, memory, kernel and distribution in one line.
pub fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = rustix::system::uname();
    [
        field("/proc/cpuinfo", "model name", ':').unwrap_or_else(|| std::env::consts::ARCH.into()),
        format!("{cpus} CPUs"),
        memory(),
        format!("Linux {}", kernel.release().to_string_lossy()),
        field("/etc/os-release", "PRETTY_NAME", '=').unwrap_or_else(|| "unknown system".into()),
    ]
    .join(", ")
}

/// The commit that was built, `unknown` outside `cargo xtask`.
pub fn commit() -> String {
    std::env::var(COMMIT_ENV).unwrap_or_else(|_| "unknown".into())
}

fn memory() -> String {
    let kibibytes = field("/proc/meminfo", "MemTotal", ':')
        .and_then(|value| value.split(' ').next()?.parse::<f64>().ok())
        .unwrap_or_default();
    format!("{:.1} GiB", kibibytes / (1024.0 * 1024.0))
}

/// The first value of `name` in a file of `name SEPARATOR value` lines.
fn field(path: &str, name: &str, separator: char) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    value_in(&text, name, separator)
}

fn value_in(text: &str, name: &str, separator: char) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(separator)?;
        (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_kernel_and_cpus() {
        let line = machine();
        assert!(line.contains("Linux ") && line.contains("CPUs"), "{line}");
    }

    #[test]
    fn values_are_found_by_name() {
        let text = "MemTotal:  2048 kB\nMODEL = \"a b\"\n";
        assert_eq!(value_in(text, "MemTotal", ':').as_deref(), Some("2048 kB"));
        assert_eq!(value_in(text, "MODEL", '=').as_deref(), Some("a b"));
        assert_eq!(value_in(text, "absent", ':'), None);
    }
}
