//! Both ends of a channel against each other: the money that must come out, the promises that
//! must be refused, and a seeded world with loss, reconnection and crashes on both sides.
#![allow(clippy::unwrap_used)]

use topnet_account::{Amount, ChannelId, Signature};
use topnet_channel::{
    Claim, Offer, PROTOCOL_VERSION, Payee, PayeeMessage, PayeeState, PayeeTerms, Payer, PayerFault,
    PayerMessage, PayerRecord, PayerTerms, Promise, RefusalCode, Roll, SecretKey, SignedVoucher,
    SlotUse, Token, Voucher,
};
use topnet_unit::{BootId, Slot, UNIT_BYTES};

const CHANNEL: ChannelId = ChannelId([1; 32]);
const PRICE: Amount = Amount::from_ntop(25);
const WINDOW: u64 = 8;

fn secret() -> SecretKey {
    SecretKey::from_seed([5; 32]).unwrap()
}

fn offer() -> Offer {
    Offer {
        version: PROTOCOL_VERSION,
        unit_price: PRICE,
        epsilon_ppm: 5_000,
        window_max: WINDOW,
    }
}

fn payee_terms(allocation: u64) -> PayeeTerms {
    let allocation = Amount::from_ntop(allocation);
    PayeeTerms {
        channel: CHANNEL,
        signer: secret().public_key(),
        allocation,
        offer: offer(),
    }
}

fn payer_terms(allocation: u64) -> PayerTerms {
    let allocation = Amount::from_ntop(allocation);
    PayerTerms {
        channel: CHANNEL,
        allocation,
        unit_price_max: PRICE,
        window_max: WINDOW,
    }
}

fn slot(boot: u8) -> SlotUse {
    SlotUse {
        boot: BootId([boot; 16]),
        slot: Slot {
            index: 1,
            generation: 1,
        },
    }
}

fn persist(payee: &mut Payee) {
    while payee.poll_record().is_some() {
        payee.handle_durable();
    }
}

fn voucher(tokens: u16) -> Voucher {
    Voucher {
        channel: CHANNEL,
        seq: 1,
        cumulative_amount: Amount::ZERO,
        cumulative_units: 0,
        unit_price: PRICE,
        tokens,
        root: [0; 32],
    }
}

fn first_roll(voucher: Voucher) -> PayerMessage {
    let voucher = voucher.sign(&secret());
    PayerMessage::Roll(Roll {
        voucher,
        retired_index: 0,
        retired_preimage: [0; 32],
    })
}

fn token(voucher: &Voucher, index: u16) -> Token {
    let preimage = voucher.chain(&secret()).preimage(index).unwrap();
    Token {
        channel: CHANNEL,
        seq: voucher.seq,
        index,
        preimage,
        own_bytes: 0,
    }
}

/// A payee that holds `voucher` with `index` tokens.
fn paid(voucher: Voucher, index: u16) -> Payee {
    let mut payee = Payee::new(payee_terms(10_000));
    payee.handle_message(&first_roll(voucher)).unwrap();
    for index in 1..=index {
        payee.handle_token(&token(&voucher, index)).unwrap();
    }
    persist(&mut payee);
    payee
}

#[test]
fn credit_rises_only_when_the_token_is_durable() {
    let mut payee = Payee::new(payee_terms(10_000));
    assert!(payee.handle_slot(slot(1), 1_000));
    payee.handle_message(&first_roll(voucher(8))).unwrap();
    payee.handle_token(&token(&voucher(8), 2)).unwrap();
    let limit = |payee: &Payee| payee.grants().next().unwrap().1.unwrap().limit_bytes;
    assert_eq!(limit(&payee), 1_000);
    assert!(payee.poll_record().is_some());
    assert_eq!(limit(&payee), 1_000, "polled is not written");
    assert_eq!(payee.meter().accepted, 0);
    payee.handle_durable();
    assert_eq!(limit(&payee), 1_000 + 2 * UNIT_BYTES);
    assert_eq!(payee.meter().accepted, 2);
}

