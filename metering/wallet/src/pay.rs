//! Pays on one channel until told to stop: the shell around [`Payer`].
//!
//! It connects, resumes, and from then on lets the payer speak whenever something has changed:
//! the payee said something, or the payer's own count went on. What the payer wants to say is
//! written to the journal first. A link that breaks is made again.

use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant},
};

use topnet_account::{Address, PublicKey};
use topnet_channel::{
    MESSAGE_BYTES_MAX, MessageError, Offer, PayeeMessage, Payer, PayerFault, PayerMessage,
    PayerTerms, RefusalCode, SecretKey, own_bytes_max,
};
use topnet_link::{Connection, FRAME_BYTES_MAX, LinkError, Sender};
use topnet_unit::UnitCount;
use tracing::{debug, info, warn};

use crate::{
    AllowanceError, ByteCounter, Checkpoint, History, Journal, JournalError, Limit, Limits,
    OwnCount,
    allowance::Allowance,
    history::now_ms,
    status::{PayState, PayStatus, StatusFile},
};

/// How often the own count is read when nothing else happens.
const COUNT_INTERVAL: Duration = Duration::from_millis(50);
/// How often the own count is journalled when no token carries it.
const COUNT_SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Between attempts to connect: doubling from the first to the last.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Refusals in a row, without a unit accepted in between, after which paying ends.
const REFUSALS_MAX: u32 = 10;
/// How often the channel's history is written while the counts change.
const HISTORY_INTERVAL: Duration = Duration::from_secs(15 * 60);
const MILLION: u128 = 1_000_000;

const _: () = assert!(MESSAGE_BYTES_MAX <= FRAME_BYTES_MAX);

/// Whom to pay, on which channel, and within which limits.
#[derive(Clone, Debug)]
pub struct PayTerms {
    /// Where the payee listens.
    pub address: SocketAddr,
    /// The key of the payee's listener, out of its offer.
    pub payee: PublicKey,
    /// The channel and what its owner allows.
    pub payer: PayerTerms,
    /// The most that the payee's count may lead ours, in millionths; a smaller offer counts.
    pub epsilon_ppm_max: u32,
    /// The account that the channel pays. All channels that pay it share the limits.
    pub provider: Address,
    /// How much is promised to the provider, and how fast.
    pub limits: Limits,
    /// Where to show how the channel stands.
    pub status_file: Option<PathBuf>,
}

