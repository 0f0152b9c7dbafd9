//! The nodes that a tower asks and submits to, none of which it believes.
//!
//! Whatever money depends on is read out of proofs: a value, its way up to the state root of a
//! header, and the certificate of the chain's validators. Main's genesis is known by its hash. A
//! service's is known by its own hash, which main's proved state must have. So a node can be silent
//! or show what was true some time ago, and nothing else; a header's time says how old it is.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use jsonrpsee::{
    core::ClientError,
    http_client::{HttpClient, HttpClientBuilder},
    proc_macros::rpc,
};
use serde_json::Value;
use topnet_account::{ChannelId, Hash};
use topnet_api::{
    ApiError, ChainName, ChannelView, HexBytes, NodeStatus, RecoverySubject, StateProof,
    StateSubject, SubmittedTransaction,
};
use topnet_ledger::{
    Genesis,
    genesis::{Role, SERVICES_MAX},
    state::{Channel, Record, Service, subject_key},
};
use topnet_light::EngineVerifier;

use crate::{now_ms, rpc::refusal};

/// A node that is slower is one that does not answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A genesis names every account that main begins with.
const ANSWER_BYTES_MAX: u32 = 16 << 20;
/// A state that is older is not what the chain's is now, if its blocks do not take longer.
const STALE_MS: u64 = 15_000;
const STALE_BLOCKS: u64 = 20;

/// What a tower asks of a node: some of control's public methods.
#[rpc(client)]
trait Node {
    #[method(name = "genesis")]
    async fn genesis(&self, chain: ChainName) -> Result<Value, ClientError>;

    #[method(name = "channel")]
    async fn channel(&self, id: ChannelId) -> Result<ChannelView, ClientError>;

    #[method(name = "prove")]
    async fn prove(
        &self,
        chain: ChainName,
        subject: StateSubject,
    ) -> Result<StateProof, ClientError>;

    #[method(name = "recovery")]
    async fn recovery(
        &self,
        chain: ChainName,
        subject: RecoverySubject,
    ) -> Result<HexBytes, ClientError>;

    #[method(name = "submit")]
    async fn submit(
        &self,
        chain: ChainName,
        transaction: HexBytes,
    ) -> Result<SubmittedTransaction, ClientError>;
}

/// Why nothing could be learnt from any node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NodeError {
    /// What nodes said is no proof: another may know better.
    #[error("{0}")]
    Refused(ApiError),
    /// None gave an answer that holds.
    #[error("{0}")]
    Silent(String),
}

/// A chain, by its genesis.
#[derive(Debug)]
pub(crate) struct KnownChain {
    pub name: ChainName,
    pub genesis: Genesis,
    pub hash: Hash,
}

/// What a chain's validators have signed.
#[derive(Clone, Debug)]
pub(crate) struct Shown<T> {
    pub chain: Arc<KnownChain>,
    pub value: T,
    /// The chain's height: that of the header; if it is stale, with the blocks that have had time
    /// since.
    pub height: u64,
    /// How old the header is.
    pub age_ms: u64,
}

impl<T> Shown<T> {
    /// True if the chain should long have had a newer state.
    pub(crate) fn is_stale(&self) -> bool {
        is_stale(&self.chain.genesis, self.age_ms)
    }
}

struct NodeAt {
    url: String,
    client: HttpClient,
    noted: Mutex<(Option<u64>, Option<String>)>,
}

/// All nodes. Clones are the same.
#[derive(Clone)]
pub(crate) struct Nodes(Arc<Inner>);

struct Inner {
    nodes: Vec<NodeAt>,
    /// The place of the node that gave the last good answer; it is asked first.
    first: AtomicUsize,
    main_genesis: Hash,
    /// Chains whose genesis was checked; only those that main knows, so few.
    chains: Mutex<BTreeMap<ChainName, Arc<KnownChain>>>,
}

impl Nodes {
    /// Nodes at `urls`, on the main chain of this genesis. Nothing is connected yet.
    pub(crate) fn new(urls: &[String], main_genesis: Hash) -> Result<Self, String> {
        let node = |url: &String| {
            let client = HttpClientBuilder::default()
                .request_timeout(REQUEST_TIMEOUT)
                .max_response_size(ANSWER_BYTES_MAX)
                .build(url)
                .map_err(|error| format!("{url}: {error}"))?;
            Ok(NodeAt {
                url: url.clone(),
                client,
                noted: Mutex::default(),
            })
        };
        Ok(Self(Arc::new(Inner {
            nodes: urls.iter().map(node).collect::<Result<_, String>>()?,
            first: AtomicUsize::new(0),
            main_genesis,
            chains: Mutex::default(),
        })))
    }

    /// How each stands.
    pub(crate) fn statuses(&self) -> Vec<NodeStatus> {
        let status = |node: &NodeAt| {
            let noted = node.noted.lock().unwrap_or_else(PoisonError::into_inner);
            NodeStatus {
                url: node.url.clone(),
                answered_ms: noted.0,
                problem: noted.1.clone(),
            }
        };
        self.0.nodes.iter().map(status).collect()
    }

