//! Reads `wg0.conf`: `wg`'s lines as `wg` reads them, `wg-quick`'s as it does.
//!
//! The two differ. `wg` leaves all white space out of a line, `wg-quick` only what is around
//! a value; both end a line at a `#`, but for `wg-quick`'s commands, which keep it. Of a key that
//! stands twice the last value holds, where it is not a list.

use std::{net::IpAddr, str};

use zeroize::Zeroizing;

use super::text::is_space;
use super::{CommandLine, Conf, ConfInterface, ConfPeer, EndpointName, Word};
use crate::value::{decimal, shown, shown_key};
use crate::{InterfaceAddress, IpNetwork, PresharedKey, PrivateKey, PublicKey};

/// Bytes of a file at most: room for tens of thousands of peers.
pub const CONF_BYTES_MAX: usize = 16 << 20;

/// Why a file is not read, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line_number}: {problem}")]
pub struct ConfError {
    /// Counted from 1.
    pub line_number: usize,
    /// What is wrong there. No secret is in it.
    pub problem: ConfProblem,
}

/// What can be wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfProblem {
    /// Too large.
    #[error("the file has more than {CONF_BYTES_MAX} bytes: is it the right one?")]
    TooLong,
    /// Not text.
    #[error("this is not UTF-8: save the file as plain text")]
    NotText,
    /// Neither of the two sections.
    #[error("`{0}` is no section: there are [Interface] and [Peer]")]
    UnknownSection(String),
    /// Something before the first section.
    #[error("this stands before any section: begin with [Interface]")]
    NoSection,
    /// Not `Key = value`. What it is may be a secret.
    #[error("this is no `Key = value`: write it so, or make it a comment with a # before it")]
    NotKeyValue,
    /// A key that the section does not have.
    #[error("`{key}` is no key of [{section}]: {mend}")]
    UnknownKey {
        /// As it stands there.
        key: String,
        /// Where it stands.
        section: &'static str,
        /// What to do.
        mend: &'static str,
    },
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
    #[error("{0} is not a key: write the 44 characters that `wg` prints, with the = at the end")]
    NotAKey(&'static str),
    /// A key without a value.
    #[error("{0} has no value: write one, or leave the line out")]
    Empty(&'static str),
    /// A section that does not say whose it is.
    #[error("this [Peer] has no PublicKey: add one to it")]
    NoPublicKey,
}

const INTERFACE_KEYS: &[&str] = &[
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];
const PEER_KEYS: &[&str] = &[
    "PublicKey",
    "PresharedKey",
    "AllowedIPs",
    "Endpoint",
    "PersistentKeepalive",
];

impl Conf {
    /// Reads a file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfError> {
        let at = |line_number, problem| ConfError {
            line_number,
            problem,
        };
        if bytes.len() > CONF_BYTES_MAX {
            return Err(at(1, ConfProblem::TooLong));
        }
        let mut reader = Reader::default();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line_number = index + 1;
            reader
                .handle_line(line, line_number)
                .map_err(|problem| at(line_number, problem))?;
        }
        let last = reader.section;
        reader
            .finish_section()
            .map_err(|problem| at(last.line_number(), problem))?;
        Ok(reader.conf)
    }
}

/// Where the reader is. A section is named by the line that begins it.
#[derive(Clone, Copy, Default)]
enum Section {
    #[default]
    None,
    Interface,
    Peer {
        line_number: usize,
    },
}

impl Section {
    const fn line_number(self) -> usize {
        match self {
            Self::None | Self::Interface => 1,
            Self::Peer { line_number } => line_number,
        }
    }
}

#[derive(Default)]
struct Reader {
    conf: Conf,
    section: Section,
    /// The `[Peer]` that is being read.
    peer: PartialPeer,
}

/// A section whose public key may still come.
#[derive(Default)]
struct PartialPeer {
    public_key: Option<PublicKey>,
    preshared_key: Option<PresharedKey>,
    allowed_ips: Vec<IpNetwork>,
    endpoint: Option<EndpointName>,
    persistent_keepalive_s: Option<u16>,
}

