//! Who keeps the system's name servers, and what it is told of a tunnel's.

use std::{fs, path::Path};

use crate::cli::error::CliError;

use super::routes::{pipe, run};

/// Where every resolvconf keeps what it was told.
const RESOLVCONF_DIRECTORY: &str = "/run/resolvconf";

/// Whom programs of this machine have their name servers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// systemd-resolved, which knows of each device.
    Resolved,
    /// openresolv, or another resolvconf.
    Resolvconf,
}

impl Keeper {
    /// The one that this machine has.
    pub(super) fn find() -> Option<Self> {
        if asks_resolved() {
            Some(Self::Resolved)
        } else if run("resolvconf", &["--version"]).is_ok() {
            Some(Self::Resolvconf)
        } else {
            None
        }
    }

    /// Has all names resolved by these servers.
    pub(super) fn tell(self, device: &str, servers: &[String]) -> Result<(), CliError> {
        match self {
            Self::Resolved => {
                let words = [&["dns", device][..], &words_of(servers)].concat();
                run("resolvectl", &words)
                    .and_then(|()| run("resolvectl", &["domain", device, "~."]))
            }
            Self::Resolvconf => {
                let text: String = servers
                    .iter()
                    .map(|at| format!("nameserver {at}\n"))
                    .collect();
                let words = ["-a", &record(device), "-m", "0", "-x"];
                pipe("resolvconf", &words, &text).map(drop)
            }
        }
    }

    /// Takes back what it was told.
    pub(super) fn forget(self, device: &str) -> Result<(), CliError> {
        match self {
            // The device took its servers along, if it is gone.
            Self::Resolved => match Path::new("/sys/class/net").join(device).exists() {
                true => run("resolvectl", &["revert", device]),
                false => Ok(()),
            },
            Self::Resolvconf => {
                let record = record(device);
                // Forced, it is no error that there is nothing to forget.
                match run("resolvconf", &["-d", &record, "-f"]) {
                    // Who has no right to tell it anything has none to take it back.
                    Err(_) if !stands(Path::new(RESOLVCONF_DIRECTORY), &record) => Ok(()),
                    forgotten => forgotten,
                }
            }
        }
    }
}

/// What resolvconf calls the device: by the first part it tells a tunnel.
fn record(device: &str) -> String {
    format!("tun.{device}")
}

/// True if a resolvconf whose directory this is has a record of that name.
fn stands(directory: &Path, record: &str) -> bool {
    // openresolv's place for them, and Debian's own resolvconf's.
    let places = ["interfaces", "interface"];
    places.map(|place| directory.join(place).join(record).exists()) != [false, false]
}

/// True if programs of this machine ask systemd-resolved.
fn asks_resolved() -> bool {
    let conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let through = conf.contains("127.0.0.53")
        || fs::read_link("/etc/resolv.conf")
            .is_ok_and(|target| target.to_string_lossy().contains("systemd/resolve"));
    through && run("resolvectl", &["status"]).is_ok()
}

fn words_of(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_resolvconf_was_told_is_seen_in_either_s_place() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!stands(directory.path(), "tun.x"));
        for place in ["interfaces", "interface"] {
            let file = directory.path().join(place).join("tun.x");
            fs::create_dir(file.parent().unwrap()).unwrap();
            fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
            assert!(stands(directory.path(), "tun.x"), "{place}");
            assert!(!stands(directory.path(), "tun.y"), "{place}");
            fs::remove_file(&file).unwrap();
        }
    }
}
