//! Starts everything from a configuration, and ends when any part of it ends.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{sync::mpsc, task::AbortHandle};
use topnet_account::Amount;
use topnet_api::ChainName;
use topnet_chain::{ChainEnded, EngineEnded, StartError as ChainError};
use topnet_channel::SecretKey;
use topnet_ledger::{
    CodecError, Genesis,
    genesis::{GenesisError, Role},
};
use topnet_tower::held::{Held, HeldError, Pace};
use topnet_wallet::key_file::{self, KeyFileError};
use zeroize::Zeroizing;

use crate::{
    chains::{Chains, Setup, watch_over},
    close::Closer,
    handover::Handover,
    index::{Index, IndexError},
    market::Market,
    registrar::Registrar,
    rescue::Rescue,
    service::Service,
    services::{ServiceRecord, Services, ServicesError},
    tower::Tower,
};

/// Where this validator would be reached if there were others. A chain alone in its validator
/// set listens on any free port of loopback, and admits nobody.
pub(crate) const ALONE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PASSPHRASE_VARIABLE: &str = "TOPNET_PASSPHRASE";

/// What settlement works with.
pub struct Inputs {
    /// Blocks, state and index.
    pub storage_dir: PathBuf,
    /// The main chain's genesis.
    pub main: Genesis,
    /// The geneses of the service chains that the configuration names.
    pub services: Vec<Genesis>,
    /// Votes on both chains.
    pub validator: SecretKey,
    /// Signs closes.
    pub payee: SecretKey,
    /// A claim is made at most this long after it was held.
    pub claim_interval_ms: u64,
    /// So much unclaimed money is claimed at once; zero leaves it to the interval.
    pub claim_exposure: Amount,
    /// Towers on other machines that claims are handed to.
    pub towers: Vec<String>,
    /// Transactions that wait for a block at most, per chain.
    pub mempool_transactions_max: usize,
}

