//! Sees what every run of the data plane counts, in its own tables, beside metering.
//!
//! The tables of a run that died stay mapped here, so that its last word can be read: what
//! metering says of all runs together must come to the same.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use tarpc::context;
use tokio::time::timeout;
use topnet_api::{Assignments, DataplaneClient, SocketName, connect};
use topnet_unit::{Attachment, BootId, Slot};

/// How often usage is held against credit.
const SAMPLE: Duration = Duration::from_millis(1);
/// How often the data plane is asked who it is and which slots it has.
const LOOK: Duration = Duration::from_millis(50);
/// A data plane that does not answer by then is asked again.
const ANSWER_WAIT: Duration = Duration::from_millis(500);

/// One run of the data plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// Its random name.
    pub boot: String,
    /// Billable bytes over all its slots.
    pub bytes: u64,
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    ended: AtomicBool,
    runs: Mutex<Vec<Run>>,
}

#[derive(Debug)]
struct Run {
    boot: BootId,
    attachment: Attachment,
    slots: Vec<Slot>,
    beyond_credit_max: u64,
}

impl Run {
    fn bytes(&self) -> u64 {
        let slots = 1..self.attachment.header.slots;
        slots
            .map(|index| self.attachment.usage.totals(index).bytes)
            .sum()
    }

    /// What may still pass in the slots that have credit; `None` if none has.
    fn room_bytes(&self) -> Option<u64> {
        let rooms = self.slots.iter().filter_map(|slot| {
            let usage = self.attachment.usage.totals(slot.index).bytes;
            let limit = self.attachment.credit.balance(*slot).limit_bytes;
            (limit > 0).then(|| limit.saturating_sub(usage))
        });
        rooms.reduce(u64::saturating_add)
    }

    /// Usage is read before credit, which only rises while it is open: an excess is one.
    fn sample(&mut self) {
        for slot in &self.slots {
            let usage = self.attachment.usage.totals(slot.index).bytes;
            let limit = self.attachment.credit.balance(*slot).limit_bytes;
            if limit > 0 {
                let beyond = usage.saturating_sub(limit);
                self.beyond_credit_max = self.beyond_credit_max.max(beyond);
            }
        }
    }
}

impl Watch {
    /// Watches whatever data plane runs at `runtime_dir`.
    pub fn start(runtime_dir: &Path) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (watched, runtime_dir) = (Arc::clone(&shared), runtime_dir.to_owned());
        let thread = thread::Builder::new().name("watch".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = follow(&watched, &runtime_dir) => {}
                    () = sample(&watched) => {}
                }
            });
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Every run so far, oldest first.
    pub fn boots(&self) -> Vec<Boot> {
        let runs = self.shared.runs();
        let boot = |run: &Run| Boot {
            boot: run.boot.to_string(),
            bytes: run.bytes(),
        };
        runs.iter().map(boot).collect()
    }

    /// Billable bytes over all runs.
    pub fn bytes(&self) -> u64 {
        self.shared.runs().iter().map(Run::bytes).sum()
    }

    /// What may still pass in the newest run; `None` if it has no credit.
    pub fn room_bytes(&self) -> Option<u64> {
        self.shared.runs().last()?.room_bytes()
    }

    /// The most that a slot was ever seen to be above its credit.
    pub fn beyond_credit_max(&self) -> u64 {
        let runs = self.shared.runs();
        let most = runs.iter().map(|run| run.beyond_credit_max).max();
        most.unwrap_or(0)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn runs(&self) -> MutexGuard<'_, Vec<Run>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

async fn sample(shared: &Shared) {
    while !shared.ended() {
        if let Some(run) = shared.runs().last_mut() {
            run.sample();
        }
        tokio::time::sleep(SAMPLE).await;
    }
}

/// Follows one data plane after the other.
async fn follow(shared: &Shared, runtime_dir: &Path) {
    while !shared.ended() {
        // One that is down, or stopped, answers later or never; what it counted is mapped.
        let _ = follow_one(shared, runtime_dir).await;
        tokio::time::sleep(LOOK).await;
    }
}

async fn follow_one(shared: &Shared, runtime_dir: &Path) -> Result<()> {
    let transport = connect(&SocketName::Dataplane.below(runtime_dir)).await?;
    let client = DataplaneClient::new(tarpc::client::Config::default(), transport).spawn();
    while !shared.ended() {
        let assignments = timeout(ANSWER_WAIT, client.assignments(context::current())).await??;
        let boot: BootId = assignments
            .boot
            .parse()
            .map_err(|_| anyhow!("no boot id: {}", assignments.boot))?;
        let known = shared.runs().iter().any(|run| run.boot == boot);
        if !known {
            let attachment = attach(SocketName::Tables.below(runtime_dir)).await?;
            shared.runs().push(Run {
                boot: attachment.header.boot,
                attachment,
                slots: Vec::new(),
                beyond_credit_max: 0,
            });
        }
        note_slots(&mut shared.runs(), boot, &assignments);
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn note_slots(runs: &mut [Run], boot: BootId, assignments: &Assignments) {
    let Some(run) = runs.iter_mut().find(|run| run.boot == boot) else {
        return;
    };
    let slots = 1..run.attachment.header.slots;
    let assigned = assignments.slots.iter().map(|assignment| Slot {
        index: assignment.slot,
        generation: assignment.generation,
    });
    run.slots = assigned
        .filter(|slot| slots.contains(&slot.index))
        .collect();
}

async fn attach(path: PathBuf) -> Result<Attachment> {
    let take = move || {
        let socket = UnixStream::connect(&path)?;
        socket.set_read_timeout(Some(ANSWER_WAIT))?;
        Attachment::receive(&socket).context("the data plane's tables")
    };
    tokio::task::spawn_blocking(take).await?
}
