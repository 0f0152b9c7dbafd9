//! Stand-ins for the other processes, on real sockets, and control before them. They exist in
//! tests only: they hold what a test puts into them and remember what they were asked.
#![allow(dead_code)]

pub mod calls;
mod settlement;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use jsonrpsee::{core::ClientError, http_client::HttpClient};
use tarpc::context::Context;
use tokio::task::JoinHandle;
use topnet_account::{Address, Amount, ChannelId, Hash, PublicKey};
use topnet_api::{
    ApiError, ArchiveStatus, Assignments, BlockRef, ChainName, ChannelState, ChannelStatus,
    ChannelView, ClaimBytes, Dataplane, DataplaneStatus, DesiredSessions, DropCount, FinalClaim,
    InstallReport, InstalledSession, IoStatus, Latency, Metering, MeteringStatus, NatStatus,
    OfferTerms, SessionStatus, Settlement, SocketName, listen, serve_connections,
};
use topnet_channel::SecretKey;
use topnet_config::Config;
use topnet_control::{provider::Provider, reconcile::Reconciler, rpc::Listeners};

/// Channels in one answer.
const PAGE: usize = 3;
/// Blocks in one answer.
const BLOCKS_PAGE: usize = 100;

/// Where settlement stands in: channels as the test wants them.
#[derive(Debug, Default)]
pub struct Chain {
    pub channels: BTreeMap<ChannelId, ChannelView>,
    pub height: u64,
    pub submitted: Vec<Vec<u8>>,
    pub closes: Vec<(ChannelId, Option<ClaimBytes>)>,
    /// Somebody else's close is final.
    pub closed_by_others: bool,
    /// Closes are final on both chains.
    pub settles: bool,
    /// So many batches of every service, beyond which one more is cut.
    pub accepted_batches: u64,
    /// What the provider offers on main.
    pub offer: Option<OfferTerms>,
    /// So many lists begin with their first page, whatever was asked for.
    pub repeats: u32,
}

/// Where the data plane stands in: what it was told to install.
#[derive(Debug, Default)]
pub struct Gateway {
    pub boot: String,
    pub installed: DesiredSessions,
    pub installs: u64,
    /// There is no slot for anybody.
    pub full: bool,
    /// What is counted for whom.
    pub sessions: Vec<SessionStatus>,
}

/// Where metering stands in: what it was asked to finish, and how many sessions stood then.
#[derive(Debug, Default)]
pub struct Payee {
    pub finished: Vec<(ChannelId, usize)>,
    pub claims: BTreeMap<ChannelId, ClaimBytes>,
    /// Channels that have a payer.
    pub live: BTreeMap<ChannelId, ChannelStatus>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct World {
    chain: Arc<Mutex<Chain>>,
    gateway: Arc<Mutex<Gateway>>,
    payee: Arc<Mutex<Payee>>,
}

pub fn payee() -> Address {
    Address([1; 32])
}

pub fn payment_key() -> PublicKey {
    PublicKey([8; 32])
}

pub fn signer() -> SecretKey {
    SecretKey::from_seed([5; 32]).unwrap()
}

/// A channel that may have sessions.
pub fn channel(id: u8) -> ChannelView {
    ChannelView {
        id: ChannelId([id; 32]),
        chain: ChainName::vpn(),
        payer: Address([2; 32]),
        payee: payee(),
        signer: signer().public_key(),
        allocation: Amount::from_ntop(1_000_000),
        backed: Amount::from_ntop(1_000_000),
        paid: Amount::ZERO,
        close_window: 6_000,
        expiry: 1_000_000,
        state: ChannelState::Open,
    }
}

impl World {
    pub fn chain(&self) -> MutexGuard<'_, Chain> {
        self.chain.lock().unwrap()
    }

    pub fn gateway(&self) -> MutexGuard<'_, Gateway> {
        self.gateway.lock().unwrap()
    }

    pub fn books(&self) -> MutexGuard<'_, Payee> {
        self.payee.lock().unwrap()
    }

    pub fn put(&self, channel: ChannelView) -> ChannelId {
        let id = channel.id;
        self.chain().channels.insert(id, channel);
        id
    }

    /// Whether a list begins anew where it should go on.
    fn repeats(&self) -> bool {
        let mut chain = self.chain();
        let repeats = chain.repeats > 0;
        chain.repeats = chain.repeats.saturating_sub(1);
        repeats
    }

    fn tip_block(&self, chain: ChainName) -> BlockRef {
        BlockRef {
            chain,
            height: self.chain().height,
            hash: Hash([6; 32]),
        }
    }
}

