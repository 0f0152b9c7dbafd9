//! Every rule of a transaction as a line of a table: what is asked, and the code of the answer.
#![allow(clippy::unwrap_used)]

#[path = "rules/orders.rs"]
mod orders;
mod support;

use support::{World, address, claim_body, claim_worth, ntop, rules, secret};
use topnet_account::{ChannelId, Hash};
use topnet_channel::TOKENS_PER_VOUCHER_MAX;
use topnet_ledger::{
    Transaction,
    event::Event,
    state::ChannelState,
    transaction::{Action, Body, ClaimBody, CloseByPayee, Open},
};

const PAYER: u8 = 1;
const PAYEE: u8 = 2;
const STRANGER: u8 = 3;
const ALLOCATION: u64 = 500_000;

/// A service where the payer has opened a channel, and what can be asked of it.
struct Stage {
    world: World,
    channel: ChannelId,
}

impl Stage {
    fn new() -> Self {
        // No batch takes money away while a case counts it.
        let balances = [(PAYER, 10_000_000), (STRANGER, 20_000)];
        let world = World::with_epoch(1_000, &rules(), &balances);
        let mut world = world.funded(&[(PAYER, 5_000_000), (STRANGER, 10_000)]);
        let (open, channel) = world.service.open(PAYER, PAYEE, ALLOCATION);
        world.service.block(&[open]);
        Self { world, channel }
    }

    fn closing() -> Self {
        let mut stage = Self::new();
        let close = stage.world.service.close_by_payer(PAYER, stage.channel);
        stage.world.service.block(&[close]);
        stage
    }

    fn closed() -> Self {
        let mut stage = Self::new();
        let close = stage.payee_closes(None);
        stage.world.service.block(&[close]);
        stage
    }

    fn payer_orders(&self, action: Action) -> Transaction {
        self.world.service.order(PAYER, action)
    }

    fn opens(&self, change: impl FnOnce(&mut Open)) -> Transaction {
        let mut open = self.world.service.terms(PAYEE, PAYER, ALLOCATION);
        change(&mut open);
        self.payer_orders(Action::Open(open))
    }

    fn tops_up(&self, seed: u8, channel: ChannelId, amount: u64) -> Transaction {
        let amount = ntop(amount);
        self.world
            .service
            .order(seed, Action::TopUp { channel, amount })
    }

    fn claims(&self, change: impl FnOnce(&mut ClaimBody)) -> Transaction {
        let mut claim = claim_body(PAYER, self.channel, 1_000, 5_000, 7);
        change(&mut claim);
        self.world.service.claim(claim)
    }

    fn payee_closes(&self, claim: Option<ClaimBody>) -> Transaction {
        let close = CloseByPayee {
            channel: self.channel,
            claim,
        };
        self.world.service.close_by_payee(PAYEE, close)
    }
}

type Case = (&'static str, fn(&Stage) -> Transaction, &'static str);

fn check(stage: &Stage, cases: &[Case]) {
    for (name, ask, code) in cases {
        assert_eq!(stage.world.service.code(&ask(stage)), *code, "{name}");
    }
}

