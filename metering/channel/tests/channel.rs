//! Both ends of a channel against each other: the money that must come out, the promises that
//! must be refused, and a seeded world with loss, reconnection and crashes on both sides.
#![allow(clippy::unwrap_used)]

#[path = "channel/payer.rs"]
mod payer;
#[path = "channel/worlds.rs"]
mod worlds;

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
