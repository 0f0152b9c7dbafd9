//! Answers control and metering: sessions, slots, status.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tarpc::context::Context;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use topnet_api::{
    ApiError, Assignment, Assignments, Dataplane, DataplaneStatus, DesiredSessions, DropCount,
    InstallReport, InstalledSession, IoStatus, SessionStatus, SlotState,
};
use topnet_config::{Rates, Reach};
use topnet_nat::BlockEvent;
use topnet_unit::{BootId, CreditTable, UsageTable};

use crate::drops::{DropCounters, DropReason};
use crate::endpoints::{self, Endpoints};
use crate::forwarding::Forwarding;
use crate::io::monotonic_ns;
use crate::link::WorkerLinks;
use crate::nat_log::{Holder, NatLog};
use crate::orders::Order;
use crate::registry::{Registry, Standing};
use crate::session::{Endpoint, Identity, Session, SessionCounters, SessionPlan, SessionRates};
use crate::slots::Phase;
use crate::solicited::Solicited;
use crate::team::Team;
use crate::translation::PoolLevels;
use crate::worker::{Command, Returned};

/// How often the file of endpoints is brought up to date.
const REMEMBER_PERIOD: Duration = Duration::from_secs(1);
/// How often what the worker gave back is looked at when nobody asks.
const REAP_PERIOD: Duration = Duration::from_millis(50);

/// What all requests share.
pub struct Shared {
    /// Name of this run.
    pub boot: BootId,
    /// When the worker started.
    pub started: Instant,
    /// The gateway's WireGuard identity.
    pub identity: Arc<Identity>,
    /// How packets come in and go out.
    pub io: IoStatus,
    /// Usage of all slots.
    pub usage: Arc<UsageTable>,
    /// Credit of all slots.
    pub credit: Arc<CreditTable>,
    /// Drops, each thread's own.
    pub drops: Vec<Arc<DropCounters>>,
    /// Records that found the ring full.
    pub ring_overflows: Arc<AtomicU64>,
    /// How full each worker's part of the pool of public addresses is, if they are shared.
    pub pool: Vec<Arc<PoolLevels>>,
    /// The way to the workers.
    pub workers: WorkerLinks,
    /// What they share, if there are several.
    pub team: Option<Arc<Team>>,
    /// Sessions and slots.
    pub registry: Mutex<Registry>,
    /// Where peers were heard last.
    pub endpoints: std::sync::Mutex<Endpoints>,
    /// Who had which public ports when, if they are shared.
    pub nat_log: std::sync::Mutex<Option<NatLog>>,
    /// The gateway's address towards clients.
    pub gateway_address: IpAddr,
    /// How fast a paying session may go; a reload changes it.
    pub rates: std::sync::Mutex<SessionRates>,
    /// True if clients have IPv6 addresses: nobody reaches them who was not asked.
    pub shields_ipv6: bool,
}

/// Which of a client's remote addresses share a place is nobody's to know.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// The data plane's service on its Unix socket.
#[derive(Clone)]
pub struct Service(pub Arc<Shared>);

impl Shared {
    /// Hands a new snapshot to the workers.
    pub async fn publish(&self, forwarding: Forwarding) {
        let mut registry = self.registry.lock().await;
        let forwarding = Arc::new(forwarding);
        for worker in self.workers.workers() {
            let command = Command::Forwarding(Arc::clone(&forwarding));
            let take = |returned| self.take_back(&mut registry, returned);
            self.workers.send(worker, command, take).await;
        }
    }

