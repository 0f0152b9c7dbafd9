//! Hands held claims to towers on other machines, so that they are made in time although this
//! one and its disk are gone.
//!
//! A claim that has grown is noted for each tower in memory and brought to it soon after, by a
//! task of that tower's own, so nobody who hands claims over here waits for one. What a tower has is
//! not kept: a start brings it everything again that has something to bring, and a tower keeps
//! only what is better.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use topnet_account::{Amount, ChannelId};
use topnet_api::{HandoverStatus, HeldClaim, HoldReport};
use topnet_tower::{
    held::{Held, HeldError},
    now_ms,
    rpc::{CLAIMS_PER_REQUEST_MAX, RemoteTower},
};
use tracing::{info, warn};

use crate::start::TaskError;

/// A tower that is away is tried again after this, then after twice as long, and so on.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A claim that a tower refused is brought again after this: it may not know the channel yet.
const REFUSED_RETRY_MS: u64 = 30_000;
/// Nobody sleeps longer.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Hands claims over. Clones are the same.
#[derive(Clone)]
pub(crate) struct Handover {
    held: Held,
    /// A tower elsewhere can make no smaller claim.
    payout_min: Amount,
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
    /// Claims that pay `payout_min` to the towers at `urls`; an error names the one that is no
    /// address.
    pub(crate) fn new(held: Held, payout_min: Amount, urls: &[String]) -> Result<Self, String> {
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
            payout_min,
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
        let mut after = None;
        loop {
            let page = self.held.channels(after.as_ref())?;
            let Some(last) = page.last() else {
                break;
            };
            after = Some(*last);
            let mut open = Vec::new();
            for id in page {
                // What is paid or closed has nothing to bring.
                if self
                    .held
                    .get(&id)?
                    .is_some_and(|held| held.due_ms.is_some())
                {
                    open.push(id);
                }
            }
            self.note(&open);
        }
        let bringing = self.towers.iter().map(|tower| tower.run(&self));
        futures::future::try_join_all(bringing).await?;
        Ok(())
    }
}

impl Receiver {
    async fn run(&self, handover: &Handover) -> Result<(), HeldError> {
        let mut wait = RETRY;
        loop {
            let taken = self.queue().take(now_ms(), CLAIMS_PER_REQUEST_MAX);
            if taken.is_empty() {
                // Either way it looks whether there is something.
                let _ = tokio::time::timeout(SLEEP_MAX, self.news.notified()).await;
                continue;
            }
            let mut claims = Vec::with_capacity(taken.len());
            for channel in taken {
                let held = handover.held.get(&channel)?;
                if let Some(held) = held.filter(|held| held.unpaid() >= handover.payout_min) {
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
                    if self.queue().confirm(&report, now_ms()) {
                        info!(tower = %self.tower.url, "the tower takes claims");
                    }
                    if let Some(refused) = report.refused.first() {
                        let (channel, error) = (&refused.channel, &refused.error);
                        warn!(tower = %self.tower.url, %channel, %error, "the tower refuses a claim");
                    }
                }
                Err(problem) => {
                    if self.queue().fail(&problem) {
                        warn!(tower = %self.tower.url, problem, "claims cannot be handed over; trying again");
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
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
