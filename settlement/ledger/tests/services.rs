//! Services from registration to their end: names and places, silence, and what is taken out of
//! a dead one.
#![allow(clippy::unwrap_used)]

mod support;

use support::{
    Chain, SERVICE_VALIDATOR, World, address, claim_worth, ntop, rules, secret, service_genesis,
};
use topnet_account::{ChannelId, Hash};
use topnet_ledger::{
    Transaction,
    conservation::Totals,
    event::Event,
    genesis::{Counterpart, Rules, SERVICES_MAX},
    machine::Machine,
    state::{self, ChannelState},
    transaction::{Action, Body, CloseByPayee, Recover, Recovery},
};

const PAYER: u8 = 1;
const PAYEE: u8 = 2;
const OWNER: u8 = 3;
const OTHER: u8 = 4;
const BALANCE: u64 = 10_000_000;

fn world() -> World {
    with_rules(&rules())
}

fn with_rules(rules: &Rules) -> World {
    let balances = [PAYER, PAYEE, OWNER, OTHER].map(|seed| (seed, BALANCE));
    World::new(rules, &balances)
}

fn counterpart(name: &str, genesis: u8) -> Counterpart {
    Counterpart {
        name: name.to_owned(),
        genesis: Hash([genesis; 32]),
        validators: vec![secret(SERVICE_VALIDATOR).public_key()],
    }
}

fn register(main: &Chain, seed: u8, service: Counterpart) -> Transaction {
    main.order(seed, Action::Register(service))
}

fn fund(main: &Chain, seed: u8, service: Hash, amount: u64) -> Transaction {
    let (amount, beneficiary) = (ntop(amount), address(PAYER));
    main.order(
        seed,
        Action::Fund {
            service,
            amount,
            beneficiary,
        },
    )
}

/// What main is asked to take out of the world's service.
fn recover(world: &World, claim: Recovery) -> Transaction {
    Transaction {
        chain: world.main.id(),
        body: Body::Recover(Recover {
            service: world.service.id(),
            claim,
        }),
    }
}

/// Recoveries with their proofs out of `state`, the service as main accepted it last.
struct Accepted<'a>(&'a Chain);

impl Accepted<'_> {
    fn begin(&self) -> Recovery {
        Recovery::Begin {
            link: self.0.state_proof(&state::main_link_key()),
            totals: self.0.state_proof(&state::totals_key()),
        }
    }

    fn account(&self, seed: u8) -> Recovery {
        let account = address(seed);
        let proof = self.0.state_proof(&state::account_key(&account));
        Recovery::Account { account, proof }
    }

    fn channel(&self, channel: ChannelId) -> Recovery {
        let proof = self.0.state_proof(&state::channel_key(&channel));
        Recovery::Channel { channel, proof }
    }
}

/// Lets main go on until the service is dead.
fn outlive(world: &mut World) {
    let record = world.main.service(&world.service.id());
    let from = record.dead_from(&world.main.ledger.description().rules);
    world.main.empty_blocks(from - 1 - world.main.height);
}

fn main_totals(world: &World) -> topnet_ledger::conservation::MainTotals {
    match world.main.totals() {
        Totals::Main(totals) => totals,
        Totals::Service(_) => panic!("not main"),
    }
}

