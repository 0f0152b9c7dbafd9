//! Subscribers: their address, their blocks, and how much of everything they hold.
//!
//! A subscriber is in the table as long as it has a block, and its mappings are in its blocks.

use crate::Subscriber;
use crate::chains::{Chains, NONE, Slab};
use crate::config::Limits;
use crate::hash::Hash;

/// One subscriber's place in the table.
pub(crate) struct Entry {
    pub subscriber: Subscriber,
    /// Its external address's number, for as long as it is in the table (paired pooling).
    pub address: u32,
    pub blocks: u32,
    pub mappings: u32,
    pub flows: u32,
    pub fragments: u32,
    /// First of the list of its mappings.
    pub first_mapping: u32,
    /// Tells this use of the place from the one before.
    pub use_number: u32,
    /// False if the place is free, or its subscriber left and is not to be found.
    is_here: bool,
    next: u32,
}

/// All subscribers.
pub(crate) struct Subscribers {
    entries: Slab<Entry>,
    by_id: Chains,
    /// Blocks of every place, `blocks_max` of them each.
    blocks: Box<[u32]>,
    blocks_max: u32,
    uses: u32,
}

impl Subscribers {
    pub(crate) fn new(limits: &Limits) -> Self {
        let blocks_max = u32::from(limits.blocks_per_subscriber_max);
        let blocks = limits.subscribers_max as usize * blocks_max as usize;
        Self {
            entries: Slab::new(limits.subscribers_max),
            by_id: Chains::new(limits.subscribers_max),
            blocks: vec![NONE; blocks].into(),
            blocks_max,
            uses: 0,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.entries.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.is_full()
    }

    pub(crate) fn find(&self, hash: &Hash, subscriber: Subscriber) -> Option<u32> {
        let is_it = |entry: &Entry| entry.subscriber == subscriber;
        self.by_id
            .find(id_hash(hash, subscriber), &self.entries, |e| e.next, is_it)
    }

    /// Adds a subscriber that is not in the table, still without a block.
    pub(crate) fn insert(
        &mut self,
        hash: &Hash,
        subscriber: Subscriber,
        address: u32,
    ) -> Option<u32> {
        self.uses = self.uses.wrapping_add(1);
        let place = self.entries.insert(Entry {
            subscriber,
            address,
            blocks: 0,
            mappings: 0,
            flows: 0,
            fragments: 0,
            first_mapping: NONE,
            use_number: self.uses,
            is_here: true,
            next: NONE,
        })?;
        let id_hash = id_hash(hash, subscriber);
        self.by_id
            .insert(id_hash, &mut self.entries, place, |e| &mut e.next);
        Some(place)
    }

    /// Takes out a subscriber that has nothing any more.
    pub(crate) fn remove(&mut self, hash: &Hash, place: u32) {
        self.leave(hash, place);
        self.release(place);
    }

    /// Lets nobody find a subscriber from now on. What it has is its own.
    pub(crate) fn leave(&mut self, hash: &Hash, place: u32) {
        let entry = &mut self.entries[place];
        entry.is_here = false;
        let id_hash = id_hash(hash, entry.subscriber);
        self.by_id
            .remove(id_hash, &mut self.entries, place, |e| &mut e.next);
    }

    /// Lets the place of one that left be another's. It has nothing any more.
    pub(crate) fn release(&mut self, place: u32) {
        let entry = &self.entries[place];
        debug_assert!(entry.blocks == 0 && entry.mappings == 0 && entry.flows == 0);
        self.entries.release(place);
    }

    pub(crate) fn is_here(&self, place: u32) -> bool {
        self.entries[place].is_here
    }

    pub(crate) fn entry(&self, place: u32) -> &Entry {
        &self.entries[place]
    }

    pub(crate) fn entry_mut(&mut self, place: u32) -> &mut Entry {
        &mut self.entries[place]
    }

    /// The entry, if its subscriber is the same one and has not left.
    pub(crate) fn in_use_mut(&mut self, place: u32, use_number: u32) -> Option<&mut Entry> {
        let entry = &mut self.entries[place];
        (entry.is_here && entry.use_number == use_number).then_some(entry)
    }

    /// The subscriber's blocks.
    pub(crate) fn blocks(&self, place: u32) -> &[u32] {
        let start = place as usize * self.blocks_max as usize;
        &self.blocks[start..start + self.entries[place].blocks as usize]
    }

    pub(crate) fn may_have_another_block(&self, place: u32) -> bool {
        self.entries[place].blocks < self.blocks_max
    }

    /// Adds a block, which it may have.
    pub(crate) fn add_block(&mut self, place: u32, block: u32) {
        let entry = &mut self.entries[place];
        debug_assert!(entry.blocks < self.blocks_max);
        let at = place as usize * self.blocks_max as usize + entry.blocks as usize;
        self.blocks[at] = block;
        entry.blocks += 1;
    }

    /// Takes a block away from it.
    pub(crate) fn remove_block(&mut self, place: u32, block: u32) {
        let start = place as usize * self.blocks_max as usize;
        let held = self.entries[place].blocks as usize;
        let blocks = &mut self.blocks[start..start + held];
        if let Some(at) = blocks.iter().position(|held| *held == block) {
            blocks.swap(at, held - 1);
            self.entries[place].blocks -= 1;
        }
    }

    /// Places of subscribers that have not left.
    pub(crate) fn places(&self) -> impl Iterator<Item = u32> {
        self.entries
            .places()
            .filter(|place| self.entries[*place].is_here)
    }
}

fn id_hash(hash: &Hash, subscriber: Subscriber) -> u64 {
    hash.of([], u64::from(subscriber.0))
}
