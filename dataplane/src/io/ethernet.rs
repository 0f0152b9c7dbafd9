//! Frames: outer headers read and written here, next hops from the kernel's own tables.
//!
//! Both versions of IP go inside the tunnel and around it. Clients reach the gateway at one address
//! of each, since the steering program must know them.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use super::{BURST_PACKETS, Backend, FrameIo, Handler, Transmit, monotonic_ns};
use crate::accounting::Gate;
use crate::drops::DropReason;
use crate::forwarding::{Forwarding, Neighbour, NextHop, PortIndex, RouteCache, Unreachable};
use crate::handshakes::Answer;
use crate::packet::{
    ETHERNET_BYTES, Ethernet as Header, Malformed, OUTER_BYTES, OUTER6_BYTES, Outer, Outer6, Udp,
    Version, write_ethernet, write_outer, write_outer6,
};
use crate::plane::{HANDSHAKE_BYTES_MAX, Outcome, PADDING_BYTES, Path, Plane};
use crate::session::Endpoint;
use crate::team::{Content, Parcel};

/// Answers to handshakes that may wait for a neighbour to be resolved.
const WAITING_MAX: usize = 32;

/// Bytes behind a frame that become padding.
pub(super) const SLACK_BYTES: usize = PADDING_BYTES - 1;

/// Asks the control thread to resolve a neighbour.
pub type Resolver = Box<dyn FnMut(Neighbour) + Send>;

/// Frames, and what is written around packets in them.
pub struct Ethernet<F> {
    frames: F,
    path: EthernetPath,
}

/// Where clients reach the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayAddresses {
    /// Over IPv4.
    pub v4: Ipv4Addr,
    /// Over IPv6, if it can be reached so.
    pub v6: Option<Ipv6Addr>,
}

impl GatewayAddresses {
    /// Each of them.
    pub fn each(&self) -> impl Iterator<Item = IpAddr> {
        [Some(self.v4.into()), self.v6.map(IpAddr::from)]
            .into_iter()
            .flatten()
    }
}

impl From<Ipv4Addr> for GatewayAddresses {
    fn from(v4: Ipv4Addr) -> Self {
        Self { v4, v6: None }
    }
}

/// Next hops and outer headers.
pub struct EthernetPath {
    gateway: GatewayAddresses,
    /// What the world outside knows us by.
    uplink: Option<GatewayAddresses>,
    wireguard_port: u16,
    next_hops: RouteCache<NextHop>,
    resolve: Resolver,
    waiting: VecDeque<Waiting>,
    identification: u16,
}

/// Both ends of a datagram to a peer: ours and the peer's.
#[derive(Clone, Copy)]
enum Ends {
    V4(Ipv4Addr, SocketAddrV4),
    V6(Ipv6Addr, SocketAddrV6),
}

/// An answer to a handshake, complete but for the next hop.
#[derive(Clone, Copy)]
struct Waiting {
    endpoint: Endpoint,
    message: [u8; HANDSHAKE_BYTES_MAX],
    message_bytes: usize,
}

impl<F: FrameIo> Ethernet<F> {
    /// Packets in these frames.
    pub fn new(frames: F, path: EthernetPath) -> Self {
        Self { frames, path }
    }

    /// Handles what other workers passed on, and returns how many packets that were.
    fn take_parcels<G: Gate>(&mut self, plane: &mut Plane<G>) -> usize {
        let mut taken = 0;
        while taken < BURST_PACKETS
            && let Some(mut parcel) = plane.take_parcel()
        {
            taken += 1;
            let path = &mut self.path;
            let open = |out: &mut [u8]| path.handle_parcel(plane, &mut parcel, out);
            if !self.frames.originate(open) {
                plane.refuse(DropReason::NoBuffer, 1);
            }
            plane.give_back(parcel);
        }
        taken
    }
}

impl<F: FrameIo> Backend for Ethernet<F> {
    const SPINS_MAX: u32 = 64;

