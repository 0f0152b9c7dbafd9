//! Packets through the NAT in both directions, in any order and at any time.

use std::{
    collections::{BTreeMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use arbitrary::{Arbitrary, Unstructured};
use topnet_nat::{
    BlockEventKind, Config, Filtering, Limits, Nat44, Outward, Protocol, RestoreError, Subscriber,
    Whose,
};

use crate::headers::{
    ICMP, IPV4_BYTES, TCP, UDP, address, header_bytes, ipv4, is_zero, mend, mend_lengths, put_word,
    sum, sums, word,
};

const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
/// Three blocks of an address.
const BLOCK_PORTS: u16 = 21_504;
/// So few that every table can be full.
const LIMITS: Limits = Limits {
    subscribers_max: 3,
    blocks_per_subscriber_max: 2,
    mappings_max: 8,
    mappings_per_subscriber_max: 5,
    flows_max: 12,
    flows_per_subscriber_max: 8,
    flows_per_mapping_max: 4,
    fragments_max: 4,
    fragments_per_subscriber_max: 2,
};
const SUBSCRIBERS: u32 = 5;

const ICMP_BYTES: usize = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ICMP_ERRORS: [u8; 3] = [3, 11, 12];
const SYN: u8 = 2;
const DNS: u16 = 53;

/// What the NAT is set to.
#[derive(Arbitrary, Debug)]
struct Manner {
    filtering: u8,
    hairpinning: bool,
    inbound_refresh: bool,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// What a subscriber sends; to an address of the pool if the remote's highest bit is set.
    Send {
        subscriber: u8,
        protocol: u8,
        inner: u8,
        remote: u8,
        flags: u8,
    },
    /// An answer to the packet that left last.
    Answer {
        flags: u8,
        other_port: u8,
    },
    /// An ICMP error about what left or arrived last.
    Error {
        out: bool,
        subscriber: u8,
        kind: u8,
        embedded_bytes: u8,
    },
    /// The packet that was tried last, as a fragment of a longer one.
    Fragment {
        out: bool,
        subscriber: u8,
        identification: u8,
        flags_and_offset: u16,
    },
    /// The packet that was tried last with another byte.
    Change {
        out: bool,
        subscriber: u8,
        at: u8,
        byte: u8,
        checksums_right: bool,
    },
    /// Anything.
    Raw {
        out: bool,
        subscriber: u8,
        bytes: u8,
    },
    Wait {
        milliseconds: u32,
    },
    /// A clock that is elsewhere, earlier perhaps.
    Clock {
        milliseconds: u64,
    },
    Sweep {
        steps: u8,
    },
    Remove {
        subscriber: u8,
    },
    TakeEvents,
    /// Another process goes on from the snapshot, with fewer flows at most unless that is 0.
    Restart {
        flows_max: u8,
    },
}

pub(crate) fn nat(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(manner) = input.arbitrary::<Manner>() else {
        return;
    };
    let mut world = World::new(&manner);
    while !input.is_empty()
        && let Ok(step) = input.arbitrary::<Step>()
    {
        match step {
            Step::Raw {
                out,
                subscriber,
                bytes,
            } => {
                let bytes = usize::from(bytes).min(input.len());
                let packet = input.bytes(bytes).unwrap().to_vec();
                world.pass(out, subscriber, packet);
            }
            step => world.handle(&step),
        }
        world.check_tables();
    }
    world.end();
}

struct World {
    nat: Nat44,
    config: Config,
    now_ms: u64,
    /// Packets: the last one that a side got, and the last one that somebody tried to send.
    left: Vec<u8>,
    arrived: Vec<u8>,
    tried: Vec<u8>,
    /// Whose each block is, as far as the log says.
    logged: BTreeMap<(Ipv4Addr, u16), Subscriber>,
}

impl World {
    fn new(manner: &Manner) -> Self {
        let mut config = Config::new(POOL.to_vec());
        config.block_ports = BLOCK_PORTS;
        config.limits = LIMITS;
        config.hairpinning = manner.hairpinning;
        config.inbound_refresh = manner.inbound_refresh;
        config.filtering = match manner.filtering % 3 {
            0 => Filtering::EndpointIndependent,
            1 => Filtering::AddressDependent,
            _ => Filtering::AddressAndPortDependent,
        };
        Self {
            nat: Nat44::new(config.clone(), [7; 32]).unwrap(),
            config,
            now_ms: 0,
            left: Vec::new(),
            arrived: Vec::new(),
            tried: Vec::new(),
            logged: BTreeMap::new(),
        }
    }

    fn handle(&mut self, step: &Step) {
        match *step {
            Step::Send {
                subscriber,
                protocol,
                inner,
                remote,
                flags,
            } => {
                let packet = self.outgoing(protocol, inner, remote, flags);
                self.pass(true, subscriber, packet);
            }
            Step::Answer { flags, other_port } => {
                if let Some(packet) = answer(&self.left, flags, other_port) {
                    self.pass(false, 0, packet);
                }
            }
            Step::Error {
                out,
                subscriber,
                kind,
                embedded_bytes,
            } => {
                let about = if out { &self.arrived } else { &self.left };
                if let Some(packet) = error(about, kind, embedded_bytes) {
                    self.pass(out, subscriber, packet);
                }
            }
            Step::Fragment {
                out,
                subscriber,
                identification,
                flags_and_offset,
            } => {
                let mut packet = self.tried.clone();
                if packet.len() >= IPV4_BYTES {
                    put_word(&mut packet, 4, u16::from(identification));
                    put_word(&mut packet, 6, flags_and_offset);
                    mend(&mut packet);
                }
                self.pass(out, subscriber, packet);
            }
            Step::Change {
                out,
                subscriber,
                at,
                byte,
                checksums_right,
            } => {
                let mut packet = self.tried.clone();
                let bytes = packet.len().max(1);
                if let Some(place) = packet.get_mut(usize::from(at) % bytes) {
                    *place = byte;
                }
                if checksums_right {
                    mend(&mut packet);
                }
                self.pass(out, subscriber, packet);
            }
            // These have their bytes from the input.
            Step::Raw { .. } => {}
            Step::Wait { milliseconds } => {
                self.now_ms = self.now_ms.saturating_add(u64::from(milliseconds));
            }
            Step::Clock { milliseconds } => self.now_ms = milliseconds,
            Step::Sweep { steps } => self.nat.sweep(self.now_ms, usize::from(steps)),
            Step::Remove { subscriber } => self.nat.remove(self.now_ms, whose(subscriber)),
            Step::TakeEvents => self.take_events(),
            Step::Restart { flows_max } => self.restart(flows_max),
        }
    }

    /// What a subscriber sends, from few ends to few ends.
    fn outgoing(&self, protocol: u8, inner: u8, remote: u8, flags: u8) -> Vec<u8> {
        let source = SocketAddrV4::new(
            Ipv4Addr::new(10, 0, 0, inner % 4),
            5000 + u16::from(inner / 4),
        );
        let port = match remote / 4 % 32 {
            0 => DNS,
            number => 440 + u16::from(number),
        };
        let outside = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, remote % 4), port);
        // Whoever is called by way of the pool is whose packet left last.
        let pooled = ends(&self.left).map(|(external, _)| external);
        let hairpin = remote >= 0x80;
        let destination = pooled.filter(|_| hairpin).unwrap_or(outside);
        let protocol = [UDP, TCP, ICMP][usize::from(protocol % 3)];
        packet(protocol, source, destination, flags, ECHO_REQUEST)
    }

    fn pass(&mut self, out: bool, subscriber: u8, packet: Vec<u8>) {
        if out {
            self.pass_out(whose(subscriber), &packet);
        } else {
            self.pass_in(&packet);
        }
        self.tried = packet;
    }

    fn pass_out(&mut self, subscriber: Subscriber, packet: &[u8]) {
        let mut after = packet.to_vec();
        self.nat.look_ahead_out([(subscriber, packet)]);
        let passed = self.nat.translate_out(self.now_ms, subscriber, &mut after);
        let Ok(outward) = passed else {
            assert_eq!(after, packet, "refused and changed");
            return;
        };
        check_translation(packet, &after, 0);
        assert!(POOL.contains(&address(&after, 12)));
        let returns = POOL.contains(&address(&after, 16));
        assert_eq!(outward == Outward::Returns, returns);
        if returns {
            self.pass_in(&after);
        }
        self.left = after;
    }

    fn pass_in(&mut self, packet: &[u8]) {
        let mut after = packet.to_vec();
        self.nat.look_ahead_in([packet]);
        let whose = Whose::of(packet);
        let Ok(subscriber) = self.nat.translate_in(self.now_ms, &mut after) else {
            assert_eq!(after, packet, "refused and changed");
            return;
        };
        assert!(whose.is_ok(), "taken, and nobody's");
        check_translation(packet, &after, 1);
        assert!(POOL.contains(&address(packet, 16)));
        if let Some((_, inner)) = ends(&after) {
            let mut mappings = self.nat.mappings(subscriber);
            assert!(mappings.any(|mapping| mapping.inner == inner
                && mapping.external.ip() == &address(packet, 16)
                && number(mapping.protocol) == after[9]));
        }
        self.arrived = after;
    }

    fn take_events(&mut self) {
        while let Some(event) = self.nat.take_event() {
            let block = (event.external, event.first_port);
            assert_eq!(event.port_count, BLOCK_PORTS);
            let (before, expected) = match event.kind {
                BlockEventKind::Allocated => (self.logged.insert(block, event.subscriber), None),
                BlockEventKind::Released => (self.logged.remove(&block), Some(event.subscriber)),
            };
            assert_eq!(before, expected, "{event:?}");
        }
        let lent = self.nat.counters().blocks_lent;
        assert_eq!(self.logged.len(), lent as usize);
    }

    fn restart(&mut self, flows_max: u8) {
        // Who left has nothing in a snapshot but blocks that rest.
        while self.nat.counters().subscribers_leaving > 0 {
            self.nat.sweep(self.now_ms, 1);
        }
        self.take_events();
        let mut config = self.config.clone();
        if flows_max != 0 {
            config.limits.flows_max = config.limits.flows_max.min(u32::from(flows_max));
        }
        let snapshot = self.nat.snapshot();
        match Nat44::restore(config.clone(), [8; 32], self.now_ms, &snapshot) {
            Ok(nat) => {
                let state = |nat: &Nat44| {
                    let counters = nat.counters();
                    let all = (0..SUBSCRIBERS).map(|id| nat.mappings(Subscriber(id)).collect());
                    let all: Vec<HashSet<_>> = all.collect();
                    (counters.flows, counters.blocks_lent, all)
                };
                assert_eq!(state(&nat), state(&self.nat));
                (self.nat, self.config) = (nat, config);
            }
            Err(error) => assert!(flows_max != 0 && matches!(error, RestoreError::TooMuch(_))),
        }
    }

    /// The tables agree with each other and with their limits.
    fn check_tables(&self) {
        let counters = self.nat.counters();
        let limits = &self.config.limits;
        assert!(counters.subscribers <= limits.subscribers_max);
        assert!(counters.mappings <= limits.mappings_max);
        assert!(counters.flows <= limits.flows_max);
        assert!(counters.fragments <= limits.fragments_max);
        assert!(counters.blocks_lent + counters.blocks_resting <= counters.blocks);
        let (mut subscribers, mut blocks, mut mappings, mut flows) = (0, 0, 0, 0);
        let mut externals = HashSet::new();
        for status in self.nat.subscribers() {
            subscribers += 1;
            blocks += status.blocks;
            mappings += status.mappings;
            flows += status.flows;
            assert!((1..=u32::from(limits.blocks_per_subscriber_max)).contains(&status.blocks));
            let mut flows_of_mappings = 0;
            for mapping in self.nat.mappings(status.subscriber) {
                assert_eq!(*mapping.external.ip(), status.external);
                assert!(externals.insert((mapping.protocol, mapping.external)));
                assert!((1..=limits.flows_per_mapping_max).contains(&mapping.flows));
                flows_of_mappings += mapping.flows;
            }
            assert_eq!(status.flows, flows_of_mappings);
        }
        assert_eq!(subscribers, counters.subscribers);
        assert_eq!(externals.len(), mappings as usize);
        let (seen, all) = (
            (blocks, mappings, flows),
            (counters.blocks_lent, counters.mappings, counters.flows),
        );
        if counters.subscribers_leaving == 0 {
            assert_eq!(seen, all);
        } else {
            assert!(seen.0 <= all.0 && seen.1 <= all.1 && seen.2 <= all.2);
        }
    }

    /// Nothing is left of anybody who is gone.
    fn end(mut self) {
        self.take_events();
        for subscriber in 0..SUBSCRIBERS {
            self.nat.remove(self.now_ms, Subscriber(subscriber));
        }
        self.check_tables();
        self.nat.sweep(self.now_ms, usize::MAX);
        self.check_tables();
        self.take_events();
        assert!(self.logged.is_empty());
        assert_eq!(self.nat.counters().flows, 0);
    }
}

