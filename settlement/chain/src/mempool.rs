//! Transactions that wait for a block.
//!
//! Bounded in number and bytes, and per account, so that nobody can crowd out the rest. One
//! account's transactions are proposed in the order of their nonces; among accounts the higher
//! priority goes first, and of equals the one that came first. When there is no room, the newcomer takes the place of the one that is
//! worth least, if it is worth more. What follows another of its account is worth no more than
//! that one, because it cannot go first; so what makes room is always an account's last.
//! Transactions that no account pays for have room of their own, here and in a block.
//!
//! A transaction leaves when a final block holds it, when it makes room, or when a proposal
//! found that it cannot stand: at once if time alone does not mend that, else after many
//! proposals. The reason is kept for whoever asks. Nothing here is durable: who submits watches
//! for finality and submits again.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use topnet_account::{Address, Hash};
use topnet_ledger::machine::{Admission, Rejection};

use crate::limits::{
    BLOCK_BYTES_MAX, BLOCK_FREE_PART, BLOCK_TRANSACTIONS_MAX, MEMPOOL_ACCOUNT_MAX,
    MEMPOOL_BYTES_MAX, MEMPOOL_FREE_MAX, MEMPOOL_REASONS_MAX, MEMPOOL_REFUSALS_MAX,
    TRANSACTION_BYTES_MAX,
};

/// What the mempool knows of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It waits for a block; with the reason, if the last proposal could not include it.
    Waiting(Option<Rejection>),
    /// It was dropped and why.
    Dropped(Rejection),
    /// It is not here: it is in a final block, or was never submitted to this node, or was
    /// submitted before a restart.
    Unknown,
}

/// Room for transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) transactions: usize,
    pub(crate) bytes: usize,
}

impl Room {
    /// That of a block.
    pub(crate) const BLOCK: Self = Self {
        transactions: BLOCK_TRANSACTIONS_MAX,
        bytes: BLOCK_BYTES_MAX,
    };

    /// The part of it that transactions which nobody pays for may have.
    const fn free_part(self) -> Self {
        Self {
            transactions: self.transactions.div_ceil(BLOCK_FREE_PART),
            bytes: self.bytes / BLOCK_FREE_PART,
        }
    }

    const fn holds(&self, bytes: usize) -> bool {
        self.transactions > 0 && self.bytes >= bytes
    }

    fn take(&mut self, bytes: usize) {
        self.transactions -= 1;
        self.bytes -= bytes;
    }
}

/// What a block may be built of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidates {
    /// The transactions.
    pub(crate) transactions: Vec<Vec<u8>>,
    /// True if none was left out for want of room.
    pub(crate) all: bool,
}

/// The waiting transactions of one chain.
pub(crate) struct Mempool {
    transactions_max: usize,
    state: Mutex<State>,
}

/// An account's waiting transactions, by nonce. `None` are those that nobody pays for, under a
/// running number.
type Lane = BTreeMap<u64, Waiting>;

#[derive(Default)]
struct State {
    lanes: HashMap<Option<Address>, Lane>,
    /// The accounts by the priority of what they have waiting last, which is their least.
    worst: BTreeSet<(u64, Address)>,
    places: HashMap<Hash, (Option<Address>, u64)>,
    bytes: usize,
    /// How many have come so far.
    arrivals: u64,
    reasons: HashMap<Hash, Rejection>,
    reasons_order: VecDeque<Hash>,
}

struct Waiting {
    id: Hash,
    priority: u64,
    /// Those before it that ever came: among equals the first goes first.
    arrival: u64,
    bytes: Vec<u8>,
    refusals: u32,
    reason: Option<Rejection>,
}

