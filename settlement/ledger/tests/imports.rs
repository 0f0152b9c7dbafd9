//! Between chains: exactly once, in order, and only what is final there.
#![allow(clippy::unwrap_used)]

mod support;

use support::{Chain, SERVICE_VALIDATOR, VALIDATOR, World, address, ntop, rules, secret};
use topnet_account::{Amount, Hash};
use topnet_ledger::{
    Transaction,
    event::Event,
    machine::Machine,
    outbox::{
        Batch, FUNDS_OUTSTANDING_MAX, FUNDS_PER_BLOCK_MAX, Fund, Import, OutboxEntry, OutboxHead,
        Payout, commitment,
    },
    state::{self, Heads, Record, Service},
    transaction::{Action, Body, CloseByPayee},
};

const RICH: u8 = 1;

fn world() -> World {
    World::new(&rules(), &[(RICH, 1_000_000_000)])
}

fn credit_of(transaction: &Transaction) -> Import<Fund> {
    match &transaction.body {
        Body::Credit(import) => import.clone(),
        other => panic!("{other:?}"),
    }
}

fn batch_of(transaction: &Transaction) -> Import<Batch> {
    match &transaction.body {
        Body::Batch(import) => import.clone(),
        other => panic!("{other:?}"),
    }
}

/// Imports are free, so what cannot stand in the next block must not even wait.
fn may_wait(chain: &Chain, import: &Transaction, may: bool, name: &str) {
    let admitted = chain.ledger.admit(&import.to_bytes());
    let waits = admitted.is_ok() && chain.weigh(import).is_ok();
    assert_eq!(waits, may, "{name}: {admitted:?}");
}

#[test]
fn a_fund_is_credited_once() {
    let mut world = world();
    let fund = world.fund(RICH, 5_000);
    world.main.block(&[fund]);
    let credit = world.credit().unwrap();
    assert_eq!(world.service.code(&credit), "ok");
    let events = world.service.block(std::slice::from_ref(&credit));
    let credited = Event::Credited {
        seq: 0,
        beneficiary: address(RICH),
        amount: ntop(5_000),
    };
    assert_eq!(events, [credited]);
    assert_eq!(world.service.balance(RICH), 5_000);
    assert_eq!(world.service.code(&credit), "sequence_behind");
    may_wait(&world.service, &credit, false, "what was taken before");
    assert_eq!(world.credit(), None);
    world.check();
}

#[test]
fn a_credit_is_refused_for_every_flaw() {
    let mut world = world();
    for amount in [100, 200, 300] {
        let fund = world.fund(RICH, amount);
        world.main.block(&[fund]);
    }
    let good = credit_of(&world.credit().unwrap());
    type Flaw = fn(&mut Import<Fund>);
    /// Heads that lead to the entries, instead of those that the header commits to.
    fn fitting_heads<E: OutboxEntry>(import: &mut Import<E>) {
        let start = OutboxHead::empty(import.heads[0].destination);
        import.heads[0] = import
            .entries
            .iter()
            .fold(start, |head, entry| head.push(&entry.to_bytes()).unwrap());
    }
    // Flaw, refusal by the state.
    let flaws: &[(&str, Flaw, &str)] = &[
        ("none", |_| {}, "ok"),
        ("first too high", |i| i.first = 1, "sequence_ahead"),
        (
            "begins later",
            |i| {
                i.first = 1;
                i.entries.remove(0);
            },
            "sequence_ahead",
        ),
        (
            "amount",
            |i| i.entries[0].amount = ntop(101),
            "outbox_other",
        ),
        (
            "beneficiary",
            |i| i.entries[1].beneficiary = address(9),
            "outbox_other",
        ),
        (
            "one left out",
            |i| i.entries = vec![i.entries[0], i.entries[2]],
            "outbox_other",
        ),
        ("last left out", |i| i.entries.truncate(2), "outbox_other"),
        ("one more", |i| i.entries.push(i.entries[0]), "outbox_other"),
        ("order", |i| i.entries.swap(0, 1), "outbox_other"),
        ("heads", |i| i.heads.clear(), "outbox_other"),
        (
            "head's root",
            |i| i.heads[0].root = Hash::ZERO,
            "outbox_other",
        ),
        ("source", |i| i.source = Hash([3; 32]), "source_unknown"),
        (
            "amount and heads",
            |i| {
                i.entries[0].amount = ntop(1_000_000);
                fitting_heads(i);
            },
            "outbox_other",
        ),
        ("no proof", |i| i.proof.clear(), "proof_false"),
        ("header", |i| i.proof[8] ^= 1, "proof_false"),
        ("signature", |i| i.proof[80] ^= 1, "proof_false"),
    ];
    for (name, flaw, code) in flaws {
        let mut import = good.clone();
        flaw(&mut import);
        let transaction = Transaction {
            chain: world.service.id(),
            body: Body::Credit(import),
        };
        assert_eq!(world.service.code(&transaction), *code, "{name}");
        may_wait(&world.service, &transaction, *code == "ok", name);
    }
    // Signed, but not by main's validators.
    let proof = world.main.proof(&[SERVICE_VALIDATOR]);
    let body = Body::Credit(Import { proof, ..good });
    let transaction = Transaction {
        chain: world.service.id(),
        body,
    };
    assert_eq!(world.service.code(&transaction), "proof_false");
}

