//! Reads requests from a connection, whole ones only.
//!
//! wireguard-go applies each line as it reads it; here a request is read to its empty line
//! before anything happens, so that a refused one changes nothing. What is refused is still read
//! to its end, because `wg` writes all of its request before it reads the answer. Only where the
//! end cannot be known, or is too far away, the connection is over.

use std::str;

use crate::lines::{Line, LineReader};
use crate::value::{decimal, shown, shown_key, socket_address};
use crate::{
    AllowedIpChange, Errno, IpNetwork, KeyUpdate, Limits, PeerSet, PresharedKey, PrivateKey,
    PublicKey, Request, Set,
};

/// Reads a connection's requests, in whatever pieces they arrive.
///
/// Call [`read`](Self::read) with what arrived until it returns `None`; answer each request
/// and each refusal, in that order; after a refusal that [closes](Refusal::closes), close.
pub struct RequestReader {
    limits: Limits,
    lines: LineReader,
    /// Lines of the request so far.
    line_number: usize,
    state: State,
}

/// Why a request is not done, and what to answer to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line_number} of the request: {problem}")]
pub struct Refusal {
    /// Counted from 1, the line with `set=1`.
    pub line_number: usize,
    /// What is wrong with it. No secret is in it.
    pub problem: Problem,
    /// The connection cannot go on: close it once this is answered.
    pub closes: bool,
}

/// What can be wrong with a line of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Neither of the two operations.
    #[error("`{0}` is no operation: begin with get=1 or set=1")]
    UnknownOperation(String),
    /// Not a line of the protocol.
    #[error("{bytes} bytes without a `=`: write key=value")]
    NotKeyValue {
        /// How many; what they are may be a secret.
        bytes: usize,
    },
    /// Not text.
    #[error("the line is not UTF-8: write key=value")]
    NotText,
    /// A key of a newer protocol, or of none.
    #[error("`{0}` is no key of a set request: see https://www.wireguard.com/xplatform/")]
    UnknownKey(String),
    /// A peer's key before any peer.
    #[error("`{0}` belongs to a peer: write it after a public_key")]
    BeforePeers(&'static str),
    /// An interface's key after a peer.
    #[error("`{0}` belongs to the interface: write it before the first public_key")]
    AfterPeers(&'static str),
    /// A value that its key cannot have.
    #[error("{key} cannot be `{value}`: write {expected}")]
    Value {
        /// Whose value.
        key: &'static str,
        /// Its beginning.
        value: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A key that is none. It is not shown, since it is nearly a secret.
    #[error("{0} is not a key: write its 32 bytes as 64 hex digits")]
    NotAKey(&'static str),
    /// Something between `get=1` and the empty line.
    #[error("a get request has no second line: write get=1 and an empty line")]
    GetWithLines,
    /// A line without an end in sight.
    #[error("the line is longer than {line_bytes_max} bytes, which no value needs")]
    LineTooLong {
        /// [`Limits::line_bytes_max`].
        line_bytes_max: usize,
    },
    /// A request without an end in sight.
    #[error("the request has more than {lines_max} lines: send it in several")]
    TooManyLines {
        /// [`Limits::lines_max`].
        lines_max: usize,
    },
    /// More peers than a device may have.
    #[error("the request has more than {peers_max} peers: send it in several")]
    TooManyPeers {
        /// [`Limits::peers_max`].
        peers_max: usize,
    },
    /// The bytes end before the empty line.
    #[error("the request has no end: finish it with an empty line")]
    Unfinished,
}

impl Problem {
    /// What to answer, as wireguard-go does where it has such an answer.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotKeyValue { .. } | Self::NotText | Self::Unfinished => Errno::PROTOCOL,
            Self::LineTooLong { .. } | Self::TooManyLines { .. } | Self::TooManyPeers { .. } => {
                Errno::TOO_BIG
            }
            Self::UnknownOperation(_)
            | Self::UnknownKey(_)
            | Self::BeforePeers(_)
            | Self::AfterPeers(_)
            | Self::Value { .. }
            | Self::NotAKey(_)
            | Self::GetWithLines => Errno::INVALID,
        }
    }
}

impl Refusal {
    /// What to write to the connection.
    #[must_use]
    pub fn answer(&self) -> String {
        self.problem.errno().answer()
    }
}

enum State {
    /// Before `get=1` or `set=1`.
    Between,
    /// Within a request.
    Within(Request),
    /// Within a request that will be refused.
    Refused(Refusal),
    /// There will be no further request.
    Closed,
}

impl RequestReader {
    /// A new connection's reader.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            lines: LineReader::new(limits.line_bytes_max),
            line_number: 0,
            state: State::Between,
        }
    }

    /// The next whole request, and `bytes` moved on behind it; `None` when more bytes are needed,
    /// or none will be read any more.
    pub fn read(&mut self, bytes: &mut &[u8]) -> Option<Result<Request, Refusal>> {
        loop {
            if matches!(self.state, State::Closed) {
                *bytes = &[];
                return None;
            }
            let line = self.lines.next(bytes)?;
            self.line_number += 1;
            let refused = match line {
                _ if self.line_number > self.limits.lines_max => Some(Problem::TooManyLines {
                    lines_max: self.limits.lines_max,
                }),
                Line::TooLong => Some(Problem::LineTooLong {
                    line_bytes_max: self.limits.line_bytes_max,
                }),
                Line::Text(b"") if !matches!(self.state, State::Between) => {
                    self.line_number = 0;
                    return match std::mem::replace(&mut self.state, State::Between) {
                        State::Within(request) => Some(Ok(request)),
                        State::Refused(refusal) => Some(Err(refusal)),
                        State::Between | State::Closed => None,
                    };
                }
                Line::Text(line) => handle_line(&mut self.state, line, &self.limits).err(),
            };
            if let Some(refusal) = refused.and_then(|problem| self.refuse(problem)) {
                return Some(Err(refusal));
            }
        }
    }

    /// True if nothing of a request has arrived that is not answered yet. A connection that ends
    /// elsewhere ended too early, and what had arrived counts for nothing.
    #[must_use]
    pub fn is_between_requests(&self) -> bool {
        self.lines.is_at_start() && matches!(self.state, State::Between | State::Closed)
    }

    /// Remembers the first problem of a request, or returns what cannot wait for its end.
    fn refuse(&mut self, problem: Problem) -> Option<Refusal> {
        let closes =
            matches!(self.state, State::Between) || matches!(problem, Problem::TooManyLines { .. });
        let first = match std::mem::replace(&mut self.state, State::Closed) {
            State::Refused(first) => first,
            State::Between | State::Within(_) | State::Closed => Refusal {
                line_number: self.line_number,
                problem,
                closes,
            },
        };
        if closes {
            return Some(Refusal { closes, ..first });
        }
        self.state = State::Refused(first);
        None
    }
}

