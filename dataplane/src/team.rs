//! Several workers: how a packet gets to the one whose session it belongs to.
//!
//! Each session is one worker's, for a tunnel cannot be shared: who receives a message or a packet
//! for another's session copies it into a [`Parcel`] and puts that into the other's inbox. The
//! other does with it what it does with what it received itself, so a packet is decided about,
//! counted and sent in one place, whoever received it. Parcels are made once; an inbox is a bounded
//! queue, so those of one peer stay in the order in which one worker received them, and what finds
//! it full, or has no parcel left, is dropped and counted. A parcel is never passed on a second
//! time; what is opened out of one may be for a peer of a third worker, and goes there once.
//!
//! ```text
//!   worker 0 ── parcel ──▶ inbox of worker 1
//!      ▲                        │
//!      └──── empty again ◀──────┘
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam::queue::ArrayQueue;

use crate::drops::DropReason;
use crate::session::{Endpoint, WorkerNumber};

/// Parcels of one worker.
const PARCELS: usize = 1_024;
/// Parcels that may wait for one worker: more than any has, so that one that is slow does not keep
/// all of another's.
const INBOX_MAX: usize = 768;

/// What is in a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A WireGuard message from there.
    Message(Endpoint),
    /// A packet from outside.
    Packet,
    /// A packet from a peer that reaches the other worker's.
    Relayed,
}

/// A copy of something that is another worker's.
#[derive(Debug)]
pub struct Parcel {
    from: WorkerNumber,
    /// What it is.
    pub content: Content,
    /// Its length.
    pub bytes: usize,
    /// The copy, and room behind it.
    pub data: Box<[u8]>,
}

struct Desk {
    inbox: ArrayQueue<Parcel>,
    /// Its own parcels on their way home.
    empty: ArrayQueue<Parcel>,
    asleep: AtomicBool,
    /// What a session may have carried in a turn of its worker's; [`NO_LEVEL`] is no limit.
    level: AtomicU64,
    /// Parcels that it has sent.
    passed: AtomicU64,
    wake: OwnedFd,
}

const NO_LEVEL: u64 = u64::MAX;

/// What a team's workers share.
pub struct Team {
    desks: Box<[Desk]>,
}

/// One worker's place in the team.
pub struct Seat {
    own: WorkerNumber,
    team: Arc<Team>,
    spare: Vec<Parcel>,
    taking: Option<Content>,
}

impl Team {
    /// A seat for each worker. `wakes` are the event counters that wake them; `parcel_bytes` is the
    /// most that is passed on.
    #[must_use]
    pub fn seats(wakes: Vec<OwnedFd>, parcel_bytes: usize) -> Vec<Seat> {
        let desk = |wake| Desk {
            inbox: ArrayQueue::new(INBOX_MAX),
            empty: ArrayQueue::new(PARCELS),
            asleep: AtomicBool::new(false),
            level: AtomicU64::new(NO_LEVEL),
            passed: AtomicU64::new(0),
            wake,
        };
        let desks: Box<[Desk]> = wakes.into_iter().map(desk).collect();
        let workers = desks.len() as u32;
        let team = Arc::new(Self { desks });
        let seat = |own| {
            let parcel = || Parcel {
                from: own,
                content: Content::Packet,
                bytes: 0,
                data: vec![0; parcel_bytes].into(),
            };
            Seat {
                own,
                team: Arc::clone(&team),
                spare: (0..PARCELS).map(|_| parcel()).collect(),
                taking: None,
            }
        };
        (0..workers).map(|own| seat(WorkerNumber(own))).collect()
    }

    /// Parcels since the start.
    #[must_use]
    pub fn passed(&self) -> u64 {
        let passed = |desk: &Desk| desk.passed.load(Ordering::Relaxed);
        self.desks.iter().map(passed).sum()
    }
}

impl Seat {
    /// What all share.
    #[must_use]
    pub fn team(&self) -> Arc<Team> {
        Arc::clone(&self.team)
    }

    /// Whose it is.
    #[must_use]
    pub const fn own(&self) -> WorkerNumber {
        self.own
    }

    /// True for another worker of the team.
    #[must_use]
    pub fn is_other(&self, worker: WorkerNumber) -> bool {
        worker != self.own && (worker.0 as usize) < self.team.desks.len()
    }

