//! Datagrams of 1,400 bytes one way: the highest rate at which at most a hundredth is lost, what
//! it costs the gateway's CPU, and what is left of it when far more is offered.

use std::net::{SocketAddrV4, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use topnet_lab::topology::ORIGIN;

use super::client::{Client, SEAL_BYTES, inner_packet};
use super::count::Count;
use super::gateway::Kind;
use super::links::{CLIENT_INTERFACE, Mode, ORIGIN_INTERFACE, Polling};
use super::load::{Load, Pace, Sent};
use super::search::{Search, Seen};
use super::{GATEWAY_CPU, PACKET_BYTES, Rig, Shared, gbit};
use crate::cpus::Busy;
use crate::lane::Measurement;

/// The client of these cases.
const NUMBER: u8 = 2;
const DISCARD_PORT: u16 = 9;
/// IPv4 and UDP header.
const HEADER_BYTES: usize = 28;
/// A rate at which so much is lost is still kept.
const LOSS_MAX: f64 = 0.01;
/// Less than this share of the rate asked for, and the generator is at its end.
const OFFERED_MIN: f64 = 0.95;
/// Where a search begins, in packets a second.
const RATE_START: f64 = 64_000.0;
const LOOK: Duration = Duration::from_millis(250);
const FINAL: Duration = Duration::from_millis(800);
const OVERLOAD: Duration = Duration::from_millis(600);
const WARM_UP: Duration = Duration::from_millis(40);
const WARM_UP_RATE: f64 = 1_000.0;
const WARM_UPS_MAX: u32 = 50;
/// What is under way when the generator stops has arrived after this.
const DRAIN: Duration = Duration::from_millis(25);
/// If the rate found does not hold for the final time, a little less is tried, so often.
const FINALS_MAX: u32 = 6;
const STEP_DOWN: f64 = 0.97;
/// Messages that are sealed ahead, at most: 430 MB.
const SEALED_MAX: usize = 300_000;

/// Which way, named after the gateway's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Origin to client.
    Seal,
    /// Client to origin.
    Open,
}

impl Direction {
    /// Both.
    pub const ALL: [Direction; 2] = [Direction::Seal, Direction::Open];

    /// In a case's name.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Seal => "seal",
            Direction::Open => "open",
        }
    }
}

/// One gateway, one mode, one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Who.
    pub kind: Kind,
    /// Over which links.
    pub mode: Mode,
    /// Which way.
    pub direction: Direction,
}

/// The figure of `vpn/udp-seal` and `vpn/udp-open`.
pub fn measure_rate(shared: &Shared, subject: Subject) -> Result<Measurement> {
    let rig = Rig::start(shared, subject.kind, subject.mode, &[Client::peer(NUMBER)])?;
    let mut way = Way::open(shared, &rig, subject.direction)?;
    let found = way.find_rate();
    let (look, generators_limit) = found.with_context(|| rig.gateway.last_words())?;
    shared.remember_rate(subject, look.arrived_rate());
    let busy_s = look.busy_s;
    ensure!(busy_s > 0.0, "the gateway's CPU was never busy");
    let value = gbit(look.arrived) / busy_s;
    let lost_percent = 100.0 * look.lost();
    Ok(Measurement::new(value, look.arrived, busy_s)
        .with("gbit_per_s", gbit_rate(look.arrived_rate()), "Gbit/s")
        .with("lost", lost_percent, "%")
        .with("cpu_busy", busy_s / look.sent.elapsed.as_secs_f64(), "1")
        .with("process_cpu_of_busy", look.process_cpu_s / busy_s, "1")
        .with("of_bare_aead", value / shared.aead_gbit_per_s()?, "1")
        .with("generators_limit", f64::from(generators_limit), "1"))
}

/// The figure of `vpn/udp-overload`.
pub fn measure_overload(shared: &Shared, subject: Subject) -> Result<Measurement> {
    let rate = match shared.known_rate(subject) {
        Some(rate) => rate,
        None => {
            measure_rate(shared, subject)?;
            let measured = shared.known_rate(subject);
            measured.context("no rate was found to compare with")?
        }
    };
    let (kind, mode, peers) = (subject.kind, subject.mode, [Client::peer(NUMBER)]);
    let rig = Rig::start_with(shared, kind, mode, &peers, Polling::Beside)?;
    let mut way = Way::open(shared, &rig, subject.direction)?;
    let look = way.look(Pace::Unlimited, OVERLOAD)?;
    Ok(
        Measurement::new(look.arrived_rate() / rate, look.arrived, look.busy_s)
            .with("gbit_per_s", gbit_rate(look.arrived_rate()), "Gbit/s")
            .with("offered", gbit_rate(look.sent.rate()), "Gbit/s")
            .with("offered_of_kept_rate", look.sent.rate() / rate, "1")
            .with("kept_rate", gbit_rate(rate), "Gbit/s"),
    )
}

fn gbit_rate(packets_per_s: f64) -> f64 {
    packets_per_s * gbit(1)
}

/// What a look at one rate has shown.
#[derive(Clone, Copy, Debug)]
struct Look {
    sent: Sent,
    arrived: u64,
    busy_s: f64,
    process_cpu_s: f64,
}

impl Look {
    fn lost(&self) -> f64 {
        1.0 - self.arrived as f64 / self.sent.datagrams.max(1) as f64
    }