impl Request {
    /// The one request that `bytes` begin with; what follows it is not looked at.
    pub fn parse(mut bytes: &[u8], limits: &Limits) -> Result<Self, Refusal> {
        let mut reader = RequestReader::new(*limits);
        reader.read(&mut bytes).unwrap_or_else(|| {
            Err(Refusal {
                line_number: reader.line_number + 1,
                problem: Problem::Unfinished,
                closes: true,
            })
        })
    }
}

fn handle_line(state: &mut State, line: &[u8], limits: &Limits) -> Result<(), Problem> {
    match state {
        State::Between => {
            *state = State::Within(match line {
                b"get=1" => Request::Get,
                b"set=1" => Request::Set(Set::default()),
                _ => return Err(unknown_operation(line)),
            });
            Ok(())
        }
        State::Within(Request::Get) => Err(Problem::GetWithLines),
        State::Within(Request::Set(set)) => set_line(set, line, limits),
        State::Refused(_) | State::Closed => Ok(()),
    }
}

/// Its value is left out: a request without its first line may begin with a private key.
fn unknown_operation(line: &[u8]) -> Problem {
    let text = str::from_utf8(line).unwrap_or("bytes");
    Problem::UnknownOperation(shown_key(text.split('=').next().unwrap_or_default()))
}

/// What belongs to the interface, and so before the peers.
const INTERFACE_KEYS: &[&str] = &["private_key", "listen_port", "fwmark", "replace_peers"];
/// What belongs to a peer, and so after its public key.
const PEER_KEYS: &[&str] = &[
    "remove",
    "update_only",
    "preshared_key",
    "endpoint",
    "persistent_keepalive_interval",
    "replace_allowed_ips",
    "allowed_ip",
    "protocol_version",
];