    /// True while what is handled came out of a parcel.
    #[must_use]
    pub const fn is_taking(&self) -> bool {
        self.taking.is_some()
    }

    /// What the parcel is that is handled, if one is.
    #[must_use]
    pub const fn taking(&self) -> Option<Content> {
        self.taking
    }

    /// Passes a copy of `bytes` to another worker.
    pub fn pass(
        &mut self,
        to: WorkerNumber,
        content: Content,
        bytes: &[u8],
    ) -> Result<(), DropReason> {
        let own = &self.team.desks[self.own.0 as usize];
        let spare = self.spare.pop().or_else(|| own.empty.pop());
        let Some(mut parcel) = spare else {
            return Err(DropReason::WorkerQueueFull);
        };
        let Some(room) = parcel.data.get_mut(..bytes.len()) else {
            self.spare.push(parcel);
            return Err(DropReason::TooLarge);
        };
        room.copy_from_slice(bytes);
        parcel.bytes = bytes.len();
        parcel.content = content;
        let other = &self.team.desks[to.0 as usize];
        if let Err(parcel) = other.inbox.push(parcel) {
            self.spare.push(parcel);
            return Err(DropReason::WorkerQueueFull);
        }
        own.passed.fetch_add(1, Ordering::Relaxed);
        // Either it sees the parcel before it sleeps, or we see here that it sleeps.
        fence(Ordering::SeqCst);
        if other.asleep.load(Ordering::Relaxed) && other.asleep.swap(false, Ordering::Relaxed) {
            // A full counter means that it is about to wake anyway.
            let _ = rustix::io::write(&other.wake, &1u64.to_ne_bytes());
        }
        Ok(())
    }

    /// Says what a session of this worker may have carried in a turn.
    pub fn say_level(&self, level: Option<u64>) {
        let own = &self.team.desks[self.own.0 as usize];
        own.level
            .store(level.unwrap_or(NO_LEVEL), Ordering::Relaxed);
    }

    /// What a session of another worker may have carried in a turn there, if that is limited.
    #[must_use]
    pub fn level_of(&self, worker: WorkerNumber) -> Option<u64> {
        let desk = self.team.desks.get(worker.0 as usize)?;
        Some(desk.level.load(Ordering::Relaxed)).filter(|level| *level != NO_LEVEL)
    }

    /// The next parcel of the inbox. It is to be given back.
    pub fn take(&mut self) -> Option<Parcel> {
        let parcel = self.team.desks[self.own.0 as usize].inbox.pop();
        self.taking = parcel.as_ref().map(|parcel| parcel.content);
        parcel
    }

    /// Sends a parcel home, which was handled.
    pub fn give_back(&mut self, parcel: Parcel) {
        self.taking = None;
        let home = &self.team.desks[parcel.from.0 as usize];
        // There is room for all that it has.
        let _ = home.empty.push(parcel);
    }

    /// Says that this worker is about to sleep; false if it must not, for parcels wait.
    pub fn may_sleep(&self) -> bool {
        let own = &self.team.desks[self.own.0 as usize];
        own.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if own.inbox.is_empty() {
            return true;
        }
        self.is_awake();
        false
    }

    /// Says that this worker is awake.
    pub fn is_awake(&self) {
        let own = &self.team.desks[self.own.0 as usize];
        own.asleep.store(false, Ordering::Relaxed);
    }
}