    /// Has sessions go so fast, and peers reach so much, from now on.
    pub(crate) async fn change_rules(&self, rates: &Rates, reach: &Reach) {
        let mut registry = self.registry.lock().await;
        let rates = SessionRates::of(rates);
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner) = rates;
        let reach = Arc::new(reach.clone());
        for worker in self.workers.workers() {
            let reach = Command::Reach(Arc::clone(&reach));
            for command in [reach, Command::Rates(rates)] {
                let take = |returned| self.take_back(&mut registry, returned);
                self.workers.send(worker, command, take).await;
            }
        }
    }

    /// Takes back what the worker is done with, for ever.
    pub async fn reap_for_ever(&self) {
        loop {
            tokio::time::sleep(REAP_PERIOD).await;
            self.reap(&mut *self.registry.lock().await);
        }
    }

    /// Keeps the file of endpoints fresh, for ever.
    pub async fn remember_for_ever(&self) {
        loop {
            tokio::time::sleep(REMEMBER_PERIOD).await;
            self.note_endpoints(&*self.registry.lock().await);
            let Some((path, text)) = self.endpoints().take_changes() else {
                continue;
            };
            let written = spawn_blocking(move || endpoints::write(&path, &text)).await;
            if let Ok(Err(error)) = written {
                tracing::debug!(%error, "cannot note where peers are");
            }
        }
    }

    /// Where a peer was heard last, as the last run knew it.
    pub(crate) fn remembered(&self, public_key: &[u8; 32]) -> Option<SocketAddr> {
        self.endpoints().of(public_key)
    }

    fn note_endpoints(&self, registry: &Registry) {
        let mut endpoints = self.endpoints();
        let clients = registry
            .standing()
            .map(|client| (client.desired.wireguard_public_key, &client.counters));
        let own = registry.operators().into_iter();
        let own = own.flat_map(|own| own.peers().map(|(key, peer)| (key.0, &peer.counters)));
        for (key, counters) in clients.chain(own) {
            if let Some(endpoint) = counters.endpoint() {
                endpoints.note(key, endpoint);
            }
        }
    }

    fn endpoints(&self) -> std::sync::MutexGuard<'_, Endpoints> {
        // What a panic could leave half done here is a hint.
        self.endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back what the worker is done with.
    pub(crate) fn reap(&self, registry: &mut Registry) {
        self.workers
            .reap(|returned| self.take_back(registry, returned));
    }

    pub(crate) fn take_back(&self, registry: &mut Registry, returned: Returned) {
        match returned {
            Returned::Session(session) => registry.returned(&session),
            Returned::Forwarding(forwarding) => drop(forwarding),
            Returned::Reach(reach) => drop(reach),
            Returned::Tap(tap) => drop(tap),
            Returned::Sockets(sockets) => drop(sockets),
            Returned::Block(event, holder) => self.note_block(&event, holder),
        }
    }

    pub(crate) fn note_block(&self, event: &BlockEvent, holder: Option<Holder>) {
        let now_ms = monotonic_ns() / 1_000_000;
        let ago = Duration::from_millis(now_ms.saturating_sub(event.time_ms));
        let mut log = self.nat_log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = log.as_mut() {
            log.record(event, holder, ago);
        }
    }

    async fn install(&self, desired: DesiredSessions) -> Result<InstallReport, ApiError> {
        let mut registry = self.registry.lock().await;
        self.reap(&mut registry);
        self.note_endpoints(&registry);
        let installation = registry.install(&desired, |slot| self.usage.totals(slot).bytes)?;
        self.deliver(&mut registry, installation.orders).await;
        let installed = |standing: &Standing| InstalledSession {
            wireguard_public_key: standing.desired.wireguard_public_key,
            slot: standing.slot.index,
            generation: standing.slot.generation,
        };
        Ok(InstallReport {
            boot: self.boot.to_string(),
            installed: registry.standing().map(installed).collect(),
            refused: installation
                .refused
                .into_iter()
                .map(|(key, error)| (key.to_vec(), error))
                .collect(),
        })
    }

    /// Has the workers do what the registry noted. Holding its lock keeps commands in order.
    pub(crate) async fn deliver(&self, registry: &mut Registry, orders: Vec<Order>) {
        let make = |plan, counters| self.session(plan, counters);
        let take = |returned| self.take_back(registry, returned);
        self.workers.deliver(orders, make, take).await;
    }

    fn session(&self, plan: SessionPlan, counters: Arc<SessionCounters>) -> Session {
        let mut session = Session::new(&self.identity, plan);
        session.counters = counters;
        if session.plan.payer.is_some() {
            session.rates = *self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            let solicited = || Box::new(Solicited::new(random_seed()));
            session.solicited = self.shields_ipv6.then(solicited);
        }
        let said = session.plan.endpoint;
        let known = said.or_else(|| self.remembered(&session.plan.public_key));
        if let Some(remote) = known {
            session.resume_at(Endpoint {
                remote,
                local: self.gateway_address,
            });
        }
        session
    }

    fn session_status(&self, standing: &Standing) -> SessionStatus {
        let counters = &standing.counters;
        let uptime_ms = self.started.elapsed().as_millis() as u64;
        SessionStatus {
            channel: standing.desired.channel,
            wireguard_public_key: standing.desired.wireguard_public_key,
            inner_address: standing.desired.inner_address,
            endpoint: counters.endpoint(),
            up_bytes: counters.up_bytes.load(Ordering::Relaxed),
            down_bytes: counters.down_bytes.load(Ordering::Relaxed),
            given_bytes: counters.given_bytes.load(Ordering::Relaxed),
            handshake_age_s: counters
                .handshake_ms()
                .map(|handshake_ms| uptime_ms.saturating_sub(handshake_ms) / 1000),
            slot: standing.slot.index,
            generation: standing.slot.generation,
            slot_usage_bytes: self.usage.totals(standing.slot.index).bytes,
            slot_limit_bytes: self.credit.balance(standing.slot).limit_bytes,
        }
    }
}

