//! Which slot belongs to which channel, and when it may belong to another.
//!
//! A slot is **free**, **live** (sessions may count into it), **draining** (its sessions were
//! taken from the worker, which has not confirmed yet) or **retired** (the worker is past the
//! burst: the totals are final). From retired it becomes free when metering acknowledges the
//! generation, which it does after it journalled the totals and took the credit away. Free
//! slots are used in turn, so that an index rests as long as possible between two uses.
//!
//! | event | free | live | draining | retired |
//! |---|---|---|---|---|
//! | assign a channel | live, next generation | (its own slot again) | another slot | another slot |
//! | last session leaves | – | draining | – | – |
//! | worker confirmed | – | – | retired | – |
//! | acknowledge | refused | refused: still counting | refused: still counting | free |

use std::collections::{HashMap, VecDeque};

use topnet_account::ChannelId;
use topnet_unit::Slot;

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Of no channel.
    Free,
    /// Sessions count into it.
    Live,
    /// The worker has been asked for its sessions.
    Draining,
    /// Nothing counts into it any more; metering has not acknowledged yet.
    Retired,
}

/// One use of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Index and generation.
    pub slot: Slot,
    /// Whose it is.
    pub channel: ChannelId,
    /// Usage when the use began.
    pub base_bytes: u64,
    /// Live, draining or retired.
    pub phase: Phase,
}

/// Why an acknowledgement was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcknowledgeError {
    /// No such slot.
    #[error("there is no slot {0}")]
    Unknown(u32),
    /// The generation is over already, or has not begun.
    #[error("slot {index} is at generation {current}, not {asked}")]
    OtherGeneration {
        /// Which slot.
        index: u32,
        /// As it stands.
        current: u32,
        /// As acknowledged.
        asked: u32,
    },
    /// Something may still count into it.
    #[error("slot {0} is still counting")]
    StillCounting(u32),
}

#[derive(Clone, Debug)]
struct Place {
    generation: u32,
    phase: Phase,
    channel: Option<ChannelId>,
    base_bytes: u64,
    /// Sessions that count here, or are on their way back from the worker.
    sessions: u32,
}

/// All slots of one data plane.
#[derive(Debug)]
pub struct Slots {
    /// Index 0 is never used.
    places: Vec<Place>,
    free: VecDeque<u32>,
    /// Live slots only.
    by_channel: HashMap<ChannelId, u32>,
}

