//! What is true of one channel whatever its books say, and what the books may say of it.

use std::collections::BTreeMap;

use topnet_account::Amount;
use topnet_api::{ClaimBytes, FinalClaim};
use topnet_books::Stored;
use topnet_channel::{Claim, Offer, Payee, PayeeTerms, SignedVoucher, SlotUse};
use topnet_log::{Line, prove};
use topnet_unit::{BootId, UNIT_BYTES};

/// What the newest synced record of a channel says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Synced {
    pub(crate) channel_bytes: u64,
    pub(crate) owed: u64,
    pub(crate) accepted: u64,
    pub(crate) written_off: u64,
}

/// The use of a slot, as the data plane really counted it.
#[derive(Clone, Copy, Debug)]
struct Use {
    usage_bytes: u64,
    /// Its tables went with the last process that could read them.
    stranded: bool,
}

/// One channel as it really is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    pub(crate) forwarded_bytes: u64,
    /// Forwarded, and in no record when the data plane and metering were both gone: the
    /// provider's loss.
    pub(crate) lost_bytes: u64,
    uses: BTreeMap<SlotUse, Use>,
    pub(crate) synced: Synced,
    /// Uses of slots that it knows.
    recorded: Vec<SlotUse>,
    newest: Option<SignedVoucher>,
    /// Checked once, because a signature takes as long as a hundred tokens.
    signature: Option<SignedVoucher>,
    /// The first last claim that was given.
    pub(crate) last: Option<FinalClaim>,
}

impl Truth {
    pub(crate) fn handle_use(&mut self, slot_use: SlotUse, base_bytes: u64) {
        let begun = Use {
            usage_bytes: base_bytes,
            stranded: false,
        };
        self.uses.insert(slot_use, begun);
    }

    pub(crate) fn handle_counted(&mut self, slot_use: SlotUse, bytes: u64, usage_bytes: u64) {
        self.forwarded_bytes += bytes;
        if let Some(of_use) = self.uses.get_mut(&slot_use) {
            of_use.usage_bytes = usage_bytes;
        }
    }

    /// The tables of these uses can be read by nobody any more: what no record says is lost.
    pub(crate) fn handle_stranded(
        &mut self,
        stored: Option<&Stored>,
        offer: Offer,
        unreachable: impl Fn(&SlotUse) -> bool,
    ) -> Result<(), String> {
        let payee = stored.map(|stored| restored(stored, offer)).transpose()?;
        for (slot_use, of_use) in &mut self.uses {
            if of_use.stranded || !unreachable(slot_use) {
                continue;
            }
            of_use.stranded = true;
            let Some(mut payee) = payee.clone() else {
                continue;
            };
            let recorded_bytes = payee.channel_bytes();
            payee.handle_usage(*slot_use, of_use.usage_bytes);
            self.lost_bytes += payee.channel_bytes() - recorded_bytes;
        }
        Ok(())
    }

