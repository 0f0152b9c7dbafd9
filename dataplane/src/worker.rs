//! The run-to-completion loop: one thread, pinned, that does everything about a packet, but for
//! what a stranger can make costly ([`crate::handshakes`]).
//!
//! The worker shares nothing that it could wait for. Commands come over a bounded queue, at
//! most a few per burst; what it no longer needs goes back over another, so that freeing
//! memory is somebody else's work and receiving it back proves that the worker is past the
//! burst in which it was used.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use topnet_config::Reach;
use topnet_nat::{BlockEvent, BlockEventKind};

use crate::accounting::{Accounting, Gate};
use crate::capture::Tap;
use crate::forwarding::Forwarding;
use crate::handshakes::{Answer, ScreenerThread};
use crate::io::{Backend, Sockets};
use crate::nat_log::Holder;
use crate::plane::Plane;
use crate::session::{Addresses, Identity, NetworkChange, Session, SessionIndex, SessionRates};

/// Commands and returned things that may wait.
pub const QUEUE_MAX: usize = 4096;
/// Commands between two bursts.
const COMMANDS_PER_BURST: usize = 16;
/// Handshakes between two bursts. One takes as long as two bursts do, so that packets have a third
/// of the time in the worst of storms.
const HANDSHAKES_PER_BURST: usize = 1;
/// Cookies between two bursts. One takes as long as a packet.
const COOKIES_PER_BURST: usize = 32;
/// How often every session's timers are looked at (what boringtun wants).
const TICK: Duration = Duration::from_millis(250);
/// Parts that the sessions are divided into, so that no burst waits for all timers at once.
const TICK_PARTS: u32 = 16;
/// Longest sleep; a command wakes it earlier.
const SLEEP_MAX: Duration = Duration::from_millis(10);

/// What the control thread asks of the worker.
pub enum Command {
    /// A new session; its index is free.
    Install(Box<Session>),
    /// A session to give back.
    Remove(SessionIndex),
    /// Other networks for an unmetered peer.
    Networks(SessionIndex, NetworkChange),
    /// What is to be known of another worker's session.
    Neighbour(SessionIndex, NeighbourChange),
    /// Where a peer is to be expected.
    Endpoint(SessionIndex, SocketAddr),
    /// How often a peer is to be sent something, in seconds; 0 is not at all.
    Keepalive(SessionIndex, u16),
    /// Another key of the interface. Sessions are made anew for it.
    Identity(Arc<Identity>),
    /// Another size of the largest inner packet.
    InnerMtu(usize),
    /// What peers reach.
    Reach(Arc<Reach>),
    /// How fast paying sessions may go from now on.
    Rates(SessionRates),
    /// Where inner packets are copied to, if anywhere.
    Tap(Option<Arc<Tap>>),
    /// Other sockets to listen on, where the kernel's are the way.
    Sockets(Sockets),
    /// New routes and neighbours.
    Forwarding(Arc<Forwarding>),
}

/// What is different about another worker's session.
#[derive(Clone, Debug)]
pub enum NeighbourChange {
    /// It has these addresses.
    Has(Addresses),
    /// It is gone, and had these.
    Gone(Addresses),
    /// It has other networks.
    Networks(NetworkChange),
}

/// What the worker is done with.
pub enum Returned {
    /// A removed session: nothing counts on its behalf any more, and all that did is in the table.
    Session(Box<Session>),
    /// An old snapshot.
    Forwarding(Arc<Forwarding>),
    /// What peers reached before.
    Reach(Arc<Reach>),
    /// Where nothing is copied to any more.
    Tap(Arc<Tap>),
    /// Sockets that nothing is received from any more.
    Sockets(Sockets),
    /// A block of public ports that was lent, and to whose session, or that came back.
    Block(BlockEvent, Option<Holder>),
}

/// The queues between control and worker.
#[derive(Clone)]
pub struct Queues {
    /// To the worker.
    pub commands: Arc<ArrayQueue<Command>>,
    /// From the worker.
    pub returned: Arc<ArrayQueue<Returned>>,
    /// Set to end the worker.
    pub stop: Arc<AtomicBool>,
}

impl Default for Queues {
    fn default() -> Self {
        Self {
            commands: Arc::new(ArrayQueue::new(QUEUE_MAX)),
            returned: Arc::new(ArrayQueue::new(QUEUE_MAX)),
            stop: Arc::default(),
        }
    }
}

/// One worker.
pub struct Worker<I, G = Accounting> {
    io: I,
    plane: Plane<G>,
    queues: Queues,
    screener: Arc<ScreenerThread>,
    next_tick: Instant,
    next_part: u32,
}

impl<I: Backend, G: Gate> Worker<I, G> {
    /// A worker that has not run yet, and the screener of its plane, which ends with the last worker.
    pub fn new(
        io: I,
        plane: Plane<G>,
        queues: Queues,
        screener: impl Into<Arc<ScreenerThread>>,
    ) -> Self {
        Self {
            io,
            plane,
            queues,
            screener: screener.into(),
            next_tick: Instant::now(),
            next_part: 0,
        }
    }

    /// Runs until it is told to stop, or until the interface or the screener fails.
    pub fn run(self) -> std::io::Result<()> {
        self.run_to_the_end().map(drop)
    }

