//! What a router says of a packet that goes no further: no hops are left, or it is too large for
//! the tunnel (RFC 792 and RFC 1812, 4.3; RFC 4443). What the kernel routes, it says so of.
//!
//! A message is written once for a packet that was validated, and never about what must not be
//! answered: other messages about errors, groups, fragments without a transport header. How often
//! is said by a [`Budget`].

use std::net::IpAddr;

use topnet_checksum::checksum;

use crate::forwarding::is_group;
use crate::packet::{IPV4_BYTES, IPV6_BYTES, Ip, Version, checksum6};

/// The longest message over IPv4 (RFC 1812, 4.3.2.3).
const ERROR_BYTES_MAX: usize = 576;
/// The longest message over IPv6: what every link carries (RFC 4443, 2.4).
const ERROR6_BYTES_MAX: usize = 1280;
/// Room that every message fits into.
pub const BYTES_MAX: usize = ERROR6_BYTES_MAX;
/// Bytes of an ICMP header, of either version.
const ICMP_BYTES: usize = 8;

const ICMP: u8 = 1;
const ICMP6: u8 = 58;
/// Types of ICMP that are no errors: echoes, timestamps, and what routers tell.
const ICMP_QUERIES: [u8; 6] = [0, 8, 9, 10, 13, 14];
/// Types of ICMPv6 that tell of no error begin here.
const ICMP6_INFORMATION: u8 = 128;
const ICMP6_REDIRECT: u8 = 137;
const DONT_FRAGMENT: u8 = 0x40;
/// Extension headers that are looked behind.
const EXTENSIONS_MAX: usize = 4;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Why a packet goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// No hop is left.
    HopsExceeded,
    /// It is larger than what goes through the tunnel.
    TooLarge {
        /// The largest that does.
        mtu: usize,
    },
}

