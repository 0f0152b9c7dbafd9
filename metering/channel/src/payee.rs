//! The payee's end of one channel: what was used, what was paid, and so what may pass.
//!
//! A state machine without clock, disk or socket. Call in any order:
//!
//! * `handle_slot*`, `handle_usage` with what the data plane's tables say;
//! * [`handle_unproved`](Payee::handle_unproved) with what the payer says and, where it is a
//!   voucher, [`handle_proved`](Payee::handle_proved) when its signature has been proved;
//! * [`poll_record`](Payee::poll_record) → write → [`handle_durable`](Payee::handle_durable),
//!   one record at a time. Only what is durable shows in [`meter`](Payee::meter),
//!   [`grants`](Payee::grants) and [`claim`](Payee::claim): credit cannot rise and money cannot
//!   be claimed on the word of a record that a crash could take back.

mod taking;

use topnet_account::{Amount, ChannelId, PublicKey};
use topnet_unit::{BootId, CreditGrant, Slot, UnitCount, bytes_paid_for, units_owed};

use crate::{Claim, Meter, Offer, Promise, promises::Promises, walk_back};

pub use self::taking::{Proved, Taken, Unproved};

/// Slots of one channel whose last word is not journalled yet, at most.
pub const SLOTS_PER_CHANNEL_MAX: usize = 64;
/// What the chain and the operator fix for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayeeTerms {
    /// The channel.
    pub channel: ChannelId,
    /// Who signs its vouchers.
    pub signer: PublicKey,
    /// The most that can be redeemed.
    pub allocation: Amount,
    /// What is asked.
    pub offer: Offer,
}

/// One use of a slot in one run of a data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotUse {
    /// The run.
    pub boot: BootId,
    /// The slot.
    pub slot: Slot,
}

/// What a channel has counted in one use of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotCount {
    pub(crate) slot_use: SlotUse,
    pub(crate) base_bytes: u64,
    pub(crate) usage_bytes: u64,
    /// Nothing counts here any more.
    pub(crate) over: bool,
}

impl SlotCount {
    fn bytes(&self) -> u64 {
        // `handle_usage` keeps usage at or above the base.
        self.usage_bytes.saturating_sub(self.base_bytes)
    }
}

/// Whether a channel takes promises and gets credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayeeState {
    /// Both.
    Open,
    /// Neither, for now: the chain says that it is closing, or says nothing.
    Frozen,
    /// Neither, for good.
    Finished,
    /// Neither, for good: the counts contradict themselves, and an operator must look.
    Broken,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    channel_bytes: u64,
    owed: UnitCount,
    accepted: UnitCount,
    written_off: UnitCount,
}

/// The payee's end of one channel.
///
/// What every token touches fills the first two cache lines and no more: with ten thousand
/// channels at once a token costs one hash and two misses, where it would cost one more for each
/// field that stands elsewhere.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Payee {
    pub(crate) state: PayeeState,
    /// Something is to be written.
    dirty: bool,
    /// How many tokens beyond the last one seen are looked at.
    ahead_max: u64,
    pub(crate) promises: Promises,
    pub(crate) terms: PayeeTerms,
    pub(crate) slots: Vec<SlotCount>,
    /// Bytes of slots that are over and forgotten.
    pub(crate) forgotten_bytes: u64,
    pub(crate) written_off: UnitCount,
    /// The highest value so far; a write-off does not lower it.
    pub(crate) owed: UnitCount,
    /// Uses of slots that are over for good, newest last: a late word of one must not count again.
    forgotten: Vec<SlotUse>,
    writing: Option<Snapshot>,
    durable: Snapshot,
}

// See there.
const _: () = assert!(std::mem::offset_of!(Payee, promises) + Promises::HOT_BYTES <= 128);

/// A token may be that far ahead of the last one seen, in units: a payer's whole window was lost
/// once.
fn ahead_max(offer: &Offer) -> u64 {
    offer.window_max.saturating_mul(2)
}

/// What a record on disk says.
#[derive(Clone, Debug)]
struct Snapshot {
    totals: Totals,
    promises: Promises,
}

impl Payee {
    /// A channel that has neither used nor paid anything.
    pub fn new(terms: PayeeTerms) -> Self {
        Self {
            state: PayeeState::Open,
            dirty: true,
            ahead_max: ahead_max(&terms.offer),
            promises: Promises::none(terms.channel),
            terms,
            slots: Vec::new(),
            forgotten_bytes: 0,
            written_off: 0,
            owed: 0,
            forgotten: Vec::new(),
            writing: None,
            durable: Snapshot {
                totals: Totals::default(),
                promises: Promises::none(terms.channel),
            },
        }
    }

