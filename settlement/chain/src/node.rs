//! Wires one validator of one chain together on the engine.
//!
//! Network (authenticated, lookup by address) → broadcast buffer and backfill → marshal, which
//! keeps blocks and certificates → stateful, which executes → simplex, which votes. A chain
//! alone in its validator set has the same network with nobody in it: a listener on loopback
//! that admits no one. The simulated network would save that listener, but it is another code
//! path than the one that several validators take.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU64, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use commonware_broadcast::buffered;
use commonware_codec::Encode as _;
use commonware_consensus::{
    marshal::{
        self, Identifier,
        core::{Actor as MarshalActor, Mailbox as MarshalMailbox},
        resolver::p2p as backfill,
        standard::{Deferred, Standard},
    },
    simplex::{
        self,
        config::{Floor, ForwardPolicy, SkipBudget, SkipPolicy},
        elector::RoundRobin,
        scheme::ed25519::Scheme,
    },
    types::{Epoch, FixedEpocher, Height, ViewDelta},
};
use commonware_cryptography::{
    ChaCha20Poly1305, Digested, Digestible as _, Sha256, Signer as _,
    certificate::ConstantProvider, ed25519, sha256::Digest,
};
use commonware_glue::stateful::{
    Config as StatefulConfig, Stateful, SyncPlan,
    db::{DatabaseSet, SyncEngineConfig},
};
use commonware_p2p::{
    Address, AddressableManager as _,
    authenticated::lookup::{self, Network},
    max_message_size,
};
use commonware_parallel::Sequential;
use commonware_runtime::{
    Quota, Supervisor as _,
    buffer::paged::{CacheRef, page_size},
};
use commonware_storage::{archive::prunable, translator::EightCap};
use commonware_stream::{
    cups::{self, Cups},
    sake::{self, Sake},
};
use commonware_utils::{
    NZDuration, NZU32, NZU64, NZUsize, TryFromIterator as _,
    ordered::{Map, Set},
};
use tokio::sync::{mpsc, oneshot, watch};
use topnet_account::Hash;
use topnet_ledger::machine::Key;
use topnet_light::{Proof, StateProof, domain_digest, engine_key_of, hash_of, namespace};
use tracing::info;

use crate::{
    application::{Application, Parts},
    block::Block,
    chain::{
        Chain, ChainParts, FinalBlock, FinalityProof, Proved, ProvedValue, Query, StateView, Tip,
    },
    intake::{Desk, Intake},
    limits::{ARCHIVE_ITEMS_PER_SECTION, NETWORK_DELAY_MAX, QUERIES_MAX},
    machine::AnyMachine,
    mempool::Mempool,
    pace::{Pace, Paced},
    receipts::Receipts,
    runtime::Validator,
    state::{self, Context, Databases, NoStateSync},
};

const MAILBOX: NonZeroUsize = NZUsize!(1_024);
const WRITE_BUFFER: NonZeroUsize = NZUsize!(64 * 1024);
const REPLAY_BUFFER: NonZeroUsize = NZUsize!(1024 * 1024);
/// Pages of the storage's cache, with their checksums as long as those of the disk.
const PAGE_BYTES: NonZeroU16 = page_size(4_096);
/// 32 MiB for each chain.
const PAGES: NonZeroUsize = NZUsize!(8_192);
const VIEW_RETENTION: ViewDelta = ViewDelta::new(64);
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
const FETCH_RETRY: Duration = Duration::from_millis(200);
/// Messages a second from one peer on one channel. Each costs memory at its largest size.
const CHANNEL_RATE: Quota = Quota::per_second(NZU32!(128));
const HANDSHAKE_SYNCHRONY: Duration = Duration::from_secs(5);
const HANDSHAKE_AGE: Duration = Duration::from_secs(10);
const CONNECTION_DOMAIN: &[u8] = b"topnet/p2p/1";

type Blocks = MarshalMailbox<Scheme, Standard<Block>>;

/// A storage cache of a chain's own.
pub(crate) fn page_cache() -> CacheRef {
    CacheRef::new(PAGE_BYTES, PAGES)
}

/// A checked configuration, in the engine's terms.
pub(crate) struct NodeConfig {
    pub name: String,
    pub genesis: Hash,
    pub validators: Vec<Validator>,
    pub committee: Set<ed25519::PublicKey>,
    pub key: ed25519::PrivateKey,
    pub listen: SocketAddr,
    pub block_interval: Duration,
    pub mempool_transactions_max: usize,
    pub halted: bool,
}