#[test]
fn an_open_channel() {
    let cases: &[Case] = &[
        ("open", |s| s.opens(|_| {}), "ok"),
        (
            "smallest allocation",
            |s| s.opens(|o| o.allocation = ntop(1_000)),
            "ok",
        ),
        (
            "too small an allocation",
            |s| s.opens(|o| o.allocation = ntop(999)),
            "allocation_small",
        ),
        (
            "largest sum",
            |s| s.opens(|o| o.allocation = ntop(u64::MAX)),
            "overflow",
        ),
        // 5,000,000 less the first channel's 500,000 + 27 + 5, and 32 for this one.
        (
            "all but the fees",
            |s| s.opens(|o| o.allocation = ntop(4_499_936)),
            "ok",
        ),
        (
            "more than that",
            |s| s.opens(|o| o.allocation = ntop(4_499_937)),
            "balance_short",
        ),
        ("shortest window", |s| s.opens(|o| o.close_window = 2), "ok"),
        (
            "too short a window",
            |s| s.opens(|o| o.close_window = 1),
            "close_window",
        ),
        (
            "longest window",
            |s| s.opens(|o| o.close_window = 100),
            "ok",
        ),
        (
            "too long a window",
            |s| s.opens(|o| o.close_window = 101),
            "close_window",
        ),
        // The next block has height 3.
        (
            "expiry in the next block",
            |s| s.opens(|o| o.expiry = 4),
            "ok",
        ),
        (
            "expiry in this block",
            |s| s.opens(|o| o.expiry = 3),
            "expiry_past",
        ),
        ("top up", |s| s.tops_up(PAYER, s.channel, 1), "ok"),
        (
            "top up nothing",
            |s| s.tops_up(PAYER, s.channel, 0),
            "amount_zero",
        ),
        (
            "top up by another",
            |s| s.tops_up(STRANGER, s.channel, 1),
            "not_the_payer",
        ),
        (
            "top up nowhere",
            |s| s.tops_up(PAYER, ChannelId([1; 32]), 1),
            "channel_unknown",
        ),
        ("claim", |s| s.claims(|_| {}), "ok"),
        (
            "claim of nowhere",
            |s| {
                s.world
                    .service
                    .claim(claim_worth(PAYER, ChannelId([1; 32]), 500))
            },
            "channel_unknown",
        ),
        (
            "claim by another's voucher",
            |s| s.world.service.claim(claim_worth(STRANGER, s.channel, 500)),
            "not_the_signer",
        ),
        (
            "claim with another token",
            |s| s.claims(|c| c.claim.preimage[0] ^= 1),
            "token_false",
        ),
        (
            "claim at another index",
            |s| s.claims(|c| c.claim.index = 8),
            "token_false",
        ),
        (
            "claim without a token",
            |s| s.claims(|c| c.claim.index = 0),
            "token_false",
        ),
        ("close by payee", |s| s.payee_closes(None), "ok"),
        (
            "close by payee with a claim",
            |s| s.payee_closes(Some(claim_worth(PAYER, s.channel, 1))),
            "ok",
        ),
        (
            "close by another as payee",
            |s| {
                let close = CloseByPayee {
                    channel: s.channel,
                    claim: None,
                };
                s.world.service.close_by_payee(PAYER, close)
            },
            "not_the_payee",
        ),
        (
            "close with another channel's claim",
            |s| s.payee_closes(Some(claim_worth(PAYER, ChannelId([1; 32]), 500))),
            "claim_of_other_channel",
        ),
        (
            "close with another's voucher",
            |s| s.payee_closes(Some(claim_worth(STRANGER, s.channel, 500))),
            "not_the_signer",
        ),
        (
            "close by payer",
            |s| s.world.service.close_by_payer(PAYER, s.channel),
            "ok",
        ),
        (
            "close by another as payer",
            |s| s.world.service.close_by_payer(PAYEE, s.channel),
            "not_the_payer",
        ),
        (
            "expire early",
            |s| s.world.service.expire(s.channel),
            "too_early",
        ),
        (
            "finalise",
            |s| s.world.service.finalise(s.channel),
            "channel_open",
        ),
        (
            "finalise nowhere",
            |s| s.world.service.finalise(ChannelId([1; 32])),
            "channel_unknown",
        ),
    ];
    check(&Stage::new(), cases);
}

#[test]
fn a_closing_channel() {
    let cases: &[Case] = &[
        (
            "top up",
            |s| s.tops_up(PAYER, s.channel, 1),
            "channel_closing",
        ),
        ("claim", |s| s.claims(|_| {}), "ok"),
        ("close by payee", |s| s.payee_closes(None), "ok"),
        (
            "close by payer again",
            |s| s.world.service.close_by_payer(PAYER, s.channel),
            "channel_closing",
        ),
        (
            "expire",
            |s| s.world.service.expire(s.channel),
            "channel_closing",
        ),
        (
            "finalise",
            |s| s.world.service.finalise(s.channel),
            "too_early",
        ),
    ];
    let mut stage = Stage::closing();
    check(&stage, cases);

    let ChannelState::Closing { deadline } = stage.world.service.channel(&stage.channel).state
    else {
        panic!("the channel should be closing");
    };
    assert_eq!(deadline, stage.world.service.height + 5);
    let finalise = stage.world.service.finalise(stage.channel);
    while stage.world.service.height < deadline {
        assert_eq!(stage.world.service.code(&finalise), "too_early");
        stage.world.service.block(&[]);
    }
    assert_eq!(stage.world.service.code(&finalise), "ok");
    // Until somebody finalises, claims count.
    stage.world.service.empty_blocks(3);
    assert_eq!(stage.world.service.code(&stage.claims(|_| {})), "ok");
}

#[test]
fn a_closed_channel() {
    let cases: &[Case] = &[
        (
            "top up",
            |s| s.tops_up(PAYER, s.channel, 1),
            "channel_closed",
        ),
        ("claim", |s| s.claims(|_| {}), "channel_closed"),
        ("close by payee", |s| s.payee_closes(None), "channel_closed"),
        (
            "close by payer",
            |s| s.world.service.close_by_payer(PAYER, s.channel),
            "channel_closed",
        ),
        (
            "expire",
            |s| s.world.service.expire(s.channel),
            "channel_closed",
        ),
        (
            "finalise",
            |s| s.world.service.finalise(s.channel),
            "channel_closed",
        ),
    ];
    check(&Stage::closed(), cases);
}

