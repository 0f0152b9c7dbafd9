//! What peers reach: the public Internet, and beside it what the operator allows.

use std::net::IpAddr;
use std::sync::Arc;

use topnet_config::Reach;

use super::{Outcome, PADDING_BYTES, Path, Plane, PlaneConfig, Way, admit, charge};
use crate::accounting::Gate;
use crate::drops::DropReason;
use crate::packet::{Ip, decrement_hops};
use crate::session::SessionIndex;
use crate::team::Content;

/// Where a packet for a peer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// From beyond the tunnel.
    World,
    /// From another peer, who may reach this one and is charged for it.
    Peer,
}

/// What peers reach, and room for a packet between two of them.
pub(super) struct Relay {
    reach: Arc<Reach>,
    room: Box<[u8]>,
}

impl Relay {
    /// Nobody reaches anybody yet.
    pub(super) fn new(config: &PlaneConfig) -> Self {
        // A plain interface leaves it to the kernel who reaches whom.
        let bytes = config.inner.map_or(0, |_| config.inner_mtu + PADDING_BYTES);
        Self {
            reach: Arc::default(),
            room: vec![0; bytes].into(),
        }
    }

    /// Refuses what would leave for a private network that nobody allowed.
    pub(super) fn check(&self, destination: IpAddr, unmetered: bool) -> Result<(), DropReason> {
        match self.reach.lets_out(destination, unmetered) {
            true => Ok(()),
            false => Err(DropReason::PrivateNetwork),
        }
    }
}

impl<G: Gate> Plane<G> {
    /// Says anew what peers reach, and gives back what was said before.
    pub fn change_reach(&mut self, reach: Arc<Reach>) -> Arc<Reach> {
        std::mem::replace(&mut self.relay.reach, reach)
    }

    /// Where the packet that is handled now comes from.
    pub(super) fn origin(&self) -> Origin {
        match self.seat.as_ref().and_then(|seat| seat.taking()) {
            Some(Content::Relayed) => Origin::Peer,
            _ => Origin::World,
        }
    }

    /// A packet from one peer for another, which stands in `out` at the path's offset. Each pays as if
    /// it came from outside or went there, and nobody for what goes no further. What is another worker's
    /// session's is the sender's once it is passed on.
    pub(super) fn relay<P: Path>(
        &mut self,
        path: &mut P,
        from: SessionIndex,
        ip: &Ip,
        out: &mut [u8],
    ) -> Result<Outcome<P::Hop>, DropReason> {
        let to = self.owners.of(ip.destination);
        let joined = self.relay.reach.joins(ip.source, ip.destination);
        // What a peer sends to itself is its own network's business.
        if !joined || to == Some(from) {
            return Err(DropReason::BetweenClients);
        }
        let to = to.ok_or(DropReason::NoSession)?;
        // The kernel does not see these, so that it cannot answer either.
        if ip.hops <= 1 {
            return self.answer_client(path, from, DropReason::TtlExceeded, ip, out);
        }
        let bytes = ip.total_bytes;
        if bytes > self.config.inner_mtu {
            return self.answer_client(path, from, DropReason::TooLarge, ip, out);
        }
        let receivers = self.sessions.get(to).and_then(|it| it.plan.slot());
        let session = self.sessions.get_mut(from);
        let session = session.ok_or(DropReason::SessionUnknown)?;
        let slot = session.plan.slot();
        // Nothing is set aside by being admitted: a channel that has both peers needs credit for both.
        if let Some(slot) = slot.filter(|_| slot == receivers) {
            self.gate.admit(slot, 2 * bytes)?;
        }
        let pass = admit(&mut self.gate, session, Way::Up, bytes, self.now_ns)?;
        let (outcome, handed_on) = self.hand_on(path, to, bytes, out)?;
        if let Some(session) = self.sessions.get_mut(from)
            && handed_on
        {
            charge(&mut self.gate, session, &pass, self.now_ns);
        }
        Ok(outcome)
    }

    /// Seals a packet in `out` for another peer, or passes it to the worker that does. True if it goes on.
    fn hand_on<P: Path>(
        &mut self,
        path: &mut P,
        to: SessionIndex,
        bytes: usize,
        out: &mut [u8],
    ) -> Result<(Outcome<P::Hop>, bool), DropReason> {
        let packet = &mut out[P::PACKET_OFFSET..P::PACKET_OFFSET + bytes];
        if P::KERNEL_ROUTES {
            // The kernel does not see this one; where it does not route, `down` takes the hop.
            decrement_hops(packet);
        }
        // What is opened here may have come in a parcel itself: it goes on once, and no further.
        let seat = self.seat.as_ref();
        if seat.is_some_and(|seat| seat.is_other(to.worker())) {
            self.pass(to.worker(), to, Content::Relayed, packet)?;
            return Ok((Outcome::Nothing, true));
        }
        // It is sealed from one buffer into another. Nothing is allocated by this.
        let mut room = std::mem::take(&mut self.relay.room);
        let outcome = match room.get_mut(..bytes) {
            Some(copy) => {
                copy.copy_from_slice(packet);
                self.down(path, &mut room, bytes, out, Origin::Peer)
            }
            None => Err(DropReason::TooLarge),
        };
        self.relay.room = room;
        // A receiver without a tunnel is greeted instead.
        outcome.map(|outcome| (outcome, matches!(outcome, Outcome::ToPeer { .. })))
    }
}
