//! What arrived at an interface, packet for packet.
//!
//! An interface's own counters take a coalesced train of datagrams for one packet. The ingress
//! discipline counts its segments; it needs a filter to count at all, and passes everything on.

use std::process::Command;

use anyhow::{Context, Result};
use topnet_netns::Namespace;

/// Counts what arrives at an interface.
#[derive(Clone, Copy, Debug)]
pub struct Count<'a> {
    namespace: &'a Namespace,
    interface: &'a str,
}

impl<'a> Count<'a> {
    /// Begins to count.
    pub fn start(namespace: &'a Namespace, interface: &'a str) -> Result<Count<'a>> {
        let add = |words: &[&str]| {
            let mut command = Command::new("tc");
            command.args(words);
            namespace.run(command)
        };
        add(&["qdisc", "add", "dev", interface, "ingress"])?;
        add(&[
            "filter", "add", "dev", interface, "ingress", "protocol", "ip", "u32", "match", "u32",
            "0", "0", "flowid", "1:1",
        ])?;
        Ok(Count {
            namespace,
            interface,
        })
    }

    /// Packets so far.
    pub fn packets(&self) -> Result<u64> {
        let mut command = Command::new("tc");
        command.args([
            "-s",
            "-j",
            "qdisc",
            "show",
            "dev",
            self.interface,
            "ingress",
        ]);
        let text = self.namespace.run(command)?.stdout;
        packets_in(&text).with_context(|| {
            let text = String::from_utf8_lossy(&text);
            format!(
                "`tc` does not tell what arrived at {}: {text}",
                self.interface
            )
        })
    }
}

fn packets_in(json: &[u8]) -> Option<u64> {
    let disciplines: serde_json::Value = serde_json::from_slice(json).ok()?;
    let mut disciplines = disciplines.as_array()?.iter();
    disciplines.find(|discipline| discipline["kind"] == "ingress")?["packets"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ingress_discipline_counts() {
        let json =
            br#"[{"kind":"noqueue","packets":7},{"kind":"ingress","bytes":5,"packets":401}]"#;
        assert_eq!(packets_in(json), Some(401));
        assert_eq!(packets_in(br#"[{"kind":"noqueue","packets":7}]"#), None);
        assert_eq!(packets_in(b""), None);
    }
}
