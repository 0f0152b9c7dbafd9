//! What the payee offers on main, with the real process.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{Provider, balance, settle, soon, top, until};
use topnet_account::{Address, Hash, PublicKey};
use topnet_api::{
    ApiError, ChainName, MarketOffer, NewOffer, OfferTerms, SettlementClient, StateSubject,
    SubmittedTransaction,
};
use topnet_ledger::transaction::Action;

fn terms(price: u64) -> OfferTerms {
    OfferTerms {
        unit_price: topnet_account::Amount::from_ntop(price),
        close_window_blocks_min: 600,
        payment_key: PublicKey([7; 32]),
        payment_address: "203.0.113.1:7447".to_owned(),
        rpc_url: "https://vpn.example".to_owned(),
        name: "Kiosk".to_owned(),
        region: "LU".to_owned(),
    }
}

async fn publish(
    client: &SettlementClient,
    chain: &str,
    terms: OfferTerms,
) -> Result<Option<SubmittedTransaction>, ApiError> {
    let chain = ChainName(chain.to_owned());
    let offer = NewOffer { chain, terms };
    client.publish_offer(soon(), offer).await.unwrap()
}

async fn market(client: &SettlementClient, after: Option<Address>) -> Vec<MarketOffer> {
    let offers = client.market(soon(), ChainName::vpn(), after).await;
    offers.unwrap().unwrap()
}

/// Waits until main has executed a transaction.
async fn executed(client: &SettlementClient, id: Hash) -> Vec<String> {
    until("main's block", async || {
        let status = client.transaction(soon(), ChainName::main(), id).await;
        let status = status.unwrap().unwrap();
        status.block.is_some().then_some(status.events)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_payees_offer_is_on_main_until_it_is_retracted() {
    let mut provider = Provider::new();
    let client = provider.start().await;
    let main = ChainName::main();
    let payee = provider.payee.address();
    assert_eq!(market(&client, None).await, []);
    let poor = publish(&client, "vpn", terms(26_000)).await.unwrap_err();
    assert_eq!(poor.code, "balance_short");
    let deposit = Action::Transfer {
        to: payee,
        amount: top(2),
    };
    settle(&client, &main, &provider.order(&provider.main, 0, deposit)).await;
    let unknown = publish(&client, "cdn", terms(26_000)).await.unwrap_err();
    assert_eq!(unknown.code, "service_unknown");
    let blank = OfferTerms {
        rpc_url: String::new(),
        ..terms(26_000)
    };
    let invalid = publish(&client, "vpn", blank).await.unwrap_err();
    assert_eq!(invalid.code, "offer_invalid");

    let submitted = publish(&client, "vpn", terms(26_000)).await.unwrap();
    let events = executed(&client, submitted.unwrap().id).await;
    assert!(events[0].contains("offers service"), "{events:?}");
    let offers = market(&client, None).await;
    assert_eq!((offers.len(), offers[0].provider), (1, payee));
    assert_eq!(offers[0].service, provider.service.hash());
    assert_eq!(
        (&offers[0].terms, offers[0].deposit),
        (&terms(26_000), top(1))
    );
    assert_eq!(market(&client, Some(payee)).await, []);
    // The same again is no order.
    assert_eq!(publish(&client, "vpn", terms(26_000)).await, Ok(None));
    let subject = StateSubject::Offer {
        provider: payee,
        service: provider.service.hash(),
    };
    let proof = client.prove(soon(), main.clone(), subject).await.unwrap();
    assert!(!proof.unwrap().proof.0.is_empty());

    let submitted = publish(&client, "vpn", terms(30_000)).await.unwrap();
    executed(&client, submitted.unwrap().id).await;
    let offers = market(&client, None).await;
    assert_eq!((offers.len(), &offers[0].terms), (1, &terms(30_000)));

    // The market is made anew from main.
    provider.kill();
    fs::remove_dir_all(provider.storage_dir().join("index")).unwrap();
    let client = provider.start().await;
    assert_eq!(market(&client, None).await, offers);

    let before = balance(&client, &main, payee).await;
    let retract = async || {
        client
            .retract_offer(soon(), ChainName::vpn())
            .await
            .unwrap()
    };
    let submitted = retract().await.unwrap().unwrap();
    executed(&client, submitted.id).await;
    assert_eq!(market(&client, None).await, []);
    assert!(balance(&client, &main, payee).await > before);
    assert_eq!(retract().await, Ok(None));
}
