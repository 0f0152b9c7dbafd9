//! The nodes that a tower asks and submits to, none of which it believes.
//!
//! Whatever money depends on is read out of proofs: a value, its way up to the state root of a
//! header, and the certificate of the chain's validators. Main's genesis is known by its hash. A
//! service's is known by its own hash, which main's proved state must have. So a node can be silent
//! or show what was true some time ago, and nothing else; a header's time says how old it is. Each
//! answer is checked before the next node would be asked, so one that lies costs time alone. Who
//! was slow, silent or wrong is asked last for a while, and nobody waits for the rest once one node
//! has taken a transaction.
//!
//! Main gives a dead service's name to another once it is empty, so chains are known by their
//! hash, and what a node proves under a name is any of those of that name.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use topnet_account::{ChannelId, Hash};
use topnet_api::{ChainName, HexBytes, NodeStatus, RecoverySubject, StateProof, StateSubject};
use topnet_ledger::{
    Genesis, Transaction,
    genesis::{Role, SERVICES_MAX},
    machine::{Key, Verifier as _},
    state::{Channel, Record, Service, channel_key, main_link_key, subject_key, totals_key},
    transaction::{Body, Recovery},
};
use topnet_light::EngineVerifier;

use crate::{
    node::{NOTHING_TO_RECOVER, NodeAt, NodeError, Problems, STATE_ABSENT},
    now_ms, uptime_ms,
};

/// A state that is older is not what the chain's is now, if its blocks do not take longer.
const STALE_MS: u64 = 15_000;
const STALE_BLOCKS: u64 = 20;

/// What came of taking a channel out of a dead service.
pub(crate) enum Recovered {
    /// A node has taken a transaction that is a step of it.
    Submitted,
    /// Every node says that there is nothing to take; nobody can prove it.
    Nothing,
}

/// A chain, by its genesis.
#[derive(Debug)]
pub(crate) struct KnownChain {
    pub name: ChainName,
    pub genesis: Genesis,
    pub hash: Hash,
    head: Mutex<Head>,
}

/// The newest header that a node ever showed of a chain, so that none shows an old one as new,
/// whatever the clock here says.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    height: u64,
    time_ms: u64,
    /// The uptime when it was shown first.
    shown_ms: u64,
}

impl Head {
    /// Takes note of a header that is shown now.
    fn note(&mut self, height: u64, time_ms: u64, uptime_ms: u64) {
        if height > self.height {
            *self = Self {
                height,
                time_ms,
                shown_ms: uptime_ms,
            };
        }
    }

    /// How old a header of that time is: by the clock, or by the header if that is later.
    fn age_ms(&self, time_ms: u64, clock_ms: u64, uptime_ms: u64) -> u64 {
        let since_ms = uptime_ms.saturating_sub(self.shown_ms);
        let by_head_ms = match self.height {
            0 => 0,
            _ => self.time_ms.saturating_add(since_ms),
        };
        clock_ms.max(by_head_ms).saturating_sub(time_ms)
    }
}

impl KnownChain {
    fn of(genesis: Genesis) -> Self {
        Self {
            head: Mutex::default(),
            name: ChainName(genesis.name.clone()),
            hash: genesis.hash(),
            genesis,
        }
    }
}

/// What a chain's validators have signed.
#[derive(Clone, Debug)]
pub(crate) struct Shown<T> {
    pub chain: Arc<KnownChain>,
    pub value: T,
    /// The header's height.
    pub proved_height: u64,
    /// The chain's height: that of the newest header that was ever shown; if this one is stale, at
    /// least with the blocks that have had time since.
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

/// All nodes. Clones are the same.
#[derive(Clone)]
pub(crate) struct Nodes(Arc<Inner>);

struct Inner {
    nodes: Vec<Arc<NodeAt>>,
    /// The place of the node that gave the last good answer; it is asked first.
    first: AtomicUsize,
    main_genesis: Hash,
    /// Chains whose genesis was checked, by its hash; only those that main knows, so few.
    chains: Mutex<BTreeMap<Hash, Arc<KnownChain>>>,
}

impl Nodes {
    /// Nodes at `urls`, on the main chain of this genesis. Nothing is connected yet.
    pub(crate) fn new(urls: &[String], main_genesis: Hash) -> Result<Self, String> {
        Ok(Self(Arc::new(Inner {
            nodes: urls
                .iter()
                .map(|url| NodeAt::new(url).map(Arc::new))
                .collect::<Result<_, String>>()?,
            first: AtomicUsize::new(0),
            main_genesis,
            chains: Mutex::default(),
        })))
    }

