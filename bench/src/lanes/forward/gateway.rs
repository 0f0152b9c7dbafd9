//! The gateway under measurement: the product's program, sockets, worker and tables, put together
//! as the data plane does, with this process in the place of control and metering.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use rustix::event::{EventfdFlags, eventfd};
use topnet_account::ChannelId;
use topnet_config::{InnerNetwork, Ipv4Subnet, Reach};
use topnet_dataplane::accounting::{Accounting, Gate};
use topnet_dataplane::drops::{DropCounters, DropReason};
use topnet_dataplane::forwarding::{
    Forwarding, Neighbour, Port, PortIndex, Route, RouteTable, RouteTarget,
};
use topnet_dataplane::io::{AfXdp, Bind, Binding, Ethernet, EthernetPath, SocketHandle};
use topnet_dataplane::packet::MacAddress;
use topnet_dataplane::plane::{Plane, PlaneConfig};
use topnet_dataplane::session::{Endpoint, Identity, Payer, Session, SessionIndex, SessionPlan};
use topnet_dataplane::worker::{Command as WorkerCommand, Queues, Worker};
use topnet_dataplane::xdp::{Mode, Program};
use topnet_ebpf_abi::Steering;
use topnet_lab::topology::{
    CLIENT, CLIENTS_INTERFACE, INNER_SUBNET, ORIGIN, PROVIDER, Topology, UPLINK_INTERFACE,
};
use topnet_netns::Namespace;
use topnet_unit::{
    Access, Attachment, BootId, CreditTable, Handover, Header, Producer, Slot, UsageTable,
};

use super::{GATEWAY_CPU, INNER, SINK};
use crate::cpus::pin;
use crate::lanes::credit;

/// As the data plane is configured by default.
const WIREGUARD_PORT: u16 = 51820;
const INNER_MTU: usize = 1420;
const SLOTS: u32 = 1024;
const SESSIONS: usize = 64;
const RING_RECORDS: u32 = 1 << 14;
/// How often metering looks at its ring.
const METERING_INTERVAL: Duration = Duration::from_micros(500);
const CLIENT_PORT: u16 = 40_000;
/// The gateway's own address in the tunnel, the subnet's first.
const INNER_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// The one session's.
const SLOT: Slot = Slot {
    index: 1,
    generation: 1,
};
/// The product's data interfaces, in the order of its ports.
const INTERFACES: [&str; 2] = [CLIENTS_INTERFACE, UPLINK_INTERFACE];

/// A gateway that forwards. Ends when it is dropped.
pub struct Gateway {
    queues: Queues,
    wake: OwnedFd,
    program: Program,
    drops: Arc<DropCounters>,
    metering_ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// What decides whether packets pass, and what the product would decide with.
pub type MakeGate<G> = dyn FnOnce(Accounting) -> G + Send;

impl Gateway {
    /// Starts the worker on its CPU with one session, whose handshake is done. `make_gate` is
    /// given the product's accounting, with credit, and says what stands in its place.
    pub fn start<G: Gate + Send + 'static>(
        topology: &Topology,
        make_gate: Box<MakeGate<G>>,
    ) -> Result<Gateway> {
        let ports = INTERFACES.map(|name| port(&topology.provider, name));
        let [clients, uplink] = ports;
        let forwarding = forwarding([clients?, uplink?]);
        let started = topology.provider.enter(|| start(forwarding, make_gate))?;
        started.context("the gateway does not start")
    }

    /// Where packets were lost, for an error.
    pub fn account(&self) -> String {
        let dropped = DropReason::ALL
            .iter()
            .map(|reason| (reason.name(), self.drops.packets(*reason)));
        let steered = self.program.verdicts().unwrap_or_default();
        let steered = steered
            .iter()
            .map(|(verdict, count)| (verdict.name(), *count));
        format!("drops: {}; steered: {}", list(dropped), list(steered))
    }

