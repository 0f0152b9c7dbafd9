//! Who has used what, who has paid for what, and so who may go on: all channels of one metering.
//!
//! A state machine over the payees of `topnet-channel` and the tables of one data plane. It
//! owns no clock, disk or socket. A turn is, in this order:
//!
//! 1. `handle_*` with whatever has happened;
//! 2. [`poll_usage`](Books::poll_usage) and, now and then, [`poll_freshness`](Books::poll_freshness);
//! 3. [`poll_entries`](Books::poll_entries) → commit → [`handle_committed`](Books::handle_committed),
//!    which raises credit and so must never run before the commit. While a disk refuses a batch,
//!    no other is polled, and turns go on with
//!    [`handle_uncommitted`](Books::handle_uncommitted), which takes credit away and gives none;
//! 4. [`poll_output`](Books::poll_output) until it gives nothing.
//!
//! The same calls give the same entries and outputs in the same order: whatever goes over all
//! channels or slots goes in the order of their names.
//!
//! | question | file |
//! |---|---|
//! | what the chain fixes and says of channels | [`facts`], `chain` |
//! | what payers say | `payers` |
//! | what data planes count | `slots` |
//! | one channel's own state | `account` |
//! | how channels stand, and their last claims | `looking` |
//!
//! Left to others: the journal that the entries go to, sockets, and the time of day.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod account;
mod chain;
mod entry;
pub mod facts;
mod looking;
mod payers;
mod slots;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use topnet_account::{ChannelId, PublicKey};
use topnet_channel::{Offer, Payee, PayeeMessage, PayeeTerms, RecordError, SlotUse};
use topnet_unit::Attachment;

use self::{
    account::{Account, AccountLog},
    chain::{Clock, Heads},
    facts::{Facts, Served},
};
pub use self::{
    chain::Tips,
    entry::{Entry, LogHead, NewLine, Stored},
};

/// Channels at once.
pub const CHANNELS_MAX: usize = 1 << 20;
/// Patience with a channel's payer, of which one grows again each second.
pub const PATIENCE_MAX: u32 = 32;
/// What a link costs of it. When none is left the channel gets none.
pub const LINK_COST: u32 = 1;
/// What a refusal costs of it, after which an honest wallet resumes. When none is left the link
/// ends.
pub const REFUSAL_COST: u32 = 4;
/// A payer that need not hear at once of what it owes hears of it after this time for each link
/// that there is: 20,000 messages a second in all.
const TELLING_INTERVAL_PER_LINK: Duration = Duration::from_micros(50);
/// Boundaries of which the time is kept until the next commit; of more than these none is.
const BOUNDARIES_MAX: usize = 1 << 16;

/// Names one link with a payer.
pub type ConnectionId = u64;

/// What the books want done; every one of them may be lost and will be wanted again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Say this to a payer.
    Reply(ConnectionId, PayeeMessage),
    /// The link is not wanted any more: a newer one of the same channel took its place, or
    /// too much that came on it was refused.
    End(ConnectionId),
    /// Tell the data plane that a slot's last totals are journalled.
    Acknowledge(SlotUse),
    /// Ask the chain about a channel that has a slot and that nobody knows.
    LookUp(ChannelId),
    /// A channel that was to be finished is; ask for its [`Books::final_claim`].
    Finished(ChannelId),
    /// A channel of this signer is known from now on.
    Known(PublicKey),
    /// A channel of this signer is forgotten.
    Forgotten(PublicKey),
}

/// What a hello comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Welcome: the offer and the last promise follow.
    Welcome,
    /// Nobody knows the channel: ask the chain, then say hello again.
    Unknown,
    /// The link's key is not the channel's signer.
    WrongKey,
    /// The channel's payer has cost too much time lately.
    TooOften,
}

/// Counts since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens that were not refused; one that pays nothing new counts, too.
    pub tokens: u64,
    /// Payers' messages that were refused.
    pub refusals: u64,
    /// Unit records drained.
    pub records: u64,
    /// Batches committed.
    pub commits: u64,
    /// Units written off.
    pub written_off: u64,
}

