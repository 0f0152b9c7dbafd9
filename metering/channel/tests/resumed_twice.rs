//! A payee that says twice what it holds, in one connection: each time the payer starts anew.
#![allow(clippy::unwrap_used)]

use topnet_account::{Amount, ChannelId};
use topnet_channel::{
    Offer, PROTOCOL_VERSION, PayeeMessage, Payer, PayerMessage, PayerRecord, PayerTerms, SecretKey,
};

fn offer(price: u64) -> PayeeMessage {
    PayeeMessage::Offer(Offer {
        version: PROTOCOL_VERSION,
        unit_price: Amount::from_ntop(price),
        epsilon_ppm: 0,
        window_max: 8,
    })
}

fn payer(last: Option<&[u8]>) -> Payer {
    let terms = PayerTerms {
        channel: ChannelId([1; 32]),
        allocation: Amount::from_ntop(10_000),
        unit_price_max: Amount::from_ntop(40),
        window_max: 8,
    };
    let secret = SecretKey::from_seed([5; 32]).unwrap();
    let last = last.map(|record| PayerRecord::from_bytes(record).unwrap());
    let mut payer = Payer::new(secret, terms, last.and_then(|record| record.promise));
    let _ = payer.hello();
    payer
}

/// Found by fuzzing: the roll that the first resume asked for left although the second, after a
/// higher offer, had given its voucher up; what was saved with it was that nothing is promised.
#[test]
fn a_roll_whose_voucher_was_given_up_never_leaves() {
    let nothing = PayeeMessage::Resume(None);
    let mut first = payer(None);
    first.handle_message(&offer(25)).unwrap();
    first.handle_message(&nothing).unwrap();
    let record = first.poll_send().unwrap().record().to_vec();

    let mut second = payer(Some(&record));
    second.handle_message(&nothing).unwrap();
    second.handle_message(&offer(30)).unwrap();
    second.handle_message(&nothing).unwrap();
    let unsaved = second.poll_send().unwrap();
    let saved = PayerRecord::from_bytes(unsaved.record()).unwrap();
    let PayerMessage::Roll(roll) = unsaved.saved().release() else {
        panic!("a voucher comes first");
    };
    assert_eq!(roll.voucher.voucher.unit_price, Amount::from_ntop(30));
    assert_eq!(saved.promise.unwrap().voucher, roll.voucher);
}
