//! What the control side asks the worker about sessions, and the places that it gives them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::session::{
    NetworkChange, PLACES_MAX, SessionCounters, SessionIndex, SessionPlan, WorkerNumber,
};

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

/// Places in all workers' lists of sessions.
#[derive(Debug)]
pub struct Indices {
    /// Of each worker, those that it may still have.
    free: Vec<Vec<u32>>,
    /// Sessions that there may still be.
    left: usize,
    /// Where peers of the last run have something still, by their keys.
    awaited: HashMap<[u8; 32], WorkerNumber>,
}

/// Sessions that one worker has room for: twice its share of `sessions_max`, since they are never
/// spread quite evenly, or as many as messages can name.
#[must_use]
pub fn places_per_worker(sessions_max: u32, workers: u32) -> u32 {
    let share = sessions_max.div_ceil(workers.max(1)).saturating_mul(2);
    share.min(sessions_max).min(PLACES_MAX)
}

impl Indices {
    /// `sessions_max` in all, as far as workers have room.
    #[must_use]
    pub fn new(sessions_max: u32, workers: u32) -> Self {
        let places = places_per_worker(sessions_max, workers);
        Self {
            free: (0..workers).map(|_| (0..places).rev().collect()).collect(),
            left: sessions_max as usize,
            awaited: HashMap::new(),
        }
    }

    /// Peers with these keys are best given to these workers.
    #[must_use]
    pub fn awaiting(mut self, awaited: HashMap<[u8; 32], WorkerNumber>) -> Self {
        self.awaited = awaited;
        self
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> usize {
        let places: usize = self.free.iter().map(Vec::len).sum();
        places.min(self.left)
    }

    /// A place that is free, for the peer with this key: of the preferred worker if it has one, or
    /// of who has something of the peer's still, else of the one that has most.
    pub fn take(
        &mut self,
        public_key: &[u8; 32],
        preferred: Option<WorkerNumber>,
    ) -> Option<SessionIndex> {
        let preferred = preferred.or_else(|| self.awaited.get(public_key).copied());
        self.left = self.left.checked_sub(1)?;
        let room = |worker: &u32| self.free.get(*worker as usize).map_or(0, Vec::len);
        let preferred = preferred
            .map(|worker| worker.0)
            .filter(|worker| room(worker) > 0);
        // The first of those with most room, so that the order is the same each time.
        let emptiest = || (0..self.free.len() as u32).rev().max_by_key(room);
        let worker = preferred.or_else(emptiest)?;
        let Some(place) = self.free[worker as usize].pop() else {
            self.left += 1;
            return None;
        };
        Some(SessionIndex::new(WorkerNumber(worker), place))
    }

    /// The worker is done with it.
    pub fn give_back(&mut self, index: SessionIndex) {
        if let Some(free) = self.free.get_mut(index.worker().0 as usize) {
            free.push(index.place());
            self.left += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_spread_and_each_worker_has_bounds() {
        let mut indices = Indices::new(6, 2);
        let worker = |index: SessionIndex| index.worker().0;
        let taken: Vec<_> = (0..4)
            .map(|_| indices.take(&[0; 32], None).unwrap())
            .collect();
        assert_eq!(
            taken.iter().copied().map(worker).collect::<Vec<_>>(),
            [0, 1, 0, 1]
        );
        let one = Some(WorkerNumber(1));
        assert_eq!(indices.take(&[0; 32], one).map(worker), Some(1));
        assert_eq!(
            (indices.free(), indices.take(&[0; 32], one).map(worker)),
            (1, Some(1))
        );
        assert_eq!((indices.free(), indices.take(&[0; 32], None)), (0, None));
        indices.give_back(taken[0]);
        assert_eq!(
            indices.take(&[0; 32], one),
            Some(SessionIndex::new(WorkerNumber(1), 4))
        );
        indices.give_back(taken[2]);
        // Nobody has more than twice its share.
        let mut indices = Indices::new(4, 4);
        let taken: Vec<_> = (0..3)
            .map(|_| indices.take(&[0; 32], one).unwrap())
            .collect();
        assert_eq!(taken.into_iter().map(worker).collect::<Vec<_>>(), [1, 1, 0]);
    }
}
