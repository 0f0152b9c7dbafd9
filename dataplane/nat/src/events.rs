//! The records of which ports were whose: one when a block is lent, one when it comes back
//! (RFC 6888, section 4).

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use crate::Subscriber;

/// What happened to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockEventKind {
    /// From now on the ports are the subscriber's, in all protocols.
    Allocated,
    /// They are not any more.
    Released,
}

/// One line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEvent {
    /// The caller's milliseconds.
    pub time_ms: u64,
    /// Lent or given back.
    pub kind: BlockEventKind,
    /// Whose.
    pub subscriber: Subscriber,
    /// The address outside.
    pub external: Ipv4Addr,
    /// The block's first port.
    pub first_port: u16,
    /// How many ports, the first included.
    pub port_count: u16,
}

/// Records that wait for the caller.
///
/// No record is ever lost: a block is lent only if there is room for both of its records, so
/// that giving it back cannot fail.
pub(crate) struct Events {
    waiting: VecDeque<BlockEvent>,
    /// Blocks that are lent: each has a place for its second record.
    lent: usize,
    events_max: usize,
}

impl Events {
    /// Room for `blocks` that are all lent and given back twice over.
    pub(crate) fn new(blocks: usize) -> Self {
        let events_max = blocks * 4;
        Self {
            waiting: VecDeque::with_capacity(events_max),
            lent: 0,
            events_max,
        }
    }

    /// True if one more block can be lent.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() + self.lent + 2 <= self.events_max
    }

    pub(crate) fn push(&mut self, event: BlockEvent) {
        match event.kind {
            BlockEventKind::Allocated => self.lent += 1,
            BlockEventKind::Released => self.lent -= 1,
        }
        self.waiting.push_back(event);
        debug_assert!(self.waiting.len() + self.lent <= self.events_max);
    }

    /// A block whose first record was written before a restart.
    pub(crate) fn restored(&mut self) {
        self.lent += 1;
    }

    pub(crate) fn take(&mut self) -> Option<BlockEvent> {
        self.waiting.pop_front()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}
