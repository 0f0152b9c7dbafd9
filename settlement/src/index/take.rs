//! What a final block changes in the index.

use std::{collections::HashMap, sync::PoisonError};

use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{BlockRef, ChainName, HexBytes, HistoryPlace, PaidClaim};
use topnet_chain::FinalBlock;
use topnet_ledger::{
    event::{Event, decode_events},
    machine::Receipt,
    outbox::{Fund, OutboxHead},
    state::Record as _,
};

use super::{
    BATCHES, Batch, CHANNELS, CLAIMED, CLOSING, CURSOR_BLOCKS, CUTS, DAY_MS, DAYS, HEADS, Index,
    IndexError, META, OFFERS, OUTBOXES, PARTIES, PAYOUTS, StoredHead, TRANSACTIONS, heads_of,
    history::BY_ITSELF,
    record::{
        BatchRecord, ChannelEnd, ChannelRecord, CutRecord, DayRecord, TransactionRecord,
        WaitingRecord, batch_key, claimed_key, cursor_key, cut_key, day_key, heads_key, market_key,
        outbox_key, outboxes_key, owner_key, party_key, payout_key, transaction_key, waiting_key,
    },
    stored_heads,
};

/// What the index looks at in a block.
struct Seen<'a> {
    place: BlockRef,
    time_ms: u64,
    outbox: Hash,
    receipts: &'a [Receipt],
    events: &'a [u8],
}

/// What a block changes of what is kept by channel and by payee.
pub(super) struct Changes {
    pub(super) place: BlockRef,
    pub(super) time_ms: u64,
    /// When the block's day began.
    day_ms: u64,
    pub(super) channels: HashMap<ChannelId, ChannelRecord>,
    days: HashMap<Address, DayRecord>,
    /// Claims so far.
    claims: u32,
    /// Where the outboxes stand, once the block has put something in.
    outboxes: Option<Vec<OutboxHead>>,
    /// Payouts that began to wait in this block.
    waiting: HashMap<(Hash, u64), WaitingRecord>,
}

impl Index {
    /// Takes a final block in. Blocks come in order of height, one chain beside the other.
    pub(crate) fn apply(&self, chain: &ChainName, block: &FinalBlock) -> Result<(), IndexError> {
        self.take_in(&Seen {
            place: BlockRef {
                chain: chain.clone(),
                height: block.header.height(),
                hash: block.hash,
            },
            time_ms: block.header.time_ms(),
            outbox: block.header.outbox(),
            receipts: &block.receipts,
            events: &block.block_events,
        })
    }

    fn take_in(&self, block: &Seen<'_>) -> Result<(), IndexError> {
        // A channel may be in the blocks of two chains, which are followed side by side.
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let (chain, height) = (&block.place.chain, block.place.height);
        let mut batch = self.batch();
        let mut changes = Changes {
            place: block.place.clone(),
            time_ms: block.time_ms,
            day_ms: block.time_ms / DAY_MS * DAY_MS,
            channels: HashMap::new(),
            days: HashMap::new(),
            claims: 0,
            outboxes: None,
            waiting: HashMap::new(),
        };
        for (index, receipt) in (0..).zip(block.receipts) {
            let record = TransactionRecord {
                block: changes.place.clone(),
                events: HexBytes(receipt.events.clone()),
            };
            batch.put(TRANSACTIONS, &transaction_key(chain, &receipt.id), &record)?;
            let events = self.events(TRANSACTIONS, &receipt.events)?;
            for event in &events {
                self.take(&mut batch, &mut changes, &receipt.id, event)?;
            }
            let place = HistoryPlace { height, index };
            let done = (Some(&receipt.id), &events[..]);
            self.note_history(&mut batch, &mut changes, place, done)?;
        }
        let events = self.events(META, block.events)?;
        for event in &events {
            self.take(&mut batch, &mut changes, &Hash::ZERO, event)?;
        }
        let place = HistoryPlace {
            height,
            index: BY_ITSELF,
        };
        let done = (None, &events[..]);
        self.note_history(&mut batch, &mut changes, place, done)?;
        for (id, record) in changes.channels {
            batch.put(CHANNELS, id.as_ref(), &record)?;
        }
        for (payee, record) in changes.days {
            batch.put(DAYS, &day_key(&payee, changes.day_ms, chain), &record)?;
        }
        if let Some(heads) = changes.outboxes {
            let stored = stored_heads(&heads);
            for head in &heads {
                let key = heads_key(chain, &head.destination, head.next);
                if self.bytes(HEADS, &key)?.is_none() {
                    batch.put(HEADS, &key, &stored)?;
                }
            }
            batch.put(META, &outboxes_key(chain), &stored)?;
        }
        let outbox_key = outbox_key(chain, &block.outbox);
        let outbox_known = self.bytes(OUTBOXES, &outbox_key)?.is_some();
        if !outbox_known {
            batch.put(OUTBOXES, &outbox_key, &height)?;
        }
        // Most blocks say nothing; seeing some of them again after a crash costs less than
        // noting each.
        if batch.is_empty() && !height.is_multiple_of(CURSOR_BLOCKS) {
            return Ok(());
        }
        batch.put(META, &cursor_key(chain), &(height + 1))?;
        batch.write()
    }

