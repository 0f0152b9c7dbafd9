//! Where a tower answers: JSON-RPC over HTTP, bounded against strangers, and `GET /metrics`.

use std::{future::ready, io, net::SocketAddr, sync::atomic::AtomicU64, time::Duration};

use jsonrpsee::server::{BatchRequestConfig, Server, ServerConfig, ServerHandle};
use prometheus_client::{
    encoding::text::encode,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use topnet_api::TowerStatus;
use topnet_metrics::MetricsPage;
use tower::ServiceBuilder;

use crate::{
    desk::Desk,
    rpc::{REQUEST_BYTES_MAX, TowerServer as _},
};

/// Connections at once.
const CONNECTIONS_MAX: u32 = 256;
/// Whoever connects says something within this time.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u32 = 4 << 20;

/// Answers until it is stopped.
pub(crate) struct Listener {
    pub address: SocketAddr,
    handle: ServerHandle,
}

impl Listener {
    pub(crate) async fn start(desk: Desk, address: SocketAddr) -> io::Result<Self> {
        let config = ServerConfig::builder()
            .http_only()
            .max_request_body_size(REQUEST_BYTES_MAX)
            .max_response_body_size(ANSWER_BYTES_MAX)
            .max_connections(CONNECTIONS_MAX)
            .set_batch_request_config(BatchRequestConfig::Disabled)
            .set_first_request_timeout(Some(FIRST_REQUEST_TIMEOUT))
            .build();
        let glancing = desk.clone();
        let metrics = MetricsPage::new(move || ready(page(&glancing.at_a_glance())));
        let server = Server::builder()
            .set_config(config)
            .set_http_middleware(ServiceBuilder::new().layer(metrics))
            .build(address)
            .await?;
        let address = server.local_addr()?;
        let handle = server.start(desk.into_rpc());
        Ok(Self { address, handle })
    }

    /// Takes no more requests and waits for those under way.
    pub(crate) async fn stop(self) {
        // An error says that it has stopped already.
        let _ = self.handle.stop();
        self.handle.stopped().await;
    }
}

/// OpenMetrics text.
fn page(status: &TowerStatus) -> String {
    let mut registry = Registry::with_prefix("topnet_tower");
    let levels = [
        ("held_claims", "Channels with a held claim", status.held),
        (
            "due_claims",
            "Channels whose claim is due and not yet paid",
            status.due,
        ),
        (
            "alarms",
            "Channels that may cost money if nobody does anything",
            status.alarms,
        ),
    ];
    for (name, help, value) in levels {
        let gauge = Gauge::<u64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    }
    let answers = Family::<Vec<(&'static str, String)>, Gauge<u64, AtomicU64>>::default();
    for node in &status.nodes {
        let labels = vec![("node", node.url.clone())];
        let answered_s = node.answered_ms.unwrap_or(0) / 1_000;
        answers.get_or_create(&labels).set(answered_s);
    }
    let help = "When a node last gave an answer that holds, seconds since 1970";
    registry.register("node_answered_seconds", help, answers);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

#[cfg(test)]
mod tests {
    use topnet_account::Hash;
    use topnet_api::NodeStatus;

    use super::*;

    #[test]
    fn the_page_tells_what_is_held_and_which_node_is_silent() {
        let page = page(&TowerStatus {
            main_genesis: Hash::ZERO,
            payees: Vec::new(),
            held: 3,
            due: 2,
            alarms: 1,
            nodes: vec![NodeStatus {
                url: "http://node".to_owned(),
                answered_ms: Some(7_999),
                problem: None,
            }],
        });
        for line in [
            "topnet_tower_held_claims 3",
            "topnet_tower_due_claims 2",
            "topnet_tower_alarms 1",
            "topnet_tower_node_answered_seconds{node=\"http://node\"} 7",
            "# EOF",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }
}
