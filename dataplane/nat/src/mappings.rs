//! Mappings: which external port stands for which inner address and port, whoever the remote
//! is (RFC 4787 REQ-1).

use crate::Subscriber;
use crate::chains::{Chains, NONE, Slab};
use crate::config::MAPPING_BYTES_MAX;
use crate::hash::Hash;
use crate::packet::Protocol;

/// One mapping.
pub(crate) struct Mapping {
    pub protocol: Protocol,
    pub subscriber: Subscriber,
    /// The subscriber's place.
    pub owner: u32,
    pub inner: u32,
    pub inner_port: u16,
    pub external: u32,
    pub external_port: u16,
    /// The block that the port is of.
    pub block: u32,
    pub flows: u32,
    /// First of the list of its flows.
    pub first_flow: u32,
    /// Neighbours in the list of the owner's mappings.
    pub previous: u32,
    pub next: u32,
    /// Links of the two indices.
    next_inner: u32,
    next_external: u32,
}

/// Beside it: the list of free places, and two heads of each index.
const _: () = assert!(size_of::<Mapping>() + 4 + 2 * 2 * 4 <= MAPPING_BYTES_MAX);

/// What a mapping is found by from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InnerEnd {
    pub protocol: Protocol,
    pub subscriber: Subscriber,
    pub address: u32,
    pub port: u16,
}

/// What a mapping is found by from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExternalEnd {
    pub protocol: Protocol,
    pub address: u32,
    pub port: u16,
}

impl Mapping {
    /// A mapping without flows that is in no list.
    pub(crate) fn new(inner: InnerEnd, external: ExternalEnd, owner: u32, block: u32) -> Self {
        Self {
            protocol: inner.protocol,
            subscriber: inner.subscriber,
            owner,
            inner: inner.address,
            inner_port: inner.port,
            external: external.address,
            external_port: external.port,
            block,
            flows: 0,
            first_flow: NONE,
            previous: NONE,
            next: NONE,
            next_inner: NONE,
            next_external: NONE,
        }
    }

    pub(crate) fn inner_end(&self) -> InnerEnd {
        InnerEnd {
            protocol: self.protocol,
            subscriber: self.subscriber,
            address: self.inner,
            port: self.inner_port,
        }
    }

    pub(crate) fn external_end(&self) -> ExternalEnd {
        ExternalEnd {
            protocol: self.protocol,
            address: self.external,
            port: self.external_port,
        }
    }
}

impl InnerEnd {
    /// By the subscriber's place: one that left and one that has its number now are two.
    fn hash(&self, hash: &Hash, owner: u32) -> u64 {
        let word = u64::from(owner) << 32 | u64::from(self.address);
        hash.of([word], u64::from(self.port) << 8 | self.protocol as u64)
    }
}

impl ExternalEnd {
    fn hash(&self, hash: &Hash) -> u64 {
        let address = u64::from(self.address) << 24;
        hash.of(
            [],
            address | u64::from(self.port) << 8 | self.protocol as u64,
        )
    }
}

/// All mappings.
pub(crate) struct Mappings {
    entries: Slab<Mapping>,
    by_inner: Chains,
    by_external: Chains,
}

impl Mappings {
    pub(crate) fn new(mappings_max: u32) -> Self {
        Self {
            entries: Slab::new(mappings_max),
            by_inner: Chains::new(mappings_max),
            by_external: Chains::new(mappings_max),
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.entries.len()
    }

    pub(crate) fn entry(&self, place: u32) -> &Mapping {
        &self.entries[place]
    }

    pub(crate) fn entry_mut(&mut self, place: u32) -> &mut Mapping {
        &mut self.entries[place]
    }

    /// The mapping of an inner end of the subscriber with this place.
    pub(crate) fn find_inner(&self, hash: &Hash, owner: u32, end: &InnerEnd) -> Option<u32> {
        let is_it = |mapping: &Mapping| mapping.owner == owner && mapping.inner_end() == *end;
        self.by_inner.find(
            end.hash(hash, owner),
            &self.entries,
            |m| m.next_inner,
            is_it,
        )
    }

    pub(crate) fn find_external(&self, hash: &Hash, end: &ExternalEnd) -> Option<u32> {
        let is_it = |mapping: &Mapping| mapping.external_end() == *end;
        self.by_external
            .find(end.hash(hash), &self.entries, |m| m.next_external, is_it)
    }

    /// Adds a mapping at the head of its owner's list, which begins at `first`.
    pub(crate) fn insert(&mut self, hash: &Hash, mapping: Mapping, first: &mut u32) -> Option<u32> {
        let inner = mapping.inner_end().hash(hash, mapping.owner);
        let external = mapping.external_end().hash(hash);
        let place = self.entries.insert(mapping)?;
        self.by_inner
            .insert(inner, &mut self.entries, place, |m| &mut m.next_inner);
        self.by_external
            .insert(external, &mut self.entries, place, |m| &mut m.next_external);
        self.entries[place].next = *first;
        if *first != NONE {
            self.entries[*first].previous = place;
        }
        *first = place;
        Some(place)
    }

    /// Takes a mapping without flows out of the indices and out of its owner's list.
    pub(crate) fn remove(&mut self, hash: &Hash, place: u32, first: &mut u32) {
        let mapping = &self.entries[place];
        debug_assert!(mapping.flows == 0 && mapping.first_flow == NONE);
        let inner = mapping.inner_end().hash(hash, mapping.owner);
        let external = mapping.external_end().hash(hash);
        let (previous, next) = (mapping.previous, mapping.next);
        if previous == NONE {
            *first = next;
        } else {
            self.entries[previous].next = next;
        }
        if next != NONE {
            self.entries[next].previous = previous;
        }
        self.by_inner
            .remove(inner, &mut self.entries, place, |m| &mut m.next_inner);
        self.by_external
            .remove(external, &mut self.entries, place, |m| &mut m.next_external);
        self.entries.release(place);
    }
}
