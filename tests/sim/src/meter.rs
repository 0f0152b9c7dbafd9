//! Metering's shell around the real books: what `topnet-metering`'s keeper and tasks do, in
//! virtual time and without threads.

use std::collections::{BTreeMap, VecDeque};

use topnet_account::ChannelId;
use topnet_books::{Books, ConnectionId, Entry, Tips};
use topnet_channel::SlotUse;
use topnet_unit::BootId;

/// How often all slots are read, whatever the rings say.
pub(crate) const SWEEP_INTERVAL_US: u64 = 20_000;
/// How often headers' ages are looked at.
pub(crate) const FRESHNESS_INTERVAL_US: u64 = 50_000;
/// How often bytes within a unit are journalled.
pub(crate) const COMMIT_INTERVAL_US: u64 = 1_000_000;
/// Errands that wait.
const ERRANDS_MAX: usize = 4;

/// What only a task can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    Acknowledge(SlotUse),
    LookUp(ChannelId),
}

/// One run of metering.
#[derive(Debug)]
pub(crate) struct Metering {
    pub(crate) books: Books,
    /// Links that answers go to.
    pub(crate) links: Vec<ConnectionId>,
    pub(crate) errands: VecDeque<Errand>,
    pub(crate) attached: Option<BootId>,
    pub(crate) swept_us: u64,
    pub(crate) freshened_us: u64,
    pub(crate) committed_us: u64,
    /// What this run was told.
    pub(crate) tips: Option<Tips>,
    /// Channels that it was told of, and whether one was ever said not to be open.
    pub(crate) heard: BTreeMap<ChannelId, bool>,
    pub(crate) finished: Vec<ChannelId>,
    /// What the disk has refused; nothing else is committed before it.
    pub(crate) refused: Option<Vec<Entry>>,
}

impl Metering {
    pub(crate) fn new(books: Books, now_us: u64) -> Self {
        Self {
            books,
            links: Vec::new(),
            errands: VecDeque::new(),
            attached: None,
            swept_us: now_us,
            freshened_us: now_us,
            committed_us: now_us,
            tips: None,
            heard: BTreeMap::new(),
            finished: Vec::new(),
            refused: None,
        }
    }

    /// The books want a lost one again.
    pub(crate) fn errand(&mut self, errand: Errand) {
        if self.errands.len() < ERRANDS_MAX {
            self.errands.push_back(errand);
        }
    }
}
