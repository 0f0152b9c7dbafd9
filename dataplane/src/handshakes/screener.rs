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
use crate::session::{Identity, SessionIndex, WorkerNumber};

/// Initiations a second whose senders' addresses are believed: a tenth of a CPU at most.
const UNPROVEN_PER_SECOND_MAX: u32 = 1_000;
/// Initiations between two looks at the clock, after which the worker is woken once.
const INITIATIONS_PER_TURN: usize = 16;
/// Least time between two handshakes of one peer, as other implementations of WireGuard have it.
const PEER_INTERVAL_MS: u64 = 50;

/// A peer that has a session.
struct Peer {
    index: SessionIndex,
    /// Sessions that it had before, or has, at other workers: nobody has told yet that they are gone.
    others: Vec<SessionIndex>,
    /// What only the peer and we know; computed when it is first needed.
    shared: Option<Shared>,
    /// Of its newest initiation: an older one is somebody else's repetition.
    newest: Timestamp,
    /// When it may begin another handshake.
    next_ms: u64,
}

impl Peer {
    fn new(index: SessionIndex, others: Vec<SessionIndex>) -> Self {
        Self {
            index,
            others,
            shared: None,
            newest: Timestamp::default(),
            next_ms: 0,
        }
    }
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Initiations that were looked at.
    pub looked_at: usize,
    /// Answers that workers are to make of them.
    pub answers: usize,
    /// The workers that are to make them, a bit each.
    workers: u32,
}

/// Looks at initiations for all workers.
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

    /// Starts the thread. `wakes` are the event counters that wake the workers. If they are to have
    /// CPUs, the thread keeps off those while there are others.
    pub fn start(self, wakes: Vec<OwnedFd>, workers_cpus: &[u16]) -> io::Result<ScreenerThread> {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let screening = Arc::clone(&self.screening);
        let cpus = workers_cpus.to_vec();
        let thread = thread::Builder::new()
            .name("screener-0".to_owned())
            .spawn(move || {
                // That it cannot be had changes who waits for whom, and nothing else.
                let _ = keep_off(&cpus);
                self.run(&stopped, &wakes);
            })?;
        // Before there are workers, so that what it submits always wakes the thread.
        let _ = screening.screener.set(thread.thread().clone());
        Ok(ScreenerThread {
            stop,
            thread: Some(thread),
        })
    }

    #[cfg(test)]
    pub(crate) fn knows_nobody(&self) -> bool {
        self.peers.is_empty()
    }

    fn run(mut self, stop: &AtomicBool, wakes: &[OwnedFd]) {
        let started = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let turn = self.turn(started.elapsed().as_millis() as u64);
            for (worker, wake) in wakes.iter().enumerate() {
                if turn.workers >> worker & 1 == 1 {
                    // A full counter means that the worker is about to wake anyway.
                    let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
                }
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
            match self.answer(initiation, now_ms) {
                Ok(worker) => {
                    turn.answers += 1;
                    turn.workers |= 1 << worker.0;
                }
                Err(reason) => self.drops.add(reason, 1),
            }
        }
        turn
    }

    /// Which worker is to answer it.
    fn answer(&mut self, initiation: Initiation, now_ms: u64) -> Result<WorkerNumber, DropReason> {
        let (worker, pushed) = match self.screen(&initiation, now_ms) {
            Ok((index, public_key)) => {
                let accepted = Accepted {
                    index,
                    public_key,
                    initiation,
                };
                let worker = index.worker();
                let desk = self.screening.desk(worker);
                (worker, desk.accepted.push(accepted).is_ok())
            }
            Err(Refusal::Cookie(message)) => {
                let (worker, endpoint) = (initiation.worker, initiation.endpoint);
                let desk = self.screening.desk(worker);
                let reply = CookieReply { endpoint, message };
                (worker, desk.cookies.push(reply).is_ok())
            }
            Err(Refusal::Drop(reason)) => return Err(reason),
        };
        let full = DropReason::HandshakeQueueFull;
        pushed.then_some(worker).ok_or(full)
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

    /// Those of one worker are in the order in which it did what they tell; those of two are not.
    fn take_notices(&mut self) {
        let screening = Arc::clone(&self.screening);
        for desk in &screening.desks {
            while let Some(notice) = desk.notices.pop() {
                self.take_notice(notice);
            }
        }
    }

    fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Installed(public_key, index) => {
                let had = self.peers.remove(&public_key);
                let others = had.map_or_else(Vec::new, |had| {
                    let mut others = had.others;
                    others.push(had.index);
                    others
                });
                self.peers.insert(public_key, Peer::new(index, others));
            }
            Notice::Removed(public_key, index) => {
                let Some(peer) = self.peers.get_mut(&public_key) else {
                    return;
                };
                if peer.index != index {
                    return peer.others.retain(|other| *other != index);
                }
                let mut others = std::mem::take(&mut peer.others);
                match others.pop() {
                    Some(other) => *peer = Peer::new(other, others),
                    None => drop(self.peers.remove(&public_key)),
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

/// Leaves CPUs to the workers, if there are others.
fn keep_off(cpus: &[u16]) -> io::Result<()> {
    let mut set = sched_getaffinity(None)?;
    let known = |cpu: &usize| *cpu < rustix::thread::CpuSet::MAX_CPU;
    for cpu in cpus.iter().map(|cpu| usize::from(*cpu)).filter(known) {
        set.unset(cpu);
    }
    if set.count() > 0 {
        sched_setaffinity(None, &set)?;
    }
    Ok(())
}