#[test]
fn a_service_is_registered_once_and_can_be_funded() {
    let mut world = world();
    let taken = world.service.ledger.description().counterpart();
    let bad = |change: fn(&mut Counterpart)| {
        let mut service = counterpart("cdn", 9);
        change(&mut service);
        service
    };
    let own = world.main.id();
    let cases = [
        ("new", counterpart("cdn", 9), "ok"),
        ("known", taken.clone(), "service_known"),
        ("name of another", counterpart("vpn", 9), "name_taken"),
        ("name of main", counterpart("main", 9), "service_invalid"),
        (
            "no name",
            bad(|service| service.name.clear()),
            "service_invalid",
        ),
        (
            "no validators",
            bad(|service| service.validators.clear()),
            "service_invalid",
        ),
        (
            "main itself",
            Counterpart {
                genesis: own,
                ..counterpart("cdn", 9)
            },
            "service_invalid",
        ),
    ];
    for (name, service, code) in cases {
        let order = register(&world.main, OWNER, service);
        assert_eq!(world.main.code(&order), code, "{name}");
    }
    let poor = register(&world.main, 9, counterpart("cdn", 9));
    assert_eq!(world.main.code(&poor), "balance_short");
    let elsewhere = register(&world.service, OWNER, counterpart("cdn", 9));
    assert_eq!(world.service.code(&elsewhere), "other_kind_of_chain");

    let order = register(&world.main, OWNER, counterpart("cdn", 9));
    let events = world.main.block(&[order]);
    assert_eq!(
        events,
        [Event::Registered {
            service: Hash([9; 32]),
            name: "cdn".to_owned(),
            owner: address(OWNER),
            deposit: ntop(3_000),
            fee: ntop(8),
        }]
    );
    assert_eq!(world.main.balance(OWNER), BALANCE - 3_008);
    let fund = fund(&world.main, PAYER, Hash([9; 32]), 500);
    world.main.block(&[fund]);
    assert_eq!(world.main.service(&Hash([9; 32])).escrow, ntop(500));
    assert_eq!(
        world.main.heads().to(&Hash([9; 32])).map(|head| head.next),
        Some(1)
    );
    // The other service's outbox and batches go on beside it.
    world = world.funded(&[(PAYER, 1_000)]);
    world.settle();
    assert_eq!(world.main.service(&world.service.id()).inbox.next, 1);
}

#[test]
fn main_has_places_for_so_many_services() {
    let mut world = world();
    for number in 1..SERVICES_MAX as u8 {
        let order = register(
            &world.main,
            OWNER,
            counterpart(&format!("s{number}"), number),
        );
        world.main.block(&[order]);
    }
    let order = register(&world.main, OWNER, counterpart("one-more", 250));
    assert_eq!(world.main.code(&order), "services_full");
    // The largest set of outboxes still fits an import.
    let fund = world.fund(PAYER, 1_000);
    world.main.block(&[fund]);
    let credit = world.credit().unwrap();
    world.service.block(&[credit]);
    assert_eq!(world.service.balance(PAYER), 1_000);
}

#[test]
fn a_registered_services_batches_are_proved_by_its_own_validators() {
    let mut world = world();
    let main = world.main.ledger.description().counterpart();
    let mut genesis = service_genesis(&rules(), "cdn", main);
    genesis.validators = vec![secret(77).public_key()];
    let mut cdn = Chain::new(genesis.clone(), 77);
    let order = register(&world.main, OWNER, genesis.counterpart());
    world.main.block(&[order]);
    cdn.empty_blocks(10);
    let import = cdn.import(&world.main.id(), 0).unwrap();
    let mut forged = import.clone();
    forged.proof = cdn.proof(&[SERVICE_VALIDATOR]);
    let batch = |import| Transaction {
        chain: world.main.id(),
        body: Body::Batch(import),
    };
    let (good, forged) = (batch(import), batch(forged));
    assert_eq!(world.main.code(&forged), "proof_false");
    assert_eq!(world.main.weigh(&forged), Err("proof_false"));
    assert_eq!(world.main.weigh(&good), Ok(u64::MAX));
    world.main.block(&[good]);
    assert_eq!(world.main.service(&genesis.hash()).inbox.next, 1);
}

