//! Hands held claims to towers on other machines, so that they are made in time although this
//! one and its disk are gone.
//!
//! A claim that has grown is noted for each tower in memory and brought to it soon after, by a
//! task of that tower's own, so nobody who hands claims over here waits for one. What a tower has is
//! not kept, and it may lose its disk: a start, each hour, and the end of a tower's absence bring
//! it everything again whose end main has not accepted. A tower keeps only what is better.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use topnet_account::{Amount, ChannelId};
use topnet_api::{HandoverStatus, HeldClaim, HoldReport};
use topnet_ledger::state::ChannelState;
use topnet_tower::{
    held::{Held, HeldRecord},
    now_ms,
    rpc::{CLAIMS_PER_REQUEST_MAX, RemoteTower},
};
use tracing::{info, warn};

use crate::{
    chains::{Chains, unless_stopped},
    start::TaskError,
};

/// A tower that is away is tried again after this, then after twice as long, and so on.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A claim that a tower refused is brought again after this: it may not know the channel yet.
const REFUSED_RETRY_MS: u64 = 30_000;
/// Everything is brought again this long after it was last.
const ALL_AGAIN: Duration = Duration::from_secs(3_600);
/// Nobody sleeps longer.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Hands claims over. Clones are the same.
#[derive(Clone)]
pub(crate) struct Handover {
    held: Held,
    chains: Chains,
    towers: Arc<[Receiver]>,
}

struct Receiver {
    tower: RemoteTower,
    queue: Mutex<Queue>,
    news: Notify,
}

/// What a tower does not have yet. As large as what is held, at most.
#[derive(Debug, Default)]
struct Queue {
    /// To be brought.
    waiting: BTreeSet<ChannelId>,
    /// Being brought.
    sent: BTreeSet<ChannelId>,
    /// To be brought again from then on.
    refused: BTreeMap<ChannelId, u64>,
    confirmed_ms: Option<u64>,
    problem: Option<String>,
}

impl Handover {
    /// What is held, on channels of these chains, to the towers at `urls`; an error names the one
    /// that is no address.
    pub(crate) fn new(held: Held, chains: Chains, urls: &[String]) -> Result<Self, String> {
        let receiver = |url: &String| {
            let tower = RemoteTower::new(url).map_err(|error| format!("{url}: {error}"))?;
            Ok(Receiver {
                tower,
                queue: Mutex::default(),
                news: Notify::new(),
            })
        };
        Ok(Self {
            held,
            chains,
            towers: urls.iter().map(receiver).collect::<Result<_, String>>()?,
        })
    }

    /// Notes that claims have grown.
    pub(crate) fn note(&self, channels: &[ChannelId]) {
        if channels.is_empty() {
            return;
        }
        for receiver in &*self.towers {
            receiver.queue().waiting.extend(channels);
            receiver.news.notify_one();
        }
    }

    /// How far each tower is.
    pub(crate) fn statuses(&self) -> Vec<HandoverStatus> {
        let status = |receiver: &Receiver| receiver.queue().status(&receiver.tower.url);
        self.towers.iter().map(status).collect()
    }

    /// Brings what is held and what will be, for good.
    pub(crate) async fn run(self) -> Result<(), TaskError> {
        if self.towers.is_empty() {
            std::future::pending::<()>().await;
        }
        let bringing = self.towers.iter().map(|tower| tower.run(&self));
        futures::future::try_join_all(bringing).await?;
        Ok(())
    }

    /// The least that a claim pays on any of the chains. Where it is more, the tower knows.
    fn payout_min(&self) -> Amount {
        let main = self.chains.main().genesis.rules.claim_payout_min;
        let hosted = self.chains.hosted().into_values();
        let of_services = hosted.map(|hosted| hosted.record.genesis.rules.claim_payout_min);
        of_services.fold(main, Amount::min)
    }

