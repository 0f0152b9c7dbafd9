//! Packets from subscribers.

use crate::Nat44;
use crate::flows::{LOOK_AHEAD_PACKETS_MAX, OutKey};
use crate::fragments::FragmentKey;
use crate::icmp::{Embedded, rewrite_error};
use crate::mappings::InnerEnd;
use crate::packet::{End, Glimpse, Header, Part, Protocol, Transport, rewrite, rewrite_address};
use crate::tcp::{self, Direction, Signal};
use crate::{Refusal, Subscriber};

/// Where a translated packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outward {
    /// Out, to a remote.
    Leaves,
    /// To an address of the pool (RFC 4787 REQ-9): give it to [`Nat44::translate_in`], as if it
    /// had come from outside.
    Returns,
}

impl Nat44 {
    /// Translates a packet from a subscriber in place. `packet` is exactly one IPv4 packet whose
    /// header's checksum is right; nothing else about it is believed.
    pub fn translate_out(
        &mut self,
        now_ms: u64,
        subscriber: Subscriber,
        packet: &mut [u8],
    ) -> Result<Outward, Refusal> {
        self.advance(now_ms);
        let header = Header::parse(packet)?;
        if header.part == Part::Later {
            return self.later_fragment_out(subscriber, &header, packet);
        }
        let (inner_port, remote_port, signal) = match Transport::parse(packet, &header)? {
            Transport::Ports {
                source,
                destination,
                signal,
            } => (source, destination, signal),
            Transport::Request(identifier) => (identifier, 0, Signal::Data),
            Transport::Reply(_) => return Err(Refusal::IcmpType),
            Transport::Error => return self.error_out(subscriber, &header, packet),
        };
        let key = OutKey {
            protocol: header.protocol,
            subscriber,
            inner: header.source,
            inner_port,
            remote: header.destination,
            remote_port: self.flow_port(header.protocol, remote_port),
        };
        let place = self.flow_out(&key, remote_port, signal)?;
        let flow = self.flows.entry(place);
        let (external, external_port) = (flow.external, flow.external_port);
        let outward = outward(flow.hairpin);
        if header.part == Part::First {
            let mapping = flow.mapping;
            let key = FragmentKey::outward(subscriber, &header);
            self.remember_fragment(key, external, mapping)?;
        }
        rewrite(packet, &header, End::Source, external, external_port);
        Ok(outward)
    }

    /// Fetches what translating these packets will read, if it is not near already. It changes
    /// nothing, and is worth a call when a burst's packets are of many flows: their waits for
    /// memory then pass side by side. Packets after the 32nd are left alone.
    pub fn look_ahead_out<'a>(&self, burst: impl IntoIterator<Item = (Subscriber, &'a [u8])>) {
        let mut hashes = [0; LOOK_AHEAD_PACKETS_MAX];
        let mut packets = 0;
        for (hash, (subscriber, packet)) in hashes.iter_mut().zip(burst) {
            // Whatever is no packet of UDP or TCP hashes to somewhere.
            let glimpse = Glimpse::of(packet);
            let key = OutKey {
                protocol: glimpse.protocol,
                subscriber,
                inner: glimpse.source,
                inner_port: glimpse.source_port,
                remote: glimpse.destination,
                remote_port: self.flow_port(glimpse.protocol, glimpse.destination_port),
            };
            *hash = key.hash(&self.hash);
            packets += 1;
        }
        self.flows.look_ahead_out(&hashes[..packets]);
    }

    /// The flow of a packet, which may begin with it.
    #[inline(always)]
    fn flow_out(&mut self, key: &OutKey, remote_port: u16, signal: Signal) -> Result<u32, Refusal> {
        if let Some(place) = self.flows.find_out(&self.hash, key) {
            if self.flows.entry(place).deadline_ms > self.now_ms && !self.has_left(place) {
                self.note(place, Direction::Out, signal, remote_port);
                return Ok(place);
            }
            self.end_flow(place);
        }
        self.open_out(key, remote_port, signal)
    }

    #[cold]
    fn open_out(&mut self, key: &OutKey, remote_port: u16, signal: Signal) -> Result<u32, Refusal> {
        self.sweep_some();
        if key.protocol == Protocol::Tcp && signal != Signal::Syn {
            return Err(Refusal::TcpOutOfState);
        }
        if !self.config.hairpinning && self.pool.contains(key.remote) {
            return Err(Refusal::Hairpin);
        }
        let inner = InnerEnd {
            protocol: key.protocol,
            subscriber: key.subscriber,
            address: key.inner,
            port: key.inner_port,
        };
        let owner = self.subscribers.find(&self.hash, key.subscriber);
        let known = owner.and_then(|owner| self.mappings.find_inner(&self.hash, owner, &inner));
        let mapping = match known {
            Some(mapping) => {
                self.may_begin_flow(mapping)?;
                mapping
            }
            None => self.begin_mapping(inner)?,
        };
        self.begin_flow(mapping, key.remote, remote_port, tcp::State::OpenedOut)
    }

    #[cold]
    fn later_fragment_out(
        &mut self,
        subscriber: Subscriber,
        header: &Header,
        packet: &mut [u8],
    ) -> Result<Outward, Refusal> {
        let first = self.followed(&FragmentKey::outward(subscriber, header))?;
        rewrite_address(packet, End::Source, first.address);
        Ok(outward(self.pool.contains(header.destination)))
    }

    /// An error about a packet that came in, on its way to whoever sent that.
    #[cold]
    fn error_out(
        &mut self,
        subscriber: Subscriber,
        header: &Header,
        packet: &mut [u8],
    ) -> Result<Outward, Refusal> {
        let embedded = Embedded::parse(packet, header)?;
        let protocol = embedded.header.protocol;
        let key = OutKey {
            protocol,
            subscriber,
            inner: embedded.header.destination,
            inner_port: embedded.destination_port,
            remote: embedded.header.source,
            remote_port: self.flow_port(protocol, embedded.source_port),
        };
        let is_answer = embedded.came_in() && header.destination == key.remote;
        let flow = self
            .flows
            .find_out(&self.hash, &key)
            .filter(|place| !self.has_left(*place))
            .map(|place| self.flows.entry(place))
            .filter(|flow| is_answer && flow.deadline_ms > self.now_ms)
            .ok_or(Refusal::IcmpErrorUnmatched)?;
        let (external, port) = (flow.external, flow.external_port);
        rewrite_error(packet, header, &embedded, End::Source, external, port);
        Ok(outward(flow.hairpin))
    }
}

const fn outward(hairpin: bool) -> Outward {
    if hairpin {
        Outward::Returns
    } else {
        Outward::Leaves
    }
}
