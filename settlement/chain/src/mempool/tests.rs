//! Who waits, who goes first and who has to leave.

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
