//! The thread that owns the books and the journal.
//!
//! It takes turns and never waits for anybody but the disk. Whoever wants something of it sends
//! an [`Event`]; payers' messages have a queue of their own, of which one turn takes a bounded
//! part, so that nothing said at the payment port holds up credit.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::{mpsc, oneshot};
use topnet_account::{Address, ChannelId, PublicKey};
use topnet_api::{Assignments, ChannelStatus, ChannelView, FinalClaim};
use topnet_books::{Books, ConnectionId, Counters, Greeting, Output, Tips};
use topnet_channel::{PayeeMessage, PayerMessage, SlotUse};
use topnet_unit::Attachment;
use tracing::{error, warn};

use crate::journal::{Journal, JournalError};

/// Events that wait.
pub const EVENTS_MAX: usize = 4096;
/// Payers' messages that wait.
pub const PAYMENTS_MAX: usize = 16_384;
/// Messages that wait for one payer; of totals the next one says all that a lost one said.
pub const REPLIES_MAX: usize = 32;
/// Errands that wait; the books want a lost one again.
pub const ERRANDS_MAX: usize = 1024;
/// Of each queue, what one turn takes: enough to fill a batch, too little to delay credit.
const TURN_MAX: usize = 1024;
/// An idle turn's length: what a unit record waits at most before it is seen.
const IDLE: Duration = Duration::from_micros(500);
/// How often all slots are read, whatever the rings say.
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);
/// How often headers' ages are looked at.
const FRESHNESS_INTERVAL: Duration = Duration::from_millis(50);
/// How often bytes within a unit are journalled.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

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
    /// How all channels stand.
    Statuses(oneshot::Sender<Vec<ChannelStatus>>),
    /// How metering stands.
    Overview(oneshot::Sender<Overview>),
    /// Channels that the chain should be asked about.
    Active(oneshot::Sender<Vec<ChannelId>>),
    /// Finish a channel; `None` if nobody knows it.
    Finish(ChannelId, oneshot::Sender<Option<FinalClaim>>),
    /// Commit what there is and end.
    Stop,
}

/// What a payer said after its hello.
#[derive(Debug)]
pub struct Payment {
    /// On which link.
    pub connection: ConnectionId,
    /// What.
    pub message: PayerMessage,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// Boot id of the attached data plane.
    pub boot: Option<String>,
    /// Links with payers.
    pub connections: u64,
    /// Counts since start.
    pub counters: Counters,
    /// Why nothing can be served, if so.
    pub frozen: Option<String>,
}

/// Keys of known channels, for the listener.
#[derive(Clone, Debug, Default)]
pub struct KnownKeys(Arc<RwLock<HashSet<PublicKey>>>);

impl KnownKeys {
    /// True if a known channel's vouchers are signed with `key`.
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(key)
    }

    fn insert(&self, key: PublicKey) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key);
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

/// The keeper's thread and what it wants done.
#[derive(Debug)]
pub struct Running {
    /// The way to it.
    pub handle: Handle,
    /// What only a task can do.
    pub errands: mpsc::Receiver<Errand>,
    /// Ready when the thread has ended, and why.
    pub ended: oneshot::Receiver<Result<(), JournalError>>,
}

/// Starts the thread.
pub fn start(books: Books, journal: Journal) -> std::io::Result<Running> {
    let (events_in, events) = mpsc::channel(EVENTS_MAX);
    let (payments_in, payments) = mpsc::channel(PAYMENTS_MAX);
    let (errands, errands_out) = mpsc::channel(ERRANDS_MAX);
    let (ended_in, ended) = oneshot::channel();
    let known = KnownKeys::default();
    books.signers().for_each(|key| known.insert(key));
    let now = Instant::now();
    let keeper = Keeper {
        books,
        journal,
        events,
        payments,
        errands,
        known: known.clone(),
        links: HashMap::new(),
        finishing: Vec::new(),
        swept: now,
        freshened: now,
        committed: now,
    };
    thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || {
            let ended = keeper.run();
            if let Err(error) = &ended {
                error!(%error, "metering stops: what cannot be journalled must not be served");
            }
            let _ = ended_in.send(ended);
        })?;
    let handle = Handle {
        events: events_in,
        payments: payments_in,
        known,
    };
    Ok(Running {
        handle,
        errands: errands_out,
        ended,
    })
}

struct Keeper {
    books: Books,
    journal: Journal,
    events: mpsc::Receiver<Event>,
    payments: mpsc::Receiver<Payment>,
    errands: mpsc::Sender<Errand>,
    known: KnownKeys,
    links: HashMap<ConnectionId, mpsc::Sender<PayeeMessage>>,
    finishing: Vec<(ChannelId, oneshot::Sender<Option<FinalClaim>>)>,
    swept: Instant,
    freshened: Instant,
    committed: Instant,
}