    /// A channel wherever it is, for whoever does not know where.
    pub(crate) async fn find(&self, id: &ChannelId) -> Result<Shown<Channel>, NodeError> {
        let mut problems = Problems::default();
        for (_, node) in self.order() {
            // Which chain to look on is all that is taken from this.
            match node.client.channel(*id).await {
                Ok(view) => match self.channel(&view.chain, id).await {
                    Ok(shown) => return Ok(shown),
                    Err(error) => problems.add(error),
                },
                Err(error) => problems.add(node.failed(&error)),
            }
        }
        Err(problems.into_error())
    }

    /// A channel on a chain, as the newest state has it that any node shows; the first that is
    /// not stale is new enough.
    pub(crate) async fn channel(
        &self,
        chain: &ChainName,
        id: &ChannelId,
    ) -> Result<Shown<Channel>, NodeError> {
        let chain = self.chain(chain).await?;
        self.newest(&chain, &StateSubject::Channel(*id)).await
    }

    /// What main knows of a service.
    pub(crate) async fn service(&self, genesis: &Hash) -> Result<Shown<Service>, NodeError> {
        let main = self.main().await?;
        self.newest(&main, &StateSubject::Service(*genesis)).await
    }

    /// Hands a transaction to every node: one that keeps it to itself holds up nothing. An error
    /// if none takes it.
    pub(crate) async fn submit(
        &self,
        chain: &KnownChain,
        transaction: &[u8],
    ) -> Result<(), NodeError> {
        let (mut problems, mut taken) = (Problems::default(), false);
        let handing = self.0.nodes.iter().map(|node| async move {
            let bytes = HexBytes(transaction.to_vec());
            (node, node.client.submit(chain.name.clone(), bytes).await)
        });
        for (node, answer) in futures::future::join_all(handing).await {
            match answer {
                Ok(_) => taken = true,
                Err(error) => problems.add(node.failed(&error)),
            }
        }
        match taken {
            true => Ok(()),
            false => Err(problems.into_error()),
        }
    }

    /// The transaction for main that takes a channel out of a dead service; whoever executes it
    /// checks its proof.
    pub(crate) async fn recovery(
        &self,
        chain: &KnownChain,
        id: &ChannelId,
    ) -> Result<Vec<u8>, NodeError> {
        let mut problems = Problems::default();
        for (_, node) in self.order() {
            let subject = RecoverySubject::Channel(*id);
            match node.client.recovery(chain.name.clone(), subject).await {
                Ok(bytes) => return Ok(bytes.0),
                Err(error) => problems.add(node.failed(&error)),
            }
        }
        Err(problems.into_error())
    }

    /// The main chain.
    pub(crate) async fn main(&self) -> Result<Arc<KnownChain>, NodeError> {
        let name = ChainName::main();
        if let Some(known) = self.known(&name) {
            return Ok(known);
        }
        let expected = self.0.main_genesis;
        let main = self.genesis(&name, |chain| {
            let is_main = chain.hash == expected && matches!(chain.genesis.role, Role::Main { .. });
            is_main.then_some(()).ok_or_else(|| {
                format!(
                    "its main chain is {}, and [tower] main_genesis names {expected}",
                    chain.hash
                )
            })
        });
        let main = main.await?;
        self.note_known(&main);
        Ok(main)
    }

    /// A chain by its name: main, or a service that main knows.
    pub(crate) async fn chain(&self, name: &ChainName) -> Result<Arc<KnownChain>, NodeError> {
        let main = self.main().await?;
        if *name == main.name {
            return Ok(main);
        }
        if let Some(known) = self.known(name) {
            return Ok(known);
        }
        let found = self.genesis(name, |chain| match &chain.genesis.role {
            Role::Service { main: of } if of.genesis == main.hash => Ok(()),
            _ => Err(format!("its `{name}` is no service of this main chain")),
        });
        let found = found.await?;
        let on_main = self.service(&found.hash).await?;
        if on_main.value.name != name.0 {
            return Err(NodeError::Silent(format!(
                "main knows `{name}` as `{}`",
                on_main.value.name
            )));
        }
        self.note_known(&found);
        Ok(found)
    }

    /// The genesis that a node gives under a name, if it passes `check`.
    async fn genesis(
        &self,
        name: &ChainName,
        check: impl Fn(&KnownChain) -> Result<(), String>,
    ) -> Result<Arc<KnownChain>, NodeError> {
        let mut problems = Problems::default();
        for (_, node) in self.order() {
            let value = match node.client.genesis(name.clone()).await {
                Ok(value) => value,
                Err(error) => {
                    problems.add(node.failed(&error));
                    continue;
                }
            };
            let read = || {
                let genesis: Genesis =
                    serde_json::from_value(value).map_err(|error| error.to_string())?;
                genesis.validate().map_err(|error| error.to_string())?;
                let chain = KnownChain {
                    name: name.clone(),
                    hash: genesis.hash(),
                    genesis,
                };
                check(&chain).map(|()| chain)
            };
            match read() {
                Ok(chain) if chain.genesis.name == name.0 => return Ok(Arc::new(chain)),
                Ok(_) => problems.add(node.false_answer("a genesis of another name".to_owned())),
                Err(problem) => problems.add(node.false_answer(problem)),
            }
        }
        Err(problems.into_error())
    }