#[test]
fn anybody_closes_an_expired_channel() {
    let mut stage = Stage::new();
    let open = stage.opens(|open| open.expiry = 10);
    let events = stage.world.service.block(&[open]);
    let [Event::Opened { channel, .. }] = events[..] else {
        panic!("{events:?}");
    };
    let expire = stage.world.service.expire(channel);
    while stage.world.service.height < 9 {
        assert_eq!(stage.world.service.code(&expire), "too_early");
        stage.world.service.block(&[]);
    }
    // Claimed and topped up like any other until somebody closes it.
    assert_eq!(
        stage.world.service.code(&stage.tops_up(PAYER, channel, 1)),
        "ok"
    );
    let events = stage.world.service.block(&[expire]);
    assert!(events.contains(&Event::Closing {
        channel,
        deadline: 15,
        fee: ntop(20)
    }));
}

/// Claims pay differences, at most what there is, and a top-up lets the rest be claimed.
#[test]
fn claims_are_cumulative() {
    let Stage { mut world, channel } = Stage::new();
    let service = &mut world.service;
    // Worth, token index; payout, fee.
    let steps = [
        (claim_body(PAYER, channel, 0, 5_000, 3), 15_000, 13),
        (claim_body(PAYER, channel, 0, 5_000, 3), 0, 0),
        (claim_body(PAYER, channel, 0, 5_000, 2), 0, 0),
        (claim_body(PAYER, channel, 0, 5_000, 5), 0, 0),
        (claim_body(PAYER, channel, 0, 5_000, 256), 485_000, 266),
    ];
    let mut paid = 0;
    for (body, payout, fee) in steps {
        let transaction = service.claim(body);
        if payout == 0 {
            // It may stand, but a proposer has no reason to take it.
            let executed = service.replay(&[transaction.to_bytes()]).unwrap();
            service.apply(&executed);
            let built = service.build(vec![transaction.to_bytes()]);
            assert_eq!(built.rejected[0].1.code, "nothing_to_pay");
        } else {
            let before = service.balance(PAYEE);
            service.block(&[transaction]);
            assert_eq!(service.balance(PAYEE), before + payout - fee);
        }
        paid += payout;
        assert_eq!(service.channel(&channel).paid, ntop(paid));
    }
    assert_eq!(paid, ALLOCATION);

    // 780,000 of the last claim's 1,280,000 are still owed.
    let top_up = Action::TopUp {
        channel,
        amount: ntop(1_000_000),
    };
    let top_up = service.order(PAYER, top_up);
    let again = service.claim(claim_body(PAYER, channel, 0, 5_000, 256));
    service.block(&[top_up, again]);
    assert_eq!(service.channel(&channel).paid, ntop(1_280_000));
    assert_eq!(service.channel(&channel).remaining(), ntop(220_000));
}

/// Nobody can make fees eat the payee's income by claiming it token by token.
#[test]
fn small_claims_pay_nothing_and_cost_nothing() {
    let Stage { mut world, channel } = Stage::new();
    for index in 1..=20 {
        let claim = world
            .service
            .claim(claim_body(PAYER, channel, 0, 1_000, index));
        let executed = world.service.replay(&[claim.to_bytes()]).unwrap();
        world.service.apply(&executed);
    }
    // 15 × 1,000 is the least that pays; after it, 5 more tokens are too little again.
    assert_eq!(world.service.channel(&channel).paid, ntop(15_000));
    assert_eq!(world.service.balance(PAYEE), 15_000 - 25);
    // The payee's close takes them all.
    let claim = Some(claim_body(PAYER, channel, 0, 1_000, 20));
    let close = world
        .service
        .close_by_payee(PAYEE, CloseByPayee { channel, claim });
    world.service.block(&[close]);
    assert_eq!(world.service.channel(&channel).paid, ntop(20_000));
    assert_eq!(world.service.balance(PAYEE), 15_000 - 25 + 5_000 - 40);
}

/// A payer that claims on the payee's behalf as dearly and as often as it can burns no more
/// than one part in fifty of what the payee gets by closing once.
#[test]
fn a_payer_burns_at_most_a_fiftieth_of_the_payees_income() {
    let Stage { mut world, channel } = Stage::new();
    let dearest = TOKENS_PER_VOUCHER_MAX;
    let mut worth = 15_000;
    while worth <= ALLOCATION {
        // A token at the end of its chain costs most: the voucher gives the rest.
        let base = worth - u64::from(dearest);
        let claim = claim_body(PAYER, channel, base, 1, dearest);
        let claim = world.service.claim(claim);
        world.service.block(&[claim]);
        worth += 15_000;
    }
    let paid = world.service.channel(&channel).paid.ntop();
    assert_eq!(paid, 495_000);
    let burned = paid - world.service.balance(PAYEE);
    assert_eq!(burned, 33 * 266);
    assert!(50 * burned <= paid);
}

