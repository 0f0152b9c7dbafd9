//! One client for whom more arrives than the worker can seal, beside one that sends little.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use rustix::thread::{CpuSet, sched_setaffinity};
use support::{Echo, GATEWAY, Gateway, PATIENCE, Topology, WireGuard, eventually, ip, unlimited};
use topnet_account::ChannelId;
use topnet_api::DesiredSession;
use topnet_netns::{Namespace, Offload, root_tests};
use topnet_unit::Slot;

const HEAVY_OUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 50);
const HEAVY_INNER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 3);
const FLOOD_BYTES: usize = 1_392;
/// Packets that one system call sends.
const FLOOD_TRAIN: usize = 40;
/// The worker's, which it shares with somebody who does nothing, so that a flood of one thread is
/// more than it can do.
const WORKERS_CPU: usize = 0;
const FLOODS_CPU: usize = 1;
const ROUND_TRIPS: u32 = 300;
/// Without shares more than half is lost, and mostly two thirds and more. What is lost with them is
/// lost while the worker waits for its CPU.
const LOST_MAX: u32 = ROUND_TRIPS / 3;
/// Time between two trains: two thirds of a million packets a second.
const TRAIN_INTERVAL: Duration = Duration::from_micros(60);

/// A thread that does something on a CPU until it is dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    fn start(cpu: usize, mut work: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = spawn(move || {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                work();
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A client that makes a tunnel and reads nothing of what comes through it.
fn deaf_client(namespace: &Namespace, server: PublicKey, private: &StaticSecret) -> UdpSocket {
    ip(namespace, &format!("address add {HEAVY_OUTER}/24 dev eth0"));
    let socket = namespace
        .enter(|| UdpSocket::bind((HEAVY_OUTER, 0)).unwrap())
        .unwrap();
    socket.connect(SocketAddr::from((GATEWAY, 51_820))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut tunnel = Tunn::new(private.clone(), server, None, None, 1, None);
    let [mut room, mut answer] = [[0; 2048]; 2];
    let send = |result: TunnResult<'_>| match result {
        TunnResult::WriteToNetwork(message) => socket.send(message).unwrap(),
        other => panic!("{other:?}"),
    };
    send(tunnel.format_handshake_initiation(&mut room, false));
    let bytes = socket.recv(&mut answer).unwrap();
    // A keepalive, which tells the gateway that the keys are good.
    send(tunnel.decapsulate(None, &answer[..bytes], &mut room));
    socket
}

fn a_flood_takes_nobody_else_s_part(test: &str, io: &str) {
    let topology = Topology::new(test);
    topology.route_in_kernel();
    if io.contains("kernel") {
        // As from a card: trains stay whole until they are sealed.
        for offload in [Offload::TxChecksum, Offload::Gso] {
            topology.origin.offload("eth0", offload, true).unwrap();
        }
    }
    let mut gateway = Gateway::start_in(topology, &format!("{io}\ncpus = [{WORKERS_CPU}]"));
    let light = WireGuard::start(&gateway, &format!("tn{test}"));
    let private = StaticSecret::from([77; 32]);
    let heavy = DesiredSession {
        channel: ChannelId([2; 32]),
        wireguard_public_key: PublicKey::from(&private).to_bytes(),
        inner_address: HEAVY_INNER,
    };
    let report = gateway.install(&[light.session(), heavy]);
    assert_eq!(report.refused, []);
    let metering = gateway.attach();
    for installed in &report.installed {
        let slot = Slot {
            index: installed.slot,
            generation: installed.generation,
        };
        metering.credit.grant(slot, unlimited());
    }
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));
    echo.drain();
    let server = PublicKey::from(gateway.status().wireguard_public_key);
    let _deaf = deaf_client(&gateway.topology.client, server, &private);

    let origin = gateway
        .topology
        .origin
        .enter(|| UdpSocket::bind((support::ORIGIN, 0)).unwrap());
    let origin = origin.unwrap();
    let state = UdpSocketState::new(UdpSockRef::from(&origin)).unwrap();
    let beside = Busy::start(WORKERS_CPU, std::hint::spin_loop);
    let mut next = Instant::now();
    let flood = Busy::start(FLOODS_CPU, move || {
        let train = Transmit {
            destination: (HEAVY_INNER, 9).into(),
            ecn: None,
            contents: &[7; FLOOD_BYTES * FLOOD_TRAIN],
            segment_size: Some(FLOOD_BYTES),
            src_ip: None,
        };
        let _ = state.try_send(UdpSockRef::from(&origin), &train);
        next += TRAIN_INTERVAL;
        while Instant::now() < next {
            std::hint::spin_loop();
        }
        // What could not be sent in time is not made up for.
        next = next.max(Instant::now() - TRAIN_INTERVAL);
    });
    echo.socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    // Nobody is held back for nobody: the other must be heard.
    eventually("there is more than can be done", || {
        echo.round_trip(8);
        gateway.drops("fair_share") > 10_000
    });
    let mut lost = 0;
    for _ in 0..ROUND_TRIPS {
        lost += u32::from(!echo.round_trip(100));
        sleep(Duration::from_millis(1));
    }
    let shed = gateway.drops("fair_share");
    let down = |gateway: &Gateway| {
        let status = gateway.status();
        let mut sessions = status.sessions.iter();
        let heavy = sessions.find(|session| session.inner_address == HEAVY_INNER);
        heavy.unwrap().down_bytes
    };
    let carried = down(&gateway);
    println!(
        "{lost} of {ROUND_TRIPS} lost; {carried} bytes of the flood carried, {shed} packets shed"
    );
    assert!(lost <= LOST_MAX, "{lost} of {ROUND_TRIPS} lost");
    // It is held back, not shut out.
    let before = down(&gateway);
    eventually("the flood is carried too", || {
        down(&gateway) > before + (10 << 20)
    });
    drop(flood);
    drop(beside);
    echo.drain();
    let lost = (0..20).filter(|_| !echo.round_trip(100)).count();
    assert_eq!(lost, 0, "all is as before");
}

#[test]
fn a_flood_takes_nobody_else_s_part_over_frames() {
    if root_tests() {
        a_flood_takes_nobody_else_s_part("fairf", "io = \"af-xdp-copy\"");
    }
}

#[test]
fn a_flood_takes_nobody_else_s_part_over_the_kernel() {
    if root_tests() {
        a_flood_takes_nobody_else_s_part("fairk", "io = \"kernel\"");
    }
}
