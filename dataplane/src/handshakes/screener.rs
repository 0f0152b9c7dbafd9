//! The screener: which initiations are worth the worker's time, and the thread that asks.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::thread::{sched_getaffinity, sched_setaffinity};

use super::guard::{Arrival, Guard, Refusal};
use super::initiation::{Claim, Shared, Timestamp, shared};
use super::{Accepted, CookieReply, INITIATIONS_CROWD, Initiation, Notice, Screening};
use crate::drops::{DropCounters, DropReason};
use crate::session::{Identity, SessionIndex};

/// Initiations a second whose senders' addresses are believed: a tenth of a CPU at most.
const UNPROVEN_PER_SECOND_MAX: u32 = 1_000;
/// Initiations between two looks at the clock, after which the worker is woken once.
const INITIATIONS_PER_TURN: usize = 16;
/// Least time between two handshakes of one peer, as other implementations of WireGuard have it.
const PEER_INTERVAL_MS: u64 = 50;

/// A peer that has a session.
struct Peer {
    index: SessionIndex,
    /// What only the peer and we know; computed when it is first needed.
    shared: Option<Shared>,
    /// Of its newest initiation: an older one is somebody else's repetition.
    newest: Timestamp,
    /// When it may begin another handshake.
    next_ms: u64,
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Initiations that were looked at.
    pub looked_at: usize,
    /// Answers that the worker is to make of them.
    pub answers: usize,
}

/// Looks at initiations for one worker.
pub struct Screener {
    screening: Arc<Screening>,
    identity: Arc<Identity>,
    peers: HashMap<[u8; 32], Peer>,
    guard: Guard,
    drops: Arc<DropCounters>,
}

impl Screener {
    /// A screener that knows no peers yet.
    #[must_use]
    pub fn new(screening: Arc<Screening>, identity: Arc<Identity>, sessions_max: usize) -> Self {
        Self {
            screening,
            identity,
            peers: HashMap::with_capacity(sessions_max),
            guard: Guard::new(UNPROVEN_PER_SECOND_MAX),
            drops: Arc::default(),
        }
    }

    /// What it drops.
    #[must_use]
    pub fn drops(&self) -> Arc<DropCounters> {
        Arc::clone(&self.drops)
    }

    /// Starts the thread. `wake` is the event counter that wakes the worker. If the worker is to
    /// have a CPU, the thread keeps off it while there is another.
    pub fn start(self, wake: OwnedFd, workers_cpu: Option<u16>) -> io::Result<ScreenerThread> {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let screening = Arc::clone(&self.screening);
        let thread = thread::Builder::new()
            .name("screener-0".to_owned())
            .spawn(move || {
                // That it cannot be had changes who waits for whom, and nothing else.
                let _ = workers_cpu.map(keep_off);
                self.run(&stopped, &wake);
            })?;
        // Before there is a worker, so that what it submits always wakes the thread.
        let _ = screening.screener.set(thread.thread().clone());
        Ok(ScreenerThread {
            stop,
            thread: Some(thread),
        })
    }

    fn run(mut self, stop: &AtomicBool, wake: &OwnedFd) {
        let started = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let turn = self.turn(started.elapsed().as_millis() as u64);
            if turn.answers > 0 {
                // A full counter means that the worker is about to wake anyway.
                let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
            }
            if turn.looked_at == 0 {
                // Who submits something after the look leaves a token, and this returns at once.
                thread::park();
            }
        }
    }

    /// Looks at a few of the initiations that wait.
    pub fn turn(&mut self, now_ms: u64) -> Turn {
        let mut turn = Turn::default();
        self.take_notices();
        while turn.looked_at < INITIATIONS_PER_TURN
            && let Some(initiation) = self.screening.initiations.pop()
        {
            turn.looked_at += 1;
            // What the worker did before this arrived was told before it was submitted.
            self.take_notices();
            if let Err(reason) = self.answer(initiation, now_ms) {
                self.drops.add(reason, 1);
            } else {
                turn.answers += 1;
            }
        }
        turn
    }

    fn answer(&mut self, initiation: Initiation, now_ms: u64) -> Result<(), DropReason> {
        let pushed = match self.screen(&initiation, now_ms) {
            Ok((index, public_key)) => {
                let accepted = Accepted {
                    index,
                    public_key,
                    initiation,
                };
                self.screening.accepted.push(accepted).is_ok()
            }
            Err(Refusal::Cookie(message)) => {
                let endpoint = initiation.endpoint;
                let reply = CookieReply { endpoint, message };
                self.screening.cookies.push(reply).is_ok()
            }
            Err(Refusal::Drop(reason)) => return Err(reason),
        };
        pushed.then_some(()).ok_or(DropReason::HandshakeQueueFull)
    }

    /// Whose initiation it is, if it is one that shall be answered.
    fn screen(
        &mut self,
        initiation: &Initiation,
        now_ms: u64,
    ) -> Result<(SessionIndex, [u8; 32]), Refusal> {
        let arrival = Arrival {
            source: initiation.endpoint.remote.ip(),
            message: &initiation.message,
            crowded: self.screening.initiations.len() >= INITIATIONS_CROWD,
            now_ms,
        };
        self.guard.check(&self.identity, &arrival)?;
        let claim =
            Claim::open(&self.identity, &initiation.message).ok_or(DropReason::HandshakeInvalid)?;
        let peer = self
            .peers
            .get_mut(&claim.peer)
            .ok_or(DropReason::PeerUnknown)?;
        let shared = peer
            .shared
            .get_or_insert_with(|| shared(&self.identity, claim.peer));
        let timestamp = claim
            .timestamp(shared)
            .filter(|timestamp| *timestamp > peer.newest)
            .ok_or(DropReason::HandshakeInvalid)?;
        if now_ms < peer.next_ms {
            return Err(DropReason::HandshakeRate.into());
        }
        peer.newest = timestamp;
        peer.next_ms = now_ms + PEER_INTERVAL_MS;
        Ok((peer.index, claim.peer))
    }

    fn take_notices(&mut self) {
        while let Some(notice) = self.screening.notices.pop() {
            match notice {
                Notice::Installed(public_key, index) => {
                    let peer = Peer {
                        index,
                        shared: None,
                        newest: Timestamp::default(),
                        next_ms: 0,
                    };
                    self.peers.insert(public_key, peer);
                }
                Notice::Removed(public_key, index) => {
                    // A newer session of the same peer stays.
                    let peer = self.peers.get(&public_key);
                    if peer.is_some_and(|peer| peer.index == index) {
                        self.peers.remove(&public_key);
                    }
                }
                Notice::Identity(identity) => {
                    self.identity = identity;
                    for peer in self.peers.values_mut() {
                        peer.shared = None;
                    }
                }
            }
        }
    }
}

/// A screener at work. It ends with this value; what still waits for it is then nobody's.
pub struct ScreenerThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ScreenerThread {
    /// True if it has ended by itself, which is a fault: no handshake is made any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    #[cfg(test)]
    pub(crate) fn end_by_itself(&self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for ScreenerThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // That it panicked was said, and the worker has ended for it.
            let _ = thread.join();
        }
    }
}

/// Leaves a CPU to the worker, if there are others.
fn keep_off(cpu: u16) -> io::Result<()> {
    let mut set = sched_getaffinity(None)?;
    let cpu = usize::from(cpu);
    if cpu < rustix::thread::CpuSet::MAX_CPU {
        set.unset(cpu);
    }
    if set.count() > 0 {
        sched_setaffinity(None, &set)?;
    }
    Ok(())
}
