//! Address translation, as the plane uses it: a client is a subscriber by its host number.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use topnet_api::{DropCount, NatStatus};
use topnet_config::{Ipv4Subnet, Nat};
use topnet_nat::{BlockEvent, ConfigError, Nat44, Outward, Refusal, Subscriber};

use crate::drops::{DropCounters, DropReason};

/// Steps of cleaning up between two bursts, in each table: some tens of microseconds, and with 64
/// bursts that are followed by it a second, 8,192 flows of clients that left.
const SWEEP_WORK_MAX: usize = 128;

/// The pool and everything that is lent from it.
pub struct Translation {
    pool: Ipv4Subnet,
    nat: Nat44,
    levels: Arc<PoolLevels>,
}

/// How full the pool is, for others to read: as old as the last sweep.
#[derive(Debug)]
pub struct PoolLevels {
    blocks: u32,
    mappings_max: u32,
    flows_max: u32,
    blocks_lent: AtomicU32,
    blocks_resting: AtomicU32,
    clients: AtomicU32,
    mappings: AtomicU32,
    flows: AtomicU32,
}

impl Translation {
    /// Nothing is lent yet. `seed` decides which ports are.
    pub fn new(section: &Nat, clients_max: u32, seed: [u8; 32]) -> Result<Self, ConfigError> {
        let config = section.translation(clients_max)?;
        let (mappings_max, flows_max) = (config.limits.mappings_max, config.limits.flows_max);
        let nat = Nat44::new(config, seed)?;
        let levels = Arc::new(PoolLevels {
            blocks: nat.counters().blocks,
            mappings_max,
            flows_max,
            blocks_lent: AtomicU32::new(0),
            blocks_resting: AtomicU32::new(0),
            clients: AtomicU32::new(0),
            mappings: AtomicU32::new(0),
            flows: AtomicU32::new(0),
        });
        Ok(Self {
            pool: section.addresses,
            nat,
            levels,
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

    /// How full the pool is, now and later.
    #[must_use]
    pub fn levels(&self) -> Arc<PoolLevels> {
        Arc::clone(&self.levels)
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

    /// Ends what is over, and says how full the pool is. To be called many times a second.
    pub(crate) fn sweep(&mut self, now_ms: u64) {
        self.nat.sweep(now_ms, SWEEP_WORK_MAX);
        let counters = self.nat.counters();
        let levels = [
            (&self.levels.blocks_lent, counters.blocks_lent),
            (&self.levels.blocks_resting, counters.blocks_resting),
            (&self.levels.clients, counters.subscribers),
            (&self.levels.mappings, counters.mappings),
            (&self.levels.flows, counters.flows),
        ];
        for (level, now) in levels {
            level.store(now, Ordering::Relaxed);
        }
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

impl PoolLevels {
    /// For the operator, with the packets that found no room.
    #[must_use]
    pub fn status(&self, drops: &DropCounters) -> NatStatus {
        let level = |level: &AtomicU32| level.load(Ordering::Relaxed);
        let shortages = Refusal::ALL.iter().filter(|refusal| refusal.is_shortage());
        let refused = shortages.map(|refusal| DropCount {
            reason: refusal.name().to_owned(),
            packets: drops.packets(DropReason::Nat(*refusal)),
        });
        NatStatus {
            blocks: self.blocks,
            blocks_lent: level(&self.blocks_lent),
            blocks_resting: level(&self.blocks_resting),
            clients: level(&self.clients),
            mappings: level(&self.mappings),
            mappings_max: self.mappings_max,
            flows: level(&self.flows),
            flows_max: self.flows_max,
            refused: refused.collect(),
        }
    }
}
