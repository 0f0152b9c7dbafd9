//! A load of payers in a process of its own: the product's `Payer` over the product's link, each
//! with its own key and QUIC connection. They have no disks, so what they promise is not saved
//! first, and they believe the payee's count; a wallet does neither.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    runtime::Builder,
    sync::{Semaphore, mpsc},
};
use topnet_account::PublicKey;
use topnet_channel::{Meter, PayeeMessage, Payer, PayerMessage, PayerTerms};
use topnet_link::{Connection, Datagrams, Dialer, Receiver, Sender, Traffic};

use super::{
    parties::{ALLOCATION, WINDOW, channel, offer, signer},
    process::Asked,
};
use crate::lane::process_cpu_s;

const WORKER_THREADS: usize = 2;
/// Payers that share a UDP port.
const PAYERS_PER_PORT: u32 = 250;
/// Handshakes at once: fewer than the listener lets wait.
const HANDSHAKES_MAX: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Headers of UDP and IPv4 around each datagram.
const HEADER_BYTES: u64 = 8 + 20;

/// What the payers need.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Needs {
    /// The payee.
    pub address: SocketAddr,
    /// Its key.
    pub identity: PublicKey,
    /// How many payers, one for each channel.
    pub payers: u32,
    /// When they pay.
    pub paying: Paying,
}

/// When payers pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Paying {
    /// As soon as something is due, all of it with one token: what a wallet does.
    AtOnce,
    /// A token for every unit.
    EachUnit,
    /// When so many units are due, all of them with one token.
    Units(u64),
}

/// Asks how the payers stand; answered with [`Status`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Question;

/// How the payers stand.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Tokens sent.
    pub tokens: u64,
    /// Vouchers sent.
    pub vouchers: u64,
    /// Totals heard.
    pub meters: u64,
    /// Both ways, with the headers of UDP and IPv4.
    pub wire_bytes: u64,
    /// Both ways.
    pub datagrams: u64,
    /// CPU time of this process.
    pub cpu_s: f64,
}

impl Status {
    /// Since `before`.
    #[must_use]
    pub fn since(self, before: Status) -> Status {
        Status {
            tokens: self.tokens - before.tokens,
            vouchers: self.vouchers - before.vouchers,
            meters: self.meters - before.meters,
            wire_bytes: self.wire_bytes - before.wire_bytes,
            datagrams: self.datagrams - before.datagrams,
            cpu_s: self.cpu_s - before.cpu_s,
        }
    }
}

#[derive(Default)]
struct Counts {
    tokens: AtomicU64,
    vouchers: AtomicU64,
    meters: AtomicU64,
    /// Why a payer gave up.
    fault: Mutex<Option<anyhow::Error>>,
}

impl Counts {
    fn check(&self) -> Result<()> {
        let fault = self
            .fault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        fault.map_or(Ok(()), Err)
    }
}

/// The role. Its first answer says how many seconds it took until all were welcome.
pub fn play() -> Result<()> {
    let (needs, mut asked) = Asked::begin::<Needs>()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()?;
    let counts = Arc::new(Counts::default());
    let began = Instant::now();
    let traffic = runtime.block_on(connect(needs, &counts))?;
    asked.answer(&began.elapsed().as_secs_f64())?;
    while asked.next::<Question>()?.is_some() {
        counts.check()?;
        asked.answer(&status(&counts, &traffic))?;
    }
    Ok(())
}

fn status(counts: &Counts, traffic: &[Traffic]) -> Status {
    let both = traffic
        .iter()
        .flat_map(|link| [link.sent(), link.received()]);
    let moved = both.fold(Datagrams::default(), |sum, some| Datagrams {
        datagrams: sum.datagrams + some.datagrams,
        bytes: sum.bytes + some.bytes,
    });
    Status {
        tokens: counts.tokens.load(Ordering::Relaxed),
        vouchers: counts.vouchers.load(Ordering::Relaxed),
        meters: counts.meters.load(Ordering::Relaxed),
        wire_bytes: moved.bytes + HEADER_BYTES * moved.datagrams,
        datagrams: moved.datagrams,
        cpu_s: process_cpu_s(),
    }
}

