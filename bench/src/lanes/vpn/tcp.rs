//! Bulk TCP through a client that nobody here wrote: wireguard-go on the load's CPU, the same for
//! every gateway. It costs more than the gateway does, so what counts is the gateway's CPU for
//! what it passed on, not how much that was.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use data_encoding::BASE64;
use tempfile::TempDir;
use topnet_lab::process::{Process, output};
use topnet_lab::topology::{ORIGIN, PROVIDER};
use topnet_netns::Namespace;

use super::client::Client;
use super::gateway::{Gateway, Kind, bring_up, on_cpu, socket_of, write_key};
use super::links::Mode;
use super::{GATEWAY_CPU, LOAD_CPU, Rig, Shared, WIREGUARD_PORT};
use crate::cpus::Busy;
use crate::lane::Measurement;
use crate::place::Place;

const NUMBER: u8 = 2;
const PORT: u16 = 5_001;
/// The client's TUN interface; see [`socket_of`].
const TUNNEL_INTERFACE: &str = "tnbvtun";
const READY_WAIT: Duration = Duration::from_secs(10);
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Slow start ends in it.
const WARM_UP: Duration = Duration::from_millis(500);
const ROUND: Duration = Duration::from_millis(1_000);
const BUFFER_BYTES: usize = 256 << 10;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Origin to client.
    Down,
    /// Client to origin.
    Up,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Down, Direction::Up];

    /// In a case's name.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Down => "down",
            Direction::Up => "up",
        }
    }
}

/// The figure of `vpn/tcp…`.
pub fn measure(
    shared: &Shared,
    kind: Kind,
    mode: Mode,
    direction: Direction,
    connections: usize,
) -> Result<Measurement> {
    let rig = Rig::start(shared, kind, mode, &[Client::peer(NUMBER)])?;
    let measured = transfer(shared, &rig, direction, connections);
    measured.with_context(|| rig.gateway.last_words())
}

fn transfer(
    shared: &Shared,
    rig: &Rig,
    direction: Direction,
    connections: usize,
) -> Result<Measurement> {
    let _tunnel = Tunnel::start(shared, &rig.links.client, NUMBER)?;
    let Passed {
        bytes,
        elapsed_s,
        busy_s,
        load_busy_s,
        process_cpu_s,
    } = pass(shared, rig, direction, connections)?.context(NOTHING_PASSED)?;
    let gbit = bytes as f64 * 8.0 / 1e9;
    let value = gbit / busy_s;
    Ok(Measurement::new(value, bytes, busy_s)
        .with("gbit_per_s", gbit / elapsed_s, "Gbit/s")
        .with("cpu_busy", busy_s / elapsed_s, "1")
        .with("load_cpu_busy", load_busy_s / elapsed_s, "1")
        .with("process_cpu_of_busy", process_cpu_s / busy_s, "1")
        .with("of_bare_aead", value / shared.aead_gbit_per_s()?, "1"))
}

/// What connections brought through a tunnel, and what that took.
pub struct Passed {
    /// Payload.
    pub bytes: u64,
    /// In how long.
    pub elapsed_s: f64,
    /// Of the gateway's CPU.
    pub busy_s: f64,
    /// Of the other.
    pub load_busy_s: f64,
    /// Of the gateway's process.
    pub process_cpu_s: f64,
}

/// What [`pass`] found none of.
pub const NOTHING_PASSED: &str = "nothing came through the tunnel";

/// Opens connections through the [`Tunnel`] and looks at them for a while. `None` if one is not
/// opened in time, or nothing comes in that while; whatever else goes wrong is an error.
pub fn pass(
    shared: &Shared,
    rig: &Rig,
    direction: Direction,
    connections: usize,
) -> Result<Option<Passed>> {
    let Some(mut streams) = Streams::open(rig, connections)? else {
        return Ok(None);
    };
    let received = streams.flow(direction)?;
    let interrupt = &shared.setup.interrupt;
    interrupt.sleep(WARM_UP)?;
    let (busy, load_busy) = (Busy::start(GATEWAY_CPU)?, Busy::start(LOAD_CPU)?);
    let (began, before) = (Instant::now(), received.load(Ordering::Relaxed));
    let cpu_s = rig.gateway.cpu_s()?;
    interrupt.sleep(ROUND)?;
    let bytes = received.load(Ordering::Relaxed) - before;
    let (elapsed_s, busy_s) = (began.elapsed().as_secs_f64(), busy.busy_s()?);
    let (process_cpu_s, load_busy_s) = (rig.gateway.cpu_s()? - cpu_s, load_busy.busy_s()?);
    streams.end();
    ensure!(busy_s > 0.0, "the gateway's CPU did nothing at all");
    Ok((bytes > 0).then_some(Passed {
        bytes,
        elapsed_s,
        busy_s,
        load_busy_s,
        process_cpu_s,
    }))
}

/// The client's wireguard-go. Ended when dropped.
pub struct Tunnel {
    _process: Process,
    _home: TempDir,
}

