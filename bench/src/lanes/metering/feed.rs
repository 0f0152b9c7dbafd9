//! Pays from within the payee's process, over the keeper's own queue, with vouchers and tokens
//! that were made before: what metering can do when neither link nor payers cost anything.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::sync::{mpsc, oneshot};
use topnet_account::ChannelId;
use topnet_books::Greeting;
use topnet_channel::{
    PayeeMessage, PayerMessage, Preimage, Roll, SecretKey, SignedVoucher, TOKENS_PER_VOUCHER_MAX,
    Token, Unproved, Voucher,
};
use topnet_metering::{
    event::{Event, Handle, Payment},
    keeper::REPLIES_MAX,
};
use topnet_unit::{UsageTable, units_owed};

use super::parties::{WINDOW, channel, offer, signer, slot};

/// Units that one token pays: half a window, so that one half is used while the other is paid.
pub const TOKEN_UNITS: u16 = (WINDOW / 2) as u16;
const TOKENS: usize = (TOKENS_PER_VOUCHER_MAX / TOKEN_UNITS) as usize;
/// How long it sleeps when nothing is due.
const PAUSE: Duration = Duration::from_micros(200);

const _: () = assert!(TOKENS_PER_VOUCHER_MAX.is_multiple_of(TOKEN_UNITS));

/// Vouchers and tokens of all channels.
pub struct Prepared {
    payers: Vec<Payer>,
}

struct Payer {
    number: u32,
    channel: ChannelId,
    vouchers: Vec<PreparedVoucher>,
    /// What the payee says.
    replies: mpsc::Receiver<PayeeMessage>,
    reply_to: Option<mpsc::Sender<PayeeMessage>>,
    /// Units paid.
    released: u64,
    /// Vouchers sent.
    rolled: usize,
    /// The keeper has not said yet what of the last roll is to be proved.
    rolling: Option<oneshot::Receiver<Option<Unproved>>>,
}

struct PreparedVoucher {
    signed: SignedVoucher,
    /// Every [`TOKEN_UNITS`]-th link of its chain.
    preimages: [Preimage; TOKENS],
}

impl Prepared {
    /// For `units` of each channel, and a window.
    pub fn new(channels: u32, units: u64) -> Result<Prepared> {
        let vouchers = (units + WINDOW).div_ceil(u64::from(TOKENS_PER_VOUCHER_MAX));
        // Two halves for two cores.
        let middle = channels / 2;
        let (first, second) = thread::scope(|scope| {
            let second = scope.spawn(move || prepare(middle..channels, vouchers));
            (prepare(0..middle, vouchers), second.join())
        });
        let mut payers = first?;
        payers.extend(second.map_err(|_| anyhow!("the preparing thread panicked"))??);
        Ok(Prepared { payers })
    }

    /// Says hello for all.
    pub async fn greet(mut self, handle: &Handle) -> Result<Prepared> {
        for payer in &mut self.payers {
            let replies = payer.reply_to.take().context("a second hello")?;
            let key = signer(payer.number)?.public_key();
            let hello = handle.ask(|greeting| Event::Hello {
                connection: connection(payer.number),
                channel: payer.channel,
                key,
                replies,
                greeting,
            });
            let greeting = hello.await?;
            ensure!(
                greeting == Greeting::Welcome,
                "a hello came to {greeting:?}"
            );
        }
        Ok(self)
    }

    /// Pays from now on for what `usage` says, until the keeper ends.
    pub fn start(self, handle: Handle, usage: UsageTable) -> Result<Feed> {
        let fault = Arc::new(Mutex::new(None));
        let told = Arc::clone(&fault);
        thread::Builder::new()
            .name("feed".to_owned())
            .spawn(move || {
                let Err(error) = self.pay(&handle, &usage);
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            })?;
        Ok(Feed { fault })
    }

    fn pay(mut self, handle: &Handle, usage: &UsageTable) -> Result<std::convert::Infallible> {
        loop {
            let mut paid = false;
            for payer in &mut self.payers {
                let bytes = usage.totals(slot(payer.number).index).bytes;
                let payable = units_owed(bytes, 0) + WINDOW;
                while payer.released + u64::from(TOKEN_UNITS) <= payable && payer.prove(handle)? {
                    payer.listen()?;
                    payer.pay(handle)?;
                    paid = true;
                }
            }
            if !paid {
                thread::sleep(PAUSE);
            }
        }
    }
}

fn connection(number: u32) -> u64 {
    u64::from(number) + 1
}

