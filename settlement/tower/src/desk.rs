//! Takes claims from whoever brings them, and tells what is held.
//!
//! Anybody may bring a claim, so what is cheap to find wrong is found first: the number of claims,
//! each one's bytes and token, whether it is better than what is held, the voucher's signature
//! against the channel's signer. Only a channel that is not known here costs a question to a node,
//! a few at a time, and those that are known wait for none of that. It is held if it pays a payee
//! that is served, and the channel was opened with as much as the chain pays a claim for at least,
//! so that nobody takes a place here who has not paid for it. What the channel's chain paid or
//! closed counts only once main has accepted it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use jsonrpsee::{core::async_trait, types::ErrorObjectOwned};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey};
use topnet_api::{
    ApiError, ClaimBytes, ClaimReport, ClaimStage, HeldClaim, HoldReport, RefusedClaim, TowerStatus,
};
use topnet_channel::Claim;
use topnet_ledger::state::ChannelState;

use crate::{
    claim::{check, malformed},
    held::{HeldError, Pace},
    node::NodeError,
    now_ms,
    register::Place,
    rpc::{CLAIMS_PER_REQUEST_MAX, REQUEST_TIMEOUT, TowerServer, refused},
    watch::Watch,
};

/// Requests with claims on unknown channels that are worked on at one time.
const HOLDS_MAX: usize = 8;
/// Requests for what is held that are worked on at one time.
const LISTINGS_MAX: usize = 4;
/// Channels that nodes are asked about at one time for those who bring claims.
const LOOKUPS_MAX: usize = 8;
/// Whoever cannot be served by then is told to come again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nodes are not asked for longer about the channels of one request, so that it is answered before
/// whoever waits for it gives up.
const BUDGET: Duration = Duration::from_secs(15);

const _: () = assert!(2 * BUDGET.as_millis() <= REQUEST_TIMEOUT.as_millis());

/// Answers for a tower. Clones answer the same.
#[derive(Clone)]
pub(crate) struct Desk {
    pub watch: Watch,
    pub payees: Arc<BTreeSet<Address>>,
    pub main_genesis: Hash,
    pub channels_max: u64,
    holds: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    listings: Arc<Semaphore>,
}

/// What has been checked of a claim.
type Checked = (ChannelId, ClaimBytes, Amount);

/// What a claim is, as far as is known without a node.
enum Assessed {
    /// No better than what is held.
    Nothing,
    /// Good, on a channel that is watched.
    Known(Checked),
    /// On a channel that nodes are to be asked about.
    Unknown(Checked, Claim),
}

impl Desk {
    pub(crate) fn new(
        watch: Watch,
        payees: impl IntoIterator<Item = Address>,
        main_genesis: Hash,
        channels_max: u64,
    ) -> Self {
        Self {
            watch,
            payees: Arc::new(payees.into_iter().collect()),
            main_genesis,
            channels_max,
            holds: Arc::new(Semaphore::new(HOLDS_MAX)),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            listings: Arc::new(Semaphore::new(LISTINGS_MAX)),
        }
    }

