//! The control side's way to the workers.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fd::OwnedFd;

use crate::orders::Order;
use crate::session::{
    Addresses, Session, SessionCounters, SessionIndex, SessionPlan, WorkerNumber,
};
use crate::worker::{Command, NeighbourChange, Queues, Returned};

/// How long a full command queue is left to the worker.
const QUEUE_PAUSE: Duration = Duration::from_millis(1);

/// The control side's way to one worker.
pub struct WorkerLink {
    /// The queues.
    pub queues: Queues,
    /// Wakes the worker from its sleep.
    pub wake: OwnedFd,
}

/// The control side's way to all workers. Each does what it is told in that order; one whose queue is
/// full is waited for, and what is for the others with it.
pub struct WorkerLinks {
    links: Vec<WorkerLink>,
    /// What each session has, which all workers are told. Empty while there is one.
    addresses: Mutex<HashMap<SessionIndex, Addresses>>,
}

impl WorkerLink {
    fn reap(&self, mut take: impl FnMut(Returned)) {
        while let Some(returned) = self.queues.returned.pop() {
            take(returned);
        }
    }

    fn wake(&self) {
        // A full counter means that it is about to wake anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl WorkerLinks {
    /// Ways to these workers, in the order of their numbers.
    #[must_use]
    pub fn new(links: Vec<WorkerLink>) -> Self {
        Self {
            links,
            addresses: Mutex::default(),
        }
    }

    /// All workers.
    pub fn workers(&self) -> impl Iterator<Item = WorkerNumber> + use<> {
        (0..self.links.len() as u32).map(WorkerNumber)
    }

    /// Delivers a command. `take` gets what workers give back meanwhile: they may wait for room.
    pub async fn send(
        &self,
        worker: WorkerNumber,
        mut command: Command,
        mut take: impl FnMut(Returned),
    ) {
        let Some(link) = self.links.get(worker.0 as usize) else {
            return;
        };
        while let Err(refused) = link.queues.commands.push(command) {
            // Nobody takes it any more.
            if link.queues.stop.load(Ordering::Relaxed) {
                return;
            }
            command = refused;
            self.reap(&mut take);
            link.wake();
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
        link.wake();
    }

    /// Has the workers do what was ordered, in that order. `make` makes a session of its plan; `take`
    /// is as for [`send`](Self::send).
    pub async fn deliver(
        &self,
        orders: Vec<Order>,
        mut make: impl FnMut(SessionPlan, Arc<SessionCounters>) -> Session,
        mut take: impl FnMut(Returned),
    ) {
        for order in orders {
            let (index, change) = self.note(&order);
            let command = match order {
                Order::Remove(index) => Command::Remove(index),
                Order::Networks(index, change) => Command::Networks(index, change),
                Order::Endpoint(index, remote) => Command::Endpoint(index, remote),
                Order::Keepalive(index, seconds) => Command::Keepalive(index, seconds),
                Order::Install(plan, counters) => {
                    let session = Box::new(make(plan, counters));
                    // A Curve25519 operation each: let others have a turn.
                    tokio::task::yield_now().await;
                    Command::Install(session)
                }
            };
            let own = index.worker();
            self.send(own, command, &mut take).await;
            let Some(change) = change else {
                continue;
            };
            for other in self.workers().filter(|other| *other != own) {
                let command = Command::Neighbour(index, change.clone());
                self.send(other, command, &mut take).await;
            }
        }
    }

    /// Whose session an order is about, and what the other workers are to know of it.
    fn note(&self, order: &Order) -> (SessionIndex, Option<NeighbourChange>) {
        let mut addresses = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (index, change) = match order {
            Order::Endpoint(index, _) | Order::Keepalive(index, _) => return (*index, None),
            Order::Install(plan, _) => (
                plan.index,
                Some(NeighbourChange::Has(plan.addresses.clone())),
            ),
            Order::Remove(index) => {
                let had = addresses.remove(index);
                (*index, had.map(NeighbourChange::Gone))
            }
            Order::Networks(index, change) => {
                (*index, Some(NeighbourChange::Networks(change.clone())))
            }
        };
        if self.links.len() < 2 {
            return (index, None);
        }
        match &change {
            Some(NeighbourChange::Has(now)) => drop(addresses.insert(index, now.clone())),
            Some(NeighbourChange::Networks(change)) => {
                if let Some(Addresses::Networks(networks)) = addresses.get_mut(&index) {
                    change.apply(networks);
                }
            }
            Some(NeighbourChange::Gone(_)) | None => {}
        }
        (index, change)
    }

    /// Takes back what workers are done with.
    pub fn reap(&self, mut take: impl FnMut(Returned)) {
        for link in &self.links {
            link.reap(&mut take);
        }
    }

    /// Has all workers end.
    pub fn stop(&self) {
        for link in &self.links {
            link.queues.stop.store(true, Ordering::Relaxed);
            link.wake();
        }
    }
}