/// Silence counts from the last batch, empty or not; it is final by itself.
#[test]
fn a_silent_service_is_dead_for_good() {
    let mut world = world().funded(&[(PAYER, 1_000)]);
    world.main.empty_blocks(150);
    world.settle();
    let heard = world.main.height;
    world.service.empty_blocks(10);
    world.main.empty_blocks(199);
    assert_eq!(world.main.height, heard + 199);
    let batch = world.batch().unwrap();
    assert_eq!(world.main.code(&batch), "ok");
    let fund = world.fund(PAYER, 1_000);
    assert_eq!(world.main.code(&fund), "ok");
    let begin = recover(&world, Accepted(&world.service).begin());
    assert_eq!(world.main.code(&begin), "service_alive");
    world.main.empty_blocks(1);
    assert_eq!(world.main.code(&batch), "service_dead");
    assert_eq!(world.main.weigh(&batch), Err("service_dead"));
    assert_eq!(world.main.code(&fund), "service_dead");
    assert_ne!(world.main.code(&begin), "service_alive");
}

/// A world whose service has accounts, a channel with a claim paid, burn that no batch has
/// reported, a fund credited after the last batch and one that never was; then it is dead.
struct Died {
    world: World,
    /// The service as main accepted it last.
    accepted: Chain,
    open: ChannelId,
    closed: ChannelId,
}

fn died() -> Died {
    let mut world = world().funded(&[(PAYER, 200_000), (OTHER, 7_000)]);
    let (open, id) = world.service.open(PAYER, PAYEE, 60_000);
    world.service.block(&[open]);
    let claim = world.service.claim(claim_worth(PAYER, id, 20_000));
    world.service.block(&[claim]);
    let (open, closed) = world.service.open(PAYER, PAYEE, 2_000);
    world.service.block(&[open]);
    let close = CloseByPayee {
        channel: closed,
        claim: None,
    };
    let close = world.service.close_by_payee(PAYEE, close);
    world.service.block(&[close]);
    // The batch is proved under a later block, whose state has burned and credited more.
    let fund = world.fund(OTHER, 500);
    world.main.block(&[fund]);
    world.service.empty_blocks(10 - world.service.height % 10);
    let credit = world.credit().unwrap();
    let transfer = world.service.transfer(OTHER, OWNER, 100);
    world.service.block(&[credit, transfer]);
    let batch = world.batch().unwrap();
    world.main.block(&[batch]);
    let accepted = world.service.clone();
    assert!(accepted.service_totals().burn > 0);
    // What comes later is lost: main will not hear of it.
    let fund = world.fund(OTHER, 900);
    world.main.block(&[fund]);
    let credit = world.credit().unwrap();
    world.service.block(&[credit]);
    outlive(&mut world);
    Died {
        world,
        accepted,
        open: id,
        closed,
    }
}