/// The payee's fee is at most its payout, so it closes without a balance.
#[test]
fn payees_close_needs_no_balance() {
    for (owed, payee_gets) in [
        (0, 0),
        (5, 0),
        (20, 0),
        (21, 1),
        (1_000, 980),
        (10_000, 9_980),
    ] {
        let Stage { mut world, channel } = Stage::new();
        let before = world.service.balance(PAYER);
        let claim = Some(claim_worth(PAYER, channel, owed));
        let close = world
            .service
            .close_by_payee(PAYEE, CloseByPayee { channel, claim });
        let events = world.service.block(&[close]);
        assert_eq!(world.service.balance(PAYEE), payee_gets, "{owed}");
        // The closing fee of 27 comes back with the rest.
        let refund = ALLOCATION - owed + 27;
        assert_eq!(world.service.balance(PAYER), before + refund, "{owed}");
        let closed = Event::Closed {
            channel,
            paid: ntop(owed),
            refund: ntop(refund),
        };
        assert_eq!(events.last(), Some(&closed));
    }
}

/// The payer closes, the payee's claim is in time, a stranger finalises: the fees of both ends
/// come out of what was set aside.
/// Anybody may bring a claim and write any root beside it; what the payee signs counts.
#[test]
fn the_log_root_is_the_payees_word_and_nobody_elses() {
    let Stage { mut world, channel } = Stage::new();
    let mut body = claim_worth(PAYER, channel, 20_000);
    body.log_root = Hash([8; 32]);
    let claim = world.service.claim(body);
    world.service.block(&[claim]);
    let claimed = world.service.channel(&channel);
    assert_eq!((claimed.paid, claimed.log_root), (ntop(20_000), Hash::ZERO));

    let mut body = claim_worth(PAYER, channel, 30_000);
    body.log_root = Hash([9; 32]);
    let close = CloseByPayee {
        channel,
        claim: Some(body),
    };
    let close = world.service.close_by_payee(PAYEE, close);
    world.service.block(&[close]);
    let closed = world.service.channel(&channel);
    assert_eq!(
        (closed.paid, closed.log_root),
        (ntop(30_000), Hash([9; 32]))
    );
}

#[test]
fn payers_close_is_answered_by_a_claim() {
    let Stage { mut world, channel } = Stage::closing();
    let service = &mut world.service;
    let before = service.balance(PAYER);
    assert_eq!(service.channel(&channel).closing_fee, ntop(7));
    service.empty_blocks(6);
    // In one block, in the wrong order: the claim still comes first.
    let bytes = vec![
        service.finalise(channel).to_bytes(),
        service
            .claim(claim_worth(PAYER, channel, 200_000))
            .to_bytes(),
    ];
    let built = service.build(bytes.clone());
    assert_eq!(built.rejected, []);
    assert_eq!(built.included, [bytes[1].clone(), bytes[0].clone()]);
    assert_eq!(service.balance(PAYEE), 200_000 - 10);
    assert_eq!(service.balance(PAYER), before + 300_000);
    let record = service.channel(&channel);
    assert_eq!(
        (record.paid, record.state),
        (ntop(200_000), ChannelState::Closed)
    );
}

/// Half of every fee is burned, rounded down; the proposer has the rest, whoever it is.
#[test]
fn fees_are_split() {
    let Stage {
        mut world,
        channel: _,
    } = Stage::new();
    let service = &mut world.service;
    for proposer in [77, PAYER] {
        service.proposer = address(proposer);
        let (before, burn) = (service.balance(proposer), service.service_totals().burn);
        let (open, _) = service.open(PAYER, PAYEE, 1_000);
        service.block(&[open]);
        let paid = if proposer == PAYER { 1_000 + 27 + 5 } else { 0 };
        assert_eq!(service.balance(proposer), before - paid + 3);
        assert_eq!(service.service_totals().burn, burn + 2);
    }
}

/// The channel id says who, for whom, on which chain and in which order; so no id comes twice.
#[test]
fn channel_ids_never_come_back() {
    let Stage { mut world, channel } = Stage::closed();
    let (open, again) = world.service.open(PAYER, PAYEE, ALLOCATION);
    assert_ne!(channel, again);
    world.service.block(&[open]);
    assert_eq!(world.service.channel(&channel).state, ChannelState::Closed);
    assert_eq!(world.service.channel(&again).state, ChannelState::Open);
    assert_eq!(
        world.service.channel(&again).signer,
        secret(PAYER).public_key()
    );
}
