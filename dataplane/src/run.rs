//! Puts the data plane together, runs it, and takes it apart.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use topnet_api::{Dataplane as _, IoStatus, SocketName, listen, serve_connections};
use topnet_config::{Config, Dataplane, Io};
use topnet_ebpf_abi::Steering;
use topnet_unit::{
    Access, BootId, CreditTable, Handover, HandoverError, Header, SharedMemoryError, UsageTable,
};

use crate::accounting::Accounting;
use crate::drops::DropCounters;
use crate::endpoints::Endpoints;
use crate::forwarding::{Neighbour, PortIndex};
use crate::io::{AfXdp, AfXdpError, Bind, Binding, SocketHandle};
use crate::netlink::{Connection, Interface, Monitor, NetlinkError};
use crate::plane::{Plane, PlaneConfig};
use crate::registry::{Bounds, Registry};
use crate::service::{Service, Shared, WorkerLink};
use crate::session::Identity;
use crate::worker::{Queues, Worker};
use crate::xdp::{Mode, Program, XdpError};

/// Places in the unit ring. A 10 Gbit/s link passes 2,384 units a second.
const RING_RECORDS: u32 = 1 << 14;
/// Neighbours that may wait for the control thread.
const WANTED_MAX: usize = 1024;
/// Widest inner subnet: its addresses are a table in the worker.
const INNER_PREFIX_BITS_MIN: u8 = 12;
/// A receiver of the tables that does not read is given up.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(1);
/// Sockets are for the processes of one group.
const SOCKET_MODE: u32 = 0o660;
const KEY_BYTES: usize = 32;

/// Why the data plane does not run (any more). Each names the thing and the mend.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No `[dataplane]`.
    #[error("{path}: there is no section [dataplane]; add it, see control/config/example.toml")]
    NoSection {
        /// The configuration.
        path: PathBuf,
    },
    /// The private key.
    #[error(
        "WireGuard key {path} (dataplane.key_file): {reason}; make one with `wg genkey > {path}`"
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An interface that cannot be used.
    #[error("interface {name} (dataplane.{key}): {reason}; {mend}")]
    Interface {
        /// Its name.
        name: String,
        /// Where it is configured.
        key: &'static str,
        /// What is wrong with it.
        reason: &'static str,
        /// What to do.
        mend: &'static str,
    },
    /// A subnet that is too wide.
    #[error(
        "inner subnet {subnet} (dataplane.inner_subnet) is too wide; choose one of at least {INNER_PREFIX_BITS_MIN} bits"
    )]
    Subnet {
        /// As configured.
        subnet: topnet_config::Ipv4Subnet,
    },
    /// The WireGuard port is taken.
    #[error(
        "UDP port {port} (dataplane.wireguard_port) at {address}: {source}; stop who has it (`ss -lunp`) or choose another"
    )]
    Port {
        /// The port.
        port: u16,
        /// Where.
        address: Ipv4Addr,
        /// Why not.
        source: io::Error,
    },
    /// A Unix socket.
    #[error(
        "socket {path}: {source}; make its directory and give this user the right to write there"
    )]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The worker's CPU.
    #[error(
        "cannot pin the worker to CPU {cpu} (dataplane.cpu): {source}; choose one that `nproc` counts, or leave the key out"
    )]
    Cpu {
        /// As configured.
        cpu: u16,
        /// Why not.
        source: io::Error,
    },
    /// The worker ended by itself.
    #[error("the worker stopped: {0}; the data interfaces are gone or down, see `ip link`")]
    Worker(String),
    /// The XDP program.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// Packet input and output.
    #[error(transparent)]
    AfXdp(#[from] AfXdpError),
    /// Routes and neighbours.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The shared tables.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// Their memory.
    #[error(transparent)]
    Memory(#[from] SharedMemoryError),
    /// Something that the system always has.
    #[error("cannot {what}: {source}; the system is out of resources")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> RunError {
    move |source| RunError::System {
        what,
        source: source.into(),
    }
}

/// Runs until a signal to end, or until something fails for good. To be called within a
/// runtime.
pub async fn run(config: &Config, path: &Path) -> Result<(), RunError> {
    let section = config
        .dataplane
        .as_ref()
        .ok_or_else(|| RunError::NoSection {
            path: path.to_owned(),
        })?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch for signals"))?;

    let running = Running::start(section, config).await?;
    let Running {
        shared,
        mut monitor,
        wanted,
        handover,
        program,
        worker,
        stopped,
        ..
    } = running;
    let dataplane_path = SocketName::Dataplane.below(&config.runtime_dir);
    let tables_path = SocketName::Tables.below(&config.runtime_dir);
    let socket_error = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::Socket {
            path: path.clone(),
            source,
        }
    };
    let requests = listen(&dataplane_path)
        .await
        .map_err(socket_error(&dataplane_path))?;
    let tables = listen_for_tables(&tables_path).map_err(socket_error(&tables_path))?;
    tracing::info!(
        boot = %shared.boot,
        mode = shared.io.mode,
        interfaces = ?shared.io.interfaces,
        "forwarding"
    );

    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = stopped => Err(RunError::Worker(ended.unwrap_or_else(|_| "it panicked".to_owned()))),
        ended = monitor.run(wanted, async |forwarding| shared.publish(forwarding).await) => {
            ended.map_err(RunError::from)
        }
        () = shared.reap_for_ever() => Ok(()),
        () = shared.remember_for_ever() => Ok(()),
        () = hand_over(&tables, &handover) => Ok(()),
        () = serve_connections(requests, Service(Arc::clone(&shared)).serve()) => Ok(()),
    };

    match program.verdicts() {
        Ok(verdicts) => tracing::info!(?verdicts, "detaching"),
        Err(error) => tracing::debug!(%error, "the program's counters cannot be read"),
    }
    // Detach first: from here on the kernel has all packets.
    drop(program);
    shared.worker.queues.stop.store(true, Ordering::Relaxed);
    shared.worker.wake();
    let _ = worker.join();
    monitor.release().await;
    for path in [&dataplane_path, &tables_path] {
        let _ = fs::remove_file(path);
    }
    result
}