/// Only what has to be is different, and checksums are right if they were. The end that was
/// translated is the source, 0, or the destination, 1.
fn check_translation(before: &[u8], after: &[u8], end: usize) {
    assert_eq!(before.len(), after.len());
    assert_eq!(sums(before), sums(after), "{before:02x?} → {after:02x?}");
    let transport = header_bytes(before);
    let mut allowed = vec![10..12, 12 + 4 * end..16 + 4 * end];
    let later = word(before, 6) & 0x1fff != 0;
    match before[9] {
        _ if later => {}
        ICMP if ICMP_ERRORS.contains(&before[transport]) => {
            assert!(sums(after).1 == Some(true), "an error that was not checked");
            let embedded = transport + ICMP_BYTES;
            let header = embedded + header_bytes(&after[embedded..]);
            assert!(is_zero(sum(&after[embedded..header])));
            if is_whole(&before[embedded..]) {
                assert_eq!(sums(&before[embedded..]), sums(&after[embedded..]));
            }
            // Its header's checksum, its other end, and of the transport the eight bytes that
            // there are and the checksum of TCP.
            let other = embedded + 16 - 4 * end;
            let tcp = header + 16..header + 18;
            allowed.extend([transport + 2..transport + 4, embedded + 10..embedded + 12]);
            allowed.extend([other..other + 4, header..header + 8]);
            allowed.extend((after[embedded + 9] == TCP && tcp.end <= after.len()).then_some(tcp));
        }
        ICMP => allowed.extend([transport + 2..transport + 4, transport + 4..transport + 6]),
        protocol => {
            let port = transport + 2 * end;
            let checksum = transport + if protocol == TCP { 16 } else { 6 };
            allowed.extend([port..port + 2, checksum..checksum + 2]);
        }
    }
    let mut expected = before.to_vec();
    for place in allowed {
        expected[place.clone()].copy_from_slice(&after[place]);
    }
    assert_eq!(after, expected);
}

