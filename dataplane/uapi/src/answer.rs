//! What a request is answered: an error's number alone, or a device's state.

use std::{net::SocketAddr, str, time::Duration};

use zeroize::Zeroizing;

use crate::lines::{Line, LineReader};
use crate::request::{NO_KEY_HEX, line, secret_text};
use crate::value::{decimal, shown, socket_address_of_any_zone};
use crate::{IpNetwork, Limits, PresharedKey, PrivateKey, PublicKey};

/// A positive number of Linux's `errno.h`, or 0. It is written with a minus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(i32);

impl Errno {
    /// It is done.
    pub const NONE: Self = Self(0);
    /// `EPERM`: not for this interface.
    pub const NOT_PERMITTED: Self = Self(1);
    /// `EIO`: the data plane could not do it.
    pub const IO: Self = Self(5);
    /// `E2BIG`: more than is read.
    pub const TOO_BIG: Self = Self(7);
    /// `EEXIST`: somebody else's.
    pub const EXISTS: Self = Self(17);
    /// `EINVAL`: a key or a value that cannot be.
    pub const INVALID: Self = Self(22);
    /// `ENOSPC`: more than a device holds.
    pub const NO_SPACE: Self = Self(28);
    /// `EPROTO`: not the protocol.
    pub const PROTOCOL: Self = Self(71);
    /// `EADDRINUSE`: somebody else listens there.
    pub const ADDRESS_IN_USE: Self = Self(98);

    /// As in `errno.h`.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The whole answer to a set request, or to a get request that failed.
    #[must_use]
    pub fn answer(self) -> String {
        format!("errno={}\n\n", -self.0)
    }
}

/// The answer to a get request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatus {
    /// The interface's secret.
    pub private_key: Option<PrivateKey>,
    /// Where it listens; 0 if nowhere.
    pub listen_port: u16,
    /// Mark of its own packets; 0 is none.
    pub fwmark: u32,
    /// In the order that they were written.
    pub peers: Vec<PeerStatus>,
}

/// How a peer is configured, and how it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Who it is.
    pub public_key: PublicKey,
    /// What both ends know besides.
    pub preshared_key: Option<PresharedKey>,
    /// Where it was last heard from, or is expected. An IPv6 zone by name is not kept.
    pub endpoint: Option<SocketAddr>,
    /// Since 1970; `None` if there was no handshake.
    pub last_handshake: Option<Duration>,
    /// Sent to it.
    pub tx_bytes: u64,
    /// Received from it.
    pub rx_bytes: u64,
    /// Seconds between keepalives; 0 is off.
    pub persistent_keepalive_s: u16,
    /// What it may send from.
    pub allowed_ips: Vec<IpNetwork>,
}

impl PeerStatus {
    /// A peer of whom nothing is known.
    #[must_use]
    pub const fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: None,
            endpoint: None,
            last_handshake: None,
            tx_bytes: 0,
            rx_bytes: 0,
            persistent_keepalive_s: 0,
            allowed_ips: Vec::new(),
        }
    }

    fn write(&self, text: &mut String) {
        line!(text, "public_key={}", self.public_key.to_hex());
        match &self.preshared_key {
            Some(key) => line!(text, "preshared_key={}", *key.to_hex()),
            None => line!(text, "preshared_key={NO_KEY_HEX}"),
        }
        line!(text, "protocol_version=1");
        if let Some(endpoint) = self.endpoint {
            line!(text, "endpoint={endpoint}");
        }
        let handshake = self.last_handshake.unwrap_or_default();
        line!(text, "last_handshake_time_sec={}", handshake.as_secs());
        line!(
            text,
            "last_handshake_time_nsec={}",
            handshake.subsec_nanos()
        );
        line!(text, "tx_bytes={}", self.tx_bytes);
        line!(text, "rx_bytes={}", self.rx_bytes);
        let seconds = self.persistent_keepalive_s;
        line!(text, "persistent_keepalive_interval={seconds}");
        for network in &self.allowed_ips {
            line!(text, "allowed_ip={network}");
        }
    }
}