    /// The newest of what the nodes show under a key of a chain's state.
    async fn newest<T: Record>(
        &self,
        chain: &Arc<KnownChain>,
        subject: &StateSubject,
    ) -> Result<Shown<T>, NodeError> {
        let (mut newest, mut problems): (Option<Shown<T>>, _) = (None, Problems::default());
        for (place, node) in self.order() {
            let proof = node.client.prove(chain.name.clone(), subject.clone()).await;
            let shown = match proof {
                Ok(proof) => match shown(chain, subject, &proof) {
                    Some(shown) => shown,
                    None => {
                        let problem = "it shows what the chain's validators have not signed";
                        problems.add(node.false_answer(problem.to_owned()));
                        continue;
                    }
                },
                Err(error) => {
                    problems.add(node.failed(&error));
                    continue;
                }
            };
            if shown.is_stale() {
                let age_s = shown.age_ms / 1_000;
                node.note_problem(format!(
                    "its newest block of `{}` is {age_s} s old, or the clock here is wrong",
                    chain.name
                ));
            } else {
                node.note_answer();
                self.0.first.store(place, Ordering::Relaxed);
                return Ok(shown);
            }
            if newest
                .as_ref()
                .is_none_or(|newest| newest.age_ms > shown.age_ms)
            {
                newest = Some(shown);
            }
        }
        newest.ok_or_else(|| problems.into_error())
    }

    /// All nodes with their places, the one that answered last first.
    fn order(&self) -> impl Iterator<Item = (usize, &NodeAt)> {
        let nodes = self.0.nodes.iter().enumerate();
        let first = self.0.first.load(Ordering::Relaxed);
        nodes.clone().skip(first).chain(nodes.take(first))
    }

    fn known(&self, name: &ChainName) -> Option<Arc<KnownChain>> {
        let chains = self.0.chains.lock().unwrap_or_else(PoisonError::into_inner);
        chains.get(name).cloned()
    }

    fn note_known(&self, chain: &Arc<KnownChain>) {
        let mut chains = self.0.chains.lock().unwrap_or_else(PoisonError::into_inner);
        // Main lets a name be taken again when a service is dead and empty.
        if chains.len() <= SERVICES_MAX {
            chains.insert(chain.name.clone(), Arc::clone(chain));
        }
    }
}

impl NodeAt {
    fn note_answer(&self) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        *noted = (Some(now_ms()), None);
    }

    fn note_problem(&self, problem: String) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.1 = Some(problem);
    }

    /// A refusal is an answer, though no proof of anything.
    fn failed(&self, error: &ClientError) -> NodeError {
        match refusal(error) {
            Some(refusal) => NodeError::Refused(refusal),
            None => self.false_answer(error.to_string()),
        }
    }

    fn false_answer(&self, problem: String) -> NodeError {
        let told = format!("{}: {problem}", self.url);
        self.note_problem(problem);
        NodeError::Silent(told)
    }
}

/// What went wrong at each node.
#[derive(Default)]
struct Problems {
    refused: Option<ApiError>,
    silent: Vec<String>,
}

impl Problems {
    fn add(&mut self, error: NodeError) {
        match error {
            NodeError::Refused(refusal) => {
                self.refused.get_or_insert(refusal);
            }
            NodeError::Silent(problem) => self.silent.push(problem),
        }
    }

    /// A refusal says more than silence.
    fn into_error(self) -> NodeError {
        match self.refused {
            Some(refusal) => NodeError::Refused(refusal),
            None => NodeError::Silent(self.silent.join("; ")),
        }
    }
}

/// What a proof shows, if it holds.
fn shown<T: Record>(
    chain: &Arc<KnownChain>,
    subject: &StateSubject,
    proof: &StateProof,
) -> Option<Shown<T>> {
    let key = subject_key(subject, &chain.genesis.role)?;
    let validators = &chain.genesis.validators;
    let proved = EngineVerifier.prove_value(&chain.hash, validators, &key, &proof.proof.0);
    let (header, bytes) = proved?;
    let age_ms = now_ms().saturating_sub(header.time_ms());
    let blocks = match is_stale(&chain.genesis, age_ms) {
        true => age_ms / chain.genesis.block_interval_ms.max(1),
        false => 0,
    };
    Some(Shown {
        chain: Arc::clone(chain),
        value: T::from_bytes(&bytes).ok()?,
        height: header.height().saturating_add(blocks),
        age_ms,
    })
}

fn is_stale(genesis: &Genesis, age_ms: u64) -> bool {
    let blocks_ms = genesis.block_interval_ms.saturating_mul(STALE_BLOCKS);
    age_ms > STALE_MS.max(blocks_ms)
}