#[test]
fn every_bad_promise_is_refused_and_changes_nothing() {
    let good = voucher(32);
    let at = |index| token(&good, index);
    let next = Voucher {
        seq: 2,
        cumulative_amount: Amount::from_ntop(100),
        cumulative_units: 4,
        ..voucher(8)
    };
    let roll = |voucher: Voucher, retired_index: u16| {
        let retired_preimage = good.chain(&secret()).preimage(retired_index).unwrap();
        let voucher = voucher.sign(&secret());
        PayerMessage::Roll(Roll {
            voucher,
            retired_index,
            retired_preimage,
        })
    };
    let forged = |message: PayerMessage| match message {
        PayerMessage::Roll(roll) => {
            let voucher = SignedVoucher {
                signature: Signature([7; 64]),
                ..roll.voucher
            };
            PayerMessage::Roll(Roll { voucher, ..roll })
        }
        other => other,
    };
    let wrong_retired = match roll(next, 4) {
        PayerMessage::Roll(roll) => PayerMessage::Roll(Roll {
            retired_preimage: [9; 32],
            ..roll
        }),
        other => other,
    };
    let resume = |voucher: Voucher, index: u16| {
        let preimage = voucher.chain(&secret()).preimage(index).unwrap();
        PayerMessage::Resume(Some(Promise {
            voucher: voucher.sign(&secret()),
            index,
            preimage,
        }))
    };
    let ntop = Amount::from_ntop;
    let cases = [
        (
            "another channel",
            PayerMessage::Token(Token {
                channel: ChannelId([2; 32]),
                ..at(4)
            }),
            RefusalCode::UnknownChannel,
        ),
        (
            "another voucher",
            PayerMessage::Token(Token { seq: 2, ..at(4) }),
            RefusalCode::StaleVoucher,
        ),
        (
            "past the end",
            PayerMessage::Token(Token { index: 33, ..at(4) }),
            RefusalCode::BeyondChain,
        ),
        (
            "too far",
            PayerMessage::Token(at(3 + 17)),
            RefusalCode::TooFarAhead,
        ),
        (
            "wrong preimage",
            PayerMessage::Token(Token {
                preimage: [1; 32],
                ..at(4)
            }),
            RefusalCode::WrongPreimage,
        ),
        (
            "a link of another place",
            PayerMessage::Token(Token { index: 5, ..at(4) }),
            RefusalCode::WrongPreimage,
        ),
        (
            "hello twice",
            PayerMessage::Hello {
                version: 1,
                channel: CHANNEL,
            },
            RefusalCode::OutOfOrder,
        ),
        (
            "a seq left out",
            roll(Voucher { seq: 3, ..next }, 4),
            RefusalCode::WrongTotals,
        ),
        (
            "the same seq",
            roll(Voucher { seq: 1, ..next }, 4),
            RefusalCode::WrongTotals,
        ),
        (
            "fewer units than seen",
            roll(
                Voucher {
                    cumulative_units: 2,
                    cumulative_amount: ntop(50),
                    ..next
                },
                2,
            ),
            RefusalCode::WrongTotals,
        ),
        (
            "more units than money",
            roll(
                Voucher {
                    cumulative_units: 5,
                    ..next
                },
                4,
            ),
            RefusalCode::WrongTotals,
        ),
        (
            "less money than units",
            roll(
                Voucher {
                    cumulative_amount: ntop(99),
                    ..next
                },
                4,
            ),
            RefusalCode::WrongTotals,
        ),
        (
            "cheaper",
            roll(
                Voucher {
                    unit_price: ntop(24),
                    ..next
                },
                4,
            ),
            RefusalCode::PriceTooLow,
        ),
        (
            "beyond the allocation",
            roll(
                Voucher {
                    unit_price: ntop(1_238),
                    ..next
                },
                4,
            ),
            RefusalCode::BeyondAllocation,
        ),
        (
            "no proof of the old chain",
            wrong_retired,
            RefusalCode::WrongPreimage,
        ),
        ("forged", forged(roll(next, 4)), RefusalCode::WrongSignature),
    ];
    for (name, message, refusal) in cases {
        let mut payee = paid(good, 3);
        assert_eq!(payee.handle_message(&message), Err(refusal), "{name}");
        assert!(payee.is_durable(), "{name}: refused, so nothing to write");
        assert_eq!(payee.meter().accepted, 3, "{name}");
    }
    let mut payee = paid(good, 3);
    // Every other voucher is left to the roll that proves the chain before it, also one that
    // promises more in the end but begins with less.
    let back_loaded = Voucher {
        cumulative_units: 3,
        unit_price: ntop(100),
        tokens: 1,
        ..next
    };
    let back_loaded = Voucher {
        cumulative_amount: ntop(0),
        ..back_loaded
    };
    payee.handle_message(&resume(back_loaded, 1)).unwrap();
    payee.handle_message(&resume(next, 0)).unwrap();
    assert!(payee.is_durable(), "nothing was taken");
    payee.handle_message(&resume(good, 4)).unwrap();
    assert!(
        !payee.is_durable(),
        "further tokens of the same voucher are"
    );
    payee.handle_message(&roll(next, 4)).unwrap();
    payee.handle_message(&roll(next, 4)).unwrap();
    persist(&mut payee);
    assert_eq!(payee.meter().accepted, 4);
}