    /// How each stands.
    pub(crate) fn statuses(&self) -> Vec<NodeStatus> {
        self.0.nodes.iter().map(|node| node.status()).collect()
    }

    /// A channel wherever it is, for whoever does not know where.
    pub(crate) async fn find(&self, id: &ChannelId) -> Result<Shown<Channel>, NodeError> {
        let mut problems = Problems::default();
        for (_, node) in self.order() {
            // Which chain to look on is all that is taken from this.
            match node.channel(id).await {
                Ok(view) => match self.channel(&view.chain, None, id).await {
                    Ok(shown) => return Ok(shown),
                    Err(error) => problems.add(error),
                },
                Err(error) => problems.add(error),
            }
        }
        Err(problems.into_error())
    }

    /// A channel on a chain of that name, of that genesis if one is named, as the newest state has
    /// it that any node shows; the first that is not stale is new enough.
    pub(crate) async fn channel(
        &self,
        chain: &ChainName,
        genesis: Option<&Hash>,
        id: &ChannelId,
    ) -> Result<Shown<Channel>, NodeError> {
        let subject = StateSubject::Channel(*id);
        self.newest(chain, genesis, &subject).await
    }

    /// What main knows of a service.
    pub(crate) async fn service(&self, genesis: &Hash) -> Result<Shown<Service>, NodeError> {
        let subject = StateSubject::Service(*genesis);
        self.newest(&ChainName::main(), None, &subject).await
    }

    /// Hands a transaction to every node: one that keeps it to itself holds up nothing, nor does
    /// one that is slow, because this returns once one has taken it. An error if none takes it.
    pub(crate) async fn submit(
        &self,
        chain: &KnownChain,
        transaction: &[u8],
    ) -> Result<(), NodeError> {
        let nodes = &self.0.nodes;
        let (sender, mut answers) = mpsc::channel(nodes.len().max(1));
        let mut problems = Problems::default();
        for node in nodes {
            let Some(handing) = node.hand(chain.name.clone(), transaction.to_vec()) else {
                // Whoever repeats it hands it in when there is a place.
                let told = format!("{}: it takes transactions too slowly", node.url);
                problems.add(NodeError::Silent(told));
                continue;
            };
            let sender = sender.clone();
            tokio::spawn(async move {
                let answer = handing.await;
                // Nobody may wait for it any more.
                let _ = sender.send(answer).await;
            });
        }
        drop(sender);
        while let Some(answer) = answers.recv().await {
            match answer {
                Ok(()) => return Ok(()),
                Err(error) => problems.add(error),
            }
        }
        Err(problems.into_error())
    }

    /// True once main has accepted what the chain was at that height, so that nothing undoes it.
    pub(crate) async fn is_accepted(
        &self,
        chain: &KnownChain,
        height: u64,
    ) -> Result<bool, NodeError> {
        if chain.hash == self.0.main_genesis {
            return Ok(true);
        }
        let service = self.service(&chain.hash).await?;
        Ok(service.value.height >= height)
    }