    fn receive<G: Gate>(&mut self, plane: &mut Plane<G>) -> io::Result<usize> {
        let burst_began_ns = monotonic_ns();
        plane.begin(burst_began_ns);
        let path = &mut self.path;
        let received = self.frames.receive(&mut Framed { plane, path });
        plane.settle(burst_began_ns);
        let taken = self.take_parcels(plane);
        plane.looked(received == BURST_PACKETS || taken == BURST_PACKETS);
        plane.settle(burst_began_ns);
        Ok(received + taken)
    }

    fn tick<G: Gate>(&mut self, plane: &mut Plane<G>, place: usize) {
        let path = &mut self.path;
        self.frames.originate(|out| {
            let outcome = plane.tick(path, place, out);
            path.finish(plane, outcome, out)
        });
    }

    fn answer<G: Gate>(&mut self, plane: &mut Plane<G>, answer: Answer) -> bool {
        let path = &mut self.path;
        self.frames.originate(|out| path.answer(plane, answer, out))
    }

    fn replace_forwarding<G: Gate>(
        &mut self,
        plane: &mut Plane<G>,
        forwarding: Arc<Forwarding>,
    ) -> Arc<Forwarding> {
        let old = self.path.replace_forwarding(forwarding);
        for _ in 0..self.path.waiting() {
            let path = &mut self.path;
            self.frames.originate(|out| path.retry_waiting(plane, out));
        }
        old
    }

    fn flush(&mut self) {
        self.frames.flush();
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.frames.wait(timeout)
    }
}

impl EthernetPath {
    /// A path without routes. Clients reach the gateway at these addresses and this port.
    #[must_use]
    pub fn new(
        gateway: impl Into<GatewayAddresses>,
        wireguard_port: u16,
        resolve: Resolver,
    ) -> Self {
        Self {
            gateway: gateway.into(),
            uplink: None,
            wireguard_port,
            next_hops: RouteCache::new(Arc::default(), Forwarding::next_hop),
            resolve,
            waiting: VecDeque::with_capacity(WAITING_MAX),
            identification: 0,
        }
    }

    /// Whoever sends from outside what goes no further is told so from these addresses.
    #[must_use]
    pub fn answering_from(mut self, uplink: GatewayAddresses) -> Self {
        self.uplink = Some(uplink);
        self
    }

    /// Takes a new snapshot of routes and neighbours and returns the old one.
    pub fn replace_forwarding(&mut self, forwarding: Arc<Forwarding>) -> Arc<Forwarding> {
        self.next_hops.replace(forwarding)
    }

    /// Lets `plane` decide about a received frame; what is to be sent stands in `out`.
    pub fn handle<G: Gate>(
        &mut self,
        plane: &mut Plane<G>,
        port: PortIndex,
        frame: &mut [u8],
        arrived_bytes: usize,
        out: &mut [u8],
    ) -> Option<Transmit> {
        match self.decide(plane, port, frame, arrived_bytes, out) {
            Ok(outcome) => self.finish(plane, outcome, out),
            Err(reason) => {
                plane.refuse(reason, 1);
                None
            }
        }
    }

    fn decide<G: Gate>(
        &mut self,
        plane: &mut Plane<G>,
        port: PortIndex,
        frame: &mut [u8],
        arrived_bytes: usize,
        out: &mut [u8],
    ) -> Result<Outcome<NextHop>, DropReason> {
        let malformed = |Malformed| DropReason::OuterMalformed;
        let arrived = frame
            .get(..arrived_bytes)
            .ok_or(DropReason::OuterMalformed)?;
        let ethernet = Header::parse(arrived).map_err(malformed)?;
        let ours = self.next_hops.forwarding().ports.get(usize::from(port.0));
        if ours.is_none_or(|port| port.mac != ethernet.destination) {
            return Err(DropReason::NotOurMac);
        }
        let ip = ethernet.packet(arrived).map_err(malformed)?;
        if plane.takes(ip.destination) {
            let packet = &mut frame[ETHERNET_BYTES..];
            return Ok(plane.handle_packet(self, packet, ip.total_bytes, out));
        }
        if !self.gateway.each().any(|ours| ours == ip.destination) {
            return Err(DropReason::NotSteered);
        }
        let packet = &arrived[ETHERNET_BYTES..];
        let udp = Udp::parse(packet, &ip).map_err(malformed)?;
        if udp.destination_port != self.wireguard_port {
            return Err(DropReason::NotSteered);
        }
        let endpoint = Endpoint {
            remote: SocketAddr::new(ip.source, udp.source_port),
            local: ip.destination,
        };
        Ok(plane.handle_message(self, endpoint, &packet[udp.payload], out))
    }

