//! One node: what a tower asks of it, how long it takes, and what was wrong with it last.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jsonrpsee::{
    core::ClientError,
    http_client::{HttpClient, HttpClientBuilder},
    proc_macros::rpc,
};
use serde_json::Value;
use tokio::{sync::Semaphore, time::Instant};
use topnet_account::ChannelId;
use topnet_api::{
    ApiError, ChainName, ChannelView, HexBytes, NodeStatus, RecoverySubject, StateProof,
    StateSubject, SubmittedTransaction,
};
use topnet_ledger::Genesis;

use crate::{now_ms, rpc::refusal};

/// A node that is slower is one that does not answer.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A node that takes longer to answer is slow.
const SLOW: Duration = Duration::from_secs(1);
/// A node that was slow, silent or wrong is asked last for so long.
const LAST: Duration = Duration::from_secs(60);
/// Transactions that are being handed to one node at one time.
pub(crate) const SUBMISSIONS_MAX: usize = 64;
/// What a node answers that knows nothing under a key.
pub(crate) const STATE_ABSENT: &str = "state_absent";
/// What one answers that finds no money of a dead service's there.
pub(crate) const NOTHING_TO_RECOVER: &str = "nothing_to_recover";
/// A genesis names every account that main begins with.
const ANSWER_BYTES_MAX: u32 = 16 << 20;

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

impl NodeError {
    /// True if a node refused it by that code.
    pub(crate) fn is(&self, code: &str) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.code == code)
    }
}

/// A node at an address.
pub(crate) struct NodeAt {
    pub url: String,
    client: HttpClient,
    noted: Mutex<Noted>,
    submissions: Arc<Semaphore>,
}

/// What is noted of a node.
#[derive(Default)]
struct Noted {
    answered_ms: Option<u64>,
    problem: Option<String>,
    /// Until then it is asked last.
    last_until: Option<Instant>,
}

impl Noted {
    fn ask_last(&mut self) {
        self.last_until = Some(Instant::now() + LAST);
    }
}

impl NodeAt {
    pub(crate) fn new(url: &str) -> Result<Self, String> {
        let client = HttpClientBuilder::default()
            .request_timeout(REQUEST_TIMEOUT)
            .max_response_size(ANSWER_BYTES_MAX)
            .build(url)
            .map_err(|error| format!("{url}: {error}"))?;
        Ok(Self {
            url: url.to_owned(),
            client,
            noted: Mutex::default(),
            submissions: Arc::new(Semaphore::new(SUBMISSIONS_MAX)),
        })
    }

    pub(crate) fn status(&self) -> NodeStatus {
        let noted = self.noted();
        NodeStatus {
            url: self.url.clone(),
            answered_ms: noted.answered_ms,
            problem: noted.problem.clone(),
        }
    }

    /// The genesis that it gives under a name.
    pub(crate) async fn genesis(&self, name: &ChainName) -> Result<Genesis, NodeError> {
        let value = self.timed(self.client.genesis(name.clone())).await?;
        let read = || {
            let genesis: Genesis =
                serde_json::from_value(value).map_err(|error| error.to_string())?;
            genesis.validate().map_err(|error| error.to_string())?;
            match genesis.name == name.0 {
                true => Ok(genesis),
                false => Err("a genesis of another name".to_owned()),
            }
        };
        read().map_err(|problem| self.false_answer(problem))
    }

    pub(crate) async fn channel(&self, id: &ChannelId) -> Result<ChannelView, NodeError> {
        self.timed(self.client.channel(*id)).await
    }

    pub(crate) async fn prove(
        &self,
        chain: &ChainName,
        subject: &StateSubject,
    ) -> Result<StateProof, NodeError> {
        let asked = self.client.prove(chain.clone(), subject.clone());
        self.timed(asked).await
    }

    pub(crate) async fn recovery(
        &self,
        chain: &ChainName,
        subject: &RecoverySubject,
    ) -> Result<HexBytes, NodeError> {
        let asked = self.client.recovery(chain.clone(), subject.clone());
        self.timed(asked).await
    }

    /// Hands it a transaction, for as long as that takes; `None` if it is busy with too many.
    pub(crate) fn hand(
        self: &Arc<Self>,
        chain: ChainName,
        transaction: Vec<u8>,
    ) -> Option<impl Future<Output = Result<(), NodeError>> + Send + use<>> {
        let place = Arc::clone(&self.submissions).try_acquire_owned().ok()?;
        let node = Arc::clone(self);
        Some(async move {
            let _place = place;
            let handing = node.client.submit(chain, HexBytes(transaction));
            node.timed(handing).await.map(|_| ())
        })
    }

    /// Its answer, unless that is a failure. Whoever takes long is noted.
    async fn timed<T>(
        &self,
        asked: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, NodeError> {
        let began = Instant::now();
        let answer = asked.await;
        if began.elapsed() > SLOW {
            self.noted().ask_last();
        }
        answer.map_err(|error| self.failed(&error))
    }

    pub(crate) fn note_answer(&self) {
        let mut noted = self.noted();
        noted.answered_ms = Some(now_ms());
        noted.problem = None;
    }

    pub(crate) fn note_problem(&self, problem: String) {
        let mut noted = self.noted();
        noted.problem = Some(problem);
        noted.ask_last();
    }

    pub(crate) fn is_last(&self) -> bool {
        let until = self.noted().last_until;
        until.is_some_and(|until| until > Instant::now())
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A refusal is an answer, though no proof of anything.
    fn failed(&self, error: &ClientError) -> NodeError {
        match refusal(error) {
            Some(refusal) => NodeError::Refused(refusal),
            None => self.false_answer(error.to_string()),
        }
    }

    pub(crate) fn false_answer(&self, problem: String) -> NodeError {
        let told = format!("{}: {problem}", self.url);
        self.note_problem(problem);
        NodeError::Silent(told)
    }

    /// How many transactions it can be handed just now.
    #[cfg(test)]
    pub(crate) fn places(&self) -> usize {
        self.submissions.available_permits()
    }

    /// It has been asked last for long enough.
    #[cfg(test)]
    pub(crate) fn forgive(&self) {
        self.noted().last_until = None;
    }
}

/// What went wrong at each node.
#[derive(Default)]
pub(crate) struct Problems {
    refused: Option<ApiError>,
    silent: Vec<String>,
}

impl Problems {
    pub(crate) fn add(&mut self, error: NodeError) {
        match error {
            NodeError::Refused(refusal) => {
                self.refused.get_or_insert(refusal);
            }
            NodeError::Silent(problem) => self.silent.push(problem),
        }
    }

    /// A refusal says more than silence.
    pub(crate) fn into_error(self) -> NodeError {
        match self.refused {
            Some(refusal) => NodeError::Refused(refusal),
            None => NodeError::Silent(self.silent.join("; ")),
        }
    }
}