#[test]
fn units_without_their_money_are_never_credited() {
    let ntop = Amount::from_ntop;
    let cases = [
        ("too cheap all along", 1_000, 1_000, 25, 8, 0, false),
        ("back-loaded on one token", 0, 10, 275, 1, 1, false),
        ("back-loaded by one nTOP", 249, 10, 26, 1, 1, false),
        (
            "paid, but nothing of it could be claimed",
            250,
            10,
            25,
            8,
            8,
            false,
        ),
        (
            "paid, all in one unit that is never begun",
            250,
            10,
            25,
            1,
            0,
            false,
        ),
        ("a first voucher", 0, 0, 25, 8, 8, true),
        (
            "a first voucher with money for no unit",
            1,
            0,
            25,
            8,
            8,
            false,
        ),
    ];
    for (name, amount, units, price, tokens, index, taken) in cases {
        let mut payee = Payee::new(payee_terms(100_000));
        let voucher = Voucher {
            seq: 2,
            cumulative_units: units,
            cumulative_amount: ntop(amount),
            unit_price: ntop(price),
            ..voucher(tokens)
        };
        let promise = Promise {
            voucher: voucher.sign(&secret()),
            index,
            preimage: voucher.chain(&secret()).preimage(index).unwrap(),
        };
        let result = payee.handle_message(&PayerMessage::Resume(Some(promise)));
        persist(&mut payee);
        assert_eq!(result.is_ok(), taken, "{name}");
        assert_eq!(payee.meter().accepted > 0, taken, "{name}");
        // Whatever was credited can be claimed, unit by unit, as it is used.
        let accepted = payee.meter().accepted;
        payee.handle_slot(slot(1), 0);
        for owed in 1..=accepted {
            payee.handle_usage(slot(1), owed * UNIT_BYTES);
            persist(&mut payee);
            assert_eq!(payee.claim().unwrap().units(), Some(owed), "{name}");
        }
    }
}

#[test]
fn claim_and_resume_rest_on_durable_promises() {
    let mut payee = paid(voucher(8), 2);
    payee.handle_slot(slot(1), 0);
    payee.handle_usage(slot(1), 5 * UNIT_BYTES);
    persist(&mut payee);
    payee.handle_token(&token(&voucher(8), 5)).unwrap();
    assert_eq!(payee.claim().unwrap().units(), Some(2));
    assert_eq!(payee.promise().unwrap().index, 2);
    persist(&mut payee);
    assert_eq!(payee.claim().unwrap().units(), Some(5));
    assert_eq!(payee.promise().unwrap().index, 5);
}

