//! Who has used what, who has paid for what, and so who may go on: all channels of one metering.
//!
//! A state machine over the payees of `topnet-channel` and the tables of one data plane. It
//! owns no clock, disk or socket. A turn is, in this order:
//!
//! 1. `handle_*` with whatever has happened;
//! 2. [`poll_usage`](Books::poll_usage) and, now and then, [`poll_freshness`](Books::poll_freshness);
//! 3. [`poll_entries`](Books::poll_entries) → commit → [`handle_committed`](Books::handle_committed),
//!    which raises credit and so must never run before the commit;
//! 4. [`poll_output`](Books::poll_output) until it gives nothing.
//!
//! The same calls give the same entries and outputs in the same order: whatever goes over all
//! channels or slots goes in the order of their names.
//!
//! What the chain fixes for a channel is in [`facts`]. Left to others: the journal that the
//! entries go to, sockets, and the time of day.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod account;
mod entry;
pub mod facts;
mod slots;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Instant,
};

use topnet_account::{Address, Amount, ChannelId, PublicKey};
use topnet_api::{ChannelStatus, ChannelView, ClaimBytes, FinalClaim};
use topnet_channel::{
    Offer, Payee, PayeeMessage, PayeeState, PayeeTerms, PayerMessage, RecordError, SlotUse,
};
use topnet_unit::Attachment;
use tracing::warn;

pub use self::entry::{Entry, Stored};
use self::{
    account::{Account, Finish, Standing, stale},
    facts::{Facts, Served, standing},
};

/// Channels at once.
pub const CHANNELS_MAX: usize = 1 << 20;

/// Names one link with a payer.
pub type ConnectionId = u64;

/// What the books want done; every one of them may be lost and will be wanted again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Say this to a payer.
    Reply(ConnectionId, PayeeMessage),
    /// A newer link of the same channel took this one's place.
    Replaced(ConnectionId),
    /// Tell the data plane that a slot's last totals are journalled.
    Acknowledge(SlotUse),
    /// Ask the chain about a channel that has a slot and that nobody knows.
    LookUp(ChannelId),
    /// A channel that was to be finished is; ask for its [`Books::final_claim`].
    Finished(ChannelId),
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
}

/// The newest final headers that were seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tips {
    /// Time of the service chain's, in milliseconds since 1970.
    pub service_time_ms: u64,
    /// Time of the main chain's.
    pub main_time_ms: u64,
    /// The service chain's pace.
    pub block_interval_ms: u64,
}

/// Counts since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens accepted.
    pub tokens: u64,
    /// Unit records drained.
    pub records: u64,
    /// Batches committed.
    pub commits: u64,
}

