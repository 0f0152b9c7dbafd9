//! A provider of one channel with everything real but the packets and the chain: the metering
//! process itself, its tables, its journal, its payment port, and a wallet.

mod settlement;

use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tarpc::context::{self, Context};
use tokio::{net::UnixListener, sync::oneshot, task};
use topnet_account::{Address, Amount, ChannelId, PublicKey};
use topnet_api::{
    ApiError, Assignment, Assignments, ChannelState, ChannelStatus, ClaimBytes, Dataplane,
    DataplaneStatus, DesiredSessions, FinalClaim, InstallReport, MeteringClient, MeteringStatus,
    Settlement, SlotState, SocketName, connect, listen, serve_connections,
};
use topnet_archive::{Archive, State};
use topnet_channel::{Claim, PayerTerms, SecretKey, SignedVoucher};
use topnet_config::Config;
use topnet_unit::{
    BootId, CreditTable, Handover, Header, Mapping, Producer, Slot, UnitRecord, UsageTable,
};
use topnet_wallet::{
    ByteCounter, Counted, Journal, Limits, PayError, PayStatus, PayTerms, Reading, Readings,
    key_file::{self, Cost},
    pay,
};

pub use settlement::Chain;
use settlement::ChainService;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const UNIT_PRICE: u64 = 7;
pub const CHANNEL: ChannelId = ChannelId([9; 32]);
/// So few that segments are archived all the time.
const SEGMENT_LINES: u64 = 16;
const BURST_BYTES: u64 = 40_000;
const SLOTS: u32 = 8;
const CHEAP: Cost = Cost {
    memory_kib: 64,
    passes: 1,
    lanes: 1,
};
const PAYEE: Address = Address([5; 32]);

/// Everything, below one directory that goes with it.
pub struct World {
    pub dir: tempfile::TempDir,
    pub chain: Arc<Chain>,
    pub plane: Arc<Plane>,
    pub payment: SocketAddr,
    identity: PublicKey,
    config: PathBuf,
    metering: Option<Child>,
}

/// One run of a data plane.
struct Boot {
    boot: BootId,
    usage: UsageTable,
    credit: CreditTable,
    producer: Producer<Mapping>,
    handover: Arc<Handover>,
}

/// Counts bursts like a worker does, and hands its tables over like the data plane.
pub struct Plane {
    boot: Mutex<Boot>,
    slots: Mutex<Vec<Assignment>>,
    acknowledged: Mutex<Vec<(u32, u32)>>,
    /// Forwarded in all runs: what the client sees at its own end.
    pub forwarded: Arc<AtomicU64>,
    pub wanted: AtomicU64,
    stop: AtomicBool,
}

impl World {
    pub async fn start(close_window_blocks: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let chain = Arc::new(Chain {
            stalled: AtomicBool::new(false),
            held: Mutex::default(),
            close_window_blocks,
            state: Mutex::new(ChannelState::Open),
        });
        let plane = Arc::new(Plane::new());
        let passphrase = dir.path().join("passphrase");
        fs::write(&passphrase, "correct horse\n").unwrap();
        let key = key_file::create(&dir.path().join("payment.key"), b"correct horse", CHEAP);
        let payment = free_port();
        let config = dir.path().join("topnet.toml");
        let text = format!(
            "runtime_dir = \"run\"\ndata_dir = \"data\"\n[metering]\npayment_listen = \"{payment}\"\n\
             key_file = \"payment.key\"\npassphrase_file = \"passphrase\"\n\
             unit_price_ntop = {UNIT_PRICE}\nclose_window_blocks_min = 10\n\
             service_log_segment_lines = {SEGMENT_LINES}\n"
        );
        fs::write(&config, text).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();

        let runtime_dir = dir.path().join("run");
        let incoming = listen(&SocketName::Settlement.below(&runtime_dir))
            .await
            .unwrap();
        let service = ChainService(Arc::clone(&chain));
        task::spawn(serve_connections(incoming, Settlement::serve(service)));
        let incoming = listen(&SocketName::Dataplane.below(&runtime_dir))
            .await
            .unwrap();
        let service = PlaneService(Arc::clone(&plane));
        task::spawn(serve_connections(incoming, Dataplane::serve(service)));
        let tables = UnixListener::bind(SocketName::Tables.below(&runtime_dir)).unwrap();
        task::spawn(hand_over(tables, Arc::clone(&plane)));
        Self {
            dir,
            chain,
            plane,
            payment,
            identity: key.unwrap().public_key(),
            config,
            metering: None,
        }
    }

    pub fn start_metering(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_topnet-metering"))
            .arg("--config")
            .arg(&self.config)
            .env("RUST_LOG", "info,topnet_metering=debug")
            .stdin(Stdio::null())
            .spawn();
        self.metering = Some(child.unwrap());
    }

