//! Offers: what main keeps of them, what they lock and give back.
#![allow(clippy::unwrap_used)]

mod support;

use support::{Chain, World, address, ntop, rules, secret};
use topnet_account::Hash;
use topnet_ledger::{
    Transaction,
    conservation::Totals,
    event::Event,
    offer::{OFFER_TEXT_BYTES_MAX, Offer},
    state::{PublishedOffer, offer_key},
    transaction::Action,
};

const PROVIDER: u8 = 1;
const OTHER: u8 = 2;
const POOR: u8 = 3;
const BALANCE: u64 = 10_000;
const DEPOSIT: u64 = 700;
const FEE: u64 = 11;

fn world() -> World {
    // The poor one has the deposit, and the fee of two orders.
    let balances = [
        (PROVIDER, BALANCE),
        (OTHER, BALANCE),
        (POOR, DEPOSIT + 2 * FEE),
    ];
    World::new(&rules(), &balances)
}

fn offer(service: Hash) -> Offer {
    Offer {
        service,
        unit_price: ntop(26_000),
        close_window_min: 600,
        payment_key: secret(7).public_key(),
        payment_address: "203.0.113.1:7447".to_owned(),
        rpc_url: "https://vpn.example".to_owned(),
        name: "Kiosk".to_owned(),
        region: "LU".to_owned(),
    }
}

fn publish(main: &Chain, seed: u8, offer: Offer) -> Transaction {
    main.order(seed, Action::PublishOffer(offer))
}

fn retract(main: &Chain, seed: u8, service: Hash) -> Transaction {
    main.order(seed, Action::RetractOffer { service })
}

fn published(main: &Chain, seed: u8, service: &Hash) -> Option<PublishedOffer> {
    main.record(&offer_key(&address(seed), service))
}

fn locked(main: &Chain) -> u128 {
    match main.totals() {
        Totals::Main(totals) => totals.offers,
        Totals::Service(_) => unreachable!("main's totals are main's"),
    }
}

#[test]
fn an_offer_stands_until_it_is_retracted_and_the_deposit_returns() {
    let mut world = world();
    let service = world.service.id();
    let first = offer(service);
    let order = publish(&world.main, PROVIDER, first.clone());
    let events = world.main.block(&[order]);
    let told = |offer: &Offer| Event::OfferPublished {
        provider: address(PROVIDER),
        offer: offer.clone(),
        deposit: ntop(DEPOSIT),
        fee: ntop(FEE),
    };
    assert_eq!(events, [told(&first)]);
    assert_eq!(world.main.balance(PROVIDER), BALANCE - DEPOSIT - FEE);
    let stands = published(&world.main, PROVIDER, &service).unwrap();
    assert_eq!(
        (stands.offer, stands.deposit),
        (first.clone(), ntop(DEPOSIT))
    );
    assert_eq!(locked(&world.main), DEPOSIT.into());

    // A second one takes the first one's place, and costs its fee alone.
    let height = world.main.height;
    let dearer = Offer {
        unit_price: ntop(30_000),
        ..first
    };
    let order = publish(&world.main, PROVIDER, dearer.clone());
    assert_eq!(world.main.block(&[order]), [told(&dearer)]);
    assert_eq!(world.main.balance(PROVIDER), BALANCE - DEPOSIT - 2 * FEE);
    let stands = published(&world.main, PROVIDER, &service).unwrap();
    assert_eq!((stands.offer, stands.height), (dearer, height + 1));
    assert_eq!(locked(&world.main), DEPOSIT.into());

    let other = retract(&world.main, OTHER, service);
    assert_eq!(world.main.code(&other), "offer_unknown");
    let order = retract(&world.main, PROVIDER, service);
    assert_eq!(
        world.main.block(&[order]),
        [Event::OfferRetracted {
            provider: address(PROVIDER),
            service,
            deposit: ntop(DEPOSIT),
            fee: ntop(FEE),
        }]
    );
    assert_eq!(world.main.balance(PROVIDER), BALANCE - 3 * FEE);
    assert_eq!(published(&world.main, PROVIDER, &service), None);
    assert_eq!(locked(&world.main), 0);
    let again = retract(&world.main, PROVIDER, service);
    assert_eq!(world.main.code(&again), "offer_unknown");
}