    /// Ends it, and says if it had ended by itself.
    pub fn finish(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.queues.stop.store(true, Ordering::Relaxed);
        self.metering_ended.store(true, Ordering::Relaxed);
        // The counter cannot overflow, and without it the worker wakes by itself a little later.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        let results = self.threads.drain(..).map(|thread| {
            let result = thread.join();
            result.map_err(|_| anyhow!("a thread of the gateway panicked"))?
        });
        results.collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Whoever wanted to know how it ended has asked.
        let _ = self.end();
    }
}

fn list<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> String {
    let counted: Vec<String> = counts
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    match counted.as_slice() {
        [] => "none".to_owned(),
        counted => counted.join(", "),
    }
}

/// To be called inside the provider's namespace.
fn start<G: Gate + Send + 'static>(
    forwarding: Forwarding,
    make_gate: Box<MakeGate<G>>,
) -> Result<Gateway> {
    let mut program = Program::load(SLOTS)?;
    let (accounting, metering) = tables(&program)?;
    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let bindings = [0, 1].map(|port: u8| Binding {
        port: PortIndex(port),
        interface: INTERFACES[usize::from(port)].to_owned(),
        queue: 0,
    });
    let (io, sockets) = AfXdp::new(&bindings, Bind::Either, wake.try_clone()?)?;
    attach(&mut program, &forwarding, &sockets)?;

    let identity = Arc::new(Identity::new([9; 32]));
    let drops = Arc::<DropCounters>::default();
    let plane = Plane::new(
        PlaneConfig {
            inner: Some(InnerNetwork::new(
                INNER_SUBNET.parse()?,
                None,
                INNER_GATEWAY,
            )),
            inner_mtu: INNER_MTU,
            sessions_max: SESSIONS,
        },
        Arc::clone(&identity),
        make_gate(accounting),
        Arc::clone(&drops),
        Instant::now(),
    );
    let queues = Queues::default();
    let commands = [
        WorkerCommand::Install(session(&identity)?),
        WorkerCommand::Forwarding(Arc::new(forwarding)),
        // The measured world is private.
        WorkerCommand::Reach(Arc::new(Reach {
            private: vec!["10.77.0.0/16".parse()?],
            ..Reach::default()
        })),
    ];
    for command in commands {
        let pushed = queues.commands.push(command);
        ensure!(pushed.is_ok(), "the worker takes no commands");
    }
    // Every neighbour is known.
    let path = EthernetPath::new(PROVIDER, WIREGUARD_PORT, Box::new(|_| ()));
    let screener = plane
        .screener()
        .start(vec![wake.try_clone()?], &[u16::try_from(GATEWAY_CPU)?])?;
    let worker = Worker::new(Ethernet::new(io, path), plane, queues.clone(), screener);
    let metering_ended = Arc::<AtomicBool>::default();
    let ended = Arc::clone(&metering_ended);
    let mut gateway = Gateway {
        queues,
        wake,
        program,
        drops,
        metering_ended,
        threads: Vec::new(),
    };
    gateway.threads.push(named("worker-0", move || {
        pin(GATEWAY_CPU)?;
        worker.run().context("the worker ended")
    })?);
    gateway.threads.push(named("metering", move || {
        credit::pay(metering, METERING_INTERVAL, &ended)
    })?);
    Ok(gateway)
}