    /// Holds what is good and better than what is held; on disk when this returns. Channels that
    /// are known wait for nobody.
    async fn keep(&self, claims: Vec<HeldClaim>) -> Result<HoldReport, ApiError> {
        if claims.len() > CLAIMS_PER_REQUEST_MAX {
            return Err(ApiError::new(
                "claims_max",
                format!(
                    "{} claims in one request; {CLAIMS_PER_REQUEST_MAX} are taken",
                    claims.len()
                ),
                "bring them in several requests",
            ));
        }
        let (mut known, mut unknown, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for brought in claims {
            let channel = brought.channel;
            match self.assess(brought) {
                Ok(Assessed::Nothing) => {}
                Ok(Assessed::Known(claim)) => known.push(claim),
                Ok(Assessed::Unknown(claim, decoded)) => unknown.push((claim, decoded)),
                Err(error) => refused.push(RefusedClaim { channel, error }),
            }
        }
        let mut kept = self.write(known).await?;
        if !unknown.is_empty() {
            let mut admitted = Vec::new();
            for (channel, outcome) in self.admit_all(unknown).await {
                match outcome {
                    Ok(Some(claim)) => admitted.push(claim),
                    Ok(None) => {}
                    Err(error) => refused.push(RefusedClaim { channel, error }),
                }
            }
            kept += self.write(admitted).await?;
        }
        Ok(HoldReport { kept, refused })
    }

    /// Holds claims and watches their channels.
    async fn write(&self, checked: Vec<Checked>) -> Result<u64, ApiError> {
        let watch = self.watch.clone();
        let pace = Pace {
            interval_ms: watch.interval_ms,
            exposure: None,
        };
        // Whoever asks may be gone before it is on disk; it is watched all the same.
        let keeping = tokio::task::spawn_blocking(move || {
            let kept = watch.held.hold(&checked, pace, now_ms())?;
            watch.take_up(checked.iter().map(|(channel, ..)| *channel));
            Ok::<_, HeldError>(kept.len() as u64)
        });
        keeping.await.map_err(unavailable)?.map_err(unavailable)
    }

    /// Checks what can be checked of a claim without a node.
    fn assess(&self, brought: HeldClaim) -> Result<Assessed, ApiError> {
        let HeldClaim { channel: id, claim } = brought;
        let (decoded, worth) = check(&id, &claim).map_err(|fault| malformed(&id, fault))?;
        let held = self.watch.held.get(&id).map_err(unavailable)?;
        if held.is_some_and(|held| worth <= held.redeemable) {
            self.watch.take_up([id]);
            return Ok(Assessed::Nothing);
        }
        let known = self.watch.register().get(&id).cloned();
        let claim = (id, claim, worth);
        let Some(place) = known.and_then(|watched| watched.place) else {
            return Ok(Assessed::Unknown(claim, decoded));
        };
        signed_by(&decoded, &place.signer)?;
        Ok(Assessed::Known(claim))
    }

    /// Checks claims on channels that are not known, as many as there is time for: whoever brought
    /// them shall hear of those that are held.
    async fn admit_all(
        &self,
        claims: Vec<(Checked, Claim)>,
    ) -> Vec<(ChannelId, Result<Option<Checked>, ApiError>)> {
        let until = Instant::now() + BUDGET;
        let _turn = match turn(&self.holds).await {
            Ok(turn) => turn,
            Err(busy) => {
                let refused = claims.into_iter();
                return refused
                    .map(|((channel, ..), _)| (channel, Err(busy.clone())))
                    .collect();
            }
        };
        stream::iter(claims)
            .map(|(claim, decoded)| async move {
                let channel = claim.0;
                let admitted = timeout_at(until, self.admit(claim, &decoded)).await;
                (channel, admitted.unwrap_or_else(|_| Err(busy())))
            })
            .buffered(LOOKUPS_MAX)
            .collect()
            .await
    }

    /// Checks a claim on a channel that is not known; `None` if there is nothing in it to hold.
    async fn admit(&self, claim: Checked, decoded: &Claim) -> Result<Option<Checked>, ApiError> {
        let (id, _, worth) = &claim;
        let (place, is_worth_it) = self.learn(id, *worth).await?;
        signed_by(decoded, &place.signer)?;
        if !is_worth_it {
            return Ok(None);
        }
        let channels_max = self.channels_max;
        let payee = place.payee;
        let reserved = self.watch.reserve(*id, &place, channels_max);
        if !reserved.map_err(unavailable)? {
            return Err(ApiError::new(
                "channels_max",
                format!("claims on {channels_max} channels are held for {payee} already"),
                "bring it again when channels are closed; the tower's owner can raise channels_max",
            ));
        }
        Ok(Some(claim))
    }

    /// Asks the nodes about a channel that is not known here, and whether there is, or may be
    /// again, enough to claim.
    async fn learn(&self, id: &ChannelId, worth: Amount) -> Result<(Place, bool), ApiError> {
        let _turn = turn(&self.lookups).await?;
        let nodes = &self.watch.nodes;
        let shown = nodes.find(id).await.map_err(unanswered)?;
        let channel = &shown.value;
        if !self.payees.contains(&channel.payee) {
            return Err(ApiError::new(
                "payee_not_served",
                format!(
                    "channel {id} pays {}, whose claims are not held here",
                    channel.payee
                ),
                "ask the tower's owner to add the payee to [tower] payees",
            ));
        }
        let place = Place {
            chain: shown.chain.name.clone(),
            genesis: shown.chain.hash,
            payee: channel.payee,
            signer: channel.signer,
        };
        // What was paid or closed there is void if its service dies before main has accepted it.
        let payout_min = shown.chain.genesis.rules.claim_payout_min;
        let is_backed = worth.min(channel.allocation) >= payout_min;
        let is_over = channel.state == ChannelState::Closed
            && nodes
                .is_accepted(&shown.chain, shown.proved_height)
                .await
                .map_err(unanswered)?;
        Ok((place, is_backed && !is_over))
    }

    fn reports(&self, after: Option<ChannelId>) -> Result<Vec<ClaimReport>, HeldError> {
        let mut reports = Vec::new();
        for channel in self.watch.held.channels(after.as_ref())? {
            let Some(held) = self.watch.held.get(&channel)? else {
                continue;
            };
            let watched = self.watch.register().get(&channel).cloned();
            let watched = watched.unwrap_or_default();
            let paid = watched.paid.max(held.paid);
            reports.push(ClaimReport {
                channel,
                stage: match held.submitted {
                    _ if paid >= held.redeemable => ClaimStage::Claimed,
                    Some(_) if watched.is_due => ClaimStage::Claiming,
                    _ => ClaimStage::Accepted,
                },
                redeemable: held.redeemable,
                paid,
                due_ms: held.due_ms,
                deadline: watched.deadline,
                transaction: held.submitted,
                service_block: None,
                main_block: None,
                alarm: watched.alarm,
            });
        }
        Ok(reports)
    }

    pub(crate) fn at_a_glance(&self) -> TowerStatus {
        let register = self.watch.register();
        let (due, alarms) = register.counts();
        TowerStatus {
            main_genesis: self.main_genesis,
            payees: self.payees.iter().copied().collect(),
            held: register.len() as u64,
            due,
            alarms,
            nodes: self.watch.nodes.statuses(),
        }
    }
}

#[async_trait]
impl TowerServer for Desk {
    async fn hold(&self, claims: Vec<HeldClaim>) -> Result<HoldReport, ErrorObjectOwned> {
        self.keep(claims).await.map_err(refused)
    }