#[test]
fn epochs_send_batches_even_when_empty() {
    let mut world = world();
    for epoch in 0..3 {
        world.service.empty_blocks(9);
        assert_eq!(world.batch(), None);
        let events = world.service.block(&[]);
        let cut = Event::BatchCut {
            seq: epoch,
            payouts: 0,
            total: Amount::ZERO,
            burn: Amount::ZERO,
        };
        assert_eq!(events, [cut]);
        let batch = world.batch().unwrap();
        world.main.block(std::slice::from_ref(&batch));
        assert_eq!(world.main.code(&batch), "sequence_behind");
        let record = world.main.service(&world.service.id());
        assert_eq!(
            (record.inbox.next, record.height),
            (epoch + 1, world.service.height)
        );
    }
}

#[test]
fn several_batches_come_in_one_import() {
    let mut world = world().funded(&[(RICH, 10_000)]);
    for _ in 0..3 {
        let withdraw = world.service.order(
            RICH,
            Action::Withdraw {
                amount: ntop(1_000),
            },
        );
        world.service.block(&[withdraw]);
        world.service.empty_blocks(10 - world.service.height % 10);
    }
    let batch = world.batch().unwrap();
    assert_eq!(batch_of(&batch).entries.len(), 3);
    let before = world.main.balance(RICH);
    world.main.block(&[batch]);
    assert_eq!(world.main.balance(RICH), before + 3_000);
    world.check();
}

#[test]
fn a_batch_is_refused_for_every_flaw() {
    let mut world = world().funded(&[(RICH, 10_000)]);
    let withdraw = world.service.order(
        RICH,
        Action::Withdraw {
            amount: ntop(1_000),
        },
    );
    world.service.block(&[withdraw]);
    world.service.empty_blocks(10 - world.service.height % 10);
    let good = batch_of(&world.batch().unwrap());
    type Flaw = fn(&mut Import<Batch>);
    let flaws: &[(&str, Flaw, &str)] = &[
        ("none", |_| {}, "ok"),
        ("first too high", |i| i.first = 1, "sequence_ahead"),
        (
            "payout",
            |i| i.entries[0].payouts[0].amount = ntop(1_001),
            "outbox_other",
        ),
        (
            "account",
            |i| i.entries[0].payouts[0].account = address(9),
            "outbox_other",
        ),
        ("burn", |i| i.entries[0].burn = Amount::ZERO, "outbox_other"),
        (
            "acknowledgement",
            |i| i.entries[0].credited = 0,
            "outbox_other",
        ),
        ("source", |i| i.source = Hash([3; 32]), "service_unknown"),
        ("proof", |i| i.proof[8] ^= 1, "proof_false"),
    ];
    for (name, flaw, code) in flaws {
        let mut import = good.clone();
        flaw(&mut import);
        let transaction = Transaction {
            chain: world.main.id(),
            body: Body::Batch(import),
        };
        assert_eq!(world.main.code(&transaction), *code, "{name}");
        may_wait(&world.main, &transaction, *code == "ok", name);
    }
    let proof = world.service.proof(&[VALIDATOR]);
    let body = Body::Batch(Import { proof, ..good });
    let transaction = Transaction {
        chain: world.main.id(),
        body,
    };
    assert_eq!(world.main.code(&transaction), "proof_false");
}

