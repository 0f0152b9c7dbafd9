//! A tower as a process of its own, elsewhere: what it is brought, what it refuses, and that it
//! claims in time whatever has died.
#![allow(clippy::unwrap_used)]

#[path = "tower/processes.rs"]
mod processes;
mod support;

use std::{fs, time::Duration};

use processes::{Liar, Node, TowerProcess, free_address, url};
use support::{Provider, balance, secret, settle, soon, steps, top, until};
use topnet_account::{Address, Amount, ChannelId};
use topnet_api::{
    ChainName, ChannelState, ClaimBytes, ClaimStage, HeldClaim, HostedState, SettlementClient,
};
use topnet_channel::{SecretKey, SignedVoucher};
use topnet_ledger::{
    Transaction,
    transaction::{Body, CloseByPayer, Message as _},
};

const HOUR_MS: u64 = 3_600_000;
const TOKENS: u16 = 200;
/// Long enough for a busy machine to act in its second half.
const WINDOW: u32 = 150;

/// Promised by `payer`: 1 TOP for what came before, and `TOKENS` units.
fn claim(payer: &SecretKey, channel: ChannelId) -> (HeldClaim, Amount) {
    let voucher = steps::voucher(channel, top(1), TOKENS);
    let (claim, worth) = steps::claim(payer, voucher, TOKENS);
    (HeldClaim { channel, claim }, worth)
}

/// The same with `amount` in the place of the 1 TOP, and without its tokens.
fn claim_of(payer: &SecretKey, channel: ChannelId, amount: Amount) -> HeldClaim {
    let voucher = steps::voucher(channel, amount, TOKENS);
    let (claim, _) = steps::claim(payer, voucher, 0);
    HeldClaim { channel, claim }
}

/// The same without its tokens: worth 1 TOP.
fn less(held: &HeldClaim) -> HeldClaim {
    let voucher = SignedVoucher::from_bytes(&held.claim.voucher).unwrap();
    HeldClaim {
        channel: held.channel,
        claim: ClaimBytes {
            index: 0,
            preimage: voucher.voucher.root,
            ..held.claim.clone()
        },
    }
}

/// Opens the payer's channel number `nonce`.
async fn open(
    client: &SettlementClient,
    provider: &Provider,
    nonce: u64,
    payee: Address,
) -> ChannelId {
    steps::opened(client, provider, nonce, payee, WINDOW)
        .await
        .0
}

/// Closes as the payer; gives the deadline.
async fn close(client: &SettlementClient, provider: &Provider, channel: ChannelId) -> u64 {
    let close = CloseByPayer { channel }.sign(&provider.service.hash(), &provider.payer);
    let (block, _) = settle(client, &ChainName::vpn(), &close).await;
    block.height + u64::from(WINDOW)
}

async fn paid(client: &SettlementClient, channel: ChannelId) -> Amount {
    let view = client.channel(soon(), channel).await.unwrap();
    view.unwrap().paid
}

/// The only claim that was ever paid on the channel pays exactly `worth`, in the second half of
/// its window, and the payee has it on main.
async fn paid_once_in_time(
    client: &SettlementClient,
    provider: &Provider,
    channel: ChannelId,
    deadline: u64,
    worth: Amount,
) {
    until("the claim", async || {
        (paid(client, channel).await == worth).then_some(())
    })
    .await;
    let claims = client.paid_claims(soon(), channel, 0).await.unwrap();
    let claims = claims.unwrap();
    let [only] = &claims[..] else {
        panic!("{claims:?}");
    };
    assert_eq!((only.payout, only.paid), (worth, worth));
    let height = only.block.height;
    let half = deadline - u64::from(WINDOW) / 2;
    assert!(
        (half..=deadline).contains(&height),
        "{height} of {deadline}"
    );
    let home = worth.checked_sub(only.fee).unwrap();
    until("the money on main", async || {
        let on_main = balance(client, &ChainName::main(), provider.payee.address()).await;
        (on_main == home).then_some(())
    })
    .await;
}

