//! Takes claims from whoever brings them, and tells what is held.
//!
//! Anybody may bring a claim, so what is cheap to find wrong is found first: the number of claims,
//! each one's bytes and token, whether it is better than what is held, the voucher's signature
//! against the channel's signer. Only a channel that is not known here costs a question to a node,
//! a few at a time. It is held if it pays a payee that is served, and the channel was opened with as
//! much as the chain pays a claim for at least, so that nobody takes a place here who has not paid
//! for it. What the channel's chain paid or closed counts only once main has accepted it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use jsonrpsee::{core::async_trait, types::ErrorObjectOwned};
use tokio::{sync::Semaphore, time::timeout};
use topnet_account::{Address, Amount, ChannelId, Hash};
use topnet_api::{
    ApiError, ClaimBytes, ClaimReport, ClaimStage, HeldClaim, HoldReport, RefusedClaim, TowerStatus,
};

use topnet_ledger::state::ChannelState;

use crate::{
    claim::{check, malformed},
    held::{HeldError, Pace},
    node::NodeError,
    now_ms,
    register::Place,
    rpc::{CLAIMS_PER_REQUEST_MAX, TowerServer, refused},
    uptime_ms,
    watch::Watch,
};

/// Requests to hold claims that are worked on at one time.
const HOLDS_MAX: usize = 8;
/// Channels that nodes are asked about at one time for those who bring claims.
const LOOKUPS_MAX: usize = 8;
/// Whoever cannot be served by then is told to come again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers for a tower. Clones answer the same.
#[derive(Clone)]
pub(crate) struct Desk {
    pub watch: Watch,
    pub payees: Arc<BTreeSet<Address>>,
    pub main_genesis: Hash,
    pub channels_max: u64,
    holds: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
}

/// What has been checked of a claim.
type Checked = (ChannelId, ClaimBytes, Amount);

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
        }
    }

    /// Holds what is good and better than what is held; on disk when this returns.
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
        let _turn = turn(&self.holds).await?;
        let (mut checked, mut refused) = (Vec::new(), Vec::new());
        let admitted: Vec<_> = stream::iter(claims)
            .map(|brought| async move {
                let channel = brought.channel;
                (channel, self.admit(brought).await)
            })
            .buffered(LOOKUPS_MAX)
            .collect()
            .await;
        for (channel, outcome) in admitted {
            match outcome {
                Ok(Some(claim)) => checked.push(claim),
                Ok(None) => {}
                Err(error) => refused.push(RefusedClaim { channel, error }),
            }
        }
        let (watch, pace) = (self.watch.clone(), self.pace());
        // Whoever asks may be gone before it is on disk; it is watched all the same.
        let keeping = tokio::task::spawn_blocking(move || {
            let kept = watch.held.hold(&checked, pace, now_ms())?;
            watch.take_up(checked.iter().map(|(channel, ..)| *channel));
            Ok::<_, HeldError>(kept.len() as u64)
        });
        let kept = keeping.await.map_err(unavailable)?.map_err(unavailable)?;
        Ok(HoldReport { kept, refused })
    }

    /// Checks a claim; `None` if there is nothing in it to hold.
    async fn admit(&self, brought: HeldClaim) -> Result<Option<Checked>, ApiError> {
        let HeldClaim { channel: id, claim } = brought;
        let (decoded, worth) = check(&id, &claim).map_err(|fault| malformed(&id, fault))?;
        let held = self.watch.held.get(&id).map_err(unavailable)?;
        if held.is_some_and(|held| worth <= held.redeemable) {
            self.watch.take_up([id]);
            return Ok(None);
        }
        let known = self.watch.register().get(&id).cloned();
        let known = known.and_then(|watched| watched.place);
        let (place, is_worth_it) = match known {
            Some(place) => (place, true),
            None => self.learn(&id, worth).await?,
        };
        if !decoded.is_signed_by(&place.signer) {
            return Err(ApiError::new(
                "signature_wrong",
                format!("the voucher is not signed by {}", place.signer),
                "bring vouchers of the key that the channel was opened with",
            ));
        }
        if !is_worth_it {
            return Ok(None);
        }
        let channels_max = self.channels_max;
        let payee = place.payee;
        let mut register = self.watch.register();
        if !register.reserve(id, place, channels_max, uptime_ms()) {
            return Err(ApiError::new(
                "channels_max",
                format!("claims on {channels_max} channels are held for {payee} already"),
                "bring it again when channels are closed; the tower's owner can raise channels_max",
            ));
        }
        drop(register);
        Ok(Some((id, claim, worth)))
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

    fn pace(&self) -> Pace {
        Pace {
            interval_ms: self.watch.interval_ms,
            exposure: None,
        }
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
        let _turn = turn(&self.holds).await.map_err(refused)?;
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
        Ok(Err(_)) | Err(_) => Err(ApiError::new(
            "busy",
            "the tower has too much to do just now",
            "come again in a minute",
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
