//! Several workers, over frames of two queues and over the kernel's sockets: whoever receives a
//! packet, it is its session's worker that opens, counts and sends it.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::thread;

use support::{Echo, Gateway, Topology, WireGuard, eventually, ip, tcp_to, unlimited, up_to};
use topnet_account::ChannelId;
use topnet_api::DesiredSession;
use topnet_netns::root_tests;
use topnet_unit::{Attachment, Slot};

/// More than there are workers.
const CLIENTS: u8 = 4;
const WORKERS: u32 = 2;
const DOWNLOAD_BYTES: usize = 1 << 20;

/// A client, its session's slot, and the address at the origin that it reaches.
struct Client {
    wireguard: WireGuard,
    inner: Ipv4Addr,
    origin: Ipv4Addr,
    slot: Slot,
}

fn start(test: &str, io: &str) -> (Gateway, Attachment, Vec<Client>) {
    let topology = Topology::with_queues(test, WORKERS);
    topology.route_in_kernel();
    let mut gateway = Gateway::start_in(topology, &format!("{io}\nworkers = {WORKERS}"));
    assert_eq!(gateway.status().io.workers, WORKERS);
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let wireguard = WireGuard::start_silent(&gateway, &format!("tn{test}{number}"));
        wireguard.point_at(&gateway, support::GATEWAY.into(), 0);
        let (inner, origin) = (
            Ipv4Addr::new(10, 78, 0, 10 + number),
            Ipv4Addr::new(10, 77, 2, 20 + number),
        );
        let topology = &gateway.topology;
        let interface = &wireguard.interface;
        ip(
            &topology.client,
            &format!("address add {inner}/32 dev {interface}"),
        );
        ip(
            &topology.client,
            &format!("route add {origin}/32 dev {interface}"),
        );
        ip(
            &topology.origin,
            &format!("address add {origin}/24 dev eth0"),
        );
        clients.push((wireguard, inner, origin));
    }
    let session = |number: usize, client: &(WireGuard, Ipv4Addr, Ipv4Addr)| DesiredSession {
        channel: ChannelId([number as u8; 32]),
        wireguard_public_key: client.0.public_key,
        inner_address: client.1,
    };
    let sessions: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(n, c)| session(n, c))
        .collect();
    let report = gateway.install(&sessions);
    assert_eq!(report.refused, []);
    let metering = gateway.attach();
    let clients = clients.into_iter().map(|(wireguard, inner, origin)| {
        let key = wireguard.public_key;
        let mut installed = report.installed.iter();
        let installed = installed
            .find(|one| one.wireguard_public_key == key)
            .unwrap();
        let slot = Slot {
            index: installed.slot,
            generation: installed.generation,
        };
        Client {
            wireguard,
            inner,
            origin,
            slot,
        }
    });
    let clients = clients.collect();
    (gateway, metering, clients)
}

/// Every client's packets pass, and each one's bytes are counted to the byte.
fn all_pass(gateway: &Gateway, metering: &Attachment, clients: &[Client]) {
    for client in clients {
        metering.credit.grant(client.slot, unlimited());
        let echo = Echo::between(
            &gateway.topology,
            IpAddr::V4(client.inner),
            IpAddr::V4(client.origin),
        );
        eventually("the tunnel is up", || echo.round_trip(8));
        echo.drain();
    }
    let used = |client: &Client| metering.usage.totals(client.slot.index).bytes;
    // Many flows of each client, so that answers come in by every queue.
    for client in clients {
        let (inner, origin) = (IpAddr::V4(client.inner), IpAddr::V4(client.origin));
        let before = used(client);
        let mut trips = 0;
        Echo::server(&gateway.topology, origin, 9);
        for _ in 0..16 {
            let echo = Echo::client(&gateway.topology, inner, (origin, 9).into());
            trips += u64::from(echo.round_trip(100));
        }
        assert_eq!(trips, 16);
        eventually("all is billed", || used(client) - before == 16 * 2 * 128);
    }
}

/// A download of each at once is whole, and the counts are what the clients' interfaces counted.
fn downloads(gateway: &Gateway, metering: &Attachment, clients: &[Client]) {
    let content: Vec<u8> = (0..DOWNLOAD_BYTES).map(|at| (at * 7 % 251) as u8).collect();
    thread::scope(|scope| {
        for client in clients {
            let (content, topology) = (&content, &gateway.topology);
            let (mut near, mut far) = tcp_to(topology, client.origin.into());
            scope.spawn(move || {
                let sender = scope.spawn(move || far.write_all(content).unwrap());
                let mut received = vec![0; content.len()];
                near.read_exact(&mut received).unwrap();
                assert!(received == *content, "what was sent is not what arrived");
                sender.join().unwrap();
            });
        }
    });
    for client in clients {
        let status = gateway.status();
        let mut sessions = status.sessions.iter();
        let session = sessions
            .find(|one| one.inner_address == client.inner)
            .unwrap();
        let (sent, received) = client.wireguard.interface_bytes(&gateway.topology.client);
        // Nothing is billed up that was not sent, and all that was received down.
        assert!(session.up_bytes <= sent, "{} of {sent}", session.up_bytes);
        assert!(
            session.down_bytes >= received,
            "{} of {received}",
            session.down_bytes
        );
        let billed = metering.usage.totals(client.slot.index).bytes;
        assert_eq!(billed, session.up_bytes + session.down_bytes);
    }
}

/// Each client's limit holds whatever the others do.
fn limits_hold(gateway: &Gateway, metering: &Attachment, clients: &[Client]) {
    for client in clients {
        let used = || metering.usage.totals(client.slot.index).bytes;
        let limit = used() + 5 * 128;
        metering.credit.grant(client.slot, up_to(limit));
        // Its echo is there since the first look.
        let server = (client.origin, 9).into();
        let echo = Echo::client(&gateway.topology, client.inner.into(), server);
        echo.round_trips(100);
        assert_eq!(used(), limit, "to the last packet that fits");
    }
}

#[test]
fn frames_of_every_queue_find_their_session() {
    if !root_tests() {
        return;
    }
    let (gateway, metering, clients) = start("wkx", "io = \"af-xdp-copy\"");
    all_pass(&gateway, &metering, &clients);
    downloads(&gateway, &metering, &clients);
    // Two queues and many flows: some came to the wrong worker.
    assert!(gateway.status().passed_packets > 0);
    assert_eq!(gateway.drops("worker_queue_full"), 0);
    limits_hold(&gateway, &metering, &clients);
}

#[test]
fn the_kernel_chooses_the_worker() {
    if !root_tests() {
        return;
    }
    let (gateway, metering, clients) = start("wkk", "io = \"kernel\"");
    all_pass(&gateway, &metering, &clients);
    downloads(&gateway, &metering, &clients);
    let status = gateway.status();
    let down: u64 = status
        .sessions
        .iter()
        .map(|session| session.down_bytes)
        .sum();
    assert!(down > u64::from(CLIENTS) * DOWNLOAD_BYTES as u64);
    // Messages come to the session's worker, and answers to who sent what they answer.
    assert!(status.passed_packets < 100, "{}", status.passed_packets);
    limits_hold(&gateway, &metering, &clients);
}
