//! Packets through the gateway, origin to client: the product's worker with its real sockets and
//! its real WireGuard, beside the kernel's own forwarding between the same interfaces.
//!
//! The generator floods with more than the gateway passes on; what arrives at the client counts.
//! The client drops it before it costs anything: the gateway addresses its frames to a hardware
//! address that nobody has. The generator's CPU also does what the kernel does at a veth's other
//! end on the sender's behalf: for us the XDP program and the copy into the socket's frames.
//! The kernel's forwarding is moved to the gateway's CPU by receive packet steering.

mod arrivals;
mod cost;
mod flood;
mod gateway;

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use topnet_dataplane::accounting::{Gate, OpenGate};
use topnet_lab::interrupt::Interrupt;
use topnet_lab::topology::{CLIENT, CLIENTS_INTERFACE, Topology, UPLINK_INTERFACE};

use self::arrivals::Arrivals;
use self::cost::{Alternating, MeteringCost, metering_cost};
use self::flood::Flood;
use self::gateway::{Gateway, MakeGate};
use crate::cpus::Busy;
use crate::lane::{Better, Case, Contender, Lane, Measurement};

/// Begins the namespaces' names, so that a lab can run beside.
const PREFIX: &str = "topnet-bench-";
/// The client's interface.
const CLIENT_INTERFACE: &str = "uplink";
/// Where the flood goes.
const INNER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// A hardware address that nobody has.
const SINK: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
/// Where the generator sends, with what the kernel does on its behalf up to the gateway's queue.
const GENERATOR_CPU: usize = 0;
/// Where the gateway forwards: our worker, or the kernel.
const GATEWAY_CPU: usize = 1;
const WARM_UP: Duration = Duration::from_millis(500);
const ROUND: Duration = Duration::from_secs(2);
/// Shorter than what boringtun lets pass without an answer before it shakes hands again.
const COST_ROUND: Duration = Duration::from_secs(4);
/// Comparisons without which a round says nothing about metering's cost.
const COMPARISONS_MIN: usize = 10;
/// A gateway that loses less than this share of what is sent may have been waiting for it.
const LOSS_MIN: f64 = 0.01;
/// Lengths of the inner IPv4 packets.
const PACKET_BYTES: [usize; 2] = [64, 1400];
/// The length at which metering's share of a packet is largest.
const COST_PACKET_BYTES: usize = 64;

/// Forwarding, with and without metering.
pub struct ForwardLane {
    interrupt: Interrupt,
}

impl ForwardLane {
    /// A lane whose rounds end when a signal comes.
    pub fn new(interrupt: Interrupt) -> ForwardLane {
        ForwardLane { interrupt }
    }
}

impl Lane for ForwardLane {
    fn name(&self) -> &'static str {
        "forward"
    }

    fn about(&self) -> &'static str {
        "packets through the AF_XDP gateway with and without metering, beside the kernel's own \
         forwarding (needs root)"
    }

    fn cases(&self) -> Result<Vec<Case>> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "it makes network namespaces, which needs root: run `cargo xtask bench forward`, \
             which elevates only the measurement, or with sudo"
        );
        let mut cases = Vec::new();
        for packet_bytes in PACKET_BYTES {
            cases.push(self.throughput("metered", packet_bytes, |metering| metering));
            cases.push(self.throughput("unmetered", packet_bytes, |_| OpenGate));
        }
        cases.push(self.metering_cost());
        Ok(cases)
    }
}

impl ForwardLane {
    fn throughput<G: Gate + Send + 'static>(
        &self,
        metering: &str,
        packet_bytes: usize,
        make_gate: fn(topnet_dataplane::accounting::Accounting) -> G,
    ) -> Case {
        let ours = self.interrupt.clone();
        let kernel = self.interrupt.clone();
        Case {
            name: format!("forward/{packet_bytes}-{metering}"),
            metric: "packets_per_s".to_owned(),
            unit: "1/s".to_owned(),
            better: Better::Higher,
            mode: format!(
                "{metering}, {packet_bytes}-byte inner packets origin to client, one session, one \
                 worker, AF_XDP native copy on veth, flood above capacity; the kernel peer does \
                 not encrypt and is as fast as the generator at most; CPU time is what the \
                 gateway's CPU was not idle"
            ),
            ours: Contender::new(env!("CARGO_PKG_VERSION"), move || {
                own_round(&ours, packet_bytes, Box::new(make_gate))
            }),
            peers: vec![(
                "kernel ip_forward".to_owned(),
                Contender::new(kernel_version(), move || {
                    kernel_round(&kernel, packet_bytes)
                }),
            )],
        }
    }

    fn metering_cost(&self) -> Case {
        let interrupt = self.interrupt.clone();
        Case {
            name: "forward/metering-cost".to_owned(),
            metric: "metering_ns_per_packet".to_owned(),
            unit: "ns".to_owned(),
            better: Better::Lower,
            mode: format!(
                "the worker's CPU time for a packet with metering less without, in turn every few \
                 milliseconds in one worker, {COST_PACKET_BYTES}-byte inner packets, one session; \
                 where min and max have different signs the cost is below what can be seen"
            ),
            ours: Contender::new(env!("CARGO_PKG_VERSION"), move || cost_round(&interrupt)),
            peers: Vec::new(),
        }
    }
}

