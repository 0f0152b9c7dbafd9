//! Keeps a chain's pace: height is the clock of every rule about money, so blocks come at a
//! fixed interval, empty or not.
//!
//! A block follows its parent no sooner than the interval, by this node's own monotonic clock
//! since it held the parent. An early block waits, it is not refused. Lost time is never
//! caught up, because each wait starts at the parent's arrival and not at a schedule.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use commonware_cryptography::sha256::Digest;

use crate::limits::HELD_BLOCKS_MAX;

/// When each recent block came to be held, and how long its child must wait.
pub(crate) struct Pace {
    interval: Duration,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    since: HashMap<Digest, Instant>,
    order: VecDeque<Digest>,
}

impl Pace {
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            interval,
            held: Mutex::default(),
        }
    }

    /// Notes that `block` is held since `now`, unless it was held before; says since when.
    pub(crate) fn hold(&self, block: Digest, now: Instant) -> Instant {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = held.since.get(&block) {
            return *since;
        }
        held.since.insert(block, now);
        held.order.push_back(block);
        if held.order.len() > HELD_BLOCKS_MAX
            && let Some(oldest) = held.order.pop_front()
        {
            held.since.remove(&oldest);
        }
        now
    }

    /// How long a child of `parent` still has to wait. A parent that was not noted, as after
    /// a restart, counts from now on.
    pub(crate) fn wait(&self, parent: Digest, now: Instant) -> Duration {
        let due = self.hold(parent, now) + self.interval;
        due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(i: usize) -> Digest {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(i as u64).to_be_bytes());
        Digest::from(bytes)
    }

    #[test]
    fn a_child_waits_for_what_is_left_and_lost_time_is_not_caught_up() {
        let ms = Duration::from_millis;
        let pace = Pace::new(ms(100));
        let start = Instant::now();
        let cases = [
            // (parent, held at, asked at, left)
            (1, 0, 0, 100),
            (2, 0, 30, 70),
            (3, 0, 100, 0),
            (4, 0, 5_000, 0),
            // The block after a pause waits the whole interval again.
            (5, 5_000, 5_000, 100),
        ];
        for (parent, held_ms, asked_ms, left_ms) in cases {
            pace.hold(digest(parent), start + ms(held_ms));
            let left = pace.wait(digest(parent), start + ms(asked_ms));
            assert_eq!(left, ms(left_ms), "parent {parent}");
        }
    }

    #[test]
    fn the_first_arrival_counts_and_an_unknown_parent_counts_from_now() {
        let pace = Pace::new(Duration::from_millis(100));
        let start = Instant::now();
        let later = start + Duration::from_millis(60);
        assert_eq!(pace.hold(digest(1), start), start);
        assert_eq!(pace.hold(digest(1), later), start);
        assert_eq!(pace.wait(digest(2), later), Duration::from_millis(100));
    }

    #[test]
    fn memory_is_bounded() {
        let pace = Pace::new(Duration::from_millis(100));
        let start = Instant::now();
        for i in 0..3 * HELD_BLOCKS_MAX {
            pace.hold(digest(i), start);
        }
        assert_eq!(pace.held.lock().unwrap().since.len(), HELD_BLOCKS_MAX);
    }
}
