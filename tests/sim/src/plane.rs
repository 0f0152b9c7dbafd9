//! One run of a data plane: real tables and rings, and a model of what spends their credit.
//!
//! A burst reads credit when it begins and is counted when it ends; in between credit may be
//! taken away, the process may die, and metering may do whatever it likes. One worker: bursts
//! do not overlap.

use std::collections::VecDeque;

use topnet_account::ChannelId;
use topnet_api::{Assignment, Assignments, SlotState};
use topnet_channel::SlotUse;
use topnet_unit::{
    Attachment, Balance, BootId, CreditTable, Handover, HandoverError, Header, Mapping, Producer,
    Slot, UnitRecord, UsageTable,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Live,
    /// The worker has been asked for the sessions and may be within a burst.
    Draining,
    Retired,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    phase: Phase,
    generation: u32,
    channel: usize,
    base_bytes: u64,
    /// The boundary that was last answered with a record.
    recorded_at_bytes: u64,
}

/// What a burst will count for one slot.
#[derive(Clone, Copy, Debug)]
struct Pending {
    index: u32,
    bytes: u64,
    record_at_bytes: u64,
}

/// Bytes that a burst has counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub(crate) channel: usize,
    pub(crate) slot_use: SlotUse,
    pub(crate) bytes: u64,
    /// Usage afterwards.
    pub(crate) usage_bytes: u64,
}

/// One run.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) boot: BootId,
    handover: Handover,
    usage: UsageTable,
    credit: CreditTable,
    ring: Producer<Mapping>,
    /// Index 0 is never used.
    places: Vec<Place>,
    free: VecDeque<u32>,
    burst: Vec<Pending>,
}

impl Plane {
    pub(crate) fn new(boot: BootId, slots: u32, records: u32) -> Result<Self, HandoverError> {
        let header = Header {
            boot,
            slots,
            workers: 1,
            records,
        };
        let (handover, usage, credit, mut rings) = Handover::in_memory(header)?;
        let place = Place {
            phase: Phase::Free,
            generation: 0,
            channel: 0,
            base_bytes: 0,
            recorded_at_bytes: u64::MAX,
        };
        Ok(Self {
            boot,
            handover,
            usage,
            credit,
            ring: rings.remove(0),
            places: vec![place; slots as usize],
            free: (1..slots).collect(),
            burst: Vec::new(),
        })
    }

    /// What metering is given.
    pub(crate) fn attach(&self) -> Result<Attachment, HandoverError> {
        self.handover.attach()
    }

    fn slot_use(&self, index: u32) -> SlotUse {
        let generation = self.places[index as usize].generation;
        SlotUse {
            boot: self.boot,
            slot: Slot { index, generation },
        }
    }

    fn used(&self) -> impl Iterator<Item = (u32, &Place)> {
        (0..)
            .zip(&self.places)
            .filter(|(_, place)| place.phase != Phase::Free)
    }

    fn live(&self, channel: usize) -> Option<u32> {
        self.used()
            .find(|(_, place)| place.phase == Phase::Live && place.channel == channel)
            .map(|(index, _)| index)
    }

    /// Gives a channel its slot if it has none; true if it is a new one.
    pub(crate) fn enter(&mut self, channel: usize) -> Option<(SlotUse, u64)> {
        if self.live(channel).is_some() {
            return None;
        }
        let index = self.free.pop_front()?;
        let base_bytes = self.usage.totals(index).bytes;
        let place = &mut self.places[index as usize];
        *place = Place {
            phase: Phase::Live,
            generation: place.generation + 1,
            channel,
            base_bytes,
            recorded_at_bytes: u64::MAX,
        };
        Some((self.slot_use(index), base_bytes))
    }

    /// The channel's sessions end.
    pub(crate) fn leave(&mut self, channel: usize) {
        if let Some(index) = self.live(channel) {
            self.places[index as usize].phase = Phase::Draining;
        }
    }

    /// The worker is between two bursts: what drains counts no more.
    pub(crate) fn confirm(&mut self) {
        if self.burst.is_empty() {
            for place in &mut self.places {
                if place.phase == Phase::Draining {
                    place.phase = Phase::Retired;
                }
            }
        }
    }