impl DeviceStatus {
    /// The whole answer, as wireguard-go would write it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let allowed_ips = self.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
        let mut text = secret_text(self.peers.len(), allowed_ips, 0);
        if let Some(key) = &self.private_key {
            line!(text, "private_key={}", *key.to_hex());
        }
        if self.listen_port != 0 {
            line!(text, "listen_port={}", self.listen_port);
        }
        if self.fwmark != 0 {
            line!(text, "fwmark={}", self.fwmark);
        }
        for peer in &self.peers {
            peer.write(&mut text);
        }
        text.push_str(&Errno::NONE.answer());
        text
    }

    /// The one answer that `bytes` begin with.
    pub fn parse(mut bytes: &[u8], limits: &Limits) -> Result<Self, AnswerError> {
        let mut reader = AnswerReader::new(*limits);
        reader
            .read(&mut bytes)
            .unwrap_or(Err(AnswerError::Unfinished))
    }
}

/// Why an answer says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It says that it failed.
    #[error("the WireGuard process answers with error {}: look into its log", .0.number())]
    Refused(Errno),
    /// It ends without a word on whether it failed.
    #[error("the answer has no errno: is this a WireGuard process's socket?")]
    WithoutErrno,
    /// The connection ended before the empty line.
    #[error("the answer ends too early: the WireGuard process closed the connection; ask again")]
    Unfinished,
    /// A line that is not the protocol's.
    #[error(
        "line {line_number} of the answer: {key} is not {expected}: is this a WireGuard process's \
         socket?"
    )]
    Line {
        /// Counted from 1.
        line_number: usize,
        /// Whose value is wrong, or what stands instead of a key.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
    /// More than we keep.
    #[error(
        "the answer has more than {lines_max} lines, {peers_max} peers or {line_bytes_max} bytes \
         in a line: raise the limits if the interface is that large", lines_max = .0.lines_max,
        peers_max = .0.peers_max, line_bytes_max = .0.line_bytes_max
    )]
    TooMuch(Limits),
}

/// Reads a connection's answers, in whatever pieces they arrive. After an error there is nothing
/// further to read: close.
pub struct AnswerReader {
    limits: Limits,
    lines: LineReader,
    line_number: usize,
    answer: Partial,
}

/// An answer so far.
#[derive(Default)]
struct Partial {
    device: DeviceStatus,
    handshake_seconds: u64,
    handshake_nanoseconds: u32,
    errno: Option<Errno>,
}

impl AnswerReader {
    /// A new connection's reader.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            lines: LineReader::new(limits.line_bytes_max),
            line_number: 0,
            answer: Partial::default(),
        }
    }

    /// The next whole answer, and `bytes` moved on behind it; `None` when more bytes are needed.
    /// The answer to a set request is an empty device.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Option<Result<DeviceStatus, AnswerError>> {
        loop {
            let Line::Text(line) = self.lines.next(bytes)? else {
                return Some(Err(AnswerError::TooMuch(self.limits)));
            };
            self.line_number += 1;
            if line.is_empty() {
                self.line_number = 0;
                return Some(std::mem::take(&mut self.answer).finish());
            }
            if self.line_number >= self.limits.lines_max {
                return Some(Err(AnswerError::TooMuch(self.limits)));
            }
            if let Err(Wrong { key, expected }) = self.answer.handle_line(line) {
                return Some(Err(AnswerError::Line {
                    line_number: self.line_number,
                    key,
                    expected,
                }));
            }
            if self.answer.device.peers.len() > self.limits.peers_max {
                return Some(Err(AnswerError::TooMuch(self.limits)));
            }
        }
    }
}

struct Wrong {
    key: String,
    expected: &'static str,
}

