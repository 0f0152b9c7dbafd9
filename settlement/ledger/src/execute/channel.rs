//! Channels from opening to their end. The rules stand beside each request in
//! [`transaction`](crate::transaction).
//!
//! | | open | closing | closed |
//! |---|---|---|---|
//! | top up | more allocation | refused: the end is set | refused |
//! | claim | pays | pays | refused |
//! | close by payee | pays, ends | pays, ends | refused |
//! | close by payer, expire | sets the deadline | refused: it is set once | refused |
//! | finalise | refused: nothing has ended it | ends, above the deadline | refused |

use topnet_account::{Address, Amount, ChannelId, Hash};

use super::{
    Step, Stop, order,
    step::{minus, plus},
};
use crate::{
    event::Event,
    refusal::Refusal,
    state::{self, Channel, ChannelState},
    transaction::{ClaimBody, CloseByPayee, CloseByPayer, Open, Sealed, channel_id},
};

pub(super) fn open(
    step: &mut Step<'_>,
    payer: Address,
    nonce: u64,
    open: &Open,
    fee: Amount,
) -> Result<(), Stop> {
    let rules = &step.context().genesis.rules;
    let Open {
        payee,
        allocation,
        signer,
        close_window,
        expiry,
    } = *open;
    if allocation < rules.allocation_min {
        return Err(Refusal::AllocationSmall(rules.allocation_min).into());
    }
    let (min, max) = (rules.close_window_min, rules.close_window_max);
    if !(min..=max).contains(&close_window) {
        return Err(Refusal::CloseWindow { min, max }.into());
    }
    if expiry <= step.height() {
        return Err(Refusal::ExpiryPast(step.height()).into());
    }
    let id = channel_id(step.context().chain, &payer, &payee, nonce);
    let key = state::channel_key(&id);
    if step.read::<Channel>(&key)?.is_some() {
        return Err(Refusal::ChannelKnown.into());
    }

    let closing_fee = rules.fees.closing().ok_or(Refusal::Overflow)?;
    order::pay(step, &payer, plus(allocation, closing_fee)?, fee)?;
    let channel = Channel {
        payer,
        payee,
        signer,
        allocation,
        paid: Amount::ZERO,
        closing_fee,
        close_window,
        expiry,
        log_root: Hash::ZERO,
        state: ChannelState::Open,
    };
    step.write(key, &channel);
    step.tell(Event::Opened {
        channel: id,
        payer,
        payee,
        signer,
        allocation,
        closing_fee,
        close_window,
        expiry,
        fee,
    });
    Ok(())
}

pub(super) fn top_up(
    step: &mut Step<'_>,
    sender: Address,
    id: &ChannelId,
    amount: Amount,
    fee: Amount,
) -> Result<(), Stop> {
    let mut channel = step.channel(id)?;
    if channel.payer != sender {
        return Err(Refusal::NotThePayer.into());
    }
    must_be_open(&channel)?;
    order::pay(step, &sender, amount, fee)?;
    channel.allocation = plus(channel.allocation, amount)?;
    step.write(state::channel_key(id), &channel);
    let allocation = channel.allocation;
    step.tell(Event::ToppedUp {
        channel: *id,
        amount,
        allocation,
        fee,
    });
    Ok(())
}

pub(super) fn claim(step: &mut Step<'_>, body: &ClaimBody) -> Result<(), Stop> {
    let id = body.channel();
    let mut channel = step.channel(&id)?;
    // What is missing is asked for before the hashes are walked, which may be many.
    step.need([state::account_key(&channel.payee)])?;
    let rules = &step.context().genesis.rules;
    let mut payout = payable(step, &channel, body)?;
    let mut fee = rules
        .fees
        .claim_with(body.claim.index)
        .ok_or(Refusal::Overflow)?;
    if payout < rules.claim_payout_min {
        (payout, fee) = (Amount::ZERO, Amount::ZERO);
        step.idle(rules.claim_payout_min);
    }
    pay_out(step, &id, &mut channel, body, payout, fee)?;
    step.write(state::channel_key(&id), &channel);
    Ok(())
}

pub(super) fn close_by_payee(
    step: &mut Step<'_>,
    close: &Sealed<CloseByPayee>,
) -> Result<(), Stop> {
    let CloseByPayee { channel: id, claim } = close.message;
    let mut channel = step.channel(&id)?;
    if channel.payee != close.account() {
        return Err(Refusal::NotThePayee.into());
    }
    must_not_be_closed(&channel)?;
    step.need([&channel.payee, &channel.payer].map(state::account_key))?;
    if let Some(body) = &claim {
        if body.channel() != id {
            return Err(Refusal::ClaimOfOtherChannel.into());
        }
        let payout = payable(step, &channel, body)?;
        let fees = &step.context().genesis.rules.fees;
        let fee = fees
            .close_with(body.claim.index)
            .ok_or(Refusal::Overflow)?
            .min(payout);
        pay_out(step, &id, &mut channel, body, payout, fee)?;
        channel.log_root = body.log_root;
    }
    let refund = end(step, &id, &mut channel)?;
    step.tell(Event::Closed {
        channel: id,
        paid: channel.paid,
        refund,
    });
    Ok(())
}

