//! The XDP program itself, run by the kernel over frames that never were on a wire: which go to the
//! worker's socket, which to the kernel, and that nothing in them is read beyond their end.
#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use rustix::event::{EventfdFlags, eventfd};
use topnet_dataplane::forwarding::PortIndex;
use topnet_dataplane::io::{AfXdp, Bind, Binding};
use topnet_dataplane::xdp::Program;
use topnet_ebpf_abi::{Address6, Steering, Verdict};
use topnet_netns::{Endpoint, Namespace, Veth, root_tests};

const PORT: u16 = 51_820;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd77, 1, 0, 0, 0, 0, 0, 1);
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

/// The program with a socket for the first queue of its first port, and nothing attached.
struct Steered {
    program: Program,
    _sockets: AfXdp,
    _namespaces: [Namespace; 2],
}

fn steering() -> Steering {
    let as_sent = |text: &str| Address6::from_octets(text.parse::<Ipv6Addr>().unwrap().octets());
    Steering {
        wireguard_port: PORT,
        takes_inner: 1,
        takes_inner6: 1,
        reserved: 0,
        inner_network: u32::from_be_bytes([10, 78, 0, 0]).to_be(),
        inner_mask: u32::from_be_bytes([255, 255, 0, 0]).to_be(),
        gateway_address: GATEWAY.to_bits().to_be(),
        // Not a whole number of words, nor of bytes.
        inner_network6: as_sent("fd78:0:0:50::"),
        inner_mask6: as_sent("ffff:ffff:ffff:fff0::"),
        gateway_address6: Address6::from_octets(GATEWAY6.octets()),
    }
}

impl Steered {
    fn new(test: &str) -> Self {
        let namespace = |end: &str| Namespace::create(&format!("topnet-{test}-{end}")).unwrap();
        let namespaces = ["near", "far"].map(namespace);
        let end = |namespace, address| Endpoint {
            namespace,
            interface: "eth0",
            address,
        };
        Veth::default()
            .connect(
                end(&namespaces[0], "10.77.1.1/24"),
                end(&namespaces[1], "10.77.1.2/24"),
            )
            .unwrap();
        let binding = Binding {
            port: PortIndex(0),
            interface: "eth0".to_owned(),
            queue: 0,
        };
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let bound = namespaces[0].enter(|| AfXdp::new(&[binding], Bind::Copy, wake));
        let (sockets, handles) = bound.unwrap().unwrap();
        let mut program = Program::load(64).unwrap();
        program.add_socket(&handles[0]).unwrap();
        for port in [0, 1] {
            program.steer(port, steering()).unwrap();
        }
        Self {
            program,
            _sockets: sockets,
            _namespaces: namespaces,
        }
    }

    /// What the program decides, by its counters; that its answer fits is checked here.
    fn verdict(&mut self, port: u32, frame: &[u8]) -> Verdict {
        let before = self.program.verdicts().unwrap();
        let redirected = self.program.try_out(port, frame).unwrap();
        let after = self.program.verdicts().unwrap();
        let counted = before.into_iter().zip(after);
        let counted: Vec<_> = counted
            .filter(|((_, before), (_, after))| before != after)
            .map(|((verdict, before), (_, after))| (verdict, after - before))
            .collect();
        let [(verdict, 1)] = counted[..] else {
            panic!("one packet was counted as {counted:?}");
        };
        let ours = matches!(verdict, Verdict::WireGuard | Verdict::Inner);
        assert_eq!(redirected, ours, "{verdict:?}");
        verdict
    }
}

fn udp4(destination: &str, port: u16) -> Vec<u8> {
    let destination: Ipv4Addr = destination.parse().unwrap();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1)
        .ipv4([10, 77, 1, 2], destination.octets(), 64)
        .udp(40_000, port);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"payload").unwrap();
    frame
}

