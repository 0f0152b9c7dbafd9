//! Every byte that is signed, hashed or stored, against `golden.txt`. These bytes are on disks
//! and in blocks: a line changes only together with a version or a domain.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write;

use support::{address, claim_body, main_genesis, ntop, secret, service_genesis};
use topnet_account::{ChannelId, Hash};
use topnet_ledger::{
    Transaction,
    conservation::{MainTotals, ServiceTotals, Totals},
    event::{Event, encode_events},
    genesis::{Counterpart, Role, Rules},
    offer::Offer,
    outbox::{Batch, Fund, Import, OutboxHead, Payout, commitment},
    state::{
        Account, Channel, ChannelState, Heads, MainLink, Outflow, PayoutQueue, PublishedOffer,
        Record, Recovered, RecoveryBegun, Service, account_key, channel_key, heads_key,
        main_link_key, name_key, offer_key, outbox_entry_key, payout_queue_key, queued_key,
        recovered_key, service_key, totals_key, waiting_key,
    },
    transaction::{
        Action, Body, CloseByPayee, CloseByPayer, Message, Open, Order, Recover, Recovery,
        channel_id, transaction_id,
    },
};

const CHAIN: Hash = Hash([0xc1; 32]);
const CHANNEL: ChannelId = ChannelId([0xc2; 32]);

#[test]
fn bytes_are_what_they_were() {
    let mut actual = String::new();
    for (name, bytes) in vectors() {
        writeln!(actual, "{name} {}", hex(&bytes)).unwrap();
    }
    let golden = include_str!("golden.txt");
    if actual != golden {
        for (actual, golden) in actual.lines().zip(golden.lines()) {
            assert_eq!(actual, golden);
        }
        panic!("golden.txt has other lines than there are vectors:\n{actual}");
    }
}

fn vectors() -> Vec<(String, Vec<u8>)> {
    let mut vectors = Vec::new();
    let mut add = |name: &str, bytes: &[u8]| vectors.push((name.to_owned(), bytes.to_vec()));
    for (name, transaction) in transactions() {
        let bytes = transaction.to_bytes();
        assert_eq!(
            Transaction::from_bytes(&bytes),
            Ok(transaction.clone()),
            "{name}"
        );
        add(name, &bytes);
        add(&format!("{name}.id"), transaction_id(&bytes).as_ref());
        for consent in transaction.consents() {
            add(&format!("{name}.signed"), &consent.bytes);
        }
    }
    add(
        "channel_id",
        channel_id(&CHAIN, &address(1), &address(2), 7).as_ref(),
    );

    let main = main_genesis(&Rules::default(), &[(1, 1_000), (2, 2_000)]);
    let service = service_genesis(&Rules::default(), "vpn", main.counterpart());
    let mut with_service = main.clone();
    with_service.role = Role::Main {
        services: vec![service.counterpart()],
    };
    assert_eq!(main.hash(), with_service.hash());
    add("genesis.main", main.hash().as_ref());
    add("genesis.service", service.hash().as_ref());

    let heads = heads();
    let pushed = heads.0[0].push(b"entry").unwrap();
    add("outbox.next_root", pushed.root.as_ref());
    add("outbox.commitment", commitment(&heads.0).as_ref());
    add("fund", &fund().to_bytes());
    add("batch", &batch().to_bytes());

    add("key.account", &account_key(&address(1)).0);
    add("key.channel", &channel_key(&CHANNEL).0);
    add("key.heads", &heads_key().0);
    add("key.main_link", &main_link_key().0);
    add("key.outbox_entry", &outbox_entry_key(&CHAIN, 258).0);
    add("key.payout_queue", &payout_queue_key().0);
    add("key.queued", &queued_key(258).0);
    add("key.service", &service_key(&CHAIN).0);
    add("key.name", &name_key("vpn").0);
    add("key.recovered", &recovered_key(&CHAIN, &address(1)).0);
    add("key.offer", &offer_key(&address(1), &CHAIN).0);
    add("key.waiting", &waiting_key(&CHAIN, 258).0);
    add("key.totals", &totals_key().0);

    let account = Account {
        nonce: 1,
        balance: ntop(2),
        homeward: ntop(3),
        queued: true,
    };
    add("account", &account.to_bytes());
    for state in [
        ChannelState::Open,
        ChannelState::Closing { deadline: 6 },
        ChannelState::Closed,
    ] {
        let channel = Channel {
            payer: address(1),
            payee: address(2),
            signer: secret(3).public_key(),
            allocation: ntop(1),
            paid: ntop(2),
            closing_fee: ntop(3),
            close_window: 4,
            expiry: 5,
            log_root: Hash([6; 32]),
            state,
        };
        add("channel", &channel.to_bytes());
    }
    let service = Service {
        name: "vpn".to_owned(),
        validators: vec![secret(1).public_key(), secret(2).public_key()],
        previous_validators: vec![secret(3).public_key()],
        escrow: ntop(1),
        funded: 2,
        accepted: 3,
        credited: 4,
        inbox: heads.0[0],
        height: 5,
        state_root: Hash([6; 32]),
        owner: Some(address(3)),
        deposit: ntop(12),
        heard: 13,
        waiting: PayoutQueue { head: 14, tail: 16 },
        waiting_amount: ntop(17),
        outflow: Outflow {
            epoch: 18,
            amount: ntop(19),
        },
        recovery: Some(RecoveryBegun { credited: 20 }),
    };
    add("service", &service.to_bytes());
    let known = Counterpart {
        name: "vpn".to_owned(),
        genesis: CHAIN,
        validators: vec![secret(1).public_key()],
    };
    let new = Service::registered(&known, &Hash([9; 32]), 10);
    add("service.new", &new.to_bytes());
    let recovered = Recovered { amount: ntop(11) };
    add("recovered", &recovered.to_bytes());
    let published = PublishedOffer {
        offer: offer(),
        deposit: ntop(4),
        height: 5,
    };
    add("offer", &published.to_bytes());
    add("waiting", &batch().payouts[0].to_bytes());
    add("name", &CHAIN.to_bytes());
    add("heads", &heads.to_bytes());
    let link = MainLink {
        validators: vec![secret(1).public_key()],
        inbox: heads.0[0],
    };
    add("main_link", &link.to_bytes());
    add("payout_queue", &PayoutQueue { head: 1, tail: 2 }.to_bytes());
    add("queued", &address(1).to_bytes());
    let main = MainTotals {
        supply: 1,
        balances: 2,
        services: 3,
        allocations: 5,
        offers: 6,
        burned: 4,
    };
    add("totals.main", &Totals::Main(main).to_bytes());
    let service = ServiceTotals {
        credited: 1,
        batched: 2,
        balances: 3,
        allocations: 4,
        burn: 5,
    };
    add("totals.service", &Totals::Service(service).to_bytes());
    for event in events() {
        add("event", &encode_events(&[event]));
    }
    add("events", &encode_events(&events()));
    vectors
}

