//! The process with its real chains, from its socket.
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _};

use support::{EPOCH_BLOCKS, Provider, balance, other_hash, settle, soon, steps, top, until};
use tokio::io::AsyncWriteExt as _;
use topnet_account::{Amount, ChannelId};
use topnet_api::{
    BatchView, ChainName, ChannelState, ClaimBytes, ClaimStage, CloseProgress, DayEarnings,
    HeldClaim, HistoryEntry, SettlementClient, SocketName, StateSubject,
};
use topnet_chain::EngineVerifier;
use topnet_channel::SignedVoucher;
use topnet_ledger::{
    Genesis, Transaction,
    machine::Key,
    outbox::Batch,
    state::{
        Account, Channel, Record as _, Service, account_key, channel_key, outbox_entry_key,
        service_key,
    },
    transaction::{Action, CloseByPayer, Message as _},
};

const TOKENS: u16 = 200;
const WINDOW: u32 = 20;

/// What the payer promises: 1 TOP for what came before, and one token's worth for each of
/// `TOKENS`.
fn claim(provider: &Provider, channel: ChannelId) -> (ClaimBytes, Amount) {
    steps::claim(
        &provider.payer,
        steps::voucher(channel, top(1), TOKENS),
        TOKENS,
    )
}

fn fund(provider: &Provider) -> Action {
    steps::fund(provider, &provider.service, top(100))
}

fn open(provider: &Provider) -> Action {
    steps::open(provider, provider.payee.address(), WINDOW)
}

/// Funds the payer and opens a channel to the payee.
async fn opened(client: &SettlementClient, provider: &Provider) -> ChannelId {
    steps::funded(client, provider, top(100)).await;
    let payee = provider.payee.address();
    steps::opened(client, provider, 0, payee, WINDOW).await.0
}

async fn closed(
    client: &SettlementClient,
    channel: ChannelId,
    claim: &ClaimBytes,
) -> CloseProgress {
    until("the close on main", async || {
        let progress = client
            .close(soon(), channel, Some(claim.clone()))
            .await
            .unwrap()
            .unwrap();
        progress.main_block.is_some().then_some(progress)
    })
    .await
}

/// What both chains must say when the close is settled.
async fn reconcile(
    client: &SettlementClient,
    provider: &Provider,
    progress: &CloseProgress,
    worth: Amount,
) {
    let (main, vpn) = (ChainName::main(), ChainName::vpn());
    let (payer, payee) = (provider.payer.address(), provider.payee.address());
    let (redeemed, fees) = (progress.redeemed.unwrap(), progress.payee_fees.unwrap());
    assert_eq!(redeemed, worth);
    assert_eq!(
        fees,
        provider.service.rules.fees.close_with(TOKENS).unwrap()
    );
    let rules = &provider.service.rules.fees;
    let set_aside = rules.closing().unwrap();
    let refund = top(60)
        .checked_sub(redeemed)
        .unwrap()
        .checked_add(set_aside)
        .unwrap();
    assert_eq!(progress.refund, Some(refund));

    assert_eq!(
        balance(client, &main, payee).await,
        redeemed.checked_sub(fees).unwrap(),
        "the payee has what it redeemed less its fees"
    );
    assert_eq!(
        balance(client, &main, payer).await,
        Amount::from_ntop(top(900).ntop() - provider.main.rules.fees.fund.ntop() + refund.ntop()),
        "the payer has its refund back"
    );
    assert_eq!(
        balance(client, &vpn, payer).await,
        Amount::from_ntop(top(40).ntop() - set_aside.ntop() - rules.open.ntop()),
        "what was not put into the channel stays on the service"
    );
    let service = client.service(soon(), vpn).await.unwrap().unwrap();
    assert!(service.batches >= 1);
}

