//! Flows: a mapping's traffic with one remote, found from both sides with one look each, and
//! the wheel that tells when their time is over.
//!
//! A flow holds all that a packet needs, in one cache line, so that an established flow's
//! packet touches the head of a chain and the flow. Its deadline moves with every packet and
//! nothing else does: the wheel keeps the flow where it was put, finds the deadline moved when
//! it comes there, and puts it further on.

use crate::Subscriber;
use crate::chains::{Chains, NONE, Slab};
use crate::config::FLOW_BYTES_MAX;
use crate::hash::Hash;
use crate::hosts::HOST_BYTES;
use crate::packet::Protocol;
use crate::tcp;

/// Slots of the wheel, one a second: flows with more time than that are looked at in between.
const SLOTS: usize = 1024;
/// In the place of the one before: this is the first of the slot in the other bits.
const FIRST_OF: u32 = 1 << 31;

/// Most packets whose flows are looked at ahead in one go: as many as the memory serves at once,
/// and few enough that they are still near when they are translated.
pub(crate) const LOOK_AHEAD_PACKETS_MAX: usize = 32;

/// One flow, in one cache line.
#[repr(align(64))]
pub(crate) struct Flow {
    /// From this time on the flow is over.
    pub deadline_ms: u64,
    pub subscriber: Subscriber,
    pub inner: u32,
    pub external: u32,
    pub remote: u32,
    pub inner_port: u16,
    pub external_port: u16,
    /// Zero where the filter does not ask for it.
    pub remote_port: u16,
    pub protocol: Protocol,
    /// Of TCP alone.
    pub state: tcp::State,
    pub mapping: u32,
    /// Neighbours in the list of the mapping's flows.
    previous: u32,
    next: u32,
    next_out: u32,
    next_in: u32,
    /// Neighbours in the wheel's slot.
    timer_previous: u32,
    timer_next: u32,
    /// The remote is an address of the pool.
    pub hairpin: bool,
}

const _: () = assert!(size_of::<Flow>() == 64);
/// Beside it: its address's count, both tables' lists of free places, and two heads, of this
/// index pair and the other's one, for each place of a table just above a power of two.
const _: () = assert!(size_of::<Flow>() + HOST_BYTES + 2 * 4 + 3 * 2 * 4 == FLOW_BYTES_MAX);

/// What a flow is found by from inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutKey {
    pub protocol: Protocol,
    pub subscriber: Subscriber,
    pub inner: u32,
    pub inner_port: u16,
    pub remote: u32,
    pub remote_port: u16,
}

/// What a flow is found by from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InKey {
    pub protocol: Protocol,
    pub external: u32,
    pub external_port: u16,
    pub remote: u32,
    pub remote_port: u16,
}

impl OutKey {
    #[inline(always)]
    pub(crate) fn hash(&self, hash: &Hash) -> u64 {
        let inner = u64::from(self.subscriber.0) << 32 | u64::from(self.inner);
        let remote = u64::from(self.remote) << 32
            | u64::from(self.inner_port) << 16
            | u64::from(self.remote_port);
        hash.of([inner, remote], self.protocol as u64)
    }
}

impl InKey {
    #[inline(always)]
    pub(crate) fn hash(&self, hash: &Hash) -> u64 {
        let addresses = u64::from(self.external) << 32 | u64::from(self.remote);
        let ports = u64::from(self.external_port) << 16 | u64::from(self.remote_port);
        hash.of([addresses], ports << 8 | self.protocol as u64)
    }
}

impl Flow {
    #[inline(always)]
    fn out_key(&self) -> OutKey {
        OutKey {
            protocol: self.protocol,
            subscriber: self.subscriber,
            inner: self.inner,
            inner_port: self.inner_port,
            remote: self.remote,
            remote_port: self.remote_port,
        }
    }

    #[inline(always)]
    fn in_key(&self) -> InKey {
        InKey {
            protocol: self.protocol,
            external: self.external,
            external_port: self.external_port,
            remote: self.remote,
            remote_port: self.remote_port,
        }
    }
}

/// What a flow begins with.
pub(crate) struct Beginning {
    pub mapping: u32,
    pub key: OutKey,
    pub external: u32,
    pub external_port: u16,
    pub state: tcp::State,
    pub deadline_ms: u64,
    pub hairpin: bool,
}

/// What came of a turn of the wheel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It has caught up with the time.
    Idle,
    /// It went on, or a flow was put further on.
    Moved,
    /// This flow is over: the caller ends it.
    Over(u32),
}

/// All flows.
pub(crate) struct Flows {
    entries: Slab<Flow>,
    by_out: Chains,
    by_in: Chains,
    slots: Box<[u32; SLOTS]>,
    /// The second whose slot is looked at.
    at_s: u64,
}

