//! Handshakes, keepalives and timers: what keeps a tunnel up, neither gated nor billed.

use std::net::IpAddr;

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, TunnResult};

use super::{HANDSHAKE_BYTES_MAX, Plane, next_hop, session};
use crate::accounting::Gate;
use crate::drops::DropReason;
use crate::io::Transmit;
use crate::packet::OUTER_BYTES;
use crate::session::{Endpoint, SessionIndex};

/// Bytes of a cookie reply.
const COOKIE_BYTES: usize = 64;
/// First byte of a cookie reply: the one answer that proves nothing about who asked.
const COOKIE_TYPE: u8 = 3;
/// Answers to handshakes that may wait for a neighbour to be resolved.
pub(super) const WAITING_MAX: usize = 32;

/// An answer to a handshake, complete but for the next hop.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    endpoint: Endpoint,
    message: [u8; HANDSHAKE_BYTES_MAX],
    message_bytes: usize,
}

enum Initiator {
    Known(SessionIndex),
    /// `out` holds a cookie reply.
    AskedForCookie,
}

impl<G: Gate> Plane<G> {
    /// Answers to handshakes that wait for a next hop; each is worth a try after a new snapshot.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sends the answer that has waited longest, or lets it wait on.
    pub fn retry_waiting(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let waiting = self.waiting.pop_front()?;
        let message = &waiting.message[..waiting.message_bytes];
        out[OUTER_BYTES..OUTER_BYTES + message.len()].copy_from_slice(message);
        self.send_to_peer(waiting.endpoint, waiting.message_bytes, out)
            .ok()
            .flatten()
    }

    /// Lets the session at `place` do what its timers say; it may fill `out`.
    pub fn tick(&mut self, place: usize, out: &mut [u8]) -> Option<Transmit> {
        let session = self.sessions.get_mut(place)?.as_mut()?;
        let room = &mut out[OUTER_BYTES..];
        let mut result = session.tunnel.update_timers(room);
        if matches!(result, TunnResult::Done) && std::mem::take(&mut session.resume) {
            result = session
                .tunnel
                .format_handshake_initiation(&mut out[OUTER_BYTES..], false);
        }
        let message_bytes = match result {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            // Expired keys are boringtun's business: the next handshake mends them.
            _ => None,
        };
        session.refresh_established();
        let endpoint = session.endpoint?;
        self.send_to_peer(endpoint, message_bytes?, out).ok()?
    }

    /// An initiation: its sender is encrypted to us, or asked to prove its address first.
    pub(super) fn up_initiation(
        &mut self,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Option<Transmit>, DropReason> {
        match self.initiator(endpoint, message, out)? {
            Initiator::Known(index) => self.up_handshake(index, endpoint, message, out),
            Initiator::AskedForCookie => self.send_to_peer(endpoint, COOKIE_BYTES, out),
        }
    }

    /// Which session a handshake initiation belongs to; its sender is encrypted to us.
    fn initiator(
        &self,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Initiator, DropReason> {
        let mut cookie = [0u8; COOKIE_BYTES];
        let address = IpAddr::V4(*endpoint.remote.ip());
        let verified = self
            .identity
            .limiter
            .verify_packet(Some(address), message, &mut cookie);
        let init = match verified {
            Ok(Packet::HandshakeInit(init)) => init,
            Err(TunnResult::WriteToNetwork(reply)) => {
                out[OUTER_BYTES..OUTER_BYTES + COOKIE_BYTES].copy_from_slice(reply);
                return Ok(Initiator::AskedForCookie);
            }
            Ok(_) | Err(_) => return Err(DropReason::HandshakeInvalid),
        };
        let half = parse_handshake_anon(&self.identity.private, &self.identity.public, &init)
            .map_err(|_| DropReason::HandshakeInvalid)?;
        match self.by_key.get(&half.peer_static_public) {
            Some(index) => Ok(Initiator::Known(*index)),
            None => Err(DropReason::PeerUnknown),
        }
    }

    /// A handshake message of a session that is known.
    pub(super) fn up_handshake(
        &mut self,
        index: SessionIndex,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Option<Transmit>, DropReason> {
        let session = session(&mut self.sessions, index)?;
        let address = IpAddr::V4(*endpoint.remote.ip());
        let result = session
            .tunnel
            .decapsulate(Some(address), message, &mut out[OUTER_BYTES..]);
        let answer_bytes = match result {
            TunnResult::WriteToNetwork(answer) => answer.len(),
            TunnResult::Done => return Ok(None),
            TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => return Err(DropReason::HandshakeInvalid),
        };
        if out[OUTER_BYTES] != COOKIE_TYPE {
            session.heard_from(endpoint);
            session.refresh_established();
            session
                .counters
                .store_handshake(self.started.elapsed().as_millis() as u64);
        }
        self.send_to_peer(endpoint, answer_bytes, out)
    }

    /// Sends a handshake message or keepalive that stands in `out` after the room for the outer
    /// headers. A first contact's neighbour is known a moment later: the message waits for it.
    pub(super) fn send_to_peer(
        &mut self,
        endpoint: Endpoint,
        message_bytes: usize,
        out: &mut [u8],
    ) -> Result<Option<Transmit>, DropReason> {
        match next_hop(
            &mut self.next_hops,
            &mut self.resolve,
            *endpoint.remote.ip(),
        ) {
            Ok(hop) => Ok(Some(self.wrap(endpoint, hop, message_bytes, out))),
            Err(DropReason::NeighbourUnresolved) if message_bytes <= HANDSHAKE_BYTES_MAX => {
                if self.waiting.len() == WAITING_MAX {
                    self.waiting.pop_front();
                    self.drops.add(DropReason::NeighbourUnresolved, 1);
                }
                let mut message = [0; HANDSHAKE_BYTES_MAX];
                message[..message_bytes]
                    .copy_from_slice(&out[OUTER_BYTES..OUTER_BYTES + message_bytes]);
                self.waiting.push_back(Waiting {
                    endpoint,
                    message,
                    message_bytes,
                });
                Ok(None)
            }
            Err(reason) => Err(reason),
        }
    }
}