impl Reader {
    fn handle_line(&mut self, line: &[u8], line_number: usize) -> Result<(), ConfProblem> {
        let text = str::from_utf8(line).map_err(|_| ConfProblem::NotText)?;
        let code = text.split('#').next().unwrap_or_default();
        let compact = compact(code);
        if compact.is_empty() {
            return Ok(());
        }
        if compact.starts_with('[') {
            return self.begin_section(&compact, line_number);
        }
        let (key, _) = compact.split_once('=').ok_or(ConfProblem::NotKeyValue)?;
        let entry = Entry {
            value: code.split_once('=').map_or("", |(_, value)| value),
            // A command may have a `#` in it.
            whole_value: text.split_once('=').map_or("", |(_, value)| value),
        };
        match self.section {
            Section::None => Err(ConfProblem::NoSection),
            Section::Interface => {
                let key = known(key, "Interface", INTERFACE_KEYS, PEER_KEYS)?;
                interface_line(&mut self.conf.interface, key, entry)
            }
            Section::Peer { .. } => {
                let key = known(key, "Peer", PEER_KEYS, INTERFACE_KEYS)?;
                peer_line(&mut self.peer, key, entry)
            }
        }
    }

    fn begin_section(&mut self, name: &str, line_number: usize) -> Result<(), ConfProblem> {
        let next = if name.eq_ignore_ascii_case("[Interface]") {
            Section::Interface
        } else if name.eq_ignore_ascii_case("[Peer]") {
            Section::Peer { line_number }
        } else {
            return Err(ConfProblem::UnknownSection(shown(name.as_bytes())));
        };
        self.finish_section()?;
        self.section = next;
        Ok(())
    }

    fn finish_section(&mut self) -> Result<(), ConfProblem> {
        if let Section::Peer { .. } = self.section {
            let peer = std::mem::take(&mut self.peer);
            self.conf.peers.push(ConfPeer {
                public_key: peer.public_key.ok_or(ConfProblem::NoPublicKey)?,
                preshared_key: peer.preshared_key,
                allowed_ips: peer.allowed_ips,
                endpoint: peer.endpoint,
                persistent_keepalive_s: peer.persistent_keepalive_s,
            });
        }
        Ok(())
    }
}

/// What stands after the first `=`.
#[derive(Clone, Copy)]
struct Entry<'l> {
    /// Up to a comment.
    value: &'l str,
    /// To the line's end.
    whole_value: &'l str,
}

