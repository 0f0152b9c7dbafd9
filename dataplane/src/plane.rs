//! What happens to a packet: checks, WireGuard, credit, count, route, in that order.
//!
//! Up (client to the world): WireGuard, the inner packet's own checks, the way out, credit.
//! Down: the inner packet's checks, its session, the way to the peer, credit, WireGuard. A
//! packet is billed with the length of its validated inner packet and only when it is handed
//! on. Handshakes and keepalives are neither gated nor billed. Every refusal is a
//! [`DropReason`]; where no kernel does it, senders are told of some (`answers`).
//!
//! The plane sees WireGuard messages and inner packets. How both come in and go out is the
//! business of a [`Path`]: there is one for frames (`crate::io::Ethernet`) and one for the
//! kernel's sockets (`crate::io::Kernel`).
//!
//! Nothing here allocates, takes a lock or reads a clock for data packets.

mod answers;
mod changes;
mod handshake;
mod relay;
mod sessions;
mod whose;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Packet, Tunn, TunnResult};
use topnet_config::InnerNetwork;
use topnet_nat::{BlockEvent, Subscriber};

use self::relay::{Origin, Relay};
use self::sessions::Sessions;
use crate::accounting::{Accounting, Gate};
use crate::capture::Tap;
use crate::drops::{DropCounters, DropReason};
use crate::fairness::{Counted, Fairness};
use crate::handshakes::guard::Guard;
use crate::handshakes::{Screener, Screening};
use crate::nat_log::Holder;
use crate::nat_state::NatState;
use crate::owners::Owners;
use crate::packet::{Ip, Malformed, decrement_hops};
use crate::segment_size;
use crate::session::{Endpoint, Identity, Session, SessionCounters, SessionIndex, WorkerNumber};
use crate::team::{Content, Seat};
use crate::translation::Translation;

/// Bytes that WireGuard adds to a packet: header and authentication tag.
pub const WIREGUARD_BYTES: usize = 32;
/// Bytes of the longest handshake message.
pub const HANDSHAKE_BYTES_MAX: usize = 148;
/// Packets are sealed in multiples of this, so that their length tells less (WireGuard paper,
/// section 5.4.6).
pub const PADDING_BYTES: usize = 16;

/// Responses a second whose senders' addresses are believed. More than initiations, because all
/// peers answer at once when they are greeted after a restart.
const RESPONSES_UNPROVEN_PER_SECOND_MAX: u32 = 2_000;

/// What the plane is told once.
#[derive(Clone, Copy, Debug)]
pub struct PlaneConfig {
    /// Where clients' inner addresses come from; they reach one another only where the operator
    /// says so. `None` for a plain WireGuard interface: there the kernel decides who reaches whom.
    pub inner: Option<InnerNetwork>,
    /// Largest inner packet, either way.
    pub inner_mtu: usize,
    /// Room for sessions.
    pub sessions_max: usize,
}

/// How what leaves the plane is addressed, and the room that its headers need.
pub trait Path {
    /// A way out that is good now.
    type Hop: Copy;

    /// True if the kernel forwards what leaves here: then it takes a hop from the packet and
    /// answers when none is left.
    const KERNEL_ROUTES: bool;

    /// Where in an empty buffer an inner packet on its way out begins.
    const PACKET_OFFSET: usize;

    /// Where in an empty buffer a message to `endpoint` begins.
    fn message_offset(&self, endpoint: &Endpoint) -> usize;

    /// The way towards a destination outside.
    fn to_world(&mut self, destination: IpAddr) -> Result<Self::Hop, DropReason>;

    /// The way to a peer.
    fn to_peer(&mut self, endpoint: &Endpoint) -> Result<Self::Hop, DropReason>;

    /// From which address somebody outside is told why his packet goes no further; `None` if it is
    /// not for us to say.
    fn answers_from(&self, _sender: IpAddr) -> Option<IpAddr> {
        None
    }
}

