//! What other chains tell: funds from main, batches from services.

use topnet_account::{Amount, Hash, PublicKey};

use super::{Step, Stop, heads, outflow, step::minus};
use crate::{
    conservation::Totals,
    event::Event,
    genesis::Role,
    machine::FinalHeader,
    outbox::{Batch, Fund, Import, OutboxEntry},
    refusal::Refusal,
    state::{self, MainLink, Service},
};

pub(super) fn credit(step: &mut Step<'_>, import: &Import<Fund>) -> Result<(), Stop> {
    let key = state::main_link_key();
    let mut link: MainLink = step.demand(&key)?;
    let Role::Service { main } = &step.context().genesis.role else {
        return Err(Refusal::SourceUnknown.into());
    };
    if import.source != main.genesis {
        return Err(Refusal::SourceUnknown.into());
    }
    let next = link.inbox.next;
    import
        .starts_at(next)
        .map_err(|fault| Refusal::of_import(fault, next))?;
    let keys = import
        .entries
        .iter()
        .map(|fund| state::account_key(&fund.beneficiary));
    step.need(keys)?;

    let header = prove(step, import, &[&link.validators])?;
    link.inbox = import
        .follow(&link.inbox, &header)
        .map_err(|fault| Refusal::of_import(fault, next))?;
    step.write(key, &link);
    for (seq, fund) in (next..).zip(&import.entries) {
        let Fund {
            beneficiary,
            amount,
            ..
        } = *fund;
        note_credited(step, amount)?;
        step.receive(&beneficiary, amount)?;
        step.tell(Event::Credited {
            seq,
            beneficiary,
            amount,
        });
    }
    Ok(())
}

/// Counts money that comes in. What is on the service at one time can always be named, so no
/// sum over its accounts or channels overflows.
fn note_credited(step: &mut Step<'_>, amount: Amount) -> Result<(), Stop> {
    let mut totals = step.totals()?;
    let Totals::Service(service) = &mut totals else {
        return Err(Refusal::SourceUnknown.into());
    };
    let credited = service.credited.checked_add(amount.ntop().into());
    service.credited = credited.ok_or(Refusal::Overflow)?;
    if service.credited.saturating_sub(service.batched) > u128::from(u64::MAX) {
        return Err(Refusal::Overflow.into());
    }
    step.write(state::totals_key(), &totals);
    Ok(())
}

pub(super) fn batch(step: &mut Step<'_>, import: &Import<Batch>) -> Result<(), Stop> {
    let id = import.source;
    let key = state::service_key(&id);
    let mut service: Service = step.read(&key)?.ok_or(Refusal::ServiceUnknown(id))?;
    let next = service.inbox.next;
    import
        .starts_at(next)
        .map_err(|fault| Refusal::of_import(fault, next))?;
    let payouts = import.entries.iter().flat_map(|batch| &batch.payouts);
    step.need(payouts.map(|payout| state::account_key(&payout.account)))?;

    let header = prove_batch(step, import, &service)?;
    service.inbox = import
        .follow(&service.inbox, &header)
        .map_err(|fault| Refusal::of_import(fault, next))?;
    service.heard = step.height();
    if header.height >= service.height {
        service.height = header.height;
        service.state_root = header.state_root;
    }
    for (seq, batch) in (next..).zip(&import.entries) {
        accept(step, &id, &mut service, seq, batch)?;
    }
    step.write(key, &service);
    Ok(())
}

/// The final header under which a live service brings batches.
pub(super) fn prove_batch(
    step: &Step<'_>,
    import: &Import<Batch>,
    service: &Service,
) -> Result<FinalHeader, Refusal> {
    if service.is_dead(&step.context().genesis.rules, step.height()) {
        return Err(Refusal::ServiceDead(import.source));
    }
    let sets: [&[PublicKey]; 2] = [&service.validators, &service.previous_validators];
    let header = prove(step, import, &sets)?;
    match import.ends_at(step.context().chain, &header) {
        true => Ok(header),
        false => Err(Refusal::OutboxOther),
    }
}

fn accept(
    step: &mut Step<'_>,
    id: &Hash,
    service: &mut Service,
    seq: u64,
    batch: &Batch,
) -> Result<(), Stop> {
    let funded = heads(step)?.to(id).map_or(0, |head| head.next);
    if !(service.credited..=funded).contains(&batch.credited) {
        let (got, least, most) = (batch.credited, service.credited, funded);
        return Err(Refusal::AcknowledgementFalse { got, least, most }.into());
    }
    service.credited = batch.credited;
    let total = batch.total().ok_or(Refusal::Overflow)?;
    let escrow = service.escrow;
    service.escrow = minus(escrow, total).map_err(|_| Refusal::EscrowShort { total, escrow })?;
    service.accepted = service
        .accepted
        .checked_add(total.ntop().into())
        .ok_or(Refusal::Overflow)?;
    step.burn(batch.burn)?;
    let (burn, height) = (batch.burn, batch.height);
    step.tell(Event::BatchAccepted {
        service: *id,
        seq,
        height,
        total,
        burn,
    });
    for payout in &batch.payouts {
        outflow::pay_out(step, id, service, seq, *payout)?;
    }
    Ok(())
}

/// The final header that the import's proof shows, under the first set of validators that
/// it holds for.
fn prove<E: OutboxEntry>(
    step: &Step<'_>,
    import: &Import<E>,
    sets: &[&[PublicKey]],
) -> Result<FinalHeader, Refusal> {
    sets.iter()
        .filter(|set| !set.is_empty())
        .find_map(|set| (step.context().prove)(&import.source, set, &import.proof))
        .ok_or(Refusal::ProofFalse)
}