#[test]
fn a_restart_gives_no_credit_before_the_chain_is_heard() {
    let mut payee = paid(voucher(8), 2);
    payee.handle_slot(slot(1), 0);
    let record = payee.poll_record().unwrap();
    let mut payee = Payee::from_record(payee_terms(10_000), &record).unwrap();
    assert!(payee.grants().all(|(_, grant)| grant.is_none()));
    payee.handle_frozen(false);
    assert!(payee.grants().all(|(_, grant)| grant.is_some()));
}

#[test]
fn a_finished_or_frozen_channel_takes_nothing_and_gives_no_credit() {
    let mut payee = paid(voucher(8), 2);
    assert!(payee.handle_slot(slot(1), 0));
    payee.handle_frozen(true);
    assert_eq!(
        payee.handle_token(&token(&voucher(8), 3)),
        Err(RefusalCode::Frozen)
    );
    assert!(payee.grants().all(|(_, grant)| grant.is_none()));
    payee.handle_frozen(false);
    assert_eq!(payee.handle_token(&token(&voucher(8), 3)), Ok(()));
    payee.handle_finish();
    assert_eq!(
        payee.handle_token(&token(&voucher(8), 4)),
        Err(RefusalCode::Finished)
    );
    persist(&mut payee);
    assert!(payee.grants().all(|(_, grant)| grant.is_none()));
    payee.handle_frozen(false);
    assert_eq!(payee.state(), PayeeState::Finished);
}

#[test]
fn the_claim_is_exactly_what_is_owed_even_when_more_is_paid() {
    let mut payee = paid(voucher(8), 5);
    payee.handle_slot(slot(1), 7);
    assert_eq!(payee.claim(), None, "nothing used, nothing claimed");
    payee.handle_usage(slot(1), 7 + 2 * UNIT_BYTES + 1);
    assert_eq!(payee.claim(), None, "not durable yet");
    persist(&mut payee);
    let claim = payee.claim().unwrap();
    assert_eq!(claim.units(), Some(3));
    assert_eq!(claim.redeemable(), Some(Amount::from_ntop(75)));
    payee.handle_usage(slot(1), 7 + 100 * UNIT_BYTES);
    persist(&mut payee);
    assert_eq!(
        payee.claim().unwrap().units(),
        Some(5),
        "and never more than is paid"
    );
    assert_eq!(payee.unpaid_bytes(), 95 * UNIT_BYTES);
}

#[test]
fn a_new_slot_gets_credit_only_when_the_old_one_has_had_its_last_word() {
    let mut payee = paid(voucher(8), 4);
    payee.handle_slot(slot(1), 0);
    payee.handle_usage(slot(1), UNIT_BYTES);
    payee.handle_slot(slot(2), 0);
    persist(&mut payee);
    assert!(payee.grants().all(|(_, grant)| grant.is_none()));
    payee.handle_slot_over(slot(1), UNIT_BYTES + 10);
    persist(&mut payee);
    let grants: Vec<_> = payee.grants().collect();
    assert_eq!(grants.len(), 1);
    assert_eq!(grants[0].0, slot(2));
    assert_eq!(grants[0].1.unwrap().limit_bytes, 3 * UNIT_BYTES - 10);
    payee.handle_slot_forgotten(slot(1));
    payee.handle_usage(slot(1), 1 << 40);
    payee.handle_slot(slot(1), 0);
    payee.handle_usage(slot(1), 1 << 40);
    assert_eq!(payee.channel_bytes(), UNIT_BYTES + 10);
}

#[test]
fn the_payer_pays_no_more_than_it_has_seen_itself() {
    let mut payer = Payer::new(secret(), payer_terms(100_000), None);
    payer.hello();
    payer.handle_message(&PayeeMessage::Offer(offer())).unwrap();
    payer.handle_message(&PayeeMessage::Resume(None)).unwrap();
    let meter = topnet_channel::Meter {
        owed: 1_000,
        ..Default::default()
    };
    payer.handle_message(&PayeeMessage::Meter(meter)).unwrap();
    payer.handle_own_bytes(3 * UNIT_BYTES);
    while let Some(unsaved) = payer.poll_send() {
        let _ = unsaved.saved().release();
    }
    assert_eq!(payer.status().released, 3 + 4);
}