/// Handed over by settlement, and made although metering was never there, settlement has lost what
/// it held and nobody asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_elsewhere_claims_in_time_what_settlement_held_and_lost() {
    let mut provider = Provider::with(|_| {}, HOUR_MS);
    let address = free_address();
    provider.configure(&format!("towers = [{:?}]\n", url(address)));
    let mut node = Node::of(&provider);
    let client = provider.start().await;
    node.start().await;
    let liar = Liar::start(node.address).await;
    let nodes = [url(liar.address)];
    let mut tower = TowerProcess::new(&provider, address, &nodes, "");
    steps::funded(&client, &provider, top(200)).await;
    let id = open(&client, &provider, 0, provider.payee.address()).await;

    // The tower is away at first: that keeps nobody from handing claims to settlement.
    let (held, worth) = claim(&provider.payer, id);
    let kept = client.hold(soon(), vec![less(&held)]).await.unwrap();
    assert_eq!(kept, Ok(1));
    let towers = until("the problem", async || {
        let towers = client.towers(soon()).await.unwrap();
        towers[0].problem.is_some().then_some(towers)
    })
    .await;
    assert_eq!((towers[0].unconfirmed, towers[0].confirmed_ms), (1, None));
    tower.start().await;
    until("the first claim", async || tower.claim(id).await).await;
    let again = held.clone();
    assert_eq!(client.hold(soon(), vec![held]).await.unwrap(), Ok(1));
    let report = until("the better claim", async || {
        let report = tower.claim(id).await.unwrap();
        (report.redeemable == worth).then_some(report)
    })
    .await;
    assert_eq!((report.stage, report.alarm), (ClaimStage::Accepted, None));
    until("the confirmation", async || {
        let towers = client.towers(soon()).await.unwrap();
        (towers[0].unconfirmed == 0 && towers[0].problem.is_none()).then_some(())
    })
    .await;

    // It comes back without its disk: not only what has grown meanwhile is brought to it.
    tower.lose_disk();
    let (unknown, _) = claim(&provider.payer, ChannelId([8; 32]));
    assert_eq!(client.hold(soon(), vec![unknown]).await.unwrap(), Ok(1));
    until("the problem", async || {
        let towers = client.towers(soon()).await.unwrap();
        towers[0].problem.is_some().then_some(())
    })
    .await;
    tower.start().await;
    let report = until("the claim again", async || tower.claim(id).await).await;
    assert_eq!(report.redeemable, worth);

    provider.kill();
    fs::remove_dir_all(provider.storage_dir().join("claims")).unwrap();
    let client = provider.start().await;
    assert_eq!(client.claims(soon(), None).await.unwrap().unwrap(), []);
    let deadline = close(&client, &provider, id).await;
    paid_once_in_time(&client, &provider, id, deadline, worth).await;
    let report = until("the tower to see it", async || {
        let report = tower.claim(id).await.unwrap();
        (report.stage == ClaimStage::Claimed).then_some(report)
    })
    .await;
    assert_eq!((report.paid, report.alarm), (worth, None));
    assert!(report.transaction.is_some());

    until("the deadline", async || {
        let tip = client.tip(soon(), ChainName::vpn()).await.unwrap().unwrap();
        (tip.block.height >= deadline).then_some(())
    })
    .await;
    // Until main has accepted its end the channel may come back to life on main.
    liar.stop_time(provider.service.hash()).await;
    let finalise = Transaction {
        chain: provider.service.hash(),
        body: Body::Finalise(id),
    };
    settle(&client, &ChainName::vpn(), &finalise).await;
    let mut newcomer = TowerProcess::new(&provider, free_address(), &nodes, "");
    newcomer.start().await;
    assert_eq!(newcomer.hold(vec![again]).await.unwrap().kept, 1);
    // Longer than between two looks.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for tower in [&tower, &newcomer] {
        assert!(tower.claim(id).await.is_some());
    }
    liar.resume_time();
    for tower in [&tower, &newcomer] {
        until("its end", async || {
            tower.claims().await.is_empty().then_some(())
        })
        .await;
        assert_eq!(tower.status().await.held, 0);
    }
}

