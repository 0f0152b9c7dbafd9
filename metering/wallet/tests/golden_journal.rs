//! The bytes of a wallet's journal, against `golden/journal.txt`: its beginning and a record of
//! each kind. They are on disks and say what was promised: a line changes only together with the
//! version in the first one.
#![allow(clippy::unwrap_used)]

use std::fs;

use topnet_account::{Amount, ChannelId};
use topnet_channel::{Meter, Offer, PROTOCOL_VERSION, PayeeMessage, Payer, PayerTerms, SecretKey};
use topnet_unit::UNIT_BYTES;
use topnet_wallet::{Counted, Journal, OwnCount, Reading, Readings};

const CHANNEL: ChannelId = ChannelId([0xc1; 32]);
const PRICE: Amount = Amount::from_ntop(25);

fn payer() -> Payer {
    let terms = PayerTerms {
        channel: CHANNEL,
        allocation: Amount::from_ntop(1_000_000),
        unit_price_max: PRICE,
        window_max: 8,
    };
    let secret = SecretKey::from_seed([0x5e; 32]).unwrap();
    let mut payer = Payer::new(secret, terms, None);
    let _ = payer.hello();
    let offer = Offer {
        version: PROTOCOL_VERSION,
        unit_price: PRICE,
        epsilon_ppm: 5_000,
        window_max: 64,
    };
    payer.handle_message(&PayeeMessage::Offer(offer)).unwrap();
    payer.handle_message(&PayeeMessage::Resume(None)).unwrap();
    payer.handle_own_bytes(2 * UNIT_BYTES);
    let meter = Meter {
        owed: 2,
        ..Meter::default()
    };
    payer.handle_message(&PayeeMessage::Meter(meter)).unwrap();
    payer
}

/// Two counters that were made again since, so that no two of its numbers are the same.
fn own_count() -> OwnCount {
    let reading = |incarnation: u32, bytes: u64| Reading {
        counted: Counted {
            up_bytes: bytes,
            down_bytes: 16 * bytes,
        },
        incarnation,
    };
    let mut own = OwnCount::default();
    for (incarnation, bytes) in [(5, 0), (5, 0x0102), (6, 0x0300)] {
        own.take(Readings {
            interface: Some(reading(incarnation, bytes)),
            transfer: Some(reading(incarnation + 0x10, bytes + 0x40_000)),
        })
        .unwrap();
    }
    own
}

#[test]
fn bytes_are_what_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(format!("{CHANNEL}.journal"));
    let mut lines = String::new();
    let mut known = 0;
    let mut note = |name: &str| {
        let bytes = fs::read(&path).unwrap();
        let new: String = bytes[known..].iter().map(|b| format!("{b:02x}")).collect();
        known = bytes.len();
        lines += &format!("{name} {new}\n");
    };
    let mut journal = Journal::open(directory.path(), CHANNEL).unwrap();
    note("beginning");
    let mut payer = payer();
    for name in ["promise.voucher", "promise.token"] {
        let unsaved = payer.poll_send().unwrap();
        let _ = journal.save(unsaved, own_count()).unwrap().release();
        note(name);
    }
    journal.save_count(own_count()).unwrap();
    note("count");
    let remembered = journal.remembered().clone();
    drop(journal);
    assert_eq!(lines, include_str!("golden/journal.txt"), "\n{lines}");

    let journal = Journal::open(directory.path(), CHANNEL).unwrap();
    assert_eq!(*journal.remembered(), remembered);
    assert_eq!(journal.remembered().own, own_count());
    let record = journal.remembered().payer().unwrap();
    assert_eq!(record.promise, payer.promise());
}
