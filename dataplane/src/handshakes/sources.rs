//! How many handshakes each source may begin, while there are too many of them.
//!
//! A source is an IPv4 address, or an IPv6 network of 64 bits, which is what one host may have to
//! itself. Only sources that have proved their address are charged: whoever makes addresses up
//! takes no room here, and nothing from whom he names.
//!
//! Of each source that may not begin with everything one number is kept: when it may again. What
//! is past is forgotten, so that an entry stands for an initiation of the last quarter of a second.

use std::collections::HashMap;
use std::net::IpAddr;

/// Initiations in a row.
pub(super) const BURST: u64 = 5;
/// Time between two of them in the long run: 20 a second, as other implementations of WireGuard.
pub(super) const INTERVAL_MS: u64 = 50;
/// Sources that are known at once. Each of them costs a Curve25519 operation in a quarter of a
/// second, of which a CPU does about 5,000 in that time.
const SOURCES_MAX: usize = 8_192;

/// The upper bits of an address that all addresses of its owner share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// What sources have left.
pub(super) struct Sources {
    /// When a source may begin with everything again.
    whole_at_ms: HashMap<Source, u64>,
    swept_until_ms: u64,
}

impl Sources {
    pub(super) fn new() -> Self {
        Self {
            // Half of it stays empty, so that it is never made larger.
            whole_at_ms: HashMap::with_capacity(2 * SOURCES_MAX),
            swept_until_ms: 0,
        }
    }

    /// Charges the source of an address that was proved for one initiation; false if it has
    /// nothing left.
    pub(super) fn admit(&mut self, address: IpAddr, now_ms: u64) -> bool {
        if now_ms >= self.swept_until_ms {
            self.whole_at_ms.retain(|_, whole_at| *whole_at > now_ms);
            self.swept_until_ms = now_ms + BURST * INTERVAL_MS;
        }
        let source = Source::of(address);
        let known = self.whole_at_ms.get(&source).copied();
        if known.is_none() && self.whole_at_ms.len() == SOURCES_MAX {
            return false;
        }
        let whole_at = known.unwrap_or_default().max(now_ms) + INTERVAL_MS;
        if whole_at > now_ms + BURST * INTERVAL_MS {
            return false;
        }
        self.whole_at_ms.insert(source, whole_at);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    fn admitted(sources: &mut Sources, address: &str, now_ms: u64, tries: usize) -> usize {
        let address = address.parse().unwrap();
        (0..tries)
            .filter(|_| sources.admit(address, now_ms))
            .count()
    }

    #[test]
    fn a_source_has_a_burst_and_then_a_rate_and_others_have_their_own() {
        let mut sources = Sources::new();
        assert_eq!(admitted(&mut sources, "192.0.2.1", 1_000, 100), 5);
        assert_eq!(admitted(&mut sources, "::ffff:192.0.2.1", 1_000, 1), 0);
        assert_eq!(admitted(&mut sources, "192.0.2.2", 1_000, 100), 5);
        assert_eq!(admitted(&mut sources, "192.0.2.1", 1_049, 100), 0);
        assert_eq!(admitted(&mut sources, "192.0.2.1", 1_050, 100), 1);
        let second: usize = (0..1_000)
            .map(|ms| admitted(&mut sources, "192.0.2.1", 1_051 + ms, 3))
            .sum();
        assert_eq!(second, 20);
        assert_eq!(admitted(&mut sources, "192.0.2.1", 9_000, 100), 5);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let mut sources = Sources::new();
        assert_eq!(admitted(&mut sources, "2001:db8::1", 0, 3), 3);
        assert_eq!(admitted(&mut sources, "2001:db8::ffff:1", 0, 9), 2);
        assert_eq!(admitted(&mut sources, "2001:db8:0:1::1", 0, 9), 5);
    }

    #[test]
    fn room_is_bounded_and_comes_back() {
        let mut sources = Sources::new();
        let capacity = sources.whole_at_ms.capacity();
        let nth = |n: usize| IpAddr::from(Ipv6Addr::from((n as u128) << 64));
        for round in 0..20 {
            let now_ms = round * BURST * INTERVAL_MS;
            let admitted = (0..SOURCES_MAX + 100)
                .filter(|n| sources.admit(nth(*n + round as usize * 50_000), now_ms))
                .count();
            assert_eq!(admitted, SOURCES_MAX, "round {round}");
        }
        // Places of what was forgotten are not counted until they are used again.
        assert!(sources.whole_at_ms.capacity() <= capacity);
    }
}
