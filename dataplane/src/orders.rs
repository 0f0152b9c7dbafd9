//! What the control side asks the worker about sessions, and the places that it gives them.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::session::{INDEX_BITS, NetworkChange, SessionCounters, SessionIndex, SessionPlan};

/// What the worker shall do about sessions.
#[derive(Debug)]
pub enum Order {
    /// Install what this plan says, with these counters.
    Install(SessionPlan, Arc<SessionCounters>),
    /// Give this session back.
    Remove(SessionIndex),
    /// Change the networks of this one.
    Networks(SessionIndex, NetworkChange),
    /// Send to its peer there.
    Endpoint(SessionIndex, SocketAddr),
    /// Send something to its peer at least so often, in seconds; 0 is not at all.
    Keepalive(SessionIndex, u16),
}

/// Places in the worker's list of sessions.
#[derive(Debug)]
pub struct Indices {
    free: Vec<u32>,
}

impl Indices {
    /// As many as `sessions_max`, or as messages can name.
    #[must_use]
    pub fn new(sessions_max: u32) -> Self {
        let sessions_max = sessions_max.min((1 << INDEX_BITS) - 1);
        Self {
            free: (0..sessions_max).rev().collect(),
        }
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// One that is free.
    pub fn take(&mut self) -> Option<SessionIndex> {
        self.free.pop().map(SessionIndex)
    }

    /// The worker is done with it.
    pub fn give_back(&mut self, index: SessionIndex) {
        self.free.push(index.0);
    }
}
