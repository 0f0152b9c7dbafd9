//! Who keeps the system's name servers, and what it is told of a tunnel's.

use std::{fs, net::IpAddr, path::Path};

use crate::cli::error::CliError;

use super::routes::{pipe, run};

/// Says whom programs ask for names.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where resolvconfs keep what they were told: openresolv below `interfaces`, later below `keys`,
/// Debian's resolvconf below `interface`.
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
    pub(super) fn tell(self, device: &str, servers: &[IpAddr]) -> Result<(), CliError> {
        match self {
            Self::Resolved => {
                let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
                let servers: Vec<&str> = servers.iter().map(String::as_str).collect();
                let words = [&["dns", device][..], &servers].concat();
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
            Self::Resolved => {
                // The device takes its servers along when it goes, which is soon, or has happened:
                // what may not be taken back now is no reason to stop.
                let _ = run("resolvectl", &["revert", device]);
                Ok(())
            }
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

/// Whom programs ask first, if it is none of these `servers` and nobody on this machine, who would
/// ask them in turn. Whoever was told of them may not be who writes that file.
pub(super) fn asked_instead_of(servers: &[IpAddr]) -> Option<String> {
    let conf = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    another_in(&conf, servers).map(str::to_owned)
}

/// The first name server in the text of resolv.conf(5), if it is another.
fn another_in<'a>(conf: &'a str, servers: &[IpAddr]) -> Option<&'a str> {
    let first = conf.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        // The keyword begins the line.
        (line.starts_with("nameserver") && words.next() == Some("nameserver"))
            .then(|| words.next())
            .flatten()
    })?;
    let ours = |at: IpAddr| at.is_loopback() || servers.contains(&at);
    (!first.parse().is_ok_and(ours)).then_some(first)
}

/// What resolvconf calls the device: by the first part it tells a tunnel.
fn record(device: &str) -> String {
    format!("tun.{device}")
}

/// True if a resolvconf whose directory this is has a record of that name.
fn stands(directory: &Path, record: &str) -> bool {
    let places = ["keys", "interfaces", "interface"];
    let stands_in = |place: &&str| directory.join(place).join(record).exists();
    places.iter().any(stands_in)
}

/// True if programs of this machine ask systemd-resolved.
fn asks_resolved() -> bool {
    let conf = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    let through = conf.contains("127.0.0.53")
        || fs::read_link(RESOLV_CONF)
            .is_ok_and(|target| target.to_string_lossy().contains("systemd/resolve"));
    through && run("resolvectl", &["status"]).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_name_server_that_is_asked_first_is_seen() {
        let servers = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        for (conf, another) in [
            ("nameserver 192.0.2.1\nnameserver 198.51.100.1\n", None),
            ("search lan\nnameserver\t192.0.2.2 # ours\n", None),
            // systemd-resolved, or a dnsmasq that resolvconf tells of the servers.
            ("nameserver 127.0.0.53\noptions edns0\n", None),
            // The C library asks this machine.
            ("", None),
            (
                "# nameserver 198.51.100.1\n;nameserver 1\nnameserver 192.0.2.1\n",
                None,
            ),
            (
                "nameserver 198.51.100.1\nnameserver 192.0.2.1\n",
                Some("198.51.100.1"),
            ),
            ("nameserver fe80::1%eth0\n", Some("fe80::1%eth0")),
        ] {
            assert_eq!(another_in(conf, &servers), another, "{conf}");
        }
    }

    #[test]
    fn what_resolvconf_was_told_is_seen_in_each_place() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!stands(directory.path(), "tun.x"));
        for place in ["keys", "interfaces", "interface"] {
            let file = directory.path().join(place).join("tun.x");
            fs::create_dir(file.parent().unwrap()).unwrap();
            fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
            assert!(stands(directory.path(), "tun.x"), "{place}");
            assert!(!stands(directory.path(), "tun.y"), "{place}");
            fs::remove_file(&file).unwrap();
        }
    }
}
