//! The payer's state machine against a payee that says whatever it likes.
//!
//! What must hold, for everything that ever leaves: it pays for no more units than the payee said
//! were owed and the payer has seen, and the window on top; never beyond the allocation, never
//! above the highest price that its owner allows; its record was saved first; and what the payer
//! takes up from the payee's word was made with its own key.

use arbitrary::{Arbitrary, Unstructured};
use topnet_account::{Amount, ChannelId, Signature};
use topnet_channel::{
    Meter, Offer, PROTOCOL_VERSION, PayeeMessage, Payer, PayerFault, PayerMessage, PayerRecord,
    PayerTerms, Promise, SecretKey, SignedVoucher, Voucher, walk_back, window_units,
};
use topnet_unit::{UNIT_BYTES, units_owed};

const EVENTS_MAX: usize = 160;
/// Messages taken from the payer after one event; whatever is left comes after the next.
const SENDS_MAX: u8 = 40;
const CHANNEL: ChannelId = ChannelId([0xc4; 32]);
/// The payer's key.
const SEED: [u8; 32] = [0x5e; 32];
const UNIT_PRICE_MAX: Amount = Amount::from_ntop(40);
const WINDOW_MAX: u64 = 8;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Event {
    Connect,
    Offer {
        price: u8,
        window: u8,
        other_version: bool,
    },
    OfferAny {
        price: u64,
        window: u64,
    },
    ShowNothing,
    Show {
        which: u8,
        index: u16,
        forge: Forge,
    },
    ShowForeign {
        seq: u8,
        amount: u16,
        units: u16,
        price: u16,
        index: u16,
    },
    Meter {
        owed: u16,
        accepted: u16,
    },
    MeterAny {
        channel_bytes: u64,
        owed: u64,
        accepted: u64,
        credit_bytes: u64,
    },
    Refused(u8),
    OwnBytes {
        units: u16,
        less: u8,
    },
    OwnBytesAny(u64),
    TopUp {
        ntop: u16,
    },
    /// Saves and sends; `crash` loses the last message and its record, or only the message.
    Send {
        most: u8,
        crash: Crash,
    },
    Crash,
    LoseJournal,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Crash {
    None,
    BeforeSaved,
    BeforeSent,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Forge {
    None,
    Preimage,
    Signature,
    Amount,
    Channel,
}

/// A voucher that was saved, and the furthest token of it that was.
#[derive(Clone, Copy, Debug)]
struct Made {
    voucher: SignedVoucher,
    index: u16,
    /// The payee has it: it has left.
    sent: bool,
}

struct World {
    payer: Payer,
    terms: PayerTerms,
    disk: Option<PayerRecord>,
    made: Vec<Made>,
    /// What this run of the payer was told and has seen.
    offer_window: u64,
    told_owed: u64,
    own_bytes: u64,
    /// The most that could ever be paid for so far.
    units_max: u64,
}

/// Events in any order.
pub(crate) fn payer(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let mut world = World::new();
    for _ in 0..EVENTS_MAX {
        if input.is_empty() {
            break;
        }
        let Ok(event) = input.arbitrary::<Event>() else {
            break;
        };
        world.happen(event);
    }
}

fn secret() -> SecretKey {
    SecretKey::from_seed(SEED).unwrap()
}

impl World {
    fn new() -> Self {
        let terms = PayerTerms {
            channel: CHANNEL,
            allocation: Amount::from_ntop(10_000),
            unit_price_max: UNIT_PRICE_MAX,
            window_max: WINDOW_MAX,
        };
        Self {
            payer: Payer::new(secret(), terms, None),
            terms,
            disk: None,
            made: Vec::new(),
            offer_window: 0,
            told_owed: 0,
            own_bytes: 0,
            units_max: 0,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Connect => self.connect(),
            Event::Offer {
                price,
                window,
                other_version,
            } => self.hear_offer(
                PROTOCOL_VERSION + u16::from(other_version),
                price.into(),
                window.into(),
            ),
            Event::OfferAny { price, window } => self.hear_offer(PROTOCOL_VERSION, price, window),
            Event::ShowNothing => {
                assert_eq!(self.hear(PayeeMessage::Resume(None)), Ok(()));
            }
            Event::Show {
                which,
                index,
                forge,
            } => self.show(which, index, forge),
            Event::ShowForeign {
                seq,
                amount,
                units,
                price,
                index,
            } => self.show_foreign(seq, amount, units, price, index),
            Event::Meter { owed, accepted } => self.hear_meter(Meter {
                channel_bytes: u64::from(owed) * UNIT_BYTES,
                owed: owed.into(),
                accepted: accepted.into(),
                credit_bytes: 0,
            }),
            Event::MeterAny {
                channel_bytes,
                owed,
                accepted,
                credit_bytes,
            } => self.hear_meter(Meter {
                channel_bytes,
                owed,
                accepted,
                credit_bytes,
            }),
            Event::Refused(code) => {
                if let Ok(message) = PayeeMessage::from_bytes(&[132, code]) {
                    assert!(self.hear(message).is_err());
                }
            }
            Event::OwnBytes { units, less } => {
                let bytes = u64::from(units) * UNIT_BYTES;
                self.see(bytes.saturating_sub(less.into()));
            }
            Event::OwnBytesAny(bytes) => self.see(bytes),
            // A chain only ever raises it.
            Event::TopUp { ntop } => {
                let more = Amount::from_ntop(ntop.into());
                self.terms.allocation = self.terms.allocation.checked_add(more).unwrap();
                self.payer.handle_allocation(self.terms.allocation);
            }
            Event::Send { most, crash } => self.send(most.min(SENDS_MAX), crash),
            Event::Crash => self.restart(),
            Event::LoseJournal => {
                self.disk = None;
                self.restart();
            }
        }
    }

    fn connect(&mut self) {
        let known = self.payer.promise();
        let [hello, resume] = self.payer.hello();
        let channel = CHANNEL;
        let version = PROTOCOL_VERSION;
        assert_eq!(hello, PayerMessage::Hello { version, channel });
        assert_eq!(resume, PayerMessage::Resume(known));
        if let Some(promise) = known {
            self.check_promise(&promise);
        }
    }

    fn hear(&mut self, message: PayeeMessage) -> Result<(), PayerFault> {
        let bytes = message.to_bytes();
        assert_eq!(PayeeMessage::from_bytes(&bytes), Ok(message));
        self.payer.handle_message(&message)
    }

    fn hear_offer(&mut self, version: u16, price: u64, window_max: u64) {
        let unit_price = Amount::from_ntop(price);
        let heard = self.hear(PayeeMessage::Offer(Offer {
            version,
            unit_price,
            epsilon_ppm: 0,
            window_max,
        }));
        let takes = version == PROTOCOL_VERSION && unit_price <= UNIT_PRICE_MAX;
        assert_eq!(heard.is_ok(), takes, "{heard:?}");
        if takes {
            self.offer_window = window_max;
        }
    }

    fn hear_meter(&mut self, meter: Meter) {
        assert_eq!(self.hear(PayeeMessage::Meter(meter)), Ok(()));
        self.told_owed = meter.owed;
    }

    fn see(&mut self, bytes: u64) {
        self.own_bytes = self.own_bytes.max(bytes);
        self.payer.handle_own_bytes(bytes);
    }

    /// The payee shows one of the promises that it was given, or spoils it first.
    fn show(&mut self, which: u8, index: u16, forge: Forge) {
        let sent: Vec<Made> = self.made.iter().filter(|made| made.sent).copied().collect();
        let back = usize::from(which) % sent.len().max(1);
        let Some(made) = sent.iter().rev().nth(back) else {
            return;
        };
        let index = index % (made.index + 1);
        let mut voucher = made.voucher;
        let chain = voucher.voucher.chain(&secret());
        let mut preimage = chain.preimage(index).unwrap();
        match forge {
            Forge::None => {}
            Forge::Preimage => preimage[31] ^= 1,
            Forge::Signature => voucher.signature = Signature([7; 64]),
            Forge::Amount => voucher.voucher.cumulative_amount = Amount::from_ntop(9_999),
            Forge::Channel => voucher.voucher.channel = ChannelId([1; 32]),
        }
        let promise = Promise {
            voucher,
            index,
            preimage,
        };
        let genuine = matches!(forge, Forge::None)
            || voucher == made.voucher && preimage == chain.preimage(index).unwrap();
        let heard = self.hear(PayeeMessage::Resume(Some(promise)));
        assert_eq!(heard.is_ok(), genuine, "{heard:?}");
    }

    /// The payee makes a promise of its own.
    fn show_foreign(&mut self, seq: u8, amount: u16, units: u16, price: u16, index: u16) {
        let foreign = SecretKey::from_seed([1; 32]).unwrap();
        let voucher = Voucher {
            channel: CHANNEL,
            seq: u32::from(seq) + 1,
            cumulative_amount: Amount::from_ntop(amount.into()),
            cumulative_units: units.into(),
            unit_price: Amount::from_ntop(price.into()),
            tokens: 8,
            root: [0; 32],
        };
        let index = index % 9;
        let preimage = voucher.chain(&foreign).preimage(index).unwrap();
        let promise = Promise {
            voucher: voucher.sign(&foreign),
            index,
            preimage,
        };
        let heard = self.hear(PayeeMessage::Resume(Some(promise)));
        assert_eq!(heard, Err(PayerFault::ForeignPromise));
    }

    fn send(&mut self, most: u8, crash: Crash) {
        let seen = units_owed(self.own_bytes, 0);
        let agreed = self.told_owed.min(seen);
        let cap = self.offer_window.min(WINDOW_MAX);
        let now_max = agreed.saturating_add(window_units(agreed, cap));
        self.units_max = self.units_max.max(now_max);
        for nth in 0..=most {
            let Some(unsaved) = self.payer.poll_send() else {
                return;
            };
            let last = nth == most;
            if last && matches!(crash, Crash::BeforeSaved) {
                return self.restart();
            }
            let record = PayerRecord::from_bytes(unsaved.record()).unwrap();
            assert_eq!(record.promise, self.payer.promise());
            assert_eq!(record.own_bytes, self.own_bytes);
            self.disk = Some(record);
            self.note_made(&record);
            if last && matches!(crash, Crash::BeforeSent) {
                return self.restart();
            }
            self.check_sent(unsaved.saved().release());
        }
    }

    fn note_made(&mut self, record: &PayerRecord) {
        let promise = record.promise.expect("what leaves was promised");
        let known = self
            .made
            .iter_mut()
            .find(|made| made.voucher == promise.voucher);
        match known {
            Some(made) => made.index = made.index.max(promise.index),
            None => self.made.push(Made {
                voucher: promise.voucher,
                index: promise.index,
                sent: false,
            }),
        }
    }

    fn check_sent(&mut self, message: PayerMessage) {
        let promise = self.payer.promise().unwrap();
        self.check_promise(&promise);
        match message {
            PayerMessage::Token(token) => {
                let voucher = promise.voucher.voucher;
                assert_eq!((token.channel, token.seq), (CHANNEL, voucher.seq));
                assert!(token.index <= promise.index);
                let root = walk_back(token.preimage, &voucher.salt(), token.index, 0);
                assert_eq!(root, voucher.root);
                assert_eq!(token.own_bytes, self.own_bytes);
            }
            PayerMessage::Roll(roll) => {
                assert_eq!(roll.voucher, promise.voucher);
                let made = self.made.iter_mut();
                made.filter(|made| made.voucher == roll.voucher)
                    .for_each(|made| made.sent = true);
                self.check_retired(&roll);
            }
            other => panic!("{other:?} is not for the middle of a conversation"),
        }
    }

    /// A token that settles an old chain is one that was paid: it gives nothing away.
    fn check_retired(&self, roll: &topnet_channel::Roll) {
        if roll.retired_index == 0 {
            return;
        }
        let paid = self.made.iter().any(|made| {
            let voucher = &made.voucher.voucher;
            let salt = voucher.salt();
            roll.retired_index <= made.index
                && walk_back(roll.retired_preimage, &salt, roll.retired_index, 0) == voucher.root
        });
        assert!(paid, "a token of no chain of ours, or one that was not due");
    }

    fn check_promise(&self, promise: &Promise) {
        let voucher = &promise.voucher.voucher;
        let made = self
            .made
            .iter()
            .find(|made| made.voucher == promise.voucher);
        let made = made.expect("promised before it was saved");
        assert!(promise.index <= made.index, "paid before it was saved");
        assert!(promise.voucher.is_signed_by(&secret().public_key()));
        let units = voucher.units(promise.index).unwrap();
        assert!(units <= self.units_max, "{units} > {}", self.units_max);
        assert!(voucher.unit_price <= UNIT_PRICE_MAX);
        assert!(voucher.amount_max().unwrap() <= self.terms.allocation);
        let most = UNIT_PRICE_MAX.checked_mul(units).unwrap();
        assert!(voucher.redeemable(promise.index).unwrap() <= most);
    }

    /// Another run, with what the journal holds.
    fn restart(&mut self) {
        let promise = self.disk.and_then(|record| record.promise);
        self.payer = Payer::new(secret(), self.terms, promise);
        (self.told_owed, self.offer_window, self.own_bytes) = (0, 0, 0);
        if let Some(record) = self.disk {
            self.see(record.own_bytes);
        }
        let _ = self.payer.hello();
    }
}