    /// Lets `plane` decide about what another worker passed on; what is to be sent stands in `out`.
    pub fn handle_parcel<G: Gate>(
        &mut self,
        plane: &mut Plane<G>,
        parcel: &mut Parcel,
        out: &mut [u8],
    ) -> Option<Transmit> {
        let bytes = parcel.bytes;
        let outcome = match parcel.content {
            Content::Message(endpoint) => {
                plane.handle_message(self, endpoint, &parcel.data[..bytes], out)
            }
            Content::Packet | Content::Relayed => {
                plane.handle_packet(self, &mut parcel.data, bytes, out)
            }
        };
        self.finish(plane, outcome, out)
    }

    /// Lets `plane` make an answer that waits; what is to be sent stands in `out`.
    pub fn answer<G: Gate>(
        &mut self,
        plane: &mut Plane<G>,
        answer: Answer,
        out: &mut [u8],
    ) -> Option<Transmit> {
        let outcome = plane.answer(self, answer, out);
        self.finish(plane, outcome, out)
    }

    /// Writes the headers of what the plane left in `out`.
    fn finish<G: Gate>(
        &mut self,
        plane: &Plane<G>,
        outcome: Outcome<NextHop>,
        out: &mut [u8],
    ) -> Option<Transmit> {
        match outcome {
            Outcome::Nothing => None,
            Outcome::Control { endpoint, bytes } => self.control(plane, endpoint, bytes, out),
            Outcome::ToPeer {
                endpoint,
                hop,
                bytes,
            } => self.wrap(endpoint, hop, bytes, out),
            Outcome::ToWorld { hop, bytes } => {
                let version = Version::of(&out[ETHERNET_BYTES..]).ok()?;
                write_ethernet(out, version, hop.destination, hop.source);
                Some(Transmit {
                    port: hop.port,
                    bytes: ETHERNET_BYTES + bytes,
                })
            }
        }
    }

    /// Sends a handshake message or keepalive. A first contact's neighbour is known a moment
    /// later: the message waits for it.
    fn control<G: Gate>(
        &mut self,
        plane: &Plane<G>,
        endpoint: Endpoint,
        bytes: usize,
        out: &mut [u8],
    ) -> Option<Transmit> {
        match self.to_peer(&endpoint) {
            Ok(hop) => self.wrap(endpoint, hop, bytes, out),
            Err(DropReason::NeighbourUnresolved) if bytes <= HANDSHAKE_BYTES_MAX => {
                if self.waiting.len() == WAITING_MAX {
                    self.waiting.pop_front();
                    plane.refuse(DropReason::NeighbourUnresolved, 1);
                }
                let offset = self.message_offset(&endpoint);
                let mut message = [0; HANDSHAKE_BYTES_MAX];
                message[..bytes].copy_from_slice(&out[offset..offset + bytes]);
                self.waiting.push_back(Waiting {
                    endpoint,
                    message,
                    message_bytes: bytes,
                });
                None
            }
            Err(reason) => {
                plane.refuse(reason, 1);
                None
            }
        }
    }

    /// Answers to handshakes that wait for a next hop; each is worth a try after a new snapshot.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sends the answer that has waited longest, or lets it wait on.
    pub fn retry_waiting<G: Gate>(&mut self, plane: &Plane<G>, out: &mut [u8]) -> Option<Transmit> {
        let waiting = self.waiting.pop_front()?;
        let message = &waiting.message[..waiting.message_bytes];
        let offset = self.message_offset(&waiting.endpoint);
        out[offset..offset + message.len()].copy_from_slice(message);
        self.control(plane, waiting.endpoint, waiting.message_bytes, out)
    }

