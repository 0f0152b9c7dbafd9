//! What happens to a packet: checks, WireGuard, credit, count, route, in that order.
//!
//! Up (client to the world): outer headers, WireGuard, the inner packet's own checks, the
//! next hop, credit. Down: the inner packet's checks, its session, the way to the peer,
//! credit, WireGuard. A packet is billed with the length of its validated inner IPv4 packet
//! and only when it is handed to an interface. Handshakes and keepalives are neither gated
//! nor billed. Every refusal is a [`DropReason`].
//!
//! Nothing here allocates, takes a lock or reads a clock for data packets.

mod handshake;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Packet, Tunn, TunnResult};
use topnet_config::Ipv4Subnet;

use self::handshake::{WAITING_MAX, Waiting};
use crate::accounting::{Accounting, Gate};
use crate::drops::{DropCounters, DropReason};
use crate::forwarding::{Forwarding, Neighbour, NextHop, NextHopCache, PortIndex, Unreachable};
use crate::io::{Handler, Transmit};
use crate::packet::{
    ETHERNET_BYTES, Ethernet, Ipv4, Malformed, OUTER_BYTES, Outer, Udp, decrement_ttl,
    write_ethernet, write_outer,
};
use crate::session::{Endpoint, Identity, Session, SessionCounters, SessionIndex};

/// Bytes that WireGuard adds to a packet: header and authentication tag.
pub const WIREGUARD_BYTES: usize = 32;
/// Bytes of the longest handshake message.
const HANDSHAKE_BYTES_MAX: usize = 148;

/// What the plane is told once.
#[derive(Clone, Debug)]
pub struct PlaneConfig {
    /// The gateway's address towards clients.
    pub gateway_address: Ipv4Addr,
    /// UDP port of WireGuard.
    pub wireguard_port: u16,
    /// Where inner addresses come from.
    pub inner_subnet: Ipv4Subnet,
    /// Largest inner packet, either way.
    pub inner_mtu: usize,
    /// Room for sessions.
    pub sessions_max: usize,
}

/// Asks the control thread to resolve a neighbour.
pub type Resolver = Box<dyn FnMut(Neighbour) + Send>;

/// All that decides about packets, owned by one worker.
pub struct Plane<G = Accounting> {
    config: PlaneConfig,
    identity: Arc<Identity>,
    sessions: Vec<Option<Box<Session>>>,
    by_key: HashMap<[u8; 32], SessionIndex>,
    /// By host number in the inner subnet; [`NOBODY`] where there is no session.
    by_inner_address: Box<[u32]>,
    next_hops: NextHopCache,
    gate: G,
    drops: Arc<DropCounters>,
    resolve: Resolver,
    waiting: VecDeque<Waiting>,
    started: Instant,
    identification: u16,
}

const NOBODY: u32 = u32::MAX;

impl<G: Gate> Plane<G> {
    /// A plane without sessions or routes.
    #[must_use]
    pub fn new(
        config: PlaneConfig,
        identity: Arc<Identity>,
        gate: G,
        drops: Arc<DropCounters>,
        resolve: Resolver,
        started: Instant,
    ) -> Self {
        let addresses = 1usize << (32 - u32::from(config.inner_subnet.prefix_bits()));
        Self {
            identity,
            sessions: Vec::with_capacity(config.sessions_max),
            by_key: HashMap::with_capacity(config.sessions_max),
            by_inner_address: vec![NOBODY; addresses].into(),
            next_hops: NextHopCache::new(Arc::default()),
            gate,
            drops,
            resolve,
            waiting: VecDeque::with_capacity(WAITING_MAX),
            started,
            identification: 0,
            config,
        }
    }

    /// Installs a session at its index, which is free.
    pub fn install(&mut self, session: Box<Session>) {
        let index = session.plan.index;
        let place = index.0 as usize;
        if self.sessions.len() <= place {
            self.sessions.resize_with(place + 1, || None);
        }
        assert!(
            self.sessions[place].is_none(),
            "a session's index is free when it is installed"
        );
        self.by_key.insert(session.plan.public_key, index);
        if let Some(host) = self.host_number(session.plan.inner_address) {
            self.by_inner_address[host] = index.0;
        }
        self.sessions[place] = Some(session);
    }

    /// Removes a session; nothing counts into its slot on its behalf any more.
    pub fn remove(&mut self, index: SessionIndex) -> Option<Box<Session>> {
        let session = self.sessions.get_mut(index.0 as usize)?.take()?;
        if self.by_key.get(&session.plan.public_key) == Some(&index) {
            self.by_key.remove(&session.plan.public_key);
        }
        if let Some(host) = self.host_number(session.plan.inner_address)
            && self.by_inner_address[host] == index.0
        {
            self.by_inner_address[host] = NOBODY;
        }
        Some(session)
    }