impl Mempool {
    pub(crate) fn new(transactions_max: usize) -> Self {
        Self {
            transactions_max,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if the transaction waits here.
    pub(crate) fn holds(&self, id: &Hash) -> bool {
        self.state().places.contains_key(id)
    }

    /// Takes an admitted transaction of this priority in. One that waits already is taken as
    /// the same one.
    pub(crate) fn insert(
        &self,
        admission: &Admission,
        priority: u64,
        bytes: Vec<u8>,
    ) -> Result<(), Rejection> {
        let mut state = self.state();
        if state.places.contains_key(&admission.id) {
            return Ok(());
        }
        check_length(bytes.len())?;
        let newcomer = Newcomer {
            admission,
            priority,
            bytes: bytes.len(),
        };
        // Everything is checked before anything leaves.
        let replaced = state.replaced_by(&newcomer)?;
        if replaced.is_none() {
            state.check_lane(admission)?;
        }
        let evicted = state.make_room(&newcomer, replaced.as_ref(), self.transactions_max)?;
        for (id, reason) in replaced.into_iter().chain(evicted) {
            state.remove(&id);
            state.keep_reason(id, reason);
        }

        let arrival = state.arrivals;
        state.arrivals += 1;
        let nonce = match admission.sender {
            Some(_) => admission.nonce,
            None => arrival,
        };
        state.forget_reason(&admission.id);
        let waiting = Waiting {
            id: admission.id,
            priority,
            arrival,
            bytes,
            refusals: 0,
            reason: None,
        };
        state.place(admission.sender, nonce, waiting);
        Ok(())
    }

    /// The transactions that go first, as many as there is room for, without those passed over
    /// and what follows them. They stay until a final block holds them, because a proposal may
    /// come to nothing.
    pub(crate) fn candidates(&self, mut room: Room, passed_over: &HashSet<Hash>) -> Candidates {
        let state = self.state();
        let mut free_room = room.free_part();
        let mut heads: BinaryHeap<_> = state
            .lanes
            .iter()
            .filter_map(|(account, lane)| {
                let (nonce, head) = lane.first_key_value()?;
                Some((head.priority, Reverse((head.arrival, *account, *nonce))))
            })
            .collect();
        let (mut transactions, mut all) = (Vec::new(), true);
        while let Some((_, Reverse((_, account, nonce)))) = heads.pop() {
            let lane = &state.lanes[&account];
            let head = &lane[&nonce];
            let bytes = head.bytes.len();
            let free = account.is_none();
            let fits = room.holds(bytes) && (!free || free_room.holds(bytes));
            let passed = passed_over.contains(&head.id);
            if fits && !passed {
                room.take(bytes);
                if free {
                    free_room.take(bytes);
                }
                transactions.push(head.bytes.clone());
            }
            all &= fits || passed;
            // What comes after one that an account cannot have needs it; what is free does not.
            if !(free || fits && !passed) {
                continue;
            }
            if let Some((next, waiting)) = lane
                .range((Bound::Excluded(nonce), Bound::Unbounded))
                .next()
            {
                heads.push((waiting.priority, Reverse((waiting.arrival, account, *next))));
            }
        }
        Candidates { transactions, all }
    }

    /// A proposal could not include the transaction `id`.
    pub(crate) fn refused(&self, id: &Hash, reason: Rejection) {
        let mut state = self.state();
        let Some((account, nonce)) = state.places.get(id).copied() else {
            return;
        };
        let lane = state.lanes.get_mut(&account);
        let Some(waiting) = lane.and_then(|lane| lane.get_mut(&nonce)) else {
            return;
        };
        waiting.refusals += 1;
        waiting.reason = Some(reason.clone());
        if !reason.is_temporary() || waiting.refusals >= MEMPOOL_REFUSALS_MAX {
            state.remove(id);
            state.keep_reason(*id, reason);
        }
    }

    /// A final block holds the transaction `id`.
    pub(crate) fn included(&self, id: &Hash) {
        let mut state = self.state();
        state.remove(id);
        state.forget_reason(id);
    }

    pub(crate) fn standing(&self, id: &Hash) -> Standing {
        let state = self.state();
        if let Some((account, nonce)) = state.places.get(id) {
            return Standing::Waiting(state.lanes[account][nonce].reason.clone());
        }
        match state.reasons.get(id) {
            Some(reason) => Standing::Dropped(reason.clone()),
            None => Standing::Unknown,
        }
    }
}

/// A transaction that wants to wait here.
struct Newcomer<'a> {
    admission: &'a Admission,
    priority: u64,
    bytes: usize,
}

/// Who has to leave, and what it is told.
type Leaver = (Hash, Rejection);

fn check_length(bytes: usize) -> Result<(), Rejection> {
    if bytes <= TRANSACTION_BYTES_MAX {
        return Ok(());
    }
    Err(rejection(
        "transaction_too_long",
        format!("{bytes} bytes; a transaction has at most {TRANSACTION_BYTES_MAX}"),
    ))
}

impl State {
    /// A nonce that is taken can be taken over by a transaction with a higher priority.
    fn replaced_by(&self, newcomer: &Newcomer<'_>) -> Result<Option<Leaver>, Rejection> {
        let Admission { sender, nonce, .. } = newcomer.admission;
        let lane = sender.and_then(|account| self.lanes.get(&Some(account)));
        let Some(waiting) = lane.and_then(|lane| lane.get(nonce)) else {
            return Ok(None);
        };
        let reason = rejection(
            "nonce_taken",
            format!("nonce {nonce} belongs to another waiting transaction"),
        );
        if waiting.priority >= newcomer.priority {
            return Err(reason);
        }
        Ok(Some((waiting.id, reason)))
    }

    fn check_lane(&self, admission: &Admission) -> Result<(), Rejection> {
        let lane = self.lanes.get(&admission.sender).map_or(0, BTreeMap::len);
        let lane_max = match admission.sender {
            Some(_) => MEMPOOL_ACCOUNT_MAX,
            None => MEMPOOL_FREE_MAX,
        };
        if lane < lane_max {
            return Ok(());
        }
        let whose = match admission.sender {
            Some(account) => format!("of {account}"),
            None => "that nobody pays for".to_owned(),
        };
        Err(rejection(
            "account_queue_full",
            format!("{lane} transactions {whose} wait; submit it again when they are final"),
        ))
    }