fn set_line(set: &mut Set, line: &[u8], limits: &Limits) -> Result<(), Problem> {
    let text = str::from_utf8(line).map_err(|_| Problem::NotText)?;
    let bytes = line.len();
    let (key, value) = text.split_once('=').ok_or(Problem::NotKeyValue { bytes })?;
    if key == "public_key" {
        if set.peers.len() >= limits.peers_max {
            let peers_max = limits.peers_max;
            return Err(Problem::TooManyPeers { peers_max });
        }
        let public_key = PublicKey::from_hex(value).ok_or(Problem::NotAKey("public_key"))?;
        set.peers.push(PeerSet::new(public_key));
        return Ok(());
    }
    let known = |keys: &[&'static str]| keys.iter().copied().find(|known| *known == key);
    match (
        known(INTERFACE_KEYS),
        known(PEER_KEYS),
        set.peers.last_mut(),
    ) {
        (Some(key), _, None) => interface_line(set, key, value),
        (_, Some(key), Some(peer)) => peer_line(peer, key, value),
        (Some(key), _, Some(_)) => Err(Problem::AfterPeers(key)),
        (_, Some(key), None) => Err(Problem::BeforePeers(key)),
        (None, None, _) => Err(Problem::UnknownKey(shown_key(key))),
    }
}

fn interface_line(set: &mut Set, key: &'static str, value: &str) -> Result<(), Problem> {
    match key {
        "private_key" => {
            let private_key = PrivateKey::from_hex(value).ok_or(Problem::NotAKey(key))?;
            set.private_key = KeyUpdate::to(private_key);
        }
        "listen_port" => set.listen_port = Some(number(key, value, "0 to 65535")?),
        "fwmark" => set.fwmark = Some(number(key, value, "0 to 4294967295")?),
        "replace_peers" => set.replace_peers = only_true(key, value)?,
        _ => return Err(Problem::UnknownKey(key.to_owned())),
    }
    Ok(())
}

fn peer_line(peer: &mut PeerSet, key: &'static str, value: &str) -> Result<(), Problem> {
    match key {
        "remove" => peer.remove = only_true(key, value)?,
        "update_only" => peer.update_only = only_true(key, value)?,
        "preshared_key" => {
            let preshared_key = PresharedKey::from_hex(value).ok_or(Problem::NotAKey(key))?;
            peer.preshared_key = KeyUpdate::to(preshared_key);
        }
        "endpoint" => {
            let expected = "192.0.2.1:51820 or [2001:db8::1]:51820, a host name resolved and an \
                            interface by its number";
            let endpoint = socket_address(value).ok_or_else(|| wrong(key, value, expected))?;
            peer.endpoint = Some(endpoint);
        }
        "persistent_keepalive_interval" => {
            peer.persistent_keepalive_s = Some(number(key, value, "seconds, 0 to 65535")?);
        }
        "replace_allowed_ips" => {
            peer.replace_allowed_ips = only_true(key, value)?;
            // All of them go, those that the section gave before included.
            peer.allowed_ips.clear();
        }
        "allowed_ip" => peer.allowed_ips.push(allowed_ip(key, value)?),
        "protocol_version" if value == "1" => {}
        "protocol_version" => return Err(wrong(key, value, "1, the only version")),
        _ => return Err(Problem::UnknownKey(key.to_owned())),
    }
    Ok(())
}

fn allowed_ip(key: &'static str, value: &str) -> Result<AllowedIpChange, Problem> {
    let expected = "10.7.0.0/24 or fd00:7::/64, after a `-` to take it away";
    let network = |text: &str| -> Result<IpNetwork, Problem> {
        text.parse().map_err(|_| wrong(key, value, expected))
    };
    Ok(match value.strip_prefix('-') {
        Some(text) => AllowedIpChange::Remove(network(text)?),
        None => AllowedIpChange::Add(network(value)?),
    })
}

fn number<N: str::FromStr>(
    key: &'static str,
    value: &str,
    expected: &'static str,
) -> Result<N, Problem> {
    decimal(value).ok_or_else(|| wrong(key, value, expected))
}

/// The protocol has no `false`: a flag is there or not.
fn only_true(key: &'static str, value: &str) -> Result<bool, Problem> {
    if value == "true" {
        return Ok(true);
    }
    Err(wrong(key, value, "true, or leave the line out"))
}

fn wrong(key: &'static str, value: &str, expected: &'static str) -> Problem {
    Problem::Value {
        key,
        value: shown(value.as_bytes()),
        expected,
    }
}

#[cfg(test)]
mod tests;
