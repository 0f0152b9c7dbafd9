//! Random traffic against a plain model: maps of what was mapped and called, and when. The model
//! knows nothing of ports before they are lent, and nothing of blocks but their number.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use proptest::prelude::*;
use support::{ACK, FIN, POOL, RST, SYN, World, ends, inner, remote};
use topnet_nat::Protocol::{self, Icmp, Tcp, Udp};
use topnet_nat::{
    BlockEventKind, Counters, Filtering, Nat44, Refusal, Subscriber, SubscriberStatus,
};

const MAPPINGS_PER_SUBSCRIBER_MAX: usize = 5;
const FLOWS_PER_MAPPING_MAX: usize = 3;
const FLOWS_MAX: usize = 14;

#[derive(Clone, Copy, Debug)]
enum Step {
    Out {
        subscriber: u32,
        protocol: Protocol,
        port: u16,
        to: (u8, u16),
        flags: u8,
    },
    /// To the nth mapping that ever was, from somebody.
    In {
        nth: usize,
        from: (u8, u16),
        flags: u8,
    },
    Wait(u64),
    /// What a subscriber has is ended by so many steps now, and the rest as time goes on.
    Remove(u32, usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let protocol = prop_oneof![Just(Udp), Just(Tcp), Just(Icmp)];
    let party = (1..4_u8, prop_oneof![Just(53_u16), Just(80), Just(443)]);
    let flags = prop_oneof![
        4 => Just(SYN),
        4 => Just(ACK),
        1 => Just(SYN | ACK),
        1 => Just(FIN | ACK),
        1 => Just(RST)
    ];
    prop_oneof![
        8 => (1..4_u32, protocol, 5000..5004_u16, party.clone(), flags.clone()).prop_map(
            |(subscriber, protocol, port, to, flags)| Step::Out {
                subscriber,
                protocol,
                port,
                to,
                flags
            }
        ),
        8 => (any::<usize>(), party, flags).prop_map(|(nth, from, flags)| Step::In {
            nth,
            from,
            flags
        }),
        3 => prop_oneof![Just(1), Just(9), Just(30), Just(61), Just(250), Just(3000)]
            .prop_map(Step::Wait),
        1 => (1..4_u32, 0..9_usize).prop_map(|(subscriber, work)| Step::Remove(subscriber, work)),
        1 => Just(Step::Restart),
    ]
}

type InnerKey = (u32, Protocol, SocketAddrV4);
/// Which TCP step was taken, in the words of the RFC rather than of the table.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    syn_out: bool,
    syn_in: bool,
}

struct Flow {
    ends_s: u64,
    /// For TCP the model follows only how a connection opens; once it is open, closed or reset
    /// it asks the NAT whether the flow is still there.
    seen: Seen,
    followed: bool,
}

struct Mapping {
    external: SocketAddrV4,
    flows: HashMap<(Ipv4Addr, u16), Flow>,
}

struct Model {
    filtering: Filtering,
    mappings: HashMap<InnerKey, Mapping>,
    /// Every external end that ever was.
    known: Vec<(Protocol, SocketAddrV4)>,
    now_s: u64,
    /// Flows of subscribers that were removed, which still take room.
    leaving_flows: usize,
}

impl Model {
    fn flow_port(&self, protocol: Protocol, port: u16) -> u16 {
        let by_port = self.filtering == Filtering::AddressAndPortDependent;
        match protocol {
            Tcp => port,
            Udp if by_port => port,
            _ => 0,
        }
    }

    fn timeout_s(protocol: Protocol, port: u16) -> u64 {
        match (protocol, port) {
            (Udp, 53) => 30,
            (Udp, _) => 300,
            (Tcp, _) => 240,
            (Icmp, _) => 60,
        }
    }

    fn expire(&mut self) {
        let now_s = self.now_s;
        for mapping in self.mappings.values_mut() {
            mapping.flows.retain(|_, flow| flow.ends_s > now_s);
        }
        self.mappings.retain(|_, mapping| !mapping.flows.is_empty());
    }

    fn flows(&self, of: impl Fn(&InnerKey) -> bool) -> usize {
        let mappings = self.mappings.iter().filter(|(key, _)| of(key));
        mappings.map(|(_, mapping)| mapping.flows.len()).sum()
    }