fn unknown(id: ChannelId) -> ApiError {
    ApiError::new(
        "channel_unknown",
        format!("there is no channel {id}"),
        "open it first",
    )
}

impl Dataplane for World {
    async fn install(
        self,
        _: Context,
        desired: DesiredSessions,
    ) -> Result<InstallReport, ApiError> {
        let mut gateway = self.gateway();
        if desired.revision < gateway.installed.revision {
            return Err(ApiError::new(
                "stale_revision",
                "an older set",
                "send a newer one",
            ));
        }
        gateway.installs += 1;
        let no_slot = ApiError::new("slots_max", "no slot is free", "raise slots_max");
        let refused = match gateway.full {
            true => &desired.sessions[..],
            false => &[],
        };
        let refused = refused
            .iter()
            .map(|session| (session.wireguard_public_key.to_vec(), no_slot.clone()))
            .collect();
        let installed = desired.sessions.iter().map(|session| InstalledSession {
            wireguard_public_key: session.wireguard_public_key,
            slot: 1,
            generation: 1,
        });
        let installed = installed.collect();
        gateway.installed = desired;
        Ok(InstallReport {
            boot: gateway.boot.clone(),
            installed,
            refused,
        })
    }

    async fn assignments(self, _: Context) -> Assignments {
        Assignments::default()
    }

    async fn acknowledge(self, _: Context, _: String, _: u32, _: u32) -> Result<(), ApiError> {
        Ok(())
    }

    async fn status(self, _: Context) -> DataplaneStatus {
        let gateway = self.gateway();
        DataplaneStatus {
            boot: gateway.boot.clone(),
            uptime_s: 1,
            io: IoStatus::default(),
            wireguard_public_key: [9; 32],
            revision: gateway.installed.revision,
            drops: vec![DropCount {
                reason: "no_credit".to_owned(),
                packets: 3,
            }],
            sessions: gateway.sessions.clone(),
            ring_overflows: 0,
            passed_packets: 0,
            nat: Some(NatStatus {
                blocks: 2_016,
                blocks_lent: 2,
                blocks_resting: 1,
                clients: 2,
                mappings: 3,
                mappings_max: 64,
                flows: 4,
                flows_max: 128,
                refused: vec![DropCount {
                    reason: "nat_flows_full".to_owned(),
                    packets: 5,
                }],
            }),
        }
    }
}

impl Metering for World {
    async fn channels(self, _: Context, _: bool, after: Option<ChannelId>) -> Vec<ChannelStatus> {
        let payee = self.books();
        let behind = payee.live.values();
        let behind = behind.filter(|status| after.is_none_or(|after| status.channel > after));
        behind.take(PAGE).cloned().collect()
    }

    async fn channel(self, _: Context, id: ChannelId) -> Result<ChannelStatus, ApiError> {
        let status = self.books().live.get(&id).cloned();
        status.ok_or_else(|| unknown(id))
    }

    async fn finish(self, _: Context, id: ChannelId) -> Result<FinalClaim, ApiError> {
        let sessions = self.gateway().installed.sessions.len();
        let mut payee = self.books();
        payee.finished.push((id, sessions));
        let Some(claim) = payee.claims.get(&id).cloned() else {
            return Err(unknown(id));
        };
        Ok(FinalClaim {
            status: status_of(id),
            claim: Some(claim),
        })
    }

    async fn status(self, _: Context) -> MeteringStatus {
        MeteringStatus {
            identity: payment_key(),
            dataplane_boot: None,
            connections: 0,
            channels: 0,
            tokens: 0,
            refusals: 0,
            written_off_units: 0,
            records: 0,
            ring_waiting: 0,
            commits: 0,
            commit_us: Latency::default(),
            unit_us: Latency::default(),
            unpaid_bytes_now: 0,
            unbacked: Amount::ZERO,
            journal_fault: None,
            frozen: None,
            archive: ArchiveStatus::default(),
        }
    }
}

pub fn status_of(channel: ChannelId) -> ChannelStatus {
    ChannelStatus {
        channel,
        metered_bytes: 1,
        usage_bytes: 1,
        owed_units: 1,
        accepted_units: 1,
        written_off_units: 0,
        window_units: 0,
        window_units_max: 1,
        payer_bytes: 1,
        unpaid_bytes_now: 0,
        unpaid_bytes: 0,
        redeemable: Amount::from_ntop(100),
        unbacked: Amount::ZERO,
        state: "finished".to_owned(),
        reason: None,
        connected: false,
    }
}