/// What the proved header says of its own outbox can be held against an import before the state
/// is asked, and what the state then refuses is not worth keeping.
#[test]
fn entries_must_end_where_the_proved_outbox_ends() {
    let mut world = world();
    for amount in [100, 200, 300] {
        let fund = world.fund(RICH, amount);
        world.main.block(&[fund]);
    }
    let good = credit_of(&world.credit().unwrap());
    type Flaw = fn(&mut Import<Fund>);
    // Flaw, answer without the state, and with it.
    let cases: &[(&str, Flaw, &str, &str)] = &[
        ("none", |_| {}, "ok", "ok"),
        ("number", |i| i.first = 1, "outbox_other", ""),
        ("last number", |i| i.first = u64::MAX, "outbox_other", ""),
        ("too few", |i| i.entries.truncate(2), "outbox_other", ""),
        ("heads", |i| i.heads[0].next = 9, "outbox_other", ""),
        (
            "another's outbox",
            |i| i.heads[0].destination = Hash::ZERO,
            "outbox_other",
            "",
        ),
        ("source", |i| i.source = Hash([3; 32]), "source_unknown", ""),
        ("proof", |i| i.proof.clear(), "proof_false", ""),
        ("order", |i| i.entries.swap(0, 1), "ok", "outbox_other"),
        (
            "later part",
            |i| {
                i.first = 1;
                i.entries.remove(0);
            },
            "ok",
            "sequence_ahead",
        ),
    ];
    for (name, flaw, without, with) in cases {
        let mut import = good.clone();
        flaw(&mut import);
        let transaction = Transaction {
            chain: world.service.id(),
            body: Body::Credit(import),
        };
        let admitted = world.service.ledger.admit(&transaction.to_bytes());
        let code = admitted.map_or_else(|rejection| rejection.code, |_| "ok");
        assert_eq!(code, *without, "{name}");
        if code == "ok" {
            let weighed = world.service.weigh(&transaction);
            assert_eq!(weighed.map_or_else(|code| code, |_| "ok"), *with, "{name}");
            let built = world.service.clone().build(vec![transaction.to_bytes()]);
            let lasting = built.rejected.iter().all(|(_, why)| !why.is_temporary());
            assert!(lasting, "{name}");
        }
    }
}

/// A batch that the service's validators certify, though the service's rules forbid it.
fn forged(world: &World, batch: Batch) -> Transaction {
    let mut service: Chain = world.service.clone();
    let record = world.main.service(&service.id());
    let head = OutboxHead {
        destination: world.main.id(),
        ..record.inbox
    };
    let heads = vec![head.push(&batch.to_bytes()).unwrap()];
    service.outbox = commitment(&heads);
    let import = Import {
        source: service.id(),
        first: head.next,
        entries: vec![batch],
        heads,
        proof: service.proof(&[SERVICE_VALIDATOR]),
    };
    Transaction {
        chain: world.main.id(),
        body: Body::Batch(import),
    }
}

/// A service whose validators lie can lose its own escrow and nothing else.
#[test]
fn a_lying_service_gets_no_more_than_its_escrow() {
    let mut world = world().funded(&[(RICH, 10_000)]);
    let payouts = |amounts: &[u64]| {
        amounts
            .iter()
            .map(|n| Payout {
                account: address(9),
                amount: ntop(*n),
            })
            .collect()
    };
    let honest = Batch {
        height: 9,
        credited: 1,
        burn: ntop(0),
        payouts: Vec::new(),
    };
    let cases = [
        (
            "all",
            Batch {
                payouts: payouts(&[10_000]),
                ..honest.clone()
            },
            "ok",
        ),
        (
            "too much",
            Batch {
                payouts: payouts(&[10_000, 1]),
                ..honest.clone()
            },
            "escrow_short",
        ),
        (
            "burn too much",
            Batch {
                payouts: payouts(&[10_000]),
                burn: ntop(1),
                ..honest.clone()
            },
            "escrow_short",
        ),
        (
            "more than there can be",
            Batch {
                payouts: payouts(&[u64::MAX, 1]),
                ..honest.clone()
            },
            "overflow",
        ),
        (
            "fewer funds",
            Batch {
                credited: 0,
                ..honest.clone()
            },
            "ok",
        ),
        (
            "more funds",
            Batch {
                credited: 2,
                ..honest.clone()
            },
            "acknowledgement_false",
        ),
    ];
    for (name, batch, code) in cases {
        assert_eq!(world.main.code(&forged(&world, batch)), code, "{name}");
    }
    let acknowledges = forged(&world, honest.clone());
    world.main.block(&[acknowledges]);
    let takes_back = forged(
        &world,
        Batch {
            credited: 0,
            ..honest
        },
    );
    assert_eq!(world.main.code(&takes_back), "acknowledgement_false");
}

