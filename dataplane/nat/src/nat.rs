//! The state machine: what is called, and how tables hold together when something begins and
//! ends.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use crate::config::{Config, ConfigError, Filtering, Timeouts};
use crate::events::{BlockEvent, BlockEventKind, Events};
use crate::flows::{Beginning, Flows, OutKey, Turn};
use crate::fragments::{First, Forgetting, FragmentKey, Fragments};
use crate::hash::{self, Hash, Random};
use crate::hosts::Hosts;
use crate::mappings::{ExternalEnd, InnerEnd, Mapping, Mappings};
use crate::packet::Protocol;
use crate::pool::{Idle, Pool};
use crate::share::Share;
use crate::subscribers::Subscribers;
use crate::tcp::{self, Direction, Signal, Timer};
use crate::{Refusal, Subscriber};

/// Steps of sweeping that come with every flow that begins: more than it costs to end one, so
/// that a table under load clears itself.
const SWEEP_STEPS: usize = 8;

/// A NAT for one worker.
///
/// Call [`translate_out`](Self::translate_out) for every packet from a subscriber and
/// [`translate_in`](Self::translate_in) for every packet to an address of the pool;
/// [`sweep`](Self::sweep) once a second or more often; [`take_event`](Self::take_event) until
/// it is empty after each of these; [`remove`](Self::remove) when a subscriber is gone. Before
/// a burst of packets, [`look_ahead_out`](Self::look_ahead_out) or
/// [`look_ahead_in`](Self::look_ahead_in) makes them cheaper when there are many flows.
///
/// `now_ms` is any clock that does not run backwards; a call with an earlier time counts as one
/// at the latest time seen.
pub struct Nat44 {
    pub(crate) config: Config,
    pub(crate) now_ms: u64,
    pub(crate) hash: Hash,
    pub(crate) random: Random,
    pub(crate) pool: Pool,
    pub(crate) events: Events,
    pub(crate) subscribers: Subscribers,
    /// Places of subscribers that were removed and still have something.
    pub(crate) leaving: VecDeque<u32>,
    pub(crate) mappings: Mappings,
    pub(crate) mapping_share: Share,
    pub(crate) flows: Flows,
    pub(crate) flow_share: Share,
    /// Used with address-dependent filtering alone.
    pub(crate) hosts: Hosts,
    pub(crate) fragments: Fragments,
}

impl Nat44 {
    /// A NAT that has lent nothing. The seed must be secret and of good randomness: it decides
    /// which ports are lent and keeps others from aiming at a table.
    pub fn new(config: Config, seed: [u8; 32]) -> Result<Self, ConfigError> {
        config.check()?;
        let (hash, random) = hash::from_seed(seed);
        let pool = Pool::new(&config);
        let limits = &config.limits;
        let hosts_max = match config.filtering {
            Filtering::AddressDependent => limits.flows_max,
            Filtering::EndpointIndependent | Filtering::AddressAndPortDependent => 0,
        };
        Ok(Self {
            now_ms: 0,
            hash,
            random,
            events: Events::new(pool.blocks() as usize),
            subscribers: Subscribers::new(limits),
            leaving: VecDeque::with_capacity(limits.subscribers_max as usize),
            mappings: Mappings::new(limits.mappings_max),
            mapping_share: Share::new(limits.mappings_max, limits.subscribers_max),
            flows: Flows::new(limits.flows_max),
            flow_share: Share::new(limits.flows_max, limits.subscribers_max),
            hosts: Hosts::new(hosts_max),
            fragments: Fragments::new(limits.fragments_max, config.timeouts.fragment_ms),
            pool,
            config,
        })
    }

    /// Ends what is over, with at most `work_max` steps in each table, and as many things of
    /// subscribers that were removed. Without it a mapping whose time is over may linger, and its
    /// port with it, until packets sweep it away.
    pub fn sweep(&mut self, now_ms: u64, work_max: usize) {
        self.advance(now_ms);
        self.sweep_flows(work_max);
        for _ in 0..work_max {
            if !self.end_one_of_who_left() {
                break;
            }
        }
        for _ in 0..work_max {
            if !self.forget_fragment() {
                break;
            }
        }
        for _ in 0..work_max {
            match self.pool.poll_idle(self.now_ms) {
                Idle::None => break,
                Idle::Passed => {}
                Idle::Over(block) => self.take_back(block, false),
            }
        }
        for _ in 0..work_max {
            if !self.pool.wake_one(self.now_ms) {
                break;
            }
        }
    }

    /// The oldest record that was not taken yet.
    pub fn take_event(&mut self) -> Option<BlockEvent> {
        self.events.take()
    }