/// Runs the node. Its tasks live as long as this future.
pub(crate) async fn run(
    context: Context,
    config: NodeConfig,
    machine: Arc<dyn AnyMachine>,
    ready: oneshot::Sender<Chain>,
) {
    let partition = config.name.clone();
    let page_cache = page_cache();
    let scheme = Scheme::signer(
        &namespace(&config.genesis),
        config.committee.clone(),
        config.key.clone(),
    )
    .expect("this node's key was found among the validators");
    let provider = ConstantProvider::new(scheme.clone());
    let epocher = FixedEpocher::new(NonZeroU64::MAX);
    let genesis_block = genesis_block(&config);
    let genesis_digest = genesis_block.digest();
    let public_key = config.key.public_key();

    let (mut network, oracle) = network(&context, &config);
    let votes = network.register(0, CHANNEL_RATE);
    let certificates = network.register(1, CHANNEL_RATE);
    let resolver = network.register(2, CHANNEL_RATE);
    let backfill_channel = network.register(3, CHANNEL_RATE);
    let broadcast_channel = network.register(4, CHANNEL_RATE);
    network.start();

    let backfill = backfill::init(
        context.child("backfill"),
        backfill::Config {
            public_key: public_key.clone(),
            peer_provider: oracle.clone(),
            blocker: oracle.clone(),
            mailbox_size: MAILBOX,
            fetch_timeout: NZDuration!(FETCH_TIMEOUT),
            fetch_retry_delay: FETCH_RETRY,
            priority_requests: false,
            priority_responses: false,
        },
        backfill_channel,
    );
    let (broadcast, buffer) = buffered::Engine::new(
        context.child("broadcast"),
        buffered::Config {
            public_key,
            mailbox_size: MAILBOX,
            deque_size: 16,
            priority: false,
            codec_config: (),
            peer_provider: oracle.clone(),
            strategy: Sequential,
        },
    );
    broadcast.start(broadcast_channel);

    let certificate_codec = config.committee.len();
    let finalizations = prunable::Archive::init(
        context.child("finalizations"),
        archive(
            &partition,
            "finalizations",
            page_cache.clone(),
            certificate_codec,
        ),
    )
    .await
    .expect("the chain's certificates can be opened");
    let blocks = prunable::Archive::init(
        context.child("blocks"),
        archive(&partition, "blocks", page_cache.clone(), ()),
    )
    .await
    .expect("the chain's blocks can be opened");
    let receipts = Receipts::open(&context, &partition, page_cache.clone()).await;

    let plan = SyncPlan::init(context.child("plan"), format!("{partition}-")).await;
    let genesis_digested = Digested::precomputed(genesis_block.clone(), genesis_digest);
    let (marshal, blocks, floor) = MarshalActor::<_, Standard<Block>, _, _, _, _, _>::init(
        context.child("marshal"),
        finalizations,
        blocks,
        marshal::Config {
            provider: provider.clone(),
            epocher: epocher.clone(),
            start: plan.marshal_start(genesis_digested),
            partition_prefix: format!("{partition}-marshal"),
            mailbox_size: MAILBOX,
            view_retention: VIEW_RETENTION,
            prunable_items_per_section: NZU64!(1_024),
            page_cache: page_cache.clone(),
            replay_buffer: REPLAY_BUFFER,
            key_write_buffer: WRITE_BUFFER,
            value_write_buffer: WRITE_BUFFER,
            block_codec_config: (),
            max_repair: NZUsize!(64),
            max_pending_acks: NZUsize!(16),
            strategy: Sequential,
        },
    )
    .await;

    let mempool = Arc::new(Mempool::new(config.mempool_transactions_max));
    let genesis_state = Arc::new(machine.genesis());
    let (tip, tips) = watch::channel(Tip::of(&genesis_block.header));
    let application = Application::new(Parts {
        chain: config.genesis,
        machine: Arc::clone(&machine),
        genesis_block,
        genesis_state: Arc::clone(&genesis_state),
        mempool: Arc::clone(&mempool),
        receipts: receipts.clone(),
        tip: tip.clone(),
    });
    let (stateful, execution) = Stateful::new(
        context.child("stateful"),
        StatefulConfig {
            application,
            db_config: state::config(&partition, page_cache.clone()),
            provider: (),
            marshal: (blocks.clone(), floor),
            mailbox_size: MAILBOX,
            plan,
            resolvers: NoStateSync,
            sync_config: SyncEngineConfig {
                fetch_batch_size: NZU64!(64),
                apply_batch_size: NZU64!(64),
                max_outstanding_requests: NZUsize!(8),
            },
            prune_config: None,
            strategy: Sequential,
        },
    );
    let paced = Paced::new(execution.clone(), Pace::new(config.block_interval));
    let deferred = Deferred::new(context.child("deferred"), paced, blocks.clone(), epocher);
    marshal.start(execution.clone(), buffer, backfill);
    stateful.start();

    let leader_timeout = 2 * config.block_interval + 3 * NETWORK_DELAY_MAX;
    let certification_timeout = leader_timeout + 2 * NETWORK_DELAY_MAX;
    let simplex = simplex::Engine::new(
        context.child("simplex"),
        simplex::Config {
            scheme,
            elector: RoundRobin::<Sha256>::default(),
            blocker: oracle,
            automaton: deferred.clone(),
            relay: deferred.clone(),
            reporter: deferred,
            strategy: Sequential,
            partition: format!("{partition}-simplex"),
            mailbox_size: MAILBOX,
            epoch: Epoch::zero(),
            floor: Floor::Genesis(genesis_digest),
            replay_buffer: REPLAY_BUFFER,
            write_buffer: WRITE_BUFFER,
            page_cache,
            leader_timeout,
            certification_timeout,
            timeout_retry: leader_timeout,
            view_retention: VIEW_RETENTION,
            skip: SkipPolicy::Enabled {
                timeout: 4 * certification_timeout,
                budget: SkipBudget::Participants,
            },
            fetch_timeout: NZDuration!(FETCH_TIMEOUT),
            fetch_retry_delay: FETCH_RETRY,
            forward: ForwardPolicy::Disabled,
            track_historical_votes: true,
        },
    );
    if !config.halted {
        simplex.start(votes, certificates, resolver);
    }

    let databases = execution.subscribe_databases().await;
    if let Some((_, block)) = blocks.get_anchor().await {
        let recovered = Tip::of(&block.inner().header);
        tip.send_if_modified(|tip| {
            let newer = recovered.height() > tip.height();
            if newer {
                *tip = recovered;
            }
            newer
        });
    }
    info!(chain = %config.name, height = tip.borrow().height(), "the chain runs");
    let (queries, asked) = mpsc::channel(QUERIES_MAX);
    let intake = Intake::start(&Desk {
        chain: config.genesis,
        machine: Arc::clone(&machine),
        mempool: Arc::clone(&mempool),
        queries: queries.clone(),
    })
    .expect("the system lets this process have a few more threads");
    let chain = Chain {
        parts: Arc::new(ChainParts {
            name: config.name,
            genesis: config.genesis,
            validators: config
                .validators
                .iter()
                .map(|validator| validator.key)
                .collect(),
            block_interval: config.block_interval,
            machine,
            mempool,
            intake,
            tip: tips,
            queries,
        }),
    };
    // Whoever launched the chain may have gone; the node runs on until the runtime stops.
    let _ = ready.send(chain);
    Answers {
        blocks,
        databases,
        receipts,
        genesis_state,
        tip,
    }
    .serve(asked)
    .await;
    std::future::pending::<()>().await;
}

