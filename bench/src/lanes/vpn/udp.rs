//! Datagrams of 1,400 bytes one way: the highest rate at which at most a hundredth is lost, what
//! it costs the gateway's CPU, and what is left of it when far more is offered.

use std::net::{SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use topnet_lab::topology::ORIGIN;

use super::client::{Client, SEAL_BYTES, inner_packet};
use super::count::Count;
use super::gateway::{Kind, Peer};
use super::links::{CLIENT_INTERFACE, Mode, ORIGIN_INTERFACE, Polling};
use super::load::{Load, Pace, Sent};
use super::search::{Search, Seen};
use super::{GATEWAY_CPU, PACKET_BYTES, Rig, Shared, gbit};
use crate::cpus::Busy;
use crate::lane::Measurement;

/// The first client's number; 1 would be the gateway's address.
const FIRST: u8 = 2;
/// Datagrams in a row for one client, at most, where there are several: with longer trains a burst
/// of the gateway's would see no more than two of them.
const TRAIN_AMONG_MANY: usize = 8;
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
pub const FINAL: Duration = Duration::from_millis(800);
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
/// Of short packets, for each second of a look: it is shorter rather than that flows run out.
const SHORT_SEALED_PER_S_MAX: f64 = 300_000.0;
/// A question to a name server, say.
const SHORT_BYTES: usize = 64;
/// The first port of a client's flows.
const FIRST_PORT: u16 = 1_024;
/// Ports of one client's.
pub const FLOW_PORTS: u32 = 16_384;
/// Remotes that are called from each of them before the next.
pub const FLOWS_PER_PORT: u32 = 4;

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

/// What the packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// As long as most are, of one flow a client.
    Flow,
    /// Short, and each the first of its flow, as the NAT sees it; from the client only. Four flows
    /// in turn have the same port of the client.
    NewFlows,
    /// The same packets, all of one flow a client.
    KnownFlow,
}

impl Content {
    fn packet_bytes(self) -> usize {
        match self {
            Content::Flow => PACKET_BYTES,
            Content::NewFlows | Content::KnownFlow => SHORT_BYTES,
        }
    }

    /// Messages that are sealed ahead for a look, at most.
    fn sealed_max(self, time: Duration) -> usize {
        match self {
            Content::Flow => SEALED_MAX,
            Content::NewFlows | Content::KnownFlow => {
                (time.as_secs_f64() * SHORT_SEALED_PER_S_MAX) as usize
            }
        }
    }
}

/// One gateway, one mode, one way, so many clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Who.
    pub kind: Kind,
    /// Over which links.
    pub mode: Mode,
    /// Which way.
    pub direction: Direction,
    /// Among how many clients the packets are spread.
    pub clients: u8,
    /// Of what.
    pub content: Content,
}

impl Subject {
    /// Its clients'.
    pub fn numbers(&self) -> Range<u8> {
        FIRST..FIRST + self.clients
    }

    /// As the gateway knows them.
    pub fn peers(&self) -> Vec<Peer> {
        self.numbers().map(Client::peer).collect()
    }
}

/// The figure of `vpn/udp-seal` and `vpn/udp-open`.
pub fn measure_rate(shared: &Shared, subject: Subject) -> Result<Measurement> {
    let rig = Rig::start(shared, subject.kind, subject.mode, &subject.peers())?;
    let mut way = Way::open(shared, &rig, subject)?;
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
    let (kind, mode, peers) = (subject.kind, subject.mode, subject.peers());
    let rig = Rig::start_with(shared, kind, mode, &peers, Polling::Beside, None)?;
    let mut way = Way::open(shared, &rig, subject)?;
    let look = way.look(Pace::Unlimited, OVERLOAD)?;
    Ok(
        Measurement::new(look.arrived_rate() / rate, look.arrived, look.busy_s)
            .with("gbit_per_s", gbit_rate(look.arrived_rate()), "Gbit/s")
            .with("offered", gbit_rate(look.sent.rate()), "Gbit/s")
            .with("offered_of_kept_rate", look.sent.rate() / rate, "1")
            .with("process_cpu_of_busy", look.process_cpu_s / look.busy_s, "1")
            .with("kept_rate", gbit_rate(rate), "Gbit/s"),
    )
}

fn gbit_rate(packets_per_s: f64) -> f64 {
    packets_per_s * gbit(1)
}

/// What a look at one rate has shown.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// What was sent.
    pub sent: Sent,
    /// How much of it arrived.
    pub arrived: u64,
    /// Of the gateway's CPU.
    pub busy_s: f64,
    /// Of the gateway's process.
    pub process_cpu_s: f64,
}

impl Look {
    /// The share that did not arrive.
    pub fn lost(&self) -> f64 {
        1.0 - self.arrived as f64 / self.sent.datagrams.max(1) as f64
    }