    fn events(&self, table: &'static str, bytes: &[u8]) -> Result<Vec<Event>, IndexError> {
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        decode_events(bytes).map_err(|error| self.unreadable(table, error))
    }

    fn take(
        &self,
        batch: &mut Batch<'_>,
        changes: &mut Changes,
        transaction: &Hash,
        event: &Event,
    ) -> Result<(), IndexError> {
        match event {
            Event::Opened {
                channel,
                payer,
                payee,
                allocation,
                ..
            } => {
                // Main may have been followed past the service's death already.
                if self.known(&mut changes.channels, channel)?.is_none() {
                    self.found(batch, changes, channel, [*payer, *payee]);
                }
                let height = changes.place.height;
                if let Some(record) = self.known(&mut changes.channels, channel)? {
                    record.allocate(height, *allocation);
                }
            }
            Event::ToppedUp {
                channel,
                allocation,
                ..
            } => {
                let height = changes.place.height;
                if let Some(record) = self.known(&mut changes.channels, channel)? {
                    record.allocate(height, *allocation);
                }
            }
            Event::Claimed {
                channel,
                units,
                payout,
                paid,
                fee,
                log_root,
                ..
            } => {
                let claim = PaidClaim {
                    transaction: *transaction,
                    block: changes.place.clone(),
                    units: *units,
                    payout: *payout,
                    fee: *fee,
                    paid: *paid,
                    log_root: *log_root,
                };
                self.take_claim(batch, changes, channel, &claim)?;
            }
            Event::Closed {
                channel,
                paid,
                refund,
            }
            | Event::Finalised {
                channel,
                paid,
                refund,
                ..
            } => {
                let place = changes.place.clone();
                if let Some(record) = self.at_home(changes, channel)? {
                    batch.delete(CLOSING, &party_key(&record.payee, channel));
                    record.end = Some(ChannelEnd {
                        transaction: *transaction,
                        block: place,
                        paid: *paid,
                        refund: *refund,
                    });
                }
            }
            Event::Closing { channel, .. } => {
                if let Some(record) = self.at_home(changes, channel)? {
                    batch.put_bytes(CLOSING, &party_key(&record.payee, channel), &[]);
                }
            }
            Event::ChannelRecovered {
                channel,
                payer,
                payee,
                ..
            } => {
                if self.known(&mut changes.channels, channel)?.is_none() {
                    self.found(batch, changes, channel, [*payer, *payee]);
                }
                let home = changes.place.chain.clone();
                if let Some(record) = self.known(&mut changes.channels, channel)? {
                    record.chain = home;
                    // What its chain did after the state that counts is void.
                    record.end = None;
                }
                batch.put_bytes(CLOSING, &party_key(payee, channel), &[]);
            }
            Event::Funded {
                service,
                funder,
                beneficiary,
                amount,
                ..
            } => {
                let fund = Fund {
                    funder: *funder,
                    beneficiary: *beneficiary,
                    amount: *amount,
                };
                let lost = || self.unreadable(META, "an outbox is not known");
                let outboxes = self.outboxes(changes)?;
                let head = outboxes.iter_mut().find(|one| one.destination == *service);
                let head = head.ok_or_else(lost)?;
                *head = head.push(&fund.to_bytes()).ok_or_else(lost)?;
            }
            Event::Registered { service, owner, .. } => {
                batch.put(META, &owner_key(service), owner)?;
                self.outboxes(changes)?.push(OutboxHead::empty(*service));
            }
            Event::Dissolved { service, .. } => {
                let outboxes = self.outboxes(changes)?;
                outboxes.retain(|one| one.destination != *service);
            }
            Event::BatchAccepted {
                service,
                seq,
                height,
                ..
            } => {
                let record = BatchRecord {
                    seq: *seq,
                    main_block: changes.place.clone(),
                };
                batch.put(BATCHES, &batch_key(service, *height), &record)?;
            }
            Event::PaidOut {
                service,
                seq,
                account,
                ..
            } => {
                batch.put(PAYOUTS, &payout_key(service, account, *seq), &changes.place)?;
            }
            Event::PayoutWaits {
                service,
                seq,
                account,
                place,
                ..
            } => {
                let waiting = WaitingRecord {
                    account: *account,
                    seq: *seq,
                };
                batch.put(META, &waiting_key(service, *place), &waiting)?;
                changes.waiting.insert((*service, *place), waiting);
            }
            Event::WaitingPaid {
                service,
                place,
                rest,
                ..
            } if rest.is_zero() => {
                let key = waiting_key(service, *place);
                let waiting = match changes.waiting.remove(&(*service, *place)) {
                    Some(waiting) => Some(waiting),
                    None => self.get(META, &key)?,
                };
                if let Some(WaitingRecord { account, seq }) = waiting {
                    batch.put(PAYOUTS, &payout_key(service, &account, seq), &changes.place)?;
                }
                batch.delete(META, &key);
            }
            Event::BatchCut {
                seq,
                payouts,
                total,
                burn,
            } => {
                let record = CutRecord {
                    block: changes.place.clone(),
                    payouts: *payouts,
                    total: *total,
                    burn: *burn,
                };
                batch.put(CUTS, &cut_key(&changes.place.chain, *seq), &record)?;
            }
            Event::OfferPublished {
                provider,
                offer,
                deposit,
                ..
            } => Self::note_offer(batch, changes, *provider, offer, *deposit)?,
            Event::OfferRetracted {
                provider, service, ..
            } => batch.delete(OFFERS, &market_key(service, provider)),
            Event::WaitingPaid { .. }
            | Event::RecoveryBegun { .. }
            | Event::AccountRecovered { .. }
            | Event::FundReturned { .. }
            | Event::Transferred { .. }
            | Event::Credited { .. }
            | Event::Withdrawn { .. } => {}
        }
        Ok(())
    }

