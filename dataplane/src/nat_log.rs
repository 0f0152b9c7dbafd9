//! The log of who had which public ports when: one line of JSON for each block that is lent or
//! given back, so that a question about an address, a port and a time has an answer.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use serde_json::json;
use topnet_account::ChannelId;
use topnet_nat::{BlockEvent, BlockEventKind};

use crate::session::Session;

/// Whom it is about is nobody else's business.
const FILE_MODE: u32 = 0o640;

/// Who pays for the session that has a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The channel; `None` for the operator's own peers.
    pub channel: Option<ChannelId>,
    /// The peer's key.
    pub wireguard_public_key: [u8; 32],
}

impl Holder {
    /// Whose session it is.
    #[must_use]
    pub fn of(session: &Session) -> Self {
        Self {
            channel: session.plan.payer.map(|payer| payer.channel),
            wireguard_public_key: session.plan.public_key,
        }
    }
}

/// The open log.
#[derive(Debug)]
pub struct NatLog {
    path: PathBuf,
    file: File,
    /// The first of clients' inner addresses: the one with the host number 0.
    network: Ipv4Addr,
    /// Blocks that are lent, and to whom: an address may be another client's when they come back.
    lent: HashMap<(Ipv4Addr, u16), Option<Holder>>,
}

impl NatLog {
    /// Opens the log to append to it. Its first line ends whatever the last run had lent; what of
    /// it is lent still is to be recorded anew.
    pub fn open(path: &Path, network: Ipv4Addr) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(FILE_MODE)
            .open(path)?;
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        writeln!(file, "{}", json!({ "time": time, "event": "started" }))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            network,
            lent: HashMap::new(),
        })
    }

    /// Writes what happened to a block `ago`: to whom it was lent, or that it came back from whoever
    /// had it. Where the file takes no more, the process's own log
    /// has the line.
    pub fn record(&mut self, event: &BlockEvent, holder: Option<Holder>, ago: Duration) {
        let block = (event.external, event.first_port);
        let holder = match event.kind {
            BlockEventKind::Allocated => {
                self.lent.insert(block, holder);
                holder
            }
            BlockEventKind::Released => self.lent.remove(&block).flatten(),
        };
        let line = self.line(event, holder, SystemTime::now() - ago);
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            let path = self.path.display();
            tracing::error!(%error, %path, line = line.trim(), "the log of addresses takes no line");
        }
    }

    fn line(&self, event: &BlockEvent, holder: Option<Holder>, time: SystemTime) -> String {
        let inner_address = Ipv4Addr::from_bits(self.network.to_bits() + event.subscriber.0);
        let line = json!({
            "time": humantime::format_rfc3339_millis(time).to_string(),
            "event": match event.kind {
                BlockEventKind::Allocated => "allocated",
                BlockEventKind::Released => "released",
            },
            "inner_address": inner_address,
            "channel": holder.and_then(|holder| holder.channel).map(|channel| channel.to_string()),
            "wireguard_public_key": holder.map(|holder| BASE64.encode(&holder.wireguard_public_key)),
            "address": event.external,
            "first_port": event.first_port,
            "last_port": event.first_port.saturating_add(event.port_count - 1),
        });
        format!("{line}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topnet_nat::Subscriber;

    #[test]
    fn a_line_says_who_had_which_ports_when_whoever_has_the_address_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dataplane/nat.log");
        let event = |kind| BlockEvent {
            time_ms: 5,
            kind,
            subscriber: Subscriber(2),
            external: Ipv4Addr::new(198, 51, 100, 1),
            first_port: 65_024,
            port_count: 512,
        };
        let holder = |number: u8| Holder {
            channel: Some(ChannelId([number; 32])),
            wireguard_public_key: [number; 32],
        };
        let before = SystemTime::now() - Duration::from_secs(3601);
        let mut log = NatLog::open(&path, Ipv4Addr::new(10, 78, 0, 0)).unwrap();
        let ago = Duration::from_secs(3600);
        log.record(&event(BlockEventKind::Allocated), Some(holder(1)), ago);
        log.record(&event(BlockEventKind::Released), None, Duration::ZERO);
        drop(log);
        NatLog::open(&path, Ipv4Addr::new(10, 78, 0, 0)).unwrap();

        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let events: Vec<_> = lines.iter().map(|line| &line["event"]).collect();
        assert_eq!(events, ["started", "allocated", "released", "started"]);
        for line in &lines[1..3] {
            assert_eq!(line["address"], "198.51.100.1");
            assert_eq!(
                (&line["first_port"], &line["last_port"]),
                (&json!(65_024), &json!(65_535))
            );
            assert_eq!(line["inner_address"], "10.78.0.2");
            assert_eq!(line["channel"], ChannelId([1; 32]).to_string());
            assert_eq!(line["wireguard_public_key"], BASE64.encode(&[1; 32]));
        }
        let time = humantime::parse_rfc3339(lines[1]["time"].as_str().unwrap()).unwrap();
        assert!(time.duration_since(before).unwrap() < Duration::from_secs(60));
    }
}
