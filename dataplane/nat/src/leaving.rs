//! How a subscriber leaves: at once for everybody who asks, and step by step in the tables.
//!
//! From [`Nat44::remove`] on nobody finds it: its packets begin anew as another's with its number
//! would, and packets for its ports are refused. Its flows, mappings and blocks are ended by
//! [`Nat44::sweep`], a step each, and until then they are its own: a port is not lent again
//! before its flows are gone and its block has rested, and the record of a block that comes back
//! is about whoever had it.

use crate::chains::NONE;
use crate::{Nat44, Subscriber};

impl Nat44 {
    /// Lets a subscriber go, however much it has: what it has is ended by
    /// [`sweep`](Self::sweep). Its number may be another's at once, its ports when they have rested.
    pub fn remove(&mut self, now_ms: u64, subscriber: Subscriber) {
        self.advance(now_ms);
        if let Some(place) = self.subscribers.find(&self.hash, subscriber) {
            self.subscribers.leave(&self.hash, place);
            self.leaving.push_back(place);
        }
    }

    /// Whether a flow's subscriber has left. Costs nothing while nobody is leaving.
    #[inline(always)]
    pub(crate) fn has_left(&self, flow: u32) -> bool {
        !self.leaving.is_empty() && self.owner_has_left(self.flows.entry(flow).mapping)
    }

    /// Whether a mapping's subscriber has left.
    #[cold]
    pub(crate) fn owner_has_left(&self, mapping: u32) -> bool {
        !self.subscribers.is_here(self.mappings.entry(mapping).owner)
    }

    /// Ends one thing of the subscriber that left first. False if there is nobody.
    pub(crate) fn end_one_of_who_left(&mut self) -> bool {
        let Some(place) = self.leaving.front().copied() else {
            return false;
        };
        let mapping = self.subscribers.entry(place).first_mapping;
        if mapping != NONE {
            match self.mappings.entry(mapping).first_flow {
                NONE => self.end_mapping(mapping),
                flow => self.end_flow(flow),
            }
        } else if let Some(block) = self.subscribers.blocks(place).first() {
            self.take_back(*block, true);
        } else {
            self.leaving.pop_front();
            self.subscribers.release(place);
        }
        true
    }
}