#[test]
fn everything_in_a_dead_service_is_recovered_to_the_last_ntop() {
    let Died {
        mut world,
        accepted,
        open,
        closed,
    } = died();
    let id = world.service.id();
    let state = Accepted(&accepted);
    let record = world.main.service(&id);
    let held = accepted.service_totals();
    assert_eq!(
        u128::from(record.escrow.ntop()),
        held.balances + held.allocations + held.burn + 900
    );
    let before = main_totals(&world);

    let early = recover(&world, state.account(OTHER));
    assert_eq!(world.main.code(&early), "recovery_not_begun");
    let begin = recover(&world, state.begin());
    let events = world.main.block(std::slice::from_ref(&begin));
    assert_eq!(
        events,
        [Event::RecoveryBegun {
            service: id,
            height: accepted.height,
            credited: 3,
            burn: ntop(u64::try_from(held.burn).unwrap()),
        }]
    );
    assert_eq!(world.main.code(&begin), "recovery_begun");
    assert_eq!(main_totals(&world).burned, before.burned + held.burn);

    // Accounts.
    let balance = world.main.balance(OTHER);
    let there = accepted.balance(OTHER);
    let account = recover(&world, state.account(OTHER));
    assert!(world.main.weigh(&account).unwrap() > 1 << 62);
    world.main.block(std::slice::from_ref(&account));
    assert_eq!(world.main.balance(OTHER), balance + there - 9);
    assert_eq!(world.main.code(&account), "recovered");

    // Funds.
    for (seq, code) in [(2, "fund_credited"), (3, "ok"), (4, "recovered")] {
        let fund = recover(&world, Recovery::Fund { seq });
        assert_eq!(world.main.code(&fund), code, "{seq}");
    }
    let balance = world.main.balance(OTHER);
    let fund = recover(&world, Recovery::Fund { seq: 3 });
    world.main.block(std::slice::from_ref(&fund));
    assert_eq!(world.main.balance(OTHER), balance + 900 - 9);
    assert_eq!(world.main.code(&fund), "recovered");

    // The channel goes on here, and its claims count.
    let ended = recover(&world, state.channel(closed));
    assert_eq!(world.main.code(&ended), "channel_closed");
    let channel = recover(&world, state.channel(open));
    world.main.block(std::slice::from_ref(&channel));
    let deadline = world.main.height + 8;
    let there = world.main.channel(&open);
    assert_eq!(there.state, ChannelState::Closing { deadline });
    assert_eq!((there.paid, there.closing_fee), (ntop(20_000), ntop(18)));
    assert_eq!(world.main.code(&channel), "recovered");
    let balance = world.main.balance(PAYEE);
    let claim = world.main.claim(claim_worth(PAYER, open, 45_000));
    world.main.block(&[claim]);
    assert_eq!(world.main.balance(PAYEE), balance + 25_000 - 10);
    let finalise = world.main.finalise(open);
    assert_eq!(world.main.code(&finalise), "too_early");
    world.main.empty_blocks(8);
    let balance = world.main.balance(PAYER);
    world.main.block(&[finalise]);
    assert_eq!(world.main.balance(PAYER), balance + 15_000 + 18 - 7);
    assert_eq!(world.main.code(&channel), "recovered");

    // Whoever is left; the last of them ends the service.
    for seed in [PAYER, PAYEE, OWNER, SERVICE_VALIDATOR] {
        let exists = accepted.balance(seed) > 0;
        if exists {
            let account = recover(&world, state.account(seed));
            world.main.block(&[account]);
        }
    }
    let end = world.main.service(&id);
    assert_eq!(end.held(), 0);
    assert_eq!(world.main.heads().to(&id), None);
    assert!(
        world
            .main
            .events
            .last()
            .unwrap()
            .contains(&Event::Dissolved {
                service: id,
                deposit: ntop(0)
            })
    );
    let totals = main_totals(&world);
    assert_eq!((totals.services, totals.allocations), (0, 0));
    assert_eq!(totals.balances + totals.burned, totals.supply);
}

#[test]
fn nobody_recovers_what_the_last_accepted_state_does_not_show() {
    let Died {
        mut world,
        accepted,
        open,
        ..
    } = died();
    let state = Accepted(&accepted);
    let later = Accepted(&world.service);
    for (name, claim) in [
        ("another state", later.begin()),
        (
            "no proofs",
            Recovery::Begin {
                link: Vec::new(),
                totals: Vec::new(),
            },
        ),
        (
            "swapped",
            match state.begin() {
                Recovery::Begin { link, totals } => Recovery::Begin {
                    link: totals,
                    totals: link,
                },
                other => other,
            },
        ),
    ] {
        let begin = recover(&world, claim);
        assert_eq!(world.main.code(&begin), "state_proof_false", "{name}");
        assert_eq!(world.main.weigh(&begin), Err("state_proof_false"), "{name}");
    }
    let begin = recover(&world, state.begin());
    world.main.block(&[begin]);

    let Recovery::Account { proof, .. } = state.account(OTHER) else {
        panic!()
    };
    let of_another = Recovery::Account {
        account: address(9),
        proof: proof.clone(),
    };
    let Recovery::Channel { proof: channel, .. } = state.channel(open) else {
        panic!()
    };
    let richer = {
        let mut proof = proof.clone();
        let end = proof.len();
        // The balance is behind the nonce; homeward and a flag follow.
        proof[end - 17] ^= 1;
        Recovery::Account {
            account: address(OTHER),
            proof,
        }
    };
    let cases = [
        ("another's", of_another),
        ("richer", richer),
        (
            "a channel as an account",
            Recovery::Account {
                account: address(OTHER),
                proof: channel,
            },
        ),
        (
            "an account as a channel",
            Recovery::Channel {
                channel: open,
                proof,
            },
        ),
        (
            "nothing",
            Recovery::Account {
                account: address(OTHER),
                proof: Vec::new(),
            },
        ),
    ];
    for (name, claim) in cases {
        let transaction = recover(&world, claim);
        assert_eq!(world.main.code(&transaction), "state_proof_false", "{name}");
    }
    let later = recover(&world, Accepted(&world.service).account(OTHER));
    assert_eq!(world.main.code(&later), "state_proof_false");
    let unknown = Transaction {
        chain: world.main.id(),
        body: Body::Recover(Recover {
            service: Hash([8; 32]),
            claim: Recovery::Fund { seq: 0 },
        }),
    };
    assert_eq!(world.main.code(&unknown), "service_unknown");
}

