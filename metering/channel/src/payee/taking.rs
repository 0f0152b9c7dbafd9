//! How a payee takes what the payer promises.
//!
//! The order of checks is the order of their cost: shape and sequence, bounds, a few hashes, and
//! a signature last, which whoever has time for it proves apart from the payee.
//!
//! | message | holds | taken if | else |
//! |---|---|---|---|
//! | token | the newest voucher | it is that voucher's, further than the last, no further than twice the window, and hashes to the last | `StaleVoucher`, `BeyondChain`, `TooFarAhead`, `WrongPreimage`; seen before: nothing happens |
//! | roll | nothing | it begins at zero | `WrongTotals` |
//! | roll | a voucher | it is the next, retires no token fewer than were seen, and its totals follow | `WrongTotals`, `WrongPreimage`; the same voucher: nothing happens |
//! | resume | the same voucher | its token is further along the chain | `WrongPreimage` |
//! | resume | another voucher | never: the roll that follows proves the chain before it | nothing happens |
//! | resume | nothing | it begins at or before what is owed, and pays for it and not for nothing | `WrongTotals`, `PriceTooLow` |
//! | roll, resume | | price, allocation and signature are right | `PriceTooLow`, `BeyondAllocation`, `WrongSignature` |
//!
//! Prohibited: any promise while the channel is frozen, broken or finished (its claim may be
//! final, or come too late); a hello after the first (the link decides who speaks); a voucher
//! whose beginning is not owed yet where nothing is held (its credit would be given for nothing).

use topnet_account::PublicKey;

use super::{Payee, PayeeState};
use crate::{PayerMessage, Promise, RefusalCode, Roll, Token, Voucher, walk_back};

/// What became of a message that was not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "an unproved promise counts for nothing"]
pub enum Taken {
    /// It counts.
    Whole,
    /// It counts when its signature has been proved and [`Payee::handle_proved`] has heard so.
    Unproved(Box<Unproved>),
}

/// A promise in which everything is right but the signature, of which nobody knows yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproved {
    signer: PublicKey,
    message: PayerMessage,
}

/// A promise that its channel's signer has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proved {
    signer: PublicKey,
    message: PayerMessage,
}

impl Unproved {
    /// Proves the signature: some tens of microseconds, on any thread.
    pub fn prove(self) -> Result<Proved, RefusalCode> {
        let Self { signer, message } = self;
        let voucher = match &message {
            PayerMessage::Roll(roll) => roll.voucher,
            PayerMessage::Resume(Some(promise)) => promise.voucher,
            _ => return Err(RefusalCode::WrongSignature),
        };
        if voucher.is_signed_by(&signer) {
            Ok(Proved { signer, message })
        } else {
            Err(RefusalCode::WrongSignature)
        }
    }
}

impl Payee {
    /// Something that the payer promises, with its signature proved here and now. Refused: nothing
    /// has changed.
    pub fn handle_message(&mut self, message: &PayerMessage) -> Result<(), RefusalCode> {
        match self.handle_unproved(message)? {
            Taken::Whole => Ok(()),
            Taken::Unproved(unproved) => self.handle_proved(&unproved.prove()?),
        }
    }

    /// Something that the payer promises. Checks cost nothing until shape, sequence and bounds are
    /// right, and then a few hashes; a signature, which costs as much as hundreds of them, is left
    /// to whoever has time for it. Refused or unproved: nothing has changed.
    pub fn handle_unproved(&mut self, message: &PayerMessage) -> Result<Taken, RefusalCode> {
        match message {
            PayerMessage::Token(token) => self.handle_token(token).map(|()| Taken::Whole),
            PayerMessage::Roll(roll) => self.handle_roll(roll, false),
            PayerMessage::Resume(Some(promise)) => self.handle_resume(promise, false),
            PayerMessage::Resume(None) => Ok(Taken::Whole),
            PayerMessage::Hello { .. } => Err(RefusalCode::OutOfOrder),
        }
    }

    /// What was left unproved, proved. Much may have happened since, so it is checked once more.
    pub fn handle_proved(&mut self, proved: &Proved) -> Result<(), RefusalCode> {
        let proves = |voucher: &Voucher| {
            voucher.channel == self.terms.channel && proved.signer == self.terms.signer
        };
        match &proved.message {
            PayerMessage::Roll(roll) if proves(&roll.voucher.voucher) => {
                self.handle_roll(roll, true).map(drop)
            }
            PayerMessage::Resume(Some(promise)) if proves(&promise.voucher.voucher) => {
                self.handle_resume(promise, true).map(drop)
            }
            _ => Err(RefusalCode::WrongSignature),
        }
    }

    fn unproved(&self, message: PayerMessage) -> Taken {
        Taken::Unproved(Box::new(Unproved {
            signer: self.terms.signer,
            message,
        }))
    }

    /// A token under the newest voucher: one hash for each unit that it pays. One that was seen
    /// before changes nothing.
    pub fn handle_token(&mut self, token: &Token) -> Result<(), RefusalCode> {
        self.takes_promises()?;
        self.dirty |= self.promises.take(token, self.ahead_max)?;
        Ok(())
    }