/// What is to leave. It stands in the buffer that the plane was given, at the path's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<H> {
    /// Nothing.
    Nothing,
    /// A handshake message or keepalive, neither gated nor billed.
    Control {
        /// The peer.
        endpoint: Endpoint,
        /// The message's length.
        bytes: usize,
    },
    /// A sealed packet, billed.
    ToPeer {
        /// The peer.
        endpoint: Endpoint,
        /// The way there.
        hop: H,
        /// The message's length.
        bytes: usize,
    },
    /// An opened packet, billed; or an answer to somebody outside, which is not.
    ToWorld {
        /// The way there.
        hop: H,
        /// The packet's length.
        bytes: usize,
    },
}

/// All that decides about packets, owned by one worker.
pub struct Plane<G = Accounting> {
    config: PlaneConfig,
    identity: Arc<Identity>,
    sessions: Sessions,
    screening: Arc<Screening>,
    /// Where there are several workers.
    seat: Option<Seat>,
    /// Of responses, which only their tunnel can open.
    responses: Guard,
    owners: Owners,
    relay: Relay,
    /// Where inner packets are copied to, while somebody looks.
    tap: Option<Arc<Tap>>,
    gate: G,
    fairness: Fairness,
    translation: Option<Translation>,
    /// When the burst began, by the monotonic clock.
    now_ns: u64,
    now_ms: u64,
    drops: Arc<DropCounters>,
    started: Instant,
}

impl<G: Gate> Plane<G> {
    /// A plane without sessions.
    #[must_use]
    pub fn new(
        config: PlaneConfig,
        identity: Arc<Identity>,
        gate: G,
        drops: Arc<DropCounters>,
        started: Instant,
    ) -> Self {
        Self {
            identity,
            sessions: Sessions::with_capacity(WorkerNumber::default(), config.sessions_max),
            screening: Arc::default(),
            seat: None,
            responses: Guard::new(RESPONSES_UNPROVEN_PER_SECOND_MAX),
            owners: Owners::new(config.inner),
            relay: Relay::new(&config),
            tap: None,
            gate,
            fairness: Fairness::for_sessions(config.sessions_max, false),
            translation: None,
            now_ns: 0,
            now_ms: 0,
            drops,
            started,
            config,
        }
    }

    /// Makes it one of several workers' planes, whose initiations one screener looks at. To be
    /// called before there are sessions.
    #[must_use]
    pub fn with_seat(mut self, seat: Seat, screening: Arc<Screening>) -> Self {
        self.sessions = Sessions::with_capacity(seat.own(), self.config.sessions_max);
        self.screening = screening;
        self.seat = Some(seat);
        self.fairness = Fairness::for_sessions(self.config.sessions_max, true);
        self
    }

    /// Gives clients public addresses instead of their own.
    #[must_use]
    pub fn with_translation(mut self, translation: Option<Translation>) -> Self {
        self.translation = translation;
        self
    }

    /// What looks at initiations before this does. It is to be made once, and started.
    #[must_use]
    pub fn screener(&self) -> Screener {
        let screening = Arc::clone(&self.screening);
        Screener::new(
            screening,
            Arc::clone(&self.identity),
            self.config.sessions_max,
        )
    }

    /// True if a session can be installed or removed, or the identity replaced: the screener is
    /// told of each.
    #[must_use]
    pub fn has_room_for_change(&self) -> bool {
        self.screening.has_room_for_notice(self.sessions.own())
    }

    /// A burst begins. To be called before every burst.
    pub fn begin(&mut self, burst_began_ns: u64) {
        self.now_ns = burst_began_ns;
        self.now_ms = burst_began_ns / 1_000_000;
    }

    /// Publishes what the burst came to. To be called after every burst.
    pub fn settle(&mut self, burst_began_ns: u64) {
        self.gate.settle(burst_began_ns);
        if self.fairness.is_over(burst_began_ns) {
            let sessions = &self.sessions;
            let share_of = |place: u32| sessions.at(place as usize).map(|session| &session.share);
            self.fairness.end_turn(burst_began_ns, share_of);
            if let Some(seat) = &self.seat {
                seat.say_level(self.fairness.level());
            }
        }
    }