/// A payer that was welcomed and hears that `owed` units are, which it has seen as well.
fn welcomed(last: Option<topnet_channel::Promise>, owed: u64) -> Payer {
    let mut payer = Payer::new(secret(), payer_terms(100_000), last);
    payer.hello();
    payer.handle_message(&PayeeMessage::Offer(offer())).unwrap();
    payer.handle_message(&PayeeMessage::Resume(last)).unwrap();
    let meter = topnet_channel::Meter {
        owed,
        ..Default::default()
    };
    payer.handle_message(&PayeeMessage::Meter(meter)).unwrap();
    payer.handle_own_bytes(owed * UNIT_BYTES);
    payer
}

fn send_all(payer: &mut Payer) -> usize {
    let sent = std::iter::from_fn(|| payer.poll_send().map(|unsaved| unsaved.saved().release()));
    sent.count()
}

#[test]
fn the_payer_goes_exactly_as_far_as_its_limits_permit() {
    for owed in 0..60 {
        let mut free = welcomed(None, owed);
        send_all(&mut free);
        let due = free.status().due;
        assert_eq!(free.status().released, due);
        for permitted in 0..due + 3 {
            let mut payer = welcomed(None, owed);
            payer.handle_permitted(permitted);
            send_all(&mut payer);
            let status = payer.status();
            assert_eq!(status.released, permitted.min(due), "{owed} {permitted}");
            assert_eq!(status.due, due, "what would be paid stays known");
            // Less is permitted now: nothing is taken back, and nothing is said.
            payer.handle_permitted(permitted / 2);
            assert_eq!(send_all(&mut payer), 0);
            assert_eq!(payer.status().released, status.released);
            payer.handle_permitted(permitted + 1);
            send_all(&mut payer);
            assert_eq!(payer.status().released, due.min(permitted + 1));
        }
    }
}

#[test]
fn a_restarted_payer_leads_by_what_it_releases_and_not_by_what_it_remembers() {
    let mut payer = welcomed(None, 20);
    send_all(&mut payer);
    let lead = payer.status().lead_max;
    assert_eq!(lead, payer.status().released - 20);
    let mut restarted = Payer::new(secret(), payer_terms(100_000), payer.promise());
    restarted.hello();
    let offer = PayeeMessage::Offer(offer());
    restarted.handle_message(&offer).unwrap();
    // The payee has the voucher and lost the token; it has not said yet what is owed.
    let held = payer.promise().map(|promise| topnet_channel::Promise {
        index: 0,
        preimage: promise.voucher.voucher.root,
        ..promise
    });
    restarted
        .handle_message(&PayeeMessage::Resume(held))
        .unwrap();
    assert!(send_all(&mut restarted) > 0, "the token is said again");
    assert_eq!(restarted.status().lead_max, 0);
    assert_eq!(restarted.status().released, payer.status().released);
}

