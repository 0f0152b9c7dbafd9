//! How long a small datagram takes to the origin and back, alone and beside a stream of others to
//! another client, and the same without a tunnel.
//!
//! The client is in this process, so that its own delay is a hundredth of what a program's would
//! be; sealing and opening one small packet is in the figure.

use std::net::{SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use topnet_lab::interrupt::Interrupt;
use topnet_lab::topology::{CLIENT, ORIGIN, PROVIDER, PROVIDER_UPLINK};
use topnet_netns::Namespace;

use super::background::Background;
use super::client::{Client, MESSAGE_BYTES_MAX, inner_packet};
use super::gateway::Kind;
use super::links::Mode;
use super::load::{Load, Pace};
use super::{PACKET_BYTES, Rig, Shared};
use crate::lane::{Latency, Measurement, histogram_ns};

/// Who asks.
pub const ASKER: u8 = 2;
/// To whom the stream goes.
const LISTENER: u8 = 3;
const ECHO_PORT: u16 = 7;
const ASKERS_PORT: u16 = 40_007;
const STREAM_PORT: u16 = 9;
const ECHO_BYTES: usize = 128;
const HEADER_BYTES: usize = 28;
/// Of the stream: what every gateway here forwards with ease on a CPU of these days.
const STREAM_PER_S: f64 = 40_000.0;
const ASKS: u32 = 800;
const INTERVAL: Duration = Duration::from_millis(1);
const ANSWER_WAIT: Duration = Duration::from_millis(200);
/// As long as it takes if more are lost than may be.
const ASKS_TIME_MAX: Duration = Duration::from_secs(30);
/// More lost answers than this, and it is no echo.
const LOST_MAX: u32 = ASKS / 10;

/// The figure of `vpn/latency-…`: half of the answers came sooner.
pub fn measure(shared: &Shared, kind: Kind, loaded: bool) -> Result<Measurement> {
    let peers = [Client::peer(ASKER), Client::peer(LISTENER)];
    let rig = Rig::start(shared, kind, Mode::Wire, &peers)?;
    let measured = ask(shared, &rig, kind, loaded);
    measured.with_context(|| rig.gateway.last_words())
}

fn ask(shared: &Shared, rig: &Rig, kind: Kind, loaded: bool) -> Result<Measurement> {
    let interrupt = &shared.setup.interrupt;
    let _echo = Echo::start(&rig.links.origin)?;
    let mut asker = Asker::create(rig, kind, interrupt)?;
    let stream = if loaded {
        Some(Stream::start(rig, kind, interrupt)?)
    } else {
        None
    };
    let echoes = asker.echoes(ASKS, ASKS_TIME_MAX, interrupt)?;
    ensure!(
        echoes.lost <= LOST_MAX,
        "{} of {} datagrams did not come back",
        echoes.lost,
        echoes.asked
    );
    if let Some(stream) = stream {
        stream.work.finish()?;
    }
    let latency = Latency::of_ns(&echoes.histogram).context("nothing came back")?;
    Ok(
        Measurement::new(latency.p50_us, echoes.histogram.len(), 0.0)
            .with_latency(Some(latency))
            .with("lost", 100.0 * echoes.lost_share(), "%"),
    )
}

/// What came back of what was asked.
pub struct Echoes {
    /// How long each took, in nanoseconds.
    pub histogram: Histogram<u64>,
    /// How many were asked.
    pub asked: u32,
    /// How many of them did not come back.
    pub lost: u32,
}

impl Echoes {
    /// The share that did not come back.
    pub fn lost_share(&self) -> f64 {
        f64::from(self.lost) / f64::from(self.asked)
    }
}

/// Whoever asks.
pub enum Asker {
    /// Through the tunnel.
    Tunnel(Box<Client>),
    /// Without one.
    Plain(UdpSocket),
}

impl Asker {
    /// One that has shaken hands, if there is a tunnel.
    pub fn create(rig: &Rig, kind: Kind, interrupt: &Interrupt) -> Result<Asker> {
        let links = &rig.links;
        if kind != Kind::NoTunnel {
            let client = Client::connect(&links.client, ASKER, interrupt)?;
            return Ok(Asker::Tunnel(Box::new(client)));
        }
        let route = |namespace: &Namespace, network: &str, via: std::net::Ipv4Addr| {
            namespace.route(network, &via.to_string())
        };
        route(&links.client, &format!("{ORIGIN}/32"), PROVIDER)?;
        route(&links.origin, &format!("{CLIENT}/32"), PROVIDER_UPLINK)?;
        let socket = links.client.enter(|| {
            let socket = UdpSocket::bind((CLIENT, ASKERS_PORT))?;
            socket.connect((ORIGIN, ECHO_PORT))?;
            socket.set_read_timeout(Some(ANSWER_WAIT))?;
            std::io::Result::Ok(socket)
        })?;
        Ok(Asker::Plain(socket.context("the client has no socket")?))
    }

    /// Asks one question after the other, until there were so many or the time is over.
    pub fn echoes(&mut self, asks: u32, time: Duration, interrupt: &Interrupt) -> Result<Echoes> {
        let mut echoes = Echoes {
            histogram: histogram_ns()?,
            asked: 0,
            lost: 0,
        };
        let first = Instant::now();
        for number in 0..asks {
            interrupt.check()?;
            let began = Instant::now();
            if number > 0 && began - first >= time {
                break;
            }
            echoes.asked += 1;
            if self.round_trip(number)? {
                let took_ns = u64::try_from(began.elapsed().as_nanos())?;
                echoes.histogram.record(took_ns)?;
            } else {
                echoes.lost += 1;
            }
            thread::sleep(INTERVAL.saturating_sub(began.elapsed()));
        }
        Ok(echoes)
    }

    /// Asks once; false if no answer came in time.
    fn round_trip(&mut self, number: u32) -> Result<bool> {
        let [mut message, mut packet] = [[0; MESSAGE_BYTES_MAX]; 2];
        let word = number.to_be_bytes();
        match self {
            Asker::Plain(socket) => {
                packet[..4].copy_from_slice(&word);
                socket.send(&packet[..ECHO_BYTES - HEADER_BYTES])?;
                // What comes late is an answer to an earlier question.
                while let Ok(bytes) = socket.recv(&mut message) {
                    if message[..bytes].starts_with(&word) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Asker::Tunnel(client) => {
                let from = SocketAddrV4::new(Client::inner(ASKER), ASKERS_PORT);
                let to = SocketAddrV4::new(ORIGIN, ECHO_PORT);
                let inner = inner_packet(from, to, ECHO_BYTES, &word);
                let bytes = client.seal(&inner, &mut message)?;
                client.socket().send(&message[..bytes])?;
                while let Some(bytes) = client.receive(&mut message)? {
                    let opened = client.open(&message[..bytes], &mut packet);
                    if opened.is_some_and(|inner| inner[HEADER_BYTES..].starts_with(&word)) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}

/// Answers at the origin what it is asked. Ended when dropped.
pub struct Echo {
    _work: Background,
}

impl Echo {
    /// Starts it.
    pub fn start(origin: &Namespace) -> Result<Echo> {
        let socket = origin.enter(|| {
            let socket = UdpSocket::bind((ORIGIN, ECHO_PORT))?;
            socket.set_read_timeout(Some(ANSWER_WAIT))?;
            std::io::Result::Ok(socket)
        })?;
        let socket = socket.context("the origin has no socket")?;
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let work = Background::start("echo", move || {
            if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                // Whoever asked notices if this is lost.
                let _ = socket.send_to(&buffer[..bytes], from);
            }
            Ok(())
        })?;
        Ok(Echo { _work: work })
    }
}

/// The others' packets. Ended when dropped.
struct Stream {
    work: Background,
    /// Their client, whose socket overflows.
    _client: Option<Client>,
    _socket: Option<UdpSocket>,
}

impl Stream {
    fn start(rig: &Rig, kind: Kind, interrupt: &Interrupt) -> Result<Stream> {
        let links = &rig.links;
        let (client, sink, destination) = if kind == Kind::NoTunnel {
            let bind = || UdpSocket::bind((CLIENT, STREAM_PORT));
            let sink = links.client.enter(bind)?.context("no socket")?;
            (None, Some(sink), CLIENT)
        } else {
            let client = Client::connect(&links.client, LISTENER, interrupt)?;
            (Some(client), None, Client::inner(LISTENER))
        };
        let socket = links.origin.enter(|| {
            let socket = UdpSocket::bind((ORIGIN, 0))?;
            socket.connect((destination, STREAM_PORT))?;
            std::io::Result::Ok(socket)
        })?;
        let socket = socket.context("the generator has no socket")?;
        let interrupt = interrupt.clone();
        let work = Background::start("stream", move || {
            let load = Load::new([&socket], PACKET_BYTES - HEADER_BYTES)?;
            load.repeat(Pace::Rate(STREAM_PER_S), ANSWER_WAIT, &interrupt)?;
            Ok(())
        })?;
        // The first packets find caches cold.
        thread::sleep(ANSWER_WAIT);
        Ok(Stream {
            work,
            _client: client,
            _socket: sink,
        })
    }
}
