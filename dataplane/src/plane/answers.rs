//! What is said of packets that go no further, where nobody else says it: over frames, and between
//! peers.
//!
//! A client hears it through its tunnel, from the gateway's inner address; that is a packet for it
//! like others, gated and billed. Who sent from outside hears it from the interface that he reached,
//! and nobody is billed. The packet itself counts as dropped.

use std::net::IpAddr;

use boringtun::noise::TunnResult;

use super::{
    HANDSHAKE_BYTES_MAX, Outcome, Path, Plane, WIREGUARD_BYTES, Way, admit, charge, padded,
};
use crate::accounting::Gate;
use crate::drops::DropReason;
use crate::icmp::{self, Problem};
use crate::packet::Ip;
use crate::session::SessionIndex;

/// An answer to whoever sent from outside, which stands in the buffer already.
pub(super) struct Prepared {
    sender: IpAddr,
    bytes: usize,
}

impl<G: Gate> Plane<G> {
    /// Writes what is said of a packet from outside, if it goes no further: before it is translated,
    /// since the sender must know it again.
    pub(super) fn prepare<P: Path>(
        &self,
        path: &P,
        ip: &Ip,
        packet: &[u8],
        out: &mut [u8],
    ) -> Option<Prepared> {
        let problem = if P::KERNEL_ROUTES {
            return None;
        } else if ip.hops <= 1 {
            Problem::HopsExceeded
        } else if ip.total_bytes > self.config.inner_mtu {
            let mtu = self.config.inner_mtu;
            Problem::TooLarge { mtu }
        } else {
            return None;
        };
        let source = path.answers_from(ip.source)?;
        let room = out.get_mut(P::PACKET_OFFSET..)?;
        let bytes = icmp::write(room, &packet[..ip.total_bytes], source, problem)?;
        let sender = ip.source;
        Some(Prepared { sender, bytes })
    }

    /// Drops a packet for this session, and sends what was prepared to its sender.
    pub(super) fn answer_outside<P: Path>(
        &mut self,
        path: &mut P,
        index: SessionIndex,
        reason: DropReason,
        prepared: Option<Prepared>,
    ) -> Result<Outcome<P::Hop>, DropReason> {
        let Some(Prepared { sender, bytes }) = prepared else {
            return Err(reason);
        };
        let session = self.sessions.get_mut(index).ok_or(reason)?;
        let Ok(hop) = path.to_world(sender) else {
            return Err(reason);
        };
        if !session.answers.take(self.now_ms) {
            return Err(reason);
        }
        self.drops.add(reason, 1);
        Ok(Outcome::ToWorld { hop, bytes })
    }

    /// Drops a packet of this session, which stands in `out`, and tells the client why.
    pub(super) fn answer_client<P: Path>(
        &mut self,
        path: &mut P,
        index: SessionIndex,
        reason: DropReason,
        ip: &Ip,
        out: &mut [u8],
    ) -> Result<Outcome<P::Hop>, DropReason> {
        let answered = self.tell_client(path, index, reason, ip, out);
        let outcome = answered.ok_or(reason)?;
        self.drops.add(reason, 1);
        Ok(outcome)
    }

    fn tell_client<P: Path>(
        &mut self,
        path: &mut P,
        index: SessionIndex,
        reason: DropReason,
        ip: &Ip,
        out: &mut [u8],
    ) -> Option<Outcome<P::Hop>> {
        let mtu = self.config.inner_mtu;
        let problem = match reason {
            DropReason::TtlExceeded => Problem::HopsExceeded,
            _ => Problem::TooLarge { mtu },
        };
        let inner = self.config.inner?;
        let source = match ip.source {
            IpAddr::V4(_) => inner.gateway().into(),
            IpAddr::V6(_) => inner.gateway6()?.into(),
        };
        let mut message = [0; icmp::BYTES_MAX];
        let about = out.get(P::PACKET_OFFSET..P::PACKET_OFFSET + ip.total_bytes)?;
        let bytes = icmp::write(&mut message, about, source, problem)?;
        let padded_bytes = padded(bytes, mtu).min(message.len());
        let session = self.sessions.get_mut(index)?;
        let endpoint = session.endpoint?;
        let room = out.get_mut(path.message_offset(&endpoint)..)?;
        // boringtun panics when its output is short.
        let needed_bytes = (padded_bytes + WIREGUARD_BYTES).max(HANDSHAKE_BYTES_MAX);
        if bytes > mtu || room.len() < needed_bytes || !session.established {
            return None;
        }
        let hop = path.to_peer(&endpoint).ok()?;
        if !session.answers.take(self.now_ms) {
            return None;
        }
        let pass = admit(&mut self.gate, session, Way::Down, bytes, self.now_ns).ok()?;
        if let Some(tap) = &self.tap {
            tap.copy(&session.plan.public_key, &message[..bytes], self.now_ns);
        }
        let sealed = session.tunnel.encapsulate(&message[..padded_bytes], room);
        let TunnResult::WriteToNetwork(sealed) = sealed else {
            return None;
        };
        let message_bytes = sealed.len();
        session.sent_ms = self.now_ms;
        charge(&mut self.gate, session, &pass, self.now_ns);
        Some(Outcome::ToPeer {
            endpoint,
            hop,
            bytes: message_bytes,
        })
    }
}
