//! What is left of others' packets while strangers send handshake initiations: echoes of a client
//! that has its tunnel, and the bytes of one TCP connection through another's.
//!
//! The strangers are eight addresses of the client's side, three quarters of whom bring the cookie
//! that a gateway under load asks for; nobody of them has a session. Their messages have a right
//! first MAC, so that a gateway without cookies has a Curve25519 operation to do for each.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::StaticSecret;
use topnet_lab::topology::PROVIDER;
use topnet_netns::Namespace;

use super::background::Background;
use super::client::{Client, MESSAGE_BYTES_MAX};
use super::gateway::{Gateway, Kind};
use super::latency::{ASKER, Asker, Echo};
use super::links::{CLIENT_INTERFACE, Mode};
use super::tcp::{self, Direction, Tunnel};
use super::{GATEWAY_CPU, Rig, Shared, WIREGUARD_PORT};
use crate::cpus::Busy;
use crate::lane::{Latency, Measurement};

/// Initiations of all strangers together.
pub const STORM_PER_S: u32 = 20_000;
/// Where they come from.
pub const SOURCES: u8 = 8;
/// So many of them bring a cookie that they were sent.
const PROVING: u8 = 6;
/// So often a part of the storm is sent.
const PART: Duration = Duration::from_millis(1);
/// Cookies are asked for and brought in it, and the storm is at its height.
const RISE: Duration = Duration::from_millis(500);
/// Whose TCP it is.
const TCP_CLIENT: u8 = 3;
const CONNECTIONS: usize = 1;
const ASKS: u32 = 500;
/// Where nothing comes back it ends before all are asked.
const ASKS_TIME_MAX: Duration = Duration::from_secs(3);

/// The figure of `vpn/handshake-storm`: the share of echoes that came back.
pub fn measure(shared: &Shared, kind: Kind) -> Result<Measurement> {
    let peers = [Client::peer(ASKER), Client::peer(TCP_CLIENT)];
    let rig = Rig::start(shared, kind, Mode::Wire, &peers)?;
    let measured = look(shared, &rig, kind);
    measured.with_context(|| rig.gateway.last_words())
}

fn look(shared: &Shared, rig: &Rig, kind: Kind) -> Result<Measurement> {
    let interrupt = &shared.setup.interrupt;
    let _echo = Echo::start(&rig.links.origin)?;
    let mut asker = Asker::create(rig, kind, interrupt)?;
    let _tunnel = Tunnel::start(shared, &rig.links.client, TCP_CLIENT)?;
    let pass = || tcp::pass(shared, rig, Direction::Down, CONNECTIONS);
    let calm = pass()?.context(tcp::NOTHING_PASSED)?;

    let storm = Storm::start(&rig.links.client)?;
    interrupt.sleep(RISE)?;
    let (busy, began) = (Busy::start(GATEWAY_CPU)?, Instant::now());
    let sent_before = storm.sent();
    let echoes = asker.echoes(ASKS, ASKS_TIME_MAX, interrupt)?;
    let (sent, elapsed_s) = (storm.sent() - sent_before, began.elapsed().as_secs_f64());
    let busy_s = busy.busy_s()?;
    // A gateway that lets no connection through keeps nothing.
    let stormy = pass()?.map_or(0.0, |passed| passed.bytes as f64 / passed.elapsed_s);
    storm.work.finish()?;

    let kept = 1.0 - echoes.lost_share();
    let calm = calm.bytes as f64 / calm.elapsed_s;
    Ok(Measurement::new(kept, echoes.asked.into(), busy_s)
        .with_latency(Latency::of_ns(&echoes.histogram))
        .with("tcp_kept", stormy / calm, "1")
        .with("tcp_before", calm * 8.0 / 1e9, "Gbit/s")
        .with("storm", sent as f64 / elapsed_s, "1/s")
        .with("cpu_busy", busy_s / elapsed_s, "1"))
}

/// Strangers at work. Ended when dropped.
struct Storm {
    work: Background,
    sent: Arc<AtomicU64>,
}

impl Storm {
    fn start(client: &Namespace) -> Result<Storm> {
        let mut strangers = (0..SOURCES)
            .map(|number| Stranger::create(client, number))
            .collect::<Result<Vec<_>>>()?;
        let sent = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&sent);
        let began = Instant::now();
        let (mut due, mut next) = (0, 0);
        let work = Background::start("storm", move || {
            // What a sleep that took too long left is made up for.
            let elapsed_s = began.elapsed().as_secs_f64();
            while f64::from(due) < elapsed_s * f64::from(STORM_PER_S) {
                due += 1;
                next = (next + 1) % strangers.len();
                counted.fetch_add(u64::from(strangers[next].send()?), Ordering::Relaxed);
            }
            for stranger in &mut strangers {
                stranger.listen()?;
            }
            sleep(PART);
            Ok(())
        })?;
        Ok(Storm { work, sent })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Nobody who has a session.
struct Stranger {
    socket: UdpSocket,
    tunnel: Tunn,
    message: Vec<u8>,
    proves: bool,
}

impl Stranger {
    fn create(client: &Namespace, number: u8) -> Result<Stranger> {
        let address = Ipv4Addr::new(10, 77, 1, 100 + number);
        let mut command = Command::new("ip");
        command.args(["address", "add", &format!("{address}/24")]);
        command.args(["dev", CLIENT_INTERFACE]);
        client.run(command)?;
        let socket = client.enter(|| {
            let socket = UdpSocket::bind((address, 0))?;
            socket.connect(SocketAddrV4::new(PROVIDER, WIREGUARD_PORT))?;
            socket.set_nonblocking(true)?;
            std::io::Result::Ok(socket)
        })?;
        // No client's key: theirs are numbered from 2.
        let secret = StaticSecret::from([200 + number; 32]);
        let mut tunnel = Tunn::new(secret, Gateway::public_key(), None, None, 1, None);
        Ok(Stranger {
            socket: socket.context("a stranger has no socket")?,
            message: initiation(&mut tunnel)?,
            tunnel,
            proves: number < PROVING,
        })
    }

    /// False if there was no room for it.
    fn send(&self) -> Result<bool> {
        use std::io::ErrorKind::{ConnectionRefused, WouldBlock};
        match self.socket.send(&self.message) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), WouldBlock | ConnectionRefused) => Ok(false),
            Err(error) => Err(error).context("the storm cannot send"),
        }
    }

    /// Takes what it was answered. A cookie is brought from then on.
    fn listen(&mut self) -> Result<()> {
        let [mut reply, mut room] = [[0; MESSAGE_BYTES_MAX]; 2];
        let mut told = false;
        while let Ok(bytes) = self.socket.recv(&mut reply) {
            let taken = self.tunnel.decapsulate(None, &reply[..bytes], &mut room);
            told |= matches!(taken, TunnResult::Done);
        }
        if told && self.proves {
            self.message = initiation(&mut self.tunnel)?;
        }
        Ok(())
    }
}

fn initiation(tunnel: &mut Tunn) -> Result<Vec<u8>> {
    match tunnel.format_handshake_initiation(&mut [0; MESSAGE_BYTES_MAX], true) {
        TunnResult::WriteToNetwork(message) => Ok(message.to_vec()),
        other => bail!("a stranger makes no initiation: {other:?}"),
    }
}
