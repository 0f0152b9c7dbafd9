//! Takes transactions into the mempool, as many at a time as have come.
//!
//! What arrives while others are being checked is checked together with all that arrived: a
//! signature costs a third in a large batch of what it costs alone, and the state is read once
//! for all. Whoever comes alone waits for nobody. The work is done on threads of its own, one
//! for each CPU, so that a flood holds back neither consensus nor whoever else uses the chain.

use std::{
    collections::BTreeSet,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tokio::sync::{mpsc, oneshot};
use topnet_account::{Address, Hash};
use topnet_ledger::machine::{Admission, BlockEnv, Key, Missing, Rejection, Values};

use crate::{
    chain::{ChainEnded, Query, StateView},
    limits::{INTAKE_BATCH_MAX, INTAKE_WAITING_MAX},
    machine::AnyMachine,
    mempool::Mempool,
};

/// What becomes of a transaction: its id, or why it may not wait.
type Outcome = Result<Hash, Rejection>;

/// The way into the mempool.
pub(crate) struct Intake {
    arrivals: mpsc::Sender<Arrival>,
}

struct Arrival {
    transaction: Vec<u8>,
    answer: oneshot::Sender<Outcome>,
}

/// What a check works with.
#[derive(Clone)]
pub(crate) struct Desk {
    pub chain: Hash,
    pub machine: Arc<dyn AnyMachine>,
    pub mempool: Arc<Mempool>,
    pub queries: mpsc::Sender<Query>,
}

/// A transaction that was admitted and is yet to be weighed.
struct Admitted {
    place: usize,
    admission: Admission,
    priority: Option<Result<u64, Rejection>>,
}

impl Intake {
    /// Starts the threads. They end when this is dropped.
    pub(crate) fn start(desk: &Desk) -> std::io::Result<Self> {
        let (arrivals, arrived) = mpsc::channel(INTAKE_WAITING_MAX);
        let arrived = Arc::new(Mutex::new(arrived));
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        for number in 0..threads {
            let (desk, arrived) = (desk.clone(), Arc::clone(&arrived));
            thread::Builder::new()
                .name(format!("intake-{number}"))
                .spawn(move || desk.work(&arrived))?;
        }
        Ok(Self { arrivals })
    }

    pub(crate) async fn take(&self, transaction: Vec<u8>) -> Outcome {
        let (answer, answered) = oneshot::channel();
        let arrival = Arrival {
            transaction,
            answer,
        };
        let sent = self.arrivals.send(arrival).await;
        sent.map_err(|_| ended())?;
        answered.await.unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> Rejection {
    Rejection {
        code: "chain_ended",
        text: ChainEnded.to_string(),
    }
}

impl Desk {
    fn work(&self, arrived: &Mutex<mpsc::Receiver<Arrival>>) {
        let mut batch = Vec::new();
        loop {
            let mut arrivals = arrived.lock().unwrap_or_else(PoisonError::into_inner);
            if arrivals.blocking_recv_many(&mut batch, INTAKE_BATCH_MAX) == 0 {
                return;
            }
            drop(arrivals);
            let (transactions, answers): (Vec<_>, Vec<_>) = batch
                .drain(..)
                .map(|arrival| (arrival.transaction, arrival.answer))
                .unzip();
            for (answer, outcome) in answers.into_iter().zip(self.take(transactions)) {
                // Whoever does not wait any more needs no answer.
                let _ = answer.send(outcome);
            }
        }
    }

    /// Checks transactions against the final state and lets those that can stand wait.
    fn take(&self, mut transactions: Vec<Vec<u8>>) -> Vec<Outcome> {
        let mut outcomes: Vec<Option<Outcome>> = transactions
            .iter()
            .map(|bytes| {
                let id = self.machine.id(bytes);
                self.mempool.holds(&id).then_some(Ok(id))
            })
            .collect();
        let new: Vec<usize> = (0..transactions.len())
            .filter(|place| outcomes[*place].is_none())
            .collect();
        let unknown: Vec<&[u8]> = new.iter().map(|place| &*transactions[*place]).collect();
        let mut admitted = Vec::new();
        for (place, admission) in new.iter().copied().zip(self.machine.admit_many(&unknown)) {
            match admission {
                Ok(admission) => admitted.push(Admitted {
                    place,
                    admission,
                    priority: None,
                }),
                Err(reason) => outcomes[place] = Some(Err(reason)),
            }
        }
        let weighed = self.weigh(&transactions, &mut admitted);
        for Admitted {
            place,
            admission,
            priority,
        } in admitted
        {
            let bytes = std::mem::take(&mut transactions[place]);
            let priority = match weighed {
                Ok(()) => priority.unwrap_or_else(|| Err(ended())),
                Err(ChainEnded) => Err(ended()),
            };
            let outcome = priority.and_then(|priority| {
                let inserted = self.mempool.insert(&admission, priority, bytes);
                inserted.map(|()| admission.id)
            });
            outcomes[place] = Some(outcome);
        }
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| Err(ended())))
            .collect()
    }

    /// Weighs with more and more values, until the machine lacks none. All are of one block.
    fn weigh(&self, transactions: &[Vec<u8>], admitted: &mut [Admitted]) -> Result<(), ChainEnded> {
        if admitted.is_empty() {
            return Ok(());
        }
        let env = BlockEnv {
            chain: self.chain,
            height: 0,
            // Who will propose is not known.
            proposer: Address([0; 32]),
        };
        let common = self.machine.reads(&env, &[]);
        let own = admitted
            .iter_mut()
            .flat_map(|admitted| std::mem::take(&mut admitted.admission.reads));
        let keys: BTreeSet<Key> = common.into_iter().chain(own).collect();
        let mut state = self.read(keys.into_iter().collect())?;
        loop {
            let mut missing = BTreeSet::new();
            for admitted in admitted.iter_mut().filter(|one| one.priority.is_none()) {
                let bytes = &transactions[admitted.place];
                match self.machine.weigh(state.height + 1, bytes, &state.values) {
                    Ok(weighed) => admitted.priority = Some(weighed),
                    Err(Missing(keys)) => missing.extend(keys),
                }
            }
            if missing.is_empty() {
                return Ok(());
            }
            assert!(
                missing.iter().all(|key| !state.values.contains_key(key)),
                "a machine asks only for keys that it was not given"
            );
            let more = self.read(missing.into_iter().collect())?;
            if more.height == state.height {
                state.values.extend(more.values);
                continue;
            }
            let known: Values = state.values.into_iter().chain(more.values).collect();
            state = self.read(known.into_keys().collect())?;
        }
    }

    fn read(&self, keys: Vec<Key>) -> Result<StateView, ChainEnded> {
        let (answer, answered) = oneshot::channel();
        self.queries
            .blocking_send(Query::Read { keys, answer })
            .map_err(|_| ChainEnded)?;
        answered.blocking_recv().map_err(|_| ChainEnded)
    }
}