    /// Packets a second.
    pub fn arrived_rate(&self) -> f64 {
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

/// Clients with their sessions, a generator at one end, a counter at the other.
pub struct Way<'a> {
    shared: &'a Shared,
    rig: &'a Rig,
    subject: Subject,
    /// Of each client's flows, how many have begun.
    flows: Vec<u32>,
    clients: Vec<Client>,
    arrivals: Count<'a>,
    /// The origin's, one for each client.
    sockets: Vec<UdpSocket>,
    sealed: Vec<u8>,
}

impl<'a> Way<'a> {
    /// Connects the clients and waits until packets pass.
    pub fn open(shared: &'a Shared, rig: &'a Rig, subject: Subject) -> Result<Way<'a>> {
        let links = &rig.links;
        let interrupt = &shared.setup.interrupt;
        let connected = subject
            .numbers()
            .map(|number| Client::connect(&links.client, number, interrupt))
            .collect::<Result<Vec<_>>>();
        let clients = connected.with_context(|| rig.gateway.last_words())?;
        let arrivals = match subject.direction {
            Direction::Seal => {
                links.sink_client()?;
                Count::start(&links.client, CLIENT_INTERFACE)?
            }
            Direction::Open => {
                links.sink_origin()?;
                Count::start(&links.origin, ORIGIN_INTERFACE)?
            }
        };
        let sockets = links.origin.enter(|| {
            let to = |number| {
                let socket = UdpSocket::bind((ORIGIN, 0))?;
                socket.connect((Client::inner(number), DISCARD_PORT))?;
                Ok(socket)
            };
            subject.numbers().map(to).collect::<std::io::Result<_>>()
        })?;
        let mut way = Way {
            shared,
            rig,
            subject,
            flows: vec![0; clients.len()],
            clients,
            arrivals,
            sockets: sockets.context("the generator has no sockets")?,
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

    /// What the packets are from now on.
    pub fn bring(&mut self, content: Content) {
        self.subject.content = content;
    }

    /// The highest rate that is kept, and a longer look at it.
    pub fn find_rate(&mut self) -> Result<(Look, bool)> {
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

    /// A look at a pace.
    pub fn look(&mut self, pace: Pace, time: Duration) -> Result<Look> {
        let interrupt = self.shared.setup.interrupt.clone();
        interrupt.check()?;
        match self.subject.direction {
            // Nothing else tells the gateway that its clients are still there.
            Direction::Seal => self.clients.iter_mut().try_for_each(Client::keep_alive)?,
            Direction::Open => self.seal_ahead(pace, time)?,
        }
        let before = self.arrivals.packets()?;
        let (busy, cpu_s) = (Busy::start(GATEWAY_CPU)?, self.rig.gateway.cpu_s()?);
        let load = self.load()?;
        let sent = match self.subject.direction {
            Direction::Seal => load.repeat(pace, time, &interrupt)?,
            Direction::Open => load.once(pace, &self.sealed, &interrupt)?,
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

    fn load(&self) -> Result<Load<'_>> {
        let packet_bytes = self.subject.content.packet_bytes();
        let load = match self.subject.direction {
            Direction::Seal => Load::new(&self.sockets, packet_bytes - HEADER_BYTES)?,
            Direction::Open => {
                let sockets = self.clients.iter().map(Client::socket);
                Load::new(sockets, packet_bytes + SEAL_BYTES)?
            }
        };
        Ok(match self.subject.clients {
            1 => load,
            _ => load.with_trains_of(TRAIN_AMONG_MANY),
        })
    }

    /// Seals what a look will send. Each message has its own counter, so none can be sent twice.
    fn seal_ahead(&mut self, pace: Pace, time: Duration) -> Result<()> {
        let content = self.subject.content;
        let datagrams = match pace {
            Pace::Rate(rate) => (rate * time.as_secs_f64()) as usize,
            Pace::Unlimited => usize::MAX,
        };
        let datagrams = datagrams.min(content.sealed_max(time)).max(1);
        let load = self.load()?;
        let senders: Vec<usize> = (0..datagrams)
            .map(|datagram| load.sender(pace, datagram))
            .collect();
        let known: Vec<_> = self
            .subject
            .numbers()
            .map(|number| packet_of(number, [DISCARD_PORT; 2], content))
            .collect();
        let message_bytes = content.packet_bytes() + SEAL_BYTES;
        self.sealed.resize(datagrams * message_bytes, 0);
        let messages = self.sealed.chunks_exact_mut(message_bytes);
        for (message, sender) in messages.zip(senders) {
            if content == Content::NewFlows {
                let ports = ports_of_flow(self.flows[sender])?;
                self.flows[sender] += 1;
                let packet = packet_of(FIRST + sender as u8, ports, content);
                self.clients[sender].seal(&packet, message)?;
            } else {
                self.clients[sender].seal(&known[sender], message)?;
            }
        }
        Ok(())
    }
}

/// From a client to the origin, between these ports.
fn packet_of(number: u8, ports: [u16; 2], content: Content) -> Vec<u8> {
    let source = SocketAddrV4::new(Client::inner(number), ports[0]);
    let destination = SocketAddrV4::new(ORIGIN, ports[1]);
    inner_packet(source, destination, content.packet_bytes(), &[])
}

/// The ports of a client's flow, by its number. No two have the same.
fn ports_of_flow(flow: u32) -> Result<[u16; 2]> {
    let (port, remote) = (flow / FLOWS_PER_PORT, flow % FLOWS_PER_PORT);
    ensure!(port < FLOW_PORTS, "the clients have no flows left");
    Ok([FIRST_PORT + port as u16, DISCARD_PORT + remote as u16])
}