impl Dataplane for Service {
    async fn install(
        self,
        _: Context,
        desired: DesiredSessions,
    ) -> Result<InstallReport, ApiError> {
        // Whoever asks may go before the worker has taken every order; what the registry has noted
        // must reach the worker all the same.
        let gateway = Arc::clone(&self.0);
        tokio::spawn(async move { gateway.install(desired).await })
            .await
            .map_err(|_| {
                ApiError::new(
                    "install_failed",
                    "installing ended with a panic",
                    "restart the data plane, and report what it logged",
                )
            })?
    }

    async fn assignments(self, _: Context) -> Assignments {
        let mut registry = self.0.registry.lock().await;
        self.0.reap(&mut registry);
        let slots = registry.slots_in_use().map(|used| Assignment {
            channel: used.channel,
            slot: used.slot.index,
            generation: used.slot.generation,
            base_bytes: used.base_bytes,
            state: match used.phase {
                Phase::Retired => SlotState::Retired,
                // A draining slot may still count: to others it lives.
                Phase::Live | Phase::Draining | Phase::Free => SlotState::Live,
            },
        });
        Assignments {
            boot: self.0.boot.to_string(),
            slots: slots.collect(),
        }
    }

    async fn acknowledge(
        self,
        _: Context,
        boot: String,
        slot: u32,
        generation: u32,
    ) -> Result<(), ApiError> {
        let ours = self.0.boot.to_string();
        if boot != ours {
            return Err(ApiError::new(
                "other_boot",
                format!("this is run {ours} of the data plane, not {boot}"),
                "attach to its tables anew",
            ));
        }
        let mut registry = self.0.registry.lock().await;
        self.0.reap(&mut registry);
        registry.acknowledge(slot, generation).map_err(|error| {
            ApiError::new(
                "not_acknowledged",
                error.to_string(),
                "read the assignments and acknowledge what is retired",
            )
        })
    }

    async fn status(self, _: Context) -> DataplaneStatus {
        let shared = &self.0;
        let mut registry = shared.registry.lock().await;
        shared.reap(&mut registry);
        let drops = DropReason::ALL.iter().map(|reason| DropCount {
            reason: reason.name().to_owned(),
            packets: shared
                .drops
                .iter()
                .map(|drops| drops.packets(*reason))
                .sum(),
        });
        DataplaneStatus {
            boot: shared.boot.to_string(),
            uptime_s: shared.started.elapsed().as_secs(),
            io: shared.io.clone(),
            wireguard_public_key: shared.identity.public.to_bytes(),
            revision: registry.revision(),
            drops: drops.collect(),
            sessions: registry
                .standing()
                .map(|s| shared.session_status(s))
                .collect(),
            ring_overflows: shared.ring_overflows.load(Ordering::Relaxed),
            passed_packets: shared.team.as_ref().map_or(0, |team| team.passed()),
            nat: PoolLevels::status(&shared.pool, &shared.drops),
        }
    }
}
