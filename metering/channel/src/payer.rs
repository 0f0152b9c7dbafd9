//! The payer's end of one channel: pays for what it has itself seen, one hash a unit.
//!
//! A state machine without clock, disk or socket. Call:
//!
//! * [`hello`](Payer::hello) on each new connection, and send what it gives;
//! * [`handle_message`](Payer::handle_message) with what the payee says;
//! * [`handle_own_bytes`](Payer::handle_own_bytes) with what the payer itself has counted;
//! * [`poll_send`](Payer::poll_send) until it gives nothing. What it gives is [`Unsaved`]: its
//!   record must be on disk before the message inside can be had.
//!
//! What is sent, in this order of preference:
//!
//! | state | sent | if |
//! |---|---|---|
//! | no offer, or not resumed | nothing | |
//! | resumed; a roll is missing at the payee | that roll again, byte for byte | it follows what the payee showed |
//! | no voucher yet | the first voucher, which begins at zero | one unit at least is due and affordable |
//! | a voucher with tokens left | one token, as far as is due | the payee was not told as far on this connection |
//! | a voucher that is used up | the next voucher | the payee has shown that it holds this one |
//!
//! What is heard:
//!
//! | said | comes to |
//! |---|---|
//! | offer | its price holds from the next voucher on; another version, or a price beyond the owner's limit, ends paying |
//! | resume with more than is remembered | the journal was lost: what the payee shows goes on |
//! | resume with less | the payee gets the roll or the token that it lacks |
//! | resume with a promise of another key or channel | ends paying |
//! | meter | what is due, within what the payer has seen itself |
//! | refused | ends the connection; who drives the payer says whether another is made |
//!
//! Prohibited: anything before its record is on disk; a unit beyond what the payer has counted
//! and the window, beyond what the limits permit
//! ([`handle_permitted`](Payer::handle_permitted)) or beyond the allocation; a voucher that
//! follows one of which the payee may not have the roll (it could never prove the chain between);
//! tokens of a voucher of another lineage (they would pay twice); two vouchers of one sequence
//! number with one root and different totals.

use topnet_account::{Amount, ChannelId};
use topnet_unit::{UnitCount, units_owed};

use crate::{
    Meter, Offer, PROTOCOL_VERSION, PayeeMessage, PayerMessage, Promise, RefusalCode, Roll,
    SecretKey, SignedVoucher, TOKENS_PER_VOUCHER_MAX, Token, TokenChain, Voucher, walk_back,
    window_units,
};

/// Something that may leave only after `record` is on disk.
#[derive(Debug)]
#[must_use = "what is not saved is never sent"]
pub struct Unsaved<T> {
    record: Vec<u8>,
    then: T,
}

/// Something whose record is on disk.
#[derive(Debug)]
#[must_use = "it is saved and waits to be sent"]
pub struct Durable<T>(T);

impl<T> Unsaved<T> {
    /// What to write and sync.
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    /// The record is written and synced.
    pub fn saved(self) -> Durable<T> {
        Durable(self.then)
    }
}

impl<T> Durable<T> {
    /// What may leave now.
    pub fn release(self) -> T {
        self.0
    }
}

/// What the payer's owner allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayerTerms {
    /// The channel.
    pub channel: ChannelId,
    /// The most that it can pay.
    pub allocation: Amount,
    /// The most that a unit may cost.
    pub unit_price_max: Amount,
    /// The furthest ahead that the payer pays, in units.
    pub window_max: UnitCount,
}

/// Why the payer stopped paying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayerFault {
    /// The two ends were built from different releases.
    #[error(
        "the payee speaks payment protocol {theirs}, this wallet {PROTOCOL_VERSION}; update the older one"
    )]
    Version {
        /// As the payee says.
        theirs: u16,
    },
    /// The payee asks more than the owner allows.
    #[error(
        "the payee asks {asked} a unit and the wallet's limit is {limit}; raise the limit or choose another provider"
    )]
    Price {
        /// As the payee says.
        asked: Amount,
        /// As the owner says.
        limit: Amount,
    },
    /// The payee shows a promise that this key never made.
    #[error(
        "the payee holds a promise that was not made with this key; stop and keep the evidence"
    )]
    ForeignPromise,
    /// The payee refuses for a reason that no repetition mends.
    #[error("the payee refuses payment: {0:?}")]
    Refused(RefusalCode),
}

