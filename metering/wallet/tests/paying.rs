//! A wallet that pays over a real link, and a payee that says whatever the test wants.
#![allow(clippy::unwrap_used)]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, task};
use topnet_account::{Address, Amount, ChannelId, PublicKey};
use topnet_channel::{
    Meter, Offer, PROTOCOL_VERSION, PayeeMessage, PayerMessage, PayerTerms, Promise, RefusalCode,
    SecretKey,
};
use topnet_link::{Connection, LinkError, Listener};
use topnet_unit::UNIT_BYTES;
use topnet_wallet::{
    ByteCounter, Counted, History, Journal, Known, Limit, Limits, Parties, PayState, PayStatus,
    PayTerms, ProbeError, Reading, Readings, Statement, pay, probe,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PRICE: Amount = Amount::from_ntop(7);
const PROVIDER: Address = Address([5; 32]);

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32]).unwrap()
}

/// A payee that believes every promise, and a client that uses what is wanted.
struct Provider {
    address: SocketAddr,
    identity: PublicKey,
    /// Units used; both ends count them.
    used: Arc<AtomicU64>,
    dir: tempfile::TempDir,
}

impl Provider {
    fn start() -> Self {
        let secret = key(1);
        let limits = topnet_link::Limits {
            connections_max: 16,
            known: Arc::new(|_| true),
        };
        let mut listener =
            Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), &secret, limits).unwrap();
        let address = listener.local_addr().unwrap();
        let used = Arc::new(AtomicU64::new(0));
        let theirs = Arc::clone(&used);
        let held: Arc<Mutex<Vec<(ChannelId, Promise)>>> = Arc::default();
        task::spawn(async move {
            while let Some(link) = listener.accept().await {
                let payee = Payee {
                    used: Arc::clone(&theirs),
                    held: Arc::clone(&held),
                    channel: ChannelId([0; 32]),
                };
                task::spawn(payee.converse(link));
            }
        });
        Self {
            address,
            identity: secret.public_key(),
            used,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn status_file(&self, channel: ChannelId) -> PathBuf {
        self.dir.path().join(format!("{channel}.json"))
    }

    fn wallet(&self, channel: ChannelId, limits: Limits) -> Wallet {
        let terms = PayTerms {
            address: self.address,
            payee: self.identity,
            payer: PayerTerms {
                channel,
                allocation: Amount::from_ntop(1_000_000),
                unit_price_max: PRICE,
                window_max: 8,
            },
            epsilon_ppm_max: 0,
            provider: PROVIDER,
            limits,
            status_file: Some(self.status_file(channel)),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (state_dir, used) = (self.dir.path().join("wallet"), Arc::clone(&self.used));
        let paying = task::spawn(async move {
            let journal = Journal::open(&state_dir, channel).unwrap();
            let counter = Box::new(Counter(used));
            let stopped = async { drop(stopped.await) };
            pay(&key(3), terms, journal, counter, stopped)
                .await
                .unwrap()
        });
        Wallet { stop, paying }
    }
}

struct Wallet {
    stop: oneshot::Sender<()>,
    paying: task::JoinHandle<PayStatus>,
}

impl Wallet {
    async fn stop(self) -> PayStatus {
        drop(self.stop);
        self.paying.await.unwrap()
    }
}

struct Payee {
    used: Arc<AtomicU64>,
    held: Arc<Mutex<Vec<(ChannelId, Promise)>>>,
    channel: ChannelId,
}

impl Payee {
    async fn converse(mut self, link: Connection) -> Result<(), LinkError> {
        let (mut sender, mut receiver) = link.split();
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            let answers = tokio::select! {
                received = receiver.recv() => match received? {
                    Some(bytes) => self.hear(PayerMessage::from_bytes(&bytes).unwrap()),
                    None => return Ok(()),
                },
                _ = tick.tick() => vec![self.meter()],
            };
            for answer in answers {
                sender.send(&answer.to_bytes()).await?;
            }
        }
    }

    fn hear(&mut self, message: PayerMessage) -> Vec<PayeeMessage> {
        match message {
            PayerMessage::Hello { channel, .. } => {
                self.channel = channel;
                let offer = Offer {
                    version: PROTOCOL_VERSION,
                    unit_price: PRICE,
                    epsilon_ppm: 0,
                    window_max: 8,
                };
                return vec![PayeeMessage::Offer(offer)];
            }
            PayerMessage::Resume(_) => return vec![PayeeMessage::Resume(self.held())],
            PayerMessage::Roll(roll) => self.hold(Promise {
                voucher: roll.voucher,
                index: 0,
                preimage: roll.voucher.voucher.root,
            }),
            PayerMessage::Token(token) => {
                let voucher = self.held().unwrap().voucher;
                self.hold(Promise {
                    voucher,
                    index: token.index,
                    preimage: token.preimage,
                });
            }
        }
        vec![self.meter()]
    }

    fn hold(&self, promise: Promise) {
        self.held.lock().unwrap().push((self.channel, promise));
    }

    fn held(&self) -> Option<Promise> {
        let held = self.held.lock().unwrap();
        let newest = held
            .iter()
            .rev()
            .find(|(channel, _)| *channel == self.channel);
        newest.map(|(_, promise)| *promise)
    }

    fn meter(&self) -> PayeeMessage {
        let owed = self.used.load(Ordering::Relaxed);
        let accepted = self.held().map_or(0, |promise| {
            promise.voucher.voucher.units(promise.index).unwrap()
        });
        PayeeMessage::Meter(Meter {
            channel_bytes: owed * UNIT_BYTES,
            owed,
            accepted,
            credit_bytes: 0,
        })
    }
}