    fn arrived_rate(&self) -> f64 {
        self.arrived as f64 / self.sent.elapsed.as_secs_f64()
    }

    fn seen(&self, rate: f64) -> Seen {
        if self.lost() > LOSS_MAX {
            Seen::Lost
        } else if self.sent.rate() < rate * OFFERED_MIN {
            Seen::NotOffered
        } else {
            Seen::Kept
        }
    }
}

/// A client with its session, a generator at one end, a counter at the other.
struct Way<'a> {
    shared: &'a Shared,
    rig: &'a Rig,
    direction: Direction,
    client: Client,
    arrivals: Count<'a>,
    /// The origin's.
    socket: UdpSocket,
    sealed: Vec<u8>,
}

impl<'a> Way<'a> {
    fn open(shared: &'a Shared, rig: &'a Rig, direction: Direction) -> Result<Way<'a>> {
        let links = &rig.links;
        let interrupt = &shared.setup.interrupt;
        let connected = Client::connect(&links.client, NUMBER, interrupt);
        let client = connected.with_context(|| rig.gateway.last_words())?;
        let arrivals = match direction {
            Direction::Seal => {
                links.sink_client()?;
                Count::start(&links.client, CLIENT_INTERFACE)?
            }
            Direction::Open => {
                links.sink_origin()?;
                Count::start(&links.origin, ORIGIN_INTERFACE)?
            }
        };
        let socket = links.origin.enter(|| {
            let socket = UdpSocket::bind((ORIGIN, 0))?;
            socket.connect((Client::inner(NUMBER), DISCARD_PORT))?;
            std::io::Result::Ok(socket)
        })?;
        let mut way = Way {
            shared,
            rig,
            direction,
            client,
            arrivals,
            socket: socket.context("the generator has no socket")?,
            sealed: Vec::new(),
        };
        way.warm_up()?;
        Ok(way)
    }

    /// Sends a little until something arrives. A flood that began while neighbours look for each
    /// other would be lost, and the question with it.
    fn warm_up(&mut self) -> Result<()> {
        for _ in 0..WARM_UPS_MAX {
            if self.look(Pace::Rate(WARM_UP_RATE), WARM_UP)?.arrived > 0 {
                return Ok(());
            }
        }
        bail!(
            "nothing that is sent arrives\n{}",
            self.rig.gateway.last_words()
        )
    }

    /// The highest rate that is kept, and a longer look at it.
    fn find_rate(&mut self) -> Result<(Look, bool)> {
        let mut search = Search::from(RATE_START);
        while let Some(rate) = search.rate() {
            let look = self.look(Pace::Rate(rate), LOOK)?;
            search.tell(look.seen(rate));
        }
        let best = search.best();
        let mut rate = best.context("the gateway loses more than a hundredth at any rate")?;
        let mut look = self.look(Pace::Rate(rate), FINAL)?;
        for _ in 1..FINALS_MAX {
            if look.lost() <= LOSS_MAX {
                break;
            }
            rate *= STEP_DOWN;
            look = self.look(Pace::Rate(rate), FINAL)?;
        }
        Ok((look, search.is_generators_limit()))
    }

    fn look(&mut self, pace: Pace, time: Duration) -> Result<Look> {
        let interrupt = self.shared.setup.interrupt.clone();
        interrupt.check()?;
        match self.direction {
            // Nothing else tells the gateway that the client is still there.
            Direction::Seal => self.client.keep_alive()?,
            Direction::Open => self.seal_ahead(pace, time)?,
        }
        let before = self.arrivals.packets()?;
        let (busy, cpu_s) = (Busy::start(GATEWAY_CPU)?, self.rig.gateway.cpu_s()?);
        let sent = match self.direction {
            Direction::Seal => {
                let load = Load::new(&self.socket, PACKET_BYTES - HEADER_BYTES)?;
                load.repeat(pace, time, &interrupt)?
            }
            Direction::Open => {
                let load = Load::new(self.client.socket(), PACKET_BYTES + SEAL_BYTES)?;
                load.once(pace, &self.sealed, &interrupt)?
            }
        };
        // What arrives after an unlimited offer has waited in queues, and is not of its time.
        if pace != Pace::Unlimited {
            sleep(DRAIN);
        }
        let busy_s = busy.busy_s()?;
        let process_cpu_s = self.rig.gateway.cpu_s()? - cpu_s;
        let arrived = self.arrivals.packets()? - before;
        sleep(DRAIN);
        Ok(Look {
            sent,
            arrived,
            busy_s,
            process_cpu_s,
        })
    }

    /// Seals what a look will send. Each message has its own counter, so none can be sent twice.
    fn seal_ahead(&mut self, pace: Pace, time: Duration) -> Result<()> {
        let datagrams = match pace {
            Pace::Rate(rate) => ((rate * time.as_secs_f64()) as usize).min(SEALED_MAX),
            Pace::Unlimited => SEALED_MAX,
        };
        let source = SocketAddrV4::new(Client::inner(NUMBER), DISCARD_PORT);
        let destination = SocketAddrV4::new(ORIGIN, DISCARD_PORT);
        let packet = inner_packet(source, destination, PACKET_BYTES, &[]);
        let message_bytes = PACKET_BYTES + SEAL_BYTES;
        self.sealed.resize(datagrams.max(1) * message_bytes, 0);
        for message in self.sealed.chunks_exact_mut(message_bytes) {
            self.client.seal(&packet, message)?;
        }
        Ok(())
    }
}