    async fn claims(&self, after: Option<ChannelId>) -> Result<Vec<ClaimReport>, ErrorObjectOwned> {
        let _turn = turn(&self.listings).await.map_err(refused)?;
        let desk = self.clone();
        let reports = tokio::task::spawn_blocking(move || desk.reports(after)).await;
        let reports = reports.map_err(unavailable).map_err(refused)?;
        reports.map_err(unavailable).map_err(refused)
    }

    async fn status(&self) -> Result<TowerStatus, ErrorObjectOwned> {
        Ok(self.at_a_glance())
    }
}

async fn turn(turns: &Semaphore) -> Result<tokio::sync::SemaphorePermit<'_>, ApiError> {
    match timeout(PATIENCE, turns.acquire()).await {
        Ok(Ok(turn)) => Ok(turn),
        Ok(Err(_)) | Err(_) => Err(busy()),
    }
}

fn busy() -> ApiError {
    ApiError::new(
        "busy",
        "the tower has too much to do just now",
        "come again in a minute",
    )
}

fn signed_by(claim: &Claim, signer: &PublicKey) -> Result<(), ApiError> {
    match claim.is_signed_by(signer) {
        true => Ok(()),
        false => Err(ApiError::new(
            "signature_wrong",
            format!("the voucher is not signed by {signer}"),
            "bring vouchers of the key that the channel was opened with",
        )),
    }
}

fn unanswered(error: NodeError) -> ApiError {
    match error {
        NodeError::Refused(refusal) => refusal,
        NodeError::Silent(problem) => {
            let mend = "bring it again when the tower reaches a node";
            ApiError::new("node_unreachable", problem, mend)
        }
    }
}

fn unavailable(error: impl std::fmt::Display) -> ApiError {
    let mend = "keep the claim and bring it again; the tower's log says more";
    ApiError::new("tower_unavailable", error.to_string(), mend)
}