#[test]
fn the_previous_validators_still_prove_a_batch() {
    let mut world = world();
    world.service.empty_blocks(10);
    let batch = world.batch().unwrap();
    let id = world.service.id();
    let mut set = |change: fn(&mut Service)| {
        let mut record = world.main.service(&id);
        change(&mut record);
        world
            .main
            .state
            .insert(state::service_key(&id), record.to_bytes());
        world.main.code(&batch)
    };
    let rotate: fn(&mut Service) = |record| {
        let next = vec![secret(77).public_key()];
        record.previous_validators = std::mem::replace(&mut record.validators, next);
    };
    assert_eq!(set(rotate), "ok");
    assert_eq!(set(rotate), "proof_false");
}

/// What is over a batch's cap waits for the next one, in order.
#[test]
fn a_full_batch_leaves_the_rest_for_the_next() {
    let mut world = world().funded(&[(RICH, 100_000)]);
    let nonce = world.service.account(&address(RICH)).nonce;
    for (place, seed) in (10..16).enumerate() {
        let action = Action::Transfer {
            to: address(seed),
            amount: ntop(1_004),
        };
        let transfer = world.service.order_with(RICH, nonce + place as u64, action);
        let withdraw = {
            let action = Action::Withdraw {
                amount: ntop(1_000),
            };
            world.service.order_with(seed, 0, action)
        };
        world.service.block(&[transfer, withdraw]);
    }
    world.settle();
    assert_eq!(
        (10..16).map(|seed| world.main.balance(seed)).sum::<u64>(),
        4_000
    );
    assert_eq!(world.main.balance(13), 1_000);
    assert_eq!(world.main.balance(14), 0);
    assert_eq!(world.service.balance(14), 1_000);
    world.settle();
    assert_eq!(
        (10..16).map(|seed| world.main.balance(seed)).sum::<u64>(),
        6_000
    );
    assert_eq!(world.service.balance(14), 0);
}

/// Accounts that spend what they had marked leave empty places in the queue. They take no room
/// in a batch, and a batch walks past at most four times as many places as it may hold payouts.
#[test]
fn empty_places_take_no_room_in_a_batch() {
    // Empty places before the account that waits, batches until it is paid.
    for (empty, batches) in [(0, 1), (4, 1), (15, 1), (16, 2), (33, 3)] {
        let mut world = World::with_epoch(50, &rules(), &[(RICH, 1_000_000)]);
        world = world.funded(&[(RICH, 500_000)]);
        for seed in (0..empty).map(|place| 10 + place) {
            let action = Action::Transfer {
                to: address(seed),
                amount: ntop(1_000),
            };
            let give = world.service.order(RICH, action);
            let action = Action::Withdraw { amount: ntop(990) };
            let withdraw = world.service.order_with(seed, 0, action);
            let action = Action::Transfer {
                to: address(RICH),
                amount: ntop(994),
            };
            let back = world.service.order_with(seed, 1, action);
            world.service.block(&[give, withdraw, back]);
        }
        let action = Action::Withdraw {
            amount: ntop(2_000),
        };
        let withdraw = world.service.order(RICH, action);
        world.service.block(&[withdraw]);

        let before = world.main.balance(RICH);
        for batch in 1..=batches {
            assert_eq!(world.main.balance(RICH), before, "{empty}, batch {batch}");
            world.settle();
        }
        assert_eq!(world.main.balance(RICH), before + 2_000, "{empty}");
    }
}

