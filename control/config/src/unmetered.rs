//! `[dataplane.unmetered]`: the operator's own WireGuard peers, for whom nobody pays.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{Base, Ipv4Subnet, error::Problems};

/// Peers that `topnet vpn`, `wg` and `wg-quick` configure.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unmetered {
    /// Their part of `inner_subnet`, which no paying client gets.
    pub subnet: Ipv4Subnet,
    /// The peers, in WireGuard's own format. Read at the start and written at every change.
    #[serde(default)]
    pub file: PathBuf,
    /// Where the interface's socket is; `wg` looks in `/run/wireguard`, for root's sockets or links.
    #[serde(default)]
    pub socket_dir: PathBuf,
}

impl Unmetered {
    pub(crate) fn resolve(&mut self, base: &Base<'_>) {
        base.join_data(&mut self.file, "dataplane/unmetered.conf");
        if self.socket_dir.as_os_str().is_empty() {
            self.socket_dir.clone_from(&base.runtime_dir);
        }
        base.join(&mut self.socket_dir);
    }

    pub(crate) fn check(&self, inner: Ipv4Subnet, problems: &mut Problems<'_>) {
        let subnet = self.subnet;
        let within = inner.contains(subnet.network()) && subnet.prefix_bits() > inner.prefix_bits();
        if !within {
            problems.add(
                "unmetered.subnet",
                format!("{subnet} is no part of inner_subnet {inner}"),
                "choose a smaller network in it, such as its last 256 addresses",
            );
        }
    }
}
