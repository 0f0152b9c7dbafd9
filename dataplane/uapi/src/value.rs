//! Values that the protocol and `wg0.conf` have in common, and how a wrong one is shown.

use std::net::{SocketAddr, SocketAddrV6};
use std::str::FromStr;

/// Characters of somebody else's text that go into an error.
const SHOWN_CHARS_MAX: usize = 64;
/// Bytes of a key's name, with some room for a mistake in it.
const NAME_BYTES_MAX: usize = 36;

/// A number in decimal digits alone. Rust's own reading would take a `+` too, which neither
/// `wg` nor wireguard-go does.
pub(crate) fn decimal<N: FromStr>(text: &str) -> Option<N> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// `address:port` or `[address]:port`. IPv4 written as IPv6 becomes IPv4, which is what a packet
/// to it would be.
pub(crate) fn socket_address(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    let SocketAddr::V6(v6) = address else {
        return Some(address);
    };
    match v6.ip().to_ipv4_mapped() {
        Some(v4) => Some(SocketAddr::new(v4.into(), v6.port())),
        None => Some(address),
    }
}

/// As [`socket_address`], but forgives a zone by name (`[fe80::1%eth0]:9`), which wireguard-go
/// answers with: which interface that is, only its own machine could tell, so it is left out.
pub(crate) fn socket_address_of_any_zone(text: &str) -> Option<SocketAddr> {
    socket_address(text).or_else(|| {
        let (address, rest) = text.strip_prefix('[')?.split_once('%')?;
        let (_zone, port) = rest.split_once("]:")?;
        let address = SocketAddrV6::new(address.parse().ok()?, decimal(port)?, 0, 0);
        Some(address.into())
    })
}

/// Somebody else's text for an error: shortened, and nothing in it that a terminal would obey.
pub(crate) fn shown(bytes: &[u8]) -> String {
    // Four bytes are a character's most; more would be cut off below in any case.
    let start = &bytes[..bytes.len().min(4 * SHOWN_CHARS_MAX)];
    let text = String::from_utf8_lossy(start);
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().count() > SHOWN_CHARS_MAX || start.len() < bytes.len() {
        shown.push('…');
    }
    shown
}

/// An unknown key for an error. One that is longer than any key's name may be a secret that was
/// pasted into the wrong place, and is only counted.
pub(crate) fn shown_key(key: &str) -> String {
    if key.len() > NAME_BYTES_MAX {
        return format!("{} bytes", key.len());
    }
    shown(key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_digits_and_nothing_else() {
        let cases = [
            ("0", Some(0)),
            ("51820", Some(51820)),
            ("007", Some(7)),
            ("65536", None),
            ("+7", None),
            ("-7", None),
            ("", None),
            (" 7", None),
            ("0x7", None),
        ];
        for (text, number) in cases {
            assert_eq!(decimal::<u16>(text), number, "{text}");
        }
    }

    #[test]
    fn endpoints_have_an_address_and_a_port() {
        let cases = [
            ("192.0.2.1:51820", Some("192.0.2.1:51820")),
            ("[2001:db8::1]:0", Some("[2001:db8::1]:0")),
            ("[::ffff:192.0.2.1]:9", Some("192.0.2.1:9")),
            ("[fe80::1%5]:9", Some("[fe80::1%5]:9")),
            ("[fe80::1%eth0]:9", None),
            ("2001:db8::1:9", None),
            ("192.0.2.1", None),
            ("192.0.2.1:65536", None),
            ("vpn.example:9", None),
            ("", None),
        ];
        for (text, address) in cases {
            let read = socket_address(text).map(|address| address.to_string());
            assert_eq!(read.as_deref(), address, "{text}");
        }
        let named = socket_address_of_any_zone("[fe80::1%eth0]:9").unwrap();
        assert_eq!(named.to_string(), "[fe80::1]:9");
    }

    #[test]
    fn what_is_shown_is_short_and_harmless() {
        assert_eq!(shown(b"a\x1b[2J"), "a\\u{1b}[2J");
        assert_eq!(shown(&[0xff]), "\u{fffd}");
        assert_eq!(shown(&[b'x'; 1000]).chars().count(), SHOWN_CHARS_MAX + 1);
        assert_eq!(shown_key("listen_prot"), "listen_prot");
        assert_eq!(shown_key(&"x".repeat(43)), "43 bytes");
    }
}
