//! Address translation, as the plane uses it: a client is a subscriber by its host number.

use std::net::IpAddr;

use topnet_config::{Ipv4Subnet, Nat};
use topnet_nat::{BlockEvent, ConfigError, Nat44, Outward, Refusal, Subscriber};

use crate::drops::DropReason;

/// Steps of cleaning up between two bursts, in each table: some tens of microseconds, and with 64
/// bursts that are followed by it a second, 8,192 flows of clients that left.
const SWEEP_WORK_MAX: usize = 128;

/// The pool and everything that is lent from it.
pub struct Translation {
    pool: Ipv4Subnet,
    nat: Nat44,
}

impl Translation {
    /// Nothing is lent yet. `seed` decides which ports are.
    pub fn new(section: &Nat, clients_max: u32, seed: [u8; 32]) -> Result<Self, ConfigError> {
        Ok(Self {
            pool: section.addresses,
            nat: Nat44::new(section.translation(clients_max)?, seed)?,
        })
    }

    /// The addresses that packets for clients come to.
    #[must_use]
    pub fn pool(&self) -> Ipv4Subnet {
        self.pool
    }

    /// True for the addresses that clients share.
    #[must_use]
    pub fn shares(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if self.pool.contains(address))
    }

    /// Gives a client's packet an address and a port of the pool.
    pub(crate) fn out(
        &mut self,
        now_ms: u64,
        host: u32,
        packet: &mut [u8],
    ) -> Result<(), DropReason> {
        match self.nat.translate_out(now_ms, Subscriber(host), packet)? {
            Outward::Leaves => Ok(()),
            // Clients do not reach each other, by public addresses neither.
            Outward::Returns => Err(DropReason::Nat(Refusal::Hairpin)),
        }
    }

    /// Gives a packet for the pool a client's address, and says whose.
    pub(crate) fn back(&mut self, now_ms: u64, packet: &mut [u8]) -> Result<u32, DropReason> {
        Ok(self.nat.translate_in(now_ms, packet)?.0)
    }

    /// Ends what is over. To be called many times a second.
    pub(crate) fn sweep(&mut self, now_ms: u64) {
        self.nat.sweep(now_ms, SWEEP_WORK_MAX);
    }

    /// Lets a client go. What it has is ended by [`sweep`](Self::sweep), however much it is.
    pub(crate) fn remove(&mut self, now_ms: u64, host: u32) {
        self.nat.remove(now_ms, Subscriber(host));
    }

    /// What is to be logged next.
    pub(crate) fn take_event(&mut self) -> Option<BlockEvent> {
        self.nat.take_event()
    }
}