/// Why settlement cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file cannot be read.
    #[error(
        "{path}: {problem}; correct the path in [settlement], or make the file with `topnet init`"
    )]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A key file cannot be opened.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// There is no passphrase.
    #[error(
        "no passphrase for the key files; set passphrase_file in [settlement], or the environment's {PASSPHRASE_VARIABLE}"
    )]
    Passphrase,
    /// A genesis contradicts itself.
    #[error("{0}; a running chain's genesis must not change, so restore the file")]
    Genesis(#[from] GenesisError),
    /// The two geneses are not of two chains that know each other.
    #[error("the genesis files do not belong together: {0}; take both from one `topnet init`")]
    Pair(&'static str),
    /// A chain cannot start.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The index cannot be opened.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The claims cannot be opened.
    #[error(transparent)]
    Held(#[from] HeldError),
    /// A tower's address is none.
    #[error("[settlement] towers: {0}; write it as http://192.0.2.7:8547")]
    Towers(String),
    /// The list of services cannot be kept or read.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// What a chain knows cannot be read.
    #[error("{0}")]
    State(String),
    /// A chain has ended already.
    #[error(transparent)]
    Ended(#[from] ChainEnded),
}

impl From<TaskError> for StartError {
    fn from(error: TaskError) -> Self {
        Self::State(error.to_string())
    }
}

/// Why a task ended, and settlement with it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error(transparent)]
    Ended(#[from] ChainEnded),
    #[error(transparent)]
    Engine(#[from] EngineEnded),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Held(#[from] HeldError),
    #[error(transparent)]
    Start(Box<StartError>),
    #[error("a record of the chain's state cannot be read: {0}; this version is not the chain's")]
    Record(#[from] CodecError),
    #[error("the chain's state has no {what}; its storage is damaged, restore it")]
    StateLost { what: &'static str },
    #[error(
        "block {height} of `{chain}` is final and not in storage, which is damaged; restore it"
    )]
    BlockLost { chain: ChainName, height: u64 },
}

impl Inputs {
    /// Reads what `config` names.
    pub fn load(config: &topnet_config::Settlement) -> Result<Self, StartError> {
        let passphrase = passphrase(config.passphrase_file.as_deref())?;
        Ok(Self {
            storage_dir: config.storage_dir.clone(),
            main: genesis(&config.main_genesis_file)?,
            services: vec![genesis(&config.service_genesis_file)?],
            validator: key_file::read(&config.validator_key_file, passphrase.as_bytes())?,
            payee: key_file::read(&config.payee_key_file, passphrase.as_bytes())?,
            claim_interval_ms: config.claim_interval_ms,
            claim_exposure: Amount::from_ntop(config.claim_exposure_ntop),
            towers: config.towers.clone(),
            mempool_transactions_max: usize::try_from(config.mempool_transactions_max)
                .unwrap_or(usize::MAX),
        })
    }
}

/// The chains and all that works on them.
pub struct Settlement {
    service: Service,
    faults: mpsc::UnboundedReceiver<String>,
    tasks: Vec<AbortHandle>,
}

impl Settlement {
    /// Starts the chains, opens the index and begins to work.
    pub async fn start(inputs: Inputs) -> Result<Self, StartError> {
        let Inputs {
            storage_dir,
            main,
            services,
            validator,
            payee,
            claim_interval_ms,
            claim_exposure,
            towers,
            mempool_transactions_max,
        } = inputs;
        let Role::Main { services: listed } = &main.role else {
            return Err(StartError::Pair("main_genesis_file is not a main chain's"));
        };
        let is_listed = |genesis: &Genesis| listed.contains(&genesis.counterpart());
        if !services.iter().all(is_listed) {
            return Err(StartError::Pair(
                "the main chain does not list the configured service",
            ));
        }
        let index = Index::open(&storage_dir.join("index"), &main.hash())?;
        let held = Held::open(&storage_dir.join("claims"))?;
        let list = Services::open(&storage_dir.join("services"))?;
        let setup = Setup {
            storage_dir,
            validator,
            mempool_transactions_max,
        };
        // Less than what a claim pays would only be looked at in vain.
        let payout_min = main.rules.claim_payout_min;
        let (told, faults) = mpsc::unbounded_channel();
        let chains = Chains::start(setup, main, index.clone(), list.clone(), told.clone()).await?;
        // First those that ran here before: what the configuration says of them is no news, and
        // another genesis under the same name is refused.
        let configured = services.into_iter().map(|genesis| ServiceRecord {
            genesis,
            stopped: false,
            register: false,
        });
        for record in list.all()?.into_iter().chain(configured) {
            chains.host(record).await?;
        }

        let payee = Arc::new(payee);
        let address = payee.address();
        let closer = Closer {
            chains: chains.clone(),
            payee: Arc::clone(&payee),
            index: index.clone(),
            held: held.clone(),
            signing: Arc::default(),
        };
        let handover = Handover::new(held.clone(), chains.clone(), &towers);
        let handover = handover.map_err(StartError::Towers)?;
        let tower = Tower {
            chains: chains.clone(),
            index: index.clone(),
            held: held.clone(),
            closer: closer.clone(),
            pace: Pace {
                interval_ms: claim_interval_ms,
                exposure: (claim_exposure > Amount::ZERO).then(|| claim_exposure.max(payout_min)),
            },
            alarms: Arc::default(),
            handover: handover.clone(),
        };
        let registrar = Registrar {
            chains: chains.clone(),
            payee: Arc::clone(&payee),
        };
        let market = Market {
            chains: chains.clone(),
            payee,
        };
        let rescue = Rescue {
            chains: chains.clone(),
            held,
            payee: address,
        };
        let tasks = vec![
            watch_over(&told, closer.clone().run()),
            watch_over(&told, tower.clone().run()),
            watch_over(&told, handover.run()),
            watch_over(&told, registrar.clone().run()),
            watch_over(&told, rescue.clone().run()),
        ];
        let service = Service {
            chains,
            index,
            closer,
            tower,
            registrar,
            market,
            rescue,
            payee: address,
        };
        Ok(Self {
            service,
            faults,
            tasks,
        })
    }

    /// What answers the other processes.
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// Resolves when a part has ended, which no part does without a fault; says which.
    pub async fn ended(&mut self) -> String {
        let fault = self.faults.recv().await;
        fault.unwrap_or_else(|| "all tasks ended".to_owned())
    }

    /// Stops the work, then the chains, and waits until they have.
    pub async fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        self.service.chains.shutdown().await;
    }
}

fn genesis(path: &Path) -> Result<Genesis, StartError> {
    let failed = |problem: String| StartError::File {
        path: path.to_owned(),
        problem,
    };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
}

fn passphrase(file: Option<&Path>) -> Result<Zeroizing<String>, StartError> {
    let Some(path) = file else {
        let passphrase = std::env::var(PASSPHRASE_VARIABLE).map_err(|_| StartError::Passphrase)?;
        return Ok(Zeroizing::new(passphrase));
    };
    let failed = |error: std::io::Error| StartError::File {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let text = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
    Ok(Zeroizing::new(
        text.lines().next().unwrap_or_default().to_owned(),
    ))
}