/// Everything that stands while the data plane runs.
struct Running {
    shared: Arc<Shared>,
    monitor: Monitor,
    wanted: mpsc::Receiver<Neighbour>,
    handover: Arc<Handover>,
    program: Program,
    worker: JoinHandle<()>,
    stopped: oneshot::Receiver<String>,
}

/// A data interface and what it is for.
struct DataPort {
    interface: Interface,
    takes_clients: bool,
    takes_inner: bool,
}

impl Running {
    async fn start(section: &Dataplane, config: &Config) -> Result<Self, RunError> {
        if section.inner_subnet.prefix_bits() < INNER_PREFIX_BITS_MIN {
            return Err(RunError::Subnet {
                subnet: section.inner_subnet,
            });
        }
        let identity = Arc::new(Identity::new(read_key(&section.key_file)?));
        let connection = Connection::open()?;
        let ports = data_ports(section, &connection).await?;
        let gateway_address = gateway_address(section, &ports)?;
        let placeholder = hold_port(gateway_address, section.wireguard_port)?;

        let mut program = Program::load(section.slots_max)?;
        let tables = program.tables()?;
        if !tables.usage_is_read_only {
            tracing::debug!(
                "metering gets a writable descriptor of the usage table (no CAP_SYS_ADMIN)"
            );
        }
        let usage = Arc::new(UsageTable::map(
            &tables.usage,
            section.slots_max,
            Access::ReadWrite,
        )?);
        let credit = Arc::new(CreditTable::map(
            &tables.credit,
            section.slots_max,
            Access::Read,
        )?);
        let boot = random_boot()?;
        let header = Header {
            boot,
            slots: section.slots_max,
            workers: 1,
            records: RING_RECORDS,
        };
        let (handover, mut rings) = Handover::new(header, tables.usage_for_readers, tables.credit)?;

        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(system("make an event counter"))?;
        let worker_wake = wake.try_clone().map_err(system("make an event counter"))?;
        let (io, sockets) = AfXdp::new(&bindings(&ports), bind_of(section.io), worker_wake)?;
        attach(&mut program, section, &ports, gateway_address, &sockets)?;

        let queues = Queues::default();
        let drops = Arc::<DropCounters>::default();
        let ring_overflows = Arc::<AtomicU64>::default();
        let ring = rings.remove(0);
        let accounting = Accounting::new(
            Arc::clone(&usage),
            Arc::clone(&credit),
            ring,
            Arc::clone(&ring_overflows),
        );
        let (want, wanted) = mpsc::channel(WANTED_MAX);
        let started = Instant::now();
        let plane = Plane::new(
            PlaneConfig {
                gateway_address,
                wireguard_port: section.wireguard_port,
                inner_subnet: section.inner_subnet,
                inner_mtu: usize::from(section.inner_mtu),
                sessions_max: section.sessions_max as usize,
            },
            Arc::clone(&identity),
            accounting,
            Arc::clone(&drops),
            // A full queue only means that the packet after the next refresh asks again.
            Box::new(move |neighbour| {
                let _ = want.try_send(neighbour);
            }),
            started,
        );
        let interfaces: Vec<Interface> = ports.iter().map(|port| port.interface.clone()).collect();
        let shared = Arc::new(Shared {
            boot,
            started,
            identity: Arc::clone(&identity),
            io: io_status(section.io, &sockets, &interfaces),
            usage,
            credit,
            drops,
            ring_overflows,
            worker: WorkerLink {
                queues: queues.clone(),
                wake,
            },
            registry: tokio::sync::Mutex::new(Registry::new(Bounds {
                sessions_max: section.sessions_max,
                slots_max: section.slots_max,
                inner_subnet: section.inner_subnet,
                gateway_inner_address: section.gateway_address(),
            })),
            endpoints: std::sync::Mutex::new(Endpoints::load(
                &config.runtime_dir,
                section.sessions_max as usize,
            )),
            gateway_address,
        });
        let mut monitor = connection.monitor(&interfaces);
        shared.publish(monitor.snapshot().await?).await;
        let worker = Worker::new(io, plane, queues, identity);
        let (worker, stopped) = spawn(worker, section.cpu, placeholder)?;
        Ok(Self {
            shared,
            monitor,
            wanted,
            handover: Arc::new(handover),
            program,
            worker,
            stopped,
        })
    }
}