/// Control with its own directory, and what stands in for the rest.
pub struct Setup {
    pub world: World,
    pub dir: tempfile::TempDir,
    control: Option<(Listeners, Reconciler)>,
    tasks: Vec<(SocketName, JoinHandle<()>)>,
}

impl Setup {
    /// Everything runs.
    pub async fn start() -> Self {
        let mut setup = Self::without_processes();
        for name in [
            SocketName::Settlement,
            SocketName::Dataplane,
            SocketName::Metering,
        ] {
            setup.start_process(name).await;
        }
        setup.start_control().await;
        setup
    }

    /// Nothing runs yet.
    pub fn without_processes() -> Self {
        let world = World::default();
        world.gateway().boot = "boot-1".to_owned();
        let dir = tempfile::tempdir().unwrap();
        Self {
            world,
            dir,
            control: None,
            tasks: Vec::new(),
        }
    }

    pub fn runtime_dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self, name: SocketName) -> PathBuf {
        name.below(self.runtime_dir())
    }

    pub async fn start_process(&mut self, name: SocketName) {
        let (path, world) = (self.socket(name), self.world.clone());
        let task = match name {
            SocketName::Settlement => {
                let incoming = listen(&path).await.unwrap();
                tokio::spawn(serve_connections(incoming, Settlement::serve(world)))
            }
            SocketName::Dataplane => {
                let incoming = listen(&path).await.unwrap();
                tokio::spawn(serve_connections(incoming, Dataplane::serve(world)))
            }
            SocketName::Metering => {
                let incoming = listen(&path).await.unwrap();
                tokio::spawn(serve_connections(incoming, Metering::serve(world)))
            }
            SocketName::Tables | SocketName::Captures => {
                panic!("control uses neither tables nor captures")
            }
        };
        self.tasks.push((name, task));
    }

    /// Ends a process with its connections, as a kill does.
    pub async fn kill_process(&mut self, name: SocketName) {
        let (killed, kept) = self.tasks.drain(..).partition(|(other, _)| *other == name);
        self.tasks = kept;
        let killed: Vec<(SocketName, JoinHandle<()>)> = killed;
        for (_, task) in killed {
            task.abort();
            let _ = task.await;
        }
    }

    pub fn config(&self) -> Config {
        Config::parse(
            &config_text(self.runtime_dir()),
            &self.dir.path().join("topnet.toml"),
        )
        .unwrap()
    }

    pub async fn start_control(&mut self) {
        let config = self.config();
        let control = config.control().unwrap().clone();
        let provider = Arc::new(Provider::open(config).unwrap());
        let listeners = Listeners::start(&provider, &control).await.unwrap();
        self.control = Some((listeners, Reconciler::start(&provider)));
    }

    /// What SIGTERM does.
    pub async fn stop_control(&mut self) {
        let (listeners, reconciler) = self.control.take().unwrap();
        listeners.stop().await;
        reconciler.stop().await;
    }

    pub fn listeners(&self) -> &Listeners {
        &self.control.as_ref().unwrap().0
    }

    pub fn operator(&self) -> HttpClient {
        client(self.listeners().operator_address)
    }

    pub fn public(&self) -> HttpClient {
        client(self.listeners().public_address)
    }
}

pub fn config_text(dir: &Path) -> String {
    format!(
        "runtime_dir = {dir:?}\ndata_dir = {dir:?}\n\
         [dataplane]\nclient_interface = \"lo\"\nuplink_interface = \"lo\"\n\
         key_file = \"wireguard.key\"\ninner_subnet = \"10.78.0.0/16\"\n\
         [metering]\nkey_file = \"payment.key\"\nunit_price_ntop = 100\n\
         [control]\noperator_listen = \"127.0.0.1:0\"\npublic_listen = \"127.0.0.1:0\"\n\
         request_bytes_max = 4096\n\
         [control.offer]\nname = \"Test\"\nwireguard_endpoint = \"127.0.0.1:51820\"\n\
         payment_endpoint = \"127.0.0.1:7447\"\ndns = [\"192.0.2.53\"]\n"
    )
}

fn client(address: std::net::SocketAddr) -> HttpClient {
    HttpClient::builder()
        .build(format!("http://{address}"))
        .unwrap()
}

/// The code of the error that a method refused with.
pub fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    match answer {
        Err(ClientError::Call(error)) => {
            let data = error
                .data()
                .unwrap_or_else(|| panic!("no data in {error:?}"));
            let error: ApiError = serde_json::from_str(data.get()).unwrap();
            assert!(
                !error.what.is_empty() && !error.mend.is_empty(),
                "{error:?}"
            );
            error.code
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Waits until `condition` holds; a test that waits too long has failed.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