    /// A record of the channel was synced.
    pub(crate) fn handle_synced(&mut self, stored: &Stored, offer: Offer) -> Result<(), String> {
        let payee = restored(stored, offer)?;
        let meter = payee.meter();
        let before = self.synced;
        let now = Synced {
            channel_bytes: meter.channel_bytes,
            owed: meter.owed,
            accepted: meter.accepted,
            written_off: payee.written_off(),
        };
        let falls = now.channel_bytes < before.channel_bytes
            || now.owed < before.owed
            || now.accepted < before.accepted
            || now.written_off < before.written_off;
        ensure(!falls, || {
            format!("a record takes back: {before:?}, {now:?}")
        })?;
        ensure(now.channel_bytes <= self.forwarded_bytes, || {
            format!("{now:?}, but forwarded {}", self.forwarded_bytes)
        })?;
        // Between the two, where units were written off since the record before.
        let begun = |written_off| {
            let billed = now.channel_bytes.saturating_sub(written_off * UNIT_BYTES);
            units_begun(billed).max(before.owed)
        };
        let possible = begun(now.written_off)..=begun(before.written_off);
        ensure(possible.contains(&now.owed), || {
            format!("what is owed is not what was begun: {now:?} after {before:?}")
        })?;
        self.synced = now;
        self.recorded = payee.slot_uses().map(|(slot_use, _)| slot_use).collect();
        let Some(promise) = payee.promise() else {
            return ensure(now.accepted == 0, || format!("{now:?} without a voucher"));
        };
        let seq = promise.voucher.voucher.seq;
        let follows = self
            .newest
            .is_none_or(|newest| newest == promise.voucher || newest.voucher.seq < seq);
        ensure(follows, || format!("another voucher {seq} was taken"))?;
        self.newest = Some(promise.voucher);
        let whole = Claim {
            voucher: promise.voucher,
            index: promise.index,
            preimage: promise.preimage,
        };
        self.check_claim(&whole, stored, offer, now.accepted)?;
        match payee.claim() {
            Some(claim) => self.check_claim(&claim, stored, offer, now.owed.min(now.accepted)),
            None => ensure(now.owed.min(now.accepted) == 0, || {
                format!("{now:?}, but nothing can be claimed")
            }),
        }
    }

    /// A claim that the chain would take, for so many units, with the money for each.
    fn check_claim(
        &mut self,
        claim: &Claim,
        stored: &Stored,
        offer: Offer,
        units: u64,
    ) -> Result<(), String> {
        ensure(claim.units() == Some(units), || {
            format!("a claim for {:?} units instead of {units}", claim.units())
        })?;
        let Some(redeemable) = claim.redeemable() else {
            return Err("a claim's token is not on its voucher's chain".to_owned());
        };
        let price = offer.unit_price.checked_mul(units).unwrap_or(Amount::MAX);
        ensure(redeemable >= price, || {
            format!("{units} units are taken as paid with {redeemable}, and cost {price}")
        })?;
        let voucher = &claim.voucher.voucher;
        let most = voucher.amount_max().unwrap_or(Amount::MAX);
        ensure(most <= stored.facts.allocation, || {
            format!(
                "a voucher over {most} was taken, allocated is {}",
                stored.facts.allocation
            )
        })?;
        if self.signature != Some(claim.voucher) {
            ensure(claim.is_signed_by(&stored.facts.signer), || {
                "a voucher was taken that its signer did not sign".to_owned()
            })?;
            self.signature = Some(claim.voucher);
        }
        Ok(())
    }

    /// What was forwarded and what may be without anybody's doing is paid for, on disk.
    pub(crate) fn check_credit(&self, room_bytes: u64) -> Result<(), String> {
        let units = self.synced.accepted + self.synced.written_off;
        let paid_bytes = units * UNIT_BYTES + self.lost_bytes;
        ensure(self.forwarded_bytes + room_bytes <= paid_bytes, || {
            format!(
                "forwarded {} and may forward {room_bytes} more of {paid_bytes} paid bytes, {} of \
                 them lost",
                self.forwarded_bytes, self.lost_bytes
            )
        })
    }

    /// A slot gets credit only when a record would find it again after a crash.
    pub(crate) fn check_open(&self, open: impl IntoIterator<Item = SlotUse>) -> Result<(), String> {
        open.into_iter().try_for_each(|slot_use| {
            ensure(self.recorded.contains(&slot_use), || {
                format!("{slot_use:?} has credit and is in no record")
            })
        })
    }