impl Partial {
    fn handle_line(&mut self, line: &[u8]) -> Result<(), Wrong> {
        let wrong = |key: &str, expected| Wrong {
            key: shown(key.as_bytes()),
            expected,
        };
        let (key, value) = str::from_utf8(line)
            .ok()
            .and_then(|text| text.split_once('='))
            .ok_or_else(|| wrong("what stands there", "key=value"))?;
        let read = match key {
            "public_key" => PublicKey::from_hex(value)
                .map(|key| self.begin_peer(key))
                .ok_or("64 hex digits"),
            "errno" => decimal(value.strip_prefix('-').unwrap_or(value))
                .map(|number| self.errno = Some(Errno(number)))
                .ok_or("an error's number"),
            _ if self.device.peers.is_empty() => self.interface_line(key, value),
            _ => self.peer_line(key, value),
        };
        read.map_err(|expected| wrong(key, expected))
    }

    /// What is unknown is left out: a newer process may have more to say.
    fn interface_line(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        let device = &mut self.device;
        match key {
            "private_key" => {
                device.private_key = PrivateKey::from_hex(value).ok_or("64 hex digits")?;
            }
            "listen_port" => device.listen_port = decimal(value).ok_or("0 to 65535")?,
            "fwmark" => device.fwmark = decimal(value).ok_or("0 to 4294967295")?,
            _ => {}
        }
        Ok(())
    }

    fn peer_line(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        let Some(peer) = self.device.peers.last_mut() else {
            return Ok(());
        };
        match key {
            "preshared_key" => {
                peer.preshared_key = PresharedKey::from_hex(value).ok_or("64 hex digits")?;
            }
            "protocol_version" if value != "1" => return Err("1"),
            "endpoint" => {
                let endpoint = socket_address_of_any_zone(value).ok_or("an address and a port")?;
                peer.endpoint = Some(endpoint);
            }
            "last_handshake_time_sec" => {
                self.handshake_seconds = decimal(value).ok_or("seconds since 1970")?;
            }
            "last_handshake_time_nsec" => {
                let nanoseconds = decimal(value).filter(|number| *number < 1_000_000_000);
                self.handshake_nanoseconds = nanoseconds.ok_or("0 to 999999999")?;
            }
            "tx_bytes" => peer.tx_bytes = decimal(value).ok_or("a number of bytes")?,
            "rx_bytes" => peer.rx_bytes = decimal(value).ok_or("a number of bytes")?,
            "persistent_keepalive_interval" => {
                peer.persistent_keepalive_s = decimal(value).ok_or("0 to 65535")?;
            }
            "allowed_ip" => {
                let network = value.parse().map_err(|_| "a network as 10.7.0.0/24")?;
                peer.allowed_ips.push(network);
            }
            _ => {}
        }
        Ok(())
    }

    fn begin_peer(&mut self, public_key: PublicKey) {
        self.finish_peer();
        self.device.peers.push(PeerStatus::new(public_key));
    }

    fn finish_peer(&mut self) {
        let handshake = Duration::new(self.handshake_seconds, self.handshake_nanoseconds);
        (self.handshake_seconds, self.handshake_nanoseconds) = (0, 0);
        if let Some(peer) = self.device.peers.last_mut() {
            peer.last_handshake = (!handshake.is_zero()).then_some(handshake);
        }
    }