/// Whether all of what an error is about is in it, with the checksum that it had.
fn is_whole(embedded: &[u8]) -> bool {
    let transport = header_bytes(embedded);
    let transport_bytes = embedded.len() - transport;
    let fits = match embedded[9] {
        TCP => transport_bytes >= 20,
        UDP => (8..=transport_bytes).contains(&usize::from(word(embedded, transport + 4))),
        _ => true,
    };
    fits && usize::from(word(embedded, 2)) == embedded.len()
}

/// Both ends of a packet that was translated, if it is whole and no error; of a query the
/// identifier is at both.
fn ends(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    if packet.is_empty() || word(packet, 6) & 0x3fff != 0 {
        return None;
    }
    let transport = header_bytes(packet);
    let (source, destination) = match packet[9] {
        ICMP if ICMP_ERRORS.contains(&packet[transport]) => return None,
        ICMP => (transport + 4, transport + 4),
        _ => (transport, transport + 2),
    };
    let end = |at, port| SocketAddrV4::new(address(packet, at), word(packet, port));
    Some((end(12, source), end(16, destination)))
}

/// What whoever got `packet` answers.
fn answer(asked: &[u8], flags: u8, other_port: u8) -> Option<Vec<u8>> {
    let (source, mut destination) = ends(asked)?;
    destination.set_port(destination.port() ^ u16::from(other_port));
    Some(packet(asked[9], destination, source, flags, ECHO_REPLY))
}

