//! Handshakes, keepalives and timers: what keeps a tunnel up, neither gated nor billed.
//!
//! An initiation goes to the screener first ([`crate::handshakes`]) and comes back as an
//! [`Answer`] that is to be made.

use boringtun::noise::TunnResult;

use super::{HANDSHAKE_BYTES_MAX, Outcome, Path, Plane};
use crate::accounting::Gate;
use crate::drops::DropReason;
use crate::handshakes::guard::{Arrival, COOKIE_BYTES, Refusal};
use crate::handshakes::{Answer, INITIATION_BYTES, Initiation};
use crate::session::{Endpoint, SessionIndex};

/// First byte of a cookie reply: the one answer that proves nothing about who asked.
const COOKIE_TYPE: u8 = 3;
const _: () = assert!(COOKIE_BYTES <= HANDSHAKE_BYTES_MAX);

impl<G: Gate> Plane<G> {
    /// Lets the session at `place` do what its timers say. What leaves stands in `out`.
    pub fn tick<P: Path>(&mut self, path: &mut P, place: usize, out: &mut [u8]) -> Outcome<P::Hop> {
        let Some(session) = self.sessions.at_mut(place) else {
            return Outcome::Nothing;
        };
        // Timers run for a peer that was never heard as well; what they would send is lost.
        let offset = session
            .endpoint
            .map_or(P::PACKET_OFFSET, |endpoint| path.message_offset(&endpoint));
        let room = &mut out[offset..];
        let written = |result: TunnResult<'_>| match result {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            // After 90 seconds without an answer boringtun gives up, until somebody begins again.
            _ => None,
        };
        let mut message_bytes = written(session.tunnel.update_timers(room));
        session.refresh_established();
        let reachable = session.endpoint.is_some();
        if message_bytes.is_none() && reachable && std::mem::take(&mut session.resume) {
            let room = &mut out[offset..];
            message_bytes = written(session.tunnel.format_handshake_initiation(room, false));
        }
        if message_bytes.is_none() && reachable && session.is_keepalive_due(self.now_ms) {
            let room = &mut out[offset..];
            message_bytes = written(match session.established {
                true => session.tunnel.encapsulate(&[], room),
                false => session.tunnel.format_handshake_initiation(room, false),
            });
            session.sent_ms = self.now_ms;
        }
        if message_bytes.is_some() {
            session.sent_ms = self.now_ms;
        }
        match (session.endpoint, message_bytes) {
            (Some(endpoint), Some(bytes)) => Outcome::Control { endpoint, bytes },
            _ => Outcome::Nothing,
        }
    }

    /// How many answers of a kind wait to be made.
    #[must_use]
    pub fn answers(&self, answer: Answer) -> usize {
        self.screening.answers(self.sessions.own(), answer)
    }

    /// Makes an answer of this kind, if one waits. What leaves stands in `out`, which has room for
    /// the longest handshake message at the path's offset.
    pub fn answer<P: Path>(
        &mut self,
        path: &mut P,
        answer: Answer,
        out: &mut [u8],
    ) -> Outcome<P::Hop> {
        let outcome = match answer {
            Answer::Handshake => self.accepted(path, out),
            Answer::Cookie => Ok(self.cookie(path, out)),
        };
        self.or_nothing(outcome)
    }

    fn accepted<P: Path>(
        &mut self,
        path: &P,
        out: &mut [u8],
    ) -> Result<Outcome<P::Hop>, DropReason> {
        let Some(accepted) = self.screening.take_accepted(self.sessions.own()) else {
            return Ok(Outcome::Nothing);
        };
        let Initiation {
            endpoint, message, ..
        } = accepted.initiation;
        // Sessions and addresses may be others than when it was looked at.
        self.check_outside(endpoint)?;
        let session = self.sessions.get(accepted.index);
        let session = session.ok_or(DropReason::SessionUnknown)?;
        if session.plan.public_key != accepted.public_key {
            return Err(DropReason::SessionUnknown);
        }
        self.up_handshake(path, accepted.index, endpoint, &message, out)
    }

    fn cookie<P: Path>(&mut self, path: &P, out: &mut [u8]) -> Outcome<P::Hop> {
        match self.screening.take_cookie(self.sessions.own()) {
            Some(reply) => ask_for_cookie(path, reply.endpoint, &reply.message, out),
            None => Outcome::Nothing,
        }
    }

    /// An initiation: its sender is encrypted to us, and opening it is the screener's work.
    pub(super) fn up_initiation<H>(
        &self,
        endpoint: Endpoint,
        message: &[u8],
    ) -> Result<Outcome<H>, DropReason> {
        let message: [u8; INITIATION_BYTES] =
            message.try_into().map_err(|_| DropReason::NotWireGuard)?;
        self.screening.submit(Initiation {
            worker: self.sessions.own(),
            endpoint,
            message,
        })?;
        Ok(Outcome::Nothing)
    }

    /// A response: whoever guesses the index of a handshake that we began could have us do
    /// Curve25519 operations with each message.
    pub(super) fn up_response<P: Path>(
        &mut self,
        path: &P,
        index: SessionIndex,
        endpoint: Endpoint,
        message: &[u8],
        out: &mut [u8],
    ) -> Result<Outcome<P::Hop>, DropReason> {
        self.sessions.get(index).ok_or(DropReason::SessionUnknown)?;
        let arrival = Arrival {
            source: endpoint.remote.ip(),
            message,
            crowded: false,
            now_ms: self.now_ms,
        };
        match self.responses.check(&self.identity, &arrival) {
            Ok(()) => self.up_handshake(path, index, endpoint, message, out),
            Err(Refusal::Cookie(reply)) => Ok(ask_for_cookie(path, endpoint, &reply, out)),
            Err(Refusal::Drop(reason)) => Err(reason),
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
        let session = self.sessions.get_mut(index);
        let session = session.ok_or(DropReason::SessionUnknown)?;
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

fn ask_for_cookie<P: Path>(
    path: &P,
    endpoint: Endpoint,
    reply: &[u8; COOKIE_BYTES],
    out: &mut [u8],
) -> Outcome<P::Hop> {
    let offset = path.message_offset(&endpoint);
    out[offset..offset + COOKIE_BYTES].copy_from_slice(reply);
    Outcome::Control {
        endpoint,
        bytes: COOKIE_BYTES,
    }
}