/// The payer's end of one channel.
#[derive(Debug)]
pub struct Payer {
    secret: SecretKey,
    terms: PayerTerms,
    offer: Option<Offer>,
    /// True between the payee's resume and the connection's end.
    resumed: bool,
    promise: Option<Promise>,
    chain: Option<TokenChain>,
    /// How far the payee has been told on this connection.
    sent: Option<(u32, u16)>,
    /// A roll that the payee may not have.
    unsent_roll: Option<Roll>,
    /// The voucher that the payee showed last.
    shown: Option<SignedVoucher>,
    meter: Meter,
    own_bytes: u64,
    /// Units in all that the owner's limits permit.
    permitted: UnitCount,
    lead_max: UnitCount,
}

impl Payer {
    /// The payer's end with the last promise that its journal holds.
    pub fn new(secret: SecretKey, terms: PayerTerms, last: Option<Promise>) -> Self {
        let mut payer = Self {
            secret,
            terms,
            offer: None,
            resumed: false,
            promise: None,
            chain: None,
            sent: None,
            unsent_roll: None,
            shown: None,
            meter: Meter::default(),
            own_bytes: 0,
            permitted: UnitCount::MAX,
            lead_max: 0,
        };
        if let Some(last) = last {
            payer.adopt(last);
        }
        payer
    }

    /// What to say first on a new connection.
    pub fn hello(&mut self) -> [PayerMessage; 2] {
        self.offer = None;
        self.resumed = false;
        self.sent = None;
        self.unsent_roll = None;
        let channel = self.terms.channel;
        [
            PayerMessage::Hello {
                version: PROTOCOL_VERSION,
                channel,
            },
            // Saved when it was made, so it may leave at once.
            PayerMessage::Resume(self.promise),
        ]
    }

    /// The allocation was topped up.
    pub fn handle_allocation(&mut self, allocation: Amount) {
        self.terms.allocation = allocation;
    }

    /// What the payer itself has counted at most: sent up and received down, with the tolerance
    /// on the latter. It never pays for more, whatever the payee says.
    pub fn handle_own_bytes(&mut self, own_bytes: u64) {
        self.own_bytes = self.own_bytes.max(own_bytes);
    }

    /// The most units that may be paid in all from now on, whatever was counted; nothing is
    /// taken back that was paid. Without a word, there is no such limit.
    pub fn handle_permitted(&mut self, units: UnitCount) {
        self.permitted = units;
    }

    /// Something that the payee says.
    pub fn handle_message(&mut self, message: &PayeeMessage) -> Result<(), PayerFault> {
        match message {
            PayeeMessage::Offer(offer) => self.handle_offer(offer),
            PayeeMessage::Resume(held) => self.handle_resume(*held),
            PayeeMessage::Meter(meter) => {
                self.meter = *meter;
                Ok(())
            }
            PayeeMessage::Refused(code) => Err(PayerFault::Refused(*code)),
        }
    }

    fn handle_offer(&mut self, offer: &Offer) -> Result<(), PayerFault> {
        if offer.version != PROTOCOL_VERSION {
            return Err(PayerFault::Version {
                theirs: offer.version,
            });
        }
        if offer.unit_price > self.terms.unit_price_max {
            let (asked, limit) = (offer.unit_price, self.terms.unit_price_max);
            return Err(PayerFault::Price { asked, limit });
        }
        self.offer = Some(*offer);
        Ok(())
    }

    /// The promise that the payee holds. The one that is worth more goes on: if the payee's is,
    /// this end had lost it; if ours is, the payee gets what it lacks.
    fn handle_resume(&mut self, held: Option<Promise>) -> Result<(), PayerFault> {
        if let Some(held) = held {
            let voucher = &held.voucher.voucher;
            let root = walk_back(held.preimage, &voucher.salt(), held.index, 0);
            let ours = voucher.channel == self.terms.channel
                && root == voucher.root
                && held.voucher.is_signed_by(&self.secret.public_key());
            if !ours {
                return Err(PayerFault::ForeignPromise);
            }
            if worth(&held) > self.promise.as_ref().map_or((Amount::ZERO, 0), worth) {
                self.adopt(held);
            }
        }
        self.shown = held.map(|held| held.voucher);
        // What an earlier resume on this connection asked for may be given up now.
        self.unsent_roll = None;
        if self.is_too_cheap(held.as_ref()) {
            self.go_on_from(held);
        }
        if let Some(promise) = self.promise {
            self.unsent_roll = self.missing_roll(&promise, held.as_ref());
            let same = held.filter(|held| held.voucher == promise.voucher);
            let voucher = &promise.voucher.voucher;
            self.sent = Some((voucher.seq, same.map_or(0, |held| held.index)));
        }
        self.resumed = true;
        Ok(())
    }