/// An error about `packet`, of which so much is in it.
fn error(packet: &[u8], kind: u8, embedded_bytes: u8) -> Option<Vec<u8>> {
    let (source, destination) = ends(packet)?;
    let embedded = &packet[..packet.len().min(usize::from(embedded_bytes))];
    let mut error = ipv4(ICMP, *destination.ip(), *source.ip());
    error.extend([ICMP_ERRORS[usize::from(kind % 3)], 1, 0, 0, 0, 0, 0, 0]);
    error.extend(embedded);
    mend_lengths(&mut error);
    Some(error)
}

fn packet(
    protocol: u8,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    flags: u8,
    query: u8,
) -> Vec<u8> {
    let mut packet = ipv4(protocol, *source.ip(), *destination.ip());
    let (from, to) = (
        source.port().to_be_bytes(),
        destination.port().to_be_bytes(),
    );
    match protocol {
        ICMP => {
            let identifier = if query == ECHO_REQUEST { from } else { to };
            packet.extend([query, 0, 0, 0, identifier[0], identifier[1], 0, 1]);
        }
        TCP => {
            packet.extend([from, to].concat());
            let flags = if flags == 0 { SYN } else { flags };
            packet.extend([0, 0, 0, 7, 0, 0, 0, 9, 0x50, flags, 4, 0, 0, 0, 0, 0]);
        }
        _ => packet.extend([from, to, [0, 12], [0, 0]].concat()),
    }
    packet.extend([1, 2, 3, flags]);
    mend_lengths(&mut packet);
    packet
}

fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Udp => UDP,
        Protocol::Tcp => TCP,
        Protocol::Icmp => ICMP,
    }
}

fn whose(subscriber: u8) -> Subscriber {
    Subscriber(u32::from(subscriber) % SUBSCRIBERS)
}
