//! Messages and records: what decodes is the one encoding of its value, and can be worked with.

use topnet_account::{Amount, PublicKey};
use topnet_books::facts::Facts;
use topnet_channel::{
    MESSAGE_BYTES_MAX, Offer, PROTOCOL_VERSION, Payee, PayeeMessage, PayeeTerms, PayerMessage,
    PayerRecord, record_channel,
};

/// From the payer to the payee.
pub(crate) fn payer_message(bytes: &[u8]) {
    if let Ok(message) = PayerMessage::from_bytes(bytes) {
        assert_eq!(message.to_bytes(), bytes);
        assert!(bytes.len() <= MESSAGE_BYTES_MAX);
    }
}

/// From the payee to the payer.
pub(crate) fn payee_message(bytes: &[u8]) {
    if let Ok(message) = PayeeMessage::from_bytes(bytes) {
        assert_eq!(message.to_bytes(), bytes);
        assert!(bytes.len() <= MESSAGE_BYTES_MAX);
    }
}

/// What metering knows of a channel beside the payee's record.
pub(crate) fn facts(bytes: &[u8]) {
    if let Some(facts) = Facts::from_bytes(bytes) {
        assert_eq!(facts.to_bytes(), bytes);
    }
}

/// A payer's record has no encoder that is open to all; what is in it must bear being looked at.
pub(crate) fn payer_record(bytes: &[u8]) {
    if let Ok(record) = PayerRecord::from_bytes(bytes) {
        let promise = record.promise.map(|promise| {
            let voucher = promise.voucher.voucher;
            assert!(promise.index <= voucher.tokens);
            let worth = voucher.redeemable(promise.index);
            (worth.unwrap(), voucher.units(promise.index).unwrap())
        });
        assert_eq!(promise.is_some(), bytes.len() > 10);
    }
}

/// A payee's record: whatever its numbers are, the channel can be looked at, goes on, and is
/// written as it was read.
pub(crate) fn payee_record(bytes: &[u8]) {
    let Ok(channel) = record_channel(bytes) else {
        return;
    };
    let terms = PayeeTerms {
        channel,
        signer: PublicKey([7; 32]),
        allocation: Amount::from_ntop(1_000_000),
        offer: Offer {
            version: PROTOCOL_VERSION,
            unit_price: Amount::from_ntop(25),
            epsilon_ppm: 5_000,
            window_max: 64,
        },
    };
    let Ok(mut payee) = Payee::from_record(terms, bytes) else {
        return;
    };
    assert!(payee.is_durable(), "what was read is on disk");
    payee.handle_frozen(false);
    look_at(&payee);
    let uses: Vec<_> = payee.slot_uses().collect();
    for (slot_use, _) in uses {
        payee.handle_usage(slot_use, u64::MAX);
        look_at(&payee);
        payee.handle_slot_over(slot_use, u64::MAX);
        payee.handle_slot_forgotten(slot_use);
        look_at(&payee);
    }

    let mut payee = Payee::from_record(terms, bytes).unwrap();
    let written = rewrite(&mut payee);
    let mut again = Payee::from_record(terms, &written).unwrap();
    assert_eq!(rewrite(&mut again), written);
    assert_eq!(again.meter(), payee.meter());
    assert_eq!(again.claim(), payee.claim());
}

fn rewrite(payee: &mut Payee) -> Vec<u8> {
    // Nothing is forgiven, but there is something to write.
    payee.handle_write_off(0);
    payee.poll_record().unwrap()
}

fn look_at(payee: &Payee) {
    let _ = (payee.meter(), payee.promise(), payee.unpaid_bytes());
    if let Some(claim) = payee.claim() {
        assert!(claim.index <= claim.voucher.voucher.tokens);
    }
    let granted = payee.grants().filter(|(_, grant)| grant.is_some()).count();
    assert!(granted <= 1, "shares of two slots overlap");
}
