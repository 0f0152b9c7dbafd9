//! Address translation, as the plane uses it: a client is a subscriber by its host number.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use topnet_api::{DropCount, NatStatus};
use topnet_config::{Ipv4Subnet, Nat};
use topnet_nat::{
    BlockEvent, ConfigError, FragmentId, Limits, Nat44, Outward, PoolPart, Refusal, RestoreError,
    Subscriber, Whose,
};

use crate::drops::{DropCounters, DropReason};
use crate::nat_log::Holder;
use crate::nat_state::NatState;
use crate::session::{SessionIndex, WorkerNumber};

/// Steps of cleaning up between two bursts, in each table: some tens of microseconds, and with 64
/// bursts that are followed by it a second, 8,192 flows of clients that left.
const SWEEP_WORK_MAX: usize = 128;

/// How long a client of the last run may stay away before what it had is another's: as long as a
/// block rests.
const RESTORED_PATIENCE_MS: u64 = 120_000;

/// The pool and everything that is lent from it.
pub struct Translation {
    pool: Ipv4Subnet,
    nat: Nat44,
    /// Clients of the last run that are not here yet, by host number.
    awaited: BTreeMap<u32, Holder>,
    awaited_until_ms: u64,
    levels: Arc<PoolLevels>,
    firsts: Arc<FirstFragments>,
}

/// Fragments that are remembered for the others to find their worker by.
const FIRSTS: usize = 1 << 14;

/// Which worker each first fragment from outside was for. All workers write and read it, and newer
/// ones take older ones' places: whoever loses one sends it again.
pub struct FirstFragments {
    /// Bits of a hash, and the worker's number plus one in the lowest eight.
    places: Box<[AtomicU64]>,
    /// Nobody outside is to know which share a place.
    hasher: RandomState,
}

