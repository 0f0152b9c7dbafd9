//! The log of who had which public ports when: one line of JSON for each block that is lent or
//! given back, so that a question about an address, a port and a time has an answer.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use data_encoding::BASE64;
use serde_json::json;
use topnet_account::ChannelId;
use topnet_nat::{BlockEvent, BlockEventKind};

/// Whom it is about is nobody else's business.
const FILE_MODE: u32 = 0o640;

/// Who has a block.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    /// The client's inner address.
    pub inner_address: Ipv4Addr,
    /// The channel that pays and the peer's key, while there is a session.
    pub session: Option<(ChannelId, [u8; 32])>,
}

/// The open log.
#[derive(Debug)]
pub struct NatLog {
    path: PathBuf,
    file: File,
}

impl NatLog {
    /// Opens the log to append to it.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(FILE_MODE)
            .open(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes what happened to a block. Where the file takes no more, the process's own log
    /// has the line.
    pub fn record(&mut self, event: &BlockEvent, holder: &Holder) {
        let line = line(event, holder, SystemTime::now());
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            let path = self.path.display();
            tracing::error!(%error, %path, line = line.trim(), "the log of addresses takes no line");
        }
    }
}

fn line(event: &BlockEvent, holder: &Holder, now: SystemTime) -> String {
    let last_port = event.first_port.saturating_add(event.port_count - 1);
    let line = json!({
        "time": humantime::format_rfc3339_millis(now).to_string(),
        "event": match event.kind {
            BlockEventKind::Allocated => "allocated",
            BlockEventKind::Released => "released",
        },
        "inner_address": holder.inner_address,
        "channel": holder.session.map(|(channel, _)| channel.to_string()),
        "wireguard_public_key": holder.session.map(|(_, key)| BASE64.encode(&key)),
        "address": event.external,
        "first_port": event.first_port,
        "last_port": last_port,
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use topnet_nat::Subscriber;

    #[test]
    fn a_line_says_who_had_which_ports_when() {
        let event = BlockEvent {
            time_ms: 5,
            kind: BlockEventKind::Allocated,
            subscriber: Subscriber(2),
            external: Ipv4Addr::new(198, 51, 100, 1),
            first_port: 65_024,
            port_count: 512,
        };
        let holder = Holder {
            inner_address: Ipv4Addr::new(10, 78, 0, 2),
            session: Some((ChannelId([1; 32]), [2; 32])),
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        let read: serde_json::Value = serde_json::from_str(&line(&event, &holder, at)).unwrap();
        assert_eq!(read["time"], "1970-01-02T00:00:00.000Z");
        assert_eq!(read["event"], "allocated");
        assert_eq!(read["address"], "198.51.100.1");
        assert_eq!(read["first_port"], 65_024);
        assert_eq!(read["last_port"], 65_535);
        assert_eq!(read["inner_address"], "10.78.0.2");
        assert_eq!(read["wireguard_public_key"], BASE64.encode(&[2; 32]));
    }

    #[test]
    fn lines_are_appended_to_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dataplane/nat.log");
        for _ in 0..2 {
            let event = BlockEvent {
                time_ms: 5,
                kind: BlockEventKind::Released,
                subscriber: Subscriber(2),
                external: Ipv4Addr::new(198, 51, 100, 1),
                first_port: 1_024,
                port_count: 64,
            };
            let holder = Holder {
                inner_address: Ipv4Addr::new(10, 78, 0, 2),
                session: None,
            };
            NatLog::open(&path).unwrap().record(&event, &holder);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("\"channel\":null"), "{text}");
    }
}
