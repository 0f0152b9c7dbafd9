//! Blocks: order, admission, and what consensus may rely on.
#![allow(clippy::unwrap_used)]

mod support;

use support::{World, address, claim_body, claim_worth, ntop, rules, secret};
use topnet_account::ChannelId;
use topnet_ledger::{
    Transaction,
    machine::{BlockEnv, Machine, NONCES_AHEAD_MAX, Values},
    outbox::commitment,
    transaction::{Action, Body, CloseByPayee, channel_id},
};

const PAYER: u8 = 1;
const PAYEE: u8 = 2;

fn world() -> World {
    World::new(&rules(), &[(PAYER, 1_000_000), (PAYEE, 1_000_000)])
        .funded(&[(PAYER, 100_000), (PAYEE, 100_000)])
}

#[test]
fn a_proposer_orders_by_class_and_each_account_by_nonce() {
    let service = world().service;
    let transfer = |seed, nonce| {
        let action = Action::Transfer {
            to: address(9),
            amount: ntop(10 + nonce),
        };
        service.order_with(seed, nonce, action)
    };
    let (open, channel) = service.open(PAYER, PAYEE, 20_000);
    let claim = service.claim(claim_worth(PAYER, channel, 15_000));
    let close = service.close_by_payee(
        PAYEE,
        CloseByPayee {
            channel,
            claim: None,
        },
    );
    let candidates = [
        &close,
        &transfer(PAYEE, 1),
        &claim,
        &transfer(PAYER, 2),
        &transfer(PAYEE, 0),
        &open,
        &transfer(PAYER, 1),
    ];
    let candidates = candidates.map(Transaction::to_bytes);
    let built = service.clone().build(candidates.to_vec());
    assert_eq!(built.rejected, []);
    let expected = [
        &transfer(PAYEE, 0),
        &open,
        &transfer(PAYEE, 1),
        &transfer(PAYER, 1),
        &transfer(PAYER, 2),
        &claim,
        &close,
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|transaction| transaction.to_bytes())
        .collect();
    assert_eq!(built.included, expected);
}

#[test]
fn a_block_out_of_order_is_invalid() {
    let mut world = world();
    let (open, channel) = world.service.open(PAYER, PAYEE, 10_000);
    world.service.block(&[open]);
    let service = &world.service;
    let transfer = service.transfer(PAYEE, 9, 100).to_bytes();
    let claim = service.claim(claim_worth(PAYER, channel, 5_000)).to_bytes();
    let close = service.close_by_payer(PAYER, channel).to_bytes();
    let cases: [(&[&Vec<u8>], &str); 6] = [
        (&[&transfer, &claim, &close], "ok"),
        (&[&claim, &transfer], "class_order"),
        (&[&close, &claim], "class_order"),
        (&[&transfer, &transfer], "nonce_behind"),
        (&[&close, &close], "channel_closing"),
        (&[&vec![1, 2, 3]], "malformed"),
    ];
    for (transactions, code) in cases {
        let transactions: Vec<_> = transactions.iter().map(|bytes| bytes.to_vec()).collect();
        let outcome = service.replay(&transactions);
        assert_eq!(
            outcome.map_or_else(|rejection| rejection.code, |_| "ok"),
            code
        );
    }
}

#[test]
fn what_cannot_stand_is_left_out_and_named() {
    let mut world = world();
    let service = world.service.clone();
    let good = service.transfer(PAYER, 9, 100).to_bytes();
    let bad = [
        (vec![0; 10], "malformed"),
        (
            service
                .order_with(PAYER, 5, Action::Withdraw { amount: ntop(100) })
                .to_bytes(),
            "nonce_ahead",
        ),
        (world.main.transfer(PAYER, 9, 100).to_bytes(), "other_chain"),
    ];
    let mut candidates: Vec<_> = bad.iter().map(|(bytes, _)| bytes.clone()).collect();
    candidates.push(good.clone());
    let built = world.service.build(candidates);
    assert_eq!(built.included, [good]);
    for (bytes, code) in bad {
        let (_, rejection) = built
            .rejected
            .iter()
            .find(|(other, _)| *other == bytes)
            .unwrap();
        assert_eq!(rejection.code, code);
        assert_eq!(rejection.is_temporary(), code == "nonce_ahead");
    }
}