    /// Who leaves so that the newcomer fits, when the one that it replaces is gone.
    fn make_room(
        &self,
        newcomer: &Newcomer<'_>,
        replaced: Option<&Leaver>,
        transactions_max: usize,
    ) -> Result<Vec<Leaver>, Rejection> {
        let (mut count, mut bytes) = (self.places.len() + 1, self.bytes + newcomer.bytes);
        if let Some(waiting) = replaced.and_then(|(id, _)| self.waiting(id)) {
            count -= 1;
            bytes -= waiting.bytes.len();
        }
        let fits =
            |count: usize, bytes: usize| count <= transactions_max && bytes <= MEMPOOL_BYTES_MAX;
        let worth = self.worth(newcomer);
        let reason = || rejection("evicted", "it made room for what pays more".to_owned());
        let mut leavers = Vec::new();
        let accounts = self.worst.iter().take_while(|(least, _)| *least < worth);
        let last =
            accounts.flat_map(|(_, account)| last_below(&self.lanes[&Some(*account)], worth));
        for waiting in last.filter(|waiting| replaced.is_none_or(|(id, _)| *id != waiting.id)) {
            if fits(count, bytes) {
                break;
            }
            count -= 1;
            bytes -= waiting.bytes.len();
            leavers.push((waiting.id, reason()));
        }
        if fits(count, bytes) {
            return Ok(leavers);
        }
        let text = "too many transactions that pay as much wait; submit it again in a few blocks";
        Err(rejection("mempool_full", text.to_owned()))
    }

    /// What the newcomer is worth behind those of its account that go before it.
    fn worth(&self, newcomer: &Newcomer<'_>) -> u64 {
        let Admission { sender, nonce, .. } = newcomer.admission;
        let lane = sender.and_then(|account| self.lanes.get(&Some(account)));
        let before = lane.into_iter().flat_map(|lane| lane.range(..nonce));
        before
            .map(|(_, waiting)| waiting.priority)
            .fold(newcomer.priority, u64::min)
    }

    fn waiting(&self, id: &Hash) -> Option<&Waiting> {
        let (account, nonce) = self.places.get(id)?;
        self.lanes.get(account)?.get(nonce)
    }

    fn place(&mut self, account: Option<Address>, nonce: u64, waiting: Waiting) {
        self.bytes += waiting.bytes.len();
        self.places.insert(waiting.id, (account, nonce));
        self.change_lane(account, |lane| lane.insert(nonce, waiting));
    }

    fn remove(&mut self, id: &Hash) {
        let Some((account, nonce)) = self.places.remove(id) else {
            return;
        };
        if let Some(waiting) = self.change_lane(account, |lane| lane.remove(&nonce)) {
            self.bytes -= waiting.bytes.len();
        }
    }

    /// Changes an account's lane and finds its new place among the worst.
    fn change_lane<T>(
        &mut self,
        account: Option<Address>,
        change: impl FnOnce(&mut Lane) -> T,
    ) -> T {
        let lane = self.lanes.entry(account).or_default();
        let before = least(lane);
        let changed = change(lane);
        let after = least(lane);
        if after.is_none() {
            self.lanes.remove(&account);
        }
        // What nobody pays for has room of its own and makes none for others.
        if let Some(account) = account {
            if let Some(before) = before {
                self.worst.remove(&(before, account));
            }
            if let Some(after) = after {
                self.worst.insert((after, account));
            }
        }
        changed
    }

    fn keep_reason(&mut self, id: Hash, reason: Rejection) {
        if self.reasons.insert(id, reason).is_none() {
            self.reasons_order.push_back(id);
        }
        if self.reasons_order.len() > MEMPOOL_REASONS_MAX
            && let Some(oldest) = self.reasons_order.pop_front()
        {
            self.reasons.remove(&oldest);
        }
    }

    fn forget_reason(&mut self, id: &Hash) {
        if self.reasons.remove(id).is_some() {
            self.reasons_order.retain(|kept| kept != id);
        }
    }
}

/// What the last of a lane is worth: it cannot go before any other of them.
fn least(lane: &Lane) -> Option<u64> {
    lane.values().map(|waiting| waiting.priority).min()
}

/// The lane's transactions that are worth less than `worth`, the last first.
fn last_below(lane: &Lane, worth: u64) -> impl Iterator<Item = &Waiting> {
    let first = lane
        .iter()
        .find(|(_, waiting)| waiting.priority < worth)
        .map(|(nonce, _)| *nonce);
    let from = first.map(|nonce| lane.range(nonce..));
    from.into_iter().flatten().rev().map(|(_, waiting)| waiting)
}

fn rejection(code: &'static str, text: String) -> Rejection {
    Rejection { code, text }
}

#[cfg(test)]
mod tests;
