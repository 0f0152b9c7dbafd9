//! Handshakes, keepalives and timers: what keeps a tunnel up, neither gated nor billed.

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, TunnResult};

use super::{Outcome, Path, Plane, session};
use crate::accounting::Gate;
use crate::drops::DropReason;
use crate::session::{Endpoint, SessionIndex};

/// Bytes of a cookie reply.
const COOKIE_BYTES: usize = 64;
/// First byte of a cookie reply: the one answer that proves nothing about who asked.
const COOKIE_TYPE: u8 = 3;

enum Initiator {
    Known(SessionIndex),
    /// The room for an answer holds a cookie reply.
    AskedForCookie,
}

impl<G: Gate> Plane<G> {
    /// Lets the session at `place` do what its timers say. What leaves stands in `out`.
    pub fn tick<P: Path>(&mut self, path: &mut P, place: usize, out: &mut [u8]) -> Outcome<P::Hop> {
        let Some(Some(session)) = self.sessions.get_mut(place) else {
            return Outcome::Nothing;
        };
        // Timers run for a peer that was never heard as well; what they would send is lost.
        let offset = session
            .endpoint
            .map_or(P::PACKET_OFFSET, |endpoint| path.message_offset(&endpoint));
        let room = &mut out[offset..];
        let mut result = session.tunnel.update_timers(room);
        if matches!(result, TunnResult::Done) && std::mem::take(&mut session.resume) {
            let room = &mut out[offset..];
            result = session.tunnel.format_handshake_initiation(room, false);
        }
        let message_bytes = match result {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            // Expired keys are boringtun's business: the next handshake mends them.
            _ => None,
        };
        session.refresh_established();
        match (session.endpoint, message_bytes) {
            (Some(endpoint), Some(bytes)) => Outcome::Control { endpoint, bytes },
            _ => Outcome::Nothing,
        }
    }

    /// An initiation: its sender is encrypted to us, or asked to prove its address first.
    pub(super) fn up_initiation<P: Path>(
        &mut self,
        path: &P,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Outcome<P::Hop>, DropReason> {
        let room = &mut out[path.message_offset(&endpoint)..];
        match self.initiator(endpoint, message, room)? {
            Initiator::Known(index) => self.up_handshake(path, index, endpoint, message, out),
            Initiator::AskedForCookie => Ok(Outcome::Control {
                endpoint,
                bytes: COOKIE_BYTES,
            }),
        }
    }

    /// Which session a handshake initiation belongs to; its sender is encrypted to us.
    fn initiator(
        &self,
        endpoint: Endpoint,
        message: &[u8],
        room: &mut [u8],
    ) -> Result<Initiator, DropReason> {
        let mut cookie = [0u8; COOKIE_BYTES];
        let address = endpoint.remote.ip();
        let verified = self
            .identity
            .limiter
            .verify_packet(Some(address), message, &mut cookie);
        let init = match verified {
            Ok(Packet::HandshakeInit(init)) => init,
            Err(TunnResult::WriteToNetwork(reply)) => {
                room[..COOKIE_BYTES].copy_from_slice(reply);
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
    pub(super) fn up_handshake<P: Path>(
        &mut self,
        path: &P,
        index: SessionIndex,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Outcome<P::Hop>, DropReason> {
        let session = session(&mut self.sessions, index)?;
        let address = endpoint.remote.ip();
        let room = &mut out[path.message_offset(&endpoint)..];
        let (bytes, kind) = match session.tunnel.decapsulate(Some(address), message, room) {
            TunnResult::WriteToNetwork(answer) => (answer.len(), answer[0]),
            TunnResult::Done => return Ok(Outcome::Nothing),
            TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => return Err(DropReason::HandshakeInvalid),
        };
        if kind != COOKIE_TYPE {
            session.heard_from(endpoint);
            session.refresh_established();
            session
                .counters
                .store_handshake(self.started.elapsed().as_millis() as u64);
        }
        Ok(Outcome::Control { endpoint, bytes })
    }
}