    /// Has main take a channel out of a service that it holds dead, or begin with that if nobody
    /// has. An error if no node gives a transaction that proves it, or none takes it.
    pub(crate) async fn recover(
        &self,
        genesis: &Hash,
        service: &Service,
        id: &ChannelId,
    ) -> Result<Recovered, NodeError> {
        let main = self.main().await?;
        let name = ChainName(service.name.clone());
        let subject = match service.recovery {
            Some(_) => RecoverySubject::Channel(*id),
            None => RecoverySubject::Begin,
        };
        let (mut problems, mut nothing) = (Problems::default(), 0);
        for (_, node) in self.order() {
            match node.recovery(&name, &subject).await {
                // It is nobody's money that would be lost, but nobody's errand either.
                Ok(HexBytes(bytes)) if recovers(&bytes, &main.hash, genesis, service, &subject) => {
                    match self.submit(&main, &bytes).await {
                        Ok(()) => return Ok(Recovered::Submitted),
                        Err(error) => problems.add(error),
                    }
                }
                Ok(_) => {
                    let problem = "it gave another transaction than the recovery asked for";
                    problems.add(node.false_answer(problem.to_owned()));
                }
                Err(error) => {
                    nothing += usize::from(error.is(NOTHING_TO_RECOVER));
                    problems.add(error);
                }
            }
        }
        if nothing == self.0.nodes.len() {
            return Ok(Recovered::Nothing);
        }
        Err(problems.into_error())
    }

    /// The main chain.
    pub(crate) async fn main(&self) -> Result<Arc<KnownChain>, NodeError> {
        let expected = self.0.main_genesis;
        if let Some(known) = self.known(&expected) {
            return Ok(known);
        }
        let mut problems = Problems::default();
        for (_, node) in self.order() {
            let genesis = node.genesis(&ChainName::main()).await;
            match genesis.map(KnownChain::of) {
                Ok(chain) if chain.hash == expected => {
                    let main = Arc::new(chain);
                    self.note_known(&main);
                    return Ok(main);
                }
                Ok(chain) => problems.add(node.false_answer(format!(
                    "its main chain is {}, and [tower] main_genesis names {expected}",
                    chain.hash
                ))),
                Err(error) => problems.add(error),
            }
        }
        Err(problems.into_error())
    }

    /// The service that one node has under a name, believed once main's proved state knows it;
    /// `None` if that is known already.
    async fn learn(
        &self,
        node: &NodeAt,
        name: &ChainName,
    ) -> Result<Option<Arc<KnownChain>>, NodeError> {
        let main = self.main().await?;
        let found = KnownChain::of(node.genesis(name).await?);
        if self.known(&found.hash).is_some() {
            return Ok(None);
        }
        let told = match &found.genesis.role {
            Role::Service { main: of } if of.genesis == main.hash => {
                match self.on_main(&found.hash).await {
                    Ok(shown) => Some(shown.value.name),
                    Err(error) if error.is(STATE_ABSENT) => None,
                    Err(error) => return Err(error),
                }
            }
            Role::Service { .. } | Role::Main { .. } => None,
        };
        if told.as_ref() != Some(&name.0) {
            let problem = format!("its `{name}` is no service of this main chain");
            return Err(node.false_answer(problem));
        }
        let found = Arc::new(found);
        self.note_known(&found);
        Ok(Some(found))
    }