    /// Where the block's chain has its outboxes so far.
    fn outboxes<'a>(
        &self,
        changes: &'a mut Changes,
    ) -> Result<&'a mut Vec<OutboxHead>, IndexError> {
        let known = match changes.outboxes.take() {
            Some(known) => known,
            None => {
                let key = outboxes_key(&changes.place.chain);
                let stored: Vec<StoredHead> = self.get(META, &key)?.unwrap_or_default();
                heads_of(stored)
            }
        };
        Ok(changes.outboxes.insert(known))
    }

    fn take_claim(
        &self,
        batch: &mut Batch<'_>,
        changes: &mut Changes,
        channel: &ChannelId,
        claim: &PaidClaim,
    ) -> Result<(), IndexError> {
        let overflow = || self.unreadable(CHANNELS, "claims overflow");
        let Some(record) = self.known(&mut changes.channels, channel)? else {
            return Ok(());
        };
        let (payee, units_before) = (record.payee, record.units);
        record.units = units_before.max(claim.units);
        let fees = record.payee_fees.checked_add(claim.fee);
        record.payee_fees = fees.ok_or_else(overflow)?;
        let key = claimed_key(channel, claim.block.height, changes.claims);
        batch.put(CLAIMED, &key, claim)?;
        changes.claims += 1;
        if claim.payout == Amount::ZERO {
            return Ok(());
        }
        let mut day = match changes.days.get(&payee) {
            Some(day) => *day,
            None => {
                let key = day_key(&payee, changes.day_ms, &claim.block.chain);
                self.get(DAYS, &key)?.unwrap_or_default()
            }
        };
        day.claims += 1;
        day.units = day
            .units
            .saturating_add(claim.units.saturating_sub(units_before));
        day.payout = day.payout.checked_add(claim.payout).ok_or_else(overflow)?;
        day.fees = day.fees.checked_add(claim.fee).ok_or_else(overflow)?;
        changes.days.insert(payee, day);
        Ok(())
    }

    /// Takes note of a channel that was not known.
    fn found(
        &self,
        batch: &mut Batch<'_>,
        changes: &mut Changes,
        channel: &ChannelId,
        [payer, payee]: [Address; 2],
    ) {
        let record = ChannelRecord {
            chain: changes.place.chain.clone(),
            payer,
            payee,
            payee_fees: Amount::ZERO,
            units: 0,
            allocations: Vec::new(),
            end: None,
        };
        changes.channels.insert(*channel, record);
        for party in [payer, payee] {
            batch.put_bytes(PARTIES, &party_key(&party, channel), &[]);
        }
    }

    /// A channel that the block's chain has the say about.
    fn at_home<'a>(
        &self,
        changes: &'a mut Changes,
        id: &ChannelId,
    ) -> Result<Option<&'a mut ChannelRecord>, IndexError> {
        let known = self.known(&mut changes.channels, id)?;
        Ok(known.filter(|record| record.chain == changes.place.chain))
    }

    pub(super) fn known<'a>(
        &self,
        channels: &'a mut HashMap<ChannelId, ChannelRecord>,
        id: &ChannelId,
    ) -> Result<Option<&'a mut ChannelRecord>, IndexError> {
        if !channels.contains_key(id)
            && let Some(record) = self.channel(id)?
        {
            channels.insert(*id, record);
        }
        Ok(channels.get_mut(id))
    }
}