/// Starts the worker on its CPU. The socket that holds the WireGuard port lives as long as it.
fn spawn(
    worker: Worker<AfXdp>,
    cpu: Option<u16>,
    placeholder: UdpSocket,
) -> Result<(JoinHandle<()>, oneshot::Receiver<String>), RunError> {
    let (ended, stopped) = oneshot::channel();
    let (pinned, pinning) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("worker-0".to_owned())
        .spawn(move || {
            let result = cpu.map_or(Ok(()), pin);
            let failed = result.is_err();
            // Nobody listens any more only if the process is ending.
            let _ = pinned.send(result);
            if failed {
                return;
            }
            if let Err(error) = worker.run() {
                let _ = ended.send(error.to_string());
            }
            drop(placeholder);
        });
    let thread = thread.map_err(system("start a thread"))?;
    match pinning.recv() {
        Ok(Err(source)) => Err(RunError::Cpu {
            cpu: cpu.unwrap_or_default(),
            source,
        }),
        _ => Ok((thread, stopped)),
    }
}

fn pin(cpu: u16) -> io::Result<()> {
    let mut set = CpuSet::new();
    if usize::from(cpu) >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    set.set(usize::from(cpu));
    Ok(sched_setaffinity(None, &set)?)
}

async fn data_ports(
    section: &Dataplane,
    connection: &Connection,
) -> Result<Vec<DataPort>, RunError> {
    let find = async |name: &str, key: &'static str| {
        let error = |reason, mend| RunError::Interface {
            name: name.to_owned(),
            key,
            reason,
            mend,
        };
        let Some(interface) = connection.interface(name).await? else {
            return Err(error(
                "there is no such interface",
                "choose one that `ip link` lists",
            ));
        };
        if interface.mac.is_none() {
            return Err(error(
                "it is not an Ethernet interface",
                "choose one that is",
            ));
        }
        Ok(interface)
    };
    let clients = find(&section.client_interface, "client_interface").await?;
    let uplink = find(&section.uplink_interface, "uplink_interface").await?;
    if clients.index == uplink.index {
        return Ok(vec![DataPort {
            interface: clients,
            takes_clients: true,
            takes_inner: true,
        }]);
    }
    Ok(vec![
        DataPort {
            interface: clients,
            takes_clients: true,
            takes_inner: false,
        },
        DataPort {
            interface: uplink,
            takes_clients: false,
            takes_inner: true,
        },
    ])
}

fn gateway_address(section: &Dataplane, ports: &[DataPort]) -> Result<Ipv4Addr, RunError> {
    let clients = ports.iter().find(|port| port.takes_clients);
    let address = clients.and_then(|port| port.interface.addresses.first().copied());
    address.ok_or_else(|| RunError::Interface {
        name: section.client_interface.clone(),
        key: "client_interface",
        reason: "it has no IPv4 address that clients could reach",
        mend: "give it one: `ip address add ADDRESS/BITS dev NAME`",
    })
}

/// Binds the WireGuard port in the kernel, so that nobody else takes it and the kernel does not
/// answer "port unreachable" while no socket of ours takes the packets.
fn hold_port(address: Ipv4Addr, port: u16) -> Result<UdpSocket, RunError> {
    UdpSocket::bind((address, port)).map_err(|source| RunError::Port {
        port,
        address,
        source,
    })
}