impl Slots {
    /// `slots` free slots, the unused slot 0 included.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        let place = Place {
            generation: 0,
            phase: Phase::Free,
            channel: None,
            base_bytes: 0,
            sessions: 0,
        };
        Self {
            places: vec![place; slots as usize],
            free: (1..slots).collect(),
            by_channel: HashMap::new(),
        }
    }

    /// Adds a session of `channel`: to its live slot, or to a free one, whose usage `usage_bytes`
    /// tells. `None` if no slot is free.
    pub fn enter(
        &mut self,
        channel: ChannelId,
        usage_bytes: impl FnOnce(u32) -> u64,
    ) -> Option<Slot> {
        let index = match self.by_channel.get(&channel) {
            Some(index) => *index,
            None => {
                let index = self.free.pop_front()?;
                let place = &mut self.places[index as usize];
                place.generation += 1;
                place.phase = Phase::Live;
                place.channel = Some(channel);
                place.base_bytes = usage_bytes(index);
                self.by_channel.insert(channel, index);
                index
            }
        };
        let place = &mut self.places[index as usize];
        place.sessions += 1;
        Some(Slot {
            index,
            generation: place.generation,
        })
    }

    /// Drains the live slots of channels that are not `wanted` any more. A session of such a
    /// channel that comes back gets another slot.
    pub fn drain_unwanted(&mut self, wanted: impl Fn(&ChannelId) -> bool) {
        let places = &mut self.places;
        self.by_channel.retain(|channel, index| {
            let stays = wanted(channel);
            if !stays {
                let place = &mut places[*index as usize];
                place.phase = if place.sessions == 0 {
                    Phase::Retired
                } else {
                    Phase::Draining
                };
            }
            stays
        });
    }

    /// A session came back from the worker: it counts no more. The last one of a draining slot
    /// retires it.
    pub fn leave(&mut self, slot: Slot) {
        let place = &mut self.places[slot.index as usize];
        assert_eq!(
            place.generation, slot.generation,
            "a slot outlives its sessions"
        );
        place.sessions -= 1;
        if place.sessions == 0 && place.phase == Phase::Draining {
            place.phase = Phase::Retired;
        }
    }

    /// Metering has journalled a retired generation's totals. Saying so again is harmless.
    pub fn acknowledge(&mut self, index: u32, generation: u32) -> Result<(), AcknowledgeError> {
        let known = index != 0 && (index as usize) < self.places.len();
        if !known {
            return Err(AcknowledgeError::Unknown(index));
        }
        let place = &mut self.places[index as usize];
        let current = place.generation;
        if current != generation {
            let repeated = generation != 0 && generation < current;
            let other = AcknowledgeError::OtherGeneration {
                index,
                current,
                asked: generation,
            };
            return if repeated { Ok(()) } else { Err(other) };
        }
        match place.phase {
            Phase::Free => Ok(()),
            Phase::Live | Phase::Draining => Err(AcknowledgeError::StillCounting(index)),
            Phase::Retired => {
                place.phase = Phase::Free;
                place.channel = None;
                // A generation that wrapped could be taken for an old one: such a slot rests.
                if place.generation < u32::MAX {
                    self.free.push_back(index);
                }
                Ok(())
            }
        }
    }

    /// All slots that are not free.
    pub fn in_use(&self) -> impl Iterator<Item = Use> + '_ {
        (0u32..).zip(&self.places).filter_map(|(index, place)| {
            Some(Use {
                slot: Slot {
                    index,
                    generation: place.generation,
                },
                channel: place.channel?,
                base_bytes: place.base_bytes,
                phase: place.phase,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn channel(number: u8) -> ChannelId {
        ChannelId([number; 32])
    }

    #[test]
    fn a_slot_is_reused_only_after_its_generation_was_acknowledged() {
        let mut slots = Slots::new(2);
        let first = slots.enter(channel(1), |_| 0).unwrap();
        assert_eq!(
            slots.enter(channel(1), |_| 0),
            Some(first),
            "sessions share a slot"
        );
        assert_eq!(slots.enter(channel(2), |_| 0), None, "full");
        assert_eq!(
            slots.acknowledge(1, 1),
            Err(AcknowledgeError::StillCounting(1))
        );
        slots.drain_unwanted(|_| false);
        slots.leave(first);
        assert_eq!(
            slots.acknowledge(1, 1),
            Err(AcknowledgeError::StillCounting(1))
        );
        slots.leave(first);
        assert_eq!(slots.enter(channel(2), |_| 0), None, "not acknowledged");
        assert!(matches!(
            slots.acknowledge(1, 2),
            Err(AcknowledgeError::OtherGeneration {
                current: 1,
                asked: 2,
                ..
            })
        ));
        assert_eq!(slots.acknowledge(1, 1), Ok(()));
        assert_eq!(slots.acknowledge(1, 1), Ok(()), "again");
        let second = slots.enter(channel(2), |_| 77).unwrap();
        assert_eq!((second.index, second.generation), (1, 2));
        assert_eq!(slots.acknowledge(1, 1), Ok(()), "late, and still harmless");
        let uses: Vec<_> = slots.in_use().collect();
        assert_eq!(uses.len(), 1);
        assert_eq!((uses[0].base_bytes, uses[0].phase), (77, Phase::Live));
        assert_eq!(slots.acknowledge(0, 0), Err(AcknowledgeError::Unknown(0)));
        assert_eq!(slots.acknowledge(2, 1), Err(AcknowledgeError::Unknown(2)));
    }

    proptest! {
        #[test]
        fn no_two_uses_overlap(events in prop::collection::vec((0u8..5, 0u8..4), 1..300)) {
            let mut slots = Slots::new(4);
            let mut sessions: Vec<(ChannelId, Slot)> = Vec::new();
            let mut seen: HashSet<(u32, u32, ChannelId)> = HashSet::new();
            for (event, number) in events {
                let channel = channel(number);
                match event {
                    0 | 1 => {
                        if let Some(slot) = slots.enter(channel, |_| 0) {
                            prop_assert!(slot.index != 0);
                            sessions.push((channel, slot));
                            seen.insert((slot.index, slot.generation, channel));
                        }
                    }
                    2 => {
                        slots.drain_unwanted(|wanted| *wanted != channel);
                    }
                    3 => {
                        let draining = sessions.iter().position(|(_, slot)| {
                            slots.in_use().any(|u| u.slot == *slot && u.phase == Phase::Draining)
                        });
                        if let Some(position) = draining {
                            slots.leave(sessions.swap_remove(position).1);
                        }
                    }
                    _ => {
                        let uses: Vec<Use> = slots.in_use().collect();
                        for used in uses {
                            let counting = sessions.iter().any(|(_, slot)| *slot == used.slot);
                            let answer = slots.acknowledge(used.slot.index, used.slot.generation);
                            prop_assert!(answer.is_err() || !counting);
                        }
                    }
                }
            }
            // One generation of a slot never served two channels.
            let uses: HashSet<(u32, u32)> = seen.iter().map(|(i, g, _)| (*i, *g)).collect();
            prop_assert_eq!(uses.len(), seen.len());
        }
    }
}