/// Vouchers are short when the allocation is nearly used up. Two of them on a link that breaks
/// would leave the payee with a chain from which no roll leads to the newest.
#[test]
fn no_voucher_follows_one_that_the_payee_may_not_have() {
    let mut payee = Payee::new(payee_terms(2 * 25));
    let mut payer = Payer::new(secret(), payer_terms(2 * 25), None);
    let own_bytes = 100 * UNIT_BYTES;
    let talk = |payer: &mut Payer, payee: &mut Payee| {
        payer.handle_own_bytes(own_bytes);
        for message in &payer.hello()[1..] {
            payee.handle_message(message).unwrap();
        }
        payer.handle_message(&PayeeMessage::Offer(offer())).unwrap();
        let held = PayeeMessage::Resume(payee.promise());
        payer.handle_message(&held).unwrap();
        for _ in 0..10 {
            let owed = topnet_channel::Meter {
                owed: 100,
                ..payee.meter()
            };
            payer.handle_message(&PayeeMessage::Meter(owed)).unwrap();
            while let Some(unsaved) = payer.poll_send() {
                payee.handle_message(&unsaved.saved().release()).unwrap();
            }
            persist(payee);
        }
    };
    talk(&mut payer, &mut payee);
    assert_eq!(payee.meter().accepted, 2);
    let mut lost = Vec::new();
    for units in 3..6 {
        payer.handle_allocation(Amount::from_ntop(25 * units));
        lost.extend(std::iter::from_fn(|| payer.poll_send()).map(|unsaved| {
            // The link is broken, which the payer has not noticed.
            unsaved.saved().release()
        }));
    }
    let rolls = lost
        .iter()
        .filter(|message| matches!(message, PayerMessage::Roll(_)));
    assert_eq!(rolls.count(), 1);
    payee.handle_terms(Amount::from_ntop(25 * 5), offer());
    talk(&mut payer, &mut payee);
    assert_eq!(payee.meter().accepted, 5);
}

/// The payee never got the voucher, and asks more by now: the payer signs another in its place.
#[test]
fn a_voucher_that_was_lost_before_the_price_rose_is_signed_anew() {
    let dearer = Offer {
        unit_price: Amount::from_ntop(26),
        ..offer()
    };
    let greet = |payer: &mut Payer, payee: &mut Payee| {
        let [_, resume] = payer.hello();
        payee.handle_message(&resume).unwrap();
        let offer = PayeeMessage::Offer(payee.offer());
        payer.handle_message(&offer).unwrap();
        let held = PayeeMessage::Resume(payee.promise());
        payer.handle_message(&held).unwrap();
    };
    for first_units in [0, 2] {
        let terms = PayerTerms {
            unit_price_max: dearer.unit_price,
            ..payer_terms(25 * first_units)
        };
        let mut payer = Payer::new(secret(), terms, None);
        let mut payee = Payee::new(payee_terms(25 * first_units));
        let meter = topnet_channel::Meter {
            owed: 100,
            accepted: first_units,
            ..Default::default()
        };
        payer.handle_own_bytes(100 * UNIT_BYTES);
        payer.handle_message(&PayeeMessage::Meter(meter)).unwrap();
        greet(&mut payer, &mut payee);
        while let Some(unsaved) = payer.poll_send() {
            payee.handle_message(&unsaved.saved().release()).unwrap();
        }
        persist(&mut payee);
        payer.handle_allocation(Amount::from_ntop(10_000));
        while let Some(unsaved) = payer.poll_send() {
            let _ = unsaved.saved().release();
        }
        assert!(payer.status().released > first_units);

        payee.handle_terms(Amount::from_ntop(10_000), dearer);
        greet(&mut payer, &mut payee);
        while let Some(unsaved) = payer.poll_send() {
            payee.handle_message(&unsaved.saved().release()).unwrap();
        }
        persist(&mut payee);
        let accepted = payee.meter().accepted;
        assert!(accepted > 100, "{accepted}");
        assert_eq!(
            payer.status().promised.ntop(),
            25 * first_units + 26 * (accepted - first_units)
        );
    }
}

#[test]
fn the_payer_stops_at_a_price_a_version_or_a_promise_that_is_not_its_own() {
    let fresh = || Payer::new(secret(), payer_terms(100_000), None);
    let dear = Offer {
        unit_price: Amount::from_ntop(26),
        ..offer()
    };
    let fault = fresh()
        .handle_message(&PayeeMessage::Offer(dear))
        .unwrap_err();
    assert!(matches!(fault, PayerFault::Price { .. }));
    let fault = fresh().handle_message(&PayeeMessage::Offer(Offer {
        version: 9,
        ..offer()
    }));
    assert_eq!(fault, Err(PayerFault::Version { theirs: 9 }));
    let other = SecretKey::from_seed([6; 32]).unwrap();
    let foreign = voucher(8).sign(&other);
    let promise = Promise {
        voucher: foreign,
        index: 0,
        preimage: foreign.voucher.root,
    };
    let fault = fresh().handle_message(&PayeeMessage::Resume(Some(promise)));
    assert_eq!(fault, Err(PayerFault::ForeignPromise));
}

