//! Where the later fragments of a packet go, whose first was translated (RFC 4787 REQ-14).
//!
//! A later fragment has no ports: it follows its first by addresses, identification and
//! protocol. One that comes before its first is refused; nothing is kept for later, since that
//! is memory that strangers could fill.

use std::collections::VecDeque;

use crate::Subscriber;
use crate::chains::{Chains, NONE, Slab};
use crate::hash::Hash;
use crate::packet::{Header, Protocol};

/// What fragments of one packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FragmentKey {
    /// Whose packet, on its way out; two subscribers may have the same inner addresses.
    from: Option<Subscriber>,
    source: u32,
    destination: u32,
    identification: u16,
    protocol: Protocol,
}

impl FragmentKey {
    pub(crate) fn outward(subscriber: Subscriber, header: &Header) -> Self {
        Self {
            from: Some(subscriber),
            ..Self::inward(header)
        }
    }

    pub(crate) fn inward(header: &Header) -> Self {
        Self {
            from: None,
            source: header.source,
            destination: header.destination,
            identification: header.identification,
            protocol: header.protocol,
        }
    }

    fn hash(&self, hash: &Hash) -> u64 {
        let from = self.from.map_or(u64::MAX, |subscriber| subscriber.0.into());
        let addresses = u64::from(self.source) << 32 | u64::from(self.destination);
        let rest = u64::from(self.identification) << 8 | self.protocol as u64;
        hash.of([from, addresses], rest)
    }
}

/// What was made of a first fragment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct First {
    /// The address that its followers get too: the external one on the way out, the inner one
    /// on the way in.
    pub address: u32,
    /// The subscriber that it comes from or goes to, its place and the place's use.
    pub subscriber: Subscriber,
    pub owner: u32,
    pub use_number: u32,
}

struct Entry {
    key: FragmentKey,
    first: First,
    deadline_ms: u64,
    next: u32,
}

/// First fragments that are remembered.
pub(crate) struct Fragments {
    entries: Slab<Entry>,
    index: Chains,
    /// Places, and when to look at them.
    order: VecDeque<(u32, u64)>,
    timeout_ms: u64,
}

impl Fragments {
    pub(crate) fn new(fragments_max: u32, timeout_ms: u64) -> Self {
        Self {
            entries: Slab::new(fragments_max),
            index: Chains::new(fragments_max),
            order: VecDeque::with_capacity(fragments_max as usize),
            timeout_ms,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.entries.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.is_full()
    }

    fn place(&self, hash: &Hash, key: &FragmentKey) -> Option<u32> {
        self.index
            .find(key.hash(hash), &self.entries, |e| e.next, |e| e.key == *key)
    }

    /// What was made of the first fragment.
    pub(crate) fn find(&self, hash: &Hash, key: &FragmentKey, now_ms: u64) -> Option<First> {
        let entry = &self.entries[self.place(hash, key)?];
        (entry.deadline_ms > now_ms).then_some(entry.first)
    }

    /// Remembers one more first fragment, for which there is room, or the newer one of two with
    /// the same key: then the older comes back.
    pub(crate) fn remember(
        &mut self,
        hash: &Hash,
        key: FragmentKey,
        first: First,
        now_ms: u64,
    ) -> Option<First> {
        let deadline_ms = now_ms.saturating_add(self.timeout_ms);
        if let Some(place) = self.place(hash, &key) {
            let entry = &mut self.entries[place];
            entry.deadline_ms = deadline_ms;
            return Some(std::mem::replace(&mut entry.first, first));
        }
        let entry = Entry {
            key,
            first,
            deadline_ms,
            next: NONE,
        };
        if let Some(place) = self.entries.insert(entry) {
            self.index
                .insert(key.hash(hash), &mut self.entries, place, |e| &mut e.next);
            self.order.push_back((place, deadline_ms));
        }
        None
    }

    pub(crate) fn remembers(&self, hash: &Hash, key: &FragmentKey) -> bool {
        self.place(hash, key).is_some()
    }

    /// Looks at the first fragment whose time may be over first. One that was remembered anew
    /// in between is looked at again when that time is over.
    pub(crate) fn forget_one(&mut self, hash: &Hash, now_ms: u64) -> Forgetting {
        let Some((place, _)) = self.order.pop_front_if(|(_, due_ms)| *due_ms <= now_ms) else {
            return Forgetting::None;
        };
        let entry = &self.entries[place];
        if entry.deadline_ms > now_ms {
            self.order.push_back((place, entry.deadline_ms));
            return Forgetting::Passed;
        }
        let (key_hash, first) = (entry.key.hash(hash), entry.first);
        self.index
            .remove(key_hash, &mut self.entries, place, |e| &mut e.next);
        self.entries.release(place);
        Forgetting::Forgot(first)
    }
}

/// What came of a look at the oldest first fragment.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Forgetting {
    /// There is nothing to look at.
    None,
    /// It may stay.
    Passed,
    /// It is gone.
    Forgot(First),
}