impl Keeper {
    fn run(mut self) -> Result<(), JournalError> {
        loop {
            let Some(heard) = self.hear() else {
                return self.commit(Instant::now(), true).map(|_| ());
            };
            let now = Instant::now();
            let sweep = now >= self.swept + SWEEP_INTERVAL;
            let records = self.books.poll_usage(sweep);
            if sweep {
                self.swept = now;
            }
            if now >= self.freshened + FRESHNESS_INTERVAL {
                self.freshened = now;
                self.books.poll_freshness(wall_ms());
            }
            let due = now >= self.committed + COMMIT_INTERVAL;
            let committed = self.commit(now, due)?;
            self.act();
            if heard == 0 && records == 0 && !committed {
                thread::sleep(IDLE);
            }
        }
    }

    /// Takes what has come in; `None` when it is time to end.
    fn hear(&mut self) -> Option<usize> {
        let mut heard = 0;
        while heard < TURN_MAX {
            match self.events.try_recv() {
                Ok(Event::Stop) | Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Ok(event) => self.handle(event),
                Err(mpsc::error::TryRecvError::Empty) => break,
            }
            heard += 1;
        }
        for _ in 0..TURN_MAX {
            let Ok(Payment {
                connection,
                message,
            }) = self.payments.try_recv()
            else {
                break;
            };
            self.books.handle_payer(connection, &message);
            heard += 1;
        }
        Some(heard)
    }

    fn handle(&mut self, event: Event) {
        // Whoever asked may have gone; then nobody needs the answer.
        match event {
            Event::Attached(attachment) => self.books.handle_attached(*attachment),
            Event::Assignments(assignments) => self.books.handle_assignments(&assignments),
            Event::Acknowledged(slot_use) => self.books.handle_acknowledged(slot_use),
            Event::Payee(payee) => self.books.handle_payee(payee),
            Event::Tips(tips) => self.books.handle_tips(tips),
            Event::Channel(view) => {
                if self.books.handle_channel(&view) {
                    self.known.insert(view.signer);
                    // The next thing may be this payer's hello: let it find the channel thawed.
                    self.books.poll_freshness_of(view.id, wall_ms());
                }
            }
            Event::Hello {
                connection,
                channel,
                key,
                replies,
                greeting,
            } => {
                let result = self.books.handle_hello(connection, channel, key);
                if result == Greeting::Welcome {
                    self.links.insert(connection, replies);
                }
                let _ = greeting.send(result);
            }
            Event::Disconnected(connection) => {
                self.links.remove(&connection);
                self.books.handle_disconnected(connection);
            }
            Event::Status(channel, answer) => drop(answer.send(self.books.status(channel))),
            Event::Statuses(answer) => {
                let channels = self.books.channels();
                let statuses = channels
                    .filter_map(|channel| self.books.status(channel))
                    .collect();
                let _ = answer.send(statuses);
            }
            Event::Overview(answer) => drop(answer.send(self.overview())),
            Event::Active(answer) => drop(answer.send(self.books.active().collect())),
            Event::Finish(channel, answer) => {
                if self.books.handle_finish(channel) {
                    self.finishing.push((channel, answer));
                } else {
                    let _ = answer.send(None);
                }
            }
            Event::Stop => {}
        }
    }

    fn overview(&self) -> Overview {
        Overview {
            boot: self.books.boot().map(|boot| boot.to_string()),
            connections: self.books.connected() as u64,
            counters: self.books.counters(),
            frozen: self.books.frozen(wall_ms()),
        }
    }

    /// Durable before released: the commit comes first, then credit.
    fn commit(&mut self, now: Instant, due: bool) -> Result<bool, JournalError> {
        let entries = self.books.poll_entries(due);
        let committed = !entries.is_empty();
        if committed {
            self.journal.commit(&entries)?;
        }
        if committed || due {
            self.committed = now;
        }
        // Not `now`: the commit may have taken long, and what closes credit begins only here.
        self.books.handle_committed(committed, Instant::now());
        Ok(committed)
    }

    fn act(&mut self) {
        while let Some(output) = self.books.poll_output() {
            match output {
                Output::Reply(connection, message) => self.reply(connection, message),
                Output::Replaced(connection) => drop(self.links.remove(&connection)),
                Output::Acknowledge(slot_use) => self.errand(Errand::Acknowledge(slot_use)),
                Output::LookUp(channel) => self.errand(Errand::LookUp(channel)),
                Output::Finished(channel) => self.finished(channel),
            }
        }
    }

    fn reply(&mut self, connection: ConnectionId, message: PayeeMessage) {
        let Some(link) = self.links.get(&connection) else {
            return;
        };
        let full = matches!(
            link.try_send(message),
            Err(mpsc::error::TrySendError::Full(_))
        );
        // Totals may be lost, other words must not be: a payer that does not read starts anew.
        if full && !matches!(message, PayeeMessage::Meter(_)) {
            warn!(connection, "a payer does not read; its link ends");
            self.links.remove(&connection);
        }
    }

    fn errand(&self, errand: Errand) {
        // The books want it again.
        let _ = self.errands.try_send(errand);
    }

    fn finished(&mut self, channel: ChannelId) {
        let waiting = self
            .finishing
            .extract_if(.., |(waiting, _)| *waiting == channel);
        for (_, answer) in waiting {
            let _ = answer.send(self.books.final_claim(channel));
        }
    }
}

/// The time of day, compared with headers' and used for nothing else.
fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