/// Writes a message from `source` to whoever sent `about`, a validated packet without what follows
/// it, and returns its length; `None` if nothing is to be said.
#[must_use]
pub fn write(out: &mut [u8], about: &[u8], source: IpAddr, problem: Problem) -> Option<usize> {
    let ip = Ip::parse(about).ok()?;
    if is_group(ip.destination) || is_group(ip.source) {
        return None;
    }
    match (Version::of(about).ok()?, source, ip.source) {
        (Version::V4, IpAddr::V4(source), IpAddr::V4(destination)) => {
            let whole_or_first = about[6] & 0x1f == 0 && about[7] == 0;
            if !whole_or_first || is_error(ip.protocol, about.get(ip.header_bytes)) {
                return None;
            }
            let (kind, code, word) = match problem {
                Problem::HopsExceeded => (11, 0, 0),
                // Who lets routers cut it up does not ask how large it may be.
                Problem::TooLarge { .. } if about[6] & DONT_FRAGMENT == 0 => return None,
                Problem::TooLarge { mtu } => (3, 4, mtu as u32),
            };
            let quoted = &about[..about.len().min(ERROR_BYTES_MAX - IPV4_BYTES - ICMP_BYTES)];
            let bytes = IPV4_BYTES + ICMP_BYTES + quoted.len();
            let (header, message) = out.get_mut(..bytes)?.split_at_mut(IPV4_BYTES);
            // Of the network's own precedence (RFC 1812, 4.3.2.5), and whole.
            header[..2].copy_from_slice(&[0x45, 0xc0]);
            header[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
            header[4..12].copy_from_slice(&[0, 0, DONT_FRAGMENT, 0, HOPS, ICMP, 0, 0]);
            header[12..16].copy_from_slice(&source.octets());
            header[16..].copy_from_slice(&destination.octets());
            let sum = checksum(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            write_message(message, (kind, code), word, quoted);
            let sum = checksum(message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            Some(bytes)
        }
        (Version::V6, IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (protocol, payload) = behind_extensions(ip.protocol, &about[IPV6_BYTES..])?;
            if is_error6(protocol, payload.first()) {
                return None;
            }
            let (kind, word) = match problem {
                Problem::HopsExceeded => (3, 0),
                Problem::TooLarge { mtu } => (2, mtu as u32),
            };
            let quoted = &about[..about.len().min(ERROR6_BYTES_MAX - IPV6_BYTES - ICMP_BYTES)];
            let bytes = IPV6_BYTES + ICMP_BYTES + quoted.len();
            let packet = out.get_mut(..bytes)?;
            packet[..4].copy_from_slice(&[0x60, 0, 0, 0]);
            packet[4..6].copy_from_slice(&((ICMP_BYTES + quoted.len()) as u16).to_be_bytes());
            packet[6..8].copy_from_slice(&[ICMP6, HOPS]);
            packet[8..24].copy_from_slice(&source.octets());
            packet[24..IPV6_BYTES].copy_from_slice(&destination.octets());
            write_message(&mut packet[IPV6_BYTES..], (kind, 0), word, quoted);
            let sum = checksum6(packet, ICMP6);
            packet[IPV6_BYTES + 2..IPV6_BYTES + 4].copy_from_slice(&sum);
            Some(bytes)
        }
        _ => None,
    }
}

const HOPS: u8 = 64;

fn write_message(message: &mut [u8], (kind, code): (u8, u8), word: u32, quoted: &[u8]) {
    message[..4].copy_from_slice(&[kind, code, 0, 0]);
    message[4..ICMP_BYTES].copy_from_slice(&word.to_be_bytes());
    message[ICMP_BYTES..].copy_from_slice(quoted);
}

/// True for what tells of an error, or might (RFC 1122, 3.2.2).
fn is_error(protocol: u8, kind: Option<&u8>) -> bool {
    protocol == ICMP && kind.is_none_or(|kind| !ICMP_QUERIES.contains(kind))
}

/// The same of IPv6 (RFC 4443, 2.4 e).
fn is_error6(protocol: u8, kind: Option<&u8>) -> bool {
    let is_query = |kind: &u8| *kind >= ICMP6_INFORMATION && *kind != ICMP6_REDIRECT;
    protocol == ICMP6 && !kind.is_some_and(is_query)
}

/// The transport's protocol and what there is of it; `None` if it cannot be told.
fn behind_extensions(mut next: u8, mut bytes: &[u8]) -> Option<(u8, &[u8])> {
    for _ in 0..EXTENSIONS_MAX {
        let header_bytes = match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (usize::from(*bytes.get(1)?) + 1) * 8,
            // A later fragment has no transport header.
            FRAGMENT if *bytes.get(2)? == 0 && *bytes.get(3)? & 0xf8 == 0 => 8,
            FRAGMENT => return None,
            _ => return Some((next, bytes)),
        };
        next = *bytes.first()?;
        bytes = bytes.get(header_bytes..)?;
    }
    None
}

/// How often a session's packets are answered, whoever sent them (RFC 1812, 4.3.2.8; RFC 4443,
/// 2.4 f): as often as the clock gives one back, and a few at once. Each session has its own, so
/// that nobody takes what another needs to find his path.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    /// When all that was said would have been said at the rate.
    due_ms: u64,
}

/// One in so many milliseconds.
const INTERVAL_MS: u64 = 50;
/// At once, after a silence.
const BURST: u64 = 10;

impl Budget {
    /// Takes one, if there is one.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let due_ms = self.due_ms.max(now_ms) + INTERVAL_MS;
        let is_left = due_ms <= now_ms + BURST * INTERVAL_MS;
        if is_left {
            self.due_ms = due_ms;
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, PacketBuilder, SlicedPacket,
    };
    use etherparse::{NetSlice, TransportSlice, icmpv4, icmpv6};
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const FAR: [u8; 4] = [192, 0, 2, 1];
    const NEAR: [u8; 4] = [10, 78, 0, 2];
    const US: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    const TOO_LARGE: Problem = Problem::TooLarge { mtu: 1420 };

    fn six(text: &str) -> [u8; 16] {
        text.parse::<Ipv6Addr>().unwrap().octets()
    }

    fn us6() -> IpAddr {
        "2001:db8::ff".parse().unwrap()
    }

    fn udp(payload_bytes: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4(FAR, NEAR, 1).udp(7, 9);
        builder.write(&mut packet, &vec![5; payload_bytes]).unwrap();
        packet
    }

    fn udp6(payload_bytes: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6(six("2001:db8::1"), six("fd78::2"), 1).udp(7, 9);
        builder.write(&mut packet, &vec![5; payload_bytes]).unwrap();
        packet
    }

    fn changed(mut packet: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
        for (at, value) in changes {
            packet[*at] = *value;
        }
        if packet[0] >> 4 == 4 {
            packet[10..12].fill(0);
            let sum = checksum(&packet[..IPV4_BYTES]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    fn written(about: &[u8], source: IpAddr, problem: Problem) -> Option<Vec<u8>> {
        let mut out = [0xee; BYTES_MAX];
        write(&mut out, about, source, problem).map(|bytes| out[..bytes].to_vec())
    }

    #[test]
    fn a_message_over_ipv4_says_what_and_quotes_whom() {
        for payload_bytes in [0, 1, 100, 519, 520, 521, 1440] {
            let about = udp(payload_bytes);
            for (problem, expected) in [
                (
                    Problem::HopsExceeded,
                    Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit),
                ),
                (
                    TOO_LARGE,
                    Icmpv4Type::DestinationUnreachable(
                        icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1420 },
                    ),
                ),
            ] {
                let message = written(&about, US.into(), problem).unwrap();
                let ip = Ip::parse(&message).unwrap();
                assert_eq!(ip.total_bytes, message.len());
                assert_eq!((ip.source, ip.destination), (US.into(), FAR.into()));
                assert!(message.len() <= 576);
                let read = SlicedPacket::from_ip(&message).unwrap();
                let Some(TransportSlice::Icmpv4(icmp)) = read.transport else {
                    panic!("{read:?}");
                };
                let icmp: Icmpv4Slice<'_> = icmp;
                assert_eq!(icmp.icmp_type(), expected);
                assert_eq!(checksum(&message[IPV4_BYTES..]), 0);
                let quoted = &about[..about.len().min(548)];
                assert_eq!(icmp.payload(), quoted);
            }
        }
    }

    #[test]
    fn a_message_over_ipv6_says_what_and_quotes_whom() {
        for payload_bytes in [0, 1, 100, 1183, 1184, 1185, 1440] {
            let about = udp6(payload_bytes);
            for (problem, expected) in [
                (
                    Problem::HopsExceeded,
                    Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
                ),
                (TOO_LARGE, Icmpv6Type::PacketTooBig { mtu: 1420 }),
            ] {
                let message = written(&about, us6(), problem).unwrap();
                assert!(message.len() <= 1280);
                let read = SlicedPacket::from_ip(&message).unwrap();
                let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) =
                    (read.net, read.transport)
                else {
                    panic!("not ICMPv6");
                };
                let icmp: Icmpv6Slice<'_> = icmp;
                let ends = (six("2001:db8::ff"), six("2001:db8::1"));
                assert_eq!((ip.header().source(), ip.header().destination()), ends);
                assert_eq!(icmp.icmp_type(), expected);
                assert!(icmp.is_checksum_valid(ends.0, ends.1));
                assert_eq!(icmp.payload(), &about[..about.len().min(1232)]);
            }
        }
    }

    #[test]
    fn what_must_not_be_answered_is_not() {
        let icmp = |kind: u8| changed(udp(8), &[(9, ICMP), (20, kind)]);
        let icmp6 = |kind: u8| changed(udp6(8), &[(6, ICMP6), (40, kind)]);
        let behind = |header: [u8; 8], next: u8, kind: u8| {
            let mut packet = udp6(8);
            packet[6] = next;
            packet[40..48].copy_from_slice(&header);
            packet[48] = kind;
            packet
        };
        let cases: [(&str, Vec<u8>, bool); 23] = [
            ("UDP", udp(8), true),
            ("UDP over IPv6", udp6(8), true),
            ("a ping", icmp(8), true),
            ("its answer", icmp(0), true),
            ("an unreachable", icmp(3), false),
            ("a redirect", icmp(5), false),
            ("another's time exceeded", icmp(11), false),
            ("a problem with a parameter", icmp(12), false),
            (
                "ICMP without a type",
                changed(udp(8)[..20].to_vec(), &[(9, ICMP), (3, 20)]),
                false,
            ),
            ("a first fragment", changed(udp(8), &[(6, 0x60)]), true),
            (
                "a later fragment",
                changed(udp(8), &[(6, 0x40), (7, 1)]),
                false,
            ),
            ("to a group", changed(udp(8), &[(16, 224)]), false),
            ("from a group", changed(udp(8), &[(12, 239)]), false),
            (
                "from nobody",
                changed(udp(8), &[(12, 0), (13, 0), (14, 0), (15, 0)]),
                false,
            ),
            ("a ping over IPv6", icmp6(128), true),
            ("a packet too big", icmp6(2), false),
            ("an IPv6 redirect", icmp6(137), false),
            ("to an IPv6 group", changed(udp6(8), &[(24, 0xff)]), false),
            (
                "from a link",
                changed(udp6(8), &[(8, 0xfe), (9, 0x80)]),
                false,
            ),
            (
                "UDP behind options",
                behind([17, 0, 1, 4, 0, 0, 0, 0], 0, 0),
                true,
            ),
            (
                "an error behind options",
                behind([58, 0, 1, 4, 0, 0, 0, 0], 60, 1),
                false,
            ),
            (
                "a first IPv6 fragment",
                behind([17, 0, 0, 1, 0, 0, 0, 9], 44, 0),
                true,
            ),
            (
                "a later IPv6 fragment",
                behind([17, 0, 0, 8, 0, 0, 0, 9], 44, 0),
                false,
            ),
        ];
        for (what, about, answered) in cases {
            let source = if about[0] >> 4 == 4 { US.into() } else { us6() };
            for problem in [Problem::HopsExceeded, TOO_LARGE] {
                let answer = written(&about, source, problem);
                assert_eq!(answer.is_some(), answered, "{what}");
            }
            // From an address of the other version nothing can be said.
            let other = if about[0] >> 4 == 4 { us6() } else { US.into() };
            assert_eq!(
                written(&about, other, Problem::HopsExceeded),
                None,
                "{what}"
            );
        }
        // Whoever allows routers to cut a packet up does not look for the path's MTU.
        let cut_up = changed(udp(8), &[(6, 0)]);
        assert_eq!(written(&cut_up, US.into(), TOO_LARGE), None);
        assert!(written(&cut_up, US.into(), Problem::HopsExceeded).is_some());
    }

    #[test]
    fn a_few_at_once_and_then_as_the_clock_gives_them_back() {
        let mut budget = Budget::default();
        let start = 1_000_000;
        assert_eq!((0..100).filter(|_| budget.take(start)).count(), 10);
        assert_eq!((0..1000).filter(|ms| budget.take(start + ms)).count(), 19);
        assert_eq!((0..100).filter(|_| budget.take(start + 9_000)).count(), 10);
    }

    proptest! {
        #[test]
        fn whatever_is_quoted_nothing_panics_and_no_answer_is_answered(
            mut about in prop::collection::vec(any::<u8>(), 20..1500),
            v6: bool,
            hops: bool,
        ) {
            let bytes = about.len();
            if v6 {
                about.resize(bytes.max(IPV6_BYTES), 0);
                let payload_bytes = (about.len() - IPV6_BYTES) as u16;
                about[0] = 0x60;
                about[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
            } else {
                about[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
                about = changed(about, &[(0, 0x45)]);
            }
            let (source, problem) = (
                if v6 { us6() } else { US.into() },
                if hops { Problem::HopsExceeded } else { TOO_LARGE },
            );
            if let Some(message) = written(&about, source, problem) {
                prop_assert!(Ip::parse(&message).is_ok());
                prop_assert_eq!(written(&message, source, problem), None);
            }
        }
    }
}