fn transactions() -> Vec<(&'static str, Transaction)> {
    let order = |action| Order { nonce: 258, action }.sign(&CHAIN, &secret(1));
    let anybody = |body| Transaction { chain: CHAIN, body };
    let claim = claim_body(3, CHANNEL, 1_000, 10, 2);
    let close = |claim| {
        CloseByPayee {
            channel: CHANNEL,
            claim,
        }
        .sign(&CHAIN, &secret(2))
    };
    let open = Open {
        payee: address(2),
        allocation: ntop(1_000_000),
        signer: secret(3).public_key(),
        close_window: 600,
        expiry: 70_000,
    };
    let transfer = Action::Transfer {
        to: address(2),
        amount: ntop(5),
    };
    let fund_service = Action::Fund {
        service: Hash([0xc3; 32]),
        amount: ntop(6),
        beneficiary: address(3),
    };
    let service = Counterpart {
        name: "vpn".to_owned(),
        genesis: Hash([0xc3; 32]),
        validators: vec![secret(1).public_key(), secret(2).public_key()],
    };
    let recover = |claim| {
        anybody(Body::Recover(Recover {
            service: Hash([0xc3; 32]),
            claim,
        }))
    };
    let credit = Import {
        source: CHAIN,
        first: 9,
        entries: vec![fund()],
        heads: heads().0,
        proof: vec![1, 2, 3],
    };
    let batches = Import {
        source: CHAIN,
        first: 9,
        entries: vec![batch()],
        heads: heads().0,
        proof: vec![1, 2, 3],
    };
    vec![
        ("transfer", order(transfer)),
        ("fund_service", order(fund_service)),
        ("withdraw", order(Action::Withdraw { amount: ntop(7) })),
        ("open", order(Action::Open(open))),
        (
            "top_up",
            order(Action::TopUp {
                channel: CHANNEL,
                amount: ntop(8),
            }),
        ),
        ("claim", anybody(Body::Claim(claim))),
        ("close_by_payee", close(None)),
        ("close_by_payee_with_claim", close(Some(claim))),
        (
            "close_by_payer",
            CloseByPayer { channel: CHANNEL }.sign(&CHAIN, &secret(1)),
        ),
        ("expire", anybody(Body::Expire(CHANNEL))),
        ("finalise", anybody(Body::Finalise(CHANNEL))),
        ("credit", anybody(Body::Credit(credit))),
        ("batches", anybody(Body::Batch(batches))),
        ("register", order(Action::Register(service))),
        ("publish_offer", order(Action::PublishOffer(offer()))),
        (
            "retract_offer",
            order(Action::RetractOffer { service: CHAIN }),
        ),
        (
            "recover_begin",
            recover(Recovery::Begin {
                link: vec![1, 2],
                totals: vec![3],
            }),
        ),
        (
            "recover_account",
            recover(Recovery::Account {
                account: address(1),
                proof: vec![1, 2],
            }),
        ),
        (
            "recover_channel",
            recover(Recovery::Channel {
                channel: CHANNEL,
                proof: vec![1, 2],
            }),
        ),
        ("recover_fund", recover(Recovery::Fund { seq: 9 })),
    ]
}