/// The payee's close ends the channel at once and pays any amount, as it does on the service.
#[test]
fn a_recovered_channel_is_closed_by_its_payee_and_by_nobody_else() {
    let Died {
        mut world,
        accepted,
        open,
        ..
    } = died();
    let state = Accepted(&accepted);
    let (begin, channel) = (
        recover(&world, state.begin()),
        recover(&world, state.channel(open)),
    );
    world.main.block(&[begin]);
    let close = |seed, claim| {
        CloseByPayee {
            channel: open,
            claim,
        }
        .sign(&world.main.id(), &secret(seed))
    };
    use topnet_ledger::transaction::Message as _;
    let good = close(PAYEE, Some(claim_worth(PAYER, open, 20_500)));
    let by_payer = close(PAYER, None);
    // In one block: what is brought here can be closed at once.
    assert_eq!(world.main.code(&good), "channel_unknown");
    world.main.block(&[channel]);
    assert_eq!(world.main.code(&by_payer), "not_the_payee");
    let payers = world.main.close_by_payer(PAYER, open);
    assert_eq!(world.main.code(&payers), "other_kind_of_chain");
    let (payee, payer) = (world.main.balance(PAYEE), world.main.balance(PAYER));
    world.main.block(&[good]);
    assert_eq!(world.main.balance(PAYEE), payee + 500 - 20);
    assert_eq!(world.main.balance(PAYER), payer + 39_500 + 18);
    assert_eq!(world.main.channel(&open).state, ChannelState::Closed);
}

/// Nothing was accepted, so every fund goes back and nobody needs a proof.
#[test]
fn a_service_that_never_brought_a_batch_gives_all_funds_back() {
    let mut world = world();
    let order = register(&world.main, OWNER, counterpart("cdn", 9));
    world.main.block(&[order]);
    let id = Hash([9; 32]);
    for amount in [500, 700] {
        let fund = fund(&world.main, OTHER, id, amount);
        world.main.block(&[fund]);
    }
    world.main.empty_blocks(200);
    let recover = |claim| Transaction {
        chain: world.main.id(),
        body: Body::Recover(Recover { service: id, claim }),
    };
    let nothing = || Vec::new();
    let begin = recover(Recovery::Begin {
        link: nothing(),
        totals: nothing(),
    });
    let funds = [0, 1].map(|seq| recover(Recovery::Fund { seq }));
    let (owner, other) = (world.main.balance(OWNER), world.main.balance(OTHER));
    world
        .main
        .block(&[begin, funds[0].clone(), funds[1].clone()]);
    assert_eq!(world.main.balance(OTHER), other + 1_200 - 18);
    assert_eq!(world.main.balance(OWNER), owner + 3_000);
    assert_eq!(world.main.service(&id).held(), 0);
    // Its name is free, it is not.
    let again = register(&world.main, OWNER, counterpart("cdn", 9));
    assert_eq!(world.main.code(&again), "service_known");
    let other = register(&world.main, OWNER, counterpart("cdn", 10));
    assert_eq!(world.main.code(&other), "ok");
}