impl Default for FirstFragments {
    fn default() -> Self {
        Self {
            places: (0..FIRSTS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }
}

impl FirstFragments {
    fn note(&self, id: &FragmentId, worker: WorkerNumber) {
        let (place, bits) = self.place(id);
        place.store(bits | u64::from(worker.0 + 1), Ordering::Relaxed);
    }

    fn of(&self, id: &FragmentId) -> Option<WorkerNumber> {
        let (place, bits) = self.place(id);
        let found = place.load(Ordering::Relaxed);
        let worker = (found & 0xff) as u32;
        (found & !0xff == bits && worker > 0).then(|| WorkerNumber(worker - 1))
    }

    fn place(&self, id: &FragmentId) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(id);
        let place = (hash ^ hash >> 32) as usize % FIRSTS;
        (&self.places[place], hash & !0xff)
    }
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
    pub fn new(
        section: &Nat,
        clients_max: u32,
        part: PoolPart,
        seed: [u8; 32],
    ) -> Result<Self, ConfigError> {
        let config = section.translation(clients_max)?.with_part(part);
        let limits = config.limits;
        Ok(Self::with(section, &limits, Nat44::new(config, seed)?))
    }

    /// What the last run had lent, and nobody is here yet. A client has its flows again when it is
    /// installed with the key and the channel that it had.
    pub fn restore(
        section: &Nat,
        clients_max: u32,
        part: PoolPart,
        seed: [u8; 32],
        now_ms: u64,
        state: NatState,
    ) -> Result<Self, RestoreError> {
        let config = section.translation(clients_max)?.with_part(part);
        let limits = config.limits;
        // The clock has gone on since, and flows have grown older with it.
        let nat = Nat44::restore(config, seed, state.ended_ms, &state.snapshot)?;
        let mut translation = Self::with(section, &limits, nat);
        translation.awaited_until_ms = now_ms.saturating_add(RESTORED_PATIENCE_MS);
        let clients: Vec<Subscriber> = translation
            .nat
            .subscribers()
            .map(|status| status.subscriber)
            .collect();
        for subscriber in clients {
            match state.holders.get(&subscriber.0) {
                Some(holder) => drop(translation.awaited.insert(subscriber.0, *holder)),
                None => translation.nat.remove(now_ms, subscriber),
            }
        }
        Ok(translation)
    }

    fn with(section: &Nat, limits: &Limits, nat: Nat44) -> Self {
        let levels = Arc::new(PoolLevels {
            blocks: nat.counters().blocks,
            mappings_max: limits.mappings_max,
            flows_max: limits.flows_max,
            blocks_lent: AtomicU32::new(0),
            blocks_resting: AtomicU32::new(0),
            clients: AtomicU32::new(0),
            mappings: AtomicU32::new(0),
            flows: AtomicU32::new(0),
        });
        Self {
            pool: section.addresses,
            nat,
            awaited: BTreeMap::new(),
            awaited_until_ms: 0,
            levels,
            firsts: Arc::default(),
        }
    }

    /// Shares what is known of first fragments with the other workers' parts.
    #[must_use]
    pub fn with_firsts(mut self, firsts: Arc<FirstFragments>) -> Self {
        self.firsts = firsts;
        self
    }

    /// Clients of the last run that are not here yet.
    pub fn awaited(&self) -> impl Iterator<Item = &Holder> {
        self.awaited.values()
    }

    /// Which worker a packet from outside is for, and what tells its client from others: the port
    /// does. Of a later fragment nobody knows it whose first was not seen.
    pub(crate) fn worker_of(&self, whose: &Whose) -> Option<(WorkerNumber, SessionIndex)> {
        let of_port = |port: u16| {
            let worker = WorkerNumber(self.nat.part_of(port));
            (worker, SessionIndex::new(worker, port.into()))
        };
        match whose {
            Whose::Port(port) => Some(of_port(*port)),
            Whose::First(port, id) => {
                let (worker, index) = of_port(*port);
                self.firsts.note(id, worker);
                Some((worker, index))
            }
            Whose::Later(id) => {
                let worker = self.firsts.of(id)?;
                Some((worker, SessionIndex::new(worker, 0)))
            }
        }
    }

    /// What is to be left to the next run. `holder_of` tells who has a host number now.
    pub(crate) fn state(
        &mut self,
        now_ms: u64,
        holder_of: impl Fn(Subscriber) -> Option<Holder>,
    ) -> NatState {
        // What is left of flows' times is counted from here.
        self.nat.sweep(now_ms, 0);
        let holder = |subscriber: Subscriber| {
            let awaited = self.awaited.get(&subscriber.0).copied();
            let holder = awaited.or_else(|| holder_of(subscriber))?;
            Some((subscriber.0, holder))
        };
        let subscribers = self.nat.subscribers().map(|status| status.subscriber);
        NatState {
            ended_ms: now_ms,
            holders: subscribers.filter_map(holder).collect(),
            snapshot: self.nat.snapshot(),
        }
    }

    /// Blocks that clients of the last run have still, and who they are.
    pub fn restored_blocks(&self) -> impl Iterator<Item = (BlockEvent, Option<Holder>)> {
        self.nat.lent_blocks().map(|event| {
            let holder = self.awaited.get(&event.subscriber.0).copied();
            (event, holder)
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

    /// A client is here. What its number had in the last run is its own only if it is the same.
    pub(crate) fn install(&mut self, now_ms: u64, host: u32, holder: Holder) {
        if self.awaited.remove(&host).is_some_and(|had| had != holder) {
            self.nat.remove(now_ms, Subscriber(host));
        }
    }

    /// Ends what is over, and says how full the pool is. To be called many times a second.
    pub(crate) fn sweep(&mut self, now_ms: u64) {
        if now_ms >= self.awaited_until_ms {
            for _ in 0..SWEEP_WORK_MAX {
                let Some((host, _)) = self.awaited.pop_first() else {
                    break;
                };
                self.nat.remove(now_ms, Subscriber(host));
            }
        }
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
    /// For the operator, of all workers together, with the packets that found no room. `None` if
    /// addresses are not shared.
    #[must_use]
    pub fn status(parts: &[Arc<Self>], drops: &[Arc<DropCounters>]) -> Option<NatStatus> {
        let sum = |level: fn(&Self) -> u32| parts.iter().map(|part| level(part)).sum();
        let level = |level: fn(&Self) -> &AtomicU32| {
            let levels = parts.iter().map(|part| level(part).load(Ordering::Relaxed));
            levels.sum()
        };
        if parts.is_empty() {
            return None;
        }
        let shortages = Refusal::ALL.iter().filter(|refusal| refusal.is_shortage());
        let refused = shortages.map(|refusal| DropCount {
            reason: refusal.name().to_owned(),
            packets: drops
                .iter()
                .map(|drops| drops.packets(DropReason::Nat(*refusal)))
                .sum(),
        });
        Some(NatStatus {
            blocks: sum(|part| part.blocks),
            blocks_lent: level(|part| &part.blocks_lent),
            blocks_resting: level(|part| &part.blocks_resting),
            clients: level(|part| &part.clients),
            mappings: level(|part| &part.mappings),
            mappings_max: sum(|part| part.mappings_max),
            flows: level(|part| &part.flows),
            flows_max: sum(|part| part.flows_max),
            refused: refused.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Ipv4Slice, PacketBuilder, UdpSlice};
    use topnet_account::ChannelId;

    const REMOTE: [u8; 4] = [192, 0, 2, 9];
    /// They live for 30 seconds after the first.
    const LAST_MS: u64 = 30_999;

    fn section() -> Nat {
        Nat {
            addresses: "198.51.100.0/30".parse().unwrap(),
            block_ports: 512,
            blocks_per_client_max: 8,
            flows_max: Some(100),
            flows_per_client_max: Some(50),
            mappings_max: Some(100),
            mappings_per_client_max: Some(50),
            log_file: std::path::PathBuf::new(),
        }
    }

    fn holder(key: u8, channel: u8) -> Holder {
        Holder {
            channel: Some(ChannelId([channel; 32])),
            wireguard_public_key: [key; 32],
        }
    }

    /// Sends from a client; what answers it.
    fn call(translation: &mut Translation, now_ms: u64, host: u8) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([10, 78, 0, host], REMOTE, 64).udp(5000, 53);
        builder.write(&mut packet, b"x").unwrap();
        translation.out(now_ms, host.into(), &mut packet).unwrap();
        let ip = Ipv4Slice::from_slice(&packet).unwrap();
        let port = UdpSlice::from_slice(ip.payload().payload).unwrap();
        let mut answer = Vec::new();
        let to = ip.header().destination_addr();
        let builder = PacketBuilder::ipv4(to.octets(), ip.header().source_addr().octets(), 64)
            .udp(53, port.source_port());
        builder.write(&mut answer, b"y").unwrap();
        answer
    }

    #[test]
    fn only_who_had_flows_has_them_again_and_nobody_is_awaited_for_ever() {
        let mut before = Translation::new(&section(), 8, PoolPart::WHOLE, [1; 32]).unwrap();
        let answers: Vec<_> = (2..8).map(|host| call(&mut before, 1000, host)).collect();
        // The last one is known to nobody.
        let known = |subscriber: Subscriber| {
            let host = subscriber.0 as u8;
            (host != 7).then(|| holder(host, 1))
        };
        let state = before.state(20_000, known);
        assert_eq!(state.holders.len(), 5);
        let now_ms = LAST_MS;
        let restore = |now_ms| {
            let state = state.clone();
            Translation::restore(&section(), 8, PoolPart::WHOLE, [2; 32], now_ms, state).unwrap()
        };
        let mut after = restore(now_ms);
        let told: Vec<_> = after.restored_blocks().collect();
        assert_eq!(told.len(), 5);
        let whose = |(event, whose): &(BlockEvent, Option<Holder>)| {
            *whose == Some(holder(event.subscriber.0 as u8, 1))
        };
        assert!(told.iter().all(whose));

        after.install(now_ms, 2, holder(2, 1));
        after.install(now_ms, 3, holder(9, 1));
        after.install(now_ms, 4, holder(4, 9));
        after.sweep(now_ms);
        let reached = |translation: &mut Translation, now_ms| -> Vec<_> {
            let back = |answer: &Vec<u8>| translation.back(now_ms, &mut answer.clone()).ok();
            answers.iter().filter_map(back).collect()
        };
        assert_eq!(reached(&mut after, now_ms), [2, 5, 6]);
        // What goes on is written down for the next run with whoever has it, here or awaited.
        let next = after.state(now_ms, |host| (host.0 == 2).then(|| holder(2, 1)));
        assert_eq!(
            next.holders,
            [2, 5, 6].map(|host| (host, holder(host as u8, 1))).into()
        );
        // Who stays away has nothing after a while, and who is here keeps what is used.
        let mut later_ms = now_ms;
        while later_ms < now_ms + RESTORED_PATIENCE_MS {
            after.sweep(later_ms);
            assert_eq!(reached(&mut after, later_ms), [2, 5, 6]);
            later_ms += 10_000;
        }
        after.sweep(later_ms);
        assert_eq!(reached(&mut after, later_ms), [2]);

        // Time that passed between the runs is time that passed.
        let mut late = restore(now_ms + 1);
        assert_eq!(reached(&mut late, now_ms + 1), [0; 0]);
        let few = Nat {
            flows_max: Some(2),
            ..section()
        };
        assert!(Translation::restore(&few, 1, PoolPart::WHOLE, [2; 32], now_ms, state).is_err());
    }
}