/// What both chains' states say can be checked by whoever has their genesis.
async fn prove(client: &SettlementClient, provider: &Provider, channel: ChannelId, worth: Amount) {
    let shown = async |genesis: &Genesis, subject: StateSubject, key: Key| {
        let name = ChainName(genesis.name.clone());
        let proof = client.prove(soon(), name, subject.clone()).await.unwrap();
        let proof = proof.unwrap();
        assert_eq!((proof.genesis, &proof.subject), (genesis.hash(), &subject));
        let text = client.genesis(soon(), proof.chain).await.unwrap().unwrap();
        let given: Genesis = serde_json::from_str(&text).unwrap();
        assert_eq!(given.hash(), genesis.hash());
        let checked =
            EngineVerifier.prove_value(&given.hash(), &given.validators, &key, &proof.proof.0);
        let (header, value) = checked.unwrap();
        assert_eq!(header.height(), proof.height);
        value
    };
    let (main, service) = (&provider.main, &provider.service);
    let subject = StateSubject::Channel(channel);
    let value = shown(service, subject.clone(), channel_key(&channel)).await;
    let closed = Channel::from_bytes(&value).unwrap();
    assert_eq!(closed.paid, worth);
    assert_eq!(
        closed.log_root,
        steps::LOG_ROOT,
        "the payee's close says so"
    );
    let payee = provider.payee.address();
    let value = shown(main, StateSubject::Account(payee), account_key(&payee)).await;
    assert!(Account::from_bytes(&value).unwrap().balance > Amount::ZERO);
    let value = shown(
        service,
        StateSubject::Batch(0),
        outbox_entry_key(&main.hash(), 0),
    )
    .await;
    assert_eq!(Batch::from_bytes(&value).unwrap().height, EPOCH_BLOCKS);
    let id = service.hash();
    let value = shown(main, StateSubject::Service(id), service_key(&id)).await;
    assert!(Service::from_bytes(&value).unwrap().inbox.next >= 1);

    let refused = async |chain: ChainName, subject| {
        let answer = client.prove(soon(), chain, subject).await.unwrap();
        answer.unwrap_err().code
    };
    // Main has channels only of services that are dead, and never their batches.
    assert_eq!(refused(ChainName::main(), subject).await, "state_absent");
    let batch = StateSubject::Batch(0);
    assert_eq!(refused(ChainName::main(), batch).await, "subject_elsewhere");
    let nobody = StateSubject::Channel(ChannelId([9; 32]));
    assert_eq!(refused(ChainName::vpn(), nobody).await, "state_absent");
}

