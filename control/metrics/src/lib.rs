//! Answers `GET /metrics` beside a JSON-RPC server with the page that monitoring systems scrape.
#![forbid(unsafe_code)]

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::future::{Either, FutureExt as _};
use jsonrpsee::server::{HttpBody, HttpRequest, HttpResponse};
use tower::{Layer, Service};

/// What the page is: OpenMetrics text.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers with what a function makes anew for each request. All other requests go on.
#[derive(Clone, Debug)]
pub struct MetricsPage<F>(F);

impl<F, P> MetricsPage<F>
where
    F: Fn() -> P,
    P: Future<Output = String>,
{
    /// A page that `make` writes, in OpenMetrics text.
    pub const fn new(make: F) -> Self {
        Self(make)
    }
}

impl<S, F: Clone> Layer<S> for MetricsPage<F> {
    type Service = WithMetricsPage<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        WithMetricsPage {
            inner,
            make: self.0.clone(),
        }
    }
}

/// See [`MetricsPage`].
#[derive(Clone, Debug)]
pub struct WithMetricsPage<S, F> {
    inner: S,
    make: F,
}

impl<S, B, F, P> Service<HttpRequest<B>> for WithMetricsPage<S, F>
where
    S: Service<HttpRequest<B>, Response = HttpResponse<HttpBody>>,
    S::Error: Send + 'static,
    F: Fn() -> P,
    P: Future<Output = String> + Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future =
        Either<S::Future, Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: HttpRequest<B>) -> Self::Future {
        if request.method() != "GET" || request.uri().path() != "/metrics" {
            return Either::Left(self.inner.call(request));
        }
        let page = (self.make)().map(|page| {
            let mut answer = HttpResponse::new(HttpBody::from(page));
            if let Ok(content_type) = CONTENT_TYPE.parse() {
                answer.headers_mut().insert("content-type", content_type);
            }
            Ok(answer)
        });
        Either::Right(page.boxed())
    }
}