/// Killed when the claim was noted and nobody had it yet, and started again without a node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tower_that_is_killed_before_it_submits_goes_on_and_waits_for_its_nodes() {
    let mut provider = Provider::with(|_| {}, HOUR_MS);
    let mut node = Node::of(&provider);
    let client = provider.start().await;
    node.start().await;
    let liar = Liar::start(node.address).await;
    let mut tower = TowerProcess::new(&provider, free_address(), &[url(liar.address)], "");
    tower.start().await;
    steps::funded(&client, &provider, top(200)).await;
    let id = open(&client, &provider, 0, provider.payee.address()).await;
    let (held, worth) = claim(&provider.payer, id);
    assert_eq!(tower.hold(vec![held]).await.unwrap().kept, 1);

    liar.withhold(true);
    let deadline = close(&client, &provider, id).await;
    let noted = until("the note of the claim", async || {
        tower.claim(id).await.unwrap().transaction
    })
    .await;
    until("the submission", async || liar.was_asked().then_some(())).await;
    tower.kill();
    node.kill();
    assert_eq!(paid(&client, id).await, Amount::ZERO);
    liar.withhold(false);
    tower.start().await;
    let report = until("the alarm", async || {
        let report = tower.claim(id).await.unwrap();
        report.alarm.is_some().then_some(report)
    })
    .await;
    assert_eq!(report.transaction, Some(noted));
    let status = tower.status().await;
    assert_eq!((status.held, status.alarms), (1, 1));
    assert!(status.nodes[0].problem.is_some(), "{status:?}");
    let page = tower.metrics().await;
    assert!(page.contains("topnet_tower_alarms 1"), "{page}");

    node.start().await;
    paid_once_in_time(&client, &provider, id, deadline, worth).await;
    let report = until("the end of the alarm", async || {
        let report = tower.claim(id).await.unwrap();
        report.alarm.is_none().then_some(report)
    })
    .await;
    assert_eq!(report.stage, ClaimStage::Claimed);
}

/// Why the tower does not hold a claim.
async fn refusal(tower: &TowerProcess, held: HeldClaim) -> String {
    let report = tower.hold(vec![held]).await.unwrap();
    assert_eq!(report.kept, 0);
    let code = report.refused.into_iter().next().map(|one| one.error.code);
    code.unwrap_or_else(|| "nothing".to_owned())
}

/// Strangers get nothing held that is not good, and a node that lies is not believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_good_is_refused_and_a_node_that_lies_changes_nothing() {
    let mut provider = Provider::with(|_| {}, HOUR_MS);
    let mut node = Node::of(&provider);
    let client = provider.start().await;
    node.start().await;
    let liar = Liar::start(node.address).await;
    let nodes = [url(liar.address), url(node.address)];
    let mut tower = TowerProcess::new(&provider, free_address(), &nodes, "channels_max = 1\n");
    // Another service under the same name: the honest node's is found all the same.
    liar.disguise(true);
    tower.start().await;
    steps::funded(&client, &provider, top(200)).await;
    let payee = provider.payee.address();
    let id = open(&client, &provider, 0, payee).await;
    let second = open(&client, &provider, 1, payee).await;
    let elsewhere = open(&client, &provider, 2, secret(9).address()).await;
    let (good, worth) = claim(&provider.payer, id);

    let refusal = async |held| self::refusal(&tower, held).await;
    let of_other_payee = claim(&provider.payer, elsewhere).0;
    assert_eq!(refusal(of_other_payee).await, "payee_not_served");
    let problem = tower.status().await.nodes[0].problem.clone().unwrap();
    assert!(problem.contains("no service of this main"), "{problem}");
    liar.disguise(false);
    let unknown = ChannelId([8; 32]);
    let by_stranger = claim(&secret(7), id).0;
    let mut of_other = good.clone();
    of_other.channel = second;
    let mut false_token = good.clone();
    false_token.claim.preimage = [7; 32];
    let mut cut = good.clone();
    cut.claim.voucher.pop();
    let small = claim_of(&provider.payer, id, Amount::from_ntop(1));
    for (held, expected) in [
        (claim(&provider.payer, unknown).0, "channel_unknown"),
        (by_stranger.clone(), "signature_wrong"),
        (of_other, "claim_malformed"),
        (false_token, "claim_malformed"),
        (cut, "claim_malformed"),
        // A chain pays nothing for so little, so it takes no place.
        (small, "nothing"),
    ] {
        assert_eq!(refusal(held).await, expected);
    }
    assert_eq!(tower.claims().await, []);
    let most = vec![good.clone(); 65];
    let told = tower.hold(most).await.unwrap_err();
    assert!(told.contains("claims_max"), "{told}");
    let answer = tower.post(vec![b' '; 300 << 10]).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");

    // What one node forges another one shows. After a start the liar is asked first again.
    liar.forge(true);
    tower.kill();
    tower.start().await;
    let refusal = async |held| self::refusal(&tower, held).await;
    assert_eq!(tower.hold(vec![good.clone()]).await.unwrap().kept, 1);
    let status = tower.status().await;
    let problem = status.nodes[0].problem.clone().unwrap();
    assert!(problem.contains("have not signed"), "{problem}");
    assert_eq!(status.nodes[1].problem, None);
    assert_eq!((status.held, status.alarms), (1, 0));
    // Nothing replaces it but what is better, and the place is taken.
    assert_eq!(refusal(less(&good)).await, "nothing");
    assert_eq!(refusal(good).await, "nothing");
    assert_eq!(refusal(by_stranger).await, "nothing");
    let other = claim(&provider.payer, second).0;
    assert_eq!(refusal(other).await, "channels_max");
    // With the liar alone nothing is believed, and nothing is lost.
    node.kill();
    let dearer = |payer: &SecretKey| claim_of(payer, id, top(2));
    assert_eq!(refusal(dearer(&secret(7))).await, "signature_wrong");
    let report = tower.claim(id).await.unwrap();
    assert_eq!(report.redeemable, worth);
    // A better one for a channel that is known needs no node.
    let better = dearer(&provider.payer);
    assert_eq!(tower.hold(vec![better]).await.unwrap().kept, 1);
}