impl Tunnel {
    /// Starts it as the client of this number, with what goes to the origin routed into it.
    pub fn start(shared: &Shared, client: &Namespace, number: u8) -> Result<Tunnel> {
        let interrupt = &shared.setup.interrupt;
        let home = Place::Disk.directory()?;
        let key_file = home.path().join("client.key");
        write_key(&key_file, &Client::secret(number))?;
        let mut command = on_cpu(LOAD_CPU, "wireguard-go".into());
        command.args(["-f", TUNNEL_INTERFACE]);
        command.env("GOMAXPROCS", "1").env("LOG_LEVEL", "error");
        let log = home.path().join("client.log");
        let mut process = Process::start(client, "the client", command, &log)?;
        let socket = socket_of(TUNNEL_INTERFACE);
        process.wait_ready(interrupt, READY_WAIT, || socket.exists())?;
        let gateway = BASE64.encode(Gateway::public_key().as_bytes());
        let mut wg = Command::new("wg");
        wg.args(["set", TUNNEL_INTERFACE, "private-key"])
            .arg(&key_file);
        wg.args(["peer", &gateway, "allowed-ips", "0.0.0.0/0", "endpoint"]);
        wg.arg(format!("{PROVIDER}:{WIREGUARD_PORT}"));
        output(client, wg, interrupt, READY_WAIT)?;
        let address = format!("{}/32", Client::inner(number));
        bring_up(client, TUNNEL_INTERFACE, &address, interrupt)?;
        let mut route = Command::new("ip");
        route.args(["route", "replace", &format!("{ORIGIN}/32")]);
        route.args(["dev", TUNNEL_INTERFACE]);
        output(client, route, interrupt, READY_WAIT)?;
        Ok(Tunnel {
            _process: process,
            _home: home,
        })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // It removes its socket itself, unless it is killed.
        self._process.stop();
        let _ = std::fs::remove_file(socket_of(TUNNEL_INTERFACE));
    }
}

/// Connections from the client to the origin, both ends here. Ended when dropped.
struct Streams {
    near: Vec<TcpStream>,
    far: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Streams {
    fn open(rig: &Rig, connections: usize) -> Result<Option<Streams>> {
        let listen = || TcpListener::bind((ORIGIN, PORT));
        let listener = rig.links.origin.enter(listen)?;
        let listener = listener.context("the origin cannot listen")?;
        let mut streams = Streams {
            near: Vec::new(),
            far: Vec::new(),
            threads: Vec::new(),
        };
        for _ in 0..connections {
            let connect = || TcpStream::connect_timeout(&destination(ORIGIN), CONNECT_WAIT);
            let Some(near) = in_time(rig.links.client.enter(connect)?)? else {
                return Ok(None);
            };
            streams.near.push(near);
            streams.far.push(listener.accept()?.0);
        }
        Ok(Some(streams))
    }

    /// Starts to send and receive; returns the bytes received.
    fn flow(&mut self, direction: Direction) -> Result<Arc<AtomicU64>> {
        let received = Arc::<AtomicU64>::default();
        let (from, to) = match direction {
            Direction::Down => (&self.far, &self.near),
            Direction::Up => (&self.near, &self.far),
        };
        for stream in from {
            let stream = stream.try_clone()?;
            self.threads.push(named("source", move || source(stream))?);
        }
        for stream in to {
            let (stream, received) = (stream.try_clone()?, Arc::clone(&received));
            self.threads
                .push(named("sink", move || sink(stream, &received))?);
        }
        Ok(received)
    }

    fn end(&mut self) {
        for stream in self.near.drain(..).chain(self.far.drain(..)) {
            // The other end may have gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.end();
    }
}

/// `None` if the time was up.
fn in_time<T>(connected: io::Result<T>) -> Result<Option<T>> {
    match connected {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(None),
        Err(error) => Err(error).context("the client cannot connect"),
    }
}

fn destination(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::from((address, PORT))
}

fn named(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map_err(|error| anyhow!(error))
}

/// Ends with its stream.
fn source(mut stream: TcpStream) {
    let bytes = vec![0x5a; BUFFER_BYTES];
    while stream.write_all(&bytes).is_ok() {}
}

/// Ends with its stream.
fn sink(mut stream: TcpStream, received: &AtomicU64) {
    let mut bytes = vec![0; BUFFER_BYTES];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => {
                received.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_that_is_up_is_no_error() {
        assert_eq!(in_time(Ok(7)).unwrap(), Some(7));
        let late = io::Error::from_raw_os_error(110);
        assert_eq!(in_time::<u8>(Err(late)).unwrap(), None, "ETIMEDOUT");
        for kind in [
            ErrorKind::ConnectionRefused,
            ErrorKind::NetworkUnreachable,
            ErrorKind::HostUnreachable,
            ErrorKind::AddrNotAvailable,
        ] {
            in_time::<u8>(Err(kind.into())).unwrap_err();
        }
    }
}
