//! Packets to addresses of the pool.

use crate::Nat44;
use crate::config::Filtering;
use crate::flows::{InKey, LOOK_AHEAD_PACKETS_MAX};
use crate::fragments::FragmentKey;
use crate::icmp::{Embedded, rewrite_error};
use crate::mappings::ExternalEnd;
use crate::packet::{End, Glimpse, Header, Part, Protocol, Transport, rewrite, rewrite_address};
use crate::tcp::{self, Direction, Signal};
use crate::{Refusal, Subscriber};

/// Whom a packet is for.
#[derive(Clone, Copy)]
struct Inner {
    subscriber: Subscriber,
    address: u32,
    port: u16,
    mapping: u32,
}

impl Nat44 {
    /// Translates a packet from outside in place, so that its destination is the subscriber's
    /// inner address. `packet` is exactly one IPv4 packet whose header's checksum is right;
    /// nothing else about it is believed.
    pub fn translate_in(&mut self, now_ms: u64, packet: &mut [u8]) -> Result<Subscriber, Refusal> {
        self.advance(now_ms);
        let header = Header::parse(packet)?;
        if header.part == Part::Later {
            return self.later_fragment_in(&header, packet);
        }
        let (external_port, remote_port, signal) = match Transport::parse(packet, &header)? {
            Transport::Ports {
                source,
                destination,
                signal,
            } => (destination, source, signal),
            Transport::Reply(identifier) => (identifier, 0, Signal::Data),
            Transport::Request(_) => return Err(Refusal::IcmpType),
            Transport::Error => return self.error_in(&header, packet),
        };
        let key = InKey {
            protocol: header.protocol,
            external: header.destination,
            external_port,
            remote: header.source,
            remote_port: self.flow_port(header.protocol, remote_port),
        };
        let inner = self.flow_in(&key, remote_port, signal)?;
        if header.part == Part::First {
            let key = FragmentKey::inward(&header);
            self.remember_fragment(key, inner.address, inner.mapping)?;
        }
        rewrite(packet, &header, End::Destination, inner.address, inner.port);
        Ok(inner.subscriber)
    }

    /// Fetches what translating these packets will read; see
    /// [`look_ahead_out`](Self::look_ahead_out).
    pub fn look_ahead_in<'a>(&self, burst: impl IntoIterator<Item = &'a [u8]>) {
        let mut hashes = [0; LOOK_AHEAD_PACKETS_MAX];
        let mut packets = 0;
        for (hash, packet) in hashes.iter_mut().zip(burst) {
            let glimpse = Glimpse::of(packet);
            let key = InKey {
                protocol: glimpse.protocol,
                external: glimpse.destination,
                external_port: glimpse.destination_port,
                remote: glimpse.source,
                remote_port: self.flow_port(glimpse.protocol, glimpse.source_port),
            };
            *hash = key.hash(&self.hash);
            packets += 1;
        }
        self.flows.look_ahead_in(&hashes[..packets]);
    }

    /// Whom a packet is for: by its flow, or by what the filter makes of it.
    #[inline(always)]
    fn flow_in(&mut self, key: &InKey, remote_port: u16, signal: Signal) -> Result<Inner, Refusal> {
        if let Some(place) = self.flows.find_in(&self.hash, key) {
            if self.flows.entry(place).deadline_ms > self.now_ms && !self.has_left(place) {
                self.note(place, Direction::In, signal, remote_port);
                let flow = self.flows.entry(place);
                return Ok(Inner {
                    subscriber: flow.subscriber,
                    address: flow.inner,
                    port: flow.inner_port,
                    mapping: flow.mapping,
                });
            }
            self.end_flow(place);
        }
        self.open_in(key, remote_port, signal)
    }

    #[cold]
    fn open_in(&mut self, key: &InKey, remote_port: u16, signal: Signal) -> Result<Inner, Refusal> {
        self.sweep_some();
        let end = ExternalEnd {
            protocol: key.protocol,
            address: key.external,
            port: key.external_port,
        };
        let found = self.mappings.find_external(&self.hash, &end);
        let Some(place) = found.filter(|place| !self.owner_has_left(*place)) else {
            return Err(if self.pool.contains(key.external) {
                Refusal::NoMapping
            } else {
                Refusal::NotNatAddress
            });
        };
        if !self.lets_in(place, key) {
            return Err(Refusal::Filtered);
        }
        // What may come in unasked leaves no trace, so that nobody outside can fill a table.
        // But a connection has a state, and the subscriber's share is what bounds those.
        if key.protocol == Protocol::Tcp {
            if signal != Signal::Syn {
                return Err(Refusal::TcpOutOfState);
            }
            self.may_begin_flow(place)?;
            self.begin_flow(place, key.remote, remote_port, tcp::State::OpenedIn)?;
        }
        let mapping = self.mappings.entry(place);
        Ok(Inner {
            subscriber: mapping.subscriber,
            address: mapping.inner,
            port: mapping.inner_port,
            mapping: place,
        })
    }

    /// Whether the filter lets in a packet of no flow.
    fn lets_in(&self, mapping: u32, key: &InKey) -> bool {
        match (self.config.filtering, key.protocol) {
            (Filtering::EndpointIndependent, _) => true,
            (Filtering::AddressDependent, Protocol::Tcp) => {
                self.hosts.contains(&self.hash, mapping, key.remote)
            }
            // There it would be of a flow.
            (Filtering::AddressDependent | Filtering::AddressAndPortDependent, _) => false,
        }
    }

    #[cold]
    fn later_fragment_in(
        &mut self,
        header: &Header,
        packet: &mut [u8],
    ) -> Result<Subscriber, Refusal> {
        let first = self.followed(&FragmentKey::inward(header))?;
        rewrite_address(packet, End::Destination, first.address);
        Ok(first.subscriber)
    }

    /// An error about a packet that went out; from anybody on its way.
    #[cold]
    fn error_in(&mut self, header: &Header, packet: &mut [u8]) -> Result<Subscriber, Refusal> {
        let embedded = Embedded::parse(packet, header)?;
        let protocol = embedded.header.protocol;
        let key = InKey {
            protocol,
            external: embedded.header.source,
            external_port: embedded.source_port,
            remote: embedded.header.destination,
            remote_port: self.flow_port(protocol, embedded.destination_port),
        };
        let is_answer = embedded.went_out() && header.destination == key.external;
        let flow = self
            .flows
            .find_in(&self.hash, &key)
            .filter(|place| !self.has_left(*place))
            .map(|place| self.flows.entry(place))
            .filter(|flow| is_answer && flow.deadline_ms > self.now_ms)
            .ok_or(Refusal::IcmpErrorUnmatched)?;
        let (inner, port) = (flow.inner, flow.inner_port);
        rewrite_error(packet, header, &embedded, End::Destination, inner, port);
        Ok(flow.subscriber)
    }
}
