//! A provider with something to lose, and all that it must know after any start.

use topnet_account::{Amount, ChannelId, Hash};
use topnet_api::{
    BlockRef, ChainName, ChannelView, ClaimBytes, DayEarnings, HeldClaim, SettlementClient,
    TransactionStatus,
};
use topnet_channel::Claim;
use topnet_ledger::{
    Transaction,
    transaction::{Action, Body, ClaimBody},
};

use super::{Provider, balance, settle, soon, steps, top, until};

/// Nothing is claimed while a test looks.
const CLAIM_INTERVAL_MS: u64 = 3_600_000;

/// What must be the same after any start.
#[derive(Debug, PartialEq)]
pub struct Facts {
    transactions: Vec<TransactionStatus>,
    balances: Vec<Amount>,
    channel: ChannelView,
    held: Vec<(ChannelId, Amount)>,
    earnings: Vec<DayEarnings>,
    blocks: Vec<(Hash, Vec<String>)>,
}

/// A process on chains with funds, an open channel, a claim that was paid, and a better one that
/// is held.
pub struct World {
    pub provider: Provider,
    channel: ChannelId,
    claim: ClaimBytes,
    transactions: Vec<(ChainName, Hash)>,
    tips: Vec<BlockRef>,
}

impl World {
    /// Makes it, and stops the process.
    pub async fn new() -> (Self, Facts) {
        Self::on(Provider::with(|_| {}, CLAIM_INTERVAL_MS)).await
    }

    /// The same with files that are there already.
    pub async fn on(mut provider: Provider) -> (Self, Facts) {
        let client = provider.start().await;
        let (main, vpn) = (ChainName::main(), ChainName::vpn());
        let payee = provider.payee.address();
        let mut transactions = Vec::new();
        let mut make = async |chain: &ChainName, transaction: Transaction| {
            settle(&client, chain, &transaction).await;
            transactions.push((chain.clone(), transaction.id()));
        };
        let fund = steps::fund(&provider, &provider.service, top(100));
        make(&main, provider.order(&provider.main, 0, fund)).await;
        steps::credited(&client, &provider, top(100)).await;
        let open = steps::open(&provider, payee, 20);
        make(&vpn, provider.order(&provider.service, 0, open)).await;
        let channel = steps::channel(&provider, 0, payee);
        let transfer = Action::Transfer {
            to: payee,
            amount: top(1),
        };
        make(&main, provider.order(&provider.main, 1, transfer)).await;
        make(&vpn, paying_claim(&provider, channel)).await;
        until("the payout on main", async || {
            (balance(&client, &main, payee).await > top(1)).then_some(())
        })
        .await;

        let (claim, _) = steps::claim(&provider.payer, steps::voucher(channel, top(7), 1), 0);
        let held = vec![HeldClaim {
            channel,
            claim: claim.clone(),
        }];
        client.hold(soon(), held).await.unwrap().unwrap();
        until("main's view of the channel", async || {
            let view = client.channel(soon(), channel).await.unwrap().unwrap();
            (view.backed == top(60)).then_some(())
        })
        .await;
        let mut tips = Vec::new();
        for chain in [main, vpn] {
            tips.push(client.tip(soon(), chain).await.unwrap().unwrap().block);
        }
        let mut world = Self {
            provider,
            channel,
            claim,
            transactions,
            tips,
        };
        let facts = world.facts(&client).await.unwrap();
        world.provider.kill();
        (world, facts)
    }

    /// What the process knows, or why it does not say.
    pub async fn facts(&self, client: &SettlementClient) -> Result<Facts, String> {
        let mut transactions = Vec::new();
        for (chain, id) in &self.transactions {
            let status = client.transaction(soon(), chain.clone(), *id).await;
            transactions.push(said(status)?);
        }
        let mut balances = Vec::new();
        for chain in [ChainName::main(), ChainName::vpn()] {
            for key in [&self.provider.payer, &self.provider.payee] {
                let view = client.account(soon(), chain.clone(), key.address()).await;
                balances.push(said(view)?.balance);
            }
        }
        let mut blocks = Vec::new();
        for tip in &self.tips {
            for height in 1..=tip.height {
                let view = client.block(soon(), tip.chain.clone(), height).await;
                let view = said(view)?;
                let events = view.transactions.into_iter().flat_map(|one| one.events);
                let events = events.chain(view.events).collect();
                blocks.push((view.header.block.hash, events));
            }
        }
        let claims = said(client.claims(soon(), None).await)?;
        let payee = self.provider.payee.address();
        Ok(Facts {
            transactions,
            balances,
            channel: said(client.channel(soon(), self.channel).await)?,
            held: claims
                .iter()
                .map(|claim| (claim.channel, claim.redeemable))
                .collect(),
            earnings: said(client.earnings(soon(), payee, 0).await)?,
            blocks,
        })
    }

    /// Brings the held claim once more, as whoever brought it first does.
    pub async fn bring_again(&self, client: &SettlementClient) -> Result<(), String> {
        let held = vec![HeldClaim {
            channel: self.channel,
            claim: self.claim.clone(),
        }];
        said(client.hold(soon(), held).await).map(|_| ())
    }
}

fn said<T, E: ToString, F: ToString>(answer: Result<Result<T, E>, F>) -> Result<T, String> {
    let answer = answer.map_err(|error| error.to_string())?;
    answer.map_err(|error| error.to_string())
}

/// A claim of 3 TOP, as a transaction.
fn paying_claim(provider: &Provider, channel: ChannelId) -> Transaction {
    let voucher = steps::voucher(channel, top(3), 1);
    let preimage = voucher.chain(&provider.payer).preimage(0).unwrap();
    Transaction {
        chain: provider.service.hash(),
        body: Body::Claim(ClaimBody {
            signer: provider.payer.public_key(),
            claim: Claim {
                voucher: voucher.sign(&provider.payer),
                index: 0,
                preimage,
            },
            log_root: steps::LOG_ROOT,
        }),
    }
}
