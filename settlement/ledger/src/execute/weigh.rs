//! What a transaction is worth to a block, by the state and not by its own word.
//!
//! | what | counts by | above |
//! |---|---|---|
//! | order | its fee, the less the more orders it waits for | – |
//! | claim, close, expiry, finalisation, recovery | what it pays out | every order |
//! | import | – | all others |
//!
//! Claims and closes race against a deadline; a channel that holds money and a signer's promise
//! is what it takes to be one. Imports are free, but one is worth something only if it brings
//! exactly what comes next.

use topnet_account::Amount;

use super::{Context, Step, Stop, import, known_reads, order, step::plus, transact};
use crate::{
    event::Event,
    machine::{NONCES_AHEAD_MAX, Rejection, Values},
    outbox::{Import, OutboxEntry, OutboxHead},
    refusal::Refusal,
    state::{self, MainLink, Service},
    transaction::{Action, Body, Order, Sealed, Transaction},
};

/// Orders count for less, what has a deadline for this or more.
const URGENT: u64 = 1 << 62;
/// A fee counts in as many parts, so that those of one fee can be told apart by their wait.
const PARTS: u64 = NONCES_AHEAD_MAX;
/// The highest fee that counts.
const FEE_MAX: u64 = URGENT / PARTS - 2;

/// The priority of `transaction`, or why it cannot be expected to stand in a block soon.
pub(crate) fn weigh(context: Context<'_>, transaction: &Transaction) -> Result<u64, Stop> {
    let before = Values::new();
    let step = Step::new(&context, &before);
    match &transaction.body {
        Body::Credit(import) => {
            let link: MainLink = step.demand(&state::main_link_key())?;
            weigh_import(&link.inbox, import)
        }
        Body::Batch(import) => {
            let service: Option<Service> = step.read(&state::service_key(&import.source))?;
            let service = service.ok_or(Refusal::ServiceUnknown(import.source))?;
            let weight = weigh_import(&service.inbox, import)?;
            import::prove_batch(&step, import, &service)?;
            Ok(weight)
        }
        Body::Order(order) => weigh_order(step, transaction, order),
        _ => {
            let paid = alone(step, transaction)?.iter().map(payout).sum::<u64>();
            Ok(URGENT + paid.min(URGENT - 1))
        }
    }
}

/// An import waits only if it is the next one.
fn weigh_import<E: OutboxEntry>(inbox: &OutboxHead, import: &Import<E>) -> Result<u64, Stop> {
    import
        .reach(inbox)
        .map_err(|fault| Refusal::of_import(fault, inbox.next))?;
    Ok(u64::MAX)
}

/// An order waits if the account can pay for it, and either it can stand now, or time alone
/// lets it stand, or it follows others that may still come.
fn weigh_order(
    step: Step<'_>,
    transaction: &Transaction,
    order: &Sealed<Order>,
) -> Result<u64, Stop> {
    let rules = &step.context().genesis.rules;
    let Order { nonce, ref action } = order.message;
    let account = step.account(&order.account())?;
    let (expected, got) = (account.nonce, nonce);
    let ahead = got
        .checked_sub(expected)
        .ok_or(Refusal::NonceBehind { expected, got })?;
    if ahead >= NONCES_AHEAD_MAX {
        return Err(Refusal::NonceAhead { expected, got }.into());
    }
    let fee = rules.fees.of(action);
    let needs = match (action, ahead) {
        // What it brings back pays for it.
        (Action::RetractOffer { .. }, 0) => Amount::ZERO,
        _ => plus(order::cost(rules, action)?, fee)?,
    };
    let has = account.balance;
    if has < needs {
        return Err(Refusal::BalanceShort { needs, has }.into());
    }
    let waits = match ahead {
        0 => match alone(step, transaction) {
            Ok(_) => 0,
            Err(Stop::Refused(refusal)) if Rejection::from(refusal.clone()).is_temporary() => 1,
            Err(stop) => return Err(stop),
        },
        // What the orders before it will leave cannot be known.
        ahead => ahead,
    };
    Ok((fee.ntop().min(FEE_MAX) + 1) * PARTS / (1 + waits))
}

/// What the transaction does if it stands alone in its block.
fn alone(mut step: Step<'_>, transaction: &Transaction) -> Result<Vec<Event>, Stop> {
    let context = step.context();
    step.need(known_reads(context.genesis, context.env, [transaction]))?;
    transact(&mut step, transaction)?;
    if let Some(payout_min) = step.idle_below() {
        return Err(Refusal::NothingToPay(payout_min).into());
    }
    let (_, events) = step.finish()?;
    Ok(events)
}

/// What a transaction pays, nTOP; none has two.
fn payout(event: &Event) -> u64 {
    match event {
        Event::Claimed { payout: amount, .. }
        | Event::AccountRecovered { amount, .. }
        | Event::FundReturned { amount, .. } => amount.ntop(),
        _ => 0,
    }
}
