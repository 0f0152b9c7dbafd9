//! Handshake initiations are looked at by a thread of their own before the worker sees them.
//!
//! Anybody who knows our public key can send initiations, and each costs Curve25519 operations
//! before it is known who sent it. The worker, which carries everybody's packets, must not do
//! those for strangers. It puts what arrives into a bounded queue and goes on; the [`Screener`]
//! refuses what it can ([`guard`]), opens the rest as far as it takes to know that a peer sent it
//! just now, and gives it back. Only then does the worker make the handshake, a few between two
//! bursts. So a storm costs the worker one copy a message, and the screener's CPU time the rest.
//!
//! ```text
//!             ── initiations ──▶            ── accepted ──▶
//!   worker    ── notices ─────▶  screener   ── cookies ───▶   worker
//! ```
//!
//! One screener serves all workers, each over its own queues, but that initiations share one: who
//! sent them is not known before. It answers through the worker that has the peer's session, and
//! asks for a cookie through the one that received the initiation.
//!
//! Every queue is bounded, and what finds one full is dropped and counted; senders try again. The
//! screener's view of who has a session is made of the worker's notices, in their order. What comes
//! back names the session by its place and its key, and the worker looks whether that still holds.
//!
//! Responses to our own initiations, and cookies for them, stay with the worker, because only the
//! tunnel that asked can open them. A response is guarded like an initiation; a cookie costs no
//! more than a data packet that does not decrypt.

pub mod guard;
mod initiation;
mod screener;
mod sources;

use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use crossbeam::queue::ArrayQueue;

use self::guard::COOKIE_BYTES;
use crate::drops::DropReason;
use crate::session::{Endpoint, Identity, SessionIndex, WorkerNumber};

pub use screener::{Screener, ScreenerThread, Turn};

/// Bytes of a handshake initiation.
pub const INITIATION_BYTES: usize = 148;
/// Initiations that may wait for the screener: a storm's of the time for which a busy machine may
/// leave it without a CPU.
const INITIATIONS_MAX: usize = 4_096;
/// So many of them that there is no time to believe addresses.
const INITIATIONS_CROWD: usize = INITIATIONS_MAX / 8;
/// Initiations that may wait for the worker.
const ACCEPTED_MAX: usize = 256;
/// Cookies that may wait for the worker.
const COOKIES_MAX: usize = 512;
/// Changes that the screener may not have heard of yet.
pub const NOTICES_MAX: usize = 1_024;

/// What the worker sends of its own accord after the screener has looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A handshake is made, and answered.
    Handshake,
    /// A sender is asked to prove its address.
    Cookie,
}

/// A handshake initiation as it arrived.
#[derive(Clone, Debug)]
pub struct Initiation {
    /// Who received it.
    pub worker: WorkerNumber,
    /// Where it came from, and where to.
    pub endpoint: Endpoint,
    /// All of it.
    pub message: [u8; INITIATION_BYTES],
}

/// An initiation that a peer has sent.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The peer's session, when it was looked up.
    pub index: SessionIndex,
    /// The peer's key: another session may have the place by now.
    pub public_key: [u8; 32],
    /// What it sent.
    pub initiation: Initiation,
}

/// A cookie for whoever is to prove its address.
#[derive(Clone, Debug)]
pub struct CookieReply {
    /// Where it is.
    pub endpoint: Endpoint,
    /// All of the message.
    pub message: [u8; COOKIE_BYTES],
}

/// What the worker did that the screener must know.
pub enum Notice {
    /// The peer with this key has a session.
    Installed([u8; 32], SessionIndex),
    /// It has that one no more.
    Removed([u8; 32], SessionIndex),
    /// The interface has another key.
    Identity(Arc<Identity>),
}

/// The queues between all workers and their screener.
pub struct Screening {
    initiations: ArrayQueue<Initiation>,
    desks: Box<[Desk]>,
    screener: OnceLock<Thread>,
}

/// The queues of one worker.
struct Desk {
    accepted: ArrayQueue<Accepted>,
    cookies: ArrayQueue<CookieReply>,
    notices: ArrayQueue<Notice>,
}

impl Screening {
    /// Empty queues for so many workers.
    #[must_use]
    pub fn new(workers: u32) -> Self {
        let desk = |_| Desk {
            accepted: ArrayQueue::new(ACCEPTED_MAX),
            cookies: ArrayQueue::new(COOKIES_MAX),
            notices: ArrayQueue::new(NOTICES_MAX),
        };
        Self {
            initiations: ArrayQueue::new(INITIATIONS_MAX),
            desks: (0..workers).map(desk).collect(),
            screener: OnceLock::new(),
        }
    }

    fn desk(&self, worker: WorkerNumber) -> &Desk {
        &self.desks[worker.0 as usize]
    }

    /// Has an initiation looked at.
    pub fn submit(&self, initiation: Initiation) -> Result<(), DropReason> {
        let pushed = self.initiations.push(initiation);
        self.wake();
        pushed.map_err(|_| DropReason::HandshakeQueueFull)
    }

    /// True if the screener can be told something by this worker.
    #[must_use]
    pub fn has_room_for_notice(&self, worker: WorkerNumber) -> bool {
        !self.desk(worker).notices.is_full()
    }

    /// Tells the screener. To be called only when there is room, and by this worker.
    pub fn tell(&self, worker: WorkerNumber, notice: Notice) {
        let pushed = self.desk(worker).notices.push(notice);
        assert!(pushed.is_ok(), "room was checked and nobody else pushes");
        self.wake();
    }

    /// How many answers of a kind wait for a worker.
    #[must_use]
    pub fn answers(&self, worker: WorkerNumber, answer: Answer) -> usize {
        match answer {
            Answer::Handshake => self.desk(worker).accepted.len(),
            Answer::Cookie => self.desk(worker).cookies.len(),
        }
    }

    /// An initiation that a peer of this worker's has sent.
    pub fn take_accepted(&self, worker: WorkerNumber) -> Option<Accepted> {
        self.desk(worker).accepted.pop()
    }

    /// A cookie to be sent.
    pub fn take_cookie(&self, worker: WorkerNumber) -> Option<CookieReply> {
        self.desk(worker).cookies.pop()
    }

    /// Wakes the screener. No system call while it is awake.
    fn wake(&self) {
        if let Some(thread) = self.screener.get() {
            thread.unpark();
        }
    }
}

impl Default for Screening {
    fn default() -> Self {
        Self::new(1)
    }
}

#[cfg(test)]
pub(crate) mod forging;
#[cfg(test)]
mod tests;