    #[inline(always)]
    pub(crate) fn advance(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// The remote's port as flows are told apart by it: always for TCP, whose connections have
    /// states of their own; for UDP if the filter asks for it.
    #[inline(always)]
    pub(crate) fn flow_port(&self, protocol: Protocol, port: u16) -> u16 {
        match (protocol, self.config.filtering) {
            (Protocol::Tcp, _) | (Protocol::Udp, Filtering::AddressAndPortDependent) => port,
            (Protocol::Udp | Protocol::Icmp, _) => 0,
        }
    }

    /// What a packet of a flow does to it.
    #[inline(always)]
    pub(crate) fn note(
        &mut self,
        place: u32,
        direction: Direction,
        signal: Signal,
        remote_port: u16,
    ) {
        let flow = self.flows.entry_mut(place);
        if flow.protocol == Protocol::Tcp {
            let (state, timer) = tcp::step(flow.state, direction, signal);
            flow.state = state;
            if let Some(timeout_ms) = tcp_timeout_ms(&self.config.timeouts, timer) {
                let deadline_ms = self.now_ms.saturating_add(timeout_ms);
                self.flows.set_deadline(place, deadline_ms);
            }
        } else if direction == Direction::Out || self.config.inbound_refresh {
            let timeout_ms = idle_timeout_ms(&self.config.timeouts, flow.protocol, remote_port);
            // A flow by address alone may be kept longer by another port of the remote's.
            let deadline_ms = self.now_ms.saturating_add(timeout_ms);
            flow.deadline_ms = flow.deadline_ms.max(deadline_ms);
        }
    }

    /// Whether one more flow of a mapping may begin.
    pub(crate) fn may_begin_flow(&self, mapping: u32) -> Result<(), Refusal> {
        let mapping = self.mappings.entry(mapping);
        let limits = &self.config.limits;
        if mapping.flows >= limits.flows_per_mapping_max {
            return Err(Refusal::MappingFlows);
        }
        let owner = self.subscribers.entry(mapping.owner);
        if owner.flows >= limits.flows_per_subscriber_max {
            return Err(Refusal::SubscriberFlows);
        }
        if !self.flow_share.has_room(owner.flows) {
            return Err(Refusal::FlowsFull);
        }
        Ok(())
    }

    /// Begins a flow that may begin, with its first packet.
    pub(crate) fn begin_flow(
        &mut self,
        mapping: u32,
        remote: u32,
        remote_port: u16,
        state: tcp::State,
    ) -> Result<u32, Refusal> {
        let protocol = self.mappings.entry(mapping).protocol;
        let timeout_ms = idle_timeout_ms(&self.config.timeouts, protocol, remote_port);
        let flow_port = self.flow_port(protocol, remote_port);
        let deadline_ms = self.now_ms.saturating_add(timeout_ms);
        self.insert_flow(mapping, remote, flow_port, state, deadline_ms)
            .ok_or(Refusal::FlowsFull)
    }

    pub(crate) fn insert_flow(
        &mut self,
        mapping_place: u32,
        remote: u32,
        flow_port: u16,
        state: tcp::State,
        deadline_ms: u64,
    ) -> Option<u32> {
        let mapping = self.mappings.entry_mut(mapping_place);
        let beginning = Beginning {
            mapping: mapping_place,
            key: OutKey {
                protocol: mapping.protocol,
                subscriber: mapping.subscriber,
                inner: mapping.inner,
                inner_port: mapping.inner_port,
                remote,
                remote_port: flow_port,
            },
            external: mapping.external,
            external_port: mapping.external_port,
            state,
            deadline_ms,
            hairpin: self.pool.contains(remote),
        };
        let first = &mut mapping.first_flow;
        let place = self.flows.insert(&self.hash, beginning, first)?;
        mapping.flows += 1;
        let owner = self.subscribers.entry_mut(mapping.owner);
        self.flow_share.begun(owner.flows);
        owner.flows += 1;
        if mapping.protocol == Protocol::Tcp && self.filters_by_address() {
            self.hosts.add(&self.hash, mapping_place, remote);
        }
        Some(place)
    }

    /// Ends a flow, and its mapping if it was the last.
    pub(crate) fn end_flow(&mut self, place: u32) {
        let flow = self.flows.entry(place);
        let (mapping_place, remote) = (flow.mapping, flow.remote);
        let mapping = self.mappings.entry_mut(mapping_place);
        let first = &mut mapping.first_flow;
        self.flows.remove(&self.hash, place, first);
        mapping.flows -= 1;
        let is_last = mapping.flows == 0;
        let owner = self.subscribers.entry_mut(mapping.owner);
        owner.flows -= 1;
        self.flow_share.ended(owner.flows);
        if mapping.protocol == Protocol::Tcp && self.filters_by_address() {
            self.hosts.remove(&self.hash, mapping_place, remote);
        }
        if is_last {
            self.end_mapping(mapping_place);
        }
    }

    fn filters_by_address(&self) -> bool {
        self.config.filtering == Filtering::AddressDependent
    }

    /// Begins a mapping for an inner end that has none, without a flow yet.
    pub(crate) fn begin_mapping(&mut self, inner: InnerEnd) -> Result<u32, Refusal> {
        let known = self.subscribers.find(&self.hash, inner.subscriber);
        let (mut mappings, mut flows) = (0, 0);
        if let Some(owner) = known {
            let (entry, limits) = (self.subscribers.entry(owner), &self.config.limits);
            if entry.mappings >= limits.mappings_per_subscriber_max {
                return Err(Refusal::SubscriberMappings);
            }
            if entry.flows >= limits.flows_per_subscriber_max {
                return Err(Refusal::SubscriberFlows);
            }
            (mappings, flows) = (entry.mappings, entry.flows);
        }
        if !self.mapping_share.has_room(mappings) {
            return Err(Refusal::MappingsFull);
        }
        if !self.flow_share.has_room(flows) {
            return Err(Refusal::FlowsFull);
        }
        let owner = match known {
            Some(owner) => owner,
            None => self.begin_subscriber(inner.subscriber)?,
        };
        let (block, port) = self.lend_port(owner, inner)?;
        let external = ExternalEnd {
            protocol: inner.protocol,
            address: self.pool.external(self.subscribers.entry(owner).address),
            port,
        };
        self.insert_mapping(Mapping::new(inner, external, owner, block))
            .ok_or(Refusal::MappingsFull)
    }

    pub(crate) fn insert_mapping(&mut self, mapping: Mapping) -> Option<u32> {
        let owner = self.subscribers.entry_mut(mapping.owner);
        let first = &mut owner.first_mapping;
        let place = self.mappings.insert(&self.hash, mapping, first)?;
        self.mapping_share.begun(owner.mappings);
        owner.mappings += 1;
        Some(place)
    }

    pub(crate) fn end_mapping(&mut self, place: u32) {
        let mapping = self.mappings.entry(place);
        let (protocol, port) = (mapping.protocol, mapping.external_port);
        let (block, now_ms) = (mapping.block, self.now_ms);
        self.pool.take_back_port(block, protocol, port, now_ms);
        let owner = self.subscribers.entry_mut(mapping.owner);
        owner.mappings -= 1;
        self.mapping_share.ended(owner.mappings);
        let first = &mut owner.first_mapping;
        self.mappings.remove(&self.hash, place, first);
    }

    /// A subscriber with an address and its first block.
    fn begin_subscriber(&mut self, subscriber: Subscriber) -> Result<u32, Refusal> {
        if self.subscribers.is_full() {
            return Err(Refusal::SubscribersFull);
        }
        if !self.events.has_room() {
            return Err(Refusal::EventsFull);
        }
        self.pool.wake_one(self.now_ms);
        let address = self
            .pool
            .draw_address(&mut self.random)
            .ok_or(Refusal::PoolExhausted)?;
        let owner = self
            .subscribers
            .insert(&self.hash, subscriber, address)
            .ok_or(Refusal::SubscribersFull)?;
        self.lend_block(owner)?;
        Ok(owner)
    }

    /// A port of the owner's blocks, as even as the inner one if there is such a port, or else
    /// of one block more.
    fn lend_port(&mut self, owner: u32, inner: InnerEnd) -> Result<(u32, u16), Refusal> {
        let like = (inner.protocol != Protocol::Icmp).then_some(inner.port);
        let blocks = self.subscribers.blocks(owner);
        let start = self.random.below(blocks.len() as u32) as usize;
        let (before, from_start) = blocks.split_at(start);
        for like in [like, None] {
            for block in from_start.iter().chain(before) {
                let random = &mut self.random;
                if let Some(port) = self.pool.lend_port(*block, inner.protocol, like, random) {
                    return Ok((*block, port));
                }
            }
        }
        let block = self.lend_block(owner)?;
        let random = &mut self.random;
        let port = self.pool.lend_port(block, inner.protocol, like, random);
        Ok((block, port.ok_or(Refusal::SubscriberPorts)?))
    }

    /// One more block for the owner, on its address, with its record.
    fn lend_block(&mut self, owner: u32) -> Result<u32, Refusal> {
        if !self.subscribers.may_have_another_block(owner) {
            return Err(Refusal::SubscriberPorts);
        }
        if !self.events.has_room() {
            return Err(Refusal::EventsFull);
        }
        self.pool.wake_one(self.now_ms);
        let entry = self.subscribers.entry(owner);
        let (address, is_further) = (entry.address, entry.blocks > 0);
        let block = self
            .pool
            .lend(address, owner, is_further, &mut self.random)
            .ok_or(Refusal::PoolExhausted)?;
        self.subscribers.add_block(owner, block);
        self.record(BlockEventKind::Allocated, owner, block);
        Ok(block)
    }

    /// Takes a block back that has no mapping any more, with its record; its owner goes with
    /// the last one, if it has not left already.
    pub(crate) fn take_back(&mut self, block: u32, rests: bool) {
        let owner = self.pool.owner(block);
        self.record(BlockEventKind::Released, owner, block);
        let was_further = self.subscribers.entry(owner).blocks > 1;
        self.pool.take_back(block, was_further, self.now_ms, rests);
        self.subscribers.remove_block(owner, block);
        if self.subscribers.blocks(owner).is_empty() && self.subscribers.is_here(owner) {
            self.subscribers.remove(&self.hash, owner);
        }
    }

    fn record(&mut self, kind: BlockEventKind, owner: u32, block: u32) {
        let event = self.block_event(kind, owner, block);
        self.events.push(event);
    }

    pub(crate) fn block_event(&self, kind: BlockEventKind, owner: u32, block: u32) -> BlockEvent {
        let entry = self.subscribers.entry(owner);
        BlockEvent {
            time_ms: self.now_ms,
            kind,
            subscriber: entry.subscriber,
            external: Ipv4Addr::from(self.pool.external(entry.address)),
            first_port: self.pool.first_port(block),
            port_count: self.pool.block_ports(),
        }
    }

    /// What precedes every flow that begins.
    pub(crate) fn sweep_some(&mut self) {
        self.sweep_flows(SWEEP_STEPS);
    }

    fn sweep_flows(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.flows.turn(self.now_ms) {
                Turn::Idle => break,
                Turn::Moved => {}
                Turn::Over(place) => self.end_flow(place),
            }
        }
    }