/// The key as it is written properly, if the section has it.
fn known(
    key: &str,
    section: &'static str,
    here: &[&'static str],
    elsewhere: &[&'static str],
) -> Result<&'static str, ConfProblem> {
    let find = |keys: &[&'static str]| {
        let mut keys = keys.iter().copied();
        keys.find(|known| known.eq_ignore_ascii_case(key))
    };
    find(here).ok_or_else(|| ConfProblem::UnknownKey {
        key: shown_key(key),
        section,
        mend: match find(elsewhere) {
            Some(_) => "move the line to the other section",
            None => "correct it, or take the line out",
        },
    })
}

fn interface_line(
    interface: &mut ConfInterface,
    key: &'static str,
    entry: Entry<'_>,
) -> Result<(), ConfProblem> {
    let value = compact(entry.value);
    match key {
        "Address" => interface.addresses.extend(addresses(key, &value)?),
        "DNS" => dns(interface, key, entry.value)?,
        "PreUp" => interface.pre_up.push(command(key, entry)?),
        "PostUp" => interface.post_up.push(command(key, entry)?),
        "PreDown" => interface.pre_down.push(command(key, entry)?),
        "PostDown" => interface.post_down.push(command(key, entry)?),
        _ if value.is_empty() => return Err(ConfProblem::Empty(key)),
        "PrivateKey" => {
            let private_key = PrivateKey::from_base64(&value);
            interface.private_key = private_key.ok_or(ConfProblem::NotAKey(key))?;
        }
        "ListenPort" => {
            let port = decimal(&value).ok_or_else(|| wrong(key, &value, "0 to 65535"))?;
            interface.listen_port = Some(port);
        }
        "FwMark" => {
            let expected = "off, 0 to 4294967295, or 0x0 to 0xffffffff";
            let mark = fwmark(&value).ok_or_else(|| wrong(key, &value, expected))?;
            interface.fwmark = Some(mark);
        }
        "MTU" => {
            let mtu = decimal(&value).ok_or_else(|| wrong(key, &value, "bytes, as 1420"))?;
            interface.mtu = Some(mtu);
        }
        "Table" => {
            let table = Word::new(entry.value.trim_matches(is_space));
            let expected = "off, auto, or one table";
            interface.table = Some(table.ok_or_else(|| wrong(key, entry.value, expected))?);
        }
        "SaveConfig" if value.eq_ignore_ascii_case("true") => interface.save_config = true,
        "SaveConfig" if value.eq_ignore_ascii_case("false") => interface.save_config = false,
        _ => return Err(wrong(key, &value, "true or false")),
    }
    Ok(())
}

fn peer_line(
    peer: &mut PartialPeer,
    key: &'static str,
    entry: Entry<'_>,
) -> Result<(), ConfProblem> {
    let value = compact(entry.value);
    match key {
        _ if value.is_empty() => return Err(ConfProblem::Empty(key)),
        "PublicKey" => {
            let public_key = PublicKey::from_base64(&value);
            peer.public_key = Some(public_key.ok_or(ConfProblem::NotAKey(key))?);
        }
        "PresharedKey" => {
            let preshared_key = PresharedKey::from_base64(&value);
            peer.preshared_key = preshared_key.ok_or(ConfProblem::NotAKey(key))?;
        }
        "AllowedIPs" => {
            let networks = addresses(key, &value)?.into_iter().map(IpNetwork::from);
            peer.allowed_ips.extend(networks);
        }
        "Endpoint" => {
            let expected = "vpn.example:51820, 192.0.2.1:51820 or [2001:db8::1]:51820";
            let endpoint = EndpointName::parse(&value);
            peer.endpoint = Some(endpoint.ok_or_else(|| wrong(key, &value, expected))?);
        }
        _ => {
            let seconds = if value.eq_ignore_ascii_case("off") {
                Some(0)
            } else {
                decimal(&value)
            };
            let expected = "off, or seconds from 1 to 65535";
            let seconds = seconds.ok_or_else(|| wrong(key, &value, expected))?;
            peer.persistent_keepalive_s = Some(seconds);
        }
    }
    Ok(())
}

/// Addresses with or without their prefix's length, between commas.
fn addresses(key: &'static str, value: &str) -> Result<Vec<InterfaceAddress>, ConfProblem> {
    if value.is_empty() {
        return Err(ConfProblem::Empty(key));
    }
    let expected = "10.7.0.2/32 or fd00:7::2/128, more of them after a comma";
    value
        .split(',')
        .map(|item| item.parse().map_err(|_| wrong(key, item, expected)))
        .collect()
}

/// Name servers and domains, between commas or spaces. What looks like an address for `wg-quick`
/// is one.
fn dns(interface: &mut ConfInterface, key: &'static str, value: &str) -> Result<(), ConfProblem> {
    let items = value.split(|character| character == ',' || is_space(character));
    let mut items = items.filter(|item| !item.is_empty()).peekable();
    if items.peek().is_none() {
        return Err(ConfProblem::Empty(key));
    }
    for item in items {
        let expected = "10.7.0.1, fd00:7::1 or a domain, more of them after a comma";
        let digits_and_dots = item
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        if digits_and_dots || item.contains(':') {
            let server: IpAddr = item.parse().map_err(|_| wrong(key, item, expected))?;
            interface.dns.push(server);
        } else {
            let domain = Word::new(item).ok_or_else(|| wrong(key, item, expected))?;
            interface.dns_search.push(domain);
        }
    }
    Ok(())
}

fn command(key: &'static str, entry: Entry<'_>) -> Result<CommandLine, ConfProblem> {
    let value = entry.whole_value.trim_matches(is_space);
    if value.is_empty() {
        return Err(ConfProblem::Empty(key));
    }
    CommandLine::new(value).ok_or_else(|| wrong(key, value, "a command for the shell"))
}

fn fwmark(value: &str) -> Option<u32> {
    if value.eq_ignore_ascii_case("off") {
        return Some(0);
    }
    match value.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None => decimal(value),
    }
}

/// `text` without white space. It may be a key.
fn compact(text: &str) -> Zeroizing<String> {
    let mut compact = Zeroizing::new(String::with_capacity(text.len()));
    compact.extend(text.chars().filter(|character| !is_space(*character)));
    compact
}

fn wrong(key: &'static str, value: &str, expected: &'static str) -> ConfProblem {
    ConfProblem::Value {
        key,
        value: shown(value.as_bytes()),
        expected,
    }
}