/// The block before the first. It is the same on every validator: its leader is the lowest key.
fn genesis_block(config: &NodeConfig) -> Block {
    let leader = config
        .committee
        .get(0)
        .expect("a validator set is not empty")
        .clone();
    let state = <Databases as DatabaseSet<Context>>::initial_sync_targets();
    Block::genesis(config.genesis, leader, state)
}

type Handshake = Cups<Sake<ed25519::PrivateKey>, ChaCha20Poly1305>;

fn network(
    context: &Context,
    config: &NodeConfig,
) -> (
    Network<Context, Handshake>,
    lookup::Oracle<ed25519::PublicKey>,
) {
    let committee = u32::try_from(config.committee.len()).expect("a validator set is small");
    let message_bytes_max = max_message_size(&[
        simplex::max_payload_size::<Scheme, Digest>(committee),
        marshal::max_payload_size::<Standard<Block>, Scheme>(committee, &()),
    ]);
    let handshake = Cups::<_, ChaCha20Poly1305>::new(
        Sake {
            signer: config.key.clone(),
            synchrony_bound: HANDSHAKE_SYNCHRONY,
            max_handshake_age: HANDSHAKE_AGE,
            version: sake::Version::V1,
        },
        cups::Version::V1,
    );
    // A connection belongs to one chain.
    let namespace = domain_digest(CONNECTION_DOMAIN, &[config.genesis.as_ref()]);
    let peers_max =
        NonZeroUsize::new(config.committee.len()).expect("a validator set is not empty");
    let mut settings = lookup::Config::recommended(
        handshake,
        namespace.as_ref(),
        config.listen,
        peers_max,
        message_bytes_max,
        MAILBOX,
    );
    settings.allow_private_ips = true;
    settings.allow_dns = false;
    settings.tracked_peer_sets = NZUsize!(1);
    settings.peer_connection_cooldown = Duration::from_secs(1);
    settings.allowed_handshake_rate_per_ip = Quota::per_second(NZU32!(8));
    let (network, mut oracle) = Network::new(context.child("network"), settings);
    let peers = config.validators.iter().map(|validator| {
        let key = engine_key_of(&validator.key).expect("the validators' keys were checked");
        (key, Address::from(validator.address))
    });
    let peers = Map::try_from_iter(peers).expect("the validators' keys were checked");
    oracle.track(0, peers);
    (network, oracle)
}