#[cfg(test)]
mod tests {
    use topnet_account::PublicKey;
    use topnet_ledger::event::encode_events;

    use super::*;

    const CHANNEL: ChannelId = ChannelId([7; 32]);
    const PAYER: Address = Address([1; 32]);
    const PAYEE: Address = Address([2; 32]);

    fn main() -> ChainName {
        ChainName::main()
    }

    fn vpn() -> ChainName {
        ChainName::vpn()
    }

    /// Takes in one block of `chain`, with one transaction.
    fn take(index: &Index, chain: ChainName, height: u64, event: Event) {
        let receipts = [Receipt {
            id: Hash([height as u8; 32]),
            events: encode_events(&[event]),
        }];
        let hash = Hash([height as u8; 32]);
        let block = Seen {
            place: BlockRef {
                chain,
                height,
                hash,
            },
            time_ms: 0,
            outbox: hash,
            receipts: &receipts,
            events: &[],
        };
        index.take_in(&block).unwrap();
    }

    fn opened() -> Event {
        Event::Opened {
            channel: CHANNEL,
            payer: PAYER,
            payee: PAYEE,
            signer: PublicKey([3; 32]),
            allocation: Amount::from_ntop(4),
            closing_fee: Amount::ZERO,
            close_window: 1,
            expiry: 1,
            fee: Amount::ZERO,
        }
    }

    fn closed() -> Event {
        Event::Closed {
            channel: CHANNEL,
            paid: Amount::from_ntop(5),
            refund: Amount::ZERO,
        }
    }

    fn recovered() -> Event {
        Event::ChannelRecovered {
            service: Hash([6; 32]),
            channel: CHANNEL,
            payer: PAYER,
            payee: PAYEE,
            signer: PublicKey([3; 32]),
            allocation: Amount::ZERO,
            paid: Amount::ZERO,
            closing_fee: Amount::ZERO,
            deadline: 9,
            fee: Amount::ZERO,
        }
    }

    #[test]
    fn an_allocation_is_backed_from_its_own_height_on() {
        let directory = tempfile::tempdir().unwrap();
        let index = Index::open(directory.path(), &Hash([9; 32])).unwrap();
        let topped_up = |ntop| Event::ToppedUp {
            channel: CHANNEL,
            amount: Amount::from_ntop(1),
            allocation: Amount::from_ntop(ntop),
            fee: Amount::ZERO,
        };
        take(&index, vpn(), 3, opened());
        take(&index, vpn(), 5, topped_up(7));
        take(&index, vpn(), 9, topped_up(8));
        let record = index.channel(&CHANNEL).unwrap().unwrap();
        let backed = [2, 3, 4, 5, 8, 9, 99].map(|height| record.allocation_at(height).ntop());
        assert_eq!(backed, [0, 4, 4, 7, 7, 8, 8]);
        // What is forgotten backs nothing.
        for height in 10..60 {
            take(&index, vpn(), height, topped_up(height));
        }
        let record = index.channel(&CHANNEL).unwrap().unwrap();
        assert_eq!(record.allocation_at(9), Amount::ZERO);
        assert_eq!(record.allocation_at(58).ntop(), 58);
    }

    /// The chains are followed side by side, and made anew in any order.
    #[test]
    fn a_recovered_channel_is_on_main_whichever_chain_is_read_first() {
        let (on_vpn, on_main) = ([opened(), closed()], [recovered()]);
        for main_first in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let index = Index::open(directory.path(), &Hash([9; 32])).unwrap();
            let read_main = || take(&index, main(), 1, on_main[0].clone());
            if main_first {
                read_main();
            }
            for (height, event) in (1..).zip(&on_vpn) {
                take(&index, vpn(), height, event.clone());
            }
            if !main_first {
                read_main();
            }
            let record = index.channel(&CHANNEL).unwrap().unwrap();
            assert_eq!((record.chain, record.end), (main(), None), "{main_first}");
            assert_eq!(index.closing_of(&PAYEE, None).unwrap(), [CHANNEL]);
            assert_eq!(index.channels_of(&PAYER, None).unwrap(), [CHANNEL]);

            take(&index, main(), 2, closed());
            let record = index.channel(&CHANNEL).unwrap().unwrap();
            assert_eq!(record.end.unwrap().block.chain, main());
            assert_eq!(index.closing_of(&PAYEE, None).unwrap(), []);
        }
    }
}
