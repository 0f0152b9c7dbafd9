//! Who may send to a client over IPv6: whom it has sent to.
//!
//! IPv4 clients behind shared addresses are shielded by the translation. Their IPv6 addresses are
//! reached by anybody, and who is paid by the byte must not deliver what nobody asked for: what
//! comes from elsewhere is dropped and not billed (RFC 6092). Each client has a table of its own,
//! so that nobody pushes out what another needs; it is made when the session is, and full sets
//! forget whom the client has sent to longest ago.

use std::net::Ipv6Addr;

/// Remote addresses of one client, in sets of [`WAYS`].
const SETS: usize = 32;
const WAYS: usize = 4;
/// How long an answer may take where the protocol knows no connections (RFC 4787, REQ-5).
const IDLE_MS: u64 = 300_000;
/// How long a TCP connection may be idle (RFC 5382, REQ-5).
const IDLE_TCP_MS: u64 = 7_440_000;
const TCP: u8 = 6;
const ICMP6: u8 = 58;
/// Types of ICMPv6 that tell of an error end here (RFC 4443).
const ICMP6_ERROR_MAX: u8 = 4;
const IPV6_BYTES: usize = 40;
const ICMP6_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    remote: u128,
    /// By the monotonic clock; 0 is nobody.
    until_ms: u64,
}

/// Whom a client has sent to.
#[derive(Debug)]
pub struct Solicited {
    sets: [[Entry; WAYS]; SETS],
    /// Nobody outside can tell which addresses share a set.
    seed: u64,
}

impl Solicited {
    /// The client has sent to nobody yet.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        let nobody = Entry {
            remote: 0,
            until_ms: 0,
        };
        Self {
            sets: [[nobody; WAYS]; SETS],
            seed,
        }
    }

    /// The client sends a packet of `protocol` to `remote`.
    pub fn note(&mut self, remote: Ipv6Addr, protocol: u8, now_ms: u64) {
        let idle_ms = if protocol == TCP {
            IDLE_TCP_MS
        } else {
            IDLE_MS
        };
        let (remote, until_ms) = (remote.to_bits(), now_ms + idle_ms);
        let set = self.set(remote);
        let entries = &mut self.sets[set];
        if let Some(known) = entries.iter_mut().find(|entry| entry.remote == remote) {
            known.until_ms = known.until_ms.max(until_ms);
            return;
        }
        if let Some(oldest) = entries.iter_mut().min_by_key(|entry| entry.until_ms) {
            *oldest = Entry { remote, until_ms };
        }
    }

    /// True if the client waits for a packet that `remote` has sent. `packet` is a validated IPv6
    /// packet for the client at `client`.
    #[must_use]
    pub fn admits(&self, packet: &[u8], remote: Ipv6Addr, client: Ipv6Addr, now_ms: u64) -> bool {
        self.knows(remote, now_ms) || self.is_about(packet, client, now_ms)
    }

    fn knows(&self, remote: Ipv6Addr, now_ms: u64) -> bool {
        let remote = remote.to_bits();
        let entries = &self.sets[self.set(remote)];
        let fresh = |entry: &Entry| entry.remote == remote && entry.until_ms > now_ms;
        entries.iter().any(fresh)
    }

    /// True for an error about a packet that the client sent, whoever on the way tells it: path MTU
    /// discovery depends on that.
    fn is_about(&self, packet: &[u8], client: Ipv6Addr, now_ms: u64) -> bool {
        let told = || {
            if packet.get(6) != Some(&ICMP6) || *packet.get(IPV6_BYTES)? > ICMP6_ERROR_MAX {
                return None;
            }
            let about = packet.get(IPV6_BYTES + ICMP6_BYTES..)?;
            let about: &[u8; IPV6_BYTES] = about.first_chunk()?;
            let address = |at: usize| {
                let octets: Option<&[u8; 16]> = about[at..].first_chunk();
                octets.map(|octets| Ipv6Addr::from(*octets))
            };
            (address(8)? == client).then(|| address(24)).flatten()
        };
        told().is_some_and(|remote| self.knows(remote, now_ms))
    }

    fn set(&self, remote: u128) -> usize {
        // Multiplying spreads what differs to the upper bits; the seed keeps the spread a secret.
        let folded = (remote ^ (remote >> 64)) as u64 ^ self.seed;
        let mixed = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) as usize >> 59 & (SETS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Type, IpNumber, Ipv6Header, PacketBuilder, icmpv6};

    const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 2);
    const REMOTE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

    fn number(number: u128) -> Ipv6Addr {
        Ipv6Addr::from_bits(REMOTE.to_bits() + number)
    }

    #[test]
    fn only_who_was_asked_may_answer_and_only_for_a_time() {
        let mut solicited = Solicited::new(7);
        assert!(!solicited.admits(&[], REMOTE, CLIENT, 1));
        solicited.note(REMOTE, 17, 1_000);
        assert!(solicited.admits(&[], REMOTE, CLIENT, 1_000 + IDLE_MS - 1));
        assert!(!solicited.admits(&[], ROUTER, CLIENT, 1_000));
        assert!(!solicited.admits(&[], REMOTE, CLIENT, 1_000 + IDLE_MS));
        solicited.note(REMOTE, TCP, 1_000);
        // A datagram later does not shorten what the connection has.
        solicited.note(REMOTE, 17, 2_000);
        assert!(solicited.admits(&[], REMOTE, CLIENT, 1_000 + IDLE_TCP_MS - 1));
    }

    #[test]
    fn a_full_table_forgets_the_oldest_of_a_set_and_keeps_the_rest() {
        let mut solicited = Solicited::new(7);
        for n in 0..10_000 {
            solicited.note(number(n), 17, n as u64);
        }
        let known = (0..10_000).filter(|n| solicited.knows(number(*n), 10_000));
        assert_eq!(known.count(), SETS * WAYS);
        assert!(solicited.knows(number(9_999), 10_000));
    }

    #[test]
    fn errors_about_the_clients_own_packets_pass_whoever_tells_them() {
        let mut solicited = Solicited::new(7);
        solicited.note(REMOTE, 17, 1);
        let about = |source: Ipv6Addr, destination: Ipv6Addr| {
            let header = Ipv6Header {
                payload_length: 8,
                next_header: IpNumber::UDP,
                hop_limit: 3,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            let mut packet = Vec::new();
            let told = [&header.to_bytes()[..], &[0; 8]].concat();
            PacketBuilder::ipv6(ROUTER.octets(), CLIENT.octets(), 64)
                .icmpv6(Icmpv6Type::PacketTooBig { mtu: 1_300 })
                .write(&mut packet, &told)
                .unwrap();
            packet
        };
        assert!(solicited.admits(&about(CLIENT, REMOTE), ROUTER, CLIENT, 2));
        assert!(!solicited.admits(&about(CLIENT, number(1)), ROUTER, CLIENT, 2));
        assert!(!solicited.admits(&about(number(1), REMOTE), ROUTER, CLIENT, 2));
        for bytes in 0..about(CLIENT, REMOTE).len() {
            let _ = solicited.admits(&about(CLIENT, REMOTE)[..bytes], ROUTER, CLIENT, 2);
        }
        let mut echo = about(CLIENT, REMOTE);
        echo[IPV6_BYTES] = icmpv6::TYPE_ECHO_REQUEST;
        assert!(!solicited.admits(&echo, ROUTER, CLIENT, 2));
    }
}