fn udp6(destination: &str, port: u16) -> Vec<u8> {
    let destination: Ipv6Addr = destination.parse().unwrap();
    let source: Ipv6Addr = "fd77:1::2".parse().unwrap();
    let builder = PacketBuilder::ethernet2(MACS.0, MACS.1)
        .ipv6(source.octets(), destination.octets(), 64)
        .udp(40_000, port);
    let mut frame = Vec::new();
    builder.write(&mut frame, b"payload").unwrap();
    frame
}

/// ICMPv6 of this type: neighbours are asked for with 135 and answer with 136.
fn icmp6(destination: &str, kind: u8) -> Vec<u8> {
    let mut frame = udp6(destination, 0);
    frame[ETHERNET + 6] = 58;
    frame[ETHERNET + 40] = kind;
    frame
}

fn changed(mut frame: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for (at, value) in changes {
        frame[*at] = *value;
    }
    frame
}

fn cases() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let to4 = || udp4("10.77.1.1", PORT);
    let to6 = || udp6("fd77:1::1", PORT);
    vec![
        ("WireGuard over IPv4", to4(), Verdict::WireGuard),
        ("WireGuard over IPv6", to6(), Verdict::WireGuard),
        ("another port", udp4("10.77.1.1", 7447), Verdict::Other),
        (
            "another port over IPv6",
            udp6("fd77:1::1", 7447),
            Verdict::Other,
        ),
        ("another address", udp4("10.77.1.9", PORT), Verdict::Other),
        (
            "another IPv6 address",
            udp6("fd77:1::2", PORT),
            Verdict::Other,
        ),
        (
            "one that differs first",
            udp6("fc77:1::1", PORT),
            Verdict::Other,
        ),
        (
            "our own address on the link",
            udp6("fe80::1", PORT),
            Verdict::Other,
        ),
        ("nobody's address", udp6("::", PORT), Verdict::Other),
        ("inner", udp4("10.78.3.4", 9), Verdict::Inner),
        (
            "beside the inner subnet",
            udp4("10.79.0.0", 9),
            Verdict::Other,
        ),
        (
            "the first inner address",
            udp6("fd78:0:0:50::", 9),
            Verdict::Inner,
        ),
        (
            "the last inner address",
            udp6("fd78:0:0:5f:ffff:ffff:ffff:ffff", 9),
            Verdict::Inner,
        ),
        (
            "before the inner subnet",
            udp6("fd78:0:0:4f::1", 9),
            Verdict::Other,
        ),
        (
            "behind the inner subnet",
            udp6("fd78:0:0:60::1", 9),
            Verdict::Other,
        ),
        ("inner ICMPv6", icmp6("fd78:0:0:50::2", 128), Verdict::Inner),
        (
            "an inner fragment",
            changed(udp6("fd78:0:0:50::2", 9), &[(ETHERNET + 6, 44)]),
            Verdict::Inner,
        ),
        // Neighbours ask a group, and look again at the address itself.
        (
            "who has our address?",
            icmp6("ff02::1:ff00:1", 135),
            Verdict::Other,
        ),
        (
            "who has an inner one?",
            icmp6("ff02::1:ff00:2", 135),
            Verdict::Other,
        ),
        (
            "are you still there?",
            icmp6("fd77:1::1", 135),
            Verdict::Other,
        ),
        (
            "a neighbour's answer",
            icmp6("fe80::1", 136),
            Verdict::Other,
        ),
        ("a ping", icmp6("fd77:1::1", 128), Verdict::Other),
        (
            "TCP to WireGuard's port",
            changed(to6(), &[(ETHERNET + 6, 6)]),
            Verdict::Other,
        ),
        (
            "hop-by-hop options first",
            changed(to6(), &[(ETHERNET + 6, 0)]),
            Verdict::Other,
        ),
        (
            "a fragment over IPv4",
            changed(to4(), &[(ETHERNET + 6, 0x20)]),
            Verdict::Fragment,
        ),
        (
            "a fragment over IPv6",
            changed(to6(), &[(ETHERNET + 6, 44)]),
            Verdict::Fragment,
        ),
        (
            "options",
            changed(to4(), &[(ETHERNET, 0x46)]),
            Verdict::Other,
        ),
        (
            "a short IPv4 header",
            changed(to4(), &[(ETHERNET, 0x44)]),
            Verdict::Malformed,
        ),
        (
            "IPv6 that says IPv4",
            changed(to6(), &[(ETHERNET, 0x45)]),
            Verdict::Malformed,
        ),
        (
            "IPv4 that says IPv6",
            changed(to4(), &[(ETHERNET, 0x65)]),
            Verdict::Malformed,
        ),
        (
            "IPv4 in an IPv6 frame",
            changed(to4(), &[(12, 0x86), (13, 0xdd)]),
            Verdict::Malformed,
        ),
        ("ARP", changed(to4(), &[(13, 6)]), Verdict::NotIp),
        (
            "a VLAN's tag",
            changed(to6(), &[(12, 0x81), (13, 0)]),
            Verdict::NotIp,
        ),
    ]
}

