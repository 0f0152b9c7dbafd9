//! What reaches the keeper, and how.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::{mpsc, oneshot};
use topnet_account::{Address, Amount, ChannelId, PublicKey};
use topnet_api::{Assignments, ChannelStatus, ChannelView, FinalClaim, HeldClaim, Latency};
use topnet_books::{ConnectionId, Counters, Greeting, Tips};
use topnet_channel::{PayeeMessage, PayerMessage, Proved, RefusalCode, SlotUse, Unproved};
use topnet_unit::Attachment;

/// Something that happened, or that somebody asks.
#[derive(Debug)]
pub enum Event {
    /// A data plane's tables.
    Attached(Box<Attachment>),
    /// Its slots.
    Assignments(Assignments),
    /// It has heard an acknowledgement.
    Acknowledged(SlotUse),
    /// Whom channels pay.
    Payee(Address),
    /// The chains' newest final headers.
    Tips(Tips),
    /// What the chain says of a channel.
    Channel(Box<ChannelView>),
    /// A payer's first word, on a link on which it proved a key.
    Hello {
        /// The link.
        connection: ConnectionId,
        /// The channel.
        channel: ChannelId,
        /// The proved key.
        key: PublicKey,
        /// Where answers go; dropped when the link is not wanted any more.
        replies: mpsc::Sender<PayeeMessage>,
        /// What it comes to.
        greeting: oneshot::Sender<Greeting>,
    },
    /// The link is gone.
    Disconnected(ConnectionId),
    /// How one channel stands.
    Status(ChannelId, oneshot::Sender<Option<ChannelStatus>>),
    /// How channels stand, a page of them.
    Statuses {
        /// Which.
        page: Page,
        /// Where the answer goes.
        answer: oneshot::Sender<Vec<ChannelStatus>>,
    },
    /// How metering stands.
    Overview(oneshot::Sender<Overview>),
    /// Channels that the chain should be asked about.
    Active(oneshot::Sender<Vec<ChannelId>>),
    /// Claims that have grown, so many at most.
    Claims(usize, oneshot::Sender<Vec<HeldClaim>>),
    /// Claims that were asked for and did not arrive where they are held.
    ClaimsLost(Vec<ChannelId>),
    /// Finish a channel; `None` if nobody knows it.
    Finish(ChannelId, oneshot::Sender<Option<FinalClaim>>),
    /// Commit what there is and end.
    Stop,
}

/// A part of a long list, in the order of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Also channels that have neither link nor slot.
    pub all: bool,
    /// From behind this one on.
    pub after: Option<ChannelId>,
}

/// What comes from a payer after its hello.
#[derive(Debug)]
pub enum Payment {
    /// It said something that is counted, or refused, at once.
    Said {
        /// On which link.
        connection: ConnectionId,
        /// What.
        message: PayerMessage,
    },
    /// It said something that may have to be proved.
    Promised {
        /// On which link.
        connection: ConnectionId,
        /// What.
        message: PayerMessage,
        /// What is to be proved, if anything. Until then the link says nothing else.
        unproved: oneshot::Sender<Option<Unproved>>,
    },
    /// It has been proved, or not.
    Proof {
        /// On which link.
        connection: ConnectionId,
        /// What came of it.
        proof: Result<Proved, RefusalCode>,
    },
}

/// What only a task can do for the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Tell the data plane that last totals are journalled.
    Acknowledge(SlotUse),
    /// Ask the chain about a channel.
    LookUp(ChannelId),
}

/// How metering stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Boot id of the attached data plane.
    pub boot: Option<String>,
    /// Links with payers.
    pub connections: u64,
    /// Channels known.
    pub channels: u64,
    /// Counts since start.
    pub counters: Counters,
    /// Unit records that wait.
    pub ring_waiting: u64,
    /// How long commits took.
    pub commit_us: Latency,
    /// From a unit's first byte until it was journalled.
    pub unit_us: Latency,
    /// Forwarded beyond what is paid for, over all channels.
    pub unpaid_bytes_now: u64,
    /// What would be lost if the service died now.
    pub unbacked: Amount,
    /// Why the journal cannot be written, if so.
    pub journal_fault: Option<String>,
    /// Why nothing can be served, if so.
    pub frozen: Option<String>,
}

/// Keys of known channels, for the listener.
#[derive(Clone, Debug, Default)]
pub struct KnownKeys(Arc<RwLock<HashMap<PublicKey, u32>>>);

impl KnownKeys {
    /// True if a known channel's vouchers are signed with `key`.
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(key)
    }

    /// One more channel of `key` is known.
    pub(crate) fn insert(&self, key: PublicKey) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let channels = keys.entry(key).or_default();
        *channels = channels.saturating_add(1);
    }

    /// One channel of `key` is forgotten.
    pub(crate) fn remove(&self, key: &PublicKey) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(channels) = keys.get_mut(key) {
            *channels -= 1;
            if *channels == 0 {
                keys.remove(key);
            }
        }
    }
}

/// The way to the keeper's thread.
#[derive(Clone, Debug)]
pub struct Handle {
    /// What happens.
    pub events: mpsc::Sender<Event>,
    /// What payers say.
    pub payments: mpsc::Sender<Payment>,
    /// Who is no stranger.
    pub known: KnownKeys,
}

/// The keeper's thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metering is ending")]
pub struct Ended;

impl Handle {
    /// Sends an event.
    pub async fn tell(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended)
    }

    /// Sends an event that is answered.
    pub async fn ask<T>(
        &self,
        event: impl FnOnce(oneshot::Sender<T>) -> Event,
    ) -> Result<T, Ended> {
        let (sender, answer) = oneshot::channel();
        self.tell(event(sender)).await?;
        answer.await.map_err(|_| Ended)
    }
}
