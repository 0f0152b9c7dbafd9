//! Tables of a fixed size: a slab whose places are reused, and hash chains through it.
//!
//! All memory is there from the start. A chain's link is a field of the entry that it leads
//! through, so one entry can stand in several indices, and reading an entry that was found
//! costs one cache line beside the chain's head.

use std::ops::{Index, IndexMut};

/// No place.
pub(crate) const NONE: u32 = u32::MAX;

/// Entries in numbered places.
pub(crate) struct Slab<T> {
    places: Vec<T>,
    free: Vec<u32>,
    places_max: u32,
}

impl<T> Slab<T> {
    pub(crate) fn new(places_max: u32) -> Self {
        Self {
            places: Vec::with_capacity(places_max as usize),
            free: Vec::with_capacity(places_max as usize),
            places_max,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        (self.places.len() - self.free.len()) as u32
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.places_max
    }

    /// Where the entry stands from now on; `None` if the table is full.
    pub(crate) fn insert(&mut self, entry: T) -> Option<u32> {
        if let Some(place) = self.free.pop() {
            self.places[place as usize] = entry;
            return Some(place);
        }
        if self.places.len() as u32 == self.places_max {
            return None;
        }
        self.places.push(entry);
        Some(self.places.len() as u32 - 1)
    }

    /// Places that are or were in use.
    pub(crate) fn places(&self) -> impl Iterator<Item = u32> + use<T> {
        0..self.places.len() as u32
    }

    /// Lets the place be used again. Nothing may lead to it any more.
    pub(crate) fn release(&mut self, place: u32) {
        self.free.push(place);
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, place: u32) -> &T {
        &self.places[place as usize]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline(always)]
    fn index_mut(&mut self, place: u32) -> &mut T {
        &mut self.places[place as usize]
    }
}

/// A hash index: the first place of every chain.
pub(crate) struct Chains {
    heads: Box<[u32]>,
}

impl Chains {
    /// Chains for that many entries: no more entries than chains, so that an entry is found
    /// with one and a half looks when the table is full. More chains would be shorter, and
    /// their heads fewer to a cache line.
    pub(crate) fn new(entries_max: u32) -> Self {
        let heads = (entries_max as usize).next_power_of_two();
        Self {
            heads: vec![NONE; heads].into(),
        }
    }

    #[inline(always)]
    fn head(&self, hash: u64) -> usize {
        hash as usize & (self.heads.len() - 1)
    }

    /// The first place of the hash's chain.
    #[inline(always)]
    pub(crate) fn first(&self, hash: u64) -> u32 {
        self.heads[self.head(hash)]
    }

    /// The first entry of the hash's chain that `is_it`.
    #[inline(always)]
    pub(crate) fn find<T>(
        &self,
        hash: u64,
        slab: &Slab<T>,
        link: impl Fn(&T) -> u32,
        is_it: impl Fn(&T) -> bool,
    ) -> Option<u32> {
        let mut place = self.first(hash);
        while place != NONE {
            let entry = &slab[place];
            if is_it(entry) {
                return Some(place);
            }
            place = link(entry);
        }
        None
    }

    pub(crate) fn insert<T>(
        &mut self,
        hash: u64,
        slab: &mut Slab<T>,
        place: u32,
        link: impl Fn(&mut T) -> &mut u32,
    ) {
        let head = self.head(hash);
        *link(&mut slab[place]) = self.heads[head];
        self.heads[head] = place;
    }

    /// Takes the entry out of its chain.
    pub(crate) fn remove<T>(
        &mut self,
        hash: u64,
        slab: &mut Slab<T>,
        place: u32,
        link: impl Fn(&mut T) -> &mut u32,
    ) {
        let after = *link(&mut slab[place]);
        let head = self.head(hash);
        let mut at = self.heads[head];
        if at == place {
            self.heads[head] = after;
            return;
        }
        while at != NONE {
            let next = link(&mut slab[at]);
            if *next == place {
                *next = after;
                return;
            }
            at = *next;
        }
        debug_assert!(false, "place {place} is not in its chain");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    struct Entry {
        key: u8,
        next: u32,
    }

    proptest! {
        /// Chains with few heads collide all the time; a map says what must be found.
        #[test]
        fn chains_find_what_a_map_finds(steps in prop::collection::vec((any::<u8>(), any::<bool>()), 0..300)) {
            let mut slab = Slab::new(40);
            let mut chains = Chains::new(3);
            let mut oracle = HashMap::new();
            let hash = |key: u8| u64::from(key % 11);
            for (key, insert) in steps {
                let key = key % 60;
                let found = chains.find(hash(key), &slab, |e: &Entry| e.next, |e| e.key == key);
                prop_assert_eq!(found, oracle.get(&key).copied());
                match (found, insert) {
                    (None, true) => {
                        let full = slab.is_full();
                        let place = slab.insert(Entry { key, next: NONE });
                        prop_assert_eq!(place.is_none(), full);
                        if let Some(place) = place {
                            chains.insert(hash(key), &mut slab, place, |e| &mut e.next);
                            oracle.insert(key, place);
                        }
                    }
                    (Some(place), false) => {
                        chains.remove(hash(key), &mut slab, place, |e| &mut e.next);
                        slab.release(place);
                        oracle.remove(&key);
                    }
                    _ => {}
                }
                prop_assert_eq!(slab.len() as usize, oracle.len());
            }
        }
    }
}