    /// A new voucher in place of the newest.
    fn handle_roll(&mut self, roll: &Roll, is_proved: bool) -> Result<Taken, RefusalCode> {
        self.takes_promises()?;
        let next = &roll.voucher.voucher;
        let retired = match self.promises.newest() {
            // A repeat.
            Some(best) if best.voucher == roll.voucher => return Ok(Taken::Whole),
            Some(best) => {
                let old = &best.voucher.voucher;
                let follows = old.seq.checked_add(1) == Some(next.seq)
                    && roll.retired_index >= best.index
                    && roll.retired_index <= old.tokens
                    && old.redeemable(roll.retired_index) == Some(next.cumulative_amount)
                    && old.units(roll.retired_index) == Some(next.cumulative_units);
                if !follows {
                    return Err(RefusalCode::WrongTotals);
                }
                Some(Promise {
                    voucher: best.voucher,
                    index: roll.retired_index,
                    preimage: roll.retired_preimage,
                })
            }
            None => {
                let begins = next.cumulative_amount.is_zero() && next.cumulative_units == 0;
                if !begins || roll.retired_index != 0 {
                    return Err(RefusalCode::WrongTotals);
                }
                None
            }
        };
        self.check_terms(next)?;
        if retired.is_some_and(|old| !self.promises.is_on_chain(old.preimage, old.index)) {
            return Err(RefusalCode::WrongPreimage);
        }
        if !is_proved {
            return Ok(self.unproved(PayerMessage::Roll(*roll)));
        }
        self.keep(
            retired,
            Promise {
                voucher: roll.voucher,
                index: 0,
                preimage: next.root,
            },
        )
    }

    /// The payer's last promise, on a new connection. Further tokens of the voucher that is held
    /// are taken like others, up to the end of the chain. Another voucher is left to the roll that
    /// proves the chain before it, which the payer sends when it hears what is held; only where
    /// nothing is held is it taken as it stands, if it pays for every unit that it counts.
    ///
    /// A voucher that begins beyond what is owed is worth nothing until its beginning is used up,
    /// so whoever gave credit on it would give it for nothing: it is refused. A payee that lost its
    /// journal therefore cannot go on with its channels; they can only be closed.
    fn handle_resume(&mut self, promise: &Promise, is_proved: bool) -> Result<Taken, RefusalCode> {
        self.takes_promises()?;
        let voucher = &promise.voucher.voucher;
        if let Some(held) = self.promises.newest() {
            if held.voucher != promise.voucher {
                return Ok(Taken::Whole);
            }
            let token = Token {
                channel: voucher.channel,
                seq: voucher.seq,
                index: promise.index,
                preimage: promise.preimage,
                own_bytes: 0,
            };
            self.dirty |= self.promises.take(&token, u64::from(voucher.tokens))?;
            return Ok(Taken::Whole);
        }
        // Signed before the price rose: the payer signs another when it hears the offer and that
        // nothing is held. A refusal would reach it first, and end the link.
        if voucher.unit_price < self.terms.offer.unit_price {
            return Ok(Taken::Whole);
        }
        let pays_for_nothing =
            voucher.cumulative_units == 0 && !voucher.cumulative_amount.is_zero();
        if voucher.cumulative_units > self.owed || pays_for_nothing {
            return Err(RefusalCode::WrongTotals);
        }
        // Where the voucher begins decides, not where it ends: until the first token is due, a
        // claim is worth what the voucher says of the units before it, and no more.
        let price = self
            .terms
            .offer
            .unit_price
            .checked_mul(voucher.cumulative_units);
        if price.is_none_or(|price| voucher.cumulative_amount < price) {
            return Err(RefusalCode::PriceTooLow);
        }
        self.check_terms(voucher)?;
        if walk_back(promise.preimage, &voucher.salt(), promise.index, 0) != voucher.root {
            return Err(RefusalCode::WrongPreimage);
        }
        if !is_proved {
            return Ok(self.unproved(PayerMessage::Resume(Some(*promise))));
        }
        self.keep(None, *promise)
    }

    fn takes_promises(&self) -> Result<(), RefusalCode> {
        match self.state {
            PayeeState::Open => Ok(()),
            PayeeState::Frozen | PayeeState::Broken => Err(RefusalCode::Frozen),
            PayeeState::Finished => Err(RefusalCode::Finished),
        }
    }

    fn check_terms(&self, voucher: &Voucher) -> Result<(), RefusalCode> {
        if voucher.channel != self.terms.channel {
            return Err(RefusalCode::UnknownChannel);
        }
        if voucher.unit_price < self.terms.offer.unit_price {
            return Err(RefusalCode::PriceTooLow);
        }
        match voucher.amount_max() {
            Some(amount) if amount <= self.terms.allocation => Ok(()),
            _ => Err(RefusalCode::BeyondAllocation),
        }
    }

    fn keep(&mut self, retired: Option<Promise>, newest: Promise) -> Result<Taken, RefusalCode> {
        self.promises.push(retired, newest)?;
        self.dirty = true;
        Ok(Taken::Whole)
    }
}
