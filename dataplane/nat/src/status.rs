//! What stands in the tables, for status output. None of it is for every packet.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::chains::NONE;
use crate::packet::Protocol;
use crate::{BlockEvent, BlockEventKind};
use crate::{Nat44, Subscriber};

/// How full everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Subscribers with at least one block.
    pub subscribers: u32,
    /// Those that were removed and still have something, which counts below.
    pub subscribers_leaving: u32,
    /// Mappings of all subscribers; those whose time is over until they are swept.
    pub mappings: u32,
    /// Flows of all mappings, likewise.
    pub flows: u32,
    /// First fragments that are remembered.
    pub fragments: u32,
    /// Blocks of the pool.
    pub blocks: u32,
    /// Those that are lent.
    pub blocks_lent: u32,
    /// Those that are nobody's and cannot be lent yet.
    pub blocks_resting: u32,
    /// Records that were not taken yet.
    pub events_waiting: u32,
}

/// One subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriberStatus {
    /// Who.
    pub subscriber: Subscriber,
    /// Its address outside.
    pub external: Ipv4Addr,
    /// Blocks that it holds.
    pub blocks: u32,
    /// Its mappings.
    pub mappings: u32,
    /// Its flows.
    pub flows: u32,
}

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MappingStatus {
    /// Of which protocol; a query's identifier stands in the place of the port.
    pub protocol: Protocol,
    /// Inside.
    pub inner: SocketAddrV4,
    /// Outside.
    pub external: SocketAddrV4,
    /// Remotes that it has to do with.
    pub flows: u32,
}

impl Nat44 {
    /// How full everything is.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            subscribers: self.subscribers.len() - self.leaving.len() as u32,
            subscribers_leaving: self.leaving.len() as u32,
            mappings: self.mappings.len(),
            flows: self.flows.len(),
            fragments: self.fragments.len(),
            blocks: self.pool.own_blocks(),
            blocks_lent: self.pool.blocks_lent(),
            blocks_resting: self.pool.blocks_resting(),
            events_waiting: self.events.waiting() as u32,
        }
    }

    /// Every subscriber with at least one block, in no order.
    pub fn subscribers(&self) -> impl Iterator<Item = SubscriberStatus> {
        self.subscribers.places().map(|place| {
            let entry = self.subscribers.entry(place);
            SubscriberStatus {
                subscriber: entry.subscriber,
                external: self.pool.external(entry.address).into(),
                blocks: entry.blocks,
                mappings: entry.mappings,
                flows: entry.flows,
            }
        })
    }

    /// Every block that a subscriber has, as its record would be if it were lent now: for a log
    /// that a restored NAT goes on with.
    pub fn lent_blocks(&self) -> impl Iterator<Item = BlockEvent> {
        let kind = BlockEventKind::Allocated;
        self.subscribers.places().flat_map(move |place| {
            let blocks = self.subscribers.blocks(place).iter();
            blocks.map(move |block| self.block_event(kind, place, *block))
        })
    }

    /// A subscriber's mappings, newest first; none if it is not known.
    pub fn mappings(&self, subscriber: Subscriber) -> impl Iterator<Item = MappingStatus> {
        let first = self
            .subscribers
            .find(&self.hash, subscriber)
            .map_or(NONE, |place| self.subscribers.entry(place).first_mapping);
        self.mappings_from(first).map(|place| {
            let mapping = self.mappings.entry(place);
            MappingStatus {
                protocol: mapping.protocol,
                inner: SocketAddrV4::new(mapping.inner.into(), mapping.inner_port),
                external: SocketAddrV4::new(mapping.external.into(), mapping.external_port),
                flows: mapping.flows,
            }
        })
    }

    /// Places of the list of mappings that begins at `first`.
    pub(crate) fn mappings_from(&self, first: u32) -> impl Iterator<Item = u32> {
        let some = |place: u32| (place != NONE).then_some(place);
        std::iter::successors(some(first), move |place| {
            some(self.mappings.entry(*place).next)
        })
    }

    /// Places of the list of flows that begins at `first`.
    pub(crate) fn flows_from(&self, first: u32) -> impl Iterator<Item = u32> {
        let some = |place: u32| (place != NONE).then_some(place);
        std::iter::successors(some(first), move |place| some(self.flows.after(*place)))
    }
}

impl std::fmt::Debug for Nat44 {
    /// Neither the seed nor what is in the tables.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Nat44")
            .field("now_ms", &self.now_ms)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