    /// Everything that was read from the journal is durable.
    pub(crate) fn restored(mut self) -> Self {
        self.durable = self.snapshot();
        self.dirty = false;
        self
    }

    /// The channel.
    pub fn channel(&self) -> ChannelId {
        self.terms.channel
    }

    /// Whether it takes promises and gets credit.
    pub fn state(&self) -> PayeeState {
        self.state
    }

    /// What the payer is told at hello.
    pub fn offer(&self) -> Offer {
        self.terms.offer
    }

    /// The newest durable promise, for a payer that reconnects; it proves itself.
    pub fn promise(&self) -> Option<Promise> {
        self.durable.promises.newest()
    }

    /// The chain or the operator changed the terms: a top-up, another price for vouchers to come.
    pub fn handle_terms(&mut self, allocation: Amount, offer: Offer) {
        self.terms.allocation = allocation;
        self.terms.offer = offer;
        self.ahead_max = ahead_max(&offer);
    }

    /// The chain says that the channel pays no more, or that it does again.
    pub fn handle_frozen(&mut self, frozen: bool) {
        match (self.state, frozen) {
            (PayeeState::Open, true) => self.state = PayeeState::Frozen,
            (PayeeState::Frozen, false) => self.state = PayeeState::Open,
            _ => {}
        }
    }

    /// Takes no promise and gives no credit any more. What was counted until the slots are over
    /// is still owed.
    pub fn handle_finish(&mut self) {
        if self.state != PayeeState::Broken {
            self.dirty |= self.state != PayeeState::Finished;
            self.state = PayeeState::Finished;
        }
    }

    /// A use of a slot that counts for this channel from now on; a known one changes nothing.
    /// False if there are too many: ask again when some are forgotten.
    pub fn handle_slot(&mut self, slot_use: SlotUse, base_bytes: u64) -> bool {
        let known = self.slots.iter().any(|slot| slot.slot_use == slot_use);
        if known || self.forgotten.contains(&slot_use) {
            return true;
        }
        if self.slots.len() == SLOTS_PER_CHANNEL_MAX {
            return false;
        }
        self.slots.push(SlotCount {
            slot_use,
            base_bytes,
            usage_bytes: base_bytes,
            over: false,
        });
        self.dirty = true;
        true
    }

