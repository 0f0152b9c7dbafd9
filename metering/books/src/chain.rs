//! What the chains say to the books, and what follows from their silence.

use std::time::Instant;

use topnet_account::{Address, ChannelId};
use topnet_api::ChannelView;
use topnet_channel::Payee;
use tracing::warn;

use crate::{
    Books, CHANNELS_MAX, Output,
    account::{Account, Standing},
    facts::Facts,
};

/// How long a closed channel's counts can be asked for before it is forgotten, in milliseconds.
pub(crate) const CLOSED_KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

/// Why nothing is served before the chains were heard.
pub(crate) const UNHEARD: &str = "the chains have not been heard since metering started";

/// The newest final headers that were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tips {
    /// Height of the service chain's.
    pub service_height: u64,
    /// Its time, in milliseconds since 1970.
    pub service_time_ms: u64,
    /// Time of the main chain's.
    pub main_time_ms: u64,
    /// The service chain's pace.
    pub block_interval_ms: u64,
}

/// The newest headers, and since when there has been none newer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) tips: Tips,
    service_since: Instant,
    main_since: Instant,
}

/// The time, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) now: Instant,
    pub(crate) wall_ms: u64,
}

impl Heads {
    fn new(tips: Tips, now: Instant) -> Self {
        Self {
            tips,
            service_since: now,
            main_since: now,
        }
    }

    fn hear(&mut self, tips: Tips, now: Instant) {
        if tips.service_time_ms != self.tips.service_time_ms {
            self.service_since = now;
        }
        if tips.main_time_ms != self.tips.main_time_ms {
            self.main_since = now;
        }
        self.tips = tips;
    }

    /// Why a channel whose payer may close within `close_window_blocks` must not be served: its
    /// claims might come too late, and nobody would know. A header's age is what the time of day
    /// says or how long it has been the newest, whichever is more: a clock that is put back makes
    /// nothing fresh.
    pub(crate) fn stale(&self, close_window_blocks: u64, clock: Clock) -> Option<String> {
        let limit_ms = close_window_blocks.saturating_mul(self.tips.block_interval_ms) / 4;
        let chains = [
            (
                "service chain",
                self.tips.service_time_ms,
                self.service_since,
            ),
            ("main chain", self.tips.main_time_ms, self.main_since),
        ];
        chains.into_iter().find_map(|(chain, time_ms, since)| {
            let unchanged = clock.now.saturating_duration_since(since).as_millis();
            let unchanged_ms = u64::try_from(unchanged).unwrap_or(u64::MAX);
            let age_ms = clock.wall_ms.saturating_sub(time_ms).max(unchanged_ms);
            (age_ms > limit_ms).then(|| {
                format!(
                    "the {chain}'s newest final header is {age_ms} ms old, more than a quarter of \
                     the close window ({limit_ms} ms); is settlement running?"
                )
            })
        })
    }
}

impl Books {
    /// Whom channels pay.
    pub fn handle_payee(&mut self, payee: Address) {
        self.served.payee = Some(payee);
    }

    /// What the chain says of a channel. False if it is not one that we serve.
    pub fn handle_channel(&mut self, view: &ChannelView) -> bool {
        let Some(facts) = Facts::of(view, &self.served) else {
            return false;
        };
        let heard = Standing::of(view);
        let is_known = self.accounts.contains_key(&view.id);
        // One that is over and was never used, or is forgotten, needs no place.
        if !is_known && heard == Standing::Closed {
            return false;
        }
        if !is_known && self.accounts.len() >= CHANNELS_MAX {
            warn!(channel = %view.id, "there are too many channels; close some");
            return false;
        }
        let terms = self.terms(view.id, &facts);
        let account = self
            .accounts
            .entry(view.id)
            .or_insert_with(|| Account::new(Payee::new(terms), facts, true));
        if !is_known {
            self.rotation.push_back(view.id);
            self.outputs.push_back(Output::Known(facts.signer));
        }
        // Channels are topped up and never reopened: of two answers the one that comes late may
        // be the older, and then it changes nothing.
        if facts.allocation > account.facts.allocation {
            account.facts.allocation = facts.allocation;
            account.facts_changed = true;
            account.payee.handle_terms(facts.allocation, self.offer);
        }
        let was_closed = account.standing == Standing::Closed;
        account.backed = account.backed.max(Some(view.backed));
        account.standing.hear(heard);
        if !was_closed && account.standing == Standing::Closed {
            let since_ms = self.clock.map_or(0, |clock| clock.wall_ms);
            self.closed.push_back((since_ms, view.id));
        }
        self.touch(view.id);
        true
    }

