//! What happened to an account, and which batches a service has cut.

use std::collections::BTreeMap;

use topnet_account::{Address, Hash};
use topnet_api::{BatchView, ChainName, HistoryEntry, HistoryPlace};
use topnet_ledger::event::{Event, decode_events, encode_events};

use super::{
    BATCHES, Batch, CUTS, Entry, HISTORY, Index, IndexError, META, PAGE_MAX,
    record::{
        BatchRecord, CutRecord, batch_key, chain_prefix, cut_key, history_key, history_prefix,
        owner_key,
    },
    take::Changes,
};
use crate::describe::describe;

/// Index of what a block did by itself, behind all of its transactions.
pub(super) const BY_ITSELF: u32 = u32::MAX;
/// Entries of an account's history in one answer, at most.
const HISTORY_MAX: usize = 100;
/// A time and a transaction's id, or zeros, come before the events.
const HEAD_BYTES: usize = 8 + Hash::SIZE;

impl Index {
    /// What happened to an account and its channels on a chain, the newest first, before
    /// `before` or from the newest on, at most [`HISTORY_MAX`].
    pub(crate) fn history(
        &self,
        chain: &ChainName,
        account: &Address,
        before: Option<HistoryPlace>,
    ) -> Result<Vec<HistoryEntry>, IndexError> {
        let prefix = history_prefix(account, chain);
        let from = before.map(|place| history_key(account, chain, place));
        self.scan(HISTORY, from.as_ref().unwrap_or(&prefix), &prefix)
            .filter(|item| !matches!(item, Ok((key, _)) if Some(&**key) == from.as_deref()))
            .take(HISTORY_MAX)
            .map(|item| self.history_entry(prefix.len(), item?))
            .collect()
    }

    fn history_entry(
        &self,
        prefix: usize,
        (key, value): Entry,
    ) -> Result<HistoryEntry, IndexError> {
        let malformed = || self.unreadable(HISTORY, "a record of another shape");
        let (height, index) = key
            .get(prefix..)
            .and_then(|place| place.split_first_chunk::<8>())
            .ok_or_else(malformed)?;
        let index = index.try_into().map_err(|_| malformed())?;
        let (time_ms, rest) = value.split_first_chunk::<8>().ok_or_else(malformed)?;
        let (transaction, events) = rest.split_first_chunk::<32>().ok_or_else(malformed)?;
        let transaction = Hash(*transaction);
        let events = decode_events(events).map_err(|error| self.unreadable(HISTORY, error))?;
        Ok(HistoryEntry {
            place: HistoryPlace {
                height: !u64::from_be_bytes(*height),
                index: !u32::from_be_bytes(index),
            },
            time_ms: u64::from_be_bytes(*time_ms),
            transaction: (transaction != Hash::ZERO).then_some(transaction),
            events: events.iter().map(describe).collect(),
        })
    }

    /// Notes for every account what a transaction, or a block by itself, did to it.
    pub(super) fn note_history(
        &self,
        batch: &mut Batch<'_>,
        changes: &mut Changes,
        place: HistoryPlace,
        (transaction, events): (Option<&Hash>, &[Event]),
    ) -> Result<(), IndexError> {
        let mut by_account: BTreeMap<Address, Vec<Event>> = BTreeMap::new();
        for event in events {
            let [one, other] = self.parties(changes, event)?;
            let other = other.filter(|_| other != one);
            for account in one.into_iter().chain(other) {
                by_account.entry(account).or_default().push(event.clone());
            }
        }
        for (account, events) in by_account {
            let events = encode_events(&events);
            let mut value = Vec::with_capacity(HEAD_BYTES + events.len());
            value.extend(changes.time_ms.to_be_bytes());
            value.extend(transaction.unwrap_or(&Hash::ZERO).as_bytes());
            value.extend(events);
            let key = history_key(&account, &changes.place.chain, place);
            batch.put_bytes(HISTORY, &key, &value);
        }
        Ok(())
    }

    /// The accounts that something happened to.
    fn parties(
        &self,
        changes: &mut Changes,
        event: &Event,
    ) -> Result<[Option<Address>; 2], IndexError> {
        Ok(match event {
            Event::Transferred { from, to, .. } => [Some(*from), Some(*to)],
            Event::Funded {
                funder,
                beneficiary,
                ..
            } => [Some(*funder), Some(*beneficiary)],
            Event::Credited { beneficiary, .. } => [Some(*beneficiary), None],
            Event::Withdrawn { account, .. }
            | Event::PaidOut { account, .. }
            | Event::PayoutWaits { account, .. }
            | Event::WaitingPaid { account, .. }
            | Event::AccountRecovered { account, .. } => [Some(*account), None],
            Event::Opened { payer, payee, .. } | Event::ChannelRecovered { payer, payee, .. } => {
                [Some(*payer), Some(*payee)]
            }
            Event::ToppedUp { channel, .. }
            | Event::Claimed { channel, .. }
            | Event::Closing { channel, .. }
            | Event::Closed { channel, .. }
            | Event::Finalised { channel, .. } => {
                let known = self.known(&mut changes.channels, channel)?;
                known.map_or([None; 2], |known| [Some(known.payer), Some(known.payee)])
            }
            Event::Registered { owner, .. } => [Some(*owner), None],
            Event::OfferPublished { provider, .. } | Event::OfferRetracted { provider, .. } => {
                [Some(*provider), None]
            }
            Event::FundReturned { funder, .. } => [Some(*funder), None],
            Event::BatchCut { .. } | Event::BatchAccepted { .. } | Event::RecoveryBegun { .. } => {
                [None; 2]
            }
            Event::Dissolved { service, .. } => [self.get(META, &owner_key(service))?, None],
        })
    }

    /// Batches that a service has cut on its chain, in order from number `from` on, at most
    /// [`PAGE_MAX`].
    pub(crate) fn batches(
        &self,
        chain: &ChainName,
        service: &Hash,
        from: u64,
    ) -> Result<Vec<BatchView>, IndexError> {
        let prefix = chain_prefix(chain);
        let view = |(key, value): Entry| {
            let number = key
                .get(prefix.len()..)
                .and_then(|number| number.try_into().ok())
                .ok_or_else(|| self.unreadable(CUTS, "a key of another length"))?;
            let cut: CutRecord = self.decode(CUTS, &value)?;
            let accepted = batch_key(service, cut.block.height);
            let accepted: Option<BatchRecord> = self.get(BATCHES, &accepted)?;
            Ok(BatchView {
                number: u64::from_be_bytes(number),
                service_block: cut.block,
                payouts: cut.payouts.into(),
                total: cut.total,
                burn: cut.burn,
                main_block: accepted.map(|accepted| accepted.main_block),
            })
        };
        self.scan(CUTS, &cut_key(chain, from), &prefix)
            .take(PAGE_MAX)
            .map(|item| view(item?))
            .collect()
    }
}