    /// Remembers a first fragment of a mapping for its followers.
    pub(crate) fn remember_fragment(
        &mut self,
        key: FragmentKey,
        address: u32,
        mapping: u32,
    ) -> Result<(), Refusal> {
        self.forget_fragment();
        let mapping = self.mappings.entry(mapping);
        let owner = self.subscribers.entry_mut(mapping.owner);
        if !self.fragments.remembers(&self.hash, &key) {
            let share_max = self.config.limits.fragments_per_subscriber_max;
            if self.fragments.is_full() || owner.fragments >= share_max {
                return Err(Refusal::FragmentsFull);
            }
        }
        let first = First {
            address,
            subscriber: mapping.subscriber,
            owner: mapping.owner,
            use_number: owner.use_number,
        };
        owner.fragments += 1;
        let now_ms = self.now_ms;
        if let Some(older) = self.fragments.remember(&self.hash, key, first, now_ms) {
            self.forgotten(older);
        }
        Ok(())
    }

    /// What was made of the first fragment, if it is remembered and its subscriber still here.
    pub(crate) fn followed(&mut self, key: &FragmentKey) -> Result<First, Refusal> {
        self.fragments
            .find(&self.hash, key, self.now_ms)
            .filter(|first| {
                self.subscribers
                    .in_use_mut(first.owner, first.use_number)
                    .is_some()
            })
            .ok_or(Refusal::FragmentUnknown)
    }

