//! Where a tower answers: JSON-RPC over HTTP/1.1, bounded against strangers, and `GET /metrics`.
//!
//! Connections are so many in all and from one address, say something soon, and end after a while
//! whatever they do: whoever wants to occupy the tower has to come again and again, from many
//! addresses.

use std::{
    collections::BTreeMap,
    future::ready,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use jsonrpsee::server::{
    BatchRequestConfig, Methods, Server, ServerConfig, ServerHandle, stop_channel,
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use topnet_api::TowerStatus;
use topnet_metrics::MetricsPage;
use tower::ServiceBuilder;
use tracing::debug;

use crate::{
    desk::Desk,
    rpc::{REQUEST_BYTES_MAX, TowerServer as _},
};

/// Connections at once.
const CONNECTIONS_MAX: u32 = 256;
/// Of these from one address.
const CONNECTIONS_PER_ADDRESS_MAX: u32 = 32;
/// Whoever is connected asks something within this time, and again after each answer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// An older connection takes no new request,
const CONNECTION_AGE: Duration = Duration::from_secs(30);
/// and one request has this long then, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Nobody can be let in just now: no more files may be open, for instance.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
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
            .build();
        let glancing = desk.clone();
        let metrics = MetricsPage::new(move || ready(page(&glancing.at_a_glance())));
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (stop, handle) = stop_channel();
        let services = Server::builder()
            .set_config(config)
            .set_http_middleware(ServiceBuilder::new().layer(metrics))
            .to_service_builder();
        let methods: Methods = desk.into_rpc().into();
        let doors = Doors::default();
        tokio::spawn(async move {
            let mut stopped = pin!(stop.clone().shutdown());
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = &mut stopped => return,
                };
                let Ok((stream, from)) = accepted else {
                    sleep(ACCEPT_RETRY).await;
                    continue;
                };
                let Some(place) = doors.enter(from.ip()) else {
                    debug!(%from, "too many connections");
                    continue;
                };
                let service = services.clone().build(methods.clone(), stop.clone());
                let stopped = stop.clone().shutdown();
                tokio::spawn(async move {
                    let _place = place;
                    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
                    builder
                        .http1()
                        .timer(TokioTimer::new())
                        .header_read_timeout(IDLE_TIMEOUT);
                    let service = TowerToHyperService::new(service);
                    let connection = builder.serve_connection(TokioIo::new(stream), service);
                    let mut connection = pin!(connection);
                    tokio::select! {
                        // Whatever went wrong there is the other side's.
                        _ = connection.as_mut() => return,
                        () = stopped => {}
                        () = sleep(CONNECTION_AGE) => {}
                    }
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(REQUEST_TIMEOUT, connection).await;
                });
            }
        });
        Ok(Self { address, handle })
    }

    /// Takes no more requests and waits for those under way.
    pub(crate) async fn stop(self) {
        // An error says that it has stopped already.
        let _ = self.handle.stop();
        self.handle.stopped().await;
    }
}

/// Counts who is connected. Clones are the same.
#[derive(Clone, Debug, Default)]
struct Doors(Arc<Mutex<BTreeMap<IpAddr, u32>>>);

/// A connection's place, until it is dropped.
struct DoorPlace {
    doors: Doors,
    address: IpAddr,
}

impl Doors {
    /// Lets one more in from there, if there is room.
    fn enter(&self, from: IpAddr) -> Option<DoorPlace> {
        let address = whose(from);
        let mut inside = self.inside();
        let of_all: u32 = inside.values().sum();
        let of_address = inside.get(&address).copied().unwrap_or(0);
        if of_all >= CONNECTIONS_MAX || of_address >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        inside.insert(address, of_address + 1);
        drop(inside);
        Some(DoorPlace {
            doors: self.clone(),
            address,
        })
    }

    fn inside(&self) -> MutexGuard<'_, BTreeMap<IpAddr, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DoorPlace {
    fn drop(&mut self) {
        let mut inside = self.doors.inside();
        if let Some(count) = inside.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.address);
            }
        }
    }
}

/// Whoever has an IPv6 address has all of its /64.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        address => address,
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
    fn so_many_are_let_in_from_one_address_and_in_all() {
        let doors = Doors::default();
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        let enter = |from: u32, count: u32| -> Vec<DoorPlace> {
            (0..count)
                .filter_map(|_| doors.enter(address(from)))
                .collect()
        };
        let mut first = enter(1, CONNECTIONS_MAX);
        assert_eq!(first.len(), CONNECTIONS_PER_ADDRESS_MAX as usize);
        first.pop();
        assert_eq!(enter(1, 2).len(), 1);
        drop(first);

        let full = CONNECTIONS_MAX / CONNECTIONS_PER_ADDRESS_MAX;
        let all: Vec<_> = (0..full)
            .flat_map(|number| enter(number, CONNECTIONS_PER_ADDRESS_MAX))
            .collect();
        assert_eq!(enter(full, 1).len(), 0, "it is full");
        drop(all);
        assert!(doors.inside().is_empty());

        let neighbours = [
            "2001:db8::1",
            "2001:db8::2",
            "::ffff:192.0.2.1",
            "192.0.2.1",
        ];
        let whose = neighbours.map(|text| super::whose(text.parse().unwrap()));
        assert_eq!((whose[0], whose[2]), (whose[1], whose[3]));
    }

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
