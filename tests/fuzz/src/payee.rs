//! The payee's state machine against a payer that signs whatever it likes with the right key,
//! and a world that fails between any two steps.
//!
//! What must hold: owed and accepted never fall; only what is durable shows; what is shown can be
//! redeemed, for exactly what is owed as far as it is paid, never for less than was asked for a
//! unit and never beyond the allocation; a restart knows what was shown before; a refused message
//! changes nothing, and a repeated one nothing more.

use std::{collections::BTreeMap, fmt::Debug};

use arbitrary::{Arbitrary, Unstructured};
use topnet_account::{Amount, ChannelId, Signature};
use topnet_channel::{
    Claim, Meter, Offer, PROTOCOL_VERSION, Payee, PayeeState, PayeeTerms, PayerMessage, Preimage,
    Promise, RefusalCode, Roll, SecretKey, SignedVoucher, SlotUse, Taken, Token, Unproved, Voucher,
};
use topnet_unit::{BootId, Slot, UNIT_BYTES, bytes_paid_for, units_owed};

/// A signature costs as much as a hundred other events.
const EVENTS_MAX: usize = 160;
const CHANNEL: ChannelId = ChannelId([0xc4; 32]);
/// The payer's key.
const SEED: [u8; 32] = [0x5e; 32];

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Event {
    SlotBegins {
        which: u8,
        base: Bytes,
    },
    Usage {
        which: u8,
        bytes: Bytes,
    },
    SlotOver {
        which: u8,
        bytes: Bytes,
    },
    SlotForgotten {
        which: u8,
    },
    WriteOff {
        units: u8,
    },
    WriteOffAny {
        units: u64,
    },
    Frozen(bool),
    Finish,
    TopUp {
        ntop: u16,
    },
    Price {
        ntop: u8,
    },
    Window {
        units: u8,
    },
    Token {
        of: u8,
        index: u16,
        spoil: TokenSpoil,
    },
    Roll {
        after: u8,
        retired_index: u16,
        tokens: u8,
        spoil: VoucherSpoil,
    },
    Resume {
        of: u8,
        index: u16,
    },
    ResumeSpoilt {
        of: u8,
        index: u16,
        spoil: VoucherSpoil,
    },
    Hello,
    /// Of all that follows, signatures are proved only when it is said.
    ProveLate(bool),
    Prove {
        which: u8,
    },
    Write,
    Written,
    Crash {
        written: bool,
    },
    LoseJournal,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Bytes {
    Units { units: u8, less: u8 },
    Any(u64),
}

impl Bytes {
    fn count(self) -> u64 {
        match self {
            Self::Units { units, less } => {
                (u64::from(units) * UNIT_BYTES).saturating_sub(u64::from(less))
            }
            Self::Any(bytes) => bytes,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum TokenSpoil {
    None,
    Channel,
    Seq(u8),
    Index(u16),
    Preimage,
}

/// What a lying payer says otherwise, and signs; or what it does not sign.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum VoucherSpoil {
    None,
    Channel,
    Seq(u32),
    Amount(i16),
    AmountAny(u64),
    Units(i8),
    UnitsAny(u64),
    Price(u8),
    PriceAny(u64),
    Preimage,
    Signature,
}

impl VoucherSpoil {
    fn voucher(self, mut voucher: Voucher) -> Voucher {
        let moved =
            |amount: Amount, by: i64| Amount::from_ntop(amount.ntop().saturating_add_signed(by));
        match self {
            Self::Channel => voucher.channel = ChannelId([1; 32]),
            Self::Seq(seq) => voucher.seq = seq,
            Self::Amount(by) => {
                voucher.cumulative_amount = moved(voucher.cumulative_amount, by.into());
            }
            Self::AmountAny(ntop) => voucher.cumulative_amount = Amount::from_ntop(ntop),
            Self::Units(by) => {
                voucher.cumulative_units =
                    voucher.cumulative_units.saturating_add_signed(by.into());
            }
            Self::UnitsAny(units) => voucher.cumulative_units = units,
            Self::Price(ntop) => voucher.unit_price = Amount::from_ntop(ntop.into()),
            Self::PriceAny(ntop) => voucher.unit_price = Amount::from_ntop(ntop),
            Self::None | Self::Preimage | Self::Signature => {}
        }
        voucher
    }
}

/// All that anybody outside can see.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    meter: Meter,
    claim: Option<Claim>,
    promise: Option<Promise>,
    written_off: u64,
}

impl Shown {
    fn of(payee: &Payee) -> Self {
        Self {
            meter: payee.meter(),
            claim: payee.claim(),
            promise: payee.promise(),
            written_off: payee.written_off(),
        }
    }

    fn claimed(&self) -> Amount {
        let claimed = self.claim.map(|claim| claim.redeemable().unwrap());
        claimed.unwrap_or(Amount::ZERO)
    }
}

struct World {
    secret: SecretKey,
    payee: Payee,
    terms: PayeeTerms,
    /// The least that was ever asked for a unit.
    unit_price_min: Amount,
    frozen: bool,
    /// Vouchers that the payer signed, taken or not.
    signed: Vec<SignedVoucher>,
    proves_late: bool,
    /// What somebody is still proving, or has forgotten. It may come after a crash, too.
    unproved: Vec<Unproved>,
    counts: Counts,
    /// A record, and what had been counted when it was made.
    disk: Option<(Vec<u8>, Counts)>,
    writing: Option<(Vec<u8>, Counts)>,
}

/// Events in any order.
pub(crate) fn payee(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let mut world = World::new();
    for _ in 0..EVENTS_MAX {
        if input.is_empty() {
            break;
        }
        let Ok(event) = input.arbitrary::<Event>() else {
            break;
        };
        let before = Shown::of(&world.payee);
        world.happen(event);
        if let Event::LoseJournal = event {
            // What was known is lost, and nothing is made up for it.
            assert_eq!(Shown::of(&world.payee), Shown::of(&World::new().payee));
        } else {
            world.check(event, &before);
        }
    }
}

impl World {
    fn new() -> Self {
        let secret = SecretKey::from_seed(SEED).unwrap();
        let unit_price_min = Amount::from_ntop(25);
        let terms = PayeeTerms {
            channel: CHANNEL,
            signer: secret.public_key(),
            allocation: Amount::from_ntop(10_000),
            offer: Offer {
                version: PROTOCOL_VERSION,
                unit_price: unit_price_min,
                epsilon_ppm: 5_000,
                window_max: 8,
            },
        };
        Self {
            secret,
            payee: Payee::new(terms),
            terms,
            unit_price_min,
            frozen: false,
            signed: Vec::new(),
            proves_late: false,
            unproved: Vec::new(),
            counts: Counts::default(),
            disk: None,
            writing: None,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::SlotBegins { which, base } => {
                let (slot_use, base) = (slot_use(which), base.count());
                self.payee.handle_slot(slot_use, base);
                if self.knows(slot_use) {
                    self.counts.begin(slot_use, base);
                }
            }
            Event::Usage { which, bytes } => {
                let (slot_use, bytes) = (slot_use(which), bytes.count());
                self.payee.handle_usage(slot_use, bytes);
                self.counts.use_up_to(slot_use, bytes);
            }
            Event::SlotOver { which, bytes } => {
                let (slot_use, bytes) = (slot_use(which), bytes.count());
                self.payee.handle_slot_over(slot_use, bytes);
                self.counts.use_up_to(slot_use, bytes);
                self.counts.end(slot_use);
            }
            Event::SlotForgotten { which } => {
                self.payee.handle_slot_forgotten(slot_use(which));
                if !self.knows(slot_use(which)) {
                    self.counts.forget(slot_use(which));
                }
            }
            Event::WriteOff { units } => self.write_off(units.into()),
            Event::WriteOffAny { units } => self.write_off(units),
            Event::Frozen(frozen) => {
                self.frozen = frozen;
                self.payee.handle_frozen(frozen);
            }
            Event::Finish => self.payee.handle_finish(),
            // A chain only ever raises it.
            Event::TopUp { ntop } => {
                let more = Amount::from_ntop(ntop.into());
                let allocation = self.terms.allocation.checked_add(more);
                self.terms.allocation = allocation.unwrap();
                self.tell_terms();
            }
            Event::Price { ntop } => {
                let price = Amount::from_ntop(u64::from(ntop).max(1));
                self.terms.offer.unit_price = price;
                self.unit_price_min = self.unit_price_min.min(price);
                self.tell_terms();
            }
            Event::Window { units } => {
                self.terms.offer.window_max = units.into();
                self.tell_terms();
            }
            Event::Token { of, index, spoil } => {
                if let Some(token) = self.token(of, index, spoil) {
                    self.say(PayerMessage::Token(token));
                }
            }
            Event::Roll {
                after,
                retired_index,
                tokens,
                spoil,
            } => {
                let roll = self.roll(after, retired_index, tokens, spoil);
                self.say(PayerMessage::Roll(roll));
            }
            Event::Resume { of, index } => {
                let promise = self.promise(of, index);
                self.say(PayerMessage::Resume(promise));
            }
            Event::ResumeSpoilt { of, index, spoil } => {
                if let Some(promise) = self.spoilt_promise(of, index, spoil) {
                    self.say(PayerMessage::Resume(Some(promise)));
                }
            }
            Event::Hello => self.say(PayerMessage::Hello {
                version: PROTOCOL_VERSION,
                channel: CHANNEL,
            }),
            Event::ProveLate(late) => self.proves_late = late,
            Event::Prove { which } => self.prove(which),
            Event::Write => {
                if let Some(record) = self.payee.poll_record() {
                    assert!(self.writing.is_none(), "two records at one time");
                    self.writing = Some((record, self.counts.clone()));
                }
            }
            Event::Written => {
                self.payee.handle_durable();
                if let Some(record) = self.writing.take() {
                    self.disk = Some(record);
                }
            }
            Event::Crash { written } => self.crash(written),
            Event::LoseJournal => {
                (self.disk, self.writing) = (None, None);
                self.crash(false);
            }
        }
    }

    fn tell_terms(&mut self) {
        self.payee
            .handle_terms(self.terms.allocation, self.terms.offer);
    }

    /// Everything that is not on disk is gone; the record that was being written may be there.
    fn crash(&mut self, written: bool) {
        if let Some(record) = self.writing.take().filter(|_| written) {
            self.disk = Some(record);
        }
        let Some((record, counts)) = &self.disk else {
            self.payee = Payee::new(self.terms);
            self.counts = Counts::default();
            return;
        };
        self.payee = Payee::from_record(self.terms, record).expect("our own record");
        self.counts = counts.clone();
        assert_eq!(record_of(&self.payee), *record, "written as it was read");
        assert!(self.payee.grants().all(|(_, grant)| grant.is_none()));
        self.payee.handle_frozen(self.frozen);
    }

    fn write_off(&mut self, units: u64) {
        self.payee.handle_write_off(units);
        if let Some(written_off) = self.counts.written_off.checked_add(units) {
            self.counts.written_off = written_off;
        }
    }

    fn knows(&self, slot_use: SlotUse) -> bool {
        self.payee.slot_uses().any(|(known, _)| known == slot_use)
    }

    /// The payer says it, perhaps twice.
    fn say(&mut self, message: PayerMessage) {
        if PayerMessage::from_bytes(&message.to_bytes()) != Ok(message) {
            // No decoder lets it in.
            return;
        }
        let before = self.payee.clone();
        let taken = if self.proves_late {
            self.payee.handle_unproved(&message)
        } else {
            take(&mut self.payee, &message).map(|()| Taken::Whole)
        };
        match taken {
            Err(_) => self.check_unchanged(&before, &message),
            Ok(Taken::Unproved(unproved)) => {
                self.check_unchanged(&before, &message);
                self.unproved.push(*unproved);
            }
            Ok(Taken::Whole) => {
                let mut again = self.payee.clone();
                let _ = take(&mut again, &message);
                assert_eq!(record_of(&again), record_of(&self.payee), "{message:?}");
            }
        }
    }

    /// The signature of something that was said before is proved now.
    fn prove(&mut self, which: u8) {
        if self.unproved.is_empty() {
            return;
        }
        let which = usize::from(which) % self.unproved.len();
        // Kept, too: it can be proved twice.
        let unproved = self.unproved[which].clone();
        let before = self.payee.clone();
        let proved = unproved.clone().prove();
        if proved
            .and_then(|proved| self.payee.handle_proved(&proved))
            .is_err()
        {
            self.check_unchanged(&before, &unproved);
        }
    }

    fn check_unchanged(&self, before: &Payee, what: &dyn Debug) {
        assert_eq!(self.payee.is_durable(), before.is_durable(), "{what:?}");
        assert_eq!(record_of(&self.payee), record_of(before), "{what:?}");
    }

    fn nth_signed(&self, nth: u8) -> Option<SignedVoucher> {
        // From the newest back.
        let back = usize::from(nth) % self.signed.len().max(1);
        self.signed.iter().rev().nth(back).copied()
    }

    fn preimage(&self, voucher: &Voucher, index: u16) -> Preimage {
        voucher.chain(&self.secret).preimage(index).unwrap()
    }

    fn promise(&self, of: u8, index: u16) -> Option<Promise> {
        let voucher = self.nth_signed(of)?;
        let index = index % (voucher.voucher.tokens + 1);
        let preimage = self.preimage(&voucher.voucher, index);
        Some(Promise {
            voucher,
            index,
            preimage,
        })
    }

    fn token(&self, of: u8, index: u16, spoil: TokenSpoil) -> Option<Token> {
        let promise = self.promise(of, index)?;
        let voucher = &promise.voucher.voucher;
        let mut token = Token {
            channel: voucher.channel,
            seq: voucher.seq,
            index: promise.index,
            preimage: promise.preimage,
            own_bytes: 0,
        };
        match spoil {
            TokenSpoil::None => {}
            TokenSpoil::Channel => token.channel = ChannelId([1; 32]),
            TokenSpoil::Seq(by) => token.seq = token.seq.wrapping_add(by.into()),
            TokenSpoil::Index(index) => token.index = index,
            TokenSpoil::Preimage => token.preimage[0] ^= 1,
        }
        Some(token)
    }

    /// The voucher that follows one of those that were signed, or the first, with what the payer
    /// says otherwise.
    fn roll(&mut self, after: u8, index: u16, tokens: u8, spoil: VoucherSpoil) -> Roll {
        let old = self.promise(after, index);
        let first = Voucher {
            channel: CHANNEL,
            seq: 1,
            cumulative_amount: Amount::ZERO,
            cumulative_units: 0,
            unit_price: self.terms.offer.unit_price,
            tokens: u16::from(tokens) + 1,
            root: [0; 32],
        };
        let next = old.map_or(first, |old| {
            let voucher = &old.voucher.voucher;
            Voucher {
                seq: voucher.seq.wrapping_add(1).max(1),
                cumulative_amount: voucher.redeemable(old.index).unwrap(),
                cumulative_units: voucher.units(old.index).unwrap(),
                ..first
            }
        });
        let voucher = self.sign(spoil.voucher(next), spoil);
        let mut roll = Roll {
            voucher,
            retired_index: old.map_or(0, |old| old.index),
            retired_preimage: old.map_or([0; 32], |old| old.preimage),
        };
        if let VoucherSpoil::Preimage = spoil {
            roll.retired_preimage[0] ^= 1;
        }
        roll
    }

    fn spoilt_promise(&mut self, of: u8, index: u16, spoil: VoucherSpoil) -> Option<Promise> {
        let voucher = spoil.voucher(self.nth_signed(of)?.voucher);
        let voucher = self.sign(voucher, spoil);
        let index = index % (voucher.voucher.tokens + 1);
        let mut preimage = self.preimage(&voucher.voucher, index);
        if let VoucherSpoil::Preimage = spoil {
            preimage[0] ^= 1;
        }
        Some(Promise {
            voucher,
            index,
            preimage,
        })
    }

    /// Only what a decoder would take counts as signed: it is what can arrive.
    fn sign(&mut self, voucher: Voucher, spoil: VoucherSpoil) -> SignedVoucher {
        let mut signed = voucher.sign(&self.secret);
        if let VoucherSpoil::Signature = spoil {
            signed.signature = Signature([7; 64]);
        } else if SignedVoucher::from_bytes(&signed.to_bytes()).is_ok() {
            self.signed.push(signed);
        }
        signed
    }

    fn check(&self, event: Event, before: &Shown) {
        let payee = &self.payee;
        let now = Shown::of(payee);
        match event {
            Event::Written | Event::Crash { written: true } => {}
            _ => assert_eq!(now, *before, "{event:?} shows before it is durable"),
        }
        assert!(now.meter.owed >= before.meter.owed, "owed fell: {event:?}");
        assert!(now.meter.accepted >= before.meter.accepted, "{event:?}");
        assert!(now.meter.channel_bytes >= before.meter.channel_bytes);
        assert!(now.written_off >= before.written_off, "{event:?}");
        assert!(now.claimed() >= before.claimed(), "{event:?} lost money");
        let bytes = self.counts.bytes();
        assert_eq!(payee.channel_bytes(), bytes.unwrap_or(u64::MAX));
        if self.counts.overflowed {
            assert_eq!(payee.state(), PayeeState::Broken);
        }
        if let (Event::Written | Event::Crash { .. }, Some((_, written))) = (event, &self.disk) {
            assert_eq!(now.meter.owed, written.owed);
            assert_eq!(now.written_off, written.written_off);
        }
        self.check_claim(&now);
        self.check_grants(&now);
    }

    fn check_claim(&self, now: &Shown) {
        let paid = now.meter.owed.min(now.meter.accepted);
        // A payer may give money away, so a claim need not be for a unit.
        assert!(now.claim.is_some() || paid == 0, "{now:?}");
        if let Some(claim) = &now.claim {
            let amount = claim.redeemable().expect("a claim proves itself");
            assert!(claim.is_signed_by(&self.terms.signer));
            assert!(amount <= self.terms.allocation, "{amount}");
            assert_eq!(claim.units(), Some(paid));
            let least = self.unit_price_min.checked_mul(paid).unwrap();
            assert!(amount >= least, "{amount} for {paid} units");
        }
        if let Some(promise) = &now.promise {
            assert!(promise.voucher.is_signed_by(&self.terms.signer));
        }
    }

    fn check_grants(&self, now: &Shown) {
        let granted: Vec<_> = self
            .payee
            .grants()
            .filter_map(|(slot_use, grant)| Some((slot_use, grant?)))
            .collect();
        assert!(granted.len() <= 1, "shares of two slots overlap");
        let open = self.payee.state() == PayeeState::Open;
        assert!(open || granted.is_empty(), "{:?}", self.payee.state());
        let paid = bytes_paid_for(now.meter.accepted, now.written_off).unwrap_or(0);
        for (slot_use, grant) in granted {
            let slot = &self.counts.slots[&slot_use];
            let share = grant.limit_bytes.checked_sub(slot.base).unwrap();
            let elsewhere = self.payee.channel_bytes() - slot.bytes();
            assert!(share == 0 || share + elsewhere <= paid, "{grant:?}");
        }
    }
}

/// What must have been counted, kept apart from the payee.
#[derive(Clone, Debug, Default)]
struct Counts {
    slots: BTreeMap<SlotUse, Count>,
    forgotten_bytes: u64,
    written_off: u64,
    owed: u64,
    overflowed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    base: u64,
    usage: u64,
    over: bool,
}

impl Count {
    fn bytes(&self) -> u64 {
        self.usage - self.base
    }
}

impl Counts {
    fn begin(&mut self, slot_use: SlotUse, base: u64) {
        self.slots.entry(slot_use).or_insert(Count {
            base,
            usage: base,
            over: false,
        });
    }

    fn use_up_to(&mut self, slot_use: SlotUse, usage: u64) {
        let Some(slot) = self.slots.get_mut(&slot_use) else {
            return;
        };
        if slot.over || usage <= slot.usage {
            return;
        }
        slot.usage = usage;
        match self.bytes() {
            Some(bytes) => self.owed = self.owed.max(units_owed(bytes, self.written_off)),
            None => self.overflowed = true,
        }
    }

    fn end(&mut self, slot_use: SlotUse) {
        if let Some(slot) = self.slots.get_mut(&slot_use) {
            slot.over = true;
        }
    }

    fn forget(&mut self, slot_use: SlotUse) {
        if let Some(slot) = self.slots.remove(&slot_use) {
            self.forgotten_bytes = self.forgotten_bytes.saturating_add(slot.bytes());
        }
    }

    fn bytes(&self) -> Option<u64> {
        let mut counts = self.slots.values().map(Count::bytes);
        counts.try_fold(self.forgotten_bytes, u64::checked_add)
    }
}

fn slot_use(which: u8) -> SlotUse {
    SlotUse {
        boot: BootId([which >> 4; 16]),
        slot: Slot {
            index: 1 + u32::from(which & 3),
            generation: 1 + u32::from(which >> 2 & 3),
        },
    }
}

/// The one place where the payee is told something.
fn take(payee: &mut Payee, message: &PayerMessage) -> Result<(), RefusalCode> {
    payee.handle_message(message)
}

/// Everything that the payee would write now.
fn record_of(payee: &Payee) -> Vec<u8> {
    let mut payee = payee.clone();
    payee.handle_durable();
    // Nothing is forgiven, but there is something to write.
    payee.handle_write_off(0);
    payee.poll_record().unwrap()
}
