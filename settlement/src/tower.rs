//! Makes the payee's claims in time, whether metering runs or not.
//!
//! What metering hands over is held on disk. A claim is made
//!
//! | when | what |
//! |---|---|
//! | it has been held for the interval, or more than the exposure is unclaimed | a claim; the channel stays open |
//! | a quarter of the close window, or of the recovery window of a dead service's channel, has passed and nobody has closed the channel | a claim |
//! | a quarter of it is left | the payee's close, which also pays what is too little for a claim |
//!
//! as [`decide`] says, which towers elsewhere ask too.
//!
//! The first quarter belongs to control, which asks metering for the last claim and closes with it.
//! A claim needs no signature of the payee, so whoever holds it can make it. Fees are the chain's
//! and what a claim pays decides how soon it goes; there is nothing to bid.
//!
//! Nothing is submitted that is not noted first, and what is noted is submitted again until the
//! channel's record shows that it was paid. Repeating a claim pays nothing twice.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use topnet_account::{Amount, ChannelId, Hash};
use topnet_api::{ApiError, ClaimReport, ClaimStage, HeldClaim};
use topnet_chain::Standing;
use topnet_ledger::{
    Transaction,
    state::{Channel, ChannelState},
    transaction::Body,
};
use topnet_tower::{
    claim::{check, claim_body, malformed},
    decision::{Decision, Patience, Situation, decide},
    held::{Held, HeldError, HeldRecord, Pace},
    now_ms,
};
use tracing::{info, warn};

use crate::{
    chains::{Chains, Running, unless_stopped},
    close::{Closer, unavailable},
    handover::Handover,
    index::Index,
    settled::settled,
    start::TaskError,
};

/// Claims that fall due and are looked at in one go; more wait for the next look.
const DUE_MAX: usize = 256;

/// Holds claims and makes them. Clones are the same.
#[derive(Clone)]
pub(crate) struct Tower {
    pub chains: Chains,
    pub index: Index,
    pub held: Held,
    pub closer: Closer,
    pub pace: Pace,
    /// What may cost money if nobody does anything, by channel.
    pub alarms: Arc<Mutex<BTreeMap<ChannelId, String>>>,
    /// Told of what is held anew.
    pub handover: Handover,
}

/// How a channel stands that a claim is held for.
struct Sight {
    /// Where the channel is: on its service's chain, or on main if that is dead.
    home: Running,
    channel: Channel,
    held: HeldRecord,
}

impl Tower {
    /// Keeps those of the claims that are worth more than what is held.
    pub(crate) async fn hold(&self, claims: Vec<HeldClaim>) -> Result<u64, ApiError> {
        let mut checked = Vec::with_capacity(claims.len());
        for HeldClaim { channel, claim } in claims {
            let (_, worth) = check(&channel, &claim).map_err(|fault| malformed(&channel, fault))?;
            checked.push((channel, claim, worth));
        }
        let (held, pace, handover) = (self.held.clone(), self.pace, self.handover.clone());
        // Whoever asks may be gone before it is on disk; it is handed over all the same.
        let keeping = tokio::task::spawn_blocking(move || {
            let kept = held.hold(&checked, pace, now_ms())?;
            handover.note(&kept);
            Ok::<_, HeldError>(kept.len() as u64)
        });
        keeping.await.map_err(unavailable)?.map_err(unavailable)
    }

    /// Looks at what is due and at what is about to end, for good.
    pub(crate) async fn run(self) -> Result<(), TaskError> {
        loop {
            unless_stopped(self.look().await)?;
            tokio::time::sleep(self.chains.look_interval()).await;
        }
    }

    async fn look(&self) -> Result<(), TaskError> {
        let mut ending = BTreeMap::new();
        let mut after = None;
        loop {
            let payee = self.closer.payee.address();
            let page = self.index.closing_of(&payee, after.as_ref())?;
            let Some(last) = page.last() else {
                break;
            };
            after = Some(*last);
            for id in page {
                if let Some(alarm) = self.look_at_ending(&id).await? {
                    ending.insert(id, alarm);
                }
            }
        }
        self.note_alarms(ending);
        for id in self.held.due(now_ms(), DUE_MAX)? {
            self.look_at_due(&id).await?;
        }
        Ok(())
    }

    /// A channel that is about to end without the payee's doing; gives what may cost money.
    async fn look_at_ending(&self, id: &ChannelId) -> Result<Option<String>, TaskError> {
        let Some(sight) = self.sight(id).await? else {
            return Ok(None);
        };
        let ChannelState::Closing { deadline } = sight.channel.state else {
            return Ok(None);
        };
        if sight.home.halted {
            return Ok(None);
        }
        let problem = match decide(&sight.situation(false), Patience::OWN) {
            Decision::LastChance { .. } => {
                let closed = self.closer.close(*id, Some(sight.held.claim())).await;
                closed.err().map(|error| error.to_string())
            }
            Decision::InTime { pays: true } => self.claim(id, &sight).await?,
            Decision::InTime { pays: false } => None,
            Decision::Over
            | Decision::Paid
            | Decision::Wait
            | Decision::Small
            | Decision::Claim => return Ok(None),
        };
        let problem = problem.map_or_else(String::new, |problem| format!(": {problem}"));
        let left = deadline.saturating_sub(sight.home.chain.tip().height());
        Ok(Some(format!(
            "{} can be claimed for {left} blocks more{problem}",
            sight.unpaid()
        )))
    }

