//! Keeps a chain's pace: height is the clock of every rule about money, so blocks come at a
//! fixed interval, empty or not.
//!
//! The pace stands between consensus and execution: a build that waited inside execution would
//! hold back the parent's finalisation for a whole interval.
//!
//! A block follows its parent no sooner than the interval, by this node's own monotonic clock
//! since it held the parent. An early block waits, it is not refused. Lost time is never
//! caught up, because each wait starts at the parent's arrival and not at a schedule.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use commonware_consensus::{
    Application as ConsensusApplication, Block as _, Handoff, marshal::ancestry::Ancestry,
    simplex::scheme::ed25519::Scheme,
};
use commonware_cryptography::{Digested, Digestible as _, sha256::Digest};
use commonware_glue::stateful::Mailbox;
use commonware_runtime::{Clock as _, Supervisor as _};
use futures::StreamExt as _;
use topnet_light::Context as ConsensusContext;

use crate::{
    application::Application,
    block::Block,
    limits::{CLOCK_DRIFT_MAX, HELD_BLOCKS_MAX},
    state::Context,
};

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

/// Execution at the chain's pace, as consensus sees it.
#[derive(Clone)]
pub(crate) struct Paced {
    execution: Mailbox<Context, Application>,
    pace: Arc<Pace>,
}

impl Paced {
    pub(crate) fn new(execution: Mailbox<Context, Application>, pace: Pace) -> Self {
        Self {
            execution,
            pace: Arc::new(pace),
        }
    }

    async fn wait_for_turn(&self, runtime: &Context, parent: Digest) {
        let wait = self.pace.wait(parent, Instant::now());
        if !wait.is_zero() {
            runtime.sleep(wait).await;
        }
    }
}

impl ConsensusApplication<Context> for Paced {
    type SigningScheme = Scheme;
    type Context = ConsensusContext;
    type Block = Block;
    type Input = ();

    async fn prepare(
        &mut self,
        context: (Context, ConsensusContext),
        ancestry: impl Ancestry<Block>,
        (): (),
    ) -> Handoff<Digested<Block>> {
        self.execution.prepare(context, ancestry, ()).await
    }

    async fn propose(
        &mut self,
        (runtime, context): (Context, ConsensusContext),
        ancestry: impl Ancestry<Block>,
        (): (),
    ) -> Option<Digested<Block>> {
        let parent = ancestry.clone().next().await?;
        self.wait_for_turn(&runtime, parent.digest()).await;
        let began = Instant::now();
        let block = self
            .execution
            .propose((runtime, context), ancestry, ())
            .await?;
        self.pace.hold(block.digest(), began);
        Some(block)
    }

    async fn verify(
        &mut self,
        (runtime, context): (Context, ConsensusContext),
        ancestry: impl Ancestry<Block>,
    ) -> bool {
        // An ancestry that ends early means missing data, which is no verdict.
        let Some(block) = ancestry.clone().next().await else {
            return pending().await;
        };
        self.pace.hold(block.digest(), Instant::now());
        let clock = runtime.child("pace");
        if !self.execution.verify((runtime, context), ancestry).await {
            return false;
        }
        // An early block is not refused, it waits; consensus drops the wait with the view.
        self.wait_for_turn(&clock, block.inner().parent()).await;
        let time_ms = block.inner().header.time_ms();
        clock.sleep(ahead_of_drift(time_ms, now_ms())).await;
        true
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// How long a vote for a header of `time_ms` still has to wait.
fn ahead_of_drift(time_ms: u64, now_ms: u64) -> Duration {
    Duration::from_millis(time_ms.saturating_sub(now_ms)).saturating_sub(CLOCK_DRIFT_MAX)
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
    fn a_vote_waits_for_a_time_that_is_too_far_ahead() {
        let drift_ms = CLOCK_DRIFT_MAX.as_millis() as u64;
        for (time_ms, now_ms, left_ms) in [
            (1_000, 2_000, 0),
            (2_000, 2_000, 0),
            (2_000 + drift_ms, 2_000, 0),
            (2_001 + drift_ms, 2_000, 1),
        ] {
            assert_eq!(
                ahead_of_drift(time_ms, now_ms),
                Duration::from_millis(left_ms)
            );
        }
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
