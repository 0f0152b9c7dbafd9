//! Text that a file can hold in one place and still be read back: no line end, and where
//! a comment or a comma would cut it, neither of these.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::value::{decimal, socket_address};

/// Characters of a host name at most (RFC 1035, with a final dot).
const HOST_CHARS_MAX: usize = 254;

/// A word without spaces, commas, `#` and `=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word(String);

impl Word {
    /// `None` if `text` is empty or more than a word.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fits = |character: char| {
            !character.is_whitespace() && !character.is_control() && !",#=".contains(character)
        };
        (!text.is_empty() && text.chars().all(fits)).then(|| Self(text.to_owned()))
    }

    /// As it stands in the file.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A command for the shell. It is not run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// `None` if `text` is empty, more than a line, or begins or ends with a space.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fits =
            !text.is_empty() && !text.contains(['\n', '\0']) && text.trim_matches(is_space) == text;
        fits.then(|| Self(text.to_owned()))
    }

    /// As it stands in the file.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a peer is: `vpn.example:51820`, `192.0.2.1:51820` or `[2001:db8::1]:51820`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointName {
    host: String,
    port: u16,
}

impl EndpointName {
    /// `None` if `host` is neither a name nor an address, or `port` is 0, where nobody listens.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let is_host = if host.contains(':') {
            let (address, zone) = host.split_once('%').unwrap_or((host, "0"));
            matches!(address.parse(), Ok(IpAddr::V6(_))) && is_zone(zone)
        } else {
            !host.is_empty() && host.len() <= HOST_CHARS_MAX && host.bytes().all(fits)
        };
        (is_host && port != 0).then(|| Self {
            host: host.to_owned(),
            port,
        })
    }

    /// Reads it as `wg` does, for whom the last colon ends an IPv6 address without brackets too.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:")?,
            None => text.rsplit_once(':')?,
        };
        Self::new(host, decimal(port)?)
    }

    /// A name, or an address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The address, if that is what stands there: then no name has to be resolved.
    #[must_use]
    pub fn socket_address(&self) -> Option<SocketAddr> {
        socket_address(&self.to_string())
    }
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// An interface's name or number (Linux's `IFNAMSIZ` without its zero).
fn is_zone(zone: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=15).contains(&zone.len()) && zone.bytes().all(fits)
}

/// What C's `isspace` says in the locale that the tools run in.
pub(super) fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}