fn named(
    name: &str,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<Result<()>>> {
    let thread = thread::Builder::new().name(name.to_owned());
    Ok(thread.spawn(work)?)
}

/// The worker's accounting over the program's tables, and metering's end of them.
fn tables(program: &Program) -> Result<(Accounting, Attachment)> {
    let tables = program.tables()?;
    let usage = UsageTable::map(&tables.usage, SLOTS, Access::ReadWrite)?;
    let credit = CreditTable::map(&tables.credit, SLOTS, Access::Read)?;
    let header = Header {
        boot: BootId([1; 16]),
        slots: SLOTS,
        workers: 1,
        records: RING_RECORDS,
    };
    let (handover, mut rings) = Handover::new(header, tables.usage, tables.credit)?;
    let (near, far) = UnixStream::pair()?;
    handover.send(&near)?;
    let metering = Attachment::receive(&far)?;
    metering.credit.grant(SLOT, credit::unlimited(0)?);
    let ring: Producer<_> = rings.remove(0);
    let accounting = Accounting::new(Arc::new(usage), Arc::new(credit), ring, Arc::default());
    Ok((accounting, metering))
}

fn attach(program: &mut Program, forwarding: &Forwarding, sockets: &[SocketHandle]) -> Result<()> {
    let subnet: Ipv4Subnet = INNER_SUBNET.parse()?;
    for socket in sockets {
        program.add_socket(socket)?;
    }
    for (index, port) in (0..).zip(&forwarding.ports) {
        let takes_clients = index == 0;
        let steering = Steering {
            wireguard_port: if takes_clients { WIREGUARD_PORT } else { 0 },
            takes_inner: (!takes_clients).into(),
            inner_network: subnet.network().to_bits().to_be(),
            inner_mask: (u32::MAX << (32 - u32::from(subnet.prefix_bits()))).to_be(),
            gateway_address: PROVIDER.to_bits().to_be(),
            ..Steering::default()
        };
        program.steer(index, steering)?;
        program.attach(
            index,
            INTERFACES[index as usize],
            port.interface,
            Mode::Native,
        )?;
    }
    Ok(())
}

/// A session whose client shook hands with it in this process.
fn session(identity: &Identity) -> Result<Box<Session>> {
    let private = StaticSecret::from([5; 32]);
    let payer = Payer {
        channel: ChannelId([1; 32]),
        slot: SLOT,
    };
    let public_key = PublicKey::from(&private).to_bytes();
    let plan = SessionPlan::of_client(SessionIndex(1), public_key, payer, INNER);
    let mut session = Box::new(Session::new(identity, plan));
    let mut client = Tunn::new(private, identity.public, None, None, 1, None);
    let [mut near, mut far] = [[0; 2048]; 2];
    let initiation = message(client.format_handshake_initiation(&mut near, false))?;
    let response = message(session.tunnel.decapsulate(None, initiation, &mut far))?;
    let confirmation = message(client.decapsulate(None, response, &mut near))?;
    let confirmed = session.tunnel.decapsulate(None, confirmation, &mut far);
    ensure!(
        matches!(confirmed, TunnResult::Done),
        "the handshake ended with {confirmed:?}"
    );
    session.heard_from(Endpoint {
        remote: SocketAddr::new(CLIENT.into(), CLIENT_PORT),
        local: PROVIDER.into(),
    });
    session.refresh_established();
    Ok(session)
}

fn message(result: TunnResult<'_>) -> Result<&[u8]> {
    match result {
        TunnResult::WriteToNetwork(message) => Ok(message),
        other => bail!("the handshake stopped with {other:?}"),
    }
}

/// What the kernel's tables say in this topology, but for the client's hardware address.
fn forwarding(ports: [Port; 2]) -> Forwarding {
    let [clients, uplink] = ports;
    let link = |address: Ipv4Addr, port: Port| Route {
        network: Ipv4Addr::from_bits(address.to_bits() & 0xffff_ff00).into(),
        prefix_bits: 24,
        metric: 0,
        target: RouteTarget::Forward {
            interface: port.interface,
            gateway: None,
        },
    };
    let routes = [link(CLIENT, clients), link(ORIGIN, uplink)];
    let client = Neighbour {
        interface: clients.interface,
        address: CLIENT.into(),
    };
    Forwarding {
        tables: vec![RouteTable::from_iter(routes)].into(),
        neighbours: [(client, MacAddress(SINK))].into(),
        ports: ports.into(),
    }
}

fn port(namespace: &Namespace, interface: &str) -> Result<Port> {
    let mut command = Command::new("ip");
    command.args(["-json", "link", "show", "dev", interface]);
    let output = namespace.run(command)?.stdout;
    let links: serde_json::Value = serde_json::from_slice(&output)?;
    let found = || {
        let index = links[0]["ifindex"].as_u64()?;
        let address = mac(links[0]["address"].as_str()?)?;
        Some(Port {
            interface: index.try_into().ok()?,
            mac: address,
        })
    };
    found().with_context(|| format!("`ip` says nothing of use about {interface}: {links}"))
}

fn mac(text: &str) -> Option<MacAddress> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    MacAddress::from_slice(&bytes?)
}
