//! What providers offer on main.

use topnet_account::{Address, Amount, Hash};
use topnet_api::{MarketOffer, OfferTerms};
use topnet_ledger::offer::Offer;

use super::{Batch, Entry, Index, IndexError, OFFERS, record::market_key, take::Changes};

/// Offers in one answer, at most.
const OFFERS_MAX: usize = 100;

impl Index {
    /// Offers for a service, in the order of the providers' addresses, from behind `after` on, at
    /// most [`OFFERS_MAX`].
    pub(crate) fn offers(
        &self,
        service: &Hash,
        after: Option<&Address>,
    ) -> Result<Vec<MarketOffer>, IndexError> {
        let after = after.map(|provider| market_key(service, provider));
        let from = after.as_deref().unwrap_or(service.as_ref());
        let behind = |item: &Result<Entry, IndexError>| !matches!(item, Ok((key, _)) if Some(&**key) == after.as_deref());
        self.scan(OFFERS, from, service.as_ref())
            .filter(behind)
            .take(OFFERS_MAX)
            .map(|item| self.decode(OFFERS, &item?.1))
            .collect()
    }

    pub(super) fn note_offer(
        batch: &mut Batch<'_>,
        changes: &Changes,
        provider: Address,
        offer: &Offer,
        deposit: Amount,
    ) -> Result<(), IndexError> {
        let view = MarketOffer {
            provider,
            service: offer.service,
            terms: OfferTerms {
                unit_price: offer.unit_price,
                close_window_blocks_min: offer.close_window_min,
                payment_key: offer.payment_key,
                payment_address: offer.payment_address.clone(),
                rpc_url: offer.rpc_url.clone(),
                name: offer.name.clone(),
                region: offer.region.clone(),
            },
            deposit,
            block: changes.place.clone(),
            time_ms: changes.time_ms,
        };
        batch.put(OFFERS, &market_key(&offer.service, &provider), &view)
    }
}