#[test]
fn admission_checks_every_signature() {
    let mut world = world();
    let (open, channel) = world.service.open(PAYER, PAYEE, 10_000);
    world.service.block(&[open]);
    let service = &world.service;
    let claim = claim_body(PAYER, channel, 0, 100, 50);
    let close = CloseByPayee {
        channel,
        claim: Some(claim),
    };
    let transactions = [
        service.transfer(PAYER, 9, 1),
        service.claim(claim),
        service.close_by_payee(PAYEE, close),
        service.close_by_payer(PAYER, channel),
    ];
    for transaction in &transactions {
        let bytes = transaction.to_bytes();
        service.ledger.admit(&bytes).unwrap();
        assert!(service.ledger.signatures_hold(std::slice::from_ref(&bytes)));
        // Version, chain and kind come first; every byte after them is bound by a signature,
        // by the token's chain, or is the claim's log root, which nobody signs.
        let unbound = match transaction.body {
            Body::Claim(_) => bytes.len() - 32..bytes.len(),
            _ => 0..0,
        };
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            let admitted = service.ledger.admit(&changed).is_ok();
            assert_eq!(
                admitted,
                unbound.contains(&place),
                "byte {place} of {transaction:?}"
            );
        }
    }
    let all: Vec<_> = transactions.iter().map(Transaction::to_bytes).collect();
    assert!(service.ledger.signatures_hold(&all));
    let mut one_false = all.clone();
    *one_false[3].last_mut().unwrap() ^= 1;
    assert!(!service.ledger.signatures_hold(&one_false));
    assert!(!service.ledger.signatures_hold(&[vec![1]]));
    assert!(service.ledger.signatures_hold(&[]));
}

/// Checked together, each is judged as if it had come alone.
#[test]
fn among_many_the_forged_and_the_malformed_are_told_apart() {
    let mut world = world();
    let (open, channel) = world.service.open(PAYER, PAYEE, 10_000);
    world.service.block(&[open]);
    let service = &world.service;
    let mut many: Vec<Vec<u8>> = (0..40)
        .map(|nonce| {
            let transfer = Action::Transfer {
                to: address(9),
                amount: ntop(1),
            };
            service.order_with(PAYER, nonce, transfer).to_bytes()
        })
        .collect();
    many.push(
        service
            .claim(claim_body(PAYER, channel, 0, 100, 50))
            .to_bytes(),
    );
    let mut false_token = claim_body(PAYER, channel, 0, 100, 50);
    false_token.claim.preimage[0] ^= 1;
    many.push(service.claim(false_token).to_bytes());
    for forged in [0, 7, 8, 39] {
        *many[forged].last_mut().unwrap() ^= 1;
    }
    many[20].truncate(30);
    let all: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let together = service.ledger.admit_many(&all);
    for (place, (bytes, judged)) in all.iter().zip(together).enumerate() {
        assert_eq!(judged, service.ledger.admit(bytes), "{place}");
        let code = judged.map_or_else(|rejection| rejection.code, |_| "ok");
        let expected = match place {
            0 | 7 | 8 | 39 => "signature_false",
            20 => "malformed",
            41 => "token_false",
            _ => "ok",
        };
        assert_eq!(code, expected, "{place}");
    }
}

/// A claim may not be brought under a key that merely signed it: the key must be the channel's.
#[test]
fn a_voucher_of_the_wrong_key_neither_waits_nor_stands() {
    let mut world = world();
    let (open, channel) = world.service.open(PAYER, PAYEE, 10_000);
    world.service.block(&[open]);
    let claim = world.service.claim(claim_worth(9, channel, 5_000));
    assert!(world.service.ledger.admit(&claim.to_bytes()).is_ok());
    assert_eq!(world.service.weigh(&claim), Err("not_the_signer"));
    assert_eq!(world.service.code(&claim), "not_the_signer");
}