    /// The newest final headers, as they came in `now`.
    pub fn handle_tips(&mut self, tips: Tips, now: Instant) {
        match &mut self.heads {
            Some(heads) => heads.hear(tips, now),
            None => self.heads = Some(Heads::new(tips, now)),
        }
    }

    /// Freezes what must not go on and thaws what may again; writes off what the operator
    /// forgives; forgets what was closed long ago. `wall_ms` is compared with headers' times, and
    /// tells how long a channel has been closed.
    pub fn poll_freshness(&mut self, now: Instant, wall_ms: u64) {
        let clock = Clock { now, wall_ms };
        self.clock = Some(clock);
        let (heads, write_off_max) = (self.heads, self.served.write_off_units_max);
        let mut changed = Vec::new();
        for channel in &self.live {
            let Some(account) = self.accounts.get_mut(channel) else {
                continue;
            };
            let forgiven = account.forgive(now, write_off_max);
            self.counters.written_off += u64::from(forgiven);
            if account.freshen(heads.as_ref(), clock) || forgiven {
                changed.push(*channel);
            }
        }
        for channel in changed {
            self.touch(channel);
        }
        self.forget_closed(wall_ms);
    }

    /// The first of these for one channel.
    pub fn poll_freshness_of(&mut self, channel: ChannelId, now: Instant, wall_ms: u64) {
        if let Some(account) = self.accounts.get_mut(&channel)
            && account.freshen(self.heads.as_ref(), Clock { now, wall_ms })
        {
            self.touch(channel);
        }
    }

    /// A channel of which nothing can be asked of anybody any more needs no place. Whatever was
    /// used on it stays in the service log.
    fn forget_closed(&mut self, wall_ms: u64) {
        while let Some(&(since_ms, channel)) = self.closed.front() {
            if since_ms > 0 && wall_ms < since_ms.saturating_add(CLOSED_KEPT_MS) {
                return;
            }
            self.closed.pop_front();
            // Closed before the first look at a clock, or still in use.
            if since_ms == 0 || self.live.contains(&channel) {
                self.closed.push_back((wall_ms, channel));
            } else if let Some(account) = self.accounts.remove(&channel) {
                self.forgotten.push(channel);
                self.urgent = true;
                self.outputs
                    .push_back(Output::Forgotten(account.facts.signer));
            }
        }
    }

    /// Why nothing could be served now, if that is so.
    pub fn frozen(&self, now: Instant, wall_ms: u64) -> Option<String> {
        match &self.heads {
            Some(heads) => {
                let blocks = self.served.close_window_blocks_min;
                heads.stale(blocks, Clock { now, wall_ms })
            }
            None => Some(UNHEARD.to_owned()),
        }
    }

    /// Channels that the chain should be asked about from time to time: those that can use or
    /// pay something.
    pub fn active(&self) -> impl Iterator<Item = ChannelId> {
        let is_active = |channel: &&ChannelId| {
            let account = self.accounts.get(*channel);
            account.is_some_and(Account::is_active)
        };
        self.live.iter().filter(is_active).copied()
    }

    /// The next `count` of all channels, in turn: those of which nothing is heard otherwise are
    /// to be asked about once in a while.
    pub fn next_in_rotation(&mut self, count: usize) -> Vec<ChannelId> {
        let mut next = Vec::new();
        for _ in 0..count.min(self.rotation.len()) {
            let Some(channel) = self.rotation.pop_front() else {
                break;
            };
            if let Some(account) = self.accounts.get(&channel) {
                self.rotation.push_back(channel);
                if account.standing != Standing::Closed {
                    next.push(channel);
                }
            }
        }
        next
    }
}