    /// As `kill -9` does it.
    pub fn kill_metering(&mut self) {
        if let Some(mut child) = self.metering.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The service log, as `topnet log` opens it.
    pub fn archive(&self) -> Archive {
        let config = Config::load(&self.config).unwrap();
        let metering = config.metering().unwrap();
        Archive::open_to_read(&metering.service_log_dir, &metering.archive).unwrap()
    }

    /// Waits until every segment but the open one is in the archive, and nowhere else; gives the
    /// number of those.
    pub async fn archived(&self) -> u64 {
        let mut count = 0;
        until("the archive", async || {
            let segments = self.archive().segments().await.unwrap();
            let (open, rest) = segments.split_last().unwrap();
            assert_eq!(open.state, State::Open);
            count = rest.len() as u64;
            rest.iter().all(|segment| segment.state == State::Archived)
        })
        .await;
        until("the archive's status", async || {
            let archive = self.status().await.archive;
            archive.waiting_segments == 0 && archive.problem.is_none()
        })
        .await;
        assert_eq!(self.archive().verify().await.unwrap().findings, []);
        count
    }

    pub async fn client(&self) -> MeteringClient {
        let path = SocketName::Metering.below(&self.dir.path().join("run"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            match connect(&path).await {
                Ok(transport) => {
                    return MeteringClient::new(tarpc::client::Config::default(), transport)
                        .spawn();
                }
                Err(error) if Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub async fn status(&self) -> MeteringStatus {
        self.client()
            .await
            .status(context::current())
            .await
            .unwrap()
    }

    pub async fn channel(&self) -> Option<ChannelStatus> {
        self.client()
            .await
            .channel(context::current(), CHANNEL)
            .await
            .unwrap()
            .ok()
    }

    pub async fn finish(&self) -> FinalClaim {
        self.client()
            .await
            .finish(context::current(), CHANNEL)
            .await
            .unwrap()
            .unwrap()
    }

    /// Starts a wallet that pays for what the client sees.
    pub fn start_wallet(&self, window_max: u64) -> Wallet {
        let terms = PayTerms {
            address: self.payment,
            payee: self.identity,
            payer: PayerTerms {
                channel: CHANNEL,
                allocation: Amount::from_ntop(1_000_000),
                unit_price_max: Amount::from_ntop(UNIT_PRICE),
                window_max,
            },
            epsilon_ppm_max: 5_000,
            provider: PAYEE,
            limits: Limits::default(),
            status_file: Some(self.dir.path().join("wallet.json")),
        };
        let state_dir = self.dir.path().join("wallet");
        let counter = ClientCounter(Arc::clone(&self.plane.forwarded));
        let (stop, stopped) = oneshot::channel::<()>();
        let paying = task::spawn(async move {
            let journal = Journal::open(&state_dir, CHANNEL)?;
            let stopped = async { drop(stopped.await) };
            pay(&signer(), terms, journal, Box::new(counter), stopped).await
        });
        Wallet {
            _running: stop,
            paying,
        }
    }

    pub fn wallet_status(&self) -> Option<PayStatus> {
        let text = fs::read(self.dir.path().join("wallet.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The key that the payment port proves.
    pub fn identity(&self) -> PublicKey {
        self.identity
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill_metering();
        self.plane.stop.store(true, Ordering::Relaxed);
    }
}

pub struct Wallet {
    /// Dropping it tells the wallet to stop.
    _running: oneshot::Sender<()>,
    paying: task::JoinHandle<Result<PayStatus, PayError>>,
}

impl Wallet {
    /// The payee ends it.
    pub async fn ended(self) -> PayStatus {
        tokio::time::timeout(PATIENCE, self.paying)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// Nothing more is written or sent, not even a farewell.
    pub async fn kill(self) {
        self.paying.abort();
        let _ = self.paying.await;
    }
}

pub fn signer() -> SecretKey {
    SecretKey::from_seed([3; 32]).unwrap()
}

/// The claim that a ledger would read.
pub fn claim(bytes: &ClaimBytes) -> Claim {
    Claim {
        voucher: SignedVoucher::from_bytes(&bytes.voucher).unwrap(),
        index: bytes.index,
        preimage: bytes.preimage,
    }
}

/// Waits until `done` says so.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn free_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

struct ClientCounter(Arc<AtomicU64>);

impl ByteCounter for ClientCounter {
    fn read(&mut self) -> io::Result<Readings> {
        let counted = Counted {
            up_bytes: 0,
            down_bytes: self.0.load(Ordering::Relaxed),
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

impl Boot {
    fn new(number: u8) -> Self {
        let boot = BootId([number; 16]);
        let header = Header {
            boot,
            slots: SLOTS,
            workers: 1,
            records: 64,
        };
        let (handover, usage, credit, mut producers) = Handover::in_memory(header).unwrap();
        let producer = producers.remove(0);
        Self {
            boot,
            usage,
            credit,
            producer,
            handover: Arc::new(handover),
        }
    }
}

impl Plane {
    fn new() -> Self {
        Self {
            boot: Mutex::new(Boot::new(1)),
            slots: Mutex::default(),
            acknowledged: Mutex::default(),
            forwarded: Arc::default(),
            wanted: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    fn boot(&self) -> MutexGuard<'_, Boot> {
        self.boot.lock().unwrap()
    }

    /// Gives the channel a slot.
    pub fn assign(&self, index: u32, generation: u32) {
        let base_bytes = self.boot().usage.totals(index).bytes;
        let slot = Assignment {
            channel: CHANNEL,
            slot: index,
            generation,
            base_bytes,
            state: SlotState::Live,
        };
        self.slots.lock().unwrap().push(slot);
    }

    /// The session is gone: nothing counts into the slot any more.
    pub fn retire(&self) {
        let boot = self.boot();
        self.slots
            .lock()
            .unwrap()
            .iter_mut()
            .for_each(|slot| slot.state = SlotState::Retired);
        drop(boot);
    }

    pub fn is_unused(&self) -> bool {
        self.slots.lock().unwrap().is_empty()
    }

    /// Dies and comes back under another boot id, with empty tables.
    pub fn reboot(&self, number: u8) {
        let mut boot = self.boot();
        *boot = Boot::new(number);
        self.slots.lock().unwrap().clear();
    }

    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// The worker: forwards bursts as long as some are wanted and credit allows.
    pub fn work(self: &Arc<Self>) -> JoinHandle<()> {
        let plane = Arc::clone(self);
        thread::spawn(move || {
            while !plane.stop.load(Ordering::Relaxed) {
                let wanted = plane.wanted.load(Ordering::Relaxed);
                let moved = wanted > plane.forwarded() && plane.forward(wanted - plane.forwarded());
                let pause = if moved { 150 } else { 1_000 };
                thread::sleep(Duration::from_micros(pause));
            }
        })
    }

    fn forward(&self, bytes: u64) -> bool {
        let mut boot = self.boot();
        let live = self.slots.lock().unwrap().iter().find_map(|slot| {
            let is_live = slot.state == SlotState::Live;
            is_live.then_some(Slot {
                index: slot.slot,
                generation: slot.generation,
            })
        });
        let Some(slot) = live else { return false };
        let balance = boot.credit.balance(slot);
        let used = boot.usage.totals(slot.index).bytes;
        let burst = BURST_BYTES
            .min(bytes)
            .min(balance.limit_bytes.saturating_sub(used));
        if burst == 0 {
            return false;
        }
        let (before, after) = boot.usage.add(slot.index, burst, 1);
        self.forwarded.fetch_add(burst, Ordering::Relaxed);
        if (before + 1..=after).contains(&balance.record_at_bytes) {
            let record = UnitRecord {
                slot,
                bytes: after,
                packets: 0,
                time_ns: 0,
            };
            boot.producer.push(record);
        }
        true
    }
}

async fn hand_over(listener: UnixListener, plane: Arc<Plane>) {
    while let Ok((stream, _)) = listener.accept().await {
        let stream = stream.into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let handover = Arc::clone(&plane.boot().handover);
        let _ = handover.send(&stream);
    }
}

#[derive(Clone)]
struct PlaneService(Arc<Plane>);

impl Dataplane for PlaneService {
    async fn install(self, _: Context, _: DesiredSessions) -> Result<InstallReport, ApiError> {
        Err(not_here())
    }

    async fn assignments(self, _: Context) -> Assignments {
        let boot = self.0.boot();
        let slots = self.0.slots.lock().unwrap().clone();
        Assignments {
            boot: boot.boot.to_string(),
            slots,
        }
    }

    async fn acknowledge(
        self,
        _: Context,
        boot: String,
        slot: u32,
        generation: u32,
    ) -> Result<(), ApiError> {
        if boot != self.0.boot().boot.to_string() {
            return Err(not_here());
        }
        let mut slots = self.0.slots.lock().unwrap();
        slots.retain(|used| (used.slot, used.generation) != (slot, generation));
        self.0.acknowledged.lock().unwrap().push((slot, generation));
        Ok(())
    }

    async fn status(self, _: Context) -> DataplaneStatus {
        DataplaneStatus {
            boot: self.0.boot().boot.to_string(),
            uptime_s: 0,
            io: topnet_api::IoStatus::default(),
            wireguard_public_key: [0; 32],
            revision: 0,
            drops: Vec::new(),
            sessions: Vec::new(),
            ring_overflows: 0,
            passed_packets: 0,
            nat: None,
        }
    }
}

fn not_here() -> ApiError {
    ApiError::new("not_here", "this is a stand-in", "ask something else")
}