#[test]
fn what_a_service_pays_out_in_one_epoch_is_bounded_and_the_rest_waits_in_order() {
    let mut world = with_rules(&Rules {
        outflow_max: ntop(1_000),
        ..rules()
    })
    .funded(&[(PAYER, 5_000), (PAYEE, 5_000), (OTHER, 5_000)]);
    let id = world.service.id();
    for (seed, amount) in [(PAYER, 700), (PAYEE, 2_500), (OTHER, 100)] {
        let withdraw = Action::Withdraw {
            amount: ntop(amount),
        };
        let withdraw = world.service.order(seed, withdraw);
        world.service.block(&[withdraw]);
    }
    let start = [PAYER, PAYEE, OTHER].map(|seed| world.main.balance(seed));
    let gained = |world: &World| {
        let now = [PAYER, PAYEE, OTHER].map(|seed| world.main.balance(seed));
        [0, 1, 2].map(|place| now[place] - start[place])
    };
    world.settle();
    // The last would fit, but it came later than one that does not.
    assert_eq!(gained(&world), [700, 0, 0]);
    assert_eq!(world.main.service(&id).waiting_amount, ntop(2_600));
    let epoch_end = |world: &mut World| world.main.empty_blocks(10 - world.main.height % 10);
    for expected in [
        [700, 1_000, 0],
        [700, 2_000, 0],
        [700, 2_500, 100],
        [700, 2_500, 100],
    ] {
        epoch_end(&mut world);
        assert_eq!(gained(&world), expected);
    }
    let record = world.main.service(&id);
    assert_eq!(record.waiting_amount, ntop(0));
    assert_eq!(record.waiting.head, record.waiting.tail);
    assert!(
        !world
            .main
            .state
            .keys()
            .any(|key| key.0.first() == Some(&b'w'))
    );
}

/// Main lets go of a dead service's payouts as of any other's.
#[test]
fn payouts_that_wait_are_paid_although_the_service_is_dead() {
    let mut world = with_rules(&Rules {
        outflow_max: ntop(100),
        service_silence: 15,
        ..rules()
    })
    .funded(&[(PAYER, 3_000)]);
    let withdraw = Action::Withdraw {
        amount: ntop(2_000),
    };
    let withdraw = world.service.order(PAYER, withdraw);
    world.service.block(&[withdraw]);
    world.settle();
    let accepted = world.service.clone();
    outlive(&mut world);
    let state = Accepted(&accepted);
    for claim in [
        state.begin(),
        state.account(PAYER),
        state.account(SERVICE_VALIDATOR),
    ] {
        let transaction = recover(&world, claim);
        world.main.block(&[transaction]);
    }
    let id = world.service.id();
    assert_eq!(world.main.service(&id).escrow, ntop(0));
    assert!(world.main.service(&id).waiting_amount > ntop(0));
    assert!(world.main.heads().to(&id).is_some());
    world.main.empty_blocks(250);
    assert_eq!(world.main.service(&id).held(), 0);
    assert_eq!(world.main.heads().to(&id), None);
}

#[test]
fn recoveries_are_admitted_each_in_a_lane_of_its_own() {
    let Died {
        world, accepted, ..
    } = died();
    let state = Accepted(&accepted);
    let lanes: Vec<_> = [
        state.begin(),
        state.account(PAYER),
        state.account(OTHER),
        Recovery::Fund { seq: 1 },
        Recovery::Fund { seq: 2 },
    ]
    .into_iter()
    .map(|claim| {
        let admitted = world
            .main
            .ledger
            .admit(&recover(&world, claim).to_bytes())
            .unwrap();
        admitted.sender.unwrap()
    })
    .collect();
    let different: std::collections::BTreeSet<_> = lanes.iter().collect();
    assert_eq!(different.len(), lanes.len());
}
