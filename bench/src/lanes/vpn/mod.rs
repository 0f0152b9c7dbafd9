//! A VPN gateway on one CPU: the product's data plane beside wireguard-go and boringtun-cli.
//!
//! Every measurement makes its own client, provider and origin in network namespaces
//! ([`links`]), starts one gateway as a process on CPU 0 ([`gateway`]), and does everything else
//! on CPU 1. Generator, sink and links are the same for all. A figure a CPU second counts all that
//! the gateway's CPU did that was not idle, the kernel's part included.
//!
//! The product runs as its own process with its own tables and a session from its own API; this
//! process is its control and metering ([`product`]) and never lets its credit end.

mod aead;
mod background;
mod client;
mod count;
mod gateway;
mod handshakes;
mod latency;
mod links;
mod load;
mod nat;
mod product;
mod search;
mod storm;
mod tcp;
mod udp;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

pub use self::product::run_data_plane;

use self::gateway::{Backend, Gateway, Kind, Peer, Plan};
use self::links::{Links, Mode, Polling};
use self::udp::{Content, Direction, Subject};
use crate::cpus::pin;
use crate::lane::{Better, Case, Contender, Lane, Measurement};
use crate::lanes::Setup;
use crate::lanes::forward::compare_metering;

/// Where the gateway runs, with what the kernel does on its behalf.
const GATEWAY_CPU: usize = 0;
/// Where everything else runs.
const LOAD_CPU: usize = 1;
/// As the product is configured by default.
const WIREGUARD_PORT: u16 = 51_820;
/// The same.
const INNER_MTU: u16 = 1_420;
/// Length of the inner IPv4 packets.
const PACKET_BYTES: usize = 1_400;
const TCP_CONNECTIONS: [usize; 2] = [1, 8];
/// Clients of the UDP cases: one, and four times as many as the product's open trains.
const UDP_CLIENTS: [u8; 2] = [1, 64];

/// Lengths at which metering's share is measured: the largest packets, of which most are, and the
/// smallest, of which it is the largest share.
const METERED_BYTES: [usize; 2] = [PACKET_BYTES, 64];

/// The VPN gateway beside others.
pub struct VpnLane {
    shared: Arc<Shared>,
}

impl VpnLane {
    /// A lane whose rounds end when a signal comes.
    pub fn new(setup: Setup) -> VpnLane {
        VpnLane {
            shared: Arc::new(Shared {
                setup,
                rates: Mutex::default(),
                aead: Mutex::default(),
            }),
        }
    }
}

impl Lane for VpnLane {
    fn name(&self) -> &'static str {
        "vpn"
    }

    fn about(&self) -> &'static str {
        "the VPN gateway on one CPU beside wireguard-go and boringtun-cli (needs root)"
    }

    fn cases(&self) -> Result<Vec<Case>> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "it makes network namespaces, which needs root: run `cargo xtask bench vpn`, which \
             elevates only the measurement, or with sudo"
        );
        let mut cases = vec![self.aead()];
        for clients in UDP_CLIENTS {
            for direction in Direction::ALL {
                for mode in Mode::ALL {
                    cases.push(self.udp_rate(direction, mode, clients)?);
                }
            }
        }
        for direction in Direction::ALL {
            for mode in Mode::ALL {
                cases.push(self.udp_overload(direction, mode)?);
            }
        }
        for connections in TCP_CONNECTIONS {
            for direction in tcp::Direction::ALL {
                for mode in Mode::ALL {
                    cases.push(self.tcp(connections, direction, mode)?);
                }
            }
        }
        cases.extend([
            self.latency(false)?,
            self.latency(true)?,
            self.handshakes()?,
            self.nat_flows()?,
            self.handshake_storm()?,
        ]);
        cases.extend(METERED_BYTES.map(|bytes| self.metering(bytes)));
        Ok(cases)
    }
}

impl VpnLane {
    fn aead(&self) -> Case {
        Case {
            name: "vpn/aead".to_owned(),
            metric: "gbit_per_s".to_owned(),
            unit: "Gbit/s".to_owned(),
            better: Better::Higher,
            mode: format!(
                "ring's ChaCha20-Poly1305 alone, {PACKET_BYTES} bytes at a time, one core: what \
                 the other cases are told as shares of"
            ),
            ours: Contender::new(crate::lanes::VERSION, aead::measure),
            peers: Vec::new(),
        }
    }