/// Connects all, and returns when the payee has welcomed each.
async fn connect(needs: Needs, counts: &Arc<Counts>) -> Result<Vec<Traffic>> {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let (welcome, mut welcomed) = mpsc::unbounded_channel();
    let mut dialer = Arc::new(Dialer::new(needs.address)?);
    for number in 0..needs.payers {
        if number > 0 && number % PAYERS_PER_PORT == 0 {
            dialer = Arc::new(Dialer::new(needs.address)?);
        }
        let (dialer, places) = (Arc::clone(&dialer), Arc::clone(&places));
        let (counts, welcome) = (Arc::clone(counts), welcome.clone());
        tokio::spawn(async move {
            let ended = async {
                let place = places.acquire_owned().await?;
                let talk = Talk::begin(&dialer, needs, number);
                let (talk, traffic) = tokio::time::timeout(CONNECT_TIMEOUT, talk)
                    .await
                    .context("the payee said nothing in time")??;
                drop(place);
                let _ = welcome.send(traffic);
                talk.go_on(&counts).await
            };
            if let Err(error) = ended.await {
                let fault = error.context(format!("payer {number}"));
                counts
                    .fault
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(fault);
            }
        });
    }
    drop(welcome);
    let mut traffic = Vec::new();
    while traffic.len() < needs.payers as usize {
        counts.check()?;
        let next = tokio::time::timeout(CONNECT_TIMEOUT, welcomed.recv()).await;
        match next.context("no payer was welcomed for a long time")? {
            Some(link) => traffic.push(link),
            None => {
                counts.check()?;
                bail!("payers have given up");
            }
        }
    }
    Ok(traffic)
}

/// One payer and its link.
struct Talk {
    payer: Payer,
    paying: Paying,
    sender: Sender,
    receiver: Receiver,
}

impl Talk {
    /// Connects and says hello, until the payee has said what it holds.
    async fn begin(dialer: &Dialer, needs: Needs, number: u32) -> Result<(Talk, Traffic)> {
        let secret = signer(number)?;
        let link = dialer.connect(needs.identity, &secret).await?;
        let terms = PayerTerms {
            channel: channel(number),
            allocation: ALLOCATION,
            unit_price_max: offer().unit_price,
            window_max: WINDOW,
        };
        let Connection {
            sender,
            receiver,
            traffic,
            ..
        } = link;
        let mut talk = Talk {
            payer: Payer::new(secret, terms, None),
            paying: needs.paying,
            sender,
            receiver,
        };
        for message in talk.payer.hello() {
            talk.sender.send(&message.to_bytes()).await?;
        }
        while !talk.payer.status().resumed {
            let message = talk.hear().await?;
            talk.payer.handle_message(&message)?;
        }
        Ok((talk, traffic))
    }

    async fn hear(&mut self) -> Result<PayeeMessage> {
        let frame = self.receiver.recv().await?;
        let frame = frame.context("the payee ended the link")?;
        PayeeMessage::from_bytes(&frame).map_err(|error| anyhow!("the payee said: {error}"))
    }

    async fn go_on(mut self, counts: &Counts) -> Result<()> {
        self.send_due(counts).await?;
        loop {
            match self.hear().await? {
                PayeeMessage::Meter(meter) => {
                    counts.meters.fetch_add(1, Ordering::Relaxed);
                    self.handle_meter(meter, counts).await?;
                }
                message => {
                    self.payer.handle_message(&message)?;
                    self.send_due(counts).await?;
                }
            }
        }
    }

    async fn handle_meter(&mut self, meter: Meter, counts: &Counts) -> Result<()> {
        self.payer.handle_own_bytes(meter.channel_bytes);
        let before = self.payer.status();
        match self.paying {
            // It hears of the units one after the other.
            Paying::EachUnit => {
                for owed in before.meter.owed + 1..meter.owed {
                    let part = Meter { owed, ..meter };
                    self.payer.handle_message(&PayeeMessage::Meter(part))?;
                    self.send_due(counts).await?;
                }
            }
            // A window that still grows leaves nothing to wait for.
            Paying::Units(units) if meter.owed >= WINDOW => {
                if meter.owed + WINDOW < before.released + units {
                    return Ok(());
                }
            }
            Paying::Units(_) | Paying::AtOnce => {}
        }
        self.payer.handle_message(&PayeeMessage::Meter(meter))?;
        self.send_due(counts).await
    }

    async fn send_due(&mut self, counts: &Counts) -> Result<()> {
        while let Some(unsaved) = self.payer.poll_send() {
            let message = unsaved.saved().release();
            let count = match message {
                PayerMessage::Token(_) => &counts.tokens,
                _ => &counts.vouchers,
            };
            count.fetch_add(1, Ordering::Relaxed);
            self.sender.send(&message.to_bytes()).await?;
        }
        Ok(())
    }
}