    /// A claim before the last one.
    pub(crate) fn check_early(&self, claim: &FinalClaim, lines: &[Line]) -> Result<(), String> {
        let (status, synced) = (&claim.status, self.synced);
        let told = Synced {
            channel_bytes: status.metered_bytes,
            owed: status.owed_units,
            accepted: status.accepted_units,
            written_off: status.written_off_units,
        };
        ensure(told == synced, || {
            format!("{told:?} is told, {synced:?} synced")
        })?;
        let Some(claim) = &claim.claim else {
            return Ok(());
        };
        check_log(claim, lines, synced.owed)?;
        let voucher =
            SignedVoucher::from_bytes(&claim.voucher).map_err(|error| error.to_string())?;
        let units = voucher.voucher.units(claim.index);
        ensure(units == Some(synced.owed.min(synced.accepted)), || {
            format!("a claim for {units:?} units, {synced:?} is synced")
        })
    }

    /// The last claim, when everybody is done.
    pub(crate) fn check_last(&self, last: &FinalClaim, lines: &[Line]) -> Result<(), String> {
        let status = &last.status;
        let billed_bytes = self.forwarded_bytes - self.lost_bytes;
        ensure(status.metered_bytes == billed_bytes, || {
            format!(
                "metered {} of {billed_bytes} bytes ({} lost)",
                status.metered_bytes, self.lost_bytes
            )
        })?;
        let (owed, forgiven) = (status.owed_units, status.written_off_units);
        let least = units_begun(billed_bytes.saturating_sub(forgiven * UNIT_BYTES));
        let possible = least..=units_begun(billed_bytes);
        ensure(possible.contains(&owed), || {
            format!("owed {owed} instead of {possible:?}")
        })?;
        ensure(status.unpaid_bytes == 0, || {
            format!("{} bytes unpaid", status.unpaid_bytes)
        })?;
        ensure(status.accepted_units >= owed, || {
            format!("owed {owed}, accepted {}", status.accepted_units)
        })?;
        ensure(last.claim.is_some() == (owed > 0), || {
            format!("owed {owed}, and the claim is {:?}", last.claim)
        })?;
        let Some(claim) = &last.claim else {
            return Ok(());
        };
        check_log(claim, lines, owed)?;
        let voucher =
            SignedVoucher::from_bytes(&claim.voucher).map_err(|error| error.to_string())?;
        let claim = Claim {
            voucher,
            index: claim.index,
            preimage: claim.preimage,
        };
        ensure(claim.units() == Some(owed), || {
            format!(
                "the last claim is for {:?} units, owed {owed}",
                claim.units()
            )
        })?;
        ensure(claim.redeemable() == Some(status.redeemable), || {
            "the last claim is not worth what its status says".to_owned()
        })
    }
}

/// The claim's root is over exactly the lines that are synced, and they tell of every unit once.
fn check_log(claim: &ClaimBytes, lines: &[Line], owed: u64) -> Result<(), String> {
    let told: u64 = lines
        .iter()
        .map(|line| line.units - line.units_before)
        .sum();
    ensure(told == owed, || {
        format!("the service log tells of {told} units, owed {owed}")
    })?;
    ensure(
        lines.iter().all(|line| line.boot != BootId([0; 16])),
        || "the service log does not say which run counted".to_owned(),
    )?;
    // The proof of the last line is as good as that of any.
    let last = lines
        .len()
        .checked_sub(1)
        .and_then(|last| prove(lines, last));
    let root = last.and_then(|proof| proof.root()).unwrap_or_default();
    ensure(claim.log_root == root, || {
        "the claim's root is not that of the synced service log".to_owned()
    })
}

/// Counted here once more, so that a mistake in the product's own count shows.
fn units_begun(bytes: u64) -> u64 {
    bytes / UNIT_BYTES + u64::from(!bytes.is_multiple_of(UNIT_BYTES))
}

fn restored(stored: &Stored, offer: Offer) -> Result<Payee, String> {
    let terms = PayeeTerms {
        channel: stored.channel,
        signer: stored.facts.signer,
        allocation: stored.facts.allocation,
        offer,
    };
    match &stored.record {
        Some(record) => Payee::from_record(terms, record).map_err(|error| error.to_string()),
        None => Ok(Payee::new(terms)),
    }
}

pub(crate) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
