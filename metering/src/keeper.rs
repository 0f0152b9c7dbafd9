//! The thread that owns the books and the journal.
//!
//! It takes turns and never waits for anybody but the disk. Whoever wants something of it sends
//! an [`Event`]; payers' messages have a queue of their own, of which one turn takes a bounded
//! part, and their signatures are proved elsewhere, so that nothing said at the payment port
//! holds up credit.
//!
//! A disk that refuses a batch ends nothing: the batch is tried again until it is written, no
//! credit rises meanwhile, and what must lose its credit loses it.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot};
use topnet_account::ChannelId;
use topnet_api::{FinalClaim, Latency};
use topnet_books::{Books, ConnectionId, Entry, Greeting, Output};
use topnet_channel::PayeeMessage;
use tracing::{error, info, warn};

use crate::{
    event::{Errand, Event, Handle, KnownKeys, Overview, Page, Payment},
    journal::{Journal, JournalError},
};

/// Events that wait.
pub const EVENTS_MAX: usize = 4096;
/// Payers' messages that wait.
pub const PAYMENTS_MAX: usize = 16_384;
/// Messages that wait for one payer; of totals the next one says all that a lost one said.
pub const REPLIES_MAX: usize = 32;
/// Errands that wait; the books want a lost one again.
pub const ERRANDS_MAX: usize = 1024;
/// Channels on a page of a list.
pub const PAGE_MAX: usize = 1000;
/// Events that one turn takes.
const TURN_EVENTS_MAX: usize = 1024;
/// Payers' messages that one turn takes, for as long as [`TURN_TIME_MAX`] lasts: enough to fill a
/// batch, too little to delay credit.
const TURN_PAYMENTS_MAX: usize = 8192;
/// How long one turn takes payers' messages.
const TURN_TIME_MAX: Duration = Duration::from_millis(2);
/// Messages between two looks at the clock.
const TURN_STEP: usize = 64;
/// An idle turn's length: what a unit record waits at most before it is seen.
const IDLE: Duration = Duration::from_micros(500);
/// How often all slots are read, whatever the rings say.
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);
/// How often headers' ages are looked at.
const FRESHNESS_INTERVAL: Duration = Duration::from_millis(50);
/// How often bytes within a unit are journalled.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// Between two attempts to write what the disk has refused.
const REFUSED_INTERVAL: Duration = Duration::from_millis(500);
/// Channels that the chain is asked about in one go although nothing happens to them.
const ROTATION_MAX: usize = 64;

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
    let keeper = Keeper::new(books, journal, events, payments, errands, known.clone());
    thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || {
            let ended = keeper.run();
            if let Err(error) = &ended {
                error!(%error, "what came last is not journalled; it counts for nothing");
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
    refused: Option<Refused>,
    commit_us: Histogram<u64>,
    unit_us: Histogram<u64>,
    swept: Instant,
    freshened: Instant,
    committed: Instant,
}

/// A batch that the disk has refused; nothing else is committed before it.
struct Refused {
    entries: Vec<Entry>,
    since: Instant,
    tried: Instant,
    reason: String,
}

impl Keeper {
    fn new(
        books: Books,
        journal: Journal,
        events: mpsc::Receiver<Event>,
        payments: mpsc::Receiver<Payment>,
        errands: mpsc::Sender<Errand>,
        known: KnownKeys,
    ) -> Self {
        let now = Instant::now();
        let histogram = || Histogram::new(2).expect("two digits are possible");
        Self {
            books,
            journal,
            events,
            payments,
            errands,
            known,
            links: HashMap::new(),
            finishing: Vec::new(),
            refused: None,
            commit_us: histogram(),
            unit_us: histogram(),
            swept: now,
            freshened: now,
            committed: now,
        }
    }

    fn run(mut self) -> Result<(), JournalError> {
        loop {
            let Some(heard) = self.hear() else {
                return self.end();
            };
            let now = Instant::now();
            let sweep = now >= self.swept + SWEEP_INTERVAL;
            let records = self.books.poll_usage(sweep);
            if sweep {
                self.swept = now;
            }
            if now >= self.freshened + FRESHNESS_INTERVAL {
                self.freshened = now;
                self.books.poll_freshness(now, wall_ms());
            }
            let due = now >= self.committed + COMMIT_INTERVAL;
            let committed = self.commit(now, due);
            self.act();
            if heard == 0 && records == 0 && !committed {
                thread::sleep(IDLE);
            }
        }
    }

    /// Takes what has come in; `None` when it is time to end.
    fn hear(&mut self) -> Option<usize> {
        let mut heard = 0;
        while heard < TURN_EVENTS_MAX {
            match self.events.try_recv() {
                Ok(Event::Stop) | Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Ok(event) => self.handle(event),
                Err(mpsc::error::TryRecvError::Empty) => break,
            }
            heard += 1;
        }
        let until = Instant::now() + TURN_TIME_MAX;
        for number in 0..TURN_PAYMENTS_MAX {
            if number % TURN_STEP == 0 && number > 0 && Instant::now() > until {
                break;
            }
            let Ok(payment) = self.payments.try_recv() else {
                break;
            };
            self.handle_payment(payment);
            heard += 1;
        }
        Some(heard)
    }

    fn handle_payment(&mut self, payment: Payment) {
        match payment {
            Payment::Said {
                connection,
                message,
            } => {
                // What would have to be proved comes as a promise; anything else that does counts
                // for nothing.
                let _ = self.books.handle_payer(connection, &message);
            }
            Payment::Promised {
                connection,
                message,
                unproved,
            } => {
                let _ = unproved.send(self.books.handle_payer(connection, &message));
            }
            Payment::Proof { connection, proof } => self.books.handle_proof(connection, proof),
        }
    }

    fn handle(&mut self, event: Event) {
        // Whoever asked may have gone; then nobody needs the answer.
        match event {
            Event::Attached(attachment) => self.books.handle_attached(*attachment),
            Event::Assignments(assignments) => self.books.handle_assignments(&assignments),
            Event::Acknowledged(slot_use) => self.books.handle_acknowledged(slot_use),
            Event::Payee(payee) => self.books.handle_payee(payee),
            Event::Tips(tips) => self.books.handle_tips(tips, Instant::now()),
            Event::Channel(view) => {
                if self.books.handle_channel(&view) {
                    // The next thing may be this payer's hello: let it find the channel thawed.
                    self.books
                        .poll_freshness_of(view.id, Instant::now(), wall_ms());
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
            Event::Statuses { page, answer } => {
                let Page { all, after } = page;
                let channels = self.books.page(all, after, PAGE_MAX).into_iter();
                let statuses = channels.filter_map(|channel| self.books.status(channel));
                let _ = answer.send(statuses.collect());
            }
            Event::Overview(answer) => drop(answer.send(self.overview())),
            Event::Active(answer) => {
                let mut channels: Vec<ChannelId> = self.books.active().collect();
                channels.extend(self.books.next_in_rotation(ROTATION_MAX));
                let _ = answer.send(channels);
            }
            Event::Claims(count, answer) => drop(answer.send(self.books.take_claims(count))),
            Event::ClaimsLost(channels) => self.books.handle_claims_lost(&channels),
            Event::Finish(channel, answer) => {
                // Whoever asks again has given up on an answer before.
                self.finishing.retain(|(_, answer)| !answer.is_closed());
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
        let fault = self.refused.as_ref().map(|refused| {
            let seconds = refused.since.elapsed().as_secs();
            format!(
                "nothing could be journalled for {seconds} s: {}",
                refused.reason
            )
        });
        let stale = self.books.frozen(Instant::now(), wall_ms());
        Overview {
            boot: self.books.boot().map(|boot| boot.to_string()),
            connections: self.books.connected() as u64,
            channels: self.books.known() as u64,
            counters: self.books.counters(),
            ring_waiting: self.books.ring_waiting(),
            commit_us: percentiles(&self.commit_us),
            unit_us: percentiles(&self.unit_us),
            unpaid_bytes_now: self.books.unpaid_bytes(),
            unbacked: self.books.unbacked(),
            frozen: fault.clone().or(stale),
            journal_fault: fault,
        }
    }

    /// Durable before released: the commit comes first, then credit. True if anything was
    /// committed.
    fn commit(&mut self, now: Instant, due: bool) -> bool {
        let (entries, since) = match self.refused.take() {
            Some(refused) if now < refused.tried + REFUSED_INTERVAL => {
                self.refused = Some(refused);
                self.books.handle_uncommitted(now);
                return false;
            }
            Some(refused) => (refused.entries, Some(refused.since)),
            None => (self.books.poll_entries(due, wall_ms()), None),
        };
        if let Err(error) = self.journal.commit(&entries) {
            self.refuse(entries, since, error);
            self.books.handle_uncommitted(now);
            return false;
        }
        if let Some(since) = since {
            let seconds = since.elapsed().as_secs();
            info!(seconds, "the journal is written again; credit rises again");
        }
        let committed = !entries.is_empty();
        if committed || due {
            self.committed = now;
        }
        // Not `now`: the commit may have taken long, and what closes credit begins only here.
        let after = Instant::now();
        self.books.handle_committed(committed, after);
        if committed {
            self.measure(after - now);
        }
        committed
    }

    fn refuse(&mut self, entries: Vec<Entry>, since: Option<Instant>, error: JournalError) {
        let tried = Instant::now();
        if since.is_none() {
            error!(%error, "nothing can be journalled, so no credit rises; trying again");
        }
        self.refused = Some(Refused {
            entries,
            since: since.unwrap_or(tried),
            tried,
            reason: error.to_string(),
        });
    }

    fn measure(&mut self, commit: Duration) {
        self.commit_us.saturating_record(micros(commit));
        let now = clock_gettime(ClockId::Monotonic);
        let now_ns = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        for begun_ns in self.books.boundaries() {
            let passed = now_ns.saturating_sub(i128::from(begun_ns)) / 1000;
            self.unit_us
                .saturating_record(u64::try_from(passed).unwrap_or(0));
        }
    }

    /// Writes what there is, and ends.
    fn end(mut self) -> Result<(), JournalError> {
        let entries = match self.refused.take() {
            Some(refused) => refused.entries,
            None => self.books.poll_entries(true, wall_ms()),
        };
        self.journal.commit(&entries)
    }

    fn act(&mut self) {
        while let Some(output) = self.books.poll_output() {
            match output {
                Output::Reply(connection, message) => self.reply(connection, message),
                Output::End(connection) => drop(self.links.remove(&connection)),
                Output::Acknowledge(slot_use) => self.errand(Errand::Acknowledge(slot_use)),
                Output::LookUp(channel) => self.errand(Errand::LookUp(channel)),
                Output::Finished(channel) => self.finished(channel),
                Output::Known(signer) => self.known.insert(signer),
                Output::Forgotten(signer) => self.known.remove(&signer),
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

fn percentiles(histogram: &Histogram<u64>) -> Latency {
    Latency {
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
        count: histogram.len(),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The time of day, compared with headers' and written into the service log; no money follows
/// from it.
fn wall_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