    /// Takes a new snapshot of routes and neighbours and returns the old one.
    pub fn replace_forwarding(&mut self, forwarding: Arc<Forwarding>) -> Arc<Forwarding> {
        self.next_hops.replace(forwarding)
    }

    /// Publishes what the burst came to. To be called after every burst.
    pub fn settle(&mut self, burst_began_ns: u64) {
        self.gate.settle(burst_began_ns);
    }

    /// Number of places in the list of sessions, for walking over their timers.
    #[must_use]
    pub fn session_places(&self) -> usize {
        self.sessions.len()
    }

    fn process(
        &mut self,
        port: PortIndex,
        frame: &mut [u8],
        out: &mut [u8],
    ) -> Result<Option<Transmit>, DropReason> {
        let ethernet = Ethernet::parse(frame).map_err(outer_malformed)?;
        let ours = self.next_hops.forwarding().ports.get(usize::from(port.0));
        if ours.is_none_or(|port| port.mac != ethernet.destination) {
            return Err(DropReason::NotOurMac);
        }
        let packet = &mut frame[ETHERNET_BYTES..];
        let ip = Ipv4::parse(packet).map_err(outer_malformed)?;
        if self.config.inner_subnet.contains(ip.destination) {
            self.down(&ip, &mut packet[..ip.total_bytes], out)
        } else if ip.destination == self.config.gateway_address {
            self.up(&ip, packet, out)
        } else {
            Err(DropReason::NotSteered)
        }
    }

    /// A WireGuard message from a client.
    fn up(
        &mut self,
        ip: &Ipv4,
        packet: &[u8],
        out: &mut [u8],
    ) -> Result<Option<Transmit>, DropReason> {
        let udp = Udp::parse(packet, ip).map_err(outer_malformed)?;
        if udp.destination_port != self.config.wireguard_port {
            return Err(DropReason::NotSteered);
        }
        let message = &packet[udp.payload];
        // boringtun panics when its output is short.
        if message.len() > out.len() - OUTER_BYTES || out.len() < OUTER_BYTES + HANDSHAKE_BYTES_MAX
        {
            return Err(DropReason::TooLarge);
        }
        let endpoint = Endpoint {
            remote: SocketAddrV4::new(ip.source, udp.source_port),
            local: ip.destination,
        };
        let parsed = Tunn::parse_incoming_packet(message).map_err(|_| DropReason::NotWireGuard)?;
        match parsed {
            Packet::PacketData(data) => {
                let index = SessionIndex::of_receiver(data.receiver_idx);
                self.up_data(index, endpoint, message, out)
            }
            Packet::HandshakeInit(_) => self.up_initiation(endpoint, message, out),
            Packet::HandshakeResponse(response) => {
                let index = SessionIndex::of_receiver(response.receiver_idx);
                self.up_handshake(index, endpoint, message, out)
            }
            Packet::PacketCookieReply(reply) => {
                let index = SessionIndex::of_receiver(reply.receiver_idx);
                self.up_handshake(index, endpoint, message, out)
            }
        }
    }