pub(super) fn close_by_payer(
    step: &mut Step<'_>,
    close: &Sealed<CloseByPayer>,
) -> Result<(), Stop> {
    let id = close.message.channel;
    let channel = step.channel(&id)?;
    if channel.payer != close.account() {
        return Err(Refusal::NotThePayer.into());
    }
    begin_closing(step, &id, channel)
}

pub(super) fn expire(step: &mut Step<'_>, id: &ChannelId) -> Result<(), Stop> {
    let channel = step.channel(id)?;
    must_be_open(&channel)?;
    let (from, height) = (channel.expiry, step.height());
    if height < from {
        return Err(Refusal::TooEarly { from, height }.into());
    }
    begin_closing(step, id, channel)
}

pub(super) fn finalise(step: &mut Step<'_>, id: &ChannelId) -> Result<(), Stop> {
    let mut channel = step.channel(id)?;
    let deadline = match channel.state {
        ChannelState::Open => return Err(Refusal::ChannelOpen.into()),
        ChannelState::Closing { deadline } => deadline,
        ChannelState::Closed => return Err(Refusal::ChannelClosed.into()),
    };
    let height = step.height();
    if height <= deadline {
        return Err(Refusal::TooEarly {
            from: deadline.saturating_add(1),
            height,
        }
        .into());
    }
    let fee = step.context().genesis.rules.fees.finalise;
    let fee = charge_closing_fee(step, &mut channel, fee)?;
    let refund = end(step, id, &mut channel)?;
    step.tell(Event::Finalised {
        channel: *id,
        paid: channel.paid,
        refund,
        fee,
    });
    Ok(())
}

/// What a claim would pay: its worth less what was paid before, at most what remains.
/// Cheap checks come before the hashes.
fn payable(step: &Step<'_>, channel: &Channel, body: &ClaimBody) -> Result<Amount, Refusal> {
    must_not_be_closed(channel)?;
    if body.signer != channel.signer {
        return Err(Refusal::NotTheSigner);
    }
    let worth = (step.context().worth)(&body.claim).ok_or(Refusal::TokenFalse)?;
    let unpaid = worth.checked_sub(channel.paid).unwrap_or(Amount::ZERO);
    Ok(unpaid.min(channel.remaining()))
}

/// Moves `payout` out of the channel: `fee` of it is spent, the payee has the rest.
fn pay_out(
    step: &mut Step<'_>,
    id: &ChannelId,
    channel: &mut Channel,
    body: &ClaimBody,
    payout: Amount,
    fee: Amount,
) -> Result<(), Stop> {
    channel.paid = plus(channel.paid, payout)?;
    step.settle(&channel.payee, minus(payout, fee)?)?;
    step.charge(fee)?;
    step.tell(Event::Claimed {
        channel: *id,
        seq: body.claim.voucher.voucher.seq,
        index: body.claim.index,
        units: body.claim.units().ok_or(Refusal::Overflow)?,
        payout,
        paid: channel.paid,
        fee,
        log_root: body.log_root,
    });
    Ok(())
}

fn begin_closing(step: &mut Step<'_>, id: &ChannelId, mut channel: Channel) -> Result<(), Stop> {
    must_be_open(&channel)?;
    let window = u64::from(channel.close_window);
    let deadline = step.height().checked_add(window).ok_or(Refusal::Overflow)?;
    let fee = step.context().genesis.rules.fees.close;
    let fee = charge_closing_fee(step, &mut channel, fee)?;
    channel.state = ChannelState::Closing { deadline };
    step.write(state::channel_key(id), &channel);
    step.tell(Event::Closing {
        channel: *id,
        deadline,
        fee,
    });
    Ok(())
}

/// Spends `fee` out of what was set aside when the channel was opened; gives what was spent.
fn charge_closing_fee(
    step: &mut Step<'_>,
    channel: &mut Channel,
    fee: Amount,
) -> Result<Amount, Stop> {
    let fee = fee.min(channel.closing_fee);
    channel.closing_fee = minus(channel.closing_fee, fee)?;
    step.charge(fee)?;
    Ok(fee)
}

/// Returns the rest to the payer and closes the channel for good; gives the rest.
fn end(step: &mut Step<'_>, id: &ChannelId, channel: &mut Channel) -> Result<Amount, Stop> {
    let refund = plus(channel.remaining(), channel.closing_fee)?;
    channel.closing_fee = Amount::ZERO;
    channel.state = ChannelState::Closed;
    step.write(state::channel_key(id), channel);
    step.settle(&channel.payer, refund)?;
    Ok(refund)
}

fn must_be_open(channel: &Channel) -> Result<(), Refusal> {
    match channel.state {
        ChannelState::Open => Ok(()),
        ChannelState::Closing { .. } => Err(Refusal::ChannelClosing),
        ChannelState::Closed => Err(Refusal::ChannelClosed),
    }
}

fn must_not_be_closed(channel: &Channel) -> Result<(), Refusal> {
    match channel.state {
        ChannelState::Open | ChannelState::Closing { .. } => Ok(()),
        ChannelState::Closed => Err(Refusal::ChannelClosed),
    }
}
