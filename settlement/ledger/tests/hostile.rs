//! Bytes from anywhere: every decoder gives a value or an error, and what decodes is the one
//! encoding of its value.
#![allow(clippy::unwrap_used)]

mod support;

use support::{World, claim_body, ntop, rules};
use topnet_account::{Address, ChannelId};
use topnet_ledger::{
    Transaction,
    conservation::Totals,
    event::{decode_events, encode_events},
    machine::Machine,
    outbox::{Batch, Fund, OutboxEntry},
    state::{Account, Channel, Heads, MainLink, PayoutQueue, Record, Service},
    transaction::{Action, CloseByPayee, TRANSACTION_BYTES_MAX},
};

/// Xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn decodes_canonically(bytes: &[u8]) {
    fn record<R: Record>(bytes: &[u8]) {
        if let Ok(record) = R::from_bytes(bytes) {
            assert_eq!(record.to_bytes(), bytes);
        }
    }
    fn entry<E: OutboxEntry>(bytes: &[u8]) {
        if let Ok(entry) = E::from_bytes(bytes) {
            assert_eq!(entry.to_bytes(), bytes);
        }
    }
    if let Ok(transaction) = Transaction::from_bytes(bytes) {
        assert_eq!(transaction.to_bytes(), bytes);
    }
    if let Ok(events) = decode_events(bytes) {
        assert_eq!(encode_events(&events), bytes);
    }
    record::<Account>(bytes);
    record::<Address>(bytes);
    record::<Channel>(bytes);
    record::<Heads>(bytes);
    record::<MainLink>(bytes);
    record::<PayoutQueue>(bytes);
    record::<Service>(bytes);
    record::<Totals>(bytes);
    entry::<Batch>(bytes);
    entry::<Fund>(bytes);
}

fn samples() -> (World, Vec<Vec<u8>>) {
    let mut world = World::new(&rules(), &[(1, 1_000_000)]).funded(&[(1, 100_000)]);
    let fund = world.fund(1, 1_000);
    world.main.block(std::slice::from_ref(&fund));
    let (open, channel) = world.service.open(1, 2, 50_000);
    let claim = claim_body(1, channel, 15_000, 10, 9);
    let withdraw = world
        .service
        .order_with(1, 1, Action::Withdraw { amount: ntop(500) });
    let close = CloseByPayee {
        channel,
        claim: Some(claim),
    };
    let mut transactions = vec![
        open,
        withdraw,
        world.service.claim(claim),
        world.service.close_by_payee(2, close),
        world.service.close_by_payer(1, channel),
        world.service.expire(channel),
        world.service.finalise(channel),
        world.credit().unwrap(),
        fund,
    ];
    world.service.block(&transactions[..4]);
    world.service.empty_blocks(10);
    transactions.push(world.batch().unwrap());
    let mut samples: Vec<_> = transactions.iter().map(Transaction::to_bytes).collect();
    samples.extend(world.main.state.values().cloned());
    samples.extend(world.service.state.values().cloned());
    samples.extend(
        world
            .service
            .events
            .iter()
            .map(|events| encode_events(events)),
    );
    (world, samples)
}

#[test]
fn no_bytes_upset_a_decoder() {
    let (_, samples) = samples();
    let mut random = Random(1);
    for sample in &samples {
        decodes_canonically(sample);
        for length in 0..sample.len() {
            decodes_canonically(&sample[..length]);
        }
        for _ in 0..400 {
            let mut changed = sample.clone();
            for _ in 0..=random.below(3) {
                if changed.is_empty() {
                    break;
                }
                let place = random.below(changed.len());
                match random.below(4) {
                    0 => changed[place] = random.next() as u8,
                    1 => changed[place] = [0, 1, 0x7f, 0xff][random.below(4)],
                    2 => drop(changed.remove(place)),
                    _ => changed.insert(place, random.next() as u8),
                }
            }
            decodes_canonically(&changed);
        }
    }
    for _ in 0..20_000 {
        let length = random.below(300);
        let noise: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        decodes_canonically(&noise);
    }
}

/// A chain that is offered broken transactions leaves them out and goes on.
#[test]
fn no_transaction_upsets_a_chain() {
    let (mut world, samples) = samples();
    let mut random = Random(2);
    let start = world.service.height;
    for round in 1..=300 {
        let offered: Vec<Vec<u8>> = (0..8)
            .map(|_| {
                let mut bytes = samples[random.below(samples.len())].clone();
                let changes = random.below(3);
                for _ in 0..changes {
                    if !bytes.is_empty() {
                        let place = random.below(bytes.len());
                        bytes[place] = random.next() as u8;
                    }
                }
                bytes
            })
            .filter(|bytes| {
                world
                    .service
                    .ledger
                    .signatures_hold(std::slice::from_ref(bytes))
            })
            .collect();
        for bytes in &offered {
            let _ = world.service.ledger.admit(bytes);
            let _ = world.main.ledger.admit(bytes);
        }
        world.service.build(offered.clone());
        world.main.build(offered);
        assert_eq!(world.service.height, start + round);
        world.check();
    }
}

#[test]
fn what_is_too_long_is_refused_before_it_is_read() {
    let world = World::new(&rules(), &[(1, 1_000)]);
    let mut bytes = world.service.expire(ChannelId([0; 32])).to_bytes();
    assert!(world.service.ledger.admit(&bytes).is_ok());
    bytes.resize(TRANSACTION_BYTES_MAX + 1, 0);
    assert_eq!(
        world.service.ledger.admit(&bytes).unwrap_err().code,
        "malformed"
    );
}