    /// True if the slot's last totals were taken as journalled.
    pub(crate) fn acknowledge(&mut self, slot: Slot) -> bool {
        let Some(place) = self.places.get_mut(slot.index as usize) else {
            return false;
        };
        if place.generation != slot.generation {
            return slot.generation != 0 && slot.generation < place.generation;
        }
        match place.phase {
            Phase::Free => true,
            Phase::Live | Phase::Draining => false,
            Phase::Retired => {
                place.phase = Phase::Free;
                self.free.push_back(slot.index);
                true
            }
        }
    }

    pub(crate) fn assignments(&self, name: impl Fn(usize) -> ChannelId) -> Assignments {
        let slots = self.used().map(|(slot, place)| Assignment {
            channel: name(place.channel),
            slot,
            generation: place.generation,
            base_bytes: place.base_bytes,
            state: if place.phase == Phase::Retired {
                SlotState::Retired
            } else {
                SlotState::Live
            },
        });
        Assignments {
            boot: self.boot.to_string(),
            slots: slots.collect(),
        }
    }

    /// A burst begins: for each live slot as much of `wanted_bytes` as its credit allows.
    pub(crate) fn begin(&mut self, mut wanted_bytes: impl FnMut(usize) -> u64) {
        if !self.burst.is_empty() {
            return;
        }
        let mut burst = Vec::new();
        for (index, place) in self.used() {
            let counts = matches!(place.phase, Phase::Live | Phase::Draining);
            let wanted_bytes = if counts {
                wanted_bytes(place.channel)
            } else {
                0
            };
            if wanted_bytes == 0 {
                continue;
            }
            let Balance {
                limit_bytes,
                record_at_bytes,
            } = self.credit.balance(self.slot_use(index).slot);
            let room = limit_bytes.saturating_sub(self.usage.totals(index).bytes);
            burst.push(Pending {
                index,
                bytes: wanted_bytes.min(room),
                record_at_bytes,
            });
        }
        self.burst = burst;
    }

    /// The burst ends: counted, and a record published where a boundary was passed.
    pub(crate) fn settle(&mut self, time_ns: u64) -> Vec<Counted> {
        let mut counted = Vec::new();
        for pending in std::mem::take(&mut self.burst) {
            let index = pending.index;
            if pending.bytes > 0 {
                let (_, usage_bytes) = self.usage.add(index, pending.bytes, 1);
                counted.push(Counted {
                    channel: self.places[index as usize].channel,
                    slot_use: self.slot_use(index),
                    bytes: pending.bytes,
                    usage_bytes,
                });
            }
            let totals = self.usage.totals(index);
            let slot = self.slot_use(index).slot;
            let place = &mut self.places[index as usize];
            let at_bytes = pending.record_at_bytes;
            if at_bytes == place.recorded_at_bytes || totals.bytes < at_bytes {
                continue;
            }
            let record = UnitRecord {
                slot,
                bytes: totals.bytes,
                packets: totals.packets,
                time_ns,
            };
            if self.ring.push(record) {
                place.recorded_at_bytes = at_bytes;
            }
        }
        counted
    }

    /// Bytes that the channel's slots could still forward without anybody's doing.
    pub(crate) fn room_bytes(&self, channel: usize) -> u64 {
        let rooms = self.used().filter(|(_, place)| place.channel == channel);
        rooms
            .map(|(index, _)| {
                let limit_bytes = self.credit.balance(self.slot_use(index).slot).limit_bytes;
                let room = limit_bytes.saturating_sub(self.usage.totals(index).bytes);
                room.max(self.pending_bytes(index))
            })
            .sum()
    }

    fn pending_bytes(&self, index: u32) -> u64 {
        let pending = self.burst.iter().filter(|pending| pending.index == index);
        pending.map(|pending| pending.bytes).sum()
    }

    /// The channel's slots that have credit.
    pub(crate) fn open(&self, channel: usize) -> impl Iterator<Item = SlotUse> {
        self.used()
            .filter(move |(_, place)| place.channel == channel)
            .map(|(index, _)| self.slot_use(index))
            .filter(|slot_use| self.credit.balance(slot_use.slot) != Balance::NONE)
    }
}