    fn wrap(
        &mut self,
        endpoint: Endpoint,
        hop: NextHop,
        message_bytes: usize,
        out: &mut [u8],
    ) -> Option<Transmit> {
        let (version, bytes) = match self.ends(&endpoint)? {
            Ends::V4(local, remote) => {
                self.identification = self.identification.wrapping_add(1);
                let outer = Outer {
                    source: SocketAddrV4::new(local, self.wireguard_port),
                    destination: remote,
                    identification: self.identification,
                    payload_bytes: message_bytes,
                };
                (Version::V4, write_outer(out, &outer))
            }
            Ends::V6(local, remote) => {
                let outer = Outer6 {
                    source: SocketAddrV6::new(local, self.wireguard_port, 0, 0),
                    destination: remote,
                    payload_bytes: message_bytes,
                };
                (Version::V6, write_outer6(out, &outer))
            }
        };
        write_ethernet(out, version, hop.destination, hop.source);
        Some(Transmit {
            port: hop.port,
            bytes,
        })
    }

    /// What is written into the headers towards a peer; `None` if it cannot be reached from here.
    fn ends(&self, endpoint: &Endpoint) -> Option<Ends> {
        // Where a peer that was not heard yet knows us is unspecified, or of the other version.
        Some(match (endpoint.remote, endpoint.local) {
            (SocketAddr::V4(remote), IpAddr::V4(local)) if !local.is_unspecified() => {
                Ends::V4(local, remote)
            }
            (SocketAddr::V4(remote), _) => Ends::V4(self.gateway.v4, remote),
            (SocketAddr::V6(remote), IpAddr::V6(local)) if !local.is_unspecified() => {
                Ends::V6(local, remote)
            }
            (SocketAddr::V6(remote), _) => Ends::V6(self.gateway.v6?, remote),
        })
    }

    fn next_hop(&mut self, destination: IpAddr) -> Result<NextHop, DropReason> {
        let looked = self.next_hops.look(destination);
        looked.hop.map_err(|unreachable| {
            if let (Unreachable::Unresolved(neighbour), true) = (unreachable, looked.first) {
                (self.resolve)(neighbour);
            }
            unreachable.into()
        })
    }
}

impl Path for EthernetPath {
    type Hop = NextHop;
    const KERNEL_ROUTES: bool = false;
    const PACKET_OFFSET: usize = ETHERNET_BYTES;

    fn message_offset(&self, endpoint: &Endpoint) -> usize {
        match endpoint.remote {
            SocketAddr::V4(_) => OUTER_BYTES,
            SocketAddr::V6(_) => OUTER6_BYTES,
        }
    }

    fn to_world(&mut self, destination: IpAddr) -> Result<NextHop, DropReason> {
        self.next_hop(destination)
    }

    fn to_peer(&mut self, endpoint: &Endpoint) -> Result<NextHop, DropReason> {
        // Asked before the packet is billed: what has no headers would be billed and not sent.
        self.ends(endpoint).ok_or(DropReason::NoRoute)?;
        self.next_hop(endpoint.remote.ip())
    }

    fn answers_from(&self, sender: IpAddr) -> Option<IpAddr> {
        let ours = self.uplink.unwrap_or(self.gateway);
        match sender {
            IpAddr::V4(_) => Some(ours.v4.into()),
            IpAddr::V6(_) => ours.v6.map(IpAddr::from),
        }
    }
}

/// A plane behind frames.
struct Framed<'a, G> {
    plane: &'a mut Plane<G>,
    path: &'a mut EthernetPath,
}

impl<G: Gate> Handler for Framed<'_, G> {
    fn handle(
        &mut self,
        port: PortIndex,
        frame: &mut [u8],
        arrived_bytes: usize,
        out: &mut [u8],
    ) -> Option<Transmit> {
        self.path
            .handle(self.plane, port, frame, arrived_bytes, out)
    }

    fn starved(&mut self, packets: u64) {
        self.plane.refuse(DropReason::NoBuffer, packets);
    }
}