/// What blocks, histories and batches say of a channel's life: gives the histories of payer and
/// payee on the service, and the first batch.
async fn told(
    client: &SettlementClient,
    provider: &Provider,
    opening: &Transaction,
) -> (Vec<Vec<HistoryEntry>>, BatchView) {
    let (main, vpn) = (ChainName::main(), ChainName::vpn());
    // Blocks in a row, and the newest of them.
    let blocks = async |from, to| {
        let blocks = client.blocks(soon(), vpn.clone(), from, to).await;
        blocks.unwrap().unwrap()
    };
    let row = blocks(Some(2), Some(5)).await;
    let heights: Vec<u64> = row.iter().map(|b| b.header.block.height).collect();
    assert_eq!(heights, [2, 3, 4, 5]);
    assert!(
        row.windows(2)
            .all(|two| two[1].header.parent == two[0].header.block.hash)
    );
    let newest = blocks(None, None).await;
    let tip = client.tip(soon(), vpn.clone()).await.unwrap().unwrap();
    assert!(newest.last().unwrap().header.block.height + 2 >= tip.block.height);
    assert_eq!(blocks(Some(u64::MAX), None).await, []);
    assert_eq!(blocks(Some(5), Some(4)).await, []);

    // The newest first, each page where the one before ended.
    let (payer, payee) = (provider.payer.address(), provider.payee.address());
    let mut histories = Vec::new();
    for account in [payer, payee] {
        let page = async |before| {
            let page = client.history(soon(), vpn.clone(), account, before).await;
            page.unwrap().unwrap()
        };
        let history = page(None).await;
        let is_new_first = |two: &[HistoryEntry]| two[0].place > two[1].place;
        assert!(history.windows(2).all(is_new_first), "{history:?}");
        let opened = history
            .iter()
            .position(|e| e.transaction == Some(opening.id()));
        let opened = opened.expect("both have to do with the channel");
        assert!(history[opened].events[0].contains("opened channel"));
        assert!(history[0].events.concat().contains("closed"), "{history:?}");
        let place = history[opened].place;
        assert_eq!(page(Some(place)).await, history[opened + 1..]);
        histories.push(history);
    }
    assert!(histories[0].last().unwrap().events[0].contains("credited"));
    let paid = client.history(soon(), main.clone(), payee, None).await;
    let paid = paid.unwrap().unwrap();
    assert!(paid[0].events[0].contains(&payee.to_string()), "{paid:?}");

    let batches = client
        .batches(soon(), vpn.clone(), 0)
        .await
        .unwrap()
        .unwrap();
    let numbers: Vec<u64> = batches.iter().map(|batch| batch.number).collect();
    assert_eq!(numbers, (0..batches.len() as u64).collect::<Vec<_>>());
    let accepted = batches[0].main_block.as_ref().unwrap();
    assert_eq!(accepted.chain, main);
    assert!(batches[0].total > Amount::ZERO);
    let rest = client.batches(soon(), vpn, 1).await.unwrap().unwrap();
    assert_eq!(rest, batches[1..]);
    let refused = client.batches(soon(), main, 0).await.unwrap();
    assert_eq!(refused.unwrap_err().code, "service_unknown");
    (histories, batches[0].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_goes_to_the_service_through_a_channel_and_home() {
    let mut provider = Provider::new();
    let client = provider.start().await;
    let (main, vpn) = (ChainName::main(), ChainName::vpn());
    let (payer, payee) = (provider.payer.address(), provider.payee.address());
    assert_eq!(client.payee(soon()).await.unwrap(), payee);
    let chains = client.chains(soon()).await.unwrap();
    assert_eq!(chains.len(), 2);
    assert_eq!(chains[1].genesis, provider.service.hash());
    assert_eq!(chains[1].epoch_blocks, EPOCH_BLOCKS);

    settle(
        &client,
        &main,
        &provider.order(&provider.main, 0, fund(&provider)),
    )
    .await;
    steps::credited(&client, &provider, top(100)).await;
    let opening = provider.order(&provider.service, 0, open(&provider));
    let (block, events) = settle(&client, &vpn, &opening).await;
    assert_eq!(block.chain, vpn);
    assert!(events[0].contains("opened channel"), "{events:?}");
    let tip = client.tip(soon(), vpn.clone()).await.unwrap().unwrap();
    assert!(tip.block.height >= block.height);

    let channel = steps::channel(&provider, 0, payee);
    let view = client.channel(soon(), channel).await.unwrap().unwrap();
    assert_eq!(
        (view.payer, view.payee, view.allocation),
        (payer, payee, top(60))
    );
    assert_eq!(view.state, ChannelState::Open);
    for party in [payer, payee] {
        assert_eq!(
            client.channels(soon(), party, None).await.unwrap().unwrap(),
            std::slice::from_ref(&view)
        );
    }

    // A claim that the payer did not sign leaves nothing behind.
    let (claim, worth) = claim(&provider, channel);
    let forged = ClaimBytes {
        preimage: [7; 32],
        ..claim.clone()
    };
    let refused = client
        .close(soon(), channel, Some(forged))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.code, "token_false");
    let progress = closed(&client, channel, &claim).await;
    reconcile(&client, &provider, &progress, worth).await;
    let view = client.channel(soon(), channel).await.unwrap().unwrap();
    assert_eq!((view.state, view.paid), (ChannelState::Closed, worth));
    assert_eq!(view.backed, view.allocation, "main has accepted its close");

    prove(&client, &provider, channel, worth).await;

    // What is not there, is said to be not there.
    let unknown = other_hash();
    let errors = [
        client
            .tip(soon(), ChainName("cdn".to_owned()))
            .await
            .unwrap()
            .unwrap_err(),
        client
            .transaction(soon(), main.clone(), unknown)
            .await
            .unwrap()
            .unwrap_err(),
        client
            .channel(soon(), ChannelId(unknown.0))
            .await
            .unwrap()
            .unwrap_err(),
        client
            .service(soon(), main.clone())
            .await
            .unwrap()
            .unwrap_err(),
        client
            .close(soon(), ChannelId(unknown.0), None)
            .await
            .unwrap()
            .unwrap_err(),
        client
            .submit(soon(), main, vec![1, 2, 3])
            .await
            .unwrap()
            .unwrap_err(),
    ];
    let codes: Vec<&str> = errors.iter().map(|error| error.code.as_str()).collect();
    assert_eq!(
        codes[..5],
        [
            "chain_unknown",
            "transaction_unknown",
            "channel_unknown",
            "service_unknown",
            "channel_unknown",
        ]
    );

    // Garbage on the socket ends that connection and no other.
    let path = SocketName::Settlement.below(&provider.dir.path().join("run"));
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    stream.write_all(&[0xff; 4_096]).await.unwrap();
    assert_eq!(client.payee(soon()).await.unwrap(), payee);

    // Blocks are shown with what they did; who waits for the next one has it.
    let shown = client.block(soon(), vpn.clone(), block.height).await;
    let shown = shown.unwrap().unwrap();
    assert_eq!(shown.header.block, block);
    assert_eq!(shown.transactions.len(), 1);
    assert_eq!(shown.transactions[0].id, opening.id());
    assert_eq!(shown.transactions[0].events, events);
    let above = client.block(soon(), vpn.clone(), u64::MAX).await.unwrap();
    assert_eq!(above.unwrap_err().code, "block_unknown");
    let tip = client.tip(soon(), vpn.clone()).await.unwrap().unwrap();
    let next = client
        .tip_above(soon(), vpn.clone(), tip.block.height)
        .await;
    assert!(next.unwrap().unwrap().block.height > tip.block.height);

    let told = told(&client, &provider, &opening).await;

    // The index is made anew from the chains.
    let earned = client.earnings(soon(), payee, 0).await.unwrap().unwrap();
    assert_eq!(earned.len(), 1);
    assert_eq!(earned[0].payout, worth);
    provider.kill();
    fs::remove_dir_all(provider.storage_dir().join("index")).unwrap();
    let client = provider.start().await;
    let (again, _) = settle(&client, &vpn, &opening).await;
    assert_eq!(again, block);
    assert_eq!(self::told(&client, &provider, &opening).await, told);
    assert_eq!(
        client.earnings(soon(), payee, 0).await.unwrap().unwrap(),
        earned
    );
    assert_eq!(
        client
            .channels(soon(), payee, None)
            .await
            .unwrap()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_costs_time_and_nothing_else() {
    let mut provider = Provider::new();
    let (main, vpn) = (ChainName::main(), ChainName::vpn());
    let payee = provider.payee.address();
    let funding = provider.order(&provider.main, 0, fund(&provider));
    let opening = provider.order(&provider.service, 0, open(&provider));
    let channel = steps::channel(&provider, 0, payee);
    let (claim, worth) = claim(&provider, channel);

    // Killed with the transaction in the mempool, and again when it has just become final and
    // the relay has work.
    let client = provider.start().await;
    client
        .submit(soon(), main.clone(), funding.to_bytes())
        .await
        .unwrap()
        .unwrap();
    provider.kill();
    let client = provider.start().await;
    settle(&client, &main, &funding).await;
    provider.kill();
    let client = provider.start().await;
    steps::credited(&client, &provider, top(100)).await;
    settle(&client, &vpn, &opening).await;

    // Killed as soon as the close is promised: it is submitted without being asked for again.
    client
        .close(soon(), channel, Some(claim.clone()))
        .await
        .unwrap()
        .unwrap();
    provider.kill();
    let client = provider.start().await;
    until("the close on the service", async || {
        let view = client.channel(soon(), channel).await.unwrap().unwrap();
        (view.state == ChannelState::Closed).then_some(())
    })
    .await;
    provider.kill();
    let client = provider.start().await;
    let progress = closed(&client, channel, &claim).await;
    reconcile(&client, &provider, &progress, worth).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payers_close_is_listed_until_it_is_answered() {
    let mut provider = Provider::new();
    let vpn = ChainName::vpn();
    let payee = provider.payee.address();
    let client = provider.start().await;
    let id = opened(&client, &provider).await;
    let closing = async |client: &SettlementClient, after| {
        let views = client.closing(soon(), payee, after).await.unwrap().unwrap();
        views.into_iter().map(|view| view.id).collect::<Vec<_>>()
    };
    assert_eq!(closing(&client, None).await, []);

    let close = CloseByPayer { channel: id }.sign(&provider.service.hash(), &provider.payer);
    settle(&client, &vpn, &close).await;
    assert_eq!(closing(&client, None).await, [id]);
    assert_eq!(closing(&client, Some(id)).await, [], "that was all");
    let behind = client.channels(soon(), payee, Some(id)).await;
    assert_eq!(behind.unwrap().unwrap(), [], "that was all");

    let (claim, _) = claim(&provider, id);
    closed(&client, id, &claim).await;
    assert_eq!(closing(&client, None).await, []);
}

/// What is held is claimed after a while, and in time when the payer closes, although neither
/// metering nor control is there, and whoever held it was killed at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_claims_are_made_in_time_although_nobody_asks() {
    let mut provider = Provider::new();
    let vpn = ChainName::vpn();
    let payee = provider.payee.address();
    let client = provider.start().await;
    let id = opened(&client, &provider).await;
    let (claim, worth) = claim(&provider, id);
    let held = |claim: ClaimBytes| vec![HeldClaim { channel: id, claim }];
    let less = ClaimBytes {
        index: 0,
        preimage: SignedVoucher::from_bytes(&claim.voucher)
            .unwrap()
            .voucher
            .root,
        ..claim.clone()
    };
    let forged = ClaimBytes {
        preimage: [7; 32],
        ..claim.clone()
    };
    let other = HeldClaim {
        channel: ChannelId([8; 32]),
        claim: claim.clone(),
    };
    for refused in [held(forged), vec![other]] {
        let refused = client.hold(soon(), refused).await.unwrap().unwrap_err();
        assert_eq!(refused.code, "claim_malformed");
    }
    let hold = async |client: &SettlementClient, claim: &ClaimBytes| {
        let kept = client.hold(soon(), held(claim.clone())).await;
        kept.unwrap().unwrap()
    };
    assert_eq!(hold(&client, &less).await, 1);
    provider.kill();

    // By age, and the channel goes on.
    let client = provider.start().await;
    let report = async |client: &SettlementClient| {
        let reports = client.claims(soon(), None).await.unwrap().unwrap();
        let [report] = &reports[..] else {
            panic!("{reports:?}");
        };
        report.clone()
    };
    let settled = until("the claim by age", async || {
        let report = report(&client).await;
        (report.stage == ClaimStage::Settled).then_some(report)
    })
    .await;
    assert_eq!((settled.redeemable, settled.paid), (top(1), top(1)));
    let claimed_in = settled.service_block.unwrap();
    assert!(settled.transaction.is_some() && settled.main_block.is_some());
    let view = client.channel(soon(), id).await.unwrap().unwrap();
    assert_eq!((view.state, view.paid), (ChannelState::Open, top(1)));

    // By the payer's close: what is held now is in before the deadline.
    assert_eq!(hold(&client, &claim).await, 1);
    assert_eq!(hold(&client, &less).await, 0, "the better one stays");
    let close = CloseByPayer { channel: id }.sign(&provider.service.hash(), &provider.payer);
    settle(&client, &vpn, &close).await;
    provider.kill();
    let client = provider.start().await;
    let settled = until("the claim in time", async || {
        let report = report(&client).await;
        (report.stage == ClaimStage::Settled && report.paid == worth).then_some(report)
    })
    .await;
    assert!(settled.service_block.unwrap().height > claimed_in.height);
    let view = client.channel(soon(), id).await.unwrap().unwrap();
    assert_eq!(view.paid, worth);
    assert_eq!(report(&client).await.alarm, None);

    // Both are on record, and so is the day.
    let paid = client.paid_claims(soon(), id, 0).await.unwrap().unwrap();
    let [by_age, in_time] = &paid[..] else {
        panic!("{paid:?}");
    };
    assert_eq!(
        (by_age.payout, by_age.paid, by_age.units),
        (top(1), top(1), 1_000)
    );
    assert_eq!(by_age.block, claimed_in);
    assert_eq!(
        (in_time.paid, in_time.units),
        (worth, 1_000 + u64::from(TOKENS))
    );
    let above = claimed_in.height + 1;
    let later = client.paid_claims(soon(), id, above).await.unwrap();
    assert_eq!(later.unwrap(), std::slice::from_ref(in_time));
    let days = client.earnings(soon(), payee, 0).await.unwrap().unwrap();
    let sum = |of: fn(&DayEarnings) -> u64| days.iter().map(of).sum::<u64>();
    assert_eq!(sum(|day| day.payout.ntop()), worth.ntop());
    assert_eq!(sum(|day| day.units), 1_000 + u64::from(TOKENS));
    assert_eq!(sum(|day| day.claims), 2);
    assert_eq!(
        sum(|day| day.fees.ntop()),
        by_age.fee.ntop() + in_time.fee.ntop()
    );
    let after = days.last().unwrap().day_ms + 86_400_000;
    assert_eq!(
        client
            .earnings(soon(), payee, after)
            .await
            .unwrap()
            .unwrap(),
        []
    );
    assert_eq!(client.claims(soon(), Some(id)).await.unwrap().unwrap(), []);
}

/// Metering without its journal knows of no claim; the close has what settlement holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_without_a_claim_takes_the_one_that_is_held() {
    let mut provider = Provider::new();
    let client = provider.start().await;
    let channel = opened(&client, &provider).await;
    let (claim, worth) = claim(&provider, channel);
    let held = vec![HeldClaim { channel, claim }];
    assert_eq!(client.hold(soon(), held).await.unwrap(), Ok(1));
    let closed = until("the close", async || {
        let progress = client.close(soon(), channel, None).await.unwrap().unwrap();
        progress.main_block.is_some().then_some(progress)
    })
    .await;
    reconcile(&client, &provider, &closed, worth).await;
}

/// Main lets the payer's refund wait for epochs with room; until then the close is not settled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_is_settled_when_the_last_of_its_payouts_is_paid() {
    let mut provider = Provider::with(|rules| rules.outflow_max = top(20), 1_000);
    let client = provider.start().await;
    let channel = opened(&client, &provider).await;
    let (main, payer) = (ChainName::main(), provider.payer.address());
    let before = balance(&client, &main, payer).await;
    let (claim, worth) = claim(&provider, channel);
    let progress = closed(&client, channel, &claim).await;
    let after = balance(&client, &main, payer).await;
    assert_eq!(progress.redeemed, Some(worth));
    assert_eq!(after.checked_sub(before), progress.refund);
}

#[test]
fn what_cannot_start_names_the_file_and_the_mend() {
    let provider = Provider::new();
    let at = |name: &str| provider.dir.path().join(name);
    let run = || {
        let output = provider.command().output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let restore = |name: &str, text: &str| fs::write(at(name), text).unwrap();

    let passphrase = fs::read_to_string(at("passphrase")).unwrap();
    restore("passphrase", "wrong\n");
    let error = run();
    assert!(
        error.contains("validator.key") && error.contains("passphrase"),
        "{error}"
    );
    restore("passphrase", &passphrase);

    fs::set_permissions(at("payee.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = run();
    assert!(
        error.contains("payee.key") && error.contains("chmod 600"),
        "{error}"
    );
    fs::set_permissions(at("payee.key"), fs::Permissions::from_mode(0o600)).unwrap();

    let main = fs::read_to_string(at("main.json")).unwrap();
    restore(
        "main.json",
        &main.replace("\"epoch_blocks\":10", "\"epoch_blocks\":11"),
    );
    let error = run();
    assert!(error.contains("belong together"), "{error}");
    restore("main.json", "{");
    let error = run();
    assert!(error.contains("main.json"), "{error}");
    restore("main.json", &main);
}
