//! The chains that run here: main, and any number of services, which come and go while the
//! process runs.
//!
//! Each chain has an engine of its own on a thread of its own and a storage directory of its
//! own, so that it can be stopped as a whole and a fault of one is none of another. A service that
//! main holds dead runs *halted*: no block follows, and what it knows can still be asked.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc, watch},
    task::AbortHandle,
};
use topnet_account::ChannelId;
use topnet_api::{ApiError, ChainName};
use topnet_chain::{
    Chain, ChainConfig, ChainEnded, ChainRuntime, EngineVerifier, PastState, Validator,
};
use topnet_channel::SecretKey;
use topnet_ledger::{
    Genesis, Ledger,
    genesis::Role,
    state::{Channel, Service as ServiceState, channel_key, service_key},
};
use tracing::{error, info, warn};

use crate::{
    close::unavailable,
    follow::follow,
    index::Index,
    relay::{Batches, Funds, record, relay},
    services::{ServiceRecord, Services},
    start::{ALONE, StartError, TaskError},
};

/// Blocks between two looks at what falls due.
const LOOK_BLOCKS: u32 = 5;
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(2);
/// Within this it is known why an engine has ended.
const ENGINE_WORDS_WAIT: Duration = Duration::from_secs(2);

/// A chain that runs here. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Running {
    pub name: ChainName,
    pub chain: Chain,
    pub genesis: Arc<Genesis>,
    /// Height up to which the index has it.
    pub indexed: watch::Receiver<u64>,
    /// No block follows any more.
    pub halted: bool,
}

impl Running {
    /// Waits until the index has all that is final now.
    pub(crate) async fn catch_up(&self) -> Result<(), ApiError> {
        let height = self.chain.tip().height();
        let mut indexed = self.indexed.clone();
        let reached = indexed.wait_for(|reached| *reached >= height).await;
        reached.map(|_| ()).map_err(unavailable)
    }
}

/// How a service chain is run here.
#[derive(Clone)]
pub(crate) struct Hosted {
    pub record: ServiceRecord,
    /// `None` while the operator has it stopped.
    pub running: Option<Running>,
    /// What keeps main from knowing it.
    pub problem: Option<String>,
}

/// What it takes to run a chain.
pub(crate) struct Setup {
    pub storage_dir: PathBuf,
    pub validator: SecretKey,
    pub mempool_transactions_max: usize,
}

/// All chains. Clones are the same ones.
#[derive(Clone)]
pub(crate) struct Chains(Arc<Inner>);

struct Inner {
    setup: Setup,
    main: Running,
    index: Index,
    services: Services,
    hosted: RwLock<BTreeMap<ChainName, Hosted>>,
    /// Engines and tasks, by chain. Whoever starts or stops one holds this.
    engines: Mutex<BTreeMap<ChainName, Engine>>,
    faults: mpsc::UnboundedSender<String>,
}

/// What runs a chain and works on it.
struct Engine {
    runtime: ChainRuntime,
    tasks: Vec<AbortHandle>,
    /// The last accepted state of a dead service, once somebody has asked for it.
    past: Option<PastState>,
}

impl Engine {
    /// Ends the work, then the chain.
    async fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        // A panic there is in the log already.
        let _ = tokio::task::spawn_blocking(move || self.runtime.stop()).await;
    }
}