fn bindings(ports: &[DataPort]) -> Vec<Binding> {
    (0u8..)
        .zip(ports)
        .flat_map(|(index, port)| {
            (0..port.interface.queues).map(move |queue| Binding {
                port: PortIndex(index),
                interface: port.interface.name.clone(),
                queue,
            })
        })
        .collect()
}

fn bind_of(io: Io) -> Bind {
    match io {
        Io::Auto => Bind::Either,
        Io::AfXdpZeroCopy => Bind::ZeroCopy,
        Io::AfXdpCopy | Io::AfXdpGeneric => Bind::Copy,
    }
}

fn mode_of(io: Io) -> Mode {
    match io {
        Io::Auto | Io::AfXdpZeroCopy | Io::AfXdpCopy => Mode::Native,
        Io::AfXdpGeneric => Mode::Generic,
    }
}

fn attach(
    program: &mut Program,
    section: &Dataplane,
    ports: &[DataPort],
    gateway_address: Ipv4Addr,
    sockets: &[SocketHandle],
) -> Result<(), RunError> {
    let network = section.inner_subnet.network().to_bits();
    let mask = u32::MAX << (32 - u32::from(section.inner_subnet.prefix_bits()));
    for socket in sockets {
        program.add_socket(socket)?;
    }
    for (index, port) in (0u32..).zip(ports) {
        let steering = Steering {
            wireguard_port: if port.takes_clients {
                section.wireguard_port
            } else {
                0
            },
            takes_inner: port.takes_inner.into(),
            inner_network: network.to_be(),
            inner_mask: mask.to_be(),
            gateway_address: gateway_address.to_bits().to_be(),
        };
        program.steer(index, steering)?;
        let Interface {
            name,
            index: interface_index,
            ..
        } = &port.interface;
        program.attach(index, name, *interface_index, mode_of(section.io))?;
    }
    Ok(())
}

fn io_status(io: Io, sockets: &[SocketHandle], interfaces: &[Interface]) -> IoStatus {
    let zero_copy = sockets.iter().all(|socket| socket.zero_copy);
    let copying = sockets.iter().find(|socket| !socket.zero_copy);
    let mode = match (mode_of(io), zero_copy) {
        (Mode::Generic, _) => "generic",
        (Mode::Native, true) => "native-zerocopy",
        (Mode::Native, false) => "native-copy",
    };
    let reason = match (io, copying) {
        (Io::Auto, Some(socket)) => {
            format!(
                "the driver of {} has native XDP but cannot share frames",
                socket.binding.interface
            )
        }
        (Io::Auto, None) => "the drivers have native XDP and share frames".to_owned(),
        _ => "configured (dataplane.io)".to_owned(),
    };
    IoStatus {
        backend: "af_xdp".to_owned(),
        mode: mode.to_owned(),
        reason,
        interfaces: interfaces
            .iter()
            .map(|interface| interface.name.clone())
            .collect(),
    }
}

fn read_key(path: &Path) -> Result<[u8; KEY_BYTES], RunError> {
    let error = |reason: String| RunError::Key {
        path: path.to_owned(),
        reason,
    };
    let text = fs::read_to_string(path).map_err(|source| error(source.to_string()))?;
    let bytes = BASE64
        .decode(text.trim().as_bytes())
        .map_err(|source| error(source.to_string()))?;
    let length = bytes.len();
    bytes
        .try_into()
        .map_err(|_| error(format!("it has {length} bytes, not {KEY_BYTES}")))
}

fn random_boot() -> Result<BootId, RunError> {
    let mut boot = [0; 16];
    let filled = SystemRandom::new().fill(&mut boot);
    filled.map_err(|_| system("draw a random name")(io::Error::other("no randomness")))?;
    Ok(BootId(boot))
}

fn listen_for_tables(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    restrict(path)?;
    Ok(listener)
}

/// Who can connect can write credit: only the processes of our group.
fn restrict(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))
}

/// Gives the tables to everybody who connects, for ever.
async fn hand_over(listener: &UnixListener, handover: &Arc<Handover>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handover = Arc::clone(handover);
                tokio::task::spawn_blocking(move || {
                    let sent = stream.into_std().and_then(ready_to_send);
                    let sent = sent
                        .map_err(HandoverError::from)
                        .and_then(|s| handover.send(&s));
                    if let Err(error) = sent {
                        tracing::debug!(%error, "a reader of the tables went away");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a reader of the tables");
                tokio::time::sleep(HANDOVER_PATIENCE).await;
            }
        }
    }
}

fn ready_to_send(stream: UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(HANDOVER_PATIENCE))?;
    Ok(stream)
}
