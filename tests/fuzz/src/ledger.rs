//! Transactions, events, state and outbox entries of the chains.

use topnet_account::Address;
use topnet_ledger::{
    Transaction,
    conservation::Totals,
    event::{decode_events, encode_events},
    outbox::{Batch, Fund, OutboxEntry},
    state::{Account, Channel, Heads, MainLink, PayoutQueue, PublishedOffer, Record, Service},
};

/// The first byte says what the rest is; what decodes is the one encoding of its value.
pub(crate) fn ledger(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    match kind % 12 {
        0 => transaction(bytes),
        1 => {
            if let Ok(events) = decode_events(bytes) {
                assert_eq!(encode_events(&events), bytes);
            }
        }
        2 => record::<Account>(bytes),
        3 => record::<Address>(bytes),
        4 => record::<Channel>(bytes),
        5 => record::<Heads>(bytes),
        6 => record::<MainLink>(bytes),
        7 => record::<PayoutQueue>(bytes),
        8 => record::<Service>(bytes),
        9 => record::<Totals>(bytes),
        11 => record::<PublishedOffer>(bytes),
        _ => {
            entry::<Batch>(bytes);
            entry::<Fund>(bytes);
        }
    }
}

fn transaction(bytes: &[u8]) {
    if let Ok(transaction) = Transaction::from_bytes(bytes) {
        assert_eq!(transaction.to_bytes(), bytes);
        // Looked at by every mempool, before anything is checked.
        let _ = (transaction.id(), transaction.consents());
    }
}

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