#[test]
fn every_frame_goes_where_it_belongs() {
    if !root_tests() {
        return;
    }
    let mut steered = Steered::new("steer");
    for (what, frame, expected) in cases() {
        assert_eq!(steered.verdict(0, &frame), expected, "{what}");
        // Where no socket is, the kernel has it.
        let alone = match expected {
            Verdict::WireGuard | Verdict::Inner => Verdict::NoSocket,
            other => other,
        };
        assert_eq!(
            steered.verdict(1, &frame),
            alone,
            "{what}, without a socket"
        );
    }
}

#[test]
fn headers_that_are_cut_short_are_malformed_and_nothing_else() {
    if !root_tests() {
        return;
    }
    let mut steered = Steered::new("short");
    for (what, frame, expected) in cases() {
        let is_v6 = frame[12..14] == [0x86, 0xdd];
        let ip_bytes = if is_v6 { 40 } else { 20 };
        for bytes in ETHERNET..frame.len() {
            // Only what is WireGuard's by its address is looked at further.
            let looked_at = expected == Verdict::WireGuard
                || (expected == Verdict::Other && what.contains("another port"));
            let needed_bytes = ETHERNET + ip_bytes + if looked_at { 8 } else { 0 };
            let expected = match expected {
                Verdict::NotIp => Verdict::NotIp,
                _ if bytes < needed_bytes => Verdict::Malformed,
                expected => expected,
            };
            let verdict = steered.verdict(0, &frame[..bytes]);
            assert_eq!(verdict, expected, "{what}, the first {bytes} bytes");
        }
    }
}

#[test]
fn a_port_takes_only_what_it_is_for() {
    if !root_tests() {
        return;
    }
    let mut steered = Steered::new("port");
    let uplink = Steering {
        wireguard_port: 0,
        ..steering()
    };
    let clients = Steering {
        takes_inner: 0,
        takes_inner6: 0,
        ..steering()
    };
    // Without IPv6 in the tunnel, and without an address of that version.
    let v4 = Steering {
        takes_inner6: 0,
        inner_network6: Address6::default(),
        inner_mask6: Address6::default(),
        gateway_address6: Address6::default(),
        ..steering()
    };
    for (what, frame, expected) in cases() {
        let is_v6 = frame[12..14] == [0x86, 0xdd];
        for (steering, taken) in [
            (
                uplink,
                !matches!(expected, Verdict::WireGuard | Verdict::Fragment),
            ),
            (clients, expected != Verdict::Inner),
            (
                v4,
                !is_v6 || matches!(expected, Verdict::Other | Verdict::Malformed),
            ),
        ] {
            steered.program.steer(0, steering).unwrap();
            let expected = if taken { expected } else { Verdict::Other };
            assert_eq!(steered.verdict(0, &frame), expected, "{what}: {steering:?}");
        }
    }
}