/// All channels, and the tables that they count in.
#[derive(Debug)]
pub struct Books {
    served: Served,
    offer: Offer,
    accounts: HashMap<ChannelId, Account>,
    /// Channels with a link or a slot: nothing happens to any other by itself.
    live: BTreeSet<ChannelId>,
    /// Channels in the order in which the chain is to be asked about them.
    rotation: VecDeque<ChannelId>,
    /// Channels that are closed, and since when.
    closed: VecDeque<(u64, ChannelId)>,
    /// Forgotten, which is to be committed.
    forgotten: Vec<ChannelId>,
    connections: HashMap<ConnectionId, ChannelId>,
    attached: Option<Attachment>,
    /// Slots of the attached data plane.
    slots: BTreeMap<u32, (ChannelId, SlotUse)>,
    touched: Vec<ChannelId>,
    /// Channels whose claims wait to be handed over.
    claims: VecDeque<ChannelId>,
    urgent: bool,
    seen: Vec<u32>,
    /// When units were begun whose records wait for a commit, by the data plane's clock.
    boundaries: Vec<u64>,
    heads: Option<Heads>,
    /// As [`Books::poll_freshness`] was told last.
    clock: Option<Clock>,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Books {
    /// Books as the journal holds them. Everything is frozen until the chains are heard.
    pub fn restore(
        served: Served,
        offer: Offer,
        stored: Vec<Stored>,
    ) -> Result<Self, (ChannelId, RecordError)> {
        let mut books = Self {
            served,
            offer,
            accounts: HashMap::with_capacity(stored.len()),
            live: BTreeSet::new(),
            rotation: VecDeque::with_capacity(stored.len()),
            closed: VecDeque::new(),
            forgotten: Vec::new(),
            connections: HashMap::new(),
            attached: None,
            slots: BTreeMap::new(),
            touched: Vec::new(),
            claims: VecDeque::new(),
            urgent: false,
            seen: Vec::new(),
            boundaries: Vec::new(),
            heads: None,
            clock: None,
            outputs: VecDeque::new(),
            counters: Counters::default(),
        };
        for stored in stored {
            let Stored {
                channel,
                facts,
                record,
                log,
            } = stored;
            let terms = books.terms(channel, &facts);
            let payee = match record {
                Some(record) => {
                    Payee::from_record(terms, &record).map_err(|error| (channel, error))?
                }
                None => Payee::new(terms),
            };
            let mut account = Account::new(payee, facts, false);
            account.log = AccountLog::restore(&channel, log.unwrap_or_default());
            if account.claim_begins_to_wait() {
                books.claims.push_back(channel);
            }
            books.accounts.insert(channel, account);
            books.rotation.push_back(channel);
            books.note_life(channel);
        }
        Ok(books)
    }

    fn terms(&self, channel: ChannelId, facts: &Facts) -> PayeeTerms {
        PayeeTerms {
            channel,
            signer: facts.signer,
            allocation: facts.allocation,
            offer: self.offer,
        }
    }

    /// What is to be committed now; nothing while nothing is urgent, unless it is `due`.
    /// `wall_ms` is what the service log says of the time, and nothing else follows from it.
    pub fn poll_entries(&mut self, due: bool, wall_ms: u64) -> Vec<Entry> {
        if !due && !self.urgent {
            return Vec::new();
        }
        self.urgent = false;
        let gone = self.forgotten.drain(..).map(Entry::forget);
        let mut entries: Vec<Entry> = gone.collect();
        for channel in &self.touched {
            let Some(account) = self.accounts.get_mut(channel) else {
                continue;
            };
            account.urgent = false;
            let record = account.payee.poll_record();
            let line = record
                .is_some()
                .then(|| account.log_units(*channel, wall_ms));
            let facts = std::mem::take(&mut account.facts_changed).then_some(account.facts);
            if record.is_some() || facts.is_some() {
                entries.push(Entry {
                    channel: *channel,
                    facts,
                    record,
                    line: line.flatten(),
                    forget: false,
                });
            }
        }
        entries
    }

    /// The entries that were polled last are on disk (`committed` tells whether there were any):
    /// credit follows, and payers are told.
    pub fn handle_committed(&mut self, committed: bool, now: Instant) {
        if committed {
            self.counters.commits += 1;
        }
        self.settle_touched(committed, now);
    }

    /// The entries that were polled last are still not on disk: whose credit must go loses it,
    /// and nobody gets any.
    pub fn handle_uncommitted(&mut self, now: Instant) {
        self.settle_touched(false, now);
    }

    fn settle_touched(&mut self, committed: bool, now: Instant) {
        let links = u32::try_from(self.connections.len()).unwrap_or(u32::MAX);
        let interval = TELLING_INTERVAL_PER_LINK.saturating_mul(links);
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|channel| {
            let Some(account) = self.accounts.get_mut(channel) else {
                return false;
            };
            if committed {
                account.payee.handle_durable();
                account.log.handle_durable(channel);
                account.note_window();
                if account.claim_begins_to_wait() {
                    self.claims.push_back(*channel);
                }
            }
            account.apply_credit(self.attached.as_ref());
            let all_told =
                account.payee.is_durable() && account.tell(now, interval, &mut self.outputs);
            let finishing =
                account.finish(self.attached.as_ref(), *channel, now, &mut self.outputs);
            account.urgent |= finishing;
            self.urgent |= account.urgent;
            account.touched = finishing || !all_told || account.facts_changed;
            account.touched
        });
        self.touched = touched;
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When the units were begun whose records were drained since this was asked last, in
    /// nanoseconds of the data plane's monotonic clock.
    pub fn boundaries(&mut self) -> impl Iterator<Item = u64> {
        self.boundaries.drain(..)
    }

    fn touch(&mut self, channel: ChannelId) {
        self.note_life(channel);
        if let Some(account) = self.accounts.get_mut(&channel) {
            self.urgent |= account.urgent;
            if !std::mem::replace(&mut account.touched, true) {
                self.touched.push(channel);
            }
        }
    }

    /// Keeps the list of those to whom something can happen. Who comes to life is as fresh as
    /// everybody else.
    fn note_life(&mut self, channel: ChannelId) {
        let Some(account) = self.accounts.get_mut(&channel) else {
            self.live.remove(&channel);
            return;
        };
        if !account.is_live() {
            self.live.remove(&channel);
        } else if self.live.insert(channel)
            && let Some(clock) = self.clock
        {
            account.freshen(self.heads.as_ref(), clock);
        }
    }
}