fn offer() -> Offer {
    Offer {
        service: CHAIN,
        unit_price: ntop(1),
        close_window_min: 2,
        payment_key: secret(3).public_key(),
        payment_address: "203.0.113.1:7447".to_owned(),
        rpc_url: "https://vpn.example".to_owned(),
        name: "Kiosk".to_owned(),
        region: "LU".to_owned(),
    }
}

fn heads() -> Heads {
    Heads(vec![
        OutboxHead {
            destination: CHAIN,
            next: 3,
            root: Hash([4; 32]),
        },
        OutboxHead::empty(Hash([5; 32])),
    ])
}

fn fund() -> Fund {
    Fund {
        funder: address(1),
        beneficiary: address(2),
        amount: ntop(3),
    }
}

fn batch() -> Batch {
    let payout = |seed| Payout {
        account: address(seed),
        amount: ntop(u64::from(seed)),
    };
    Batch {
        height: 10,
        credited: 2,
        burn: ntop(3),
        payouts: vec![payout(1), payout(2)],
    }
}

fn events() -> Vec<Event> {
    let (one, two, three) = (ntop(1), ntop(2), ntop(3));
    vec![
        Event::Transferred {
            from: address(1),
            to: address(2),
            amount: one,
            fee: two,
        },
        Event::Funded {
            service: CHAIN,
            seq: 9,
            funder: address(1),
            beneficiary: address(2),
            amount: one,
            fee: two,
        },
        Event::Credited {
            seq: 9,
            beneficiary: address(2),
            amount: one,
        },
        Event::Withdrawn {
            account: address(1),
            amount: one,
            fee: two,
        },
        Event::Opened {
            channel: CHANNEL,
            payer: address(1),
            payee: address(2),
            signer: secret(3).public_key(),
            allocation: one,
            closing_fee: two,
            close_window: 4,
            expiry: 5,
            fee: three,
        },
        Event::ToppedUp {
            channel: CHANNEL,
            amount: one,
            allocation: two,
            fee: three,
        },
        Event::Claimed {
            channel: CHANNEL,
            seq: 4,
            index: 5,
            units: 6,
            payout: one,
            paid: two,
            fee: three,
            log_root: Hash([7; 32]),
        },
        Event::Closing {
            channel: CHANNEL,
            deadline: 9,
            fee: one,
        },
        Event::Closed {
            channel: CHANNEL,
            paid: one,
            refund: two,
        },
        Event::Finalised {
            channel: CHANNEL,
            paid: one,
            refund: two,
            fee: three,
        },
        Event::BatchCut {
            seq: 9,
            payouts: 8,
            total: one,
            burn: two,
        },
        Event::BatchAccepted {
            service: CHAIN,
            seq: 9,
            height: 8,
            total: one,
            burn: two,
        },
        Event::PaidOut {
            service: CHAIN,
            seq: 9,
            account: address(1),
            amount: one,
        },
        Event::PayoutWaits {
            service: CHAIN,
            seq: 9,
            account: address(1),
            amount: one,
            place: 8,
        },
        Event::WaitingPaid {
            service: CHAIN,
            place: 8,
            account: address(1),
            amount: one,
            rest: two,
        },
        Event::Registered {
            service: CHAIN,
            name: "vpn".to_owned(),
            owner: address(1),
            deposit: one,
            fee: two,
        },
        Event::RecoveryBegun {
            service: CHAIN,
            height: 9,
            credited: 8,
            burn: one,
        },
        Event::AccountRecovered {
            service: CHAIN,
            account: address(1),
            amount: one,
            fee: two,
        },
        Event::ChannelRecovered {
            service: CHAIN,
            channel: CHANNEL,
            payer: address(1),
            payee: address(2),
            signer: secret(3).public_key(),
            allocation: one,
            paid: two,
            closing_fee: three,
            deadline: 9,
            fee: one,
        },
        Event::FundReturned {
            service: CHAIN,
            seq: 9,
            funder: address(1),
            amount: one,
            fee: two,
        },
        Event::Dissolved {
            service: CHAIN,
            deposit: one,
        },
        Event::OfferPublished {
            provider: address(1),
            offer: offer(),
            deposit: one,
            fee: two,
        },
        Event::OfferRetracted {
            provider: address(1),
            service: CHAIN,
            deposit: one,
            fee: two,
        },
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}