/// Nobody can take the mempool's place of another's claim, and those of one key have one place.
#[test]
fn admissions_of_one_channel() {
    let world = world();
    let service = &world.service;
    let (_, channel) = service.open(PAYER, PAYEE, 10_000);
    let admit = |transaction: &Transaction| service.ledger.admit(&transaction.to_bytes()).unwrap();
    let poor = admit(&service.claim(claim_worth(PAYER, channel, 400)));
    let rich = admit(&service.claim(claim_worth(PAYER, channel, 500)));
    let foreign = admit(&service.claim(claim_worth(9, channel, 600)));
    let transfer = admit(&service.transfer(PAYER, 9, 1));
    assert_eq!((poor.sender, poor.nonce), (rich.sender, rich.nonce));
    assert_ne!(foreign.sender, rich.sender);
    assert_eq!(transfer.sender, Some(address(PAYER)));
    assert_ne!(rich.sender, transfer.sender);
}

/// What cannot be paid for by money that the state has does not wait at all.
#[test]
fn what_the_state_does_not_bear_out_may_not_wait() {
    let mut world = world();
    let (open, channel) = world.service.open(PAYER, PAYEE, 50_000);
    let (open_other, closed) = {
        let open = world.service.terms(PAYEE, PAYER, 1_000);
        let nonce = world.service.account(&address(PAYER)).nonce + 1;
        let id = channel_id(&world.service.id(), &address(PAYER), &open.payee, nonce);
        (
            world.service.order_with(PAYER, nonce, Action::Open(open)),
            id,
        )
    };
    world.service.block(&[open, open_other]);
    let close = CloseByPayee {
        channel: closed,
        claim: None,
    };
    let close = world.service.close_by_payee(PAYEE, close);
    world.service.block(&[close]);
    let fund = world.fund(PAYER, 1_000);
    world.main.block(&[fund]);

    let service = &world.service;
    let nonce = service.account(&address(PAYER)).nonce;
    let nowhere = ChannelId([7; 32]);
    let pays = |seed, nonce, amount| {
        let (to, amount) = (address(9), ntop(amount));
        service.order_with(seed, nonce, Action::Transfer { to, amount })
    };
    let has = service.balance(PAYER);
    let claims = |signer, channel, worth| service.claim(claim_worth(signer, channel, worth));
    let closes =
        |seed, channel, claim| service.close_by_payee(seed, CloseByPayee { channel, claim });
    let cases = [
        ("order", pays(PAYER, nonce, 1), "ok"),
        ("all but the fee", pays(PAYER, nonce, has - 2), "ok"),
        ("more", pays(PAYER, nonce, has - 1), "balance_short"),
        (
            "more, ahead",
            pays(PAYER, nonce + 1, has - 1),
            "balance_short",
        ),
        ("of nobody", pays(8, 0, 1), "balance_short"),
        ("of nobody, ahead", pays(8, 63, 1), "balance_short"),
        ("behind", pays(PAYER, nonce - 1, 1), "nonce_behind"),
        ("ahead", pays(PAYER, nonce + NONCES_AHEAD_MAX - 1, 1), "ok"),
        (
            "far ahead",
            pays(PAYER, nonce + NONCES_AHEAD_MAX, 1),
            "nonce_ahead",
        ),
        ("of nothing", pays(PAYER, nonce, 0), "amount_zero"),
        ("claim", claims(PAYER, channel, 15_000), "ok"),
        (
            "small claim",
            claims(PAYER, channel, 14_999),
            "nothing_to_pay",
        ),
        (
            "claim of nowhere",
            claims(8, nowhere, 15_000),
            "channel_unknown",
        ),
        (
            "claim of a stranger",
            claims(8, channel, 15_000),
            "not_the_signer",
        ),
        (
            "late claim",
            claims(PAYER, closed, 15_000),
            "channel_closed",
        ),
        ("close", closes(PAYEE, channel, None), "ok"),
        (
            "close by a stranger",
            closes(8, channel, None),
            "not_the_payee",
        ),
        (
            "close of nowhere",
            closes(8, nowhere, None),
            "channel_unknown",
        ),
        (
            "close with a stranger's voucher",
            closes(PAYEE, channel, Some(claim_worth(8, channel, 1))),
            "not_the_signer",
        ),
        (
            "payer's close",
            service.close_by_payer(PAYER, channel),
            "ok",
        ),
        (
            "payer's close by a stranger",
            service.close_by_payer(8, channel),
            "not_the_payer",
        ),
        ("expiry", service.expire(channel), "too_early"),
        ("finalisation", service.finalise(channel), "channel_open"),
        ("credit", world.credit().unwrap(), "ok"),
    ];
    for (name, transaction, code) in cases {
        service.ledger.admit(&transaction.to_bytes()).unwrap();
        let weighed = service.weigh(&transaction);
        assert_eq!(weighed.map_or_else(|code| code, |_| "ok"), code, "{name}");
    }
}