    /// The roll from what the payee holds to our newest voucher, if it lacks just that.
    fn missing_roll(&self, promise: &Promise, held: Option<&Promise>) -> Option<Roll> {
        let voucher = promise.voucher;
        let Some(held) = held else {
            let begins = voucher.voucher.cumulative_units == 0;
            return begins.then_some(Roll {
                voucher,
                retired_index: 0,
                retired_preimage: [0; 32],
            });
        };
        if held.voucher == voucher {
            return None;
        }
        let old = &held.voucher.voucher;
        let retired = voucher
            .voucher
            .cumulative_units
            .checked_sub(old.cumulative_units)?;
        let retired_index = u16::try_from(retired).ok()?;
        // A voucher of another lineage (the journal was lost, and the payee hid it) gets none of
        // its tokens: they would pay a second time.
        let follows = old.seq.checked_add(1) == Some(voucher.voucher.seq)
            && old.redeemable(retired_index) == Some(voucher.voucher.cumulative_amount);
        if !follows {
            return None;
        }
        let retired_preimage = old.chain(&self.secret).preimage(retired_index)?;
        Some(Roll {
            voucher,
            retired_index,
            retired_preimage,
        })
    }

    /// True if the payee lacks our newest voucher and will not take it any more, because it asks
    /// a higher price since the voucher was signed.
    fn is_too_cheap(&self, held: Option<&Promise>) -> bool {
        let (Some(promise), Some(offer)) = (self.promise, self.offer) else {
            return false;
        };
        let lacks = held.is_none_or(|held| held.voucher != promise.voucher);
        lacks && promise.voucher.voucher.unit_price < offer.unit_price
    }

    /// Leaves our newest voucher for what the payee shows, which is worth less. If it hides that
    /// it has the newest, it gains nothing: promises are cumulative, so it can redeem the one or
    /// the other, and no promise goes beyond what we have seen and the window.
    fn go_on_from(&mut self, held: Option<Promise>) {
        (self.promise, self.chain) = (None, None);
        if let Some(held) = held {
            self.adopt(held);
        }
    }

    fn adopt(&mut self, promise: Promise) {
        self.chain = Some(promise.voucher.voucher.chain(&self.secret));
        self.promise = Some(promise);
    }

    /// The next thing to save and then to send; `None` if nothing is due.
    pub fn poll_send(&mut self) -> Option<Unsaved<PayerMessage>> {
        let offer = self.offer.filter(|_| self.resumed)?;
        if let Some(roll) = self.unsent_roll.take() {
            return Some(self.unsaved(PayerMessage::Roll(roll)));
        }
        let Some(promise) = self.promise else {
            return self.roll(&offer, None);
        };
        let voucher = promise.voucher.voucher;
        let target = self.target();
        let due = target.saturating_sub(voucher.cumulative_units);
        let index = u16::try_from(due).unwrap_or(u16::MAX).min(voucher.tokens);
        let index = index.max(promise.index);
        if self.sent.is_none_or(|sent| sent < (voucher.seq, index)) {
            // Further in one step than the payee checks would be refused.
            let told = self
                .sent
                .filter(|(seq, _)| *seq == voucher.seq)
                .map_or(0, |sent| sent.1);
            let step = u16::try_from(offer.window_max.saturating_mul(2)).unwrap_or(u16::MAX);
            return self.pay(index.min(told.saturating_add(step.max(1))));
        }
        let paid = voucher
            .cumulative_units
            .saturating_add(u64::from(promise.index));
        if target > paid && self.is_held(&promise.voucher) {
            return self.roll(&offer, Some(promise));
        }
        None
    }

    /// True if the payee has shown that `voucher` is on its disk. The roll from a voucher that it
    /// lost could be made again only by who kept all vouchers since; so there is at most one that
    /// it may not have.
    fn is_held(&self, voucher: &SignedVoucher) -> bool {
        self.shown == Some(*voucher) || self.meter.accepted > voucher.voucher.cumulative_units
    }