/// Whoever has nothing left beside the deposit can change the offer and take it away.
#[test]
fn what_is_locked_pays_for_its_own_end() {
    let mut world = world();
    let service = world.service.id();
    let order = publish(&world.main, POOR, offer(service));
    world.main.block(&[order]);
    assert_eq!(world.main.balance(POOR), FEE);
    let order = publish(&world.main, POOR, offer(service));
    assert!(world.main.weigh(&order).is_ok());
    world.main.block(&[order]);
    assert_eq!(world.main.balance(POOR), 0);
    let order = publish(&world.main, POOR, offer(service));
    assert_eq!(world.main.code(&order), "balance_short");
    let order = retract(&world.main, POOR, service);
    assert!(world.main.weigh(&order).is_ok());
    world.main.block(&[order]);
    assert_eq!(world.main.balance(POOR), DEPOSIT - FEE);
    let order = publish(&world.main, POOR, offer(service));
    assert_eq!(world.main.code(&order), "balance_short");
    assert_eq!(world.main.weigh(&order), Err("balance_short"));
}

#[test]
fn an_offer_that_nobody_could_take_is_refused() {
    let world = world();
    let service = world.service.id();
    let with = |change: fn(&mut Offer)| {
        let mut offer = offer(service);
        change(&mut offer);
        world.main.code(&publish(&world.main, PROVIDER, offer))
    };
    type Case = (&'static str, fn(&mut Offer), &'static str);
    let cases: [Case; 12] = [
        ("as it is", |_| (), "ok"),
        (
            "no name and no region",
            |o| (o.name, o.region) = Default::default(),
            "ok",
        ),
        (
            "longest name",
            |o| o.name = "é".repeat(OFFER_TEXT_BYTES_MAX / 2),
            "ok",
        ),
        (
            "too long a name",
            |o| o.name = "x".repeat(OFFER_TEXT_BYTES_MAX + 1),
            "malformed",
        ),
        (
            "a name that rings",
            |o| o.name = "\u{7}".to_owned(),
            "offer_invalid",
        ),
        (
            "a region in two lines",
            |o| o.region = "L\nU".to_owned(),
            "offer_invalid",
        ),
        (
            "a name that is read backwards",
            |o| o.name = "\u{202e}ksoiK".to_owned(),
            "offer_invalid",
        ),
        (
            "a name that looks like another",
            |o| o.name = "Ki\u{200b}osk".to_owned(),
            "offer_invalid",
        ),
        (
            "no payment address",
            |o| o.payment_address.clear(),
            "offer_invalid",
        ),
        ("no RPC", |o| o.rpc_url.clear(), "offer_invalid"),
        ("for nothing", |o| o.unit_price = ntop(0), "offer_invalid"),
        (
            "of no service",
            |o| o.service = Hash([9; 32]),
            "service_unknown",
        ),
    ];
    for (name, change, code) in cases {
        assert_eq!(with(change), code, "{name}");
    }
    let elsewhere = publish(&world.service, PROVIDER, offer(service));
    assert_eq!(world.service.code(&elsewhere), "other_kind_of_chain");
    let elsewhere = retract(&world.service, PROVIDER, service);
    assert_eq!(world.service.code(&elsewhere), "other_kind_of_chain");
}

/// Nothing can be bought from a dead service; its providers have their deposits back.
#[test]
fn of_a_dead_service_offers_can_only_be_retracted() {
    let mut world = world();
    let service = world.service.id();
    let order = publish(&world.main, PROVIDER, offer(service));
    world.main.block(&[order]);
    world.main.empty_blocks(250);
    let order = publish(&world.main, OTHER, offer(service));
    assert_eq!(world.main.code(&order), "service_dead");
    let order = retract(&world.main, PROVIDER, service);
    world.main.block(&[order]);
    assert_eq!(world.main.balance(PROVIDER), BALANCE - 2 * FEE);
}