/// What came of a look at the chains; `None` if a service was stopped under it. Main's end, and
/// that of a service by itself, are seen by those who watch over them.
pub(crate) fn unless_stopped<T>(outcome: Result<T, TaskError>) -> Result<Option<T>, TaskError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(TaskError::Ended(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Runs what must not end; how it ended is told to `faults`.
pub(crate) fn watch_over(
    faults: &mpsc::UnboundedSender<String>,
    task: impl Future<Output = Result<(), TaskError>> + Send + 'static,
) -> AbortHandle {
    let task = tokio::spawn(task);
    let abort = task.abort_handle();
    let faults = faults.clone();
    tokio::spawn(async move {
        let fault = match task.await {
            Ok(Ok(())) => "a task ended".to_owned(),
            Ok(Err(error @ TaskError::Ended(_))) => {
                // Whoever watches over the engine knows why, and may tell it first.
                tokio::time::sleep(ENGINE_WORDS_WAIT).await;
                error.to_string()
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) if error.is_cancelled() => return,
            Err(error) => error.to_string(),
        };
        // Nobody listens when the process ends.
        let _ = faults.send(fault);
    });
    abort
}

impl Chains {
    /// Starts main.
    pub(crate) async fn start(
        setup: Setup,
        main: Genesis,
        index: Index,
        services: Services,
        faults: mpsc::UnboundedSender<String>,
    ) -> Result<Self, StartError> {
        let (running, engine) = setup.launch(main, false, &index, &faults).await?;
        let engines = BTreeMap::from([(running.name.clone(), engine)]);
        Ok(Self(Arc::new(Inner {
            setup,
            main: running,
            index,
            services,
            hosted: RwLock::default(),
            engines: Mutex::new(engines),
            faults,
        })))
    }

    pub(crate) fn main(&self) -> &Running {
        &self.0.main
    }

    pub(crate) fn index(&self) -> &Index {
        &self.0.index
    }

    /// The key that votes on every chain here.
    pub(crate) fn validator(&self) -> &SecretKey {
        &self.0.setup.validator
    }

    /// All that run, main first.
    pub(crate) fn running(&self) -> Vec<Running> {
        let services = self.hosted();
        let services = services.into_values().filter_map(|hosted| hosted.running);
        std::iter::once(self.0.main.clone())
            .chain(services)
            .collect()
    }

    /// All services of this place, running or not.
    pub(crate) fn hosted(&self) -> BTreeMap<ChainName, Hosted> {
        let hosted = self.0.hosted.read();
        hosted.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The chain with this name, if it runs here.
    pub(crate) fn get(&self, name: &ChainName) -> Result<Running, ApiError> {
        let running = self.running();
        if let Some(found) = running.iter().find(|running| running.name == *name) {
            return Ok(found.clone());
        }
        let (problem, mend) = match self.hosted().contains_key(name) {
            true => (
                format!("chain `{name}` is stopped here"),
                format!("start it with `topnet chain start {name}`"),
            ),
            false => {
                let known: Vec<&str> = running.iter().map(|one| one.name.0.as_str()).collect();
                (
                    format!("no chain `{name}` runs here"),
                    format!("name one of {}", known.join(", ")),
                )
            }
        };
        Err(ApiError::new("chain_unknown", problem, mend))
    }

    /// The chain that has a channel now, and the channel as its newest final state has it. A dead
    /// service's channel is on main once it was recovered.
    pub(crate) async fn channel(
        &self,
        id: &ChannelId,
    ) -> Result<Option<(Running, Channel)>, TaskError> {
        let found = self.0.index.channel(id)?;
        if let Some(running) = found.and_then(|found| self.get(&found.chain).ok()) {
            let channel: Option<Channel> = record(&running.chain, channel_key(id)).await?;
            return Ok(channel.map(|channel| (running, channel)));
        }
        // The index may be behind.
        for running in self.running() {
            if let Some(channel) = record(&running.chain, channel_key(id)).await? {
                return Ok(Some((running, channel)));
            }
        }
        Ok(None)
    }

    /// Time between two looks at what time alone changes: some blocks of the fastest chain.
    pub(crate) fn look_interval(&self) -> Duration {
        let running = self.running();
        let fastest = running.iter().map(|one| one.chain.block_interval()).min();
        (LOOK_BLOCKS * fastest.unwrap_or(LOOK_INTERVAL_MAX)).min(LOOK_INTERVAL_MAX)
    }

    /// What main knows of a service.
    pub(crate) async fn on_main(
        &self,
        genesis: &topnet_account::Hash,
    ) -> Result<Option<ServiceState>, TaskError> {
        record(&self.0.main.chain, service_key(genesis)).await
    }

    /// True if main holds the service dead.
    pub(crate) fn is_dead(&self, service: &ServiceState) -> bool {
        let main = &self.0.main;
        let next = main.chain.tip().height().saturating_add(1);
        service.is_dead(&main.genesis.rules, next)
    }

    /// Takes a service in, if it is not known, and runs it, unless the operator has stopped it.
    pub(crate) async fn host(&self, record: ServiceRecord) -> Result<(), StartError> {
        let name = ChainName(record.genesis.name.clone());
        self.check(&record.genesis)?;
        let known = self.hosted().remove(&name).map(|hosted| hosted.record);
        let record = match known {
            Some(known) => known,
            None => {
                self.0.services.keep(&record)?;
                self.set(&name, |hosted| {
                    hosted.get_or_insert(Hosted {
                        record: record.clone(),
                        running: None,
                        problem: None,
                    });
                });
                record
            }
        };
        if record.stopped {
            return Ok(());
        }
        let mut engines = self.0.engines.lock().await;
        // Somebody else may have started it meanwhile.
        if engines.contains_key(&name) {
            return Ok(());
        }
        let genesis = record.genesis;
        let known = self.on_main(&genesis.hash()).await?;
        let halted = known.is_some_and(|service| self.is_dead(&service));
        self.run(&mut engines, genesis, halted).await
    }

    /// Refuses a genesis that does not belong here.
    fn check(&self, genesis: &Genesis) -> Result<(), StartError> {
        let Role::Service { main } = &genesis.role else {
            return Err(StartError::Pair("one of the services is a main chain"));
        };
        if *main != self.0.main.genesis.counterpart() {
            return Err(StartError::Pair("a service names another main chain"));
        }
        if genesis.name == self.0.main.genesis.name {
            return Err(StartError::Pair("a service has main's name"));
        }
        let known = self.hosted();
        let known = known.get(&ChainName(genesis.name.clone()));
        if known.is_some_and(|known| known.record.genesis != *genesis) {
            return Err(StartError::Pair(
                "a service of this name ran here from another genesis",
            ));
        }
        Ok(())
    }

    async fn run(
        &self,
        engines: &mut BTreeMap<ChainName, Engine>,
        genesis: Genesis,
        halted: bool,
    ) -> Result<(), StartError> {
        let Inner {
            setup,
            main,
            index,
            faults,
            ..
        } = &*self.0;
        let (running, mut engine) = setup.launch(genesis, halted, index, faults).await?;
        if !halted {
            let (service, main) = (running.clone(), main.clone());
            engine.tasks.push(watch_over(
                faults,
                relay::<Funds>(main.clone(), service.clone(), index.clone()),
            ));
            engine.tasks.push(watch_over(
                faults,
                relay::<Batches>(service, main, index.clone()),
            ));
        }
        let name = running.name.clone();
        engines.insert(name.clone(), engine);
        self.set(&name, |hosted| {
            let hosted = hosted
                .as_mut()
                .expect("a service is taken in before it runs");
            hosted.running = Some(running);
        });
        Ok(())
    }

    /// Stops a service until it is started again.
    pub(crate) async fn stop(&self, name: &ChainName) -> Result<(), StartError> {
        let mut engines = self.0.engines.lock().await;
        self.intend(name, |record| record.stopped = true)?;
        self.halt(&mut engines, name).await;
        info!(chain = %name, "stopped");
        Ok(())
    }

    /// Starts a service that was stopped.
    pub(crate) async fn resume(&self, name: &ChainName) -> Result<(), StartError> {
        let record = self.intend(name, |record| record.stopped = false)?;
        match record {
            Some(record) => self.host(record).await,
            None => Ok(()),
        }
    }

    /// Runs a service without consensus from now on.
    pub(crate) async fn freeze(&self, running: &Running) -> Result<(), StartError> {
        let mut engines = self.0.engines.lock().await;
        // The operator may have stopped it meanwhile.
        if !engines.contains_key(&running.name) {
            return Ok(());
        }
        self.halt(&mut engines, &running.name).await;
        let genesis = Genesis::clone(&running.genesis);
        self.run(&mut engines, genesis, true).await
    }

    /// The state of a halted service that main accepted last.
    pub(crate) async fn accepted_state(
        &self,
        running: &Running,
        height: u64,
    ) -> Result<PastState, ChainEnded> {
        let mut engines = self.0.engines.lock().await;
        let engine = engines.get_mut(&running.name).ok_or(ChainEnded)?;
        let Engine { runtime, past, .. } = engine;
        let state = past.get_or_insert_with(|| runtime.past_state(&running.chain, height));
        Ok(state.clone())
    }

    async fn halt(&self, engines: &mut BTreeMap<ChainName, Engine>, name: &ChainName) {
        self.set(name, |hosted| {
            if let Some(hosted) = hosted {
                hosted.running = None;
            }
        });
        if let Some(engine) = engines.remove(name) {
            engine.stop().await;
        }
    }

    /// Changes what is to become of a service, on disk first; gives what it is now.
    pub(crate) fn intend(
        &self,
        name: &ChainName,
        change: impl FnOnce(&mut ServiceRecord),
    ) -> Result<Option<ServiceRecord>, StartError> {
        let Some(mut record) = self.hosted().remove(name).map(|hosted| hosted.record) else {
            return Ok(None);
        };
        let before = record.clone();
        change(&mut record);
        if record != before {
            self.0.services.keep(&record)?;
        }
        self.set(name, |hosted| {
            if let Some(hosted) = hosted {
                hosted.record = record.clone();
            }
        });
        Ok(Some(record))
    }

    /// Notes what keeps main from knowing a service, or that nothing does.
    pub(crate) fn note_problem(&self, name: &ChainName, problem: Option<String>) {
        self.set(name, |hosted| {
            if let Some(hosted) = hosted
                && hosted.problem != problem
            {
                if let Some(problem) = &problem {
                    warn!(chain = %name, problem, "a service is not registered on main");
                }
                hosted.problem = problem;
            }
        });
    }

    fn set(&self, name: &ChainName, change: impl FnOnce(&mut Option<Hosted>)) {
        let mut all = self
            .0
            .hosted
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut hosted = all.remove(name);
        change(&mut hosted);
        if let Some(hosted) = hosted {
            all.insert(name.clone(), hosted);
        }
    }

    /// Stops everything and waits until it has.
    pub(crate) async fn shutdown(&self) {
        let mut engines = self.0.engines.lock().await;
        // Main last: what works on a service may look at it.
        let main = engines.remove(&self.0.main.name);
        for (_, engine) in std::mem::take(&mut *engines) {
            engine.stop().await;
        }
        if let Some(engine) = main {
            engine.stop().await;
        }
    }
}

impl Setup {
    async fn launch(
        &self,
        genesis: Genesis,
        halted: bool,
        index: &Index,
        faults: &mpsc::UnboundedSender<String>,
    ) -> Result<(Running, Engine), StartError> {
        let name = ChainName(genesis.name.clone());
        let ledger = Ledger::new(genesis.clone(), EngineVerifier)?;
        let config = ChainConfig {
            name: genesis.name.clone(),
            genesis: genesis.hash(),
            validators: genesis
                .validators
                .iter()
                .map(|key| Validator {
                    key: *key,
                    address: ALONE,
                })
                .collect(),
            seed: *self.validator.seed(),
            listen: ALONE,
            block_interval: Duration::from_millis(genesis.block_interval_ms),
            mempool_transactions_max: self.mempool_transactions_max,
            halted,
        };
        let directory = self.storage_dir.join("chains").join(&genesis.name);
        let runtime = tokio::task::spawn_blocking(move || ChainRuntime::start(&directory));
        let runtime = runtime.await.map_err(|_| ChainEnded)??;
        let chain = runtime.launch(ledger, config).await?;
        index.begin(&name, &chain.genesis(), &chain.genesis_state())?;
        let (progress, indexed) = watch::channel(0);
        let follows = follow(chain.clone(), name.clone(), index.clone(), progress);
        let ended = runtime.ended();
        let ends = async move { Err(TaskError::Engine(ended.await)) };
        let tasks = vec![watch_over(faults, follows), watch_over(faults, ends)];
        if halted {
            error!(chain = %name, "main holds this service dead: it is halted, and what is in it can be recovered");
        }
        let running = Running {
            name,
            chain,
            genesis: Arc::new(genesis),
            indexed,
            halted,
        };
        let past = None;
        let engine = Engine {
            runtime,
            tasks,
            past,
        };
        Ok((running, engine))
    }
}
