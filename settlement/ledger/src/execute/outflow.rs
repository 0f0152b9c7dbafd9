//! How fast a service's money comes home. A service's validators can lie about what its escrow is
//! for, and nothing on main can tell; what they cannot do is take more than `outflow_max` in one
//! epoch. What is over waits on main in the order in which it came.

use topnet_account::{Amount, Hash};

use super::{
    Step, Stop, heads,
    recover::dissolve_if_empty,
    step::{minus, plus},
};
use crate::{
    event::Event,
    outbox::Payout,
    refusal::Refusal,
    state::{self, Outflow, Service},
};

/// Payouts that one epoch's end takes off the queues, at most. The services share them.
const PAYOUTS_PER_EPOCH_MAX: u64 = 4_096;

/// Pays a batch's payout, or lets it wait. Its money has left the escrow.
pub(super) fn pay_out(
    step: &mut Step<'_>,
    id: &Hash,
    service: &mut Service,
    seq: u64,
    payout: Payout,
) -> Result<(), Stop> {
    let Payout { account, amount } = payout;
    let is_next = service.waiting_amount.is_zero();
    if is_next && amount <= room(step, service) {
        take_room(step, service, amount)?;
        step.receive(&account, amount)?;
        step.tell(Event::PaidOut {
            service: *id,
            seq,
            account,
            amount,
        });
        return Ok(());
    }
    let place = service.waiting.tail;
    step.write(state::waiting_key(id, place), &payout);
    service.waiting.tail = place.checked_add(1).ok_or(Refusal::Overflow)?;
    service.waiting_amount = plus(service.waiting_amount, amount)?;
    step.tell(Event::PayoutWaits {
        service: *id,
        seq,
        account,
        amount,
        place,
    });
    Ok(())
}

/// Pays what waits, for every service, as far as the new epoch has room.
pub(super) fn pay_waiting(step: &mut Step<'_>) -> Result<(), Stop> {
    let ids: Vec<Hash> = heads(step)?.0.iter().map(|head| head.destination).collect();
    step.need(ids.iter().map(state::service_key))?;
    let mut waiting = Vec::new();
    for id in ids {
        let service: Service = step.demand(&state::service_key(&id))?;
        if !service.waiting_amount.is_zero() {
            waiting.push((id, service));
        }
    }
    let share = PAYOUTS_PER_EPOCH_MAX / waiting.len().max(1) as u64;
    for (id, mut service) in waiting {
        pay_queue(step, &id, &mut service, share)?;
        dissolve_if_empty(step, &id, &mut service)?;
        step.write(state::service_key(&id), &service);
    }
    Ok(())
}

/// Pays what waits for one service, at most `count` payouts.
fn pay_queue(
    step: &mut Step<'_>,
    id: &Hash,
    service: &mut Service,
    count: u64,
) -> Result<(), Stop> {
    let first = service.waiting.head;
    let end = service.waiting.tail.min(first.saturating_add(count));
    step.need((first..end).map(|place| state::waiting_key(id, place)))?;
    let payouts = (first..end)
        .map(|place| step.demand::<Payout>(&state::waiting_key(id, place)))
        .collect::<Result<Vec<_>, _>>()?;
    step.need(payouts.iter().map(|one| state::account_key(&one.account)))?;
    for (place, payout) in (first..end).zip(payouts) {
        let key = state::waiting_key(id, place);
        // One that no epoch has room for is paid in parts.
        let part = payout.amount.min(room(step, service));
        if part.is_zero() {
            break;
        }
        let rest = minus(payout.amount, part)?;
        take_room(step, service, part)?;
        service.waiting_amount = minus(service.waiting_amount, part)?;
        step.receive(&payout.account, part)?;
        step.tell(Event::WaitingPaid {
            service: *id,
            place,
            account: payout.account,
            amount: part,
            rest,
        });
        if rest.is_zero() {
            step.delete(key);
            service.waiting.head = place + 1;
        } else {
            let amount = rest;
            step.write(key, &Payout { amount, ..payout });
        }
    }
    Ok(())
}

/// What this epoch may still pay out for the service.
fn room(step: &Step<'_>, service: &Service) -> Amount {
    let paid = match service.outflow.epoch == epoch(step) {
        true => service.outflow.amount,
        false => Amount::ZERO,
    };
    let max = step.context().genesis.rules.outflow_max;
    max.checked_sub(paid).unwrap_or(Amount::ZERO)
}

fn take_room(step: &Step<'_>, service: &mut Service, amount: Amount) -> Result<(), Refusal> {
    let epoch = epoch(step);
    let before = match service.outflow.epoch == epoch {
        true => service.outflow.amount,
        false => Amount::ZERO,
    };
    service.outflow = Outflow {
        epoch,
        amount: plus(before, amount)?,
    };
    Ok(())
}

fn epoch(step: &Step<'_>) -> u64 {
    step.height() / step.context().genesis.epoch_blocks
}
