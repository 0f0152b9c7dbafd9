//! Transactions that wait for a block.
//!
//! Bounded in number and bytes, and per account, so that nobody can crowd out the rest. One
//! account's transactions are proposed in the order of their nonces; among accounts the higher
//! priority goes first. A transaction leaves when a final block holds it, or when a proposal
//! found that it cannot stand: at once if time alone does not mend that, else after many
//! proposals. The reason is kept for whoever asks. Nothing here is durable: who submits watches
//! for finality and submits again.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use topnet_account::{Address, Hash};
use topnet_ledger::machine::{Admission, Rejection};

use crate::limits::{
    MEMPOOL_ACCOUNT_MAX, MEMPOOL_BYTES_MAX, MEMPOOL_FREE_MAX, MEMPOOL_REASONS_MAX,
    MEMPOOL_REFUSALS_MAX, TRANSACTION_BYTES_MAX,
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

/// The waiting transactions of one chain.
pub(crate) struct Mempool {
    transactions_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By account and nonce; `None` holds those that nobody pays for, under a running number.
    lanes: BTreeMap<Option<Address>, BTreeMap<u64, Waiting>>,
    places: HashMap<Hash, (Option<Address>, u64)>,
    bytes: usize,
    free_next: u64,
    reasons: HashMap<Hash, Rejection>,
    reasons_order: VecDeque<Hash>,
}

struct Waiting {
    id: Hash,
    priority: u64,
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

    /// Takes an admitted transaction in. One that waits already is taken as the same one.
    pub(crate) fn insert(&self, admission: &Admission, bytes: Vec<u8>) -> Result<(), Rejection> {
        let mut state = self.state();
        if state.places.contains_key(&admission.id) {
            return Ok(());
        }
        state.check_room(admission, bytes.len(), self.transactions_max)?;
        let nonce = match admission.sender {
            Some(_) => {
                state.check_nonce(admission)?;
                admission.nonce
            }
            None => {
                state.free_next += 1;
                state.free_next
            }
        };
        state.forget_reason(&admission.id);
        state.bytes += bytes.len();
        state.places.insert(admission.id, (admission.sender, nonce));
        let waiting = Waiting {
            id: admission.id,
            priority: admission.priority,
            bytes,
            refusals: 0,
            reason: None,
        };
        state
            .lanes
            .entry(admission.sender)
            .or_default()
            .insert(nonce, waiting);
        Ok(())
    }

    /// The transactions that go first, up to both limits. They stay until a final block holds
    /// them, because a proposal may come to nothing.
    pub(crate) fn candidates(&self, count_max: usize, bytes_max: usize) -> Vec<Vec<u8>> {
        let state = self.state();
        let mut heads: BinaryHeap<_> = state
            .lanes
            .iter()
            .filter_map(|(account, lane)| {
                let (nonce, head) = lane.first_key_value()?;
                Some((head.priority, Reverse((*account, *nonce))))
            })
            .collect();
        let mut chosen = Vec::new();
        let mut bytes = 0;
        while let Some((_, Reverse((account, nonce)))) = heads.pop() {
            let lane = &state.lanes[&account];
            let head = &lane[&nonce];
            // What does not fit ends its lane: what comes after it needs it.
            if chosen.len() == count_max || bytes + head.bytes.len() > bytes_max {
                continue;
            }
            bytes += head.bytes.len();
            chosen.push(head.bytes.clone());
            if let Some((next, waiting)) = lane
                .range((Bound::Excluded(nonce), Bound::Unbounded))
                .next()
            {
                heads.push((waiting.priority, Reverse((account, *next))));
            }
        }
        chosen
    }

    /// A proposal could not include the transaction `id`.
    pub(crate) fn refused(&self, id: &Hash, reason: Rejection) {
        let mut state = self.state();
        let Some((account, nonce)) = state.places.get(id).copied() else {
            return;
        };
        let Some(waiting) = state
            .lanes
            .get_mut(&account)
            .and_then(|lane| lane.get_mut(&nonce))
        else {
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

impl State {
    fn check_room(
        &self,
        admission: &Admission,
        bytes: usize,
        transactions_max: usize,
    ) -> Result<(), Rejection> {
        if bytes > TRANSACTION_BYTES_MAX {
            return Err(rejection(
                "transaction_too_long",
                format!("{bytes} bytes; a transaction has at most {TRANSACTION_BYTES_MAX}"),
            ));
        }
        let full = self.places.len() >= transactions_max || self.bytes + bytes > MEMPOOL_BYTES_MAX;
        if full {
            let text = "too many transactions wait; submit it again in a few blocks";
            return Err(rejection("mempool_full", text.to_owned()));
        }
        let lane = self.lanes.get(&admission.sender).map_or(0, BTreeMap::len);
        let lane_max = match admission.sender {
            Some(_) => MEMPOOL_ACCOUNT_MAX,
            None => MEMPOOL_FREE_MAX,
        };
        if lane >= lane_max {
            let whose = match admission.sender {
                Some(account) => format!("of {account}"),
                None => "that nobody pays for".to_owned(),
            };
            return Err(rejection(
                "account_queue_full",
                format!("{lane} transactions {whose} wait; submit it again when they are final"),
            ));
        }
        Ok(())
    }

    /// A nonce that is taken can be taken over by a transaction with a higher priority.
    fn check_nonce(&mut self, admission: &Admission) -> Result<(), Rejection> {
        let Some(waiting) = self
            .lanes
            .get(&admission.sender)
            .and_then(|lane| lane.get(&admission.nonce))
        else {
            return Ok(());
        };
        let replaced = waiting.id;
        let reason = rejection(
            "nonce_taken",
            format!(
                "nonce {} belongs to another waiting transaction",
                admission.nonce
            ),
        );
        if waiting.priority >= admission.priority {
            return Err(reason);
        }
        self.remove(&replaced);
        self.keep_reason(replaced, reason);
        Ok(())
    }

    fn remove(&mut self, id: &Hash) {
        let Some((account, nonce)) = self.places.remove(id) else {
            return;
        };
        let Some(lane) = self.lanes.get_mut(&account) else {
            return;
        };
        if let Some(waiting) = lane.remove(&nonce) {
            self.bytes -= waiting.bytes.len();
        }
        if lane.is_empty() {
            self.lanes.remove(&account);
        }
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

fn rejection(code: &'static str, text: String) -> Rejection {
    Rejection { code, text }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                priority,
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
        pool.insert(&admission, bytes)
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
        let order: Vec<(u8, u8)> = pool
            .candidates(10, 1_000)
            .iter()
            .map(|bytes| (bytes[0], bytes[1]))
            .collect();
        assert_eq!(order, [(2, 5), (3, 0), (1, 0), (1, 1)]);
        assert_eq!(pool.candidates(2, 1_000).len(), 2);
        assert_eq!(pool.candidates(10, 9).len(), 2);
    }

    #[test]
    fn the_same_transaction_waits_once_and_leaves_once() {
        let pool = Mempool::new(1_000);
        let id = insert(&pool, Some(1), 0, 1).unwrap();
        assert_eq!(insert(&pool, Some(1), 0, 1), Ok(id));
        assert_eq!(pool.candidates(10, 1_000).len(), 1);
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
        assert_eq!(pool.candidates(10, 1_000).len(), 1);
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
            pool.insert(&admission, long).unwrap_err().code,
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
                priority: 0,
            };
            pool.insert(&admission, long.clone()).unwrap();
        }
        assert_eq!(
            pool.insert(&admission, long).unwrap_err().code,
            "mempool_full"
        );

        let pool = Mempool::new(2);
        insert(&pool, Some(1), 0, 1).unwrap();
        insert(&pool, Some(2), 0, 1).unwrap();
        assert_eq!(insert(&pool, Some(3), 0, 1), Err("mempool_full"));
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
        assert!(pool.candidates(10, 1_000).is_empty());
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