    /// A channel whose claim has waited long enough, or has become large enough.
    async fn look_at_due(&self, id: &ChannelId) -> Result<(), TaskError> {
        let later = now_ms().saturating_add(self.pace.interval_ms);
        let Some(sight) = self.sight(id).await? else {
            // The chain does not know the channel yet, or the index of ours is behind.
            return Ok(self.held.change(id, |held| held.due_ms = Some(later))?);
        };
        let decision = decide(&sight.situation(true), Patience::OWN);
        let is_over = decision == Decision::Over;
        let done = is_over || decision == Decision::Paid;
        // What is about to end is looked at beside, due or not.
        if decision != Decision::Claim || sight.home.halted {
            let worth = sight.held.redeemable;
            return Ok(self.held.change(id, |held| {
                held.paid = sight.channel.paid;
                // A better one may have come since.
                if is_over || held.redeemable == worth {
                    held.due_ms = (!done).then_some(later);
                }
            })?);
        }
        if let Some(problem) = self.claim(id, &sight).await? {
            warn!(channel = %id, problem, "a claim is refused; trying again");
        }
        Ok(())
    }

    /// Hands the claim in, unless it waits there already; gives why it is refused.
    async fn claim(&self, id: &ChannelId, sight: &Sight) -> Result<Option<String>, TaskError> {
        let body = match claim_body(id, &sight.channel, &sight.held.claim()) {
            Ok(body) => body,
            Err(fault) => return Ok(Some(fault.to_string())),
        };
        let chain = &sight.home.chain;
        let transaction = Transaction {
            chain: chain.genesis(),
            body: Body::Claim(body),
        };
        let transaction_id = transaction.id();
        if matches!(chain.standing(&transaction_id), Standing::Waiting(_)) {
            return Ok(None);
        }
        self.held
            .change(id, |held| held.submitted = Some(transaction_id))?;
        match chain.submit(transaction.to_bytes()).await {
            Ok(_) => {
                info!(channel = %id, transaction = %transaction_id, unpaid = %sight.unpaid(), "claiming");
                Ok(None)
            }
            Err(reason) => Ok(Some(reason.to_string())),
        }
    }

    async fn sight(&self, id: &ChannelId) -> Result<Option<Sight>, TaskError> {
        let Some(held) = self.held.get(id)? else {
            return Ok(None);
        };
        let found = self.chains.channel(id).await?;
        Ok(found.map(|(home, channel)| Sight {
            home,
            channel,
            held,
        }))
    }

    /// Says what is new.
    fn note_alarms(&self, now: BTreeMap<ChannelId, String>) {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        for (channel, alarm) in &now {
            if !alarms.contains_key(channel) {
                warn!(%channel, alarm, "a channel is about to end, and nobody has closed it");
            }
        }
        *alarms = now;
    }

    /// How the claims stand, behind `after` in the order of their channels.
    pub(crate) async fn reports(
        &self,
        after: Option<ChannelId>,
    ) -> Result<Vec<ClaimReport>, TaskError> {
        let mut reports = Vec::new();
        for id in self.held.channels(after.as_ref())? {
            if let Some(sight) = self.sight(&id).await? {
                reports.push(self.report(id, &sight).await?);
            }
        }
        Ok(reports)
    }

    async fn report(&self, id: ChannelId, sight: &Sight) -> Result<ClaimReport, TaskError> {
        let end = self.index.channel(&id)?.and_then(|record| record.end);
        let by_claim = |transaction: &Hash| self.index.transaction(&sight.home.name, transaction);
        let (transaction, service_block) = match end {
            Some(end) => (Some(end.transaction), Some(end.block)),
            None => {
                let found = sight.held.submitted.as_ref().map(by_claim).transpose()?;
                let block = found.flatten().map(|found| found.block);
                (sight.held.submitted, block)
            }
        };
        let claimed = sight.unpaid() == Amount::ZERO;
        let main_block = match &service_block {
            Some(block) if claimed => settled(&self.chains, &[sight.channel.payee], block).await?,
            _ => None,
        };
        let stage = if main_block.is_some() {
            ClaimStage::Settled
        } else if claimed {
            ClaimStage::Claimed
        } else if matches!(
            transaction.map(|id| sight.home.chain.standing(&id)),
            Some(Standing::Waiting(_))
        ) {
            ClaimStage::Claiming
        } else {
            ClaimStage::Accepted
        };
        let alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(ClaimReport {
            channel: id,
            stage,
            redeemable: sight.held.redeemable,
            paid: sight.channel.paid,
            due_ms: sight.held.due_ms,
            deadline: match sight.channel.state {
                ChannelState::Closing { deadline } => Some(deadline),
                ChannelState::Open | ChannelState::Closed => None,
            },
            transaction,
            service_block,
            main_block,
            // It stands there until the next look.
            alarm: alarms.get(&id).filter(|_| !claimed).cloned(),
        })
    }
}

impl Sight {
    fn situation(&self, is_due: bool) -> Situation {
        let height = self.home.chain.tip().height();
        let redeemable = self.held.redeemable;
        Situation::of(
            &self.home.genesis,
            &self.channel,
            height,
            redeemable,
            is_due,
        )
    }

    /// What the claim would still pay.
    fn unpaid(&self) -> Amount {
        self.situation(false).unpaid
    }
}