    /// What the tables say of a slot: an absolute, cumulative total. Late or repeated ones change
    /// nothing, and so do those of a use that is not this channel's.
    pub fn handle_usage(&mut self, slot_use: SlotUse, usage_bytes: u64) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.slot_use == slot_use) else {
            return;
        };
        if slot.over || usage_bytes <= slot.usage_bytes {
            return;
        }
        slot.usage_bytes = usage_bytes;
        self.dirty = true;
        match self.checked_channel_bytes() {
            Some(bytes) => self.owed = self.owed.max(units_owed(bytes, self.written_off)),
            None => self.state = PayeeState::Broken,
        }
    }

    /// Nothing counts into the slot any more; `usage_bytes` is its last word.
    pub fn handle_slot_over(&mut self, slot_use: SlotUse, usage_bytes: u64) {
        self.handle_usage(slot_use, usage_bytes);
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.slot_use == slot_use) {
            self.dirty |= !slot.over;
            slot.over = true;
        }
    }

    /// The data plane has heard that the last word is journalled and will not name this use of
    /// the slot again.
    pub fn handle_slot_forgotten(&mut self, slot_use: SlotUse) {
        let place = self
            .slots
            .iter()
            .position(|slot| slot.slot_use == slot_use && slot.over);
        if let Some(place) = place {
            let slot = self.slots.remove(place);
            // In range: the sum over all slots was checked when the usage came.
            self.forgotten_bytes = self.forgotten_bytes.saturating_add(slot.bytes());
            if self.forgotten.len() == SLOTS_PER_CHANNEL_MAX {
                self.forgotten.remove(0);
            }
            self.forgotten.push(slot_use);
            self.dirty = true;
        }
    }

    /// Slot uses that still count or whose last word is not journalled.
    pub fn slot_uses(&self) -> impl Iterator<Item = (SlotUse, bool)> {
        self.slots.iter().map(|slot| (slot.slot_use, slot.over))
    }

    /// Forgives units, which raises the limit without a payment and lowers nothing that is owed.
    /// It takes effect when durable.
    pub fn handle_write_off(&mut self, units: UnitCount) {
        if let Some(written_off) = self.written_off.checked_add(units) {
            self.written_off = written_off;
            self.dirty = true;
        }
    }

    /// The record to write next, or `None` while one is being written or nothing has changed.
    pub fn poll_record(&mut self) -> Option<Vec<u8>> {
        if self.writing.is_some() || !self.dirty {
            return None;
        }
        self.writing = Some(self.snapshot());
        self.dirty = false;
        Some(self.to_record())
    }

    /// The record last polled is on disk.
    pub fn handle_durable(&mut self) {
        let Some(durable) = self.writing.take() else {
            return;
        };
        self.durable = durable;
        let owed = self.durable.totals.owed;
        self.promises.forget_before(owed);
        self.durable.promises.forget_before(owed);
    }

    /// True if everything that has happened is on disk.
    pub fn is_durable(&self) -> bool {
        !self.dirty && self.writing.is_none()
    }

    /// How the channel stands, as far as it is durable.
    pub fn meter(&self) -> Meter {
        let Totals {
            channel_bytes,
            owed,
            accepted,
            ..
        } = self.durable.totals;
        let credit_bytes = self.paid_bytes().saturating_sub(channel_bytes);
        Meter {
            channel_bytes,
            owed,
            accepted,
            credit_bytes,
        }
    }

    /// Billable bytes as far as they are known, durable or not.
    pub fn channel_bytes(&self) -> u64 {
        self.checked_channel_bytes().unwrap_or(u64::MAX)
    }

    /// Units begun as far as is known, durable or not.
    pub fn owed(&self) -> UnitCount {
        self.owed
    }

    /// Units forgiven, durable.
    pub fn written_off(&self) -> UnitCount {
        self.durable.totals.written_off
    }

    /// Bytes that were forwarded beyond what was paid for.
    pub fn unpaid_bytes(&self) -> u64 {
        self.channel_bytes().saturating_sub(self.paid_bytes())
    }

    /// Every slot's credit. Only one slot at a time may spend the channel's credit: a newer one
    /// gets it when all others are over, so the shares cannot overlap.
    pub fn grants(&self) -> impl Iterator<Item = (SlotUse, Option<CreditGrant>)> {
        let spender = self.spender();
        self.slots
            .iter()
            .filter(|slot| !slot.over)
            .map(move |slot| {
                let spends = spender.is_some_and(|(slot_use, _)| slot_use == slot.slot_use);
                (
                    slot.slot_use,
                    spender.filter(|_| spends).map(|(_, grant)| grant),
                )
            })
    }

    fn spender(&self) -> Option<(SlotUse, CreditGrant)> {
        if self.state != PayeeState::Open {
            return None;
        }
        let mut live = self.slots.iter().filter(|slot| !slot.over);
        let (slot, None) = (live.next()?, live.next()) else {
            return None;
        };
        let elsewhere = self.checked_channel_bytes()?.checked_sub(slot.bytes())?;
        let limit = self.paid_bytes().saturating_sub(elsewhere);
        // The first byte past what is owed begins the next unit.
        let boundary = bytes_paid_for(self.owed, self.written_off)?.saturating_sub(elsewhere);
        Some((
            slot.slot_use,
            CreditGrant {
                limit_bytes: slot.base_bytes.checked_add(limit)?,
                record_at_bytes: slot.base_bytes.checked_add(boundary)?.checked_add(1)?,
            },
        ))
    }

    /// The claim for exactly what is owed, as far as it is paid; `None` if nothing is. Rests on
    /// durable state alone.
    pub fn claim(&self) -> Option<Claim> {
        let owed = self.durable.totals.owed;
        let begins = |promise: &Promise| promise.voucher.voucher.cumulative_units;
        let promise = self
            .durable
            .promises
            .iter()
            .rfind(|promise| begins(promise) <= owed)?;
        let voucher = &promise.voucher.voucher;
        let due = owed - voucher.cumulative_units;
        let index = u16::try_from(due).map_or(promise.index, |due| due.min(promise.index));
        let preimage = walk_back(promise.preimage, &voucher.salt(), promise.index, index);
        let claim = Claim {
            voucher: promise.voucher,
            index,
            preimage,
        };
        (voucher.redeemable(index)? > Amount::ZERO).then_some(claim)
    }

    /// Bytes that durable tokens and write-offs let pass.
    pub fn paid_bytes(&self) -> u64 {
        let Totals {
            accepted,
            written_off,
            ..
        } = self.durable.totals;
        bytes_paid_for(accepted, written_off).unwrap_or(0)
    }

    fn checked_channel_bytes(&self) -> Option<u64> {
        self.slots
            .iter()
            .try_fold(self.forgotten_bytes, |sum, slot| {
                sum.checked_add(slot.bytes())
            })
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            totals: self.totals(),
            promises: self.promises.clone(),
        }
    }

    fn totals(&self) -> Totals {
        let accepted = self
            .promises
            .newest()
            .and_then(|best| best.voucher.voucher.units(best.index))
            .unwrap_or(0);
        Totals {
            channel_bytes: self.channel_bytes(),
            owed: self.owed,
            accepted,
            written_off: self.written_off,
        }
    }
}
