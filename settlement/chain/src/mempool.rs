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
mod tests {
    use super::*;

    const PLENTY: Room = room(1_000, 1_000_000);

    const fn room(transactions: usize, bytes: usize) -> Room {
        Room {
            transactions,
            bytes,
        }
    }

    fn candidates(pool: &Mempool, room: Room) -> Vec<Vec<u8>> {
        pool.candidates(room, &HashSet::new()).transactions
    }

    fn admission(sender: Option<u8>, nonce: u64, priority: u64) -> (Admission, Vec<u8>) {
        let bytes = vec![
            sender.unwrap_or(0),
            nonce as u8,
            priority as u8,
            (nonce >> 8) as u8,
        ];
        let mut id = [0; 32];
        id[..4].copy_from_slice(&bytes);
        let sender = sender.map(|byte| Address([byte; 32]));
        (
            Admission {
                id: Hash(id),
                sender,
                nonce,
                reads: Vec::new(),
            },
            bytes,
        )
    }

    fn insert(
        pool: &Mempool,
        sender: Option<u8>,
        nonce: u64,
        priority: u64,
    ) -> Result<Hash, &'static str> {
        let (admission, bytes) = admission(sender, nonce, priority);
        pool.insert(&admission, priority, bytes)
            .map(|()| admission.id)
            .map_err(|reason| reason.code)
    }

    fn reason() -> Rejection {
        let reason = rejection("nonce_ahead", String::new());
        assert!(reason.is_temporary());
        reason
    }

    #[test]
    fn candidates_come_by_priority_and_within_an_account_by_nonce() {
        let pool = Mempool::new(1_000);
        // Account 1's best transaction stands behind a poor one.
        for (sender, nonce, priority) in [(1, 1, 90), (1, 0, 10), (2, 5, 50), (3, 0, 20)] {
            insert(&pool, Some(sender), nonce, priority).unwrap();
        }
        let order: Vec<(u8, u8)> = candidates(&pool, PLENTY)
            .iter()
            .map(|bytes| (bytes[0], bytes[1]))
            .collect();
        assert_eq!(order, [(2, 5), (3, 0), (1, 0), (1, 1)]);
        assert_eq!(candidates(&pool, room(2, 1_000)).len(), 2);
        assert_eq!(candidates(&pool, room(10, 9)).len(), 2);
    }

    /// However their addresses compare, nobody waits while equals that came later go.
    #[test]
    fn of_equals_the_first_goes_first() {
        let pool = Mempool::new(1_000);
        for (sender, nonce) in [(9, 0), (1, 0), (5, 0), (1, 1)] {
            insert(&pool, Some(sender), nonce, 7).unwrap();
        }
        let order: Vec<u8> = candidates(&pool, PLENTY).iter().map(|b| b[0]).collect();
        assert_eq!(order, [9, 1, 5, 1]);
    }

    #[test]
    fn the_same_transaction_waits_once_and_leaves_once() {
        let pool = Mempool::new(1_000);
        let id = insert(&pool, Some(1), 0, 1).unwrap();
        assert_eq!(insert(&pool, Some(1), 0, 1), Ok(id));
        assert_eq!(candidates(&pool, PLENTY).len(), 1);
        assert_eq!(pool.standing(&id), Standing::Waiting(None));
        pool.included(&id);
        pool.included(&id);
        assert_eq!(pool.standing(&id), Standing::Unknown);
        assert_eq!(pool.state().bytes, 0);
        assert!(pool.state().lanes.is_empty());
    }

    #[test]
    fn a_taken_nonce_is_taken_over_only_by_a_higher_priority() {
        let pool = Mempool::new(1_000);
        let first = insert(&pool, Some(1), 7, 5).unwrap();
        assert_eq!(insert(&pool, Some(1), 7, 4), Err("nonce_taken"));
        insert(&pool, Some(1), 7, 6).unwrap();
        assert!(
            matches!(pool.standing(&first), Standing::Dropped(reason) if reason.code == "nonce_taken")
        );
        assert_eq!(candidates(&pool, PLENTY).len(), 1);
    }

    #[test]
    fn limits_hold_per_account_and_for_all() {
        let pool = Mempool::new(1_000);
        for nonce in 0..MEMPOOL_ACCOUNT_MAX as u64 {
            insert(&pool, Some(1), nonce, 1).unwrap();
        }
        assert_eq!(insert(&pool, Some(1), 999, 1), Err("account_queue_full"));
        insert(&pool, Some(2), 0, 1).unwrap();
        for nonce in 0..MEMPOOL_FREE_MAX as u64 {
            insert(&pool, None, nonce, 1).unwrap();
        }
        assert_eq!(insert(&pool, None, 999, 1), Err("account_queue_full"));

        let (admission, _) = admission(Some(9), 0, 1);
        let long = vec![0; TRANSACTION_BYTES_MAX + 1];
        assert_eq!(
            pool.insert(&admission, 1, long).unwrap_err().code,
            "transaction_too_long"
        );
        let long = vec![0; TRANSACTION_BYTES_MAX];
        for sender in 0..MEMPOOL_BYTES_MAX / TRANSACTION_BYTES_MAX - 1 {
            let mut id = [0xff; 32];
            id[0] = sender as u8;
            let sender = Some(Address(id));
            let admission = Admission {
                id: Hash(id),
                sender,
                nonce: 0,
                reads: Vec::new(),
            };
            pool.insert(&admission, 1, long.clone()).unwrap();
        }
        assert_eq!(
            pool.insert(&admission, 1, long).unwrap_err().code,
            "mempool_full"
        );

        let pool = Mempool::new(2);
        insert(&pool, Some(1), 0, 1).unwrap();
        insert(&pool, Some(2), 0, 1).unwrap();
        assert_eq!(insert(&pool, Some(3), 0, 1), Err("mempool_full"));
    }

    /// Whoever is worth most waits, and what leaves is always the last of an account.
    #[test]
    fn a_full_mempool_keeps_what_is_worth_most() {
        // Sender, nonce and priority of the newcomer; what leaves for it.
        type Place = (u8, u64);
        type Outcome = Result<Option<Place>, &'static str>;
        let cases: [(Place, u64, Outcome); 9] = [
            ((4, 0), 10, Err("mempool_full")),
            // Account 1's last is worth no more than its first, whatever it pays.
            ((4, 0), 11, Ok(Some((1, 1)))),
            ((4, 0), 99, Ok(Some((1, 1)))),
            // Behind one that is worth least, nothing is worth more.
            ((1, 2), 99, Err("mempool_full")),
            ((2, 1), 99, Ok(Some((1, 1)))),
            // One that takes over a place needs no other.
            ((3, 0), 31, Ok(Some((3, 0)))),
            ((1, 0), 11, Ok(Some((1, 0)))),
            ((3, 0), 29, Err("nonce_taken")),
            ((2, 0), 19, Err("nonce_taken")),
        ];
        for ((sender, nonce), priority, outcome) in cases {
            let pool = Mempool::new(4);
            let waiting = [((1, 0), 10), ((1, 1), 90), ((2, 0), 20), ((3, 0), 30)];
            let ids = waiting.map(|(place, priority): (Place, u64)| {
                let id = insert(&pool, Some(place.0), place.1, priority).unwrap();
                (place, id)
            });
            let name = format!("{sender}, {nonce}, {priority}");
            let inserted = insert(&pool, Some(sender), nonce, priority);
            assert_eq!(inserted.err(), outcome.err(), "{name}");
            let left: Vec<Place> = ids
                .iter()
                .filter(|(_, id)| !pool.holds(id))
                .map(|(place, id)| {
                    let Standing::Dropped(reason) = pool.standing(id) else {
                        panic!("{name}")
                    };
                    let replaced = *place == (sender, nonce);
                    let code = if replaced { "nonce_taken" } else { "evicted" };
                    assert_eq!(reason.code, code, "{name}");
                    *place
                })
                .collect();
            let expected: Vec<Place> = outcome.ok().flatten().into_iter().collect();
            assert_eq!(left, expected, "{name}");
            assert_eq!(candidates(&pool, PLENTY).len(), 4, "{name}");
        }
    }

    /// Several small ones make room for a long one that is worth more, all or none of them.
    #[test]
    fn bytes_are_made_room_for_all_at_once() {
        let pool = Mempool::new(1_000);
        let long = vec![0; TRANSACTION_BYTES_MAX];
        let half = vec![0; TRANSACTION_BYTES_MAX / 2];
        let wide = |byte: u8| {
            let sender = Some(Address([byte; 32]));
            Admission {
                id: Hash([byte; 32]),
                sender,
                nonce: 0,
                reads: Vec::new(),
            }
        };
        let places = (MEMPOOL_BYTES_MAX / TRANSACTION_BYTES_MAX) as u8;
        for byte in 2..=places {
            pool.insert(&wide(byte), 50, long.clone()).unwrap();
        }
        pool.insert(&wide(200), 10, half.clone()).unwrap();
        pool.insert(&wide(201), 20, half).unwrap();
        let refused = pool.insert(&wide(202), 20, long.clone()).unwrap_err();
        assert_eq!(refused.code, "mempool_full");
        assert!(pool.holds(&Hash([200; 32])) && pool.holds(&Hash([201; 32])));
        pool.insert(&wide(202), 21, long).unwrap();
        assert!(!pool.holds(&Hash([200; 32])) && !pool.holds(&Hash([201; 32])));
        assert_eq!(pool.state().bytes, MEMPOOL_BYTES_MAX);
    }

    #[test]
    fn what_is_free_leaves_most_of_a_block_to_what_pays() {
        let pool = Mempool::new(1_000);
        for nonce in 0..8 {
            insert(&pool, None, nonce, u64::MAX).unwrap();
            insert(&pool, Some(1), nonce, 1).unwrap();
        }
        // Each has four bytes. Room; free ones and paid ones that get it.
        for (room, free, paid) in [
            (PLENTY, 8, 8),
            (room(8, 1_000), 2, 6),
            (room(1, 1_000), 1, 0),
            (room(100, 32), 2, 6),
            (room(100, 31), 1, 6),
        ] {
            let chosen = candidates(&pool, room);
            let count = chosen.iter().filter(|bytes| bytes[0] == 0).count();
            assert_eq!((count, chosen.len() - count), (free, paid), "{room:?}");
        }
        // A full mempool takes what is free in place of what is worth least, not the reverse.
        let pool = Mempool::new(2);
        let free = insert(&pool, None, 0, u64::MAX).unwrap();
        let poor = insert(&pool, Some(1), 0, 1).unwrap();
        insert(&pool, Some(2), 0, 9).unwrap();
        assert!(pool.holds(&free) && !pool.holds(&poor));
        insert(&pool, None, 1, u64::MAX).unwrap();
        assert_eq!(insert(&pool, Some(3), 0, 99), Err("mempool_full"));
    }

    /// What a proposal passes over takes no room, and what follows it is not proposed.
    #[test]
    fn room_goes_to_the_next_when_some_are_passed_over() {
        let pool = Mempool::new(1_000);
        let bad = insert(&pool, Some(1), 0, 90).unwrap();
        insert(&pool, Some(1), 1, 90).unwrap();
        insert(&pool, Some(2), 0, 50).unwrap();
        let free = insert(&pool, None, 0, u64::MAX).unwrap();
        insert(&pool, None, 1, u64::MAX).unwrap();
        let one = room(2, 1_000);
        let first = pool.candidates(one, &HashSet::new());
        assert!(!first.all);
        assert_eq!(first.transactions[1][..2], [1, 0]);
        let next = pool.candidates(one, &HashSet::from([bad, free]));
        assert_eq!(next.transactions.len(), 2);
        assert_eq!(next.transactions[0][..2], [0, 1]);
        assert_eq!(next.transactions[1][..2], [2, 0]);
        assert!(next.all);
    }

    #[test]
    fn what_no_proposal_can_include_is_dropped_with_its_reason() {
        let pool = Mempool::new(1_000);
        let id = insert(&pool, Some(1), 0, 1).unwrap();
        for _ in 1..MEMPOOL_REFUSALS_MAX {
            pool.refused(&id, reason());
        }
        assert_eq!(pool.standing(&id), Standing::Waiting(Some(reason())));
        pool.refused(&id, reason());
        assert_eq!(pool.standing(&id), Standing::Dropped(reason()));
        assert!(candidates(&pool, PLENTY).is_empty());
        // It may come back, and then it waits like any other.
        insert(&pool, Some(1), 0, 1).unwrap();
        assert_eq!(pool.standing(&id), Standing::Waiting(None));
        // What cannot pass is dropped at once.
        let lasting = rejection("balance_too_low", String::new());
        pool.refused(&id, lasting.clone());
        assert_eq!(pool.standing(&id), Standing::Dropped(lasting));
    }

    #[test]
    fn reasons_are_bounded() {
        let pool = Mempool::new(1_000);
        for i in 0..2 * MEMPOOL_REASONS_MAX {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&(i as u64).to_be_bytes());
            pool.state().keep_reason(Hash(id), reason());
        }
        assert_eq!(pool.state().reasons.len(), MEMPOOL_REASONS_MAX);
        assert_eq!(pool.state().reasons_order.len(), MEMPOOL_REASONS_MAX);
    }
}