/// What is marked to go home can be spent until the batch is cut, and is spent last.
#[test]
fn money_on_its_way_home_is_spent_last() {
    let mut world = world().funded(&[(RICH, 10_000)]);
    let withdraw = world.service.order(
        RICH,
        Action::Withdraw {
            amount: ntop(2_000),
        },
    );
    world.service.block(&[withdraw]);
    assert_eq!(world.service.account(&address(RICH)).homeward, ntop(2_000));
    // 9,996 are left, 7,996 of them unmarked.
    let transfer = world.service.transfer(RICH, 2, 7_994);
    world.service.block(&[transfer]);
    assert_eq!(world.service.account(&address(RICH)).homeward, ntop(2_000));
    let transfer = world.service.transfer(RICH, 2, 498);
    world.service.block(&[transfer]);
    assert_eq!(world.service.account(&address(RICH)).homeward, ntop(1_500));
    let before = world.main.balance(RICH);
    world.settle();
    assert_eq!(world.main.balance(RICH), before + 1_500);
    assert_eq!(world.service.balance(RICH), 0);

    // An account that spends its mark away leaves the queue empty-handed, and may come again.
    let withdraw = world.service.order(
        2,
        Action::Withdraw {
            amount: ntop(8_000),
        },
    );
    world.service.block(&[withdraw]);
    let balance = world.service.balance(2);
    let transfer = world.service.transfer(2, RICH, balance - 2);
    world.service.block(&[transfer]);
    world.settle();
    assert_eq!(world.main.balance(2), 0);
    assert!(!world.service.account(&address(2)).queued);
}

#[test]
fn funds_are_bounded_per_block_and_until_acknowledged() {
    let mut world = world();
    let (service, beneficiary) = (world.service.id(), address(RICH));
    let fund = Action::Fund {
        service,
        amount: ntop(100),
        beneficiary,
    };
    let count = FUNDS_PER_BLOCK_MAX + 1;
    let all: Vec<_> = (0..count)
        .map(|nonce| world.main.order_with(RICH, nonce, fund.clone()).to_bytes())
        .collect();
    let built = world.main.build(all);
    assert_eq!(built.included.len() as u64, FUNDS_PER_BLOCK_MAX);
    assert_eq!(built.rejected.len(), 1);
    assert_eq!(built.rejected[0].1.code, "block_full");
    assert!(built.rejected[0].1.is_temporary());
    // Any header of main ends an import that fits.
    let credit = world.credit().unwrap();
    assert!(credit.to_bytes().len() <= topnet_ledger::transaction::TRANSACTION_BYTES_MAX);
    world.service.block(&[credit]);

    let mut heads: Heads = world.main.heads();
    heads.0[0].next = FUNDS_OUTSTANDING_MAX;
    world
        .main
        .state
        .insert(state::heads_key(), heads.to_bytes());
    let built = world.main.build(vec![world.fund(RICH, 100).to_bytes()]);
    let (_, rejection) = &built.rejected[0];
    assert_eq!(rejection.code, "service_behind");
    // The service may catch up without the funder's doing.
    assert!(rejection.is_temporary());
}

/// Payouts of dust wait on the service, to be spent or to become more.
#[test]
fn dust_stays_on_the_service() {
    for (payout, goes) in [(50, false), (51, true)] {
        let mut world = world().funded(&[(RICH, 10_000)]);
        let (open, channel) = world.service.open(RICH, 2, 1_000);
        let claim = support::claim_worth(RICH, channel, payout + 20);
        let close = CloseByPayee {
            channel,
            claim: Some(claim),
        };
        let close = world.service.close_by_payee(2, close);
        world.service.block(&[open, close]);
        assert_eq!(world.service.balance(2), payout);
        assert_eq!(world.service.account(&address(2)).queued, goes);
        world.settle();
        let (stays, went) = if goes { (0, payout) } else { (payout, 0) };
        assert_eq!(world.service.balance(2), stays);
        assert_eq!(world.main.balance(2), went);
    }
    // What was queued and is spent down to dust stays as well.
    let mut world = world().funded(&[(RICH, 102)]);
    let withdraw = world
        .service
        .order(RICH, Action::Withdraw { amount: ntop(60) });
    world.service.block(&[withdraw]);
    let transfer = world.service.transfer(RICH, 2, 46);
    world.service.block(&[transfer]);
    assert_eq!(world.service.account(&address(RICH)).homeward, ntop(50));
    world.settle();
    assert_eq!(world.service.balance(RICH), 50);
    assert_eq!(world.service.account(&address(RICH)).homeward, ntop(50));
}