/// xorshift64*: the same seed gives the same world on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }
}

/// A payer and a payee with their disks, a link that breaks, and a data plane that forwards
/// whatever the credit allows.
struct World {
    random: Random,
    payer: Payer,
    payee: Payee,
    payer_disk: Option<PayerRecord>,
    payee_disk: Option<Vec<u8>>,
    to_payee: Vec<PayerMessage>,
    to_payer: Vec<PayeeMessage>,
    usage: u64,
    boot: u8,
    earlier: u64,
    allocation: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(2).wrapping_add(1));
        let allocation = 25 * (50 + random.below(1_000));
        Self {
            random,
            payer: Payer::new(secret(), payer_terms(allocation), None),
            payee: Payee::new(payee_terms(allocation)),
            payer_disk: None,
            payee_disk: None,
            to_payee: Vec::new(),
            to_payer: Vec::new(),
            usage: 0,
            boot: 1,
            earlier: 0,
            allocation,
        }
    }

    fn used(&self) -> u64 {
        self.earlier + self.usage
    }

    fn reconnect(&mut self) {
        self.to_payee = self.payer.hello().to_vec();
        self.to_payer.clear();
    }

    fn payer_crash(&mut self) {
        let last = self.payer_disk.and_then(|record| record.promise);
        self.payer = Payer::new(secret(), payer_terms(self.allocation), last);
        self.reconnect();
    }

    fn payee_crash(&mut self) {
        let terms = payee_terms(self.allocation);
        self.payee = match &self.payee_disk {
            Some(record) => Payee::from_record(terms, record).unwrap(),
            None => Payee::new(terms),
        };
        self.payee.handle_frozen(false);
        self.reconnect();
    }

    /// The data plane dies; metering reads its last totals from the memory that it still maps,
    /// journals them and meets the next one. (If metering died too before that, what was not
    /// journalled would be the provider's loss, by design.)
    fn dataplane_restart(&mut self) {
        self.payee.handle_slot(slot(self.boot), 0);
        self.payee.handle_slot_over(slot(self.boot), self.usage);
        while let Some(record) = self.payee.poll_record() {
            self.payee_disk = Some(record);
            self.payee.handle_durable();
        }
        self.earlier += self.usage;
        self.usage = 0;
        self.boot += 1;
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..3 => self.forward(),
            3..5 => self.payee_reads(),
            5..7 => self.payer_reads(),
            7..9 => {
                self.payer.handle_own_bytes(self.used());
                if let Some(unsaved) = self.payer.poll_send() {
                    self.payer_disk = Some(PayerRecord::from_bytes(unsaved.record()).unwrap());
                    self.to_payee.push(unsaved.saved().release());
                }
            }
            9 => {
                self.payee.handle_slot(slot(self.boot), 0);
                self.payee.handle_usage(slot(self.boot), self.usage);
                if let Some(record) = self.payee.poll_record() {
                    // A crash may fall between the write and the word of it.
                    self.payee_disk = Some(record);
                    if self.random.below(20) > 0 {
                        self.payee.handle_durable();
                    } else {
                        self.payee_crash();
                    }
                }
                self.to_payer.push(PayeeMessage::Meter(self.payee.meter()));
            }
            10 => match self.random.below(60) {
                0 => self.payer_crash(),
                1 => self.payee_crash(),
                2 => self.reconnect(),
                3 if self.boot < 50 => self.dataplane_restart(),
                _ => {}
            },
            _ => {}
        }
    }

    fn forward(&mut self) {
        let wanted = self.random.below(3 * UNIT_BYTES);
        let grant = self
            .payee
            .grants()
            .find(|(slot_use, _)| *slot_use == slot(self.boot));
        if let Some((_, Some(grant))) = grant {
            let room = grant.limit_bytes.saturating_sub(self.usage);
            self.usage += wanted.min(room);
        }
    }

    fn payee_reads(&mut self) {
        if self.to_payee.is_empty() {
            return;
        }
        match self.to_payee.remove(0) {
            PayerMessage::Hello { .. } => {
                self.to_payer.push(PayeeMessage::Offer(self.payee.offer()));
            }
            message => {
                if let Err(code) = self.payee.handle_message(&message) {
                    panic!("an honest payer was refused: {code:?} for {message:?}");
                }
                if matches!(message, PayerMessage::Resume(_)) {
                    self.to_payer
                        .push(PayeeMessage::Resume(self.payee.promise()));
                }
            }
        }
    }

    fn payer_reads(&mut self) {
        if !self.to_payer.is_empty() {
            let message = self.to_payer.remove(0);
            self.payer.handle_message(&message).unwrap();
        }
    }

    fn check(&self) {
        let meter = self.payee.meter();
        let status = self.payer.status();
        let owed = self.used().div_ceil(UNIT_BYTES);
        assert!(
            owed <= meter.accepted,
            "forwarded {owed} of {} paid units",
            meter.accepted
        );
        if let Some(claim) = self.payee.claim() {
            let amount = claim.redeemable().unwrap().ntop();
            assert!(amount <= 25 * owed && amount <= self.allocation);
            assert_eq!(amount, 25 * claim.units().unwrap());
        }
        assert!(status.promised.ntop() <= self.allocation);
    }

    /// Everybody is back and talks until nothing is left to say.
    fn settle(&mut self) -> Claim {
        self.reconnect();
        for _ in 0..40 {
            while !self.to_payee.is_empty() {
                self.payee_reads();
            }
            self.payee.handle_slot(slot(self.boot), 0);
            self.payee.handle_usage(slot(self.boot), self.usage);
            persist(&mut self.payee);
            self.to_payer.push(PayeeMessage::Meter(self.payee.meter()));
            while !self.to_payer.is_empty() {
                self.payer_reads();
            }
            self.payer.handle_own_bytes(self.used());
            while let Some(unsaved) = self.payer.poll_send() {
                self.to_payee.push(unsaved.saved().release());
            }
        }
        self.payee.claim().unwrap()
    }
}