    fn udp_rate(&self, direction: Direction, mode: Mode, clients: u8) -> Result<Case> {
        let way = match direction {
            Direction::Seal => "origin to client",
            Direction::Open => "client to origin, sealed ahead",
        };
        let measure = move |shared: &Shared, kind| {
            let subject = Subject {
                kind,
                mode,
                direction,
                clients,
                content: Content::Flow,
            };
            udp::measure_rate(shared, subject)
        };
        let (among, sessions) = match clients {
            1 => (String::new(), "one session".to_owned()),
            _ => (
                format!("-{clients}peers"),
                format!("{clients} sessions, trains of at most 8 for each in turn"),
            ),
        };
        self.case(
            Figure {
                name: format!("udp-{}{among}-{}", direction.name(), mode.name()),
                metric: "gbit_per_cpu_s",
                unit: "Gbit/CPU-s",
                better: Better::Higher,
                about: format!(
                    "{PACKET_BYTES}-byte inner packets, {way}, {sessions}, at the highest rate \
                     found with at most 1 % lost; {}",
                    mode.about()
                ),
            },
            Kind::tunnels(),
            measure,
        )
    }

    fn udp_overload(&self, direction: Direction, mode: Mode) -> Result<Case> {
        let measure = move |shared: &Shared, kind| {
            let subject = Subject {
                kind,
                mode,
                direction,
                clients: 1,
                content: Content::Flow,
            };
            udp::measure_overload(shared, subject)
        };
        self.case(
            Figure {
                name: format!("udp-overload-{}-{}", direction.name(), mode.name()),
                metric: "of_kept_rate",
                unit: "1",
                better: Better::Higher,
                about: format!(
                    "what is forwarded of an offer as fast as the generator sends, as a share of \
                     the rate with at most 1 % lost; {}",
                    mode.about()
                ),
            },
            Kind::tunnels(),
            measure,
        )
    }

    fn tcp(&self, connections: usize, direction: tcp::Direction, mode: Mode) -> Result<Case> {
        let measure =
            move |shared: &Shared, kind| tcp::measure(shared, kind, mode, direction, connections);
        self.case(
            Figure {
                name: format!("tcp{connections}-{}-{}", direction.name(), mode.name()),
                metric: "gbit_per_cpu_s",
                unit: "Gbit/CPU-s",
                better: Better::Higher,
                about: format!(
                    "bytes of {connections} TCP connections through a wireguard-go client, which \
                     has the other CPU with both ends of the connections; {}",
                    mode.about()
                ),
            },
            Kind::tunnels(),
            measure,
        )
    }

    fn latency(&self, loaded: bool) -> Result<Case> {
        let (name, beside) = match loaded {
            false => ("latency-idle", "alone"),
            true => (
                "latency-load",
                "beside 40,000 packets of 1,400 bytes a second",
            ),
        };
        let kinds = Kind::tunnels().into_iter().chain([Kind::NoTunnel]);
        self.case(
            Figure {
                name: name.to_owned(),
                metric: "round_trip_p50",
                unit: "us",
                better: Better::Lower,
                about: format!(
                    "128-byte datagrams to the origin and back, one a millisecond, {beside}; {}",
                    Mode::Wire.about()
                ),
            },
            kinds.collect(),
            move |shared, kind| latency::measure(shared, kind, loaded),
        )
    }

    fn handshakes(&self) -> Result<Case> {
        self.case(
            Figure {
                name: "handshakes".to_owned(),
                metric: "handshakes_per_s",
                unit: "1/s",
                better: Better::Higher,
                about: "one after the other, 96 clients in turn; the client's half of each is in \
                        the time and not in the CPU"
                    .to_owned(),
            },
            Kind::tunnels(),
            handshakes::measure,
        )
    }

    fn nat_flows(&self) -> Result<Case> {
        self.case(
            Figure {
                name: "nat-flows".to_owned(),
                metric: "flows_per_cpu_s",
                unit: "1/CPU-s",
                better: Better::Higher,
                about: format!(
                    "64-byte datagrams of {} clients, each the first of its flow and four of \
                     each of its client's ports, through shared addresses at the highest rate found \
                     with at most 1 % lost; {}",
                    nat::CLIENTS,
                    Mode::Wire.about()
                ),
            },
            Backend::ALL.into_iter().map(Kind::Topnet).collect(),
            nat::measure,
        )
    }

    fn handshake_storm(&self) -> Result<Case> {
        self.case(
            Figure {
                name: "handshake-storm".to_owned(),
                metric: "echoes_kept",
                unit: "1",
                better: Better::Higher,
                about: format!(
                    "128-byte datagrams to the origin and back, one a millisecond, while {} \
                     strangers send {} handshake initiations a second, then one TCP connection \
                     down; {}",
                    storm::SOURCES,
                    storm::STORM_PER_S,
                    Mode::Wire.about()
                ),
            },
            Kind::tunnels(),
            storm::measure,
        )
    }

