//! What the payer does, and where it stops.

use super::*;

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
