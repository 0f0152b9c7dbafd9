//! The payer's shell: what it has counted, what is on its disk, and what it has let go.

use topnet_account::Amount;
use topnet_books::ConnectionId;
use topnet_channel::{
    Offer, PayeeMessage, Payer, PayerFault, PayerMessage, PayerRecord, PayerTerms, RefusalCode,
    SecretKey, own_bytes_max,
};
use topnet_unit::UNIT_BYTES;

use crate::{disk::WalletDisk, plan::Plan};

const MILLION: u128 = 1_000_000;

/// Why the wallet pays no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The payee has finished the channel.
    Finished,
    /// They disagree for good.
    Fault(PayerFault),
}

/// What a link's end leaves the wallet to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Go on.
    On,
    /// End this link and make another, later.
    Reconnect,
}

/// A payer with its disk and its counter.
#[derive(Debug)]
pub(crate) struct Wallet {
    pub(crate) secret: SecretKey,
    pub(crate) terms: PayerTerms,
    pub(crate) payer: Payer,
    pub(crate) disk: WalletDisk,
    pub(crate) link: Option<ConnectionId>,
    pub(crate) retry_at_us: u64,
    pub(crate) ended: Option<Ended>,
    /// What its interface has seen since the channel was opened.
    seen_bytes: u64,
    /// How much of that it has forgotten.
    forgotten_bytes: u64,
    epsilon_ppm: u32,
    /// The most that the payee ever said was owed.
    pub(crate) told_units_max: u64,
    pub(crate) released_units_max: u64,
    pub(crate) promised_max: Amount,
}

impl Wallet {
    pub(crate) fn new(seed: [u8; 32], terms: PayerTerms) -> Self {
        let secret = key(seed);
        Self {
            payer: Payer::new(key(seed), terms, None),
            secret,
            terms,
            disk: WalletDisk::default(),
            link: None,
            retry_at_us: 0,
            ended: None,
            seen_bytes: 0,
            forgotten_bytes: 0,
            epsilon_ppm: 0,
            told_units_max: 0,
            released_units_max: 0,
            promised_max: Amount::ZERO,
        }
    }

    /// The interface has seen more.
    pub(crate) fn handle_seen(&mut self, bytes: u64) {
        self.seen_bytes += bytes;
    }

    /// Reads the own counter.
    pub(crate) fn count(&mut self) {
        let seen_bytes = self.seen_bytes - self.forgotten_bytes;
        let own_bytes = own_bytes_max(0, seen_bytes, self.epsilon_ppm);
        self.payer.handle_own_bytes(own_bytes.unwrap_or(u64::MAX));
    }

    /// Worked out here once more, so that a mistake in the product's own rule shows.
    fn tolerated(&self, bytes: u64) -> u64 {
        let tolerated = (u128::from(bytes) * u128::from(self.epsilon_ppm)).div_ceil(MILLION);
        bytes + u64::try_from(tolerated).unwrap_or(u64::MAX)
    }

    /// Something of the payee's.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) -> Heard {
        let Ok(message) = PayeeMessage::from_bytes(bytes) else {
            return Heard::Reconnect;
        };
        match message {
            PayeeMessage::Refused(RefusalCode::Finished) => {
                self.ended = Some(Ended::Finished);
                return Heard::Reconnect;
            }
            PayeeMessage::Refused(_) => return Heard::Reconnect,
            PayeeMessage::Offer(Offer { epsilon_ppm, .. }) => self.epsilon_ppm = epsilon_ppm,
            PayeeMessage::Meter(meter) => {
                self.told_units_max = self.told_units_max.max(meter.owed);
            }
            PayeeMessage::Resume(_) => {}
        }
        match self.payer.handle_message(&message) {
            Ok(()) => Heard::On,
            Err(fault) => {
                self.ended = Some(Ended::Fault(fault));
                Heard::Reconnect
            }
        }
    }

    /// A new process, with what is on the disk.
    pub(crate) fn restart(&mut self) {
        self.link = None;
        let record = self.disk.record().map(PayerRecord::from_bytes);
        let record = record.and_then(Result::ok);
        let promise = record.and_then(|record| record.promise);
        self.payer = Payer::new(key(*self.secret.seed()), self.terms, promise);
        let own_bytes = record.map_or(0, |record| record.own_bytes);
        self.payer.handle_own_bytes(own_bytes);
    }

    /// The journal is gone, and with it what was counted before.
    pub(crate) fn forget(&mut self) {
        self.disk.lose();
        self.forgotten_bytes = self.seen_bytes;
        self.restart();
    }

    pub(crate) fn has_forgotten(&self) -> bool {
        self.forgotten_bytes > 0
    }

    pub(crate) fn handle_allocation(&mut self, allocation: Amount) {
        self.terms.allocation = allocation;
        self.payer.handle_allocation(allocation);
    }

    /// Notes what is about to leave, and says what is wrong with it.
    pub(crate) fn check_released(
        &mut self,
        message: &PayerMessage,
        plan: &Plan,
    ) -> Result<(), String> {
        let status = self.payer.status();
        self.released_units_max = self.released_units_max.max(status.released);
        self.promised_max = self.promised_max.max(status.promised);
        // All that was ever seen: a wallet that forgot may have released for it before.
        let seen_units = self.tolerated(self.seen_bytes).div_ceil(UNIT_BYTES);
        let window_max = plan.offer.window_max.min(self.terms.window_max).max(1);
        let most = seen_units.min(self.told_units_max) + window_max;
        if status.released > most {
            return Err(format!(
                "the payer released {} units: it saw {seen_units}, was told of {}, and its \
                 window is {window_max} ({message:?})",
                status.released, self.told_units_max
            ));
        }
        let is_price = plan.is_price_of(status.promised, status.released);
        if status.promised > self.terms.allocation || !is_price {
            return Err(format!(
                "the payer promised {} for {} units; its allocation is {}",
                status.promised, status.released, self.terms.allocation
            ));
        }
        Ok(())
    }
}

fn key(seed: [u8; 32]) -> SecretKey {
    SecretKey::from_seed(seed).expect("any 32 bytes are a seed")
}