impl Flows {
    pub(crate) fn new(flows_max: u32) -> Self {
        Self {
            entries: Slab::new(flows_max),
            by_out: Chains::new(flows_max),
            by_in: Chains::new(flows_max),
            slots: Box::new([NONE; SLOTS]),
            at_s: 0,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.entries.len()
    }

    #[inline(always)]
    pub(crate) fn entry(&self, place: u32) -> &Flow {
        &self.entries[place]
    }

    #[inline(always)]
    pub(crate) fn entry_mut(&mut self, place: u32) -> &mut Flow {
        &mut self.entries[place]
    }

    #[inline(always)]
    pub(crate) fn find_out(&self, hash: &Hash, key: &OutKey) -> Option<u32> {
        let is_it = |flow: &Flow| flow.out_key() == *key;
        self.by_out
            .find(key.hash(hash), &self.entries, |f| f.next_out, is_it)
    }

    #[inline(always)]
    pub(crate) fn find_in(&self, hash: &Hash, key: &InKey) -> Option<u32> {
        let is_it = |flow: &Flow| flow.in_key() == *key;
        self.by_in
            .find(key.hash(hash), &self.entries, |f| f.next_in, is_it)
    }

    /// Reads what finding these keys from inside reads, of all at once.
    pub(crate) fn look_ahead_out(&self, hashes: &[u64]) {
        self.look_ahead(&self.by_out, hashes);
    }

    /// Reads what finding these keys from outside reads, of all at once.
    pub(crate) fn look_ahead_in(&self, hashes: &[u64]) {
        self.look_ahead(&self.by_in, hashes);
    }

    /// Two rounds of reads of which none waits for another of its round, so that the memory
    /// serves them side by side.
    fn look_ahead(&self, chains: &Chains, hashes: &[u64]) {
        let mut places = [NONE; LOOK_AHEAD_PACKETS_MAX];
        for (place, hash) in places.iter_mut().zip(hashes) {
            *place = chains.first(*hash);
        }
        let deadlines = places.iter().filter(|place| **place != NONE);
        let read = deadlines.fold(0, |read, place| read ^ self.entries[*place].deadline_ms);
        std::hint::black_box(read);
    }

    /// Adds a flow at the head of its mapping's list, which begins at `first`.
    pub(crate) fn insert(
        &mut self,
        hash: &Hash,
        beginning: Beginning,
        first: &mut u32,
    ) -> Option<u32> {
        let key = beginning.key;
        let flow = Flow {
            deadline_ms: beginning.deadline_ms,
            subscriber: key.subscriber,
            inner: key.inner,
            external: beginning.external,
            remote: key.remote,
            inner_port: key.inner_port,
            external_port: beginning.external_port,
            remote_port: key.remote_port,
            protocol: key.protocol,
            state: beginning.state,
            mapping: beginning.mapping,
            previous: NONE,
            next: *first,
            next_out: NONE,
            next_in: NONE,
            timer_previous: NONE,
            timer_next: NONE,
            hairpin: beginning.hairpin,
        };
        let in_hash = flow.in_key().hash(hash);
        let place = self.entries.insert(flow)?;
        self.by_out
            .insert(key.hash(hash), &mut self.entries, place, |f| {
                &mut f.next_out
            });
        self.by_in
            .insert(in_hash, &mut self.entries, place, |f| &mut f.next_in);
        if *first != NONE {
            self.entries[*first].previous = place;
        }
        *first = place;
        self.arm(place);
        Some(place)
    }

    /// Takes a flow out of everything.
    pub(crate) fn remove(&mut self, hash: &Hash, place: u32, first: &mut u32) {
        self.disarm(place);
        let flow = &self.entries[place];
        let (out_hash, in_hash) = (flow.out_key().hash(hash), flow.in_key().hash(hash));
        let (previous, next) = (flow.previous, flow.next);
        if previous == NONE {
            *first = next;
        } else {
            self.entries[previous].next = next;
        }
        if next != NONE {
            self.entries[next].previous = previous;
        }
        self.by_out
            .remove(out_hash, &mut self.entries, place, |f| &mut f.next_out);
        self.by_in
            .remove(in_hash, &mut self.entries, place, |f| &mut f.next_in);
        self.entries.release(place);
    }

    /// The flow after this one in its mapping's list.
    pub(crate) fn after(&self, place: u32) -> u32 {
        self.entries[place].next
    }

    /// Sets a deadline. Only one that comes nearer moves the flow in the wheel.
    #[inline(always)]
    pub(crate) fn set_deadline(&mut self, place: u32, deadline_ms: u64) {
        let before_ms = std::mem::replace(&mut self.entries[place].deadline_ms, deadline_ms);
        if deadline_ms < before_ms {
            self.disarm(place);
            self.arm(place);
        }
    }

    /// One step towards `now_ms`: one slot, or one flow.
    pub(crate) fn turn(&mut self, now_ms: u64) -> Turn {
        let now_s = now_ms / 1000;
        if self.entries.len() == 0 {
            self.at_s = self.at_s.max(now_s);
            return Turn::Idle;
        }
        // One round sees every slot, however long nobody turned.
        self.at_s = self.at_s.max(now_s.saturating_sub(SLOTS as u64));
        let place = self.slots[slot(self.at_s)];
        if place == NONE {
            if self.at_s >= now_s {
                return Turn::Idle;
            }
            self.at_s += 1;
            return Turn::Moved;
        }
        if self.entries[place].deadline_ms <= now_ms {
            return Turn::Over(place);
        }
        self.disarm(place);
        self.arm(place);
        Turn::Moved
    }

    /// Puts a flow where the wheel comes when its time is over, or before if that is too far.
    fn arm(&mut self, place: u32) {
        let deadline_s = self.entries[place].deadline_ms.div_ceil(1000);
        let furthest_s = self.at_s + SLOTS as u64 - 1;
        let slot = slot(deadline_s.clamp(self.at_s + 1, furthest_s));
        let first = std::mem::replace(&mut self.slots[slot], place);
        self.entries[place].timer_previous = FIRST_OF | slot as u32;
        self.entries[place].timer_next = first;
        if first != NONE {
            self.entries[first].timer_previous = place;
        }
    }

    fn disarm(&mut self, place: u32) {
        let flow = &self.entries[place];
        let (previous, next) = (flow.timer_previous, flow.timer_next);
        if previous & FIRST_OF != 0 {
            self.slots[(previous & !FIRST_OF) as usize] = next;
        } else {
            self.entries[previous].timer_next = next;
        }
        if next != NONE {
            self.entries[next].timer_previous = previous;
        }
    }
}

const fn slot(second: u64) -> usize {
    (second % SLOTS as u64) as usize
}