#[test]
fn owed_is_redeemed_to_the_unit_in_every_seeded_world() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        world.reconnect();
        for _ in 0..2_000 {
            world.step();
            world.check();
        }
        if world.used() == 0 {
            continue;
        }
        let claim = world.settle();
        let owed = world.used().div_ceil(UNIT_BYTES);
        let meter = world.payee.meter();
        let status = world.payer.status();
        assert_eq!(meter.owed, owed, "seed {seed}");
        assert_eq!(claim.units(), Some(owed), "seed {seed}");
        assert!(meter.accepted <= status.released, "seed {seed}");
        assert!(status.released <= owed + WINDOW, "seed {seed}");
        assert!(claim.is_signed_by(&secret().public_key()));
    }
}

#[test]
fn a_record_is_read_back_as_it_was_written_and_damage_is_named() {
    let mut payee = paid(voucher(8), 5);
    payee.handle_slot(slot(1), 7);
    payee.handle_usage(slot(1), 1_000);
    let record = payee.poll_record().unwrap();
    payee.handle_durable();
    let again = Payee::from_record(payee_terms(10_000), &record).unwrap();
    assert_eq!(again.meter(), payee.meter());
    assert_eq!(again.promise(), payee.promise());
    assert_eq!(again.claim(), payee.claim());
    for end in 0..record.len() {
        assert!(
            Payee::from_record(payee_terms(10_000), &record[..end]).is_err(),
            "{end}"
        );
    }
    let mut newer = record.clone();
    newer[0] = 9;
    let error = Payee::from_record(payee_terms(10_000), &newer).unwrap_err();
    assert!(error.to_string().contains('9'), "{error}");
}
