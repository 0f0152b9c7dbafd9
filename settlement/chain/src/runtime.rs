//! The engine's own thread, on which every chain of a process runs.

use std::{
    any::Any,
    ffi::OsStr,
    fs, io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread::{self, JoinHandle},
    time::Duration,
};

use commonware_codec::{Copying, DecodeExt as _};
use commonware_cryptography::{Signer as _, ed25519};
use commonware_runtime::{Runner as _, Spawner as _, Supervisor as _, tokio as engine};
use tokio::sync::{mpsc, oneshot, watch};
use topnet_account::{Hash, PublicKey};
use topnet_ledger::machine::Machine;
use topnet_light::{committee, public_key_of};
use tracing::error;

use crate::{
    chain::Chain,
    machine::AnyMachine,
    node::{self, NodeConfig},
    past::{Past, PastState},
    state::Context,
};

/// One may execute a block while the other answers and votes.
const WORKER_THREADS: usize = 2;
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// The engine keeps this file locked while it uses the directory.
const HOLD_FILE: &str = ".hold";

/// Says how what lies in the directory is laid out.
const FORMAT_FILE: &str = "format";
const FORMAT_DRAFT: &str = "format.new";
/// Raised whenever blocks, state or their storage are laid out in another way.
const FORMAT: &str = "topnet-chain 5\n";

/// A voter of a chain and where it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validator {
    /// Its key, for votes and connections.
    pub key: PublicKey,
    /// Where the others connect to it. Unused when it is alone.
    pub address: SocketAddr,
}

/// What a node must know to run one chain.
#[derive(Clone)]
pub struct ChainConfig {
    /// Name in this process; also the prefix of its files.
    pub name: String,
    /// Hash of the chain's genesis: its name in everything that is signed.
    pub genesis: Hash,
    /// All voters, this node among them.
    pub validators: Vec<Validator>,
    /// Seed of this node's key (RFC 8032), the same that other processes sign with.
    pub seed: [u8; 32],
    /// Where this node listens for the other validators. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Time between blocks.
    pub block_interval: Duration,
    /// Most transactions that wait for a block; [`MEMPOOL_TRANSACTIONS`](crate::limits::MEMPOOL_TRANSACTIONS) is usual.
    pub mempool_transactions_max: usize,
    /// Takes no part in consensus: no block follows those that are there, and all that is asked
    /// about them is answered.
    pub halted: bool,
}

/// Why a chain could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The storage directory cannot be used.
    #[error("storage directory {path}: {source}; create it and let this user write to it")]
    Storage {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process runs on the storage directory.
    #[error(
        "storage directory {0} is used by another process; stop it or choose another directory"
    )]
    StorageInUse(PathBuf),
    /// What is stored is of another version.
    #[error(
        "storage directory {path} has format `{found}`, and this version reads `{known}`; run the version that wrote it, or choose another directory", known = FORMAT.trim_end()
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// What it says of itself.
        found: String,
    },
    /// The thread could not be made.
    #[error("cannot start the thread of the chains: {0}")]
    Thread(io::Error),
    /// The configuration contradicts itself.
    #[error("chain `{chain}`: {problem}")]
    Config {
        /// The chain's name.
        chain: String,
        /// What is wrong and the mend.
        problem: &'static str,
    },
    /// The engine ended while it started.
    #[error(transparent)]
    Engine(#[from] EngineEnded),
}

/// The engine has ended by itself. It does so when its storage fails it.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the engine of storage directory {path} has ended: {problem}; free the disk if it is full, otherwise restore the directory, of which a part is damaged or lost"
)]
pub struct EngineEnded {
    path: PathBuf,
    problem: String,
}

type Job = Box<dyn FnOnce(&Context) + Send>;

/// The thread with the engine's runtime. Chains that are launched on it share its storage
/// directory and its workers.
pub struct ChainRuntime {
    jobs: mpsc::UnboundedSender<Job>,
    ended: watch::Receiver<()>,
    /// What made it end, unless it was stopped.
    fault: Arc<OnceLock<EngineEnded>>,
    path: PathBuf,
    thread: JoinHandle<()>,
}