impl Payer {
    /// Hears what the payee says, as a link would.
    fn listen(&mut self) -> Result<()> {
        while let Ok(message) = self.replies.try_recv() {
            if let PayeeMessage::Refused(code) = message {
                bail!("a payment was refused: {code:?}");
            }
        }
        Ok(())
    }

    /// Proves the last roll, as its link would. False while it is not known what is to be proved.
    fn prove(&mut self, handle: &Handle) -> Result<bool> {
        let Some(rolling) = &mut self.rolling else {
            return Ok(true);
        };
        match rolling.try_recv() {
            Ok(Some(unproved)) => {
                let connection = connection(self.number);
                let proof = unproved.prove();
                send(handle, Payment::Proof { connection, proof })?;
            }
            Ok(None) => {}
            Err(oneshot::error::TryRecvError::Empty) => return Ok(false),
            Err(oneshot::error::TryRecvError::Closed) => bail!("metering is ending"),
        }
        self.rolling = None;
        Ok(true)
    }

    /// The next token, or before its first one the next voucher.
    fn pay(&mut self, handle: &Handle) -> Result<()> {
        let per_voucher = u64::from(TOKENS_PER_VOUCHER_MAX);
        let place = usize::try_from(self.released / per_voucher)?;
        let index = u16::try_from(self.released % per_voucher)?;
        let connection = connection(self.number);
        let voucher = self.vouchers.get(place).with_context(|| {
            format!(
                "the prepared vouchers are used up after {} units",
                self.released
            )
        })?;
        if index == 0 && self.rolled == place {
            let retired = place.checked_sub(1).map(|before| &self.vouchers[before]);
            let roll = Roll {
                voucher: voucher.signed,
                retired_index: retired.map_or(0, |_| TOKENS_PER_VOUCHER_MAX),
                retired_preimage: retired.map_or([0; 32], |retired| retired.preimages[TOKENS - 1]),
            };
            let (unproved, rolling) = oneshot::channel();
            let promised = Payment::Promised {
                connection,
                message: PayerMessage::Roll(roll),
                unproved,
            };
            send(handle, promised)?;
            self.rolled += 1;
            self.rolling = Some(rolling);
            return Ok(());
        }
        let message = PayerMessage::Token(Token {
            channel: self.channel,
            seq: voucher.signed.voucher.seq,
            index: index + TOKEN_UNITS,
            preimage: voucher.preimages[usize::from(index / TOKEN_UNITS)],
            own_bytes: 0,
        });
        send(
            handle,
            Payment::Said {
                connection,
                message,
            },
        )?;
        self.released += u64::from(TOKEN_UNITS);
        Ok(())
    }
}

fn send(handle: &Handle, payment: Payment) -> Result<()> {
    let sent = handle.payments.blocking_send(payment);
    sent.map_err(|_| anyhow!("metering is ending"))
}

fn prepare(numbers: std::ops::Range<u32>, vouchers: u64) -> Result<Vec<Payer>> {
    let payer = |number| {
        let (reply_to, replies) = mpsc::channel(REPLIES_MAX);
        let secret = signer(number)?;
        let vouchers = (0..vouchers).map(|place| prepare_voucher(number, &secret, place));
        Ok(Payer {
            number,
            channel: channel(number),
            vouchers: vouchers.collect::<Result<_>>()?,
            replies,
            reply_to: Some(reply_to),
            released: 0,
            rolled: 0,
            rolling: None,
        })
    };
    numbers.map(payer).collect()
}

fn prepare_voucher(number: u32, secret: &SecretKey, place: u64) -> Result<PreparedVoucher> {
    let units = place * u64::from(TOKENS_PER_VOUCHER_MAX);
    let unit_price = offer().unit_price;
    let voucher = Voucher {
        channel: channel(number),
        seq: u32::try_from(place + 1)?,
        cumulative_amount: unit_price.checked_mul(units).context("too many units")?,
        cumulative_units: units,
        unit_price,
        tokens: TOKENS_PER_VOUCHER_MAX,
        root: [0; 32],
    };
    let chain = voucher.chain(secret);
    let mut preimages = [[0; 32]; TOKENS];
    for (preimage, nth) in preimages.iter_mut().zip(1..) {
        *preimage = chain
            .preimage(nth * TOKEN_UNITS)
            .context("the chain is short")?;
    }
    Ok(PreparedVoucher {
        signed: voucher.sign(secret),
        preimages,
    })
}

/// The paying thread.
pub struct Feed {
    fault: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Feed {
    /// An error if it has ended.
    pub fn check(&self) -> Result<()> {
        let fault = self
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        fault.map_or(Ok(()), Err)
    }
}
