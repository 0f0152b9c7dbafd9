//! Reads the counters of a WireGuard client that is not ours.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with},
};
use tracing::warn;

use crate::counter::{ByteCounter, Counted, Reading, Readings};

/// Counts beside a foreign WireGuard client, in the network namespace that it runs in.
#[derive(Debug)]
pub struct WireguardCounter {
    interface: String,
    /// Base64, as `wg` shows it.
    peer: String,
    /// Where userspace implementations answer.
    socket: PathBuf,
    /// The transfer could not be read, and that was said.
    complained: bool,
}

/// How long `wg` or a userspace WireGuard may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_BYTES_MAX: u64 = 1 << 20;

impl WireguardCounter {
    /// Counts what goes through `interface` and to its peer `peer` (its 32-byte public key).
    pub fn new(interface: &str, peer: [u8; 32]) -> Self {
        Self {
            interface: interface.to_owned(),
            peer: base64(&peer),
            socket: format!("/var/run/wireguard/{interface}.sock").into(),
            complained: false,
        }
    }

    /// The interface's number in this namespace, if it is there.
    fn index(&self) -> io::Result<Option<u32>> {
        let cloexec = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, cloexec, None)?;
        match name_to_index(&socket, &self.interface) {
            Ok(index) => Ok(Some(index)),
            Err(Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The peer's transfer, if WireGuard may be asked and knows the peer.
    fn transfer(&self) -> io::Result<Option<Counted>> {
        let found = if self.socket.exists() {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            stream.write_all(b"get=1\n\n")?;
            read_uapi(stream, &self.peer)
        } else {
            let output = Command::new("wg")
                .args(["show", &self.interface, "transfer"])
                .stdin(Stdio::null())
                .output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(io::Error::other(format!("wg: {said}")));
            }
            parse_wg_show(&String::from_utf8_lossy(&output.stdout), &self.peer)
        };
        Ok(found)
    }
}

impl ByteCounter for WireguardCounter {
    fn read(&mut self) -> io::Result<Readings> {
        let Some(incarnation) = self.index()? else {
            return Ok(Readings::default());
        };
        let devices = fs::read_to_string("/proc/thread-self/net/dev")?;
        let Some(counted) = parse_devices(&devices, &self.interface) else {
            return Ok(Readings::default());
        };
        let reading = |counted| Reading {
            counted,
            incarnation,
        };
        let transfer = self.transfer().unwrap_or_else(|error| {
            if !std::mem::replace(&mut self.complained, true) {
                warn!(
                    interface = self.interface,
                    %error,
                    "WireGuard does not say what it transferred; the interface's lower count must \
                     do, and paying may fall behind: let this user read it (CAP_NET_ADMIN, or \
                     the group of its socket)"
                );
            }
            None
        });
        let transfer = transfer.map(reading);
        Ok(Readings {
            interface: Some(reading(counted)),
            transfer,
        })
    }
}

/// Reads `/proc/net/dev`: after the name, eight receive columns, then eight transmit ones.
fn parse_devices(text: &str, interface: &str) -> Option<Counted> {
    let columns = text.lines().find_map(|line| {
        let (name, columns) = line.split_once(':')?;
        (name.trim() == interface).then_some(columns)
    })?;
    let mut columns = columns.split_ascii_whitespace();
    let down_bytes = columns.next()?.parse().ok()?;
    let up_bytes = columns.nth(7)?.parse().ok()?;
    Some(Counted {
        up_bytes,
        down_bytes,
    })
}

/// Reads `wg show INTERFACE transfer`: peer, received, sent.
fn parse_wg_show(text: &str, peer: &str) -> Option<Counted> {
    text.lines().find_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        if columns.next()? != peer {
            return None;
        }
        let down_bytes = columns.next()?.parse().ok()?;
        let up_bytes = columns.next()?.parse().ok()?;
        Some(Counted {
            up_bytes,
            down_bytes,
        })
    })
}

/// Reads a userspace implementation's answer (the "cross-platform userspace" protocol of
/// wireguard.com/xplatform): `key=value` lines, a peer's own after its `public_key`, then an
/// empty line.
fn read_uapi(stream: impl Read, peer: &str) -> Option<Counted> {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    let mut stream = stream.take(ANSWER_BYTES_MAX);
    while !text.ends_with(b"\n\n") {
        match stream.read(&mut chunk) {
            Ok(bytes) if bytes > 0 => text.extend_from_slice(&chunk[..bytes]),
            _ => break,
        }
    }
    parse_uapi(std::str::from_utf8(&text).ok()?, peer)
}

fn parse_uapi(text: &str, peer: &str) -> Option<Counted> {
    let (mut ours, mut up, mut down) = (false, None, None);
    for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match key {
            "public_key" => ours = hex(value).is_some_and(|key| base64(&key) == peer),
            "tx_bytes" if ours => up = value.parse().ok(),
            "rx_bytes" if ours => down = value.parse().ok(),
            _ => {}
        }
    }
    Some(Counted {
        up_bytes: up?,
        down_bytes: down?,
    })
}

fn hex(text: &str) -> Option<[u8; 32]> {
    Some(
        format!("0x{text}")
            .parse::<topnet_account::PublicKey>()
            .ok()?
            .0,
    )
}

/// Base64 with padding (RFC 4648), as WireGuard writes keys.
fn base64(bytes: &[u8; 32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(44);
    for group in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=group.len()].copy_from_slice(group);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= group.len() {
                ALPHABET[digit] as char
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(up_bytes: u64, down_bytes: u64) -> Counted {
        Counted {
            up_bytes,
            down_bytes,
        }
    }

    #[test]
    fn the_kernels_and_wireguards_words_are_understood() {
        let devices = "Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes\n    \
            lo:       1       2    0    0    0     0          0         0        3       4 0 0\n \
            wg0:12345     67    0    0    0     0          0         0   987654     321 0 0 0 0 0\n";
        assert_eq!(
            parse_devices(devices, "wg0"),
            Some(counted(987_654, 12_345))
        );
        assert_eq!(parse_devices(devices, "wg1"), None);

        let peer = base64(&[7; 32]);
        assert_eq!(peer, "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
        let shown = format!("other\t1\t2\n{peer}\t148\t92\n");
        assert_eq!(parse_wg_show(&shown, &peer), Some(counted(92, 148)));

        let key = "07".repeat(32);
        let other = "08".repeat(32);
        let answer = format!(
            "private_key={other}\nlisten_port=1\npublic_key={key}\nrx_bytes=148\ntx_bytes=92\n\
             public_key={other}\nrx_bytes=1\ntx_bytes=2\nerrno=0\n\n"
        );
        assert_eq!(read_uapi(answer.as_bytes(), &peer), Some(counted(92, 148)));
        assert_eq!(read_uapi(&b"errno=0\n\n"[..], &peer), None);
    }
}