/// Why paying ended.
#[derive(Debug, thiserror::Error)]
pub enum PayError {
    /// What is promised cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What may still be promised cannot be told.
    #[error(transparent)]
    Allowance(#[from] AllowanceError),
    /// The payee and the payer disagree for good.
    #[error(transparent)]
    Fault(#[from] PayerFault),
    /// Somebody else answers where the payee should be.
    #[error(transparent)]
    Link(LinkError),
    /// More bytes than can be counted.
    #[error("the own count overflows; open a new channel")]
    Count,
}

/// Why a conversation ended, other than by an error that ends paying.
enum Ended {
    Stopped,
    Finished,
    Lost(String),
    Refused(RefusalCode),
}

/// Pays until `stop` is ready, the payee has finished the channel, or an error that no
/// repetition mends. Gives how the channel stands then.
pub async fn pay(
    secret: &SecretKey,
    terms: PayTerms,
    journal: Journal,
    counter: Box<dyn ByteCounter>,
    stop: impl Future<Output = ()>,
) -> Result<PayStatus, PayError> {
    let mut paying = Paying::new(secret, terms, journal, counter)?;
    let mut stop = pin!(stop);
    let mut retry = RETRY_MIN;
    loop {
        let ended = tokio::select! {
            () = &mut stop => Ended::Stopped,
            linked = topnet_link::connect(paying.terms.address, paying.terms.payee, secret) => {
                match linked {
                    Ok(link) => paying.converse(link, stop.as_mut()).await?,
                    Err(error @ LinkError::WrongKey { .. }) => {
                        paying.show(PayState::Ended, Some(error.to_string()));
                        return Err(PayError::Link(error));
                    }
                    Err(error) => Ended::Lost(error.to_string()),
                }
            }
        };
        let reason = match ended {
            Ended::Stopped => return paying.end(None),
            Ended::Finished => {
                return paying.end(Some("the payee has finished the channel".into()));
            }
            Ended::Lost(reason) => reason,
            Ended::Refused(code) => paying.refused(code)?,
        };
        debug!(reason, "paying pauses");
        paying.show(PayState::Connecting, Some(reason));
        retry = if paying.heard {
            RETRY_MIN
        } else {
            (retry * 2).min(RETRY_MAX)
        };
        paying.heard = false;
        tokio::select! {
            () = &mut stop => return paying.end(None),
            () = tokio::time::sleep(retry) => {}
        }
    }
}

struct Paying {
    terms: PayTerms,
    payer: Payer,
    journal: Journal,
    counter: Box<dyn ByteCounter>,
    own: OwnCount,
    epsilon_ppm: u32,
    /// The payee has said how the channel stands since the last attempt.
    heard: bool,
    /// When the history was written, and what.
    noted: Option<(Instant, Checkpoint)>,
    refusals: u32,
    accepted: u64,
    count_saved: Instant,
    /// `None` where nothing is limited.
    allowance: Option<Allowance>,
    /// Units in all that the allowance has granted, or that were released before.
    permitted: UnitCount,
    /// The limit that holds the payer back now.
    limit: Option<Limit>,
    /// The payee's, on this link.
    offer: Option<Offer>,
    status_file: Option<StatusFile>,
    complained: bool,
}

impl Paying {
    fn new(
        secret: &SecretKey,
        terms: PayTerms,
        journal: Journal,
        counter: Box<dyn ByteCounter>,
    ) -> Result<Self, PayError> {
        let allowance = match terms.limits.is_unlimited() {
            true => None,
            false => Some(Allowance::open(
                journal.state_dir(),
                terms.provider,
                terms.limits,
            )?),
        };
        let remembered = journal.remembered().clone();
        let record = remembered.payer();
        let promise = record.and_then(|record| record.promise);
        let mut payer = Payer::new(again(secret), terms.payer, promise);
        payer.handle_own_bytes(record.map_or(0, |record| record.own_bytes));
        let released = payer.status().released;
        if allowance.is_some() {
            payer.handle_permitted(released);
        }
        Ok(Self {
            allowance,
            permitted: released,
            limit: None,
            offer: None,
            status_file: terms.status_file.clone().map(StatusFile::new),
            epsilon_ppm: terms.epsilon_ppm_max,
            own: remembered.own,
            terms,
            payer,
            journal,
            counter,
            heard: false,
            noted: None,
            refusals: 0,
            accepted: 0,
            count_saved: Instant::now(),
            complained: false,
        })
    }

    /// Speaks with the payee over one link, as long as it lasts.
    async fn converse(
        &mut self,
        link: Connection,
        mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Ended, PayError> {
        let (mut sender, mut receiver) = link.split();
        self.offer = None;
        for message in self.payer.hello() {
            if let Err(error) = sender.send(&message.to_bytes()).await {
                return Ok(Ended::Lost(error.to_string()));
            }
        }
        loop {
            self.count()?;
            if let Err(error) = self.speak(&mut sender).await? {
                return Ok(Ended::Lost(error.to_string()));
            }
            self.show(PayState::Paying, None);
            let received = tokio::select! {
                () = &mut stop => {
                    sender.finish().await;
                    return Ok(Ended::Stopped);
                }
                received = receiver.recv() => received,
                () = tokio::time::sleep(COUNT_INTERVAL) => continue,
            };
            let bytes = match received {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(Ended::Lost("the payee ended the link".into())),
                Err(error) => return Ok(Ended::Lost(error.to_string())),
            };
            if let Some(ended) = self.hear(&bytes)? {
                return Ok(ended);
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<Option<Ended>, PayError> {
        let message = match PayeeMessage::from_bytes(bytes) {
            Ok(message) => message,
            Err(error) => return Ok(Some(Ended::Lost(malformed(error)))),
        };
        match message {
            PayeeMessage::Offer(offer) => {
                self.epsilon_ppm = offer.epsilon_ppm.min(self.terms.epsilon_ppm_max);
                self.offer = Some(offer);
            }
            PayeeMessage::Meter(meter) => {
                self.heard = true;
                if meter.accepted > self.accepted {
                    self.accepted = meter.accepted;
                    self.refusals = 0;
                }
            }
            PayeeMessage::Refused(RefusalCode::Finished) => return Ok(Some(Ended::Finished)),
            PayeeMessage::Refused(code) => return Ok(Some(Ended::Refused(code))),
            PayeeMessage::Resume(_) => {}
        }
        self.payer.handle_message(&message)?;
        Ok(None)
    }

    /// Saves and sends whatever is due.
    async fn speak(&mut self, sender: &mut Sender) -> Result<Result<(), LinkError>, PayError> {
        self.permit()?;
        while let Some(unsaved) = self.payer.poll_send() {
            let durable = self.journal.save(unsaved, self.own)?;
            self.count_saved = Instant::now();
            let message: PayerMessage = durable.release();
            if let Err(error) = sender.send(&message.to_bytes()).await {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// Takes the own counters in. A counter that cannot be read leaves the count as it is, so
    /// that no more is paid for than was seen.
    fn count(&mut self) -> Result<(), PayError> {
        match self.counter.read() {
            Ok(readings) => {
                self.own.take(readings).ok_or(PayError::Count)?;
                self.complained = false;
            }
            Err(error) if !self.complained => {
                warn!(%error, "the own count cannot be read; paying goes on to the window's end");
                self.complained = true;
            }
            Err(_) => {}
        }
        self.payer
            .handle_own_bytes(self.most_bytes().ok_or(PayError::Count)?);
        let due = self.count_saved.elapsed() >= COUNT_SAVE_INTERVAL;
        if due && self.journal.remembered().own != self.own {
            self.journal.save_count(self.own)?;
            self.count_saved = Instant::now();
        }
        Ok(())
    }

    /// The most that the payer takes itself to owe for.
    fn most_bytes(&self) -> Option<u64> {
        let most = self.own.most();
        own_bytes_max(most.up_bytes, most.down_bytes, self.epsilon_ppm)
    }

    /// Has the allowance grant what the payer would promise now, and lets it promise no more
    /// than that.
    fn permit(&mut self) -> Result<(), PayError> {
        let status = self.payer.status();
        let (Some(allowance), Some(offer), true) = (&self.allowance, self.offer, status.resumed)
        else {
            return Ok(());
        };
        self.permitted = self.permitted.max(status.released);
        self.limit = None;
        let wanted = status.due.saturating_sub(self.permitted);
        if wanted > 0 {
            let promise = self.payer.promise();
            let price = promise.map(|promise| promise.voucher.voucher.unit_price);
            let dearest = offer.unit_price.max(price.unwrap_or(offer.unit_price));
            let grant = allowance.ask(wanted, dearest)?;
            self.permitted = self.permitted.saturating_add(grant.units);
            self.limit = grant.limit;
        }
        self.payer.handle_permitted(self.permitted);
        Ok(())
    }

    /// Whether to try again after a refusal, and what to say meanwhile.
    fn refused(&mut self, code: RefusalCode) -> Result<String, PayError> {
        // These pass by themselves, sooner or later.
        let passes = matches!(
            code,
            RefusalCode::Frozen | RefusalCode::UnknownChannel | RefusalCode::TooOften
        );
        if !passes {
            self.refusals += 1;
        }
        if code == RefusalCode::Version || self.refusals > REFUSALS_MAX {
            let fault = PayerFault::Refused(code);
            self.show(PayState::Ended, Some(fault.to_string()));
            return Err(fault.into());
        }
        Ok(format!("the payee refuses: {code:?}"))
    }

    fn end(mut self, reason: Option<String>) -> Result<PayStatus, PayError> {
        if self.journal.remembered().own != self.own {
            self.journal.save_count(self.own)?;
        }
        let status = self.status(PayState::Ended, reason);
        info!(
            released = status.released_units,
            owed = status.owed_units,
            "paying ends"
        );
        if let Some(file) = &mut self.status_file {
            file.write(&status);
        }
        if self.noted.is_some() {
            self.note(&status);
        }
        Ok(status)
    }

    /// Writes the history on, if something has changed. Statements are coarser without, so it is
    /// no reason not to pay.
    fn note(&mut self, status: &PayStatus) {
        let checkpoint = status.checkpoint(now_ms());
        let before = self.noted.map(|(_, noted)| Checkpoint {
            at_ms: checkpoint.at_ms,
            ..noted
        });
        self.noted = Some((Instant::now(), checkpoint));
        if before == Some(checkpoint) {
            return;
        }
        let (state_dir, channel) = (self.journal.state_dir(), self.terms.payer.channel);
        if let Err(error) = History::note_checkpoint(state_dir, channel, checkpoint) {
            warn!(%error, "the channel's history cannot be written");
        }
    }

    fn show(&mut self, state: PayState, reason: Option<String>) {
        let status = self.status(state, reason);
        let due = self
            .noted
            .is_none_or(|(at, _)| at.elapsed() >= HISTORY_INTERVAL);
        if self.heard && due {
            self.note(&status);
        }
        if let Some(file) = &mut self.status_file {
            file.offer(&status);
        }
    }

    fn status(&self, state: PayState, reason: Option<String>) -> PayStatus {
        let payer = self.payer.status();
        let meter = &payer.meter;
        let (interface, transfer) = (self.own.interface(), self.own.transfer());
        let least = u128::from(interface.total_bytes().unwrap_or(u64::MAX));
        let tolerated = least * u128::from(self.epsilon_ppm) / MILLION;
        let most = self.most_bytes().unwrap_or(u64::MAX);
        PayStatus {
            channel: self.terms.payer.channel,
            payee: self.terms.address,
            state,
            reason,
            released_units: payer.released,
            promised: payer.promised,
            accepted_units: meter.accepted,
            owed_units: meter.owed,
            metered_bytes: meter.channel_bytes,
            credit_bytes: meter.credit_bytes,
            lead_units_max: payer.lead_max,
            limit: self.limit,
            interface_bytes: interface.total_bytes().unwrap_or(u64::MAX),
            transfer_bytes: transfer.map(|counted| counted.total_bytes().unwrap_or(u64::MAX)),
            own_bytes_max: most,
            meter_above_own: meter.channel_bytes > most,
            meter_below_own: u128::from(meter.channel_bytes) < least - tolerated,
        }
    }
}

/// The same key once more: the payer keeps one, the link needs one.
fn again(secret: &SecretKey) -> SecretKey {
    SecretKey::from_seed(*secret.seed()).expect("a seed that made a key makes it again")
}

fn malformed(error: MessageError) -> String {
    format!("the payee said something that is no message: {error}")
}