    /// The same, and gives the plane back when it is told to stop: it has state for the next run.
    pub fn run_to_the_end(mut self) -> std::io::Result<Plane<G>> {
        let mut idle = 0;
        while !self.queues.stop.load(Ordering::Relaxed) {
            let received = self.io.receive(&mut self.plane)?;
            self.take_commands();
            let answered = self.make_answers();
            let now = Instant::now();
            if now >= self.next_tick {
                self.tick(now);
                if self.screener.has_ended() {
                    return Err(io::Error::other("the thread that screens handshakes ended"));
                }
            }
            self.io.flush();
            if received > 0 || answered > 0 {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle > I::SPINS_MAX && self.plane.may_sleep() {
                let until_tick = self.next_tick.saturating_duration_since(Instant::now());
                self.io.wait(until_tick.min(SLEEP_MAX))?;
                self.plane.is_awake();
            } else {
                std::hint::spin_loop();
            }
        }
        self.report_blocks();
        Ok(self.plane)
    }

    fn take_commands(&mut self) {
        for _ in 0..COMMANDS_PER_BURST {
            // A command may give somebody else a number: blocks that were lent before are told
            // before. And every command gives back at most one thing, so there is room for it.
            self.report_blocks();
            // It is at most one change too.
            if !self.has_room() || !self.plane.has_room_for_change() {
                return;
            }
            let returned = match self.queues.commands.pop() {
                None => return,
                Some(Command::Install(session)) => {
                    let place = session.plan.index.place() as usize;
                    self.plane.install(session);
                    // A peer of the last run is greeted now: it has no service until then.
                    self.io.tick(&mut self.plane, place);
                    None
                }
                Some(Command::Remove(index)) => self.plane.remove(index).map(Returned::Session),
                Some(Command::Networks(index, change)) => {
                    self.plane.change_networks(index, &change);
                    None
                }
                Some(Command::Neighbour(index, change)) => {
                    match &change {
                        NeighbourChange::Has(addresses) => self.plane.note_owner(index, addresses),
                        NeighbourChange::Gone(addresses) => {
                            self.plane.forget_owner(index, addresses);
                        }
                        NeighbourChange::Networks(change) => {
                            self.plane.note_networks(index, change);
                        }
                    }
                    None
                }
                Some(Command::Endpoint(index, remote)) => {
                    self.plane.change_endpoint(index, remote);
                    None
                }
                Some(Command::Keepalive(index, seconds)) => {
                    self.plane.change_keepalive(index, seconds);
                    None
                }
                Some(Command::Identity(identity)) => {
                    self.plane.replace_identity(identity);
                    None
                }
                Some(Command::InnerMtu(bytes)) => {
                    self.plane.change_inner_mtu(bytes);
                    None
                }
                Some(Command::Reach(reach)) => {
                    Some(Returned::Reach(self.plane.change_reach(reach)))
                }
                Some(Command::Rates(rates)) => {
                    self.plane.change_rates(&rates);
                    None
                }
                Some(Command::Tap(tap)) => self.plane.change_tap(tap).map(Returned::Tap),
                Some(Command::Sockets(sockets)) => {
                    Some(Returned::Sockets(self.io.replace_sockets(sockets)))
                }
                Some(Command::Forwarding(forwarding)) => {
                    let old = self.io.replace_forwarding(&mut self.plane, forwarding);
                    Some(Returned::Forwarding(old))
                }
            };
            if let Some(returned) = returned {
                // Only this thread fills the queue, and there was room.
                let pushed = self.queues.returned.push(returned);
                assert!(pushed.is_ok(), "room was checked and nobody else pushes");
            }
        }
    }

    /// Makes answers that the screener left, and returns how many.
    fn make_answers(&mut self) -> usize {
        let mut made = 0;
        for (answer, most) in [
            (Answer::Handshake, HANDSHAKES_PER_BURST),
            (Answer::Cookie, COOKIES_PER_BURST),
        ] {
            for _ in 0..self.plane.answers(answer).min(most) {
                made += usize::from(self.io.answer(&mut self.plane, answer));
            }
        }
        made
    }

    /// Looks at the timers of the next part of the sessions.
    fn tick(&mut self, now: Instant) {
        self.next_tick = now + TICK / TICK_PARTS;
        let places = self.plane.session_places();
        for place in (self.next_part as usize..places).step_by(TICK_PARTS as usize) {
            self.io.tick(&mut self.plane, place);
        }
        self.next_part = (self.next_part + 1) % TICK_PARTS;
        self.plane.sweep();
        self.report_blocks();
    }

    /// Gives back what the log of public addresses is to say.
    fn report_blocks(&mut self) {
        while self.has_room()
            && let Some(event) = self.plane.take_block_event()
        {
            // A block that came back is about whoever had it, as the log knows; another may have
            // the number now.
            let holder = match event.kind {
                BlockEventKind::Allocated => self.plane.holder(event.subscriber).map(Holder::of),
                BlockEventKind::Released => None,
            };
            // Only this thread fills the queue, and there was room.
            let pushed = self.queues.returned.push(Returned::Block(event, holder));
            assert!(pushed.is_ok(), "room was checked and nobody else pushes");
        }
    }

    /// Whether one more thing can be given back, and another one after it.
    fn has_room(&self) -> bool {
        self.queues.returned.len() + 1 < self.queues.returned.capacity()
    }
}

#[cfg(test)]
mod tests;
