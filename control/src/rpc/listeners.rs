//! The two TCP listeners, and what keeps strangers from holding them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{Either, Ready, ready};
use jsonrpsee::server::{
    BatchRequestConfig, HttpBody, HttpRequest, HttpResponse, PingConfig, Server, ServerConfig,
    ServerHandle, middleware::http::HostFilterLayer,
};
use topnet_config::Control;
use topnet_metrics::MetricsPage;
use tower::{Layer, Service, ServiceBuilder};

use super::MethodTables;
use crate::{
    metrics::{self, LABELLED_MAX},
    provider::Provider,
};

/// Requests in one batch.
const BATCH_MAX: u32 = 32;
/// Whoever connects says something within this time.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Subscriptions of one connection.
const SUBSCRIPTIONS_MAX: u32 = 16;
/// Largest answer.
const ANSWER_BYTES_MAX: u32 = 16 << 20;
/// Both listeners, answering.
#[derive(Debug)]
pub struct Listeners {
    /// Where the operator's methods are.
    pub operator_address: SocketAddr,
    /// Where the public methods are.
    pub public_address: SocketAddr,
    handles: [ServerHandle; 2],
}

/// A listener that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, or not ours.
    #[error("cannot listen at {address} ([control] {key}): {source}; {mend}")]
    Address {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
        /// What to do about it.
        mend: &'static str,
    },
    /// The operator's address can be reached from elsewhere.
    #[error(
        "[control] operator_listen {0} is not a loopback address, and whoever reaches it may \
         close channels; use 127.0.0.1:8546, and an ssh tunnel from elsewhere"
    )]
    NotLoopback(SocketAddr),
    /// Two methods have one name.
    #[error("the methods cannot be put together: {0}")]
    Methods(String),
}

impl Listeners {
    /// Listens and answers until [`stop`](Self::stop).
    pub async fn start(provider: &Arc<Provider>, control: &Control) -> Result<Self, ListenError> {
        if !control.operator_listen.ip().is_loopback() {
            return Err(ListenError::NotLoopback(control.operator_listen));
        }
        let MethodTables { operator, public } =
            MethodTables::of(provider).map_err(|error| ListenError::Methods(error.to_string()))?;

        // A web page that made its own name resolve to loopback asks for another host.
        let own = match control.operator_listen.ip() {
            IpAddr::V4(address) => format!("{address}:*"),
            IpAddr::V6(address) => format!("[{address}]:*"),
        };
        let hosts = HostFilterLayer::new(["localhost:*", own.as_str()])
            .map_err(|error| ListenError::Methods(error.to_string()))?;
        let guarded = ServiceBuilder::new()
            .layer(hosts)
            .layer(NoWebPages)
            .layer(MetricsPage::new({
                let provider = Arc::clone(provider);
                move || page(Arc::clone(&provider))
            }));
        let server = Server::builder()
            .set_config(limits(control))
            .set_http_middleware(guarded)
            .build(control.operator_listen)
            .await
            .map_err(|source| cannot("operator_listen", control.operator_listen, source))?;
        let operator_address = server
            .local_addr()
            .map_err(|source| cannot("operator_listen", control.operator_listen, source))?;
        let operator_handle = server.start(operator);

        let server = Server::builder()
            .set_config(limits(control))
            .build(control.public_listen)
            .await
            .map_err(|source| cannot("public_listen", control.public_listen, source))?;
        let public_address = server
            .local_addr()
            .map_err(|source| cannot("public_listen", control.public_listen, source))?;
        let public_handle = server.start(public);

        tracing::info!(operator = %operator_address, public = %public_address, "RPC listens");
        Ok(Self {
            operator_address,
            public_address,
            handles: [operator_handle, public_handle],
        })
    }

    /// Takes no more requests and waits for those under way.
    pub async fn stop(self) {
        for handle in self.handles {
            // An error says that it has stopped already.
            let _ = handle.stop();
            handle.stopped().await;
        }
    }
}

fn limits(control: &Control) -> ServerConfig {
    ServerConfig::builder()
        .max_request_body_size(control.request_bytes_max)
        .max_response_body_size(ANSWER_BYTES_MAX)
        .max_connections(control.connections_max)
        .max_subscriptions_per_connection(SUBSCRIPTIONS_MAX)
        .set_batch_request_config(BatchRequestConfig::Limit(BATCH_MAX))
        .set_first_request_timeout(Some(FIRST_REQUEST_TIMEOUT))
        .enable_ws_ping(PingConfig::new())
        .build()
}

fn cannot(key: &'static str, address: SocketAddr, source: io::Error) -> ListenError {
    let mend = match source.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there (`ss -ltnp`), or choose another port",
        io::ErrorKind::AddrNotAvailable => "choose an address that this machine has (`ip address`)",
        io::ErrorKind::PermissionDenied => "choose a port above 1023",
        _ => "choose another address",
    };
    ListenError::Address {
        key,
        address,
        source,
        mend,
    }
}

/// Refuses what a browser sends for a web page: it says the page's origin. No page is the
/// operator's, yet WebSockets to loopback are open to all of them.
#[derive(Clone, Copy, Debug)]
struct NoWebPages;

impl<S> Layer<S> for NoWebPages {
    type Service = WithoutWebPages<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithoutWebPages(inner)
    }
}

/// See [`NoWebPages`].
#[derive(Clone, Debug)]
struct WithoutWebPages<S>(S);

impl<S, B> Service<HttpRequest<B>> for WithoutWebPages<S>
where
    S: Service<HttpRequest<B>, Response = HttpResponse<HttpBody>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: HttpRequest<B>) -> Self::Future {
        if !request.headers().contains_key("origin") {
            return Either::Left(self.0.call(request));
        }
        let mut refusal = HttpResponse::new(HttpBody::from(
            "the operator's methods are not for web pages; use `topnet`, or curl on this machine\n",
        ));
        *refusal.status_mut() = jsonrpsee::server::http::response::denied().status();
        Either::Right(ready(Ok(refusal)))
    }
}

/// What monitoring systems are told.
async fn page(provider: Arc<Provider>) -> String {
    let status = provider.status().await;
    let channels = provider.live_channels(None, LABELLED_MAX).await;
    let sessions = provider.session_reports().await;
    // Without metering the rest is still worth having.
    metrics::page(&status, &channels.unwrap_or_default(), &sessions)
}
