//! Starts everything from a configuration, and ends when any part of it ends.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet};
use topnet_account::Amount;
use topnet_api::ChainName;
use topnet_chain::{
    Chain, ChainConfig, ChainEnded, ChainRuntime, EngineVerifier, StartError as ChainError,
    Validator,
};
use topnet_channel::SecretKey;
use topnet_ledger::{
    CodecError, Genesis, Ledger,
    genesis::{GenesisError, Role},
};
use topnet_wallet::key_file::{self, KeyFileError};
use zeroize::Zeroizing;

use crate::{
    close::Closer,
    follow::follow,
    held::{Held, HeldError, Pace},
    index::{Index, IndexError},
    relay::{Batches, Funds, relay},
    service::{RunningChain, Service},
    tower::Tower,
};

/// Where this validator would be reached if there were others. A chain alone in its validator
/// set listens on any free port of loopback, and admits nobody.
const ALONE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PASSPHRASE_VARIABLE: &str = "TOPNET_PASSPHRASE";

/// What settlement works with.
pub struct Inputs {
    /// Blocks, state and index.
    pub storage_dir: PathBuf,
    /// The main chain's genesis.
    pub main: Genesis,
    /// The service chain's genesis.
    pub service: Genesis,
    /// Votes on both chains.
    pub validator: SecretKey,
    /// Signs closes.
    pub payee: SecretKey,
    /// A claim is made at most this long after it was held.
    pub claim_interval_ms: u64,
    /// So much unclaimed money is claimed at once; zero leaves it to the interval.
    pub claim_exposure: Amount,
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
}

/// Why a task ended, and settlement with it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error(transparent)]
    Ended(#[from] ChainEnded),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error(transparent)]
    Held(#[from] HeldError),
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
            service: genesis(&config.service_genesis_file)?,
            validator: key_file::read(&config.validator_key_file, passphrase.as_bytes())?,
            payee: key_file::read(&config.payee_key_file, passphrase.as_bytes())?,
            claim_interval_ms: config.claim_interval_ms,
            claim_exposure: Amount::from_ntop(config.claim_exposure_ntop),
            mempool_transactions_max: usize::try_from(config.mempool_transactions_max)
                .unwrap_or(usize::MAX),
        })
    }

    /// The names of main and the service, if they are two chains that know each other.
    fn names(&self) -> Result<(ChainName, ChainName), StartError> {
        let Role::Main { services } = &self.main.role else {
            return Err(StartError::Pair("main_genesis_file is not a main chain's"));
        };
        let Role::Service { main } = &self.service.role else {
            return Err(StartError::Pair(
                "service_genesis_file is not a service chain's",
            ));
        };
        if *main != self.main.counterpart() {
            return Err(StartError::Pair("the service names another main chain"));
        }
        if !services.contains(&self.service.counterpart()) {
            return Err(StartError::Pair(
                "the main chain does not list this service",
            ));
        }
        if self.main.name == self.service.name {
            return Err(StartError::Pair("both chains have one name"));
        }
        Ok((
            ChainName(self.main.name.clone()),
            ChainName(self.service.name.clone()),
        ))
    }
}

/// Both chains and all that works on them.
pub struct Settlement {
    runtime: ChainRuntime,
    service: Service,
    tasks: JoinSet<Result<(), TaskError>>,
}

impl Settlement {
    /// Starts the chains, opens the index and begins to work.
    pub async fn start(inputs: Inputs) -> Result<Self, StartError> {
        let (main, service) = inputs.names()?;
        let main_ledger = Ledger::new(inputs.main.clone(), EngineVerifier)?;
        let service_ledger = Ledger::new(inputs.service.clone(), EngineVerifier)?;
        let runtime = ChainRuntime::start(&inputs.storage_dir.join("chains"))?;
        let main_chain = runtime
            .launch(main_ledger, inputs.chain(&inputs.main))
            .await?;
        let service_chain = runtime
            .launch(service_ledger, inputs.chain(&inputs.service))
            .await?;
        let index = Index::open(
            &inputs.storage_dir.join("index"),
            &[
                (main.clone(), main_chain.genesis()),
                (service.clone(), service_chain.genesis()),
            ],
        )?;
        let held = Held::open(&inputs.storage_dir.join("claims"))?;
        let payee = Arc::new(inputs.payee);
        let closer = Closer {
            chain: service_chain.clone(),
            name: service.clone(),
            payee: Arc::clone(&payee),
            index: index.clone(),
            held: held.clone(),
            signing: Arc::default(),
        };
        let payout_min = inputs.service.rules.claim_payout_min;
        let exposure = inputs.claim_exposure;
        let tower = Tower {
            chain: service_chain.clone(),
            name: service.clone(),
            index: index.clone(),
            held,
            closer: closer.clone(),
            pace: Pace {
                interval_ms: inputs.claim_interval_ms,
                // Less than what a claim pays would only be looked at in vain.
                exposure: (exposure > Amount::ZERO).then(|| exposure.max(payout_min)),
            },
            payout_min,
            alarms: Arc::default(),
        };

        let mut tasks = JoinSet::new();
        let mut chains = BTreeMap::new();
        for (name, chain, genesis) in [
            (&main, &main_chain, inputs.main),
            (&service, &service_chain, inputs.service),
        ] {
            let (progress, indexed) = watch::channel(0);
            tasks.spawn(follow(chain.clone(), name.clone(), index.clone(), progress));
            let genesis = Arc::new(genesis);
            chains.insert(
                name.clone(),
                RunningChain {
                    chain: chain.clone(),
                    genesis,
                    indexed,
                },
            );
        }
        let relay_of = |chain: &Chain| (chain.clone(), index.clone());
        let (source, relay_index) = relay_of(&main_chain);
        let destination = service_chain.clone();
        tasks.spawn(relay::<Funds>(
            source,
            main.clone(),
            destination,
            relay_index,
        ));
        let (source, relay_index) = relay_of(&service_chain);
        tasks.spawn(relay::<Batches>(
            source,
            service.clone(),
            main_chain,
            relay_index,
        ));
        tasks.spawn(closer.clone().run());
        tasks.spawn(tower.clone().run());

        let payee = payee.address();
        let chains = Arc::new(chains);
        let service = Service {
            chains,
            main,
            service,
            index,
            closer,
            tower,
            payee,
        };
        Ok(Self {
            runtime,
            service,
            tasks,
        })
    }

    /// What answers the other processes.
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// Resolves when a part has ended, which no part does without a fault; says which.
    pub async fn ended(&mut self) -> String {
        tokio::select! {
            () = self.runtime.ended() => ChainEnded.to_string(),
            ended = self.tasks.join_next() => match ended {
                Some(Ok(Err(error))) => error.to_string(),
                Some(Err(error)) => error.to_string(),
                Some(Ok(Ok(()))) | None => "a task ended".to_owned(),
            },
        }
    }

    /// Stops the work, then the chains, and waits until they have.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        let runtime = self.runtime;
        // A panic there is in the log already.
        let _ = tokio::task::spawn_blocking(move || runtime.stop()).await;
    }
}

impl Inputs {
    fn chain(&self, genesis: &Genesis) -> ChainConfig {
        let validators = genesis.validators.iter();
        ChainConfig {
            name: genesis.name.clone(),
            genesis: genesis.hash(),
            validators: validators
                .map(|key| Validator {
                    key: *key,
                    address: ALONE,
                })
                .collect(),
            seed: *self.validator.seed(),
            listen: ALONE,
            block_interval: Duration::from_millis(genesis.block_interval_ms),
            mempool_transactions_max: self.mempool_transactions_max,
        }
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