    fn pay(&mut self, index: u16) -> Option<Unsaved<PayerMessage>> {
        let promise = self.promise.as_mut()?;
        let voucher = &promise.voucher.voucher;
        let preimage = self.chain.as_ref()?.preimage(index)?;
        if index > promise.index {
            promise.index = index;
            promise.preimage = preimage;
            // What is only said again leads by no more than it did.
            let released = voucher.cumulative_units.saturating_add(u64::from(index));
            let lead = released.saturating_sub(self.meter.owed);
            self.lead_max = self.lead_max.max(lead);
        }
        let token = Token {
            channel: voucher.channel,
            seq: voucher.seq,
            index,
            preimage,
            own_bytes: self.own_bytes,
        };
        self.sent = Some((voucher.seq, index));
        Some(self.unsaved(PayerMessage::Token(token)))
    }

    /// A new voucher over as many units as the allocation still covers; none if that is none.
    fn roll(&mut self, offer: &Offer, old: Option<Promise>) -> Option<Unsaved<PayerMessage>> {
        let (seq, amount, units) = match &old {
            None => (1, Amount::ZERO, 0),
            Some(old) => {
                let voucher = &old.voucher.voucher;
                let amount = voucher.redeemable(old.index)?;
                (
                    voucher.seq.checked_add(1)?,
                    amount,
                    voucher.units(old.index)?,
                )
            }
        };
        let left = self.terms.allocation.checked_sub(amount)?;
        let affordable = left
            .ntop()
            .checked_div(offer.unit_price.ntop())
            .unwrap_or(u64::MAX);
        let tokens = affordable.min(u64::from(TOKENS_PER_VOUCHER_MAX)) as u16;
        if tokens == 0 || (old.is_none() && self.target() == 0) {
            return None;
        }
        let voucher = Voucher {
            channel: self.terms.channel,
            seq,
            cumulative_amount: amount,
            cumulative_units: units,
            unit_price: offer.unit_price,
            tokens,
            root: [0; 32],
        };
        let voucher: SignedVoucher = voucher.sign(&self.secret);
        let (retired_index, retired_preimage) =
            old.map_or((0, [0; 32]), |old| (old.index, old.preimage));
        self.adopt(Promise {
            voucher,
            index: 0,
            preimage: voucher.voucher.root,
        });
        self.sent = Some((seq, 0));
        Some(self.unsaved(PayerMessage::Roll(Roll {
            voucher,
            retired_index,
            retired_preimage,
        })))
    }

    fn unsaved(&self, then: PayerMessage) -> Unsaved<PayerMessage> {
        Unsaved {
            record: self.to_record(),
            then,
        }
    }

    /// Units that may be paid in all.
    fn target(&self) -> UnitCount {
        self.due().min(self.permitted)
    }

    /// Units to be paid in all, limits aside: what the payee has metered, but no more than we
    /// have seen ourselves, and the window on top.
    fn due(&self) -> UnitCount {
        let seen = units_owed(self.own_bytes, 0);
        let agreed = self.meter.owed.min(seen);
        let cap = self
            .offer
            .map_or(0, |offer| offer.window_max)
            .min(self.terms.window_max);
        agreed.saturating_add(window_units(agreed, cap))
    }

    /// The newest promise.
    pub fn promise(&self) -> Option<Promise> {
        self.promise
    }

    /// How the payer stands.
    pub fn status(&self) -> PayerStatus {
        let released = self
            .promise
            .as_ref()
            .and_then(|p| p.voucher.voucher.units(p.index));
        let promised = self
            .promise
            .as_ref()
            .and_then(|p| p.voucher.voucher.redeemable(p.index));
        PayerStatus {
            due: self.due(),
            released: released.unwrap_or(0),
            promised: promised.unwrap_or(Amount::ZERO),
            own_bytes: self.own_bytes,
            meter: self.meter,
            lead_max: self.lead_max,
            resumed: self.resumed,
        }
    }
}

/// How the payer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayerStatus {
    /// Units that would be paid for in all, if the owner's limits permitted it.
    pub due: UnitCount,
    /// Units paid for, whether or not the payee has them yet.
    pub released: UnitCount,
    /// What they are worth.
    pub promised: Amount,
    /// The payer's own count, at most.
    pub own_bytes: u64,
    /// What the payee last said.
    pub meter: Meter,
    /// The furthest that the payer was ever ahead of what the payee said was owed.
    pub lead_max: UnitCount,
    /// The payee and the payer agree on the last promise.
    pub resumed: bool,
}

fn worth(promise: &Promise) -> (Amount, u32) {
    let voucher = &promise.voucher.voucher;
    (
        voucher.redeemable(promise.index).unwrap_or(Amount::ZERO),
        voucher.seq,
    )
}