    fn finish(mut self) -> Result<DeviceStatus, AnswerError> {
        self.finish_peer();
        match self.errno {
            Some(Errno::NONE) => Ok(self.device),
            Some(errno) => Err(AnswerError::Refused(errno)),
            None => Err(AnswerError::WithoutErrno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "4e73c15e31db5f8557ba3db7e1c2fe9d18cafa0e9f0960e4967145a7ef71e30f";

    fn parse(text: &str) -> Result<DeviceStatus, AnswerError> {
        DeviceStatus::parse(text.replace("KEY", KEY).as_bytes(), &Limits::default())
    }

    #[test]
    fn an_answer_is_an_error_or_a_device() {
        assert_eq!(Errno::INVALID.answer(), "errno=-22\n\n");
        assert_eq!(Errno::NONE.answer(), "errno=0\n\n");
        assert_eq!(parse("errno=0\n\n"), Ok(DeviceStatus::default()));
        for text in ["errno=-22\n\n", "errno=22\n\n"] {
            assert_eq!(parse(text), Err(AnswerError::Refused(Errno::INVALID)));
        }
        assert_eq!(parse("listen_port=5\n\n"), Err(AnswerError::WithoutErrno));
        assert_eq!(parse("\n"), Err(AnswerError::WithoutErrno));
        assert_eq!(parse("errno=0\n"), Err(AnswerError::Unfinished));
    }

    #[test]
    fn other_processes_are_understood() {
        // What is unknown is skipped, a zone has a name, and a handshake has no nanoseconds.
        let text = "own_public_key=KEY\nlisten_port=5\npublic_key=KEY\nendpoint=[fe80::1%eth0]:9\n\
                    last_handshake_time_sec=7\nweather=fine\npublic_key=KEY\nerrno=0\n\n";
        let device = parse(text).unwrap();
        assert_eq!(device.listen_port, 5);
        assert_eq!(device.peers[0].endpoint, "[fe80::1]:9".parse().ok());
        assert_eq!(device.peers[0].last_handshake, Some(Duration::from_secs(7)));
        assert_eq!(device.peers[1].last_handshake, None);
    }

    #[test]
    fn nonsense_is_named_by_its_line() {
        let cases = [
            ("HTTP/1.1 400\nerrno=0\n\n", 1, "key=value"),
            ("listen_port=-1\n\n", 1, "0 to 65535"),
            ("private_key=no\n\n", 1, "64 hex digits"),
            (
                "public_key=KEY\ntx_bytes=18446744073709551616\n\n",
                2,
                "bytes",
            ),
            (
                "public_key=KEY\nlast_handshake_time_nsec=1000000000\n\n",
                2,
                "999999999",
            ),
            ("public_key=KEY\nprotocol_version=2\n\n", 2, "1"),
            ("public_key=KEY\nallowed_ip=10.0.0.0\n\n", 2, "network"),
        ];
        for (text, at, what) in cases {
            let Err(AnswerError::Line {
                line_number,
                expected,
                ..
            }) = parse(text)
            else {
                panic!("{text}");
            };
            assert_eq!(line_number, at, "{text}");
            assert!(expected.contains(what), "{text}: {expected}");
        }
    }

    #[test]
    fn too_much_is_refused() {
        let limits = Limits {
            lines_max: 4,
            line_bytes_max: 80,
            peers_max: 1,
            allowed_ips_max: 1,
        };
        let peer = format!("public_key={KEY}\n");
        let cases = [
            (format!("{peer}tx_bytes=1\nerrno=0\n\n"), true),
            (format!("{peer}tx_bytes=1\nrx_bytes=1\nerrno=0\n\n"), false),
            (format!("{peer}{peer}errno=0\n\n"), false),
            // The last line before the end is the one too many.
            (format!("errno=0\n{peer}{peer}\n"), false),
            ("x".repeat(81), false),
        ];
        for (text, fits) in cases {
            let answer = DeviceStatus::parse(text.as_bytes(), &limits);
            match fits {
                true => assert!(answer.is_ok(), "{text}"),
                false => assert_eq!(answer, Err(AnswerError::TooMuch(limits)), "{text}"),
            }
        }
    }

    #[test]
    fn the_longest_text_has_room() {
        let network: IpNetwork = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"
            .parse()
            .unwrap();
        let peer = PeerStatus {
            endpoint: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535"
                .parse()
                .ok(),
            last_handshake: Some(Duration::new(u64::MAX, 999_999_999)),
            tx_bytes: u64::MAX,
            rx_bytes: u64::MAX,
            persistent_keepalive_s: u16::MAX,
            allowed_ips: vec![network; 9],
            ..PeerStatus::new(PublicKey([7; 32]))
        };
        let device = DeviceStatus {
            private_key: PrivateKey::new([7; 32]),
            listen_port: u16::MAX,
            fwmark: u32::MAX,
            peers: vec![peer; 9],
        };
        let room = secret_text(9, 81, 0).capacity();
        assert_eq!(device.to_text().capacity(), room);
    }
}
