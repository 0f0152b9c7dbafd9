//! What arrived at the client: the figure of this lane.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use topnet_netns::Namespace;

/// A namespace's `/proc/net/dev` with a few interfaces is far below this.
const TABLE_BYTES: usize = 8192;

/// An interface's counter of received packets.
pub struct Arrivals {
    /// Belongs to the namespace in which it was opened, wherever it is read.
    table: File,
    interface: String,
}

impl Arrivals {
    /// The counter of `interface` in `namespace`.
    pub fn of(namespace: &Namespace, interface: &str) -> Result<Arrivals> {
        // The thread's own, since the process is in another namespace.
        let table = namespace
            .enter(|| File::open("/proc/thread-self/net/dev"))?
            .context("the client's interfaces cannot be read")?;
        Ok(Arrivals {
            table,
            interface: interface.to_owned(),
        })
    }

    /// Packets received so far.
    pub fn packets(&self) -> Result<u64> {
        let mut bytes = [0; TABLE_BYTES];
        let length = self.table.read_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        received(&text, &self.interface)
            .with_context(|| format!("the client has no interface {}", self.interface))
    }
}

/// The second figure of the interface's line.
fn received(table: &str, interface: &str) -> Option<u64> {
    table.lines().find_map(|line| {
        let (name, figures) = line.split_once(':')?;
        (name.trim() == interface).then(|| figures.split_whitespace().nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_from_bytes_and_other_interfaces() {
        let table = "Inter-|   Receive\n face |bytes    packets errs\n    lo:       0       1    0\n\
                     uplink: 1234567     890    0    0\n";
        for (interface, expected) in [("uplink", Some(890)), ("lo", Some(1)), ("link", None)] {
            assert_eq!(received(table, interface), expected, "{interface}");
        }
    }
}