/// All channels, and the tables that they count in.
#[derive(Debug)]
pub struct Books {
    served: Served,
    offer: Offer,
    accounts: HashMap<ChannelId, Account>,
    connections: HashMap<ConnectionId, ChannelId>,
    attached: Option<Attachment>,
    /// Of data planes that are gone; kept until their last totals are committed.
    dead: Vec<Attachment>,
    /// Slots of the attached data plane.
    slots: BTreeMap<u32, (ChannelId, SlotUse)>,
    touched: Vec<ChannelId>,
    urgent: bool,
    seen: Vec<u32>,
    tips: Option<Tips>,
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
            accounts: HashMap::new(),
            connections: HashMap::new(),
            attached: None,
            dead: Vec::new(),
            slots: BTreeMap::new(),
            touched: Vec::new(),
            urgent: false,
            seen: Vec::new(),
            tips: None,
            outputs: VecDeque::new(),
            counters: Counters::default(),
        };
        for Stored {
            channel,
            facts,
            record,
        } in stored
        {
            let terms = books.terms(channel, &facts);
            let payee = match record {
                Some(record) => {
                    Payee::from_record(terms, &record).map_err(|error| (channel, error))?
                }
                None => Payee::new(terms),
            };
            books
                .accounts
                .insert(channel, Account::new(payee, facts, false));
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

    // The chain.

    /// Whom channels pay.
    pub fn handle_payee(&mut self, payee: Address) {
        self.served.payee = Some(payee);
    }

    /// What the chain says of a channel. False if it is not one that we serve.
    pub fn handle_channel(&mut self, view: &ChannelView) -> bool {
        let Some(facts) = Facts::of(view, &self.served) else {
            return false;
        };
        if self.accounts.len() >= CHANNELS_MAX && !self.accounts.contains_key(&view.id) {
            warn!(channel = %view.id, "there are too many channels; close some");
            return false;
        }
        let terms = self.terms(view.id, &facts);
        let account = self
            .accounts
            .entry(view.id)
            .or_insert_with(|| Account::new(Payee::new(terms), facts, true));
        // Channels are topped up and never reopened: of two answers the one that comes late may
        // be the older, and then it changes nothing.
        if facts.allocation > account.facts.allocation {
            account.facts.allocation = facts.allocation;
            account.facts_changed = true;
            account.payee.handle_terms(facts.allocation, self.offer);
        }
        account.standing = match (standing(view), &account.standing) {
            (Ok(()), Standing::Unheard | Standing::Open) => Standing::Open,
            (Ok(()), Standing::Over(reason)) => Standing::Over(reason.clone()),
            (Err(reason), _) => Standing::Over(reason),
        };
        self.touch(view.id);
        true
    }

    /// The newest final headers.
    pub fn handle_tips(&mut self, tips: Tips) {
        self.tips = Some(tips);
    }

    /// Freezes what must not go on and thaws what may again. `wall_ms` is used for nothing else.
    pub fn poll_freshness(&mut self, wall_ms: u64) {
        let tips = self.tips;
        let mut changed = Vec::new();
        for (channel, account) in &mut self.accounts {
            if account.freshen(tips, wall_ms) {
                changed.push(*channel);
            }
        }
        changed.sort_unstable();
        for channel in changed {
            self.touch(channel);
        }
    }

    /// The same for one channel.
    pub fn poll_freshness_of(&mut self, channel: ChannelId, wall_ms: u64) {
        let tips = self.tips;
        if let Some(account) = self.accounts.get_mut(&channel)
            && account.freshen(tips, wall_ms)
        {
            self.touch(channel);
        }
    }

    /// Why nothing could be served now, if that is so.
    pub fn frozen(&self, wall_ms: u64) -> Option<String> {
        stale(self.tips, self.served.close_window_blocks_min, wall_ms)
    }

    // Payers.

    /// A payer says hello on a new link, on which it has proved `key`.
    pub fn handle_hello(
        &mut self,
        connection: ConnectionId,
        channel: ChannelId,
        key: PublicKey,
    ) -> Greeting {
        let Some(account) = self.accounts.get_mut(&channel) else {
            return Greeting::Unknown;
        };
        if account.facts.signer != key {
            return Greeting::WrongKey;
        }
        if let Some(old) = account.connection.replace(connection) {
            self.connections.remove(&old);
            self.outputs.push_back(Output::Replaced(old));
        }
        account.greet = true;
        account.urgent = true;
        self.connections.insert(connection, channel);
        self.touch(channel);
        Greeting::Welcome
    }

    /// A payer says something after its hello.
    pub fn handle_payer(&mut self, connection: ConnectionId, message: &PayerMessage) {
        let Some(&channel) = self.connections.get(&connection) else {
            return;
        };
        let Some(account) = self.accounts.get_mut(&channel) else {
            return;
        };
        match account.payee.handle_message(message) {
            Ok(()) => {
                self.counters.tokens += u64::from(matches!(message, PayerMessage::Token(_)));
                if !account.payee.is_durable() {
                    account.urgent = true;
                    self.touch(channel);
                }
            }
            Err(code) => {
                account.refused = Some(code);
                let refusal = PayeeMessage::Refused(code);
                self.outputs.push_back(Output::Reply(connection, refusal));
            }
        }
    }

    /// A link is gone.
    pub fn handle_disconnected(&mut self, connection: ConnectionId) {
        let Some(channel) = self.connections.remove(&connection) else {
            return;
        };
        if let Some(account) = self.accounts.get_mut(&channel)
            && account.connection == Some(connection)
        {
            account.connection = None;
            account.told = None;
        }
    }

    // Finishing.

    /// Closes a channel's credit for good; [`Output::Finished`] follows. False if nobody knows
    /// the channel.
    pub fn handle_finish(&mut self, channel: ChannelId) -> bool {
        let Some(account) = self.accounts.get(&channel) else {
            return false;
        };
        let slot_uses = account.payee.slot_uses();
        let slots: Vec<u32> = slot_uses.map(|(slot_use, _)| slot_use.slot.index).collect();
        // So that the payer hears of the last bytes before it hears that this is the end.
        slots.into_iter().for_each(|index| self.read(index));
        let Some(account) = self.accounts.get_mut(&channel) else {
            return false;
        };
        account.payee.handle_finish();
        if account.finish == Finish::NotAsked || account.finish == Finish::Done {
            account.finish = Finish::Asked;
        }
        account.urgent = true;
        self.touch(channel);
        true
    }

    /// The last claim of a channel: exactly what is owed, under the newest voucher that begins
    /// at or before it.
    pub fn final_claim(&self, channel: ChannelId) -> Option<FinalClaim> {
        let status = self.status(channel)?;
        let claim = self
            .accounts
            .get(&channel)?
            .payee
            .claim()
            .map(|claim| ClaimBytes {
                voucher: claim.voucher.to_bytes().to_vec(),
                index: claim.index,
                preimage: claim.preimage,
            });
        Some(FinalClaim { status, claim })
    }

    // Committing.

    /// What is to be committed now; nothing while nothing is urgent, unless it is `due`.
    pub fn poll_entries(&mut self, due: bool) -> Vec<Entry> {
        if !due && !self.urgent {
            return Vec::new();
        }
        self.urgent = false;
        let mut entries = Vec::new();
        for channel in &self.touched {
            let Some(account) = self.accounts.get_mut(channel) else {
                continue;
            };
            account.urgent = false;
            let record = account.payee.poll_record();
            let facts = std::mem::take(&mut account.facts_changed).then_some(account.facts);
            if record.is_some() || facts.is_some() {
                entries.push(Entry {
                    channel: *channel,
                    facts,
                    record,
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
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|channel| {
            let Some(account) = self.accounts.get_mut(channel) else {
                return false;
            };
            if committed {
                account.payee.handle_durable();
                account.note_window();
            }
            account.apply_credit(self.attached.as_ref());
            if account.payee.is_durable() {
                account.tell(&mut self.outputs);
            }
            let finishing =
                account.finish(self.attached.as_ref(), *channel, now, &mut self.outputs);
            account.urgent |= finishing;
            self.urgent |= account.urgent;
            account.touched = finishing || !account.payee.is_durable() || account.facts_changed;
            account.touched
        });
        self.touched = touched;
        if committed {
            // Their last totals were in the batch.
            self.dead.clear();
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn touch(&mut self, channel: ChannelId) {
        if let Some(account) = self.accounts.get_mut(&channel) {
            self.urgent |= account.urgent;
            if !std::mem::replace(&mut account.touched, true) {
                self.touched.push(channel);
            }
        }
    }

    // Looking.

    /// Counts since start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Links with payers.
    pub fn connected(&self) -> usize {
        self.connections.len()
    }

    /// Channels that the chain should be asked about from time to time: those that can use or
    /// pay something.
    pub fn active(&self) -> impl Iterator<Item = ChannelId> {
        self.accounts
            .iter()
            .filter(|(_, account)| account.is_active())
            .map(|(channel, _)| *channel)
    }

    /// Every channel's signer, who is no stranger.
    pub fn signers(&self) -> impl Iterator<Item = PublicKey> {
        self.accounts.values().map(|account| account.facts.signer)
    }

    /// Every channel.
    pub fn channels(&self) -> impl Iterator<Item = ChannelId> {
        self.accounts.keys().copied()
    }

    /// How a channel stands.
    pub fn status(&self, channel: ChannelId) -> Option<ChannelStatus> {
        let account = self.accounts.get(&channel)?;
        let payee = &account.payee;
        let meter = payee.meter();
        let redeemable = payee.claim().and_then(|claim| claim.redeemable());
        let (state, reason) = match payee.state() {
            PayeeState::Open => ("open", None),
            PayeeState::Frozen => ("frozen", account.frozen.clone()),
            PayeeState::Finished => ("finished", None),
            PayeeState::Broken => (
                "broken",
                Some("its counts contradict themselves".to_owned()),
            ),
        };
        let refused = account
            .refused
            .map(|code| format!("a payment was refused: {code:?}"));
        Some(ChannelStatus {
            channel,
            metered_bytes: meter.channel_bytes,
            usage_bytes: payee.channel_bytes(),
            owed_units: meter.owed,
            accepted_units: meter.accepted,
            written_off_units: payee.written_off(),
            window_units_max: account.facts.window_units_max,
            unpaid_bytes: account.facts.unpaid_bytes_max,
            redeemable: redeemable.unwrap_or(Amount::ZERO),
            state: state.to_owned(),
            reason: reason.or(refused),
            connected: account.connection.is_some(),
        })
    }
}