/// Fees outweigh smaller fees and waiting, payouts outweigh fees, and nobody's word outweighs
/// anything.
#[test]
fn priority_is_what_the_state_bears_out() {
    let mut world = world();
    let (open, channel) = world.service.open(PAYER, PAYEE, 50_000);
    world.service.block(&[open]);
    let fund = world.fund(PAYER, 1_000);
    world.main.block(&[fund]);
    let service = &world.service;
    let pays = |ahead| {
        let nonce = service.account(&address(PAYEE)).nonce + ahead;
        let (to, amount) = (address(9), ntop(1));
        service.order_with(PAYEE, nonce, Action::Transfer { to, amount })
    };
    let claims = |worth| service.claim(claim_worth(PAYER, channel, worth));
    let falling = [
        world.credit().unwrap(),
        claims(50_000),
        claims(49_999),
        service.close_by_payer(PAYER, channel),
        service.open(PAYER, PAYEE, 1_000).0,
        pays(0),
        pays(1),
        pays(2),
        pays(NONCES_AHEAD_MAX - 1),
    ];
    let weights = falling.map(|transaction| service.weigh(&transaction).unwrap());
    assert!(
        weights.is_sorted_by(|more, less| more > less),
        "{weights:?}"
    );
    // A voucher may say what it likes: the channel holds no more.
    let boasts = service.weigh(&claims(u64::MAX / 2)).unwrap();
    assert_eq!(boasts, service.weigh(&claims(50_000)).unwrap());
}

#[test]
fn the_header_commits_to_the_outboxes() {
    let mut world = world();
    let (fund, idle) = (world.fund(PAYER, 100), world.main.outbox);
    let heads = world.main.heads();
    assert_eq!(commitment(&heads.0), idle);
    world.main.block(&[fund]);
    assert_eq!(commitment(&world.main.heads().0), world.main.outbox);
    assert_ne!(world.main.outbox, idle);
}

/// Reading ahead saves rounds: with all that `reads` names, orders need no second one.
#[test]
fn reads_name_what_orders_need() {
    let world = world();
    let service = &world.service;
    let (open, _) = service.open(PAYER, PAYEE, 10_000);
    let transactions = vec![open.to_bytes(), service.transfer(PAYEE, 9, 5).to_bytes()];
    let env = service.env();
    let values: Values = service
        .ledger
        .reads(&env, &transactions)
        .into_iter()
        .map(|key| (key.clone(), service.state.get(&key).cloned()))
        .collect();
    assert!(
        service
            .ledger
            .replay(&env, &transactions, &values)
            .unwrap()
            .is_ok()
    );
}

#[test]
#[should_panic(expected = "another chain")]
fn a_block_of_another_chain_stops_the_ledger() {
    let world = world();
    let env = BlockEnv {
        chain: world.main.id(),
        ..world.service.env()
    };
    let _ = world.service.ledger.replay(&env, &[], &Values::new());
}

/// Its successor has no name, so it could never be executed and would wait for nothing.
#[test]
fn the_last_nonce_is_not_admitted() {
    let service = world().service;
    let action = Action::Transfer {
        to: address(9),
        amount: ntop(1),
    };
    for (nonce, code) in [(u64::MAX - 1, "ok"), (u64::MAX, "nonce_last")] {
        let order = service.order_with(PAYER, nonce, action.clone()).to_bytes();
        let admitted = service.ledger.admit(&order);
        assert_eq!(admitted.map_or_else(|r| r.code, |_| "ok"), code, "{nonce}");
    }
}

#[test]
fn a_key_signs_for_one_account_only() {
    let world = world();
    let transfer = world.service.transfer(PAYER, 9, 1);
    let Body::Order(order) = transfer.body else {
        panic!()
    };
    assert_eq!(order.account(), secret(PAYER).address());
}
