//! Looks at every channel that a claim is held for, and makes the claim when it is time.
//!
//! A channel is looked at several times in what its close window takes, so that its end is seen
//! early enough. A claim is noted before it is handed to the nodes, and handed in again until the
//! channel's proved state shows that it was paid. Repeating it pays nothing twice. What goes wrong is tried
//! again for ever, and is an alarm meanwhile.
//!
//! What a service's chain did after the state that main accepted last is void if the service dies.
//! So a closed channel's claim is held until main has accepted its end.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::Notify;
use topnet_account::{Amount, ChannelId};
use topnet_api::ChainName;
use topnet_ledger::{
    Transaction,
    state::{Channel, ChannelState},
    transaction::Body,
};
use tracing::{error, info, warn};

use crate::{
    claim::claim_body,
    decision::{Decision, Patience, Situation, decide},
    held::{Held, HeldError, HeldRecord},
    node::{NodeError, STATE_ABSENT},
    nodes::{Nodes, Recovered, Shown},
    now_ms,
    register::{Place, Register, Watched},
    uptime_ms,
};

/// Channels that are looked at at one time.
const LOOKS_MAX: usize = 32;
/// Places that may turn out not to be spare before whoever wants one is refused.
const SPARES_TRIED_MAX: usize = 8;
/// An open channel is looked at so often in its window, one that is about to end more often: it
/// is acted in from the half on, and there are few.
const LOOKS_OPEN: u64 = 8;
const LOOKS_CLOSING: u64 = 32;
/// Nothing is looked at more or less often.
const LOOK_MS_MIN: u64 = 200;
const LOOK_MS_MAX: u64 = 600_000;
/// What went wrong is tried again after this, then after twice as long, and so on.
const RETRY_MS: u64 = 500;
const RETRY_MS_MAX: u64 = 30_000;
/// Nobody sleeps longer: a claim that comes meanwhile is looked at in time anyway.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Looks and claims. Clones are the same.
#[derive(Clone)]
pub(crate) struct Watch {
    pub nodes: Nodes,
    pub held: Held,
    pub register: Arc<Mutex<Register>>,
    /// Told when there is something new to look at.
    pub news: Arc<Notify>,
    /// An open channel is claimed if nobody has claimed it for so long.
    pub interval_ms: u64,
}

/// Why a look brought nothing.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Held(#[from] HeldError),
}

/// What main has of a channel whose service's chain shows nothing new.
enum OnMain {
    /// Nothing yet.
    NotThere,
    /// It was recovered.
    Shown(Box<Shown<Channel>>),
    /// It had ended before.
    Over,
}

/// What came of a look.
enum Looked {
    /// There is nothing to hold any more.
    Over,
    /// What was seen, and when to look again.
    Seen { watched: Box<Watched>, look_ms: u64 },
}

impl Watch {
    /// Takes up all that is held.
    pub(crate) fn begin(&self) -> Result<(), HeldError> {
        let mut after = None;
        loop {
            let page = self.held.channels(after.as_ref())?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(*last);
            let mut register = self.register();
            for id in page {
                // A record that cannot be read is an alarm when it is looked at.
                let held = self.held.get(&id).ok().flatten();
                register.watch_at(id, held.and_then(|held| held.place), 0);
            }
        }
    }

    /// Watches channels whose claims are on disk, those among them that it does not watch.
    pub(crate) fn take_up(&self, channels: impl IntoIterator<Item = ChannelId>) {
        let mut register = self.register();
        for channel in channels {
            register.watch(channel, uptime_ms());
        }
        drop(register);
        self.news.notify_one();
    }

    /// Looks and claims for good.
    pub(crate) async fn run(self) {
        let mut looks = FuturesUnordered::new();
        loop {
            // One that takes long keeps no other from being looked at.
            while looks.len() < LOOKS_MAX
                && let Some(id) = self.register().take_due(uptime_ms())
            {
                let watch = &self;
                looks.push(async move { watch.look_once(id).await });
            }
            let next_ms = self.register().next_ms();
            let left_ms = next_ms.map(|next_ms| next_ms.saturating_sub(uptime_ms()));
            let left = left_ms.map_or(SLEEP_MAX, Duration::from_millis);
            // Whatever ends first, it looks whether something is due.
            tokio::select! {
                Some(()) = looks.next() => {}
                () = self.news.notified() => {}
                () = tokio::time::sleep(left.min(SLEEP_MAX)), if looks.len() < LOOKS_MAX => {}
            }
        }
    }