    /// Says whether a look at what arrives left something there.
    pub fn looked(&mut self, left_something: bool) {
        self.fairness.looked(left_something);
    }

    /// Number of places in the list of sessions, for walking over their timers.
    #[must_use]
    pub fn session_places(&self) -> usize {
        self.sessions.places()
    }

    /// True if what comes from outside for `address` is for clients: the addresses that they
    /// share, or else their own.
    #[must_use]
    pub fn takes(&self, address: IpAddr) -> bool {
        match &self.translation {
            // Nobody outside knows inner addresses.
            Some(_) if address.is_ipv4() && self.owners.is_inner(address) => false,
            Some(translation) if translation.shares(address) => true,
            _ => self.owners.is_inside(address),
        }
    }

    /// Ends what is over in the translation's tables. To be called many times a second.
    pub fn sweep(&mut self) {
        if let Some(translation) = &mut self.translation {
            translation.sweep(self.now_ms);
        }
    }

    /// The session of a subscriber, while there is one.
    #[must_use]
    pub fn holder(&self, subscriber: Subscriber) -> Option<&Session> {
        self.sessions.get(self.owners.of_host(subscriber.0)?)
    }

    /// What the translation leaves to the next run.
    pub fn nat_state(&mut self, now_ms: u64) -> Option<NatState> {
        let mut translation = self.translation.take()?;
        let state = translation.state(now_ms, |subscriber| self.holder(subscriber).map(Holder::of));
        self.translation = Some(translation);
        Some(state)
    }

    /// A block of public ports that was lent or given back, to be logged.
    pub fn take_block_event(&mut self) -> Option<BlockEvent> {
        self.translation.as_mut()?.take_event()
    }

    /// Counts a packet that was refused on its way to or from the plane.
    pub fn refuse(&self, reason: DropReason, packets: u64) {
        self.drops.add(reason, packets);
    }

