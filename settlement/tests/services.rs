//! Service chains that come and go while the process runs, and what becomes of a dead one.
#![allow(clippy::unwrap_used)]

mod support;

use support::{
    Provider, balance, settle, soon,
    steps::{self, fund},
    top, until,
};
use topnet_account::{Amount, ChannelId};
use topnet_api::{
    ApiError, ChainName, ChannelState, HeldClaim, HostedService, HostedState, NewService,
    RecoverySubject, ServiceView, SettlementClient,
};
use topnet_ledger::{
    Genesis, Transaction,
    genesis::Rules,
    transaction::{Action, Body},
};

const HOUR_MS: u64 = 3_600_000;

fn cdn() -> ChainName {
    ChainName("cdn".to_owned())
}

async fn hosted(client: &SettlementClient, chain: &ChainName) -> Option<HostedService> {
    let services = client.services(soon()).await.unwrap().unwrap();
    services.into_iter().find(|service| service.chain == *chain)
}

async fn genesis(client: &SettlementClient, chain: ChainName) -> Genesis {
    let text = client.genesis(soon(), chain).await.unwrap().unwrap();
    serde_json::from_str(&text).unwrap()
}

async fn create(client: &SettlementClient) -> Result<(), ApiError> {
    let new = NewService {
        chain: cdn(),
        block_interval_ms: Some(50),
        epoch_blocks: Some(5),
    };
    client.create_service(soon(), new).await.unwrap()
}