fn own_round<G: Gate + Send + 'static>(
    interrupt: &Interrupt,
    packet_bytes: usize,
    make_gate: Box<MakeGate<G>>,
) -> Result<Measurement> {
    let topology = topology()?;
    let gateway = Gateway::start(&topology, make_gate)?;
    let passed = arrivals_of_flood(&topology, interrupt, packet_bytes);
    let account = gateway.account();
    // If it ended by itself, that is the reason for everything else.
    gateway.finish()?;
    let Passed { measurement, sent } =
        passed.with_context(|| format!("at the gateway, {account}"))?;
    if measurement.samples as f64 > sent as f64 * (1.0 - LOSS_MIN) {
        eprintln!(
            "the gateway passed on all {sent} packets that the generator sent in this round, and \
             might pass on more: leave CPUs 0 and 1 to the measurement"
        );
    }
    Ok(measurement)
}

fn kernel_round(interrupt: &Interrupt, packet_bytes: usize) -> Result<Measurement> {
    let topology = topology()?;
    topology.provider.sysctl("net.ipv4.ip_forward", "1")?;
    let provider = topology.provider.name();
    let sink = SINK.map(|byte| format!("{byte:02x}")).join(":");
    let inner = format!("{INNER}/32");
    let client = CLIENT.to_string();
    for words in [
        [
            "neigh",
            "replace",
            &client,
            "lladdr",
            &sink,
            "dev",
            CLIENTS_INTERFACE,
        ]
        .as_slice(),
        &["route", "replace", &inner, "via", &client],
        // Every CPU of the mask shares the work; there is one in it.
        &["netns", "exec", provider, "sh", "-c", &steer_receiving()],
    ] {
        let mut command = Command::new("ip");
        command.args(words);
        topology.provider.run(command)?;
    }
    Ok(arrivals_of_flood(&topology, interrupt, packet_bytes)?.measurement)
}

/// Moves the kernel's receive work of the uplink from the generator's CPU to the gateway's.
fn steer_receiving() -> String {
    let mask = 1 << GATEWAY_CPU;
    format!("echo {mask:x} > /sys/class/net/{UPLINK_INTERFACE}/queues/rx-0/rps_cpus")
}

/// What came through, and of how many.
struct Passed {
    measurement: Measurement,
    sent: u64,
}

/// Packets a second that arrive at the client while the origin floods.
fn arrivals_of_flood(
    topology: &Topology,
    interrupt: &Interrupt,
    packet_bytes: usize,
) -> Result<Passed> {
    let arrivals = Arrivals::of(&topology.client, CLIENT_INTERFACE)?;
    let flood = Flood::start(topology, INNER, packet_bytes)?;
    interrupt.sleep(WARM_UP)?;
    let (busy, began) = (Busy::start(GATEWAY_CPU)?, Instant::now());
    let (before, sent_before) = (arrivals.packets()?, flood.sent());
    interrupt.sleep(ROUND)?;
    let (samples, elapsed) = (arrivals.packets()? - before, began.elapsed());
    let cpu_s = busy.busy_s()?;
    let sent = flood.sent() - sent_before;
    flood.finish()?;
    ensure!(
        samples > 0,
        "of {sent} packets sent none arrived at the client"
    );
    let measurement = Measurement::new(samples as f64 / elapsed.as_secs_f64(), samples, cpu_s);
    Ok(Passed { measurement, sent })
}

fn cost_round(interrupt: &Interrupt) -> Result<Measurement> {
    let cost = compare_metering(interrupt, COST_PACKET_BYTES)?;
    Ok(Measurement::new(cost.packet_ns, cost.packets, cost.cpu_s))
}

/// What metering adds to inner packets of this length, in one worker that meters and does not in
/// turn.
pub fn compare_metering(interrupt: &Interrupt, packet_bytes: usize) -> Result<MeteringCost> {
    let topology = topology()?;
    let (tell, phases) = mpsc::channel();
    let gateway = Gateway::start(
        &topology,
        Box::new(move |metering| Alternating::new(metering, tell)),
    )?;
    let flood = Flood::start(&topology, INNER, packet_bytes)?;
    interrupt.sleep(WARM_UP)?;
    // What was told during the warm-up.
    phases.try_iter().for_each(drop);
    interrupt.sleep(COST_ROUND)?;
    let phases: Vec<_> = phases.try_iter().collect();
    let sent = flood.sent();
    flood.finish()?;
    let cost = metering_cost(&phases, COMPARISONS_MIN).with_context(|| {
        format!(
            "{sent} packets sent kept the worker busy too seldom to tell what one costs ({} of {} \
             phases): leave CPUs 0 and 1 to the measurement; at the gateway, {}",
            phases.iter().filter(|phase| phase.is_saturated()).count(),
            phases.len(),
            gateway.account()
        )
    })?;
    gateway.finish()?;
    Ok(cost)
}

fn topology() -> Result<Topology> {
    Topology::create(PREFIX, 1).context("the topology cannot be made")
}

fn kernel_version() -> String {
    let kernel = rustix::system::uname();
    format!("Linux {}", kernel.release().to_string_lossy())
}
