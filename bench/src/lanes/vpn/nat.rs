//! New flows through shared public addresses: how many a second, what each costs beside a packet of
//! a known one, and how much memory.
//!
//! The tables have room for more flows than are made, and nothing is forgotten meanwhile: a flow of
//! datagrams lives for minutes without a packet.

use anyhow::{Context, Result, ensure};

use super::gateway::Kind;
use super::links::{Mode, Polling};
use super::load::Pace;
use super::udp::{Content, Direction, FINAL, FLOW_PORTS, FLOWS_PER_PORT, Subject, Way};
use super::{Rig, Shared};
use crate::lane::Measurement;

/// Whose flows they are.
pub const CLIENTS: u8 = 64;
/// So many that clients who are given the same address by chance all find ports at it.
const POOL: &str = "10.79.0.0/22";
const BLOCK_PORTS: u32 = 512;
/// Half of the tables is every possible client's in equal parts, and these are a thousandth of
/// them; so what they make all comes out of the other half.
const ROOM: u32 = 4;
const GIB: f64 = (1_u64 << 30) as f64;

/// The figure of `vpn/nat-flows`.
pub fn measure(shared: &Shared, kind: Kind) -> Result<Measurement> {
    let subject = Subject {
        kind,
        mode: Mode::Wire,
        direction: Direction::Open,
        clients: CLIENTS,
        content: Content::KnownFlow,
    };
    let without_bytes = {
        let rig = start(shared, subject, None)?;
        Way::open(shared, &rig, subject)?;
        rig.gateway.resident_bytes()? as f64
    };
    let flows_max = u32::from(CLIENTS) * FLOW_PORTS * FLOWS_PER_PORT * ROOM;
    let rig = start(shared, subject, Some(&configuration(flows_max)))?;
    let measured = look(shared, &rig, subject, flows_max, without_bytes);
    measured.with_context(|| rig.gateway.last_words())
}

fn look(
    shared: &Shared,
    rig: &Rig,
    subject: Subject,
    flows_max: u32,
    without_bytes: f64,
) -> Result<Measurement> {
    let mut way = Way::open(shared, rig, subject)?;
    let (empty_bytes, known_before) = (rig.gateway.resident_bytes()? as f64, flows(rig)?);
    way.bring(Content::NewFlows);
    let (new, generators_limit) = way.find_rate()?;
    let (full_bytes, made) = (
        rig.gateway.resident_bytes()? as f64,
        flows(rig)? - known_before,
    );
    // At the same rate, for the part of the cost that every packet has.
    way.bring(Content::KnownFlow);
    let known = way.look(Pace::Rate(new.sent.rate()), FINAL)?;
    ensure!(
        f64::from(made) >= new.arrived as f64,
        "the product knows of {made} flows, and {} packets of as many came through",
        new.arrived
    );
    ensure!(
        new.busy_s > 0.0 && known.busy_s > 0.0,
        "the gateway's CPU was never busy"
    );
    let value = new.arrived as f64 / new.busy_s;
    let known_rate = known.arrived as f64 / known.busy_s;
    // A part of the tables is taken at the start, for all that there is room for.
    let flow_bytes = (empty_bytes - without_bytes) / f64::from(flows_max)
        + (full_bytes - empty_bytes) / f64::from(made);
    Ok(Measurement::new(value, new.arrived, new.busy_s)
        .with("flows_per_s", new.arrived_rate(), "1/s")
        .with("lost", 100.0 * new.lost(), "%")
        .with("generators_limit", f64::from(generators_limit), "1")
        .with("known_flow", known_rate, "1/CPU-s")
        .with("new_flow_cpu", 1e9 / value - 1e9 / known_rate, "ns")
        .with("flows_per_gib", GIB / flow_bytes, "1")
        .with("flows_made", f64::from(made), "1"))
}

fn start(shared: &Shared, subject: Subject, nat: Option<&str>) -> Result<Rig> {
    let (kind, mode, peers) = (subject.kind, subject.mode, subject.peers());
    Rig::start_with(shared, kind, mode, &peers, Polling::First, nat)
}

fn configuration(flows_max: u32) -> String {
    let ports = FLOW_PORTS;
    let flows = ports * FLOWS_PER_PORT;
    format!(
        "[dataplane.nat]\naddresses = \"{POOL}\"\nblock_ports = {BLOCK_PORTS}\n\
         blocks_per_client_max = {}\nflows_max = {flows_max}\nflows_per_client_max = {}\n\
         mappings_max = {}\nmappings_per_client_max = {}\n",
        // One more flow is that of the warm-up.
        ports / BLOCK_PORTS + 1,
        flows + 1,
        flows_max / FLOWS_PER_PORT,
        ports + 1,
    )
}

fn flows(rig: &Rig) -> Result<u32> {
    let product = rig.gateway.product();
    let flows = product.context("only the product has such flows")?;
    flows
        .nat_flows()?
        .context("the product shares no addresses")
}