    /// True if the channel is closed and main has accepted that: before, its service's death may
    /// undo it, and what was paid.
    async fn is_over(&self, id: &ChannelId, held: &HeldRecord) -> Result<bool, TaskError> {
        if held.over || held.due_ms.is_some() {
            return Ok(held.over);
        }
        let Some((home, channel)) = self.chains.channel(id).await? else {
            return Ok(false);
        };
        if channel.state != ChannelState::Closed {
            return Ok(false);
        }
        let is_accepted = if home.name == self.chains.main().name {
            true
        } else if let Some(end) = self.chains.index().channel(id)?.and_then(|one| one.end) {
            let service = self.chains.on_main(&home.chain.genesis()).await?;
            service.is_some_and(|service| service.height >= end.block.height)
        } else {
            false
        };
        if is_accepted {
            self.held.change(id, |held| held.over = true)?;
        }
        Ok(is_accepted)
    }
}

impl Receiver {
    async fn run(&self, handover: &Handover) -> Result<(), TaskError> {
        let (mut wait, mut is_away, mut all_again) = (RETRY, false, Instant::now());
        loop {
            if all_again <= Instant::now() {
                self.take_up(handover).await?;
                all_again = Instant::now() + ALL_AGAIN;
            }
            let taken = self.queue().take(now_ms(), CLAIMS_PER_REQUEST_MAX);
            if taken.is_empty() {
                // Either way it looks whether there is something.
                let _ = tokio::time::timeout(SLEEP_MAX, self.news.notified()).await;
                continue;
            }
            let payout_min = handover.payout_min();
            let mut claims = Vec::with_capacity(taken.len());
            for channel in taken {
                let held = handover.held.get(&channel)?;
                // What was paid may be undone, so it does not count.
                if let Some(held) = held.filter(|held| held.redeemable >= payout_min) {
                    let claim = held.claim();
                    claims.push(HeldClaim { channel, claim });
                }
            }
            if claims.is_empty() {
                self.queue().sent.clear();
                continue;
            }
            match self.tower.hold(claims).await {
                Ok(report) => {
                    wait = RETRY;
                    // Who knows what it has lost meanwhile.
                    if std::mem::take(&mut is_away) {
                        all_again = Instant::now();
                    }
                    if self.queue().confirm(&report, now_ms()) {
                        info!(tower = %self.tower.url, "the tower takes claims");
                    }
                    if let Some(refused) = report.refused.first() {
                        let (channel, error) = (&refused.channel, &refused.error);
                        warn!(tower = %self.tower.url, %channel, %error, "the tower refuses a claim");
                    }
                }
                Err(problem) => {
                    is_away = true;
                    if self.queue().fail(&problem) {
                        warn!(tower = %self.tower.url, problem, "claims cannot be handed over; trying again");
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Notes everything that is held and not over.
    async fn take_up(&self, handover: &Handover) -> Result<(), TaskError> {
        let mut after = None;
        loop {
            let page = handover.held.channels(after.as_ref())?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(*last);
            let mut noted = Vec::with_capacity(page.len());
            for id in page {
                let Some(held) = handover.held.get(&id)? else {
                    continue;
                };
                let is_over = unless_stopped(handover.is_over(&id, &held).await)?;
                if !is_over.unwrap_or(false) {
                    noted.push(id);
                }
            }
            self.queue().waiting.extend(noted);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// What is to be brought next. It counts as unconfirmed until [`Self::confirm`].
    fn take(&mut self, now_ms: u64, count: usize) -> Vec<ChannelId> {
        let again = self.refused.iter();
        let again: Vec<ChannelId> = again
            .filter(|(_, from_ms)| **from_ms <= now_ms)
            .map(|(id, _)| *id)
            .collect();
        for id in again {
            self.refused.remove(&id);
            self.waiting.insert(id);
        }
        while self.sent.len() < count
            && let Some(id) = self.waiting.pop_first()
        {
            // What has grown since is brought as it is now.
            self.refused.remove(&id);
            self.sent.insert(id);
        }
        self.sent.iter().copied().collect()
    }

    /// The tower has answered; true if it did not before.
    fn confirm(&mut self, report: &HoldReport, now_ms: u64) -> bool {
        let again_ms = now_ms.saturating_add(REFUSED_RETRY_MS);
        let sent = std::mem::take(&mut self.sent);
        for refused in &report.refused {
            if sent.contains(&refused.channel) {
                self.refused.insert(refused.channel, again_ms);
            }
        }
        let failed = self.problem.take().is_some() || self.confirmed_ms.is_none();
        let refused = report.refused.first();
        self.problem = refused.map(|refused| format!("{}: {}", refused.channel, refused.error));
        self.confirmed_ms = Some(now_ms);
        failed && self.problem.is_none()
    }

    /// The tower has not answered; true if the problem is another than before.
    fn fail(&mut self, problem: &str) -> bool {
        let sent = std::mem::take(&mut self.sent);
        self.waiting.extend(sent);
        let is_new = self.problem.as_deref() != Some(problem);
        self.problem = Some(problem.to_owned());
        is_new
    }

    fn status(&self, url: &str) -> HandoverStatus {
        let mut unconfirmed: BTreeSet<&ChannelId> = self.waiting.union(&self.sent).collect();
        unconfirmed.extend(self.refused.keys());
        HandoverStatus {
            url: url.to_owned(),
            unconfirmed: unconfirmed.len() as u64,
            confirmed_ms: self.confirmed_ms,
            problem: self.problem.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use topnet_api::{ApiError, RefusedClaim};

    use super::*;

    fn id(number: u8) -> ChannelId {
        ChannelId([number; 32])
    }

    fn report(refused: &[u8]) -> HoldReport {
        let refused = refused.iter().map(|number| RefusedClaim {
            channel: id(*number),
            error: ApiError::new("channel_unknown", "unknown", "wait"),
        });
        HoldReport {
            kept: 0,
            refused: refused.collect(),
        }
    }

    #[test]
    fn nothing_is_confirmed_before_the_tower_says_so_and_what_grows_meanwhile_goes_again() {
        let mut queue = Queue::default();
        let unconfirmed = |queue: &Queue| queue.status("").unconfirmed;
        queue.waiting.extend([id(1), id(2), id(3)]);
        assert_eq!(queue.take(0, 2), [id(1), id(2)]);
        assert_eq!(unconfirmed(&queue), 3);
        // A tower that is away costs nothing but time.
        assert!(queue.fail("away"));
        assert_eq!(queue.take(0, 2), [id(1), id(2)]);
        assert!(!queue.fail("away"), "it is known already");
        assert_eq!(queue.take(0, 2), [id(1), id(2)]);
        queue.waiting.insert(id(2));
        assert!(queue.confirm(&report(&[]), 5));
        assert_eq!(unconfirmed(&queue), 2, "one has grown, one waits");
        assert_eq!(queue.take(6, 9), [id(2), id(3)]);
        assert!(!queue.confirm(&report(&[]), 7), "it answered before");
        assert_eq!(unconfirmed(&queue), 0);
        assert_eq!(queue.status("").confirmed_ms, Some(7));
    }

    #[test]
    fn what_a_tower_refuses_is_brought_again_later_and_holds_up_nothing() {
        let mut queue = Queue::default();
        queue.waiting.extend([id(1), id(2)]);
        queue.take(0, 9);
        queue.confirm(&report(&[1]), 10);
        let status = queue.status("tower");
        assert_eq!(status.unconfirmed, 1);
        assert!(status.problem.unwrap().contains("channel_unknown"));
        assert_eq!(queue.take(11, 9), []);
        let again_ms = 10 + REFUSED_RETRY_MS;
        assert_eq!(queue.take(again_ms, 9), [id(1)]);
        queue.confirm(&report(&[1]), again_ms);
        // It has grown: that is worth a try at once.
        queue.waiting.insert(id(1));
        assert_eq!(queue.take(again_ms, 9), [id(1)]);
        assert!(queue.confirm(&report(&[]), again_ms));
        assert_eq!(queue.status("tower").unconfirmed, 0);
        assert_eq!(queue.status("tower").problem, None);
    }
}