    /// A WireGuard message that came from `endpoint`. What leaves stands in `out`.
    pub fn handle_message<P: Path>(
        &mut self,
        path: &mut P,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Outcome<P::Hop> {
        let counted = self.fairness.counted();
        let outcome = self.message(path, endpoint, message, out);
        self.or_stray(outcome, counted)
    }

    /// The first `arrived_bytes` of `packet` are what came from outside for an inner address.
    /// The bytes after them, if there are any, become padding. What leaves stands in `out`.
    pub fn handle_packet<P: Path>(
        &mut self,
        path: &mut P,
        packet: &mut [u8],
        arrived_bytes: usize,
        out: &mut [u8],
    ) -> Outcome<P::Hop> {
        let counted = self.fairness.counted();
        let origin = self.origin();
        let outcome = self.down(path, packet, arrived_bytes, out, origin);
        self.or_stray(outcome, counted)
    }

    /// A packet that was refused before it was counted for anybody is a stray. `counted` tells what was
    /// counted before it.
    fn or_stray<H>(&mut self, outcome: Result<Outcome<H>, DropReason>, counted: u64) -> Outcome<H> {
        if outcome.is_err() && self.fairness.counted() == counted {
            self.fairness.note_stray();
        }
        self.or_nothing(outcome)
    }

    fn or_nothing<H>(&self, outcome: Result<Outcome<H>, DropReason>) -> Outcome<H> {
        outcome.unwrap_or_else(|reason| {
            self.drops.add(reason, 1);
            Outcome::Nothing
        })
    }

    fn message<P: Path>(
        &mut self,
        path: &mut P,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Outcome<P::Hop>, DropReason> {
        self.check_outside(endpoint)?;
        // boringtun panics when its output is short.
        let offset = path.message_offset(&endpoint).max(P::PACKET_OFFSET);
        if out.len() < offset + message.len().max(HANDSHAKE_BYTES_MAX) {
            return Err(DropReason::TooLarge);
        }
        let parsed = Tunn::parse_incoming_packet(message).map_err(|_| DropReason::NotWireGuard)?;
        let receiver = match &parsed {
            Packet::HandshakeInit(_) => return self.up_initiation(endpoint, message),
            Packet::PacketData(data) => data.receiver_idx,
            Packet::HandshakeResponse(response) => response.receiver_idx,
            Packet::PacketCookieReply(reply) => reply.receiver_idx,
        };
        let index = SessionIndex::of_receiver(receiver);
        if self.is_elsewhere(index.worker()) {
            let content = Content::Message(endpoint);
            self.pass(index.worker(), index, content, message)?;
            return Ok(Outcome::Nothing);
        }
        match parsed {
            Packet::PacketData(_) => self.up_data(path, index, endpoint, message, out),
            Packet::HandshakeResponse(_) => self.up_response(path, index, endpoint, message, out),
            Packet::HandshakeInit(_) | Packet::PacketCookieReply(_) => {
                self.up_handshake(path, index, endpoint, message, out)
            }
        }
    }

    /// Sealed packets for a peer inside would come back to be sealed again.
    fn check_outside(&self, endpoint: Endpoint) -> Result<(), DropReason> {
        let is_inside = |address| self.owners.is_inside(address) || self.takes(address);
        if self.config.inner.is_some()
            && [endpoint.remote.ip(), endpoint.local]
                .into_iter()
                .any(is_inside)
        {
            return Err(DropReason::EndpointInside);
        }
        Ok(())
    }

    fn up_data<P: Path>(
        &mut self,
        path: &mut P,
        index: SessionIndex,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Outcome<P::Hop>, DropReason> {
        let session = self.sessions.get_mut(index);
        let session = session.ok_or(DropReason::SessionUnknown)?;
        let counted = match session.endpoint == Some(endpoint) {
            true => Counted::Session(index.place(), &mut session.share),
            false => Counted::Unproven,
        };
        if !self.fairness.admits(counted, message.len()) {
            return Err(DropReason::FairShare);
        }
        let room = &mut out[P::PACKET_OFFSET..];
        let inner_bytes = match session.tunnel.decapsulate(None, message, room) {
            TunnResult::WriteToTunnelV4(packet, _) => Some(packet.len()),
            TunnResult::WriteToTunnelV6(packet, _) => Some(packet.len()),
            TunnResult::Done => None,
            TunnResult::WriteToNetwork(_) => return Err(DropReason::InnerMalformed),
            TunnResult::Err(error) => return Err(data_error(&error)),
        };
        // Authenticated: the peer is where this came from, and it has keys to hear us with.
        session.heard_from(endpoint);
        session.established = true;
        let Some(inner_bytes) = inner_bytes else {
            return Ok(Outcome::Nothing);
        };
        let slot = session.plan.slot();
        let packet = &mut out[P::PACKET_OFFSET..P::PACKET_OFFSET + inner_bytes];
        let ip = Ip::parse(packet).map_err(|Malformed| DropReason::InnerMalformed)?;
        if self.owners.of(ip.source) != Some(index) {
            return Err(DropReason::SourceNotAllowed);
        }
        if let Some(tap) = &self.tap {
            tap.copy(
                &session.plan.public_key,
                &packet[..ip.total_bytes],
                self.now_ns,
            );
        }
        if self.config.inner.is_some() && self.owners.is_inside(ip.destination) {
            return self.relay(path, index, &ip, out);
        }
        if self.config.inner.is_some() {
            self.relay.check(ip.destination, slot.is_none())?;
        }
        if ip.hops <= 1 && !P::KERNEL_ROUTES {
            return self.answer_client(path, index, DropReason::TtlExceeded, &ip, out);
        }
        // A plain interface takes whatever its peer can send, as WireGuard does.
        if self.config.inner.is_some() && ip.total_bytes > self.config.inner_mtu {
            return self.answer_client(path, index, DropReason::TooLarge, &ip, out);
        }
        let hop = path.to_world(ip.destination)?;
        let bytes = ip.total_bytes;
        let pass = admit(&mut self.gate, session, Way::Up, bytes, self.now_ns)?;
        if let (Some(translation), Some(host), true) = (
            &mut self.translation,
            self.owners.host(ip.source),
            ip.source.is_ipv4(),
        ) {
            translation.out(self.now_ms, host, &mut packet[..ip.total_bytes])?;
        }
        if let (Some(solicited), IpAddr::V6(remote)) = (&mut session.solicited, ip.destination) {
            solicited.note(remote, packet[6], self.now_ms);
        }
        segment_size::clamp(&mut packet[..ip.total_bytes], self.config.inner_mtu);
        if !P::KERNEL_ROUTES {
            decrement_hops(packet);
        }
        charge(&mut self.gate, session, &pass, self.now_ns);
        Ok(Outcome::ToWorld { hop, bytes })
    }

    /// A packet for an inner address.
    fn down<P: Path>(
        &mut self,
        path: &mut P,
        packet: &mut [u8],
        arrived_bytes: usize,
        out: &mut [u8],
        origin: Origin,
    ) -> Result<Outcome<P::Hop>, DropReason> {
        let arrived = packet
            .get(..arrived_bytes)
            .ok_or(DropReason::OuterMalformed)?;
        let ip = Ip::parse(arrived).map_err(|Malformed| DropReason::OuterMalformed)?;
        let arrived = &packet[..ip.total_bytes];
        if origin == Origin::World
            && let Some((worker, index)) = self.whose(&ip, P::KERNEL_ROUTES, arrived)?
        {
            self.pass(worker, index, Content::Packet, arrived)?;
            return Ok(Outcome::Nothing);
        }
        let (prepared, index) = match origin {
            Origin::World => {
                let prepared = self.prepare(path, &ip, packet, out);
                let arrived = &mut packet[..ip.total_bytes];
                (prepared, self.receiver(&ip, P::KERNEL_ROUTES, arrived)?)
            }
            Origin::Peer => {
                let index = self.owners.of(ip.destination);
                (None, index.ok_or(DropReason::NoSession)?)
            }
        };
        let session = self.sessions.get_mut(index).ok_or(DropReason::NoSession)?;
        // A client's packets do not come from outside. The gateway's do: the kernel answers for
        // it when a packet cannot be forwarded.
        let from_gateway = P::KERNEL_ROUTES && self.owners.is_gateway(ip.source);
        let trusted = from_gateway || origin == Origin::Peer;
        if self.config.inner.is_some() && self.owners.is_inside(ip.source) && !trusted {
            return Err(DropReason::BetweenClients);
        }
        if let (Some(solicited), IpAddr::V6(remote), IpAddr::V6(client), false) =
            (&session.solicited, ip.source, ip.destination, trusted)
            && !solicited.admits(&packet[..ip.total_bytes], remote, client, self.now_ms)
        {
            return Err(DropReason::Unsolicited);
        }
        // Only who was asked for something is answered.
        if ip.hops <= 1 && !P::KERNEL_ROUTES {
            return self.answer_outside(path, index, DropReason::TtlExceeded, prepared);
        }
        let endpoint = session.endpoint.ok_or(DropReason::NoTunnel)?;
        if ip.total_bytes > self.config.inner_mtu {
            return self.answer_outside(path, index, DropReason::TooLarge, prepared);
        }
        let offset = path.message_offset(&endpoint);
        let padded_bytes = padded(ip.total_bytes, self.config.inner_mtu).min(packet.len());
        if out.len() < offset + (padded_bytes + WIREGUARD_BYTES).max(HANDSHAKE_BYTES_MAX) {
            return Err(DropReason::TooLarge);
        }
        let room = &mut out[offset..];
        if !session.established {
            // What came is lost, but what comes next need not be.
            let initiation = session.tunnel.format_handshake_initiation(room, false);
            let TunnResult::WriteToNetwork(message) = initiation else {
                return Err(DropReason::NoTunnel);
            };
            let bytes = message.len();
            self.drops.add(DropReason::NoTunnel, 1);
            return Ok(Outcome::Control { endpoint, bytes });
        }
        let counted = Counted::Session(index.place(), &mut session.share);
        if !self.fairness.admits(counted, ip.total_bytes) {
            return Err(DropReason::FairShare);
        }
        let admitted = path.to_peer(&endpoint).and_then(|hop| {
            let (gate, bytes) = (&mut self.gate, ip.total_bytes);
            let pass = admit(gate, session, Way::Down, bytes, self.now_ns)?;
            Ok((hop, pass))
        });
        let (hop, pass) = admitted.inspect_err(|_| self.fairness.take_back(ip.total_bytes))?;
        if !P::KERNEL_ROUTES {
            decrement_hops(packet);
        }
        segment_size::clamp(&mut packet[..ip.total_bytes], self.config.inner_mtu);
        if let Some(tap) = &self.tap {
            tap.copy(
                &session.plan.public_key,
                &packet[..ip.total_bytes],
                self.now_ns,
            );
        }
        packet[ip.total_bytes..padded_bytes].fill(0);
        let sealed = session.tunnel.encapsulate(&packet[..padded_bytes], room);
        let TunnResult::WriteToNetwork(message) = sealed else {
            return Err(DropReason::NoTunnel);
        };
        let bytes = message.len();
        session.sent_ms = self.now_ms;
        charge(&mut self.gate, session, &pass, self.now_ns);
        Ok(Outcome::ToPeer {
            endpoint,
            hop,
            bytes,
        })
    }
}

/// Which of a session's rates and counters a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the peer.
    Up,
    /// To it.
    Down,
}

/// A packet that may pass, and is charged once it does.
#[derive(Debug)]
#[must_use]
struct Pass {
    way: Way,
    bytes: usize,
    /// The credit is used up, and the operator gives a trickle.
    is_gift: bool,
}

/// Says whether a packet may pass: in its session's time, and paid for by whoever pays. Nothing is
/// taken by this.
fn admit(
    gate: &mut impl Gate,
    session: &Session,
    way: Way,
    bytes: usize,
    now_ns: u64,
) -> Result<Pass, DropReason> {
    let rates = &session.rates;
    let rate = match way {
        Way::Up => &rates.up,
        Way::Down => &rates.down,
    };
    if rate.is_some_and(|rate| !rate.admits(now_ns)) {
        return Err(DropReason::RateExceeded);
    }
    let slot = session.plan.slot();
    let is_gift = match slot.map_or(Ok(()), |slot| gate.admit(slot, bytes)) {
        Ok(()) => false,
        Err(DropReason::CreditExhausted)
            if rates.unpaid.is_some_and(|trickle| trickle.admits(now_ns)) =>
        {
            true
        }
        Err(reason) => return Err(reason),
    };
    Ok(Pass {
        way,
        bytes,
        is_gift,
    })
}

/// Charges a packet that goes on: what does not takes nobody's time or money.
fn charge(gate: &mut impl Gate, session: &mut Session, pass: &Pass, now_ns: u64) {
    let (rates, counters) = (&mut session.rates, &session.counters);
    let (rate, counter) = match pass.way {
        _ if pass.is_gift => (&mut rates.unpaid, &counters.given_bytes),
        Way::Up => (&mut rates.up, &counters.up_bytes),
        Way::Down => (&mut rates.down, &counters.down_bytes),
    };
    if let Some(rate) = rate {
        rate.take(pass.bytes, now_ns);
    }
    SessionCounters::add(counter, pass.bytes);
    if let Some(slot) = session.plan.slot()
        && !pass.is_gift
    {
        gate.count(slot, pass.bytes);
    }
}

/// A packet's length with its padding, which must not make it larger than the tunnel's MTU.
fn padded(bytes: usize, mtu: usize) -> usize {
    bytes.next_multiple_of(PADDING_BYTES).min(mtu.max(bytes))
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