    /// The channels that are watched.
    pub(crate) fn register(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_once(&self, id: ChannelId) {
        let before = self.register().get(&id).cloned().unwrap_or_default();
        let looked = self.look(&id, &before).await;
        let (watched, look_ms) = match looked {
            Ok(Looked::Over) => return self.leave(&id),
            Ok(Looked::Seen { watched, look_ms }) => (*watched, look_ms),
            Err(error) => {
                let tries = before.tries.saturating_add(1);
                let watched = Watched {
                    alarm: Some(format!("it cannot be looked at: {error}")),
                    tries,
                    ..before.clone()
                };
                (watched, uptime_ms().saturating_add(retry_ms(tries)))
            }
        };
        match (&before.alarm, &watched.alarm) {
            (None, Some(alarm)) => warn!(channel = %id, alarm, "a claim may be lost"),
            (Some(_), None) => info!(channel = %id, "the alarm is over"),
            _ => {}
        }
        self.register().looked(&id, watched, look_ms);
    }

    /// Watches a channel that was just seen, if its payee has a place for it: when all are taken,
    /// one whose claim brings less than a claim's least is given up for it. False if there is none.
    pub(crate) fn reserve(
        &self,
        id: ChannelId,
        place: &Place,
        channels_max: u64,
    ) -> Result<bool, HeldError> {
        let mut register = self.register();
        for _ in 0..SPARES_TRIED_MAX {
            match register.reserve(id, place, channels_max, uptime_ms()) {
                Ok(()) => return Ok(true),
                Err(None) => return Ok(false),
                Err(Some((spare, worth))) => {
                    let is_spare = |held: &HeldRecord| held.redeemable == worth;
                    if self.held.forget_if(&spare, is_spare)? {
                        info!(channel = %spare, "its place is another's");
                        register.forget(&spare);
                    } else {
                        register.is_needed(&spare);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Watches a channel no more that there is nothing to hold for. What has come meanwhile is
    /// looked at: whoever brings a claim writes it before it is to be watched.
    fn leave(&self, id: &ChannelId) {
        let mut register = self.register();
        match self.held.get(id) {
            Ok(None) => register.forget(id),
            Ok(Some(_)) | Err(_) => {
                register.looked(id, Watched::default(), uptime_ms().saturating_add(RETRY_MS));
            }
        }
    }

    async fn look(&self, id: &ChannelId, before: &Watched) -> Result<Looked, LookError> {
        let Some(record) = self.held.get(id)? else {
            return Ok(Looked::Over);
        };
        let Some(shown) = self.sight(id, before).await? else {
            return self.give_up(id, &record, before.paid);
        };
        let (channel, genesis) = (&shown.value, &shown.chain.genesis);
        let now = now_ms();
        // What others claim in time need not be claimed from here.
        let is_new = channel.paid > record.paid || record.due_ms.is_none();
        let later = now.saturating_add(self.interval_ms);
        let due_ms = record.due_ms.filter(|_| !is_new).unwrap_or(later);
        // It may have been noted by a clock that was wrong.
        let due_ms = due_ms.min(later);
        let is_due = due_ms <= now;
        let situation = Situation::of(genesis, channel, shown.height, record.redeemable, is_due);
        let decision = decide(&situation, Patience::ELSEWHERE);
        let closed =
            (decision == Decision::Over).then(|| before.closed.unwrap_or(shown.proved_height));
        if let Some(closed) = closed
            && self.nodes.is_accepted(&shown.chain, closed).await?
        {
            return self.give_up(id, &record, channel.paid);
        }
        let due_ms = match decision {
            Decision::Over | Decision::Paid => None,
            Decision::Small => Some(later),
            _ => Some(due_ms),
        };
        let place = Place {
            chain: shown.chain.name.clone(),
            genesis: shown.chain.hash,
            payee: channel.payee,
            signer: channel.signer,
        };
        let noted = self.note(id, &record, &place, channel.paid, due_ms);
        let claims = matches!(
            decision,
            Decision::Claim | Decision::InTime { pays: true } | Decision::LastChance { pays: true }
        );
        let claimed = match claims {
            true => self.claim(id, &record, &shown, situation.unpaid).await,
            false => None,
        };
        let problem = noted.err().map(|error| error.to_string()).or(claimed);
        let alarm = alarm(&situation, decision, &shown, problem);
        let tries = match claims || shown.is_stale() {
            true => before.tries.saturating_add(1),
            false => 0,
        };
        let wait_ms = match tries {
            0 => look_ms(&situation, genesis.block_interval_ms),
            // The next block may show it already.
            _ => retry_ms(tries).min(look_ms(&situation, genesis.block_interval_ms)),
        };
        let wait_ms = match (decision, due_ms) {
            (Decision::Wait, Some(due_ms)) => wait_ms.min(due_ms.saturating_sub(now)),
            _ => wait_ms,
        };
        let deadline = match channel.state {
            ChannelState::Closing { deadline } => Some(deadline),
            ChannelState::Open | ChannelState::Closed => None,
        };
        let watched = Watched {
            place: Some(place),
            paid: channel.paid,
            deadline,
            deadline_ms: deadline.map(|deadline| {
                let left = deadline.saturating_sub(shown.height);
                uptime_ms().saturating_add(left.saturating_mul(genesis.block_interval_ms))
            }),
            closed,
            is_due: claims,
            // What is closed goes by itself.
            spare: (situation.unpaid < situation.payout_min && closed.is_none())
                .then_some(record.redeemable),
            alarm,
            tries,
        };
        let look_ms = uptime_ms().saturating_add(wait_ms);
        let watched = Box::new(watched);
        Ok(Looked::Seen { watched, look_ms })
    }

    /// The channel wherever it is; `None` if its end is main's too. One whose service's chain shows
    /// nothing new may be on main.
    async fn sight(
        &self,
        id: &ChannelId,
        before: &Watched,
    ) -> Result<Option<Shown<Channel>>, NodeError> {
        let Some(place) = &before.place else {
            return self.nodes.find(id).await.map(Some);
        };
        let shown = self
            .nodes
            .channel(&place.chain, Some(&place.genesis), id)
            .await;
        let is_new = shown.as_ref().is_ok_and(|shown| !shown.is_stale());
        if is_new || place.chain == ChainName::main() {
            return shown.map(Some);
        }
        match self.on_main(id, place, before.closed).await? {
            OnMain::NotThere => shown.map(Some),
            OnMain::Shown(shown) => Ok(Some(*shown)),
            OnMain::Over => Ok(None),
        }
    }

    /// A dead service's channel on main, brought there if it is not there yet. `closed` is the
    /// height of its service at which its end was seen.
    async fn on_main(
        &self,
        id: &ChannelId,
        place: &Place,
        closed: Option<u64>,
    ) -> Result<OnMain, NodeError> {
        // What the service's chain proved is better than nothing, however old it is.
        let Ok(shown) = self.nodes.service(&place.genesis).await else {
            return Ok(OnMain::NotThere);
        };
        let (service, next) = (&shown.value, shown.height.saturating_add(1));
        if !service.is_dead(&shown.chain.genesis.rules, next) {
            return Ok(OnMain::NotThere);
        }
        if closed.is_some_and(|closed| service.height >= closed) {
            return Ok(OnMain::Over);
        }
        match self.nodes.channel(&ChainName::main(), None, id).await {
            Ok(shown) => return Ok(OnMain::Shown(Box::new(shown))),
            Err(error) if error.is(STATE_ABSENT) => {}
            Err(error) => return Err(error),
        }
        match self.nodes.recover(&place.genesis, service, id).await? {
            Recovered::Submitted => {
                info!(channel = %id, chain = %place.chain, "its service is dead; recovering it");
                Ok(OnMain::NotThere)
            }
            // The end was seen some time after it came, and had been accepted meanwhile.
            Recovered::Nothing if closed.is_some() => Ok(OnMain::Over),
            Recovered::Nothing => {
                let told = "every node says that there is nothing to recover of it";
                Err(NodeError::Silent(told.to_owned()))
            }
        }
    }

    /// Hands the claim in; gives what is wrong.
    async fn claim(
        &self,
        id: &ChannelId,
        record: &HeldRecord,
        shown: &Shown<Channel>,
        unpaid: Amount,
    ) -> Option<String> {
        let body = match claim_body(id, &shown.value, &record.claim()) {
            Ok(body) => body,
            Err(fault) => return Some(fault.to_string()),
        };
        let transaction = Transaction {
            chain: shown.chain.hash,
            body: Body::Claim(body),
        };
        let transaction_id = transaction.id();
        let is_new = record.submitted != Some(transaction_id);
        let noted = self
            .held
            .change(id, |held| held.submitted = Some(transaction_id));
        // A disk that is full must not cost the claim: nothing rests on the note but what is
        // told, because a start looks at the chain.
        if let Err(error) = noted {
            error!(channel = %id, %error, "claiming without a note of it");
        }
        let bytes = transaction.to_bytes();
        match self.nodes.submit(&shown.chain, &bytes).await {
            Ok(()) => {
                if is_new {
                    info!(channel = %id, transaction = %transaction_id, %unpaid, "claiming");
                }
                None
            }
            Err(error) => Some(error.to_string()),
        }
    }

    /// Notes where the channel is, what is paid and when the claim falls due.
    fn note(
        &self,
        id: &ChannelId,
        record: &HeldRecord,
        place: &Place,
        paid: Amount,
        due_ms: Option<u64>,
    ) -> Result<(), HeldError> {
        self.held.change(id, |held| {
            held.place = Some(place.clone());
            held.paid = paid;
            // A better one may have come since.
            if due_ms.is_some() || held.redeemable == record.redeemable {
                held.due_ms = due_ms;
            }
        })
    }

    /// Forgets a channel whose end is main's too.
    fn give_up(
        &self,
        id: &ChannelId,
        record: &HeldRecord,
        paid: Amount,
    ) -> Result<Looked, LookError> {
        let lost = record.redeemable.checked_sub(paid);
        match lost.filter(|lost| *lost > Amount::ZERO) {
            Some(lost) => warn!(channel = %id, %lost, "closed before all that is held was paid"),
            None => info!(channel = %id, %paid, "closed, and all is paid"),
        }
        self.held.forget(id)?;
        Ok(Looked::Over)
    }
}

/// What may cost money if nobody does anything.
fn alarm(
    situation: &Situation,
    decision: Decision,
    shown: &Shown<Channel>,
    problem: Option<String>,
) -> Option<String> {
    let unpaid = situation.unpaid;
    if let (
        Decision::InTime { .. } | Decision::LastChance { .. },
        ChannelState::Closing { deadline },
    ) = (decision, situation.state)
    {
        let left = deadline.saturating_sub(situation.height);
        let problem = problem.map_or_else(String::new, |problem| format!(": {problem}"));
        return Some(format!(
            "{unpaid} can be claimed for {left} blocks more{problem}"
        ));
    }
    if shown.is_stale() && decision != Decision::Paid {
        let age_s = shown.age_ms / 1_000;
        return Some(format!(
            "{unpaid} is unclaimed, and no node shows what has happened for {age_s} s"
        ));
    }
    problem.map(|problem| format!("{unpaid} cannot be claimed: {problem}"))
}

/// How long a channel that goes on as it should is left alone.
fn look_ms(situation: &Situation, block_interval_ms: u64) -> u64 {
    let looks = match situation.state {
        ChannelState::Closing { .. } => LOOKS_CLOSING,
        ChannelState::Open | ChannelState::Closed => LOOKS_OPEN,
    };
    let window_ms = situation.window.saturating_mul(block_interval_ms);
    (window_ms / looks).clamp(LOOK_MS_MIN, LOOK_MS_MAX)
}

/// How long to wait after so many tries in vain.
fn retry_ms(tries: u32) -> u64 {
    let doublings = tries.saturating_sub(1).min(6);
    (RETRY_MS << doublings).min(RETRY_MS_MAX)
}

const _: () = assert!(RETRY_MS << 6 >= RETRY_MS_MAX);

#[cfg(test)]
mod tests {
    use topnet_account::Hash;
    use topnet_api::ClaimBytes;

    use super::*;
    use crate::held::Pace;

    fn watch(path: &std::path::Path) -> Watch {
        Watch {
            nodes: Nodes::new(&[], Hash::ZERO).unwrap(),
            held: Held::open(path).unwrap(),
            register: Arc::default(),
            news: Arc::default(),
            interval_ms: 100,
        }
    }

    /// It came between the look that found nothing and the end of that look.
    #[test]
    fn a_channel_whose_claim_has_come_meanwhile_is_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let watch = watch(dir.path());
        let (gone, come) = (ChannelId([1; 32]), ChannelId([2; 32]));
        watch.take_up([gone, come]);
        let take = || watch.register().take_due(u64::MAX);
        assert_eq!((take(), take()), (Some(gone), Some(come)));
        let claim = ClaimBytes {
            voucher: vec![1],
            index: 0,
            preimage: [0; 32],
            log_root: Hash::ZERO,
        };
        let pace = Pace {
            interval_ms: 100,
            exposure: None,
        };
        let claims = [(come, claim, Amount::from_ntop(5))];
        watch.held.hold(&claims, pace, 0).unwrap();
        watch.take_up([come]);
        watch.leave(&gone);
        watch.leave(&come);
        assert_eq!((take(), take()), (Some(come), None));
        assert_eq!(watch.register().len(), 1);
    }
}