fn archive<C>(
    partition: &str,
    name: &str,
    page_cache: CacheRef,
    codec_config: C,
) -> prunable::Config<EightCap, C> {
    prunable::Config {
        translator: EightCap,
        metadata_partition: format!("{partition}-{name}-metadata"),
        key_partition: format!("{partition}-{name}-key"),
        key_page_cache: page_cache,
        value_partition: format!("{partition}-{name}-value"),
        compression: None,
        codec_config,
        items_per_section: ARCHIVE_ITEMS_PER_SECTION,
        key_write_buffer: WRITE_BUFFER,
        value_write_buffer: WRITE_BUFFER,
        replay_buffer: REPLAY_BUFFER,
    }
}

/// Answers what the rest of the process asks, on the engine's own runtime, because only there
/// can its storage be read.
struct Answers {
    blocks: Blocks,
    databases: Databases,
    receipts: Receipts,
    genesis_state: Arc<BTreeMap<Key, Vec<u8>>>,
    tip: watch::Sender<Tip>,
}

impl Answers {
    async fn serve(self, mut asked: mpsc::Receiver<Query>) {
        // An asker that does not wait any more needs no answer.
        while let Some(query) = asked.recv().await {
            match query {
                Query::Block { height, answer } => {
                    let _ = answer.send(self.block(height).await);
                }
                Query::Proof { height, answer } => {
                    let _ = answer.send(self.proof(height).await);
                }
                Query::Value { key, answer } => {
                    let _ = answer.send(self.value(&key).await);
                }
                Query::Read { keys, answer } => {
                    let _ = answer.send(self.read(keys).await);
                }
            }
        }
    }

    async fn block(&self, height: u64) -> Option<FinalBlock> {
        if height > self.tip.borrow().height() {
            return None;
        }
        let block = self
            .blocks
            .get_block(Identifier::Height(Height::new(height)))
            .await?;
        let outcome = self.receipts.at(height).await;
        let Block {
            header,
            transactions,
        } = block.inner();
        // Storage that lost them would make a block look as if it had done nothing.
        assert!(
            outcome.root() == header.receipts_root(),
            "the receipts of block {height} are lost"
        );
        Some(FinalBlock {
            hash: hash_of(&block.digest()),
            header: header.clone(),
            transactions: transactions.clone(),
            receipts: outcome.receipts,
            block_events: outcome.block_events,
        })
    }

    async fn proof(&self, from: u64) -> Option<FinalityProof> {
        let tip = self.tip.borrow().height();
        for height in from..=tip {
            let Some(finalization) = self.blocks.get_finalization(Height::new(height)).await else {
                continue;
            };
            let block = self
                .blocks
                .get_block(Identifier::Height(Height::new(height)))
                .await?;
            let proof = Proof {
                header: block.inner().header.clone(),
                finalization,
            };
            return Some(FinalityProof {
                height,
                bytes: proof.encode().to_vec(),
            });
        }
        None
    }

    async fn value(&self, key: &Key) -> Proved {
        let (height, found) = state::prove(&self.databases, key).await;
        let Some((value, proof)) = found else {
            return Proved::Absent;
        };
        let height = Height::new(height);
        let Some(finalization) = self.blocks.get_finalization(height).await else {
            return Proved::Uncertified;
        };
        let Some(block) = self.blocks.get_block(Identifier::Height(height)).await else {
            return Proved::Uncertified;
        };
        let header = block.inner().header.clone();
        let proof = StateProof {
            block: Proof {
                header,
                finalization,
            },
            value: topnet_light::StateValue { value, proof },
        };
        Proved::Value(ProvedValue {
            height: height.get(),
            bytes: proof.encode().to_vec(),
        })
    }

    async fn read(&self, keys: Vec<Key>) -> StateView {
        let (height, values) = state::read(&self.databases, &keys).await;
        let values = keys
            .into_iter()
            .zip(values)
            .map(|(key, value)| {
                // The genesis state reaches the disk with the first block.
                let value = match height {
                    0 => self.genesis_state.get(&key).cloned(),
                    _ => value,
                };
                (key, value)
            })
            .collect();
        StateView { height, values }
    }
}