struct Counter(Arc<AtomicU64>);

impl ByteCounter for Counter {
    fn read(&mut self) -> io::Result<Readings> {
        let counted = Counted {
            up_bytes: 0,
            down_bytes: self.0.load(Ordering::Relaxed) * UNIT_BYTES,
        };
        Ok(Readings {
            interface: Some(Reading {
                counted,
                incarnation: 1,
            }),
            transfer: None,
        })
    }
}

async fn until(what: &str, path: &Path, done: impl Fn(&PayStatus) -> bool) -> PayStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read(path).unwrap_or_default();
        if let Ok(status) = serde_json::from_slice::<PayStatus>(&text)
            && done(&status)
        {
            return status;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn without_limits_the_wallet_pays_up_to_the_window() {
    let provider = Provider::start();
    let channel = ChannelId([9; 32]);
    let wallet = provider.wallet(channel, Limits::default());
    let file = provider.status_file(channel);
    until("the first unit", &file, |status| status.released_units == 1).await;
    provider.used.store(40, Ordering::Relaxed);
    let status = until("the window", &file, |status| status.released_units == 48).await;
    assert_eq!((status.limit, status.owed_units), (None, 40));
    assert!(status.lead_units_max >= 8, "{status:?}");
    let ended = wallet.stop().await;
    assert_eq!((ended.released_units, ended.state), (48, PayState::Ended));

    // The wallet's files make a statement, and its receipt proves what was promised.
    let state_dir = provider.dir.path().join("wallet");
    let parties = Parties {
        channel,
        chain: "vpn".to_owned(),
        payer: Address([2; 32]),
        payee: PROVIDER,
        provider: String::new(),
        signer: key(3).public_key(),
        allocation: Amount::from_ntop(1_000_000),
    };
    History::note_parties(&state_dir, &parties).unwrap();
    let history = History::read(&state_dir, channel).unwrap();
    let journal = Journal::look(&state_dir, channel).unwrap();
    let known = Known {
        channel,
        journal: &journal,
        history: &history,
        status: None,
    };
    let statement = Statement::of(known, None);
    assert_eq!((statement.paid_units, statement.owed_units), (48, 40));
    assert_eq!(statement.promised, Amount::from_ntop(7 * 48));
    assert_eq!(statement.metered_bytes, 40 * UNIT_BYTES);
    assert_eq!(statement.own_bytes_least, 40 * UNIT_BYTES);
    let proved = statement.receipt.unwrap().verify().unwrap();
    assert_eq!((proved.units, proved.amount), (48, statement.promised));
}

#[tokio::test]
async fn a_limit_holds_over_restarts_and_for_all_channels_of_a_provider() {
    let provider = Provider::start();
    let (first, second) = (ChannelId([9; 32]), ChannelId([8; 32]));
    let limits = Limits {
        hourly_spend: Some(Amount::from_ntop(7 * 11 + 6)),
        ..Limits::default()
    };
    let held = |status: &PayStatus| status.limit == Some(Limit::HourlySpend);
    let file = provider.status_file(first);

    let wallet = provider.wallet(first, limits);
    until("the first unit", &file, |status| status.released_units == 1).await;
    provider.used.store(40, Ordering::Relaxed);
    let status = until("the limit", &file, held).await;
    assert_eq!(status.released_units, 11);
    assert_eq!(wallet.stop().await.promised, Amount::from_ntop(77));

    let wallet = provider.wallet(first, limits);
    let status = until("the limit after a restart", &file, |status| {
        held(status) && status.state == PayState::Paying && status.owed_units == 40
    })
    .await;
    assert_eq!(status.released_units, 11);

    let other = provider.wallet(second, limits);
    let file = provider.status_file(second);
    let status = until("the limit on another channel", &file, held).await;
    assert_eq!(status.released_units, 0);
    assert_eq!(other.stop().await.released_units, 0);
    assert_eq!(wallet.stop().await.released_units, 11);

    // Whoever raises the limit goes on.
    provider.used.store(100, Ordering::Relaxed);
    let limits = Limits {
        hourly_spend: Some(Amount::from_ntop(7 * 30)),
        ..limits
    };
    let wallet = provider.wallet(second, limits);
    let status = until("the raised limit", &file, |status| {
        held(status) && status.released_units == 19
    })
    .await;
    assert_eq!(status.promised, Amount::from_ntop(7 * 19));
    wallet.stop().await;
}

#[tokio::test]
async fn a_payee_is_greeted_before_money_is_bound_to_it() {
    let provider = Provider::start();
    probe(provider.address, provider.identity, &key(3))
        .await
        .unwrap();
    let imposter = probe(provider.address, key(2).public_key(), &key(3)).await;
    assert!(
        matches!(imposter, Err(ProbeError::Link(LinkError::WrongKey { .. }))),
        "{imposter:?}"
    );

    let check = async |answer: Option<Vec<u8>>| {
        let limits = topnet_link::Limits {
            connections_max: 16,
            known: Arc::new(|_| true),
        };
        let local = (Ipv4Addr::LOCALHOST, 0).into();
        let mut listener = Listener::bind(local, &key(1), limits).unwrap();
        let address = listener.local_addr().unwrap();
        let answering = task::spawn(async move {
            let (mut sender, mut receiver) = listener.accept().await.unwrap().split();
            receiver.recv().await.unwrap();
            if let Some(answer) = answer {
                sender.send(&answer).await.unwrap();
            }
            sender.finish().await;
            listener.close().await;
        });
        let probed = probe(address, key(1).public_key(), &key(3)).await;
        answering.await.unwrap();
        probed
    };
    let refused = |code| Some(PayeeMessage::Refused(code).to_bytes());
    assert!(check(refused(RefusalCode::UnknownChannel)).await.is_ok());
    let other = check(refused(RefusalCode::Version)).await;
    assert!(matches!(other, Err(ProbeError::Version)), "{other:?}");
    let mute = check(None).await;
    assert!(matches!(mute, Err(ProbeError::NoAnswer(_))), "{mute:?}");
    let babble = check(Some(b"HTTP/1.1 200 OK".to_vec())).await;
    assert!(
        matches!(babble, Err(ProbeError::Malformed(_))),
        "{babble:?}"
    );
}