    fn up_data(
        &mut self,
        index: SessionIndex,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Option<Transmit>, DropReason> {
        let session = session(&mut self.sessions, index)?;
        let result = session
            .tunnel
            .decapsulate(None, message, &mut out[ETHERNET_BYTES..]);
        let inner_bytes = match result {
            TunnResult::WriteToTunnelV4(packet, _) => Some(packet.len()),
            TunnResult::Done => None,
            TunnResult::WriteToTunnelV6(..) | TunnResult::WriteToNetwork(_) => {
                return Err(DropReason::InnerMalformed);
            }
            TunnResult::Err(error) => return Err(data_error(&error)),
        };
        // Authenticated: the peer is where this came from, and it has keys to hear us with.
        session.heard_from(endpoint);
        session.established = true;
        let Some(inner_bytes) = inner_bytes else {
            return Ok(None);
        };
        let slot = session.plan.slot;
        let packet = &mut out[ETHERNET_BYTES..ETHERNET_BYTES + inner_bytes];
        let ip = Ipv4::parse(packet).map_err(|Malformed| DropReason::InnerMalformed)?;
        if ip.source != session.plan.inner_address {
            return Err(DropReason::SourceNotAllowed);
        }
        if self.config.inner_subnet.contains(ip.destination) {
            return Err(DropReason::BetweenClients);
        }
        if ip.ttl <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        if ip.total_bytes > self.config.inner_mtu {
            return Err(DropReason::TooLarge);
        }
        let hop = next_hop(&mut self.next_hops, &mut self.resolve, ip.destination)?;
        self.gate.admit(slot, ip.total_bytes)?;
        decrement_ttl(packet);
        write_ethernet(out, hop.destination, hop.source);
        self.gate.count(slot, ip.total_bytes);
        SessionCounters::add(&session.counters.up_bytes, ip.total_bytes);
        Ok(Some(Transmit {
            port: hop.port,
            bytes: ETHERNET_BYTES + ip.total_bytes,
        }))
    }

    /// An IPv4 packet for an inner address.
    fn down(
        &mut self,
        ip: &Ipv4,
        packet: &mut [u8],
        out: &mut [u8],
    ) -> Result<Option<Transmit>, DropReason> {
        let host = self
            .host_number(ip.destination)
            .ok_or(DropReason::NoSession)?;
        let index = SessionIndex(self.by_inner_address[host]);
        let session = session(&mut self.sessions, index).map_err(|_| DropReason::NoSession)?;
        // A client's packets do not come from the uplink.
        if self.config.inner_subnet.contains(ip.source) {
            return Err(DropReason::BetweenClients);
        }
        if ip.ttl <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        if ip.total_bytes > self.config.inner_mtu
            || out.len() < OUTER_BYTES + (ip.total_bytes + WIREGUARD_BYTES).max(HANDSHAKE_BYTES_MAX)
        {
            return Err(DropReason::TooLarge);
        }
        let endpoint = session.endpoint.ok_or(DropReason::NoTunnel)?;
        if !session.established {
            // What came is lost, but what comes next need not be.
            let initiation = session
                .tunnel
                .format_handshake_initiation(&mut out[OUTER_BYTES..], false);
            let TunnResult::WriteToNetwork(message) = initiation else {
                return Err(DropReason::NoTunnel);
            };
            let message_bytes = message.len();
            self.drops.add(DropReason::NoTunnel, 1);
            return self.send_to_peer(endpoint, message_bytes, out);
        }
        let slot = session.plan.slot;
        let hop = next_hop(
            &mut self.next_hops,
            &mut self.resolve,
            *endpoint.remote.ip(),
        )?;
        self.gate.admit(slot, ip.total_bytes)?;
        decrement_ttl(packet);
        let TunnResult::WriteToNetwork(message) =
            session.tunnel.encapsulate(packet, &mut out[OUTER_BYTES..])
        else {
            return Err(DropReason::NoTunnel);
        };
        let message_bytes = message.len();
        self.gate.count(slot, ip.total_bytes);
        SessionCounters::add(&session.counters.down_bytes, ip.total_bytes);
        Ok(Some(self.wrap(endpoint, hop, message_bytes, out)))
    }

    fn wrap(
        &mut self,
        endpoint: Endpoint,
        hop: NextHop,
        message_bytes: usize,
        out: &mut [u8],
    ) -> Transmit {
        self.identification = self.identification.wrapping_add(1);
        let outer = Outer {
            source: SocketAddrV4::new(endpoint.local, self.config.wireguard_port),
            destination: endpoint.remote,
            identification: self.identification,
            payload_bytes: message_bytes,
        };
        write_ethernet(out, hop.destination, hop.source);
        Transmit {
            port: hop.port,
            bytes: write_outer(out, &outer),
        }
    }

    /// Place of an address in the inner subnet.
    fn host_number(&self, address: Ipv4Addr) -> Option<usize> {
        let network = self.config.inner_subnet.network().to_bits();
        let contained = self.config.inner_subnet.contains(address);
        contained.then(|| (address.to_bits() - network) as usize)
    }
}

impl<G: Gate> Handler for Plane<G> {
    fn handle(&mut self, port: PortIndex, frame: &mut [u8], out: &mut [u8]) -> Option<Transmit> {
        match self.process(port, frame, out) {
            Ok(transmit) => transmit,
            Err(reason) => {
                self.drops.add(reason, 1);
                None
            }
        }
    }

    fn starved(&mut self, packets: u64) {
        self.drops.add(DropReason::NoBuffer, packets);
    }
}

fn session(
    sessions: &mut [Option<Box<Session>>],
    index: SessionIndex,
) -> Result<&mut Session, DropReason> {
    let place = sessions.get_mut(index.0 as usize);
    place
        .and_then(Option::as_deref_mut)
        .ok_or(DropReason::SessionUnknown)
}

fn next_hop(
    cache: &mut NextHopCache,
    resolve: &mut Resolver,
    destination: Ipv4Addr,
) -> Result<NextHop, DropReason> {
    let looked = cache.next_hop(destination);
    looked.next_hop.map_err(|unreachable| match unreachable {
        Unreachable::Local => DropReason::ToGateway,
        Unreachable::NoRoute => DropReason::NoRoute,
        Unreachable::NotOurInterface => DropReason::NotOurInterface,
        Unreachable::Unresolved(neighbour) => {
            if looked.first {
                resolve(neighbour);
            }
            DropReason::NeighbourUnresolved
        }
    })
}

fn outer_malformed(_: Malformed) -> DropReason {
    DropReason::OuterMalformed
}

fn data_error(error: &WireGuardError) -> DropReason {
    match error {
        WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::Replayed,
        WireGuardError::InvalidPacket => DropReason::InnerMalformed,
        _ => DropReason::Undecryptable,
    }
}

#[cfg(test)]
mod tests;