    fn metering(&self, packet_bytes: usize) -> Case {
        let interrupt = self.shared.setup.interrupt.clone();
        Case {
            name: format!("vpn/metering-{packet_bytes}"),
            metric: "metering_of_unmetered".to_owned(),
            unit: "%".to_owned(),
            better: Better::Lower,
            mode: format!(
                "what metering adds to the worker's CPU time for a packet, of that time without it, \
                 in turn every few milliseconds in one worker; {packet_bytes}-byte inner packets \
                 origin to client, one session, AF_XDP, flood above capacity; where min and max \
                 have different signs it is below what can be seen"
            ),
            ours: Contender::new(crate::lanes::VERSION, move || {
                let cost = compare_metering(&interrupt, packet_bytes)?;
                let measured = Measurement::new(100.0 * cost.share, cost.packets, cost.cpu_s);
                Ok(measured.with("metering", cost.packet_ns, "ns"))
            }),
            peers: Vec::new(),
        }
    }

    /// A case with one contender a kind, the first of which is ours.
    fn case(
        &self,
        figure: Figure,
        kinds: Vec<Kind>,
        measure: impl Fn(&Shared, Kind) -> Result<Measurement> + Clone + Send + Sync + 'static,
    ) -> Result<Case> {
        let contender = |kind: Kind| {
            let (shared, measure) = (Arc::clone(&self.shared), measure.clone());
            Contender::new(kind.version(), move || {
                on_load_cpu(|| measure(&shared, kind))
            })
        };
        let mut kinds = kinds.into_iter();
        let ours = kinds.next().context("a case has a contender")?;
        let peers = kinds.map(|kind| (kind.name(), contender(kind)));
        Ok(Case {
            name: format!("vpn/{}", figure.name),
            metric: figure.metric.to_owned(),
            unit: figure.unit.to_owned(),
            better: figure.better,
            mode: format!("{}; ours is {}", figure.about, ours.name()),
            ours: contender(ours),
            peers: peers.collect(),
        })
    }
}

/// What a case is called and counts.
struct Figure {
    name: String,
    metric: &'static str,
    unit: &'static str,
    better: Better,
    about: String,
}

/// What the lane's measurements know of each other.
pub struct Shared {
    setup: Setup,
    /// Packets a second that each kept in its last search.
    rates: Mutex<HashMap<Subject, f64>>,
    aead: Mutex<Option<f64>>,
}

impl Shared {
    fn remember_rate(&self, subject: Subject, rate: f64) {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.insert(subject, rate);
    }

    fn known_rate(&self, subject: Subject) -> Option<f64> {
        let rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.get(&subject).copied()
    }

    /// What the bare cipher does, measured once in a run.
    fn aead_gbit_per_s(&self) -> Result<f64> {
        let mut known = self.aead.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = *known {
            return Ok(known);
        }
        Ok(*known.insert(aead::measure()?.value))
    }
}

/// A gateway between its links. The gateway goes first.
struct Rig {
    gateway: Gateway,
    links: Links,
}

impl Rig {
    fn start(shared: &Shared, kind: Kind, mode: Mode, peers: &[Peer]) -> Result<Rig> {
        Rig::start_with(shared, kind, mode, peers, Polling::First, None)
    }

    fn start_with(
        shared: &Shared,
        kind: Kind,
        mode: Mode,
        peers: &[Peer],
        polling: Polling,
        nat: Option<&str>,
    ) -> Result<Rig> {
        let links = Links::create(mode, kind.needs_whole_checksums())
            .context("the links cannot be made")?;
        let gateway = Gateway::start(&Plan {
            kind,
            links: &links,
            peers,
            nat,
            polling,
            program: &shared.setup.program,
            interrupt: &shared.setup.interrupt,
        })?;
        Ok(Rig { gateway, links })
    }
}

/// Does `work` on the load's CPU, with every thread and process that it starts and does not place
/// elsewhere; this thread stays where it is.
fn on_load_cpu<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            pin(LOAD_CPU)?;
            work()
        });
        work.join().map_err(|_| anyhow!("a measurement panicked"))?
    })
}

/// Inner packets in Gbit.
fn gbit(packets: u64) -> f64 {
    packets as f64 * (PACKET_BYTES * 8) as f64 / 1e9
}
