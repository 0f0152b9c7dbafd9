//! Whose a packet is: which session's, and so which worker's.

use topnet_nat::Whose;

use super::Plane;
use crate::accounting::Gate;
use crate::drops::DropReason;
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

    /// Passes something to another worker.
    pub(super) fn pass(
        &mut self,
        to: WorkerNumber,
        content: Content,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let seat = self.seat.as_mut().ok_or(DropReason::SessionUnknown)?;
        seat.pass(to, content, bytes)
    }

    /// Something that another worker received and that is for this one's sessions.
    pub fn take_parcel(&mut self) -> Option<Box<Parcel>> {
        self.seat.as_mut()?.take()
    }

    /// Sends a parcel home, which was handled.
    pub fn give_back(&mut self, parcel: Box<Parcel>) {
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

    /// The other worker that a packet from outside is for, if it is.
    pub(super) fn whose(
        &mut self,
        ip: &Ip,
        kernel_routes: bool,
        packet: &[u8],
    ) -> Result<Option<WorkerNumber>, DropReason> {
        // With one worker all is its own, and nothing is looked up twice.
        if self.seat.as_ref().is_none_or(|seat| seat.is_taking()) {
            return Ok(None);
        }
        let worker = match self.destination(ip, kernel_routes) {
            Destination::Inside(index) => index.map(SessionIndex::worker),
            Destination::Shared => match &self.translation {
                Some(translation) => translation.worker_of(&Whose::of(packet)?),
                None => None,
            },
        };
        Ok(worker.filter(|worker| self.is_elsewhere(*worker)))
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
