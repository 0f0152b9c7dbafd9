//! Who keeps the system's name servers, and what it is told of a tunnel's.

use std::{fs, path::Path};

use crate::cli::error::CliError;

use super::routes::{pipe, run};

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
            Self::Resolvconf => run("resolvconf", &["-d", &record(device)]),
        }
    }
}

/// What resolvconf calls the device: by the first part it tells a tunnel.
fn record(device: &str) -> String {
    format!("tun.{device}")
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
