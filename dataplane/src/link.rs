//! The control side's way to the worker.

use std::sync::Arc;
use std::time::Duration;

use rustix::fd::OwnedFd;

use crate::orders::Order;
use crate::session::{Session, SessionCounters, SessionPlan};
use crate::worker::{Command, Queues, Returned};

/// How long a full command queue is left to the worker.
const QUEUE_PAUSE: Duration = Duration::from_millis(1);

/// The control side's way to the worker.
pub struct WorkerLink {
    /// The queues.
    pub queues: Queues,
    /// Wakes the worker from its sleep.
    pub wake: OwnedFd,
}

impl WorkerLink {
    /// Delivers a command. `take` gets what the worker gives back meanwhile: it may wait for room.
    pub async fn send(&self, mut command: Command, mut take: impl FnMut(Returned)) {
        while let Err(refused) = self.queues.commands.push(command) {
            command = refused;
            self.reap(&mut take);
            self.wake();
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
        self.wake();
    }

    /// Has the worker do what was ordered, in that order. `make` makes a session of its plan; `take`
    /// is as for [`send`](Self::send).
    pub async fn deliver(
        &self,
        orders: Vec<Order>,
        mut make: impl FnMut(SessionPlan, Arc<SessionCounters>) -> Session,
        mut take: impl FnMut(Returned),
    ) {
        for order in orders {
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
            self.send(command, &mut take).await;
        }
    }

    /// Takes back what the worker is done with.
    pub fn reap(&self, mut take: impl FnMut(Returned)) {
        while let Some(returned) = self.queues.returned.pop() {
            take(returned);
        }
    }

    /// Wakes the worker.
    pub fn wake(&self) {
        // A full counter means that it is about to wake anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}