    /// The same as [`Self::service`], whose way to a proof of main's never comes back here.
    fn on_main<'a>(
        &'a self,
        genesis: &'a Hash,
    ) -> BoxFuture<'a, Result<Shown<Service>, NodeError>> {
        Box::pin(self.service(genesis))
    }

    /// The newest of what the nodes show under a key of a chain's state.
    async fn newest<T: Record>(
        &self,
        name: &ChainName,
        genesis: Option<&Hash>,
        subject: &StateSubject,
    ) -> Result<Shown<T>, NodeError> {
        let (mut newest, mut problems): (Option<Shown<T>>, _) = (None, Problems::default());
        for (place, node) in self.order() {
            let shown = match node.prove(name, subject).await {
                Ok(proof) => self.read(node, name, subject, &proof).await,
                Err(error) => Err(error),
            };
            let shown = match shown {
                Ok(shown) => shown,
                Err(error) => {
                    problems.add(error);
                    continue;
                }
            };
            if genesis.is_some_and(|genesis| *genesis != shown.chain.hash) {
                let other = format!("{}: its `{name}` is another chain by now", node.url);
                problems.add(NodeError::Silent(other));
                continue;
            }
            if shown.is_stale() {
                let age_s = shown.age_ms / 1_000;
                node.note_problem(format!(
                    "its newest block of `{}` is {age_s} s old, or the clock here is wrong",
                    shown.chain.name
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

    /// What a node's proof shows of a chain of that name, if it holds.
    async fn read<T: Record>(
        &self,
        node: &NodeAt,
        name: &ChainName,
        subject: &StateSubject,
        proof: &StateProof,
    ) -> Result<Shown<T>, NodeError> {
        let is_main = *name == ChainName::main();
        let known = match is_main {
            true => vec![self.main().await?],
            false => self.known_as(name),
        };
        if let Some(shown) = known.iter().find_map(|chain| shown(chain, subject, proof)) {
            return Ok(shown);
        }
        let learnt = match is_main {
            true => None,
            false => self.learn(node, name).await?,
        };
        let shown = learnt.and_then(|chain| shown(&chain, subject, proof));
        shown.ok_or_else(|| {
            let problem = "it shows what the chain's validators have not signed";
            node.false_answer(problem.to_owned())
        })
    }

    /// All nodes with their places: the one that answered last first, those that were slow, silent
    /// or wrong lately behind the others.
    fn order(&self) -> Vec<(usize, &NodeAt)> {
        let nodes = self.0.nodes.iter().map(Arc::as_ref).enumerate();
        let first = self.0.first.load(Ordering::Relaxed);
        let mut order: Vec<_> = nodes.clone().skip(first).chain(nodes.take(first)).collect();
        order.sort_by_key(|(_, node)| node.is_last());
        order
    }

    fn known(&self, genesis: &Hash) -> Option<Arc<KnownChain>> {
        self.chains().get(genesis).cloned()
    }

    fn known_as(&self, name: &ChainName) -> Vec<Arc<KnownChain>> {
        let chains = self.chains();
        let of_name = chains.values().filter(|chain| chain.name == *name);
        of_name.cloned().collect()
    }

    fn note_known(&self, chain: &Arc<KnownChain>) {
        let mut chains = self.chains();
        // Dead services leave their place on main to others; whoever falls out here is learnt again.
        if chains.len() > SERVICES_MAX {
            let main = self.0.main_genesis;
            let dropped = chains.keys().find(|hash| **hash != main).copied();
            dropped.map(|hash| chains.remove(&hash));
        }
        chains.insert(chain.hash, Arc::clone(chain));
    }

    fn chains(&self) -> MutexGuard<'_, BTreeMap<Hash, Arc<KnownChain>>> {
        self.0.chains.lock().unwrap_or_else(PoisonError::into_inner)
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
    let head = {
        let mut head = chain.head.lock().unwrap_or_else(PoisonError::into_inner);
        head.note(header.height(), header.time_ms(), uptime_ms());
        *head
    };
    let age_ms = head.age_ms(header.time_ms(), now_ms(), uptime_ms());
    let blocks = match is_stale(&chain.genesis, age_ms) {
        true => age_ms / chain.genesis.block_interval_ms.max(1),
        false => 0,
    };
    Some(Shown {
        chain: Arc::clone(chain),
        value: T::from_bytes(&bytes).ok()?,
        proved_height: header.height(),
        height: header.height().saturating_add(blocks).max(head.height),
        age_ms,
    })
}

/// True if a transaction takes the subject out of the service as main's record of it says.
fn recovers(
    bytes: &[u8],
    main: &Hash,
    genesis: &Hash,
    service: &Service,
    subject: &RecoverySubject,
) -> bool {
    let Ok(transaction) = Transaction::from_bytes(bytes) else {
        return false;
    };
    let Body::Recover(recover) = &transaction.body else {
        return false;
    };
    let is_proved = |key: &Key, proof: &[u8]| {
        let value = EngineVerifier.state_value(&service.state_root, key, proof);
        value.is_some()
    };
    let is_asked = match (&recover.claim, subject) {
        (Recovery::Channel { channel, proof }, RecoverySubject::Channel(id)) => {
            channel == id && is_proved(&channel_key(id), proof)
        }
        // Of a service that main never heard of there is nothing to prove.
        (Recovery::Begin { link, totals }, RecoverySubject::Begin) => {
            service.height == 0
                || (is_proved(&main_link_key(), link) && is_proved(&totals_key(), totals))
        }
        _ => false,
    };
    is_asked && transaction.chain == *main && recover.service == *genesis
}

fn is_stale(genesis: &Genesis, age_ms: u64) -> bool {
    let blocks_ms = genesis.block_interval_ms.saturating_mul(STALE_BLOCKS);
    age_ms > STALE_MS.max(blocks_ms)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{SocketAddr, TcpListener},
        sync::atomic::AtomicUsize,
    };

    use jsonrpsee::{RpcModule, server::Server};
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::node::{REQUEST_TIMEOUT, SUBMISSIONS_MAX};

    /// Takes connections and says nothing, like a machine whose power is off.
    fn silent() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn chain() -> KnownChain {
        let genesis = Genesis {
            name: "vpn".to_owned(),
            salt: Hash::ZERO,
            block_interval_ms: 100,
            epoch_blocks: 10,
            validators: Vec::new(),
            rules: topnet_ledger::genesis::Rules::default(),
            role: Role::Main {
                services: Vec::new(),
            },
            balances: BTreeMap::new(),
        };
        KnownChain::of(genesis)
    }

    #[tokio::test]
    async fn nobody_waits_for_a_silent_node_when_another_has_taken_it() {
        let server = Server::builder().build("127.0.0.1:0").await.unwrap();
        let alive = server.local_addr().unwrap();
        let mut module = RpcModule::new(Arc::new(AtomicUsize::new(0)));
        let submit = |_: jsonrpsee::types::Params<'_>, taken: &Arc<AtomicUsize>, _: &_| {
            taken.fetch_add(1, Ordering::SeqCst);
            json!({ "id": format!("0x{}", "11".repeat(32)) })
        };
        module.register_method("submit", submit).unwrap();
        let _server = server.start(module);
        let (_listener, dead) = silent();
        let urls = [dead, alive].map(|address| format!("http://{address}"));
        let nodes = Nodes::new(&urls, Hash::ZERO).unwrap();

        let began = Instant::now();
        // More than may wait for the silent one.
        for _ in 0..2 * SUBMISSIONS_MAX {
            nodes.submit(&chain(), &[1]).await.unwrap();
        }
        assert!(began.elapsed() < REQUEST_TIMEOUT);
        assert_eq!(nodes.0.nodes[0].places(), 0);
        assert_eq!(nodes.0.nodes[1].places(), SUBMISSIONS_MAX);
    }

    /// The clock here is an hour slow, then an hour fast.
    #[test]
    fn an_old_header_is_old_whatever_the_clock_says() {
        const HOUR_MS: u64 = 3_600_000;
        let now_ms = 100 * HOUR_MS;
        let (slow_ms, fast_ms) = (now_ms - HOUR_MS, now_ms + HOUR_MS);
        let mut head = Head::default();
        assert_eq!(head.age_ms(now_ms, slow_ms, 5), 0, "nothing else is known");
        head.note(7, now_ms, 5);
        assert_eq!(head.age_ms(now_ms - 20_000, slow_ms, 5), 20_000);
        assert_eq!(head.age_ms(now_ms, slow_ms, 20_005), 20_000, "time goes on");
        head.note(6, now_ms - 20_000, 6);
        assert_eq!((head.height, head.time_ms), (7, now_ms));
        assert_eq!(head.age_ms(now_ms, fast_ms, 5), HOUR_MS);
    }

    #[test]
    fn a_node_that_failed_is_asked_last_for_a_while() {
        let urls = ["http://a", "http://b", "http://c"].map(str::to_owned);
        let nodes = Nodes::new(&urls, Hash::ZERO).unwrap();
        let order = || -> Vec<usize> { nodes.order().iter().map(|(place, _)| *place).collect() };
        nodes.0.first.store(1, Ordering::Relaxed);
        assert_eq!(order(), [1, 2, 0]);
        nodes.0.nodes[1].note_problem("silent".to_owned());
        assert_eq!(order(), [2, 0, 1]);
        // When all have failed, none is worse than before.
        nodes.0.nodes[0].note_problem("silent".to_owned());
        nodes.0.nodes[2].note_problem("silent".to_owned());
        assert_eq!(order(), [1, 2, 0]);
        nodes.0.nodes[0].forgive();
        assert_eq!(order(), [0, 1, 2]);
    }
}