/// A service dies with a claim that only the tower has: it brings the channel to main and claims
/// there, though the node that it asks first proves everything falsely.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_services_channel_is_claimed_on_main() {
    let quick = |rules: &mut topnet_ledger::genesis::Rules| {
        rules.service_silence = 100;
        rules.recovery_window = WINDOW;
    };
    let mut provider = Provider::with(quick, HOUR_MS);
    let mut node = Node::of(&provider);
    let client = provider.start().await;
    node.start().await;
    let liar = Liar::start(node.address).await;
    liar.forge(true);
    let nodes = [url(liar.address), url(node.address)];
    let mut tower = TowerProcess::new(&provider, free_address(), &nodes, "");
    tower.start().await;
    let (main, vpn) = (ChainName::main(), ChainName::vpn());
    steps::funded(&client, &provider, top(200)).await;
    let id = open(&client, &provider, 0, provider.payee.address()).await;
    let opened = client.tip(soon(), vpn.clone()).await.unwrap().unwrap();
    until("main's acceptance of the channel", async || {
        let service = client.service(soon(), vpn.clone()).await.unwrap().unwrap();
        (service.accepted_height >= opened.block.height).then_some(())
    })
    .await;
    let (held, worth) = claim(&provider.payer, id);
    assert_eq!(tower.hold(vec![held]).await.unwrap().kept, 1);

    let stopped = client.stop_service(soon(), vpn.clone()).await.unwrap();
    stopped.unwrap();
    until("its death", async || {
        let service = client.service(soon(), vpn.clone()).await.unwrap().unwrap();
        service.dead.then_some(())
    })
    .await;
    let started = client.start_service(soon(), vpn.clone()).await.unwrap();
    started.unwrap();
    let services = client.services(soon()).await.unwrap().unwrap();
    assert_eq!(services[0].state, HostedState::Halted);

    until("the payee's money", async || {
        let fee = provider.main.rules.fees.claim_with(TOKENS)?;
        let on_main = balance(&client, &main, provider.payee.address()).await;
        (on_main == worth.checked_sub(fee)?).then_some(())
    })
    .await;
    let view = client.channel(soon(), id).await.unwrap().unwrap();
    assert_eq!((view.chain, view.paid), (main, worth));
    assert!(matches!(view.state, ChannelState::Closing { .. }));
}