    /// False if there is none to look at.
    fn forget_fragment(&mut self) -> bool {
        match self.fragments.forget_one(&self.hash, self.now_ms) {
            Forgetting::None => false,
            Forgetting::Passed => true,
            Forgetting::Forgot(first) => {
                self.forgotten(first);
                true
            }
        }
    }

    /// Gives the place in a subscriber's share back, if it is the same one still.
    fn forgotten(&mut self, first: First) {
        if let Some(owner) = self.subscribers.in_use_mut(first.owner, first.use_number) {
            owner.fragments -= 1;
        }
    }
}

/// The timeout that a TCP packet starts.
#[inline(always)]
fn tcp_timeout_ms(timeouts: &Timeouts, timer: Timer) -> Option<u64> {
    match timer {
        Timer::Keep => None,
        Timer::Transitory => Some(timeouts.tcp_transitory_ms),
        Timer::Established => Some(timeouts.tcp_established_ms),
        Timer::Reset => Some(timeouts.tcp_reset_ms),
    }
}

/// The timeout that a flow begins with, and that every packet of one without states starts.
#[inline(always)]
fn idle_timeout_ms(timeouts: &Timeouts, protocol: Protocol, remote_port: u16) -> u64 {
    const DNS: u16 = 53;
    match (protocol, remote_port) {
        (Protocol::Udp, DNS) => timeouts.udp_dns_ms,
        (Protocol::Udp, _) => timeouts.udp_ms,
        (Protocol::Tcp, _) => timeouts.tcp_transitory_ms,
        (Protocol::Icmp, _) => timeouts.icmp_ms,
    }
}
