//! A storm of handshakes from strangers, some of whom prove their addresses: whoever has a tunnel
//! keeps it, and whoever has a session gets one.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use support::{Echo, GATEWAY, Gateway, Topology, WireGuard, eventually, ip, unlimited};
use topnet_account::ChannelId;
use topnet_api::DesiredSession;
use topnet_netns::root_tests;

/// Where the storm comes from.
const SOURCES: u8 = 8;
/// So many of them prove their addresses.
const PROVING: u8 = 6;
/// Messages of all sources together: twice what a worker could open, and well below what it and the
/// screener can refuse on a busy machine.
const STORM_PER_SECOND: u32 = 20_000;
const STORM_PART: Duration = Duration::from_millis(2);
/// WireGuard tries every five seconds. Once it gets a cookie, then it proves its address.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(60);
/// Round trips in the storm.
const ROUND_TRIPS: u32 = 500;
const LOST_MAX: u32 = ROUND_TRIPS / 20;

/// Strangers.
struct Storm {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    proven: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

struct Stranger {
    socket: UdpSocket,
    tunnel: Tunn,
    message: Vec<u8>,
    proves: bool,
}

impl Storm {
    fn start(gateway: &Gateway) -> Self {
        let namespace = &gateway.topology.client;
        let server = PublicKey::from(gateway.status().wireguard_public_key);
        let mut strangers: Vec<Stranger> = (0..SOURCES)
            .map(|n| {
                let address = Ipv4Addr::new(10, 77, 1, 100 + n);
                ip(namespace, &format!("address add {address}/24 dev eth0"));
                let socket = namespace.enter(|| UdpSocket::bind((address, 0)).unwrap());
                let socket = socket.unwrap();
                socket.connect(SocketAddr::from((GATEWAY, 51_820))).unwrap();
                socket.set_nonblocking(true).unwrap();
                let private = StaticSecret::from([100 + n; 32]);
                let mut tunnel = Tunn::new(private, server, None, None, 1, None);
                Stranger {
                    socket,
                    message: initiation(&mut tunnel),
                    tunnel,
                    proves: n < PROVING,
                }
            })
            .collect();
        let stop = Arc::<AtomicBool>::default();
        let sent = Arc::<AtomicU64>::default();
        let proven = Arc::<AtomicU64>::default();
        let thread = spawn({
            let (stop, sent, proven) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&proven));
            move || {
                let part = STORM_PER_SECOND / 1_000 * STORM_PART.as_millis() as u32;
                let mut next = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    for n in 0..part as usize {
                        let count = strangers.len();
                        let stranger = &mut strangers[n % count];
                        if stranger.socket.send(&stranger.message).is_ok() {
                            sent.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    for stranger in strangers.iter_mut().filter(|stranger| stranger.proves) {
                        proven.fetch_add(u64::from(stranger.prove()), Ordering::Relaxed);
                    }
                    next += STORM_PART;
                    sleep(next.saturating_duration_since(Instant::now()));
                }
            }
        });
        Self {
            stop,
            sent,
            proven,
            thread: Some(thread),
        }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Stranger {
    /// True if its next messages have the cookie that it was sent.
    fn prove(&mut self) -> bool {
        let [mut reply, mut room] = [[0; 2048]; 2];
        let mut proves = false;
        while let Ok(bytes) = self.socket.recv(&mut reply) {
            let taken = self.tunnel.decapsulate(None, &reply[..bytes], &mut room);
            proves |= matches!(taken, TunnResult::Done);
        }
        if proves {
            self.message = initiation(&mut self.tunnel);
        }
        proves
    }
}

fn initiation(tunnel: &mut Tunn) -> Vec<u8> {
    match tunnel.format_handshake_initiation(&mut [0; 2048], true) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn a_storm_stalls_nobody(test: &str, io: &str) {
    let topology = Topology::new(test);
    topology.route_in_kernel();
    let mut gateway = Gateway::start_in(topology, io);
    let client = WireGuard::start(&gateway, &format!("tn{test}"));
    let late = WireGuard::start_silent(&gateway, &format!("tl{test}"));
    let sessions = [
        client.session(),
        DesiredSession {
            channel: ChannelId([2; 32]),
            wireguard_public_key: late.public_key,
            inner_address: Ipv4Addr::new(10, 78, 0, 3),
        },
    ];
    let report = gateway.install(&sessions);
    assert_eq!(report.refused, []);
    let metering = gateway.attach();
    for installed in &report.installed {
        let slot = topnet_unit::Slot {
            index: installed.slot,
            generation: installed.generation,
        };
        metering.credit.grant(slot, unlimited());
    }
    let echo = Echo::new(&gateway.topology);
    eventually("the tunnel is up", || echo.round_trip(1));

    let storm = Storm::start(&gateway);
    eventually("strangers have proved their addresses", || {
        storm.proven.load(Ordering::Relaxed) >= u64::from(PROVING)
    });
    let (began, sent_before) = (Instant::now(), storm.sent.load(Ordering::Relaxed));
    let mut lost = 0;
    for _ in 0..ROUND_TRIPS {
        lost += u32::from(!echo.round_trip(100));
        // A busy machine may lose some; a worker that opens what strangers send loses most.
        assert!(lost <= LOST_MAX, "{lost} lost");
        sleep(Duration::from_millis(2));
    }
    let storm_per_second =
        (storm.sent.load(Ordering::Relaxed) - sent_before) as f64 / began.elapsed().as_secs_f64();
    println!("{lost} of {ROUND_TRIPS} lost, {storm_per_second:.0} strangers a second");
    let made = |gateway: &Gateway| {
        let status = gateway.status();
        let key = late.public_key;
        let mut sessions = status.sessions.iter();
        let session = sessions.find(|session| session.wireguard_public_key == key);
        session.unwrap().handshake_age_s.is_some()
    };
    assert!(!made(&gateway));
    late.point_at(&gateway, GATEWAY.into(), 1);
    let began = Instant::now();
    while !made(&gateway) {
        assert!(began.elapsed() < HANDSHAKE_PATIENCE, "no handshake");
        sleep(Duration::from_millis(20));
    }
    println!("a handshake after {:?}", began.elapsed());
    for reason in ["peer_unknown", "handshake_rate"] {
        assert!(gateway.drops(reason) > 0, "{reason}");
    }
    drop(storm);
    assert_eq!(echo_lost(&echo), 0, "all is as before");
}

fn echo_lost(echo: &Echo) -> usize {
    echo.drain();
    (0..20).filter(|_| !echo.round_trip(100)).count()
}

#[test]
fn a_storm_of_handshakes_stalls_nobody_over_frames() {
    if root_tests() {
        a_storm_stalls_nobody("stormf", "io = \"af-xdp-copy\"");
    }
}

#[test]
fn a_storm_of_handshakes_stalls_nobody_over_the_kernel() {
    if root_tests() {
        a_storm_stalls_nobody("stormk", "io = \"kernel\"");
    }
}