/// Event counters for so many workers.
pub fn wakes(workers: u32) -> io::Result<Vec<OwnedFd>> {
    use rustix::event::{EventfdFlags, eventfd};
    let counter = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let counters = (0..workers).map(|_| counter().map_err(io::Error::from));
    counters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn seats(workers: u32) -> Vec<Seat> {
        Team::seats(wakes(workers).unwrap(), 64)
    }

    /// True if somebody wrote to the event counter since the last look.
    fn was_woken(seat: &Seat) -> bool {
        let wake = &seat.team.desks[seat.own.0 as usize].wake;
        rustix::io::read(wake, &mut [0u8; 8]).is_ok()
    }

    #[test]
    fn parcels_arrive_in_order_and_go_home() {
        let mut seats = seats(3);
        let [first, second, third] = &mut seats[..] else {
            panic!("three");
        };
        assert!(!first.is_other(WorkerNumber(0)));
        assert!(first.is_other(WorkerNumber(2)));
        assert!(!first.is_other(WorkerNumber(3)));
        for round in 0..3 * PARCELS {
            let bytes = (round as u64).to_le_bytes();
            first
                .pass(WorkerNumber(2), Content::Packet, &bytes)
                .unwrap();
            let parcel = third.take().unwrap();
            assert!(third.is_taking());
            assert_eq!(parcel.data[..parcel.bytes], bytes);
            third.give_back(parcel);
            assert!(!third.is_taking());
        }
        assert!(second.take().is_none() && third.take().is_none());
        assert_eq!(first.team().passed(), 3 * PARCELS as u64);
        assert_eq!(
            first.pass(WorkerNumber(1), Content::Packet, &[0; 65]),
            Err(DropReason::TooLarge)
        );
    }

    #[test]
    fn what_has_no_room_is_refused_and_loses_no_parcel() {
        let mut seats = seats(3);
        let fill = |seat: &mut Seat, to| {
            let pass = |_: &usize| seat.pass(WorkerNumber(to), Content::Packet, b"x").is_ok();
            (0..2 * PARCELS).filter(pass).count()
        };
        // One that does not work keeps its inbox full and no more.
        assert_eq!(fill(&mut seats[0], 1), INBOX_MAX);
        assert_eq!(fill(&mut seats[0], 2), PARCELS - INBOX_MAX);
        assert_eq!(
            seats[0].pass(WorkerNumber(2), Content::Packet, b"x"),
            Err(DropReason::WorkerQueueFull)
        );
        for at in [1, 2] {
            while let Some(parcel) = seats[at].take() {
                seats[at].give_back(parcel);
            }
        }
        assert_eq!(fill(&mut seats[0], 1), INBOX_MAX);
    }

    #[test]
    fn who_sleeps_is_woken_once_and_who_does_not_is_left_alone() {
        let mut seats = seats(2);
        let to = WorkerNumber(1);
        seats[0].pass(to, Content::Packet, b"x").unwrap();
        assert!(!was_woken(&seats[1]));
        assert!(!seats[1].may_sleep(), "a parcel waits");
        let parcel = seats[1].take().unwrap();
        seats[1].give_back(parcel);
        assert!(seats[1].may_sleep());
        seats[0].pass(to, Content::Packet, b"x").unwrap();
        seats[0].pass(to, Content::Packet, b"x").unwrap();
        assert!(was_woken(&seats[1]));
        assert!(!was_woken(&seats[1]), "once is enough");
    }

    /// Threads that sleep whenever they may: nobody sleeps on a parcel for ever.
    #[test]
    fn nobody_sleeps_through_a_parcel() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        const ROUNDS: u64 = 20_000;
        let mut seats = seats(2);
        let (mut other, mut own) = (seats.pop().unwrap(), seats.pop().unwrap());
        let receive = |seat: &mut Seat| loop {
            if let Some(parcel) = seat.take() {
                let number = u64::from_le_bytes(parcel.data[..8].try_into().unwrap());
                seat.give_back(parcel);
                return number;
            }
            if seat.may_sleep() {
                let wake = &seat.team.desks[seat.own.0 as usize].wake;
                let patience = Timespec {
                    tv_sec: 30,
                    tv_nsec: 0,
                };
                let mut fds = [PollFd::new(wake, PollFlags::IN)];
                let woken = poll(&mut fds, Some(&patience)).unwrap();
                assert_ne!(woken, 0, "it slept on a parcel");
                let _ = rustix::io::read(wake, &mut [0u8; 8]);
                seat.is_awake();
            }
        };
        let echo = thread::spawn(move || {
            for _ in 0..ROUNDS {
                let number = receive(&mut other);
                let bytes = number.to_le_bytes();
                other
                    .pass(WorkerNumber(0), Content::Packet, &bytes)
                    .unwrap();
            }
        });
        for round in 0..ROUNDS {
            own.pass(WorkerNumber(1), Content::Packet, &round.to_le_bytes())
                .unwrap();
            assert_eq!(receive(&mut own), round);
        }
        echo.join().unwrap();
    }
}