    /// Whether a packet from a subscriber passes.
    fn expects_out(&self, key: &InnerKey, to: SocketAddrV4, flags: u8) -> Result<(), Refusal> {
        let flow = (*to.ip(), self.flow_port(key.1, to.port()));
        let mapping = self.mappings.get(key);
        if mapping.is_some_and(|mapping| mapping.flows.contains_key(&flow)) {
            return Ok(());
        }
        if key.1 == Tcp && flags != SYN {
            return Err(Refusal::TcpOutOfState);
        }
        match mapping {
            Some(mapping) if mapping.flows.len() >= FLOWS_PER_MAPPING_MAX => {
                Err(Refusal::MappingFlows)
            }
            None if self
                .mappings
                .keys()
                .filter(|other| other.0 == key.0)
                .count()
                >= MAPPINGS_PER_SUBSCRIBER_MAX =>
            {
                Err(Refusal::SubscriberMappings)
            }
            _ if self.flows(|_| true) + self.leaving_flows >= FLOWS_MAX => Err(Refusal::FlowsFull),
            _ => Ok(()),
        }
    }

    /// Whose a packet from outside is.
    fn expects_in(
        &self,
        protocol: Protocol,
        from: SocketAddrV4,
        to: SocketAddrV4,
        flags: u8,
    ) -> Result<InnerKey, Refusal> {
        let found = self
            .mappings
            .iter()
            .find(|(key, mapping)| key.1 == protocol && mapping.external == to);
        let (key, mapping) = found.ok_or(Refusal::NoMapping)?;
        let flow = (*from.ip(), self.flow_port(protocol, from.port()));
        if mapping.flows.contains_key(&flow) {
            return Ok(*key);
        }
        let called = mapping
            .flows
            .keys()
            .any(|(address, _)| address == from.ip());
        let lets_in = match self.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => called,
            Filtering::AddressAndPortDependent => false,
        };
        if !lets_in {
            return Err(Refusal::Filtered);
        }
        if protocol != Tcp {
            return Ok(*key);
        }
        if flags != SYN {
            return Err(Refusal::TcpOutOfState);
        }
        if mapping.flows.len() >= FLOWS_PER_MAPPING_MAX {
            return Err(Refusal::MappingFlows);
        }
        if self.flows(|_| true) + self.leaving_flows >= FLOWS_MAX {
            return Err(Refusal::FlowsFull);
        }
        Ok(*key)
    }

    /// What a packet that passed has done.
    fn note(&mut self, key: InnerKey, party: SocketAddrV4, flags: u8, is_out: bool) {
        let flow_key = (*party.ip(), self.flow_port(key.1, party.port()));
        let (now_s, protocol) = (self.now_s, key.1);
        let ends_s = now_s + Self::timeout_s(protocol, party.port());
        let Some(mapping) = self.mappings.get_mut(&key) else {
            return;
        };
        let begins = !mapping.flows.contains_key(&flow_key);
        if begins && !is_out && protocol != Tcp {
            return;
        }
        let flow = mapping.flows.entry(flow_key).or_insert(Flow {
            ends_s,
            seen: Seen::default(),
            followed: true,
        });
        if protocol != Tcp {
            flow.ends_s = flow.ends_s.max(ends_s);
            return;
        }
        let opening = begins || (flags == SYN && is_out && !flow.seen.syn_in);
        let seen = &mut flow.seen;
        match (is_out, flags & SYN != 0) {
            (true, true) => seen.syn_out = true,
            (false, true) => seen.syn_in = true,
            _ => {}
        }
        if opening {
            flow.ends_s = ends_s;
        } else {
            // From here on the table's own tests speak.
            flow.followed = false;
            flow.ends_s = u64::MAX;
        }
    }
}

/// The NAT, the model beside it, and what holds always.
struct Both {
    world: World,
    model: Model,
    lent: HashMap<(Ipv4Addr, u16), Subscriber>,
}

