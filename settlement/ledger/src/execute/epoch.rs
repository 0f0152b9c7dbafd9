//! What a block does by itself: at the end of an epoch a service cuts a batch, and main pays what
//! has waited for an epoch with room.

use topnet_account::{Address, Amount};

use super::{Step, Stop, heads, outflow, step::minus};
use crate::{
    conservation::Totals,
    event::Event,
    genesis::Role,
    outbox::{Batch, Payout},
    refusal::Refusal,
    state::{self, Heads, MainLink, PayoutQueue, Record as _},
};

/// Places of the queue that one batch walks past, for each payout that it may hold. An account
/// that has spent its mark meanwhile leaves an empty place; those neither fill a batch nor make
/// a block's work unbounded.
const PLACES_PER_PAYOUT_MAX: u64 = 4;

/// Ends the block; gives where the outboxes stand after it.
pub(super) fn end_block(step: &mut Step<'_>) -> Result<Heads, Stop> {
    let genesis = step.context().genesis;
    if step.height().is_multiple_of(genesis.epoch_blocks) {
        match genesis.role {
            Role::Service { .. } => cut_batch(step)?,
            Role::Main { .. } => outflow::pay_waiting(step)?,
        }
    }
    heads(step)
}

/// Cuts a batch, empty or not, and puts it into the outbox to main. It takes the accounts that
/// have waited longest, at most as many as a batch may hold, and all the burn.
fn cut_batch(step: &mut Step<'_>) -> Result<(), Stop> {
    let payouts = take_payouts(step)?;
    let mut totals = step.totals()?;
    let Totals::Service(service) = &mut totals else {
        return Err(Refusal::SourceUnknown.into());
    };
    let burn = u64::try_from(service.burn).map_err(|_| Refusal::Overflow)?;
    let link: MainLink = step.demand(&state::main_link_key())?;
    let batch = Batch {
        height: step.height(),
        credited: link.inbox.next,
        burn: Amount::from_ntop(burn),
        payouts,
    };
    let total = batch.total().ok_or(Refusal::Overflow)?;
    service.burn = 0;
    service.batched = service
        .batched
        .checked_add(total.ntop().into())
        .ok_or(Refusal::Overflow)?;
    step.write(state::totals_key(), &totals);

    let Heads(mut all) = heads(step)?;
    // A service has one outbox, to main.
    let head = all.first_mut().ok_or(Refusal::SourceUnknown)?;
    let (seq, entry) = (head.next, batch.to_bytes());
    step.write_bytes(
        state::outbox_entry_key(&head.destination, seq),
        entry.clone(),
    );
    *head = head.push(&entry).ok_or(Refusal::Overflow)?;
    step.write(state::heads_key(), &Heads(all));
    let count = u16::try_from(batch.payouts.len()).map_err(|_| Refusal::Overflow)?;
    step.tell(Event::BatchCut {
        seq,
        payouts: count,
        total,
        burn: batch.burn,
    });
    Ok(())
}

/// Takes accounts off the queue, and what is marked to go home off them. An account that has
/// spent its mark down to dust meanwhile leaves the queue with nothing, and takes nobody's
/// room in the batch.
fn take_payouts(step: &mut Step<'_>) -> Result<Vec<Payout>, Stop> {
    let rules = &step.context().genesis.rules;
    let payouts_max = rules.batch_payouts_max;
    let places_max = PLACES_PER_PAYOUT_MAX * u64::from(payouts_max);
    let key = state::payout_queue_key();
    let mut queue: PayoutQueue = step.demand(&key)?;
    let end = queue.tail.min(queue.head.saturating_add(places_max));
    step.need((queue.head..end).map(state::queued_key))?;
    let accounts: Vec<Address> = (queue.head..end)
        .map(|place| step.demand(&state::queued_key(place)))
        .collect::<Result<_, _>>()?;
    step.need(accounts.iter().map(state::account_key))?;

    let mut payouts = Vec::new();
    for address in accounts {
        if payouts.len() == payouts_max as usize {
            break;
        }
        step.delete(state::queued_key(queue.head));
        queue.head += 1;
        let mut account = step.account(&address)?;
        account.queued = false;
        if account.homeward > rules.dust {
            let amount = std::mem::take(&mut account.homeward);
            account.balance = minus(account.balance, amount)?;
            payouts.push(Payout {
                account: address,
                amount,
            });
        }
        step.write_account(&address, &account);
    }
    step.write(key, &queue);
    Ok(payouts)
}
