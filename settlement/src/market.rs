//! The payee's offers on main.

use std::sync::Arc;

use topnet_account::Hash;
use topnet_api::{ApiError, NewOffer, SubmittedTransaction};
use topnet_channel::SecretKey;
use topnet_ledger::{
    machine::Rejection,
    offer::Offer,
    state::{PublishedOffer, offer_key},
    transaction::Action,
};

use crate::{chains::Chains, close::unavailable, registrar::next_order, relay::record};

/// Publishes and retracts. Clones are the same.
#[derive(Clone)]
pub(crate) struct Market {
    pub chains: Chains,
    pub payee: Arc<SecretKey>,
}

impl Market {
    /// Puts the offer in the place of the last one for the service.
    pub(crate) async fn publish(
        &self,
        service: Hash,
        new: NewOffer,
    ) -> Result<Option<SubmittedTransaction>, ApiError> {
        let terms = new.terms;
        let offer = Offer {
            service,
            unit_price: terms.unit_price,
            close_window_min: terms.close_window_blocks_min,
            payment_key: terms.payment_key,
            payment_address: terms.payment_address,
            rpc_url: terms.rpc_url,
            name: terms.name,
            region: terms.region,
        };
        if self
            .standing(&service)
            .await?
            .is_some_and(|one| one.offer == offer)
        {
            return Ok(None);
        }
        self.order(Action::PublishOffer(offer)).await.map(Some)
    }

    /// Takes the offer for the service away.
    pub(crate) async fn retract(
        &self,
        service: Hash,
    ) -> Result<Option<SubmittedTransaction>, ApiError> {
        if self.standing(&service).await?.is_none() {
            return Ok(None);
        }
        self.order(Action::RetractOffer { service }).await.map(Some)
    }

    async fn standing(&self, service: &Hash) -> Result<Option<PublishedOffer>, ApiError> {
        let key = offer_key(&self.payee.address(), service);
        let standing = record(&self.chains.main().chain, key).await;
        standing.map_err(unavailable)
    }

    async fn order(&self, action: Action) -> Result<SubmittedTransaction, ApiError> {
        let main = &self.chains.main().chain;
        let order = next_order(main, &self.payee, action).await;
        let order = order.map_err(unavailable)?;
        let id = order.id();
        match main.submit(order.to_bytes()).await {
            Ok(_) => Ok(SubmittedTransaction { id }),
            Err(Rejection { code, text }) => Err(ApiError::new(
                code,
                text,
                match code {
                    "balance_short" => "send the payee's account on main what is missing",
                    "offer_invalid" => "correct [control.offer]",
                    _ => "try again in a few blocks",
                },
            )),
        }
    }
}
