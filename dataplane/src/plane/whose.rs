//! Whose a packet is: which session's, and so which worker's.

use topnet_nat::Whose;

use super::Plane;
use crate::accounting::Gate;
use crate::drops::DropReason;
use crate::fairness::Counted;
use crate::packet::Ip;
use crate::session::{SessionIndex, WorkerNumber};
use crate::team::{Content, Parcel};

/// What the destination of a packet from outside is.
enum Destination {
    /// An address that clients share.
    Shared,
    /// An address of this session's, or nobody's.
    Inside(Option<SessionIndex>),
}

impl<G: Gate> Plane<G> {
    /// True for another worker of the team. What came in a parcel stays here.
    pub(super) fn is_elsewhere(&self, worker: WorkerNumber) -> bool {
        let seat = self.seat.as_ref();
        seat.is_some_and(|seat| seat.is_other(worker) && !seat.is_taking())
    }

    /// Passes something to another worker. `index` is the session's, or whatever else tells senders
    /// apart.
    pub(super) fn pass(
        &mut self,
        to: WorkerNumber,
        index: SessionIndex,
        content: Content,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let seat = self.seat.as_mut().ok_or(DropReason::SessionUnknown)?;
        let counted = Counted::Passed(index, seat.level_of(to));
        if !self.fairness.admits(counted, bytes.len()) {
            return Err(DropReason::FairShare);
        }
        seat.pass(to, content, bytes)
    }

    /// Something that another worker received and that is for this one's sessions.
    pub fn take_parcel(&mut self) -> Option<Parcel> {
        self.seat.as_mut()?.take()
    }

    /// Sends a parcel home, which was handled.
    pub fn give_back(&mut self, parcel: Parcel) {
        if let Some(seat) = &mut self.seat {
            seat.give_back(parcel);
        }
    }

    /// Says that the worker is about to sleep; false if it must not.
    pub fn may_sleep(&self) -> bool {
        self.seat.as_ref().is_none_or(|seat| seat.may_sleep())
    }

    /// Says that the worker is awake.
    pub fn is_awake(&self) {
        if let Some(seat) = &self.seat {
            seat.is_awake();
        }
    }

    /// The other worker that a packet from outside is for, if it is, and whose session's.
    pub(super) fn whose(
        &mut self,
        ip: &Ip,
        kernel_routes: bool,
        packet: &[u8],
    ) -> Result<Option<(WorkerNumber, SessionIndex)>, DropReason> {
        // With one worker all is its own, and nothing is looked up twice.
        if self.seat.as_ref().is_none_or(|seat| seat.is_taking()) {
            return Ok(None);
        }
        let to = match self.destination(ip, kernel_routes) {
            Destination::Inside(index) => index.map(|index| (index.worker(), index)),
            Destination::Shared => match &self.translation {
                Some(translation) => translation.worker_of(&Whose::of(packet)?),
                None => None,
            },
        };
        Ok(to.filter(|(worker, _)| self.is_elsewhere(*worker)))
    }

    fn destination(&self, ip: &Ip, kernel_routes: bool) -> Destination {
        // The kernel's own words to a client are not translated.
        let from_gateway = kernel_routes && self.owners.is_gateway(ip.source);
        match &self.translation {
            Some(translation) if translation.shares(ip.destination) => Destination::Shared,
            // Nobody outside knows inner addresses.
            Some(_)
                if ip.destination.is_ipv4()
                    && self.owners.is_inner(ip.destination)
                    && !from_gateway =>
            {
                Destination::Inside(None)
            }
            _ => Destination::Inside(self.owners.of(ip.destination)),
        }
    }

    /// True if a train of packets from outside, of which these are the first bytes, is dropped before it
    /// is cut: each of them would be.
    pub fn sheds(&mut self, train: &[u8], kernel_routes: bool, segment_bytes: usize) -> bool {
        if self.fairness.level().is_none() || segment_bytes == 0 {
            return false;
        }
        // The length is the whole train's, and is nobody's bill.
        let Ok(ip) = Ip::parse(train) else {
            return false;
        };
        let Destination::Inside(Some(index)) = self.destination(&ip, kernel_routes) else {
            return false;
        };
        let Some(session) = self.sessions.get_mut(index) else {
            return false;
        };
        let packets = (ip.total_bytes / segment_bytes).max(1) as u64;
        let (place, share) = (index.place(), &mut session.share);
        let sheds = self.fairness.sheds(place, share, segment_bytes, packets);
        if sheds {
            self.drops.add(DropReason::FairShare, packets);
        }
        sheds
    }

    /// The session that a packet from outside is for. If its address is shared, the packet has the
    /// client's own afterwards.
    pub(super) fn receiver(
        &mut self,
        ip: &Ip,
        kernel_routes: bool,
        packet: &mut [u8],
    ) -> Result<SessionIndex, DropReason> {
        let index = match (self.destination(ip, kernel_routes), &mut self.translation) {
            (Destination::Inside(index), _) => index,
            (Destination::Shared, Some(translation)) => {
                let host = translation.back(self.now_ms, packet)?;
                self.owners.of_host(host)
            }
            (Destination::Shared, None) => None,
        };
        index.ok_or(DropReason::NoSession)
    }
}