impl Both {
    fn new(filtering: Filtering) -> Self {
        let world = World::new(|config| {
            config.filtering = filtering;
            config.block_ports = 64;
            config.limits.mappings_per_subscriber_max = MAPPINGS_PER_SUBSCRIBER_MAX as u32;
            config.limits.flows_per_mapping_max = FLOWS_PER_MAPPING_MAX as u32;
            config.limits.flows_max = FLOWS_MAX as u32;
        });
        let now_s = world.now_ms / 1000;
        let model = Model {
            filtering,
            mappings: HashMap::new(),
            known: Vec::new(),
            now_s,
            leaving_flows: 0,
        };
        Self {
            world,
            model,
            lent: HashMap::new(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Out {
                subscriber,
                protocol,
                port,
                to,
                flags,
            } => self.send(subscriber, protocol, port, remote(to.0, to.1), flags),
            Step::In { nth, from, flags } => self.receive(nth, remote(from.0, from.1), flags),
            Step::Wait(seconds) => {
                self.world.wait(seconds);
                self.model.now_s += seconds;
            }
            Step::Remove(subscriber, work) => {
                let now_ms = self.world.now_ms;
                self.world.nat.remove(now_ms, Subscriber(subscriber));
                let before = self.world.nat.counters();
                self.world.nat.sweep(now_ms, work);
                let after = self.world.nat.counters();
                let things = |counters: Counters| (counters.flows + counters.blocks_lent) as usize;
                assert!(things(before) <= things(after) + work, "bounded work");
                self.model.mappings.retain(|key, _| key.0 != subscriber);
            }
            Step::Restart => self.restart(),
        }
        self.model.expire();
        self.drain_events();
        self.follow_connections();
        let flows = self.world.nat.counters().flows as usize;
        self.model.leaving_flows = flows - self.model.flows(|_| true);
        self.check();
    }

    fn send(
        &mut self,
        subscriber: u32,
        protocol: Protocol,
        port: u16,
        to: SocketAddrV4,
        flags: u8,
    ) {
        let from = inner(subscriber, port);
        let key = (subscriber, protocol, from);
        let expected = self.model.expects_out(&key, to, flags);
        let bytes = match protocol {
            Tcp => support::tcp(from, to, flags, b"data"),
            _ => support::packet(protocol, from, to, true),
        };
        let sent = self.world.out(subscriber, &bytes);
        assert_eq!(sent.as_ref().err(), expected.as_ref().err(), "{key:?} {to}");
        let Ok(sent) = sent else { return };
        let (external, destination) = ends(&sent);
        assert_eq!(destination.ip(), to.ip());
        let mapping = self.model.mappings.entry(key).or_insert_with(|| {
            self.model.known.push((protocol, external));
            Mapping {
                external,
                flows: HashMap::new(),
            }
        });
        assert_eq!(mapping.external, external, "endpoint-independent");
        self.model.note(key, to, flags, true);
    }

    fn receive(&mut self, nth: usize, from: SocketAddrV4, flags: u8) {
        if self.model.known.is_empty() {
            return;
        }
        let (protocol, to) = self.model.known[nth % self.model.known.len()];
        let expected = self.model.expects_in(protocol, from, to, flags);
        let bytes = match protocol {
            Tcp => support::tcp(from, to, flags, b"data"),
            _ => support::packet(protocol, from, to, false),
        };
        let received = self.world.back(&bytes);
        match (received, expected) {
            (Ok((subscriber, bytes)), Ok(key)) => {
                let (source, destination) = ends(&bytes);
                assert_eq!((subscriber, destination), (key.0, key.2));
                assert_eq!(source.ip(), from.ip());
                self.model.note(key, from, flags, false);
            }
            (received, expected) => {
                let whose = received.map(|(subscriber, _)| subscriber);
                assert_eq!(whose, expected.map(|key| key.0), "{from} to {to}");
            }
        }
    }

    /// The process dies and comes back.
    fn restart(&mut self) {
        // Who left has nothing in a snapshot but blocks that rest.
        self.world.wait(0);
        self.drain_events();
        let mut config = topnet_nat::Config::new(POOL.to_vec());
        config.filtering = self.model.filtering;
        config.block_ports = 64;
        config.limits.mappings_max = 4096;
        config.limits.subscribers_max = 64;
        config.limits.mappings_per_subscriber_max = MAPPINGS_PER_SUBSCRIBER_MAX as u32;
        config.limits.flows_per_mapping_max = FLOWS_PER_MAPPING_MAX as u32;
        config.limits.flows_max = FLOWS_MAX as u32;
        let snapshot = self.world.nat.snapshot();
        let before = self.world.nat.counters();
        let nat = Nat44::restore(config, [9; 32], self.world.now_ms, &snapshot).unwrap();
        let fragments = before.fragments;
        assert_eq!(fragments, 0);
        assert_eq!(nat.counters(), before);
        self.world.nat = nat;
        self.world.wait(0);
    }

    /// Blocks that are lent, from the log alone.
    fn drain_events(&mut self) {
        while let Some(event) = self.world.nat.take_event() {
            let block = (event.external, event.first_port);
            let before = match event.kind {
                BlockEventKind::Allocated => self.lent.insert(block, event.subscriber),
                BlockEventKind::Released => {
                    let owner = self.lent.remove(&block);
                    assert_eq!(owner, Some(event.subscriber));
                    None
                }
            };
            assert_eq!(before, None, "lent once");
        }
    }

    /// Connections that the model does not follow are taken from the NAT's own status.
    fn follow_connections(&mut self) {
        let nat = &self.world.nat;
        for (key, mapping) in &mut self.model.mappings {
            let is_unfollowed = |flow: &Flow| !flow.followed;
            if !mapping.flows.values().any(is_unfollowed) {
                continue;
            }
            let status = nat
                .mappings(Subscriber(key.0))
                .find(|status| status.inner == key.2 && status.protocol == key.1);
            let flows = status.map_or(0, |status| status.flows as usize);
            let mut gone = mapping.flows.len().saturating_sub(flows);
            let unfollowed = mapping.flows.values().filter(|f| is_unfollowed(f)).count();
            assert!(gone <= unfollowed, "a flow ended too early");
            // Which of several ended cannot be told from outside: ask with packets that change
            // nothing. With one it is clear; with all it is too.
            if gone == unfollowed {
                mapping.flows.retain(|_, flow| flow.followed);
                gone = 0;
            }
            if gone > 0 {
                let probes: Vec<_> = mapping.flows.keys().copied().collect();
                let mut copy = Nat44::restore(
                    probe_config(self.model.filtering),
                    [3; 32],
                    self.world.now_ms,
                    &nat.snapshot(),
                )
                .unwrap();
                for (address, port) in probes {
                    let from = SocketAddrV4::new(address, port);
                    let mut data = support::tcp(key.2, from, ACK, b"");
                    let is_there = copy
                        .translate_out(self.world.now_ms, Subscriber(key.0), &mut data)
                        .is_ok();
                    if !is_there {
                        mapping.flows.remove(&(address, port));
                    }
                }
            }
        }
        self.model.mappings.retain(|_, m| !m.flows.is_empty());
    }

    fn check(&self) {
        let counters = self.world.nat.counters();
        let of = |what: fn(&SubscriberStatus) -> u32| -> usize {
            self.world
                .nat
                .subscribers()
                .map(|s| what(&s) as usize)
                .sum()
        };
        assert_eq!(of(|s| s.mappings), self.model.mappings.len());
        assert_eq!(of(|s| s.flows), self.model.flows(|_| true));
        if counters.subscribers_leaving == 0 {
            assert_eq!(counters.mappings as usize, self.model.mappings.len());
            assert_eq!(counters.flows as usize, self.model.flows(|_| true));
        }
        assert_eq!(counters.blocks_lent as usize, self.lent.len());
        let mut seen = HashSet::new();
        for subscriber in self.world.nat.subscribers() {
            for status in self.world.nat.mappings(subscriber.subscriber) {
                let port = status.external.port();
                assert!(seen.insert((status.protocol, status.external)), "shared");
                let block = (*status.external.ip(), port - (port - 1024) % 64);
                let owner = self.lent.get(&block);
                assert_eq!(owner, Some(&subscriber.subscriber), "as the log says");
                let key = (subscriber.subscriber.0, status.protocol, status.inner);
                assert_eq!(self.model.mappings[&key].external, status.external);
            }
        }
    }

    /// When everything is over, everything is free again.
    fn end(mut self) {
        self.world.wait(7500);
        self.world.wait(300);
        self.world.wait(300);
        self.drain_events();
        let counters = self.world.nat.counters();
        assert_eq!((counters.flows, counters.mappings), (0, 0));
        assert_eq!((counters.subscribers, counters.blocks_lent), (0, 0));
        assert_eq!(counters.blocks_resting, 0);
        assert!(self.lent.is_empty());
    }
}

fn probe_config(filtering: Filtering) -> topnet_nat::Config {
    let mut config = topnet_nat::Config::new(POOL.to_vec());
    config.filtering = filtering;
    config.block_ports = 64;
    config.limits.mappings_max = 256;
    config.limits.flows_max = 256;
    config.limits.subscribers_max = 16;
    config
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn traffic_goes_as_the_model_says(
        filtering in prop_oneof![
            Just(Filtering::EndpointIndependent),
            Just(Filtering::AddressDependent),
            Just(Filtering::AddressAndPortDependent)
        ],
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut both = Both::new(filtering);
        for step in steps {
            both.take(step);
        }
        both.end();
    }
}
