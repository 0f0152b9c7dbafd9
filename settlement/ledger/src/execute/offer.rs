//! Offers of providers, on main.

use topnet_account::{Address, Amount, Hash};

use super::{Step, Stop, step::plus};
use crate::{
    event::Event,
    offer::Offer,
    refusal::Refusal,
    state::{self, PublishedOffer, Service},
};

/// Puts an offer in the place of the provider's last one for the service.
pub(super) fn publish(
    step: &mut Step<'_>,
    provider: Address,
    offer: &Offer,
    fee: Amount,
) -> Result<(), Stop> {
    if !offer.is_valid() {
        return Err(Refusal::OfferInvalid.into());
    }
    let service = offer.service;
    let (key, service_key) = (
        state::offer_key(&provider, &service),
        state::service_key(&service),
    );
    step.need([key.clone(), service_key.clone()])?;
    let known: Service = step
        .read(&service_key)?
        .ok_or(Refusal::ServiceUnknown(service))?;
    let rules = &step.context().genesis.rules;
    if known.is_dead(rules, step.height()) {
        return Err(Refusal::ServiceDead(service).into());
    }
    let before: Option<PublishedOffer> = step.read(&key)?;
    // The deposit of the last one goes on.
    let (deposit, locked) = match before {
        Some(before) => (before.deposit, Amount::ZERO),
        None => (rules.offer_deposit, rules.offer_deposit),
    };
    let all_paid = plus(locked, fee)?;
    step.spend(&provider, all_paid)?;
    step.charge(fee)?;
    let record = PublishedOffer {
        offer: offer.clone(),
        deposit,
        height: step.height(),
    };
    step.write(key, &record);
    step.tell(Event::OfferPublished {
        provider,
        offer: offer.clone(),
        deposit,
        fee,
    });
    Ok(())
}

/// Takes an offer away; the deposit returns.
pub(super) fn retract(
    step: &mut Step<'_>,
    provider: Address,
    service: Hash,
    fee: Amount,
) -> Result<(), Stop> {
    let key = state::offer_key(&provider, &service);
    let record: PublishedOffer = step.read(&key)?.ok_or(Refusal::OfferUnknown)?;
    step.delete(key);
    step.receive(&provider, record.deposit)?;
    step.spend(&provider, fee)?;
    step.charge(fee)?;
    step.tell(Event::OfferRetracted {
        provider,
        service,
        deposit: record.deposit,
        fee,
    });
    Ok(())
}