impl ChainRuntime {
    /// Starts the runtime on `storage`, which no other process may use at the same time.
    pub fn start(storage: &Path) -> Result<Self, StartError> {
        claim(storage)?;
        let config = engine::Config::new()
            .with_storage_directory(storage)
            .with_worker_threads(WORKER_THREADS);
        let (jobs, mut next_job) = mpsc::unbounded_channel::<Job>();
        let (alive, ended) = watch::channel(());
        let (running, runs) = std::sync::mpsc::channel();
        let fault = Arc::new(OnceLock::new());
        let (told, path) = (Arc::clone(&fault), storage.to_owned());
        let thread = thread::Builder::new()
            .name("chains".to_owned())
            .spawn(move || {
                // Dropped when all is said about the end.
                let _alive = alive;
                let run = || {
                    engine::Runner::new(config).start(|context| async move {
                        // Nobody waits any more if the thread could not be waited for.
                        let _ = running.send(());
                        while let Some(job) = next_job.recv().await {
                            job(&context);
                        }
                        if context.stop(0, Some(STOP_TIMEOUT)).await.is_err() {
                            error!("a chain did not stop in time; it recovers at the next start");
                        }
                    });
                };
                // A panic is how the engine says that its storage fails it. Nothing of it is
                // used afterwards.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                    let problem = words_of(&*panic);
                    let _ = told.set(EngineEnded { path, problem });
                }
            })
            .map_err(StartError::Thread)?;
        let runtime = Self {
            jobs,
            ended,
            fault,
            path: storage.to_owned(),
            thread,
        };
        // From here on the engine holds the directory.
        match runs.recv() {
            Ok(()) => Ok(runtime),
            Err(_) => {
                // It has dropped its end, and so it is about to end.
                let _ = runtime.thread.join();
                Err(fault_of(&runtime.fault, &runtime.path).into())
            }
        }
    }

    /// Runs a validator of a chain; returns when its state is open and it takes part.
    pub async fn launch(
        &self,
        machine: impl Machine,
        config: ChainConfig,
    ) -> Result<Chain, StartError> {
        let config = check(config)?;
        let (ready, started) = oneshot::channel();
        // An engine that has ended drops the job, and with it what would say that it is done.
        let _ = self.jobs.send(validator(config, Arc::new(machine), ready));
        match started.await {
            Ok(chain) => Ok(chain),
            Err(_) => Err(self.ended().await.into()),
        }
    }

    /// The state of a chain that runs here as it was after the block at `height`, which is final.
    pub fn past_state(&self, chain: &Chain, height: u64) -> PastState {
        let (state, past) = Past::of(chain.clone(), height);
        // Where the runtime has ended, the answers are that.
        let _ = self.jobs.send(Box::new(move |context: &Context| {
            context
                .child("past")
                .with_attribute("height", height)
                .spawn(move |context| past.run(context));
        }));
        state
    }

    /// Resolves when the engine has ended, and says why.
    pub fn ended(&self) -> impl Future<Output = EngineEnded> + Send + use<> {
        let mut ended = self.ended.clone();
        let (fault, path) = (Arc::clone(&self.fault), self.path.clone());
        async move {
            while ended.changed().await.is_ok() {}
            fault_of(&fault, &path)
        }
    }

    /// Stops all chains and waits until nothing of them runs any more.
    pub fn stop(self) {
        drop(self.jobs);
        // It catches its own panics.
        let _ = self.thread.join();
    }
}

fn fault_of(fault: &OnceLock<EngineEnded>, path: &Path) -> EngineEnded {
    let fault = fault.get().cloned();
    fault.unwrap_or_else(|| EngineEnded {
        path: path.to_owned(),
        problem: "it was stopped".to_owned(),
    })
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
    words.unwrap_or("it does not say why").to_owned()
}

/// Makes the directory and sees that no other process has it; the engine itself would wait.
fn claim(storage: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Storage {
        path: storage.to_owned(),
        source,
    };
    fs::create_dir_all(storage).map_err(failed)?;
    let hold = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(storage.join(HOLD_FILE))
        .map_err(failed)?;
    match hold.try_lock() {
        Ok(()) => check_format(storage),
        Err(fs::TryLockError::WouldBlock) => Err(StartError::StorageInUse(storage.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Refuses what another version has stored: the engine would take it for damaged and cut it off.
fn check_format(storage: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Storage {
        path: storage.to_owned(),
        source,
    };
    let path = storage.join(FORMAT_FILE);
    let found = match fs::read_to_string(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let entries = fs::read_dir(storage).map_err(failed)?;
            let ours = [HOLD_FILE, FORMAT_DRAFT].map(OsStr::new);
            let is_other = |entry: &io::Result<fs::DirEntry>| !matches!(entry, Ok(entry) if ours.contains(&&*entry.file_name()));
            let others = entries.filter(is_other);
            if others.count() == 0 {
                return write_format(&path).map_err(failed);
            }
            "topnet-chain 1".to_owned()
        }
        Err(error) => return Err(failed(error)),
    };
    if found == FORMAT {
        return Ok(());
    }
    Err(StartError::Format {
        path: storage.to_owned(),
        found: found.trim_end().to_owned(),
    })
}

/// On disk as a whole or not at all.
fn write_format(path: &Path) -> io::Result<()> {
    let draft = path.with_file_name(FORMAT_DRAFT);
    fs::write(&draft, FORMAT)?;
    fs::File::open(&draft)?.sync_all()?;
    fs::rename(&draft, path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::File::open(directory)?.sync_all()
}

/// Starts a validator when the runtime gets to it. Not generic and not `async`, so that the engine,
/// which takes minutes to compile, is compiled in this crate and not once in each that uses it.
fn validator(
    config: NodeConfig,
    machine: Arc<dyn AnyMachine>,
    ready: oneshot::Sender<Chain>,
) -> Job {
    Box::new(move |context: &Context| {
        context
            .child("chain")
            .with_attribute("chain", &config.name)
            .spawn(move |context| node::run(context, config, machine, ready));
    })
}

fn check(config: ChainConfig) -> Result<NodeConfig, StartError> {
    let problem = |problem| StartError::Config {
        chain: config.name.clone(),
        problem,
    };
    let named = !config.name.is_empty()
        && config
            .name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !named {
        return Err(problem("its name must consist of a-z, 0-9 and -"));
    }
    if config.block_interval.is_zero() {
        return Err(problem("the block interval is zero; 100 ms is usual"));
    }
    let keys: Vec<PublicKey> = config
        .validators
        .iter()
        .map(|validator| validator.key)
        .collect();
    let committee = committee(&keys)
        .ok_or_else(|| problem("the validators' keys must be valid and each named once"))?;
    let key = ed25519::PrivateKey::decode(Copying(&config.seed))
        .map_err(|_| problem("the seed makes no key"))?;
    if !keys.contains(&public_key_of(&key.public_key())) {
        return Err(problem("this node's key is not among the validators"));
    }
    Ok(NodeConfig {
        name: config.name,
        genesis: config.genesis,
        validators: config.validators,
        committee,
        key,
        listen: config.listen,
        block_interval: config.block_interval,
        mempool_transactions_max: config.mempool_transactions_max,
        halted: config.halted,
    })
}
