//! The other processes, as control talks to them: connected when needed, reconnected when they
//! come back, and never waited for longer than a deadline.

use std::{
    error::Error,
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use tarpc::{
    client::{NewClient, RpcError},
    context,
};
use tokio::sync::{Mutex, Notify};
use topnet_api::{
    ApiError, ConnectError, DataplaneClient, MeteringClient, SettlementClient, SocketName, connect,
};
use topnet_config::Process;

/// Requests to one process that may wait at once; more are refused by waiting in line.
const PENDING_REQUESTS_MAX: usize = 256;
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The error's code if a process cannot be connected to at all.
pub(crate) const UNREACHABLE: &str = "process_unreachable";

/// All of them.
#[derive(Debug)]
pub struct Processes {
    /// The fast path.
    pub dataplane: Peer<DataplaneClient>,
    /// The payee.
    pub metering: Peer<MeteringClient>,
    /// The chains.
    pub settlement: Peer<SettlementClient>,
}

impl Processes {
    /// Those whose sockets are in `runtime_dir`. Nothing is connected yet.
    pub fn below(runtime_dir: &Path) -> Self {
        Self {
            dataplane: Peer::new(
                Process::Dataplane,
                SocketName::Dataplane.below(runtime_dir),
                |path, lost| {
                    Box::pin(async move {
                        let new = DataplaneClient::new(limits(), connect(&path).await?);
                        Ok(until_lost(new, lost))
                    })
                },
            ),
            metering: Peer::new(
                Process::Metering,
                SocketName::Metering.below(runtime_dir),
                |path, lost| {
                    Box::pin(async move {
                        let new = MeteringClient::new(limits(), connect(&path).await?);
                        Ok(until_lost(new, lost))
                    })
                },
            ),
            settlement: Peer::new(
                Process::Settlement,
                SocketName::Settlement.below(runtime_dir),
                |path, lost| {
                    Box::pin(async move {
                        let new = SettlementClient::new(limits(), connect(&path).await?);
                        Ok(until_lost(new, lost))
                    })
                },
            ),
        }
    }
}

type Connector<C> = fn(PathBuf, Arc<Notify>) -> BoxFuture<'static, Result<C, ConnectError>>;

/// The client of a new connection, which says so when that is gone.
fn until_lost<C, D, E>(new: NewClient<C, D>, lost: Arc<Notify>) -> C
where
    D: Future<Output = Result<(), E>> + Send + 'static,
{
    let NewClient { client, dispatch } = new;
    tokio::spawn(async move {
        // Whoever asked hears of the error by his answer.
        let _ = dispatch.await;
        lost.notify_one();
    });
    client
}

/// One other process.
pub struct Peer<C> {
    process: Process,
    path: PathBuf,
    connector: Connector<C>,
    client: Mutex<Option<C>>,
    lost: Arc<Notify>,
}

impl<C> std::fmt::Debug for Peer<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("process", &self.process)
            .field("path", &self.path)
            .finish()
    }
}

impl<C: Clone> Peer<C> {
    fn new(process: Process, path: PathBuf, connector: Connector<C>) -> Self {
        Self {
            process,
            path,
            connector,
            client: Mutex::new(None),
            lost: Arc::default(),
        }
    }

    /// Waits until a connection is gone, and most likely the process with it. One that went while
    /// nobody waited counts.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Sends a request. It may be sent twice, if the process went away after the last one:
    /// every request between processes may be repeated.
    pub async fn ask<T, F>(&self, request: impl Fn(C, context::Context) -> F) -> Result<T, ApiError>
    where
        F: Future<Output = Result<T, RpcError>>,
    {
        let kept = self.client.lock().await.clone();
        if let Some(client) = kept {
            match request(client, within_timeout()).await {
                Ok(answer) => return Ok(answer),
                Err(RpcError::Server(error)) => return Err(self.failed(&error.to_string())),
                Err(RpcError::DeadlineExceeded) => {
                    self.forget().await;
                    return Err(self.failed("it did not answer in time"));
                }
                // The connection is gone, and with it perhaps the process that it led to.
                Err(RpcError::Shutdown | RpcError::Send(_) | RpcError::Channel(_)) => {
                    self.forget().await;
                }
            }
        }
        let client = self.connect().await?;
        let answer = request(client, within_timeout()).await;
        if answer.is_err() {
            self.forget().await;
        }
        answer.map_err(|error| self.failed(&error.to_string()))
    }

    async fn connect(&self) -> Result<C, ApiError> {
        let mut kept = self.client.lock().await;
        if let Some(client) = kept.as_ref() {
            return Ok(client.clone());
        }
        let client = (self.connector)(self.path.clone(), Arc::clone(&self.lost))
            .await
            .map_err(|error| self.unreachable(&error))?;
        *kept = Some(client.clone());
        Ok(client)
    }

    async fn forget(&self) {
        *self.client.lock().await = None;
    }

    fn unreachable(&self, error: &ConnectError) -> ApiError {
        let reason = error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string);
        ApiError::new(
            UNREACHABLE,
            format!(
                "{} does not answer at {}: {reason}",
                self.process,
                self.path.display()
            ),
            format!(
                "start it with `topnet run {}`, or wait until it is back",
                self.process
            ),
        )
    }

    fn failed(&self, error: &str) -> ApiError {
        ApiError::new(
            "process_failed",
            format!(
                "{} at {} failed a request: {error}",
                self.process,
                self.path.display()
            ),
            format!(
                "look at the log of topnet-{}; the request may be repeated",
                self.process
            ),
        )
    }
}

fn limits() -> tarpc::client::Config {
    let mut config = tarpc::client::Config::default();
    config.max_in_flight_requests = PENDING_REQUESTS_MAX;
    config.pending_request_buffer = PENDING_REQUESTS_MAX;
    config
}

fn within_timeout() -> context::Context {
    let mut context = context::current();
    context.deadline = Instant::now() + ANSWER_TIMEOUT;
    context
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{net::UnixListener, time::timeout};

    /// A data plane that comes back at once has no sessions, and nobody waits for a look that is due
    /// in a second.
    #[tokio::test]
    async fn the_end_of_a_connection_is_heard_of_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let processes = Processes::below(dir.path());
        let path = SocketName::Dataplane.below(dir.path());
        let listener = UnixListener::bind(&path).unwrap();
        let peer = &processes.dataplane;
        let asked = peer.ask(|client, context| async move { client.status(context).await });
        let ended = async {
            let (connection, _) = listener.accept().await.unwrap();
            // It is there, and then it is not.
            let early = timeout(Duration::from_millis(50), peer.lost()).await;
            assert!(early.is_err(), "nothing was lost yet");
            drop(connection);
        };
        let (answer, ()) = tokio::join!(asked, ended);
        assert!(answer.is_err());
        let heard = timeout(Duration::from_millis(500), peer.lost()).await;
        assert!(heard.is_ok(), "it is not heard of");
    }
}