async fn view(client: &SettlementClient, chain: ChainName) -> ServiceView {
    client.service(soon(), chain).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_created_stopped_and_started_and_each_has_its_own_funds() {
    let mut provider = Provider::new();
    let client = provider.start().await;
    let (main, vpn) = (ChainName::main(), ChainName::vpn());
    assert_eq!(create(&client).await.unwrap_err().code, "balance_short");
    let deposit = Action::Transfer {
        to: provider.payee.address(),
        amount: top(150),
    };
    settle(&client, &main, &provider.order(&provider.main, 0, deposit)).await;
    create(&client).await.unwrap();
    create(&client).await.unwrap();
    let registered = async |client: &SettlementClient| {
        until("the registration", async || {
            hosted(client, &cdn()).await.unwrap().on_main
        })
        .await
    };
    let known = registered(&client).await;
    assert_eq!(known.deposit, top(100));
    assert_eq!(known.owner, Some(provider.payee.address()));
    let second = genesis(&client, cdn()).await;
    assert_eq!((second.block_interval_ms, second.epoch_blocks), (50, 5));

    // Funds of both in one block and in several: what is proved for one is not held up by the
    // other.
    for round in 0..3 {
        for (place, service) in [&provider.service, &second].into_iter().enumerate() {
            let nonce = 1 + 2 * round + place as u64;
            let action = fund(&provider, service, top(1 + place as u64));
            let funding = provider.order(&provider.main, nonce, action);
            settle(&client, &main, &funding).await;
        }
    }
    let payer = provider.payer.address();
    until("both credits", async || {
        let (one, other) = (
            balance(&client, &vpn, payer).await,
            balance(&client, &cdn(), payer).await,
        );
        (one == top(3) && other == top(6)).then_some(())
    })
    .await;
    // Batches come home from both, and their payouts are told apart.
    let withdraw = Action::Withdraw { amount: top(2) };
    let before = balance(&client, &main, payer).await;
    settle(&client, &cdn(), &provider.order(&second, 0, withdraw)).await;
    until("the payout", async || {
        let after = balance(&client, &main, payer).await;
        (after.checked_sub(before) == Some(top(2))).then_some(())
    })
    .await;
    assert_eq!(view(&client, vpn.clone()).await.escrow, top(3));

    provider.kill();
    let client = provider.start().await;
    let found = hosted(&client, &cdn()).await.unwrap();
    assert_eq!(found.state, HostedState::Running);
    assert_eq!(found.genesis, second.hash());

    client.stop_service(soon(), cdn()).await.unwrap().unwrap();
    let stopped = client.tip(soon(), cdn()).await.unwrap().unwrap_err();
    assert!(stopped.what.contains("stopped"), "{stopped:?}");
    assert_eq!(
        hosted(&client, &cdn()).await.unwrap().state,
        HostedState::Stopped
    );
    provider.kill();
    let client = provider.start().await;
    assert_eq!(
        hosted(&client, &cdn()).await.unwrap().state,
        HostedState::Stopped
    );
    client.start_service(soon(), cdn()).await.unwrap().unwrap();
    let height = client.tip(soon(), cdn()).await.unwrap().unwrap();
    let height = height.block.height;
    until("blocks", async || {
        let tip = client.tip(soon(), cdn()).await.unwrap().unwrap();
        (tip.block.height > height + 5).then_some(())
    })
    .await;
    assert!(balance(&client, &cdn(), payer).await < top(4));
    let unknown = client.stop_service(soon(), main).await.unwrap();
    assert_eq!(unknown.unwrap_err().code, "service_unknown");
}

/// A service that dies with an open channel, a claim that nobody has made, and money on its way:
/// everybody has at the end what was his, and nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_service_gives_back_everything_and_its_claims_are_paid_on_main() {
    let quick = |rules: &mut Rules| {
        rules.service_silence = 100;
        rules.recovery_window = 40;
    };
    let mut provider = Provider::with(quick, HOUR_MS);
    let client = provider.start().await;
    let (main, vpn) = (ChainName::main(), ChainName::vpn());
    let (payer, payee) = (provider.payer.address(), provider.payee.address());
    let fees = provider.main.rules.fees.clone();

    steps::funded(&client, &provider, top(100)).await;
    let (channel, opened) = steps::opened(&client, &provider, 0, payee, 20).await;
    until(
        "main's acceptance of the state with the channel",
        async || {
            let accepted = view(&client, vpn.clone()).await.accepted_height;
            (accepted >= opened.height).then_some(())
        },
    )
    .await;
    let on_service = balance(&client, &vpn, payer).await;
    let voucher = steps::voucher(channel, top(7), 1);
    let (claim, _) = steps::claim(&provider.payer, voucher, 0);
    let held = vec![HeldClaim { channel, claim }];
    assert_eq!(client.hold(soon(), held).await.unwrap(), Ok(1));

    // Recovering a live one is refused, whoever asks.
    let asked = client.recovery(soon(), vpn.clone(), RecoverySubject::Begin);
    assert_eq!(asked.await.unwrap().unwrap_err().code, "service_alive");
    client
        .stop_service(soon(), vpn.clone())
        .await
        .unwrap()
        .unwrap();
    let late = provider.order(
        &provider.main,
        1,
        fund(&provider, &provider.service, top(5)),
    );
    settle(&client, &main, &late).await;
    until("its death", async || {
        view(&client, vpn.clone()).await.dead.then_some(())
    })
    .await;
    let before = balance(&client, &main, payer).await;
    let late = provider.order(
        &provider.main,
        2,
        fund(&provider, &provider.service, top(5)),
    );
    let refused = client.submit(soon(), main.clone(), late.to_bytes()).await;
    assert_eq!(refused.unwrap().unwrap_err().code, "service_dead");

    client
        .start_service(soon(), vpn.clone())
        .await
        .unwrap()
        .unwrap();
    let found = hosted(&client, &vpn).await.unwrap();
    assert_eq!(found.state, HostedState::Halted);
    // Killed while it recovers, it goes on.
    until("the beginning", async || {
        view(&client, vpn.clone()).await.recovering.then_some(())
    })
    .await;
    provider.kill();
    let client = provider.start().await;

    // The claim and the fund come home by themselves.
    until("the payee's money", async || {
        let expected = top(7).checked_sub(fees.claim);
        (Some(balance(&client, &main, payee).await) == expected).then_some(())
    })
    .await;
    // The payer's account does when he asks.
    let recovery = |subject| client.recovery(soon(), vpn.clone(), subject);
    let own = until("the accepted state", async || {
        let own = recovery(RecoverySubject::Account(payer)).await.unwrap();
        own.ok()
    })
    .await;
    let own = Transaction::from_bytes(&own).unwrap();
    settle(&client, &main, &own).await;
    let again = recovery(RecoverySubject::Account(payer)).await.unwrap();
    assert_eq!(again.unwrap_err().code, "recovered");
    let nobody = RecoverySubject::Channel(ChannelId([9; 32]));
    let nothing = recovery(nobody).await.unwrap();
    assert_eq!(nothing.unwrap_err().code, "nothing_to_recover");

    until("the end of the escrow", async || {
        let view = view(&client, vpn.clone()).await;
        (view.escrow == Amount::ZERO).then_some(())
    })
    .await;
    let recovered = client.channel(soon(), channel).await.unwrap().unwrap();
    let ChannelState::Closing { deadline } = recovered.state else {
        panic!("{recovered:?}")
    };
    assert_eq!((recovered.chain, recovered.paid), (main.clone(), top(7)));
    until("the deadline", async || {
        let tip = client.tip(soon(), main.clone()).await.unwrap().unwrap();
        (tip.block.height >= deadline).then_some(())
    })
    .await;
    let finalise = Transaction {
        chain: provider.main.hash(),
        body: Body::Finalise(channel),
    };
    settle(&client, &main, &finalise).await;
    let gain = balance(&client, &main, payer).await.checked_sub(before);
    let account = on_service.checked_sub(fees.recover).unwrap();
    let returned = top(5).checked_sub(fees.recover).unwrap();
    // The recovery and the finalisation are paid out of what was set aside.
    let spent = fees.recover.checked_add(fees.finalise).unwrap();
    let set_aside = fees.closing().unwrap().checked_sub(spent).unwrap();
    let rest = top(53).checked_add(set_aside).unwrap();
    assert_eq!(
        gain,
        Amount::checked_sum([account, returned, rest]),
        "the payer has all that is his"
    );
}
