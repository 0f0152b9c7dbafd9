//! Puts the data plane together, runs it, and takes it apart.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Instant;

use data_encoding::BASE64;
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fd::OwnedFd;
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use topnet_api::{Dataplane as _, SocketName, listen, serve_connections};
use topnet_config::{Config, Dataplane};
use topnet_unit::{Access, BootId, CreditTable, Handover, Header, Mapping, Producer, UsageTable};

use crate::accounting::{Accounting, Gate};
use crate::capture::CaptureSocket;
use crate::drops::DropCounters;
use crate::endpoints::Endpoints;
use crate::error::{INNER_PREFIX_BITS_MIN, RunError, system};
use crate::forwarding::Neighbour;
use crate::handshakes::Screening;
use crate::io::{Backend, Ethernet, EthernetPath, FRAME_DATA_BYTES};
use crate::link::{WorkerLink, WorkerLinks};
use crate::netlink::{Connection, Interface, Monitor};
use crate::orders::places_per_worker;
use crate::plane::{PADDING_BYTES, Plane, PlaneConfig, WIREGUARD_BYTES};
use crate::pool::{Pool, begin_pool, leave_pool};
use crate::ports::{data_ports, gateway_addresses, uplink_addresses};
use crate::registry::{Bounds, Registry};
use crate::reload::Reload;
use crate::service::{Service, Shared};
use crate::session::{Identity, SessionRates, WorkerNumber};
use crate::tables::{hand_over, listen_for_tables};
use crate::team::{self, Seat, Team};
use crate::translation::Translation;
use crate::ways::{Chooser, Way, cloned};
use crate::wireguard::gateway::{Gateway, GatewayRules};
use crate::wireguard::socket::ConfigurationSocket;
use crate::worker::{Queues, Worker};
use crate::xdp::Program;

/// Places in the unit ring. A 10 Gbit/s link passes 2,384 units a second.
const RING_RECORDS: u32 = 1 << 14;
/// Neighbours that may wait for the control thread.
const WANTED_MAX: usize = 1024;
const KEY_BYTES: usize = 32;

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
    let mut hangup = signal(SignalKind::hangup()).map_err(system("watch for signals"))?;

    let running = Running::start(section, config).await?;
    let running_on_kernel = running.program.is_none();
    let Running {
        shared,
        mut monitor,
        wanted,
        handover,
        program,
        workers,
        mut stopped,
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
        backend = shared.io.backend,
        mode = shared.io.mode,
        reason = shared.io.reason,
        interfaces = ?shared.io.interfaces,
        "forwarding"
    );

    // What is wrong with them is no reason to leave clients without service.
    let tools = match open_tools(section, &shared, running_on_kernel).await {
        Ok(tools) => tools,
        Err(error) => {
            tracing::error!(%error, "there are no unmetered peers until that is mended");
            None
        }
    };
    let serve_tools = async {
        match &tools {
            Some((socket, gateway)) => socket.serve(Arc::clone(gateway)).await,
            None => std::future::pending().await,
        }
    };

    let reload = Reload::new(config, section, path);
    let captures_path = SocketName::Captures.below(&config.runtime_dir);
    let captures = CaptureSocket::listen(&captures_path);
    if let Err(error) = &captures {
        tracing::error!(%error, path = %captures_path.display(), "no packets can be captured");
    }
    let serve_captures = async {
        match &captures {
            Ok(socket) => socket.serve(&shared, packet_bytes_max(section)).await,
            Err(_) => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(why) = stopped.recv() => Err(RunError::Worker(why)),
        ended = monitor.run(wanted, async |forwarding| shared.publish(forwarding).await) => {
            ended.map_err(RunError::from)
        }
        () = reload.serve(&mut hangup, &shared) => Ok(()),
        () = serve_captures => Ok(()),
        () = shared.reap_for_ever() => Ok(()),
        () = shared.remember_for_ever() => Ok(()),
        () = hand_over(&tables, &handover) => Ok(()),
        () = serve_tools => Ok(()),
        () = serve_connections(requests, Service(Arc::clone(&shared)).serve()) => Ok(()),
    };

    match program.as_ref().map(Program::verdicts) {
        Some(Ok(verdicts)) => tracing::info!(?verdicts, "detaching"),
        Some(Err(error)) => tracing::debug!(%error, "the program's counters cannot be read"),
        None => {}
    }
    // Detach first: from here on the kernel has all packets.
    drop(program);
    shared.workers.stop();
    // Each, whatever became of the others: what it carried last is counted when it has ended.
    let ended: Vec<Option<Plane>> = workers
        .into_iter()
        .map(|worker| worker.join().ok().flatten())
        .collect();
    let planes: Option<Vec<Plane>> = ended.into_iter().collect();
    // What it had to say last.
    shared.reap(&mut *shared.registry.lock().await);
    if let Some(mut planes) = planes {
        leave_pool(section, &config.runtime_dir, &shared, &mut planes);
    }
    monitor.release().await;
    for path in [&dataplane_path, &tables_path] {
        let _ = fs::remove_file(path);
    }
    result
}

/// The socket for WireGuard's tools and what answers at it, if there are unmetered peers.
async fn open_tools(
    section: &Dataplane,
    shared: &Arc<Shared>,
    kernel_routes: bool,
) -> Result<Option<(ConfigurationSocket, Arc<Gateway>)>, RunError> {
    let rules = GatewayRules::of(section, shared.gateway_address, kernel_routes);
    let (Some(unmetered), Some(rules)) = (&section.unmetered, rules) else {
        return Ok(None);
    };
    let gateway = Gateway::open(Arc::clone(shared), rules).await?;
    let directory = &unmetered.socket_dir;
    let socket = ConfigurationSocket::listen(directory, &section.tunnel_interface);
    let socket = socket.map_err(|source| RunError::Socket {
        path: directory.clone(),
        source,
    })?;
    Ok(Some((socket, Arc::new(gateway))))
}

/// Everything that stands while the data plane runs.
struct Running {
    shared: Arc<Shared>,
    monitor: Monitor,
    wanted: mpsc::Receiver<Neighbour>,
    handover: Arc<Handover>,
    /// Steers frames, where they are the way.
    program: Option<Program>,
    workers: Vec<JoinHandle<Option<Plane>>>,
    stopped: mpsc::UnboundedReceiver<String>,
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
        let gateway = gateway_addresses(section, &ports)?;
        let mut wakes = team::wakes(section.workers).map_err(system("make event counters"))?;
        let chooser = Chooser {
            section,
            connection: &connection,
            ports: &ports,
            gateway,
            wakes: &wakes,
        };
        let (way, io) = chooser.choose().await?;
        let workers = io.workers;
        wakes.truncate(workers as usize);

        let boot = random_boot()?;
        let header = Header {
            boot,
            slots: section.slots_max,
            workers,
            records: RING_RECORDS,
        };
        let Shares {
            handover,
            usage,
            credit,
            rings,
        } = Shares::new(header, &way)?;
        let ring_overflows = Arc::<AtomicU64>::default();
        let Pool {
            parts,
            log: nat_log,
            awaited,
        } = begin_pool(section, workers, &config.runtime_dir)?;
        let pool = parts.iter().map(Translation::levels).collect();
        let (want, wanted) = mpsc::channel(WANTED_MAX);
        let started = Instant::now();
        let seats = seats(section, &wakes)?;
        let team = seats.first().map(Seat::team);
        let mut seats = seats.into_iter();
        let screening = Arc::new(Screening::new(workers));
        let reach = Arc::new(section.reach.clone());
        let mut parts = parts.into_iter();
        let (mut planes, mut drops) = (Vec::new(), Vec::new());
        for ring in rings {
            let accounting = Accounting::new(
                Arc::clone(&usage),
                Arc::clone(&credit),
                ring,
                Arc::clone(&ring_overflows),
            );
            let dropped = Arc::<DropCounters>::default();
            let mut plane = Plane::new(
                PlaneConfig {
                    inner: Some(section.inner_network()),
                    inner_mtu: usize::from(section.inner_mtu),
                    sessions_max: places_per_worker(section.sessions_max, workers) as usize,
                },
                Arc::clone(&identity),
                accounting,
                Arc::clone(&dropped),
                started,
            )
            .with_translation(parts.next());
            plane.change_reach(Arc::clone(&reach));
            if let Some(seat) = seats.next() {
                plane = plane.with_seat(seat, Arc::clone(&screening));
            }
            drops.push(dropped);
            planes.push(plane);
        }
        let screener = planes[0].screener();
        drops.push(screener.drops());
        let screener = screener.start(cloned(&wakes)?, &section.cpus);
        let screener = Arc::new(screener.map_err(system("start a thread"))?);
        let interfaces: Vec<Interface> = ports.iter().map(|port| port.interface.clone()).collect();
        let queues: Vec<Queues> = (0..workers).map(|_| Queues::default()).collect();
        let link = |(wake, queues): (OwnedFd, &Queues)| WorkerLink {
            queues: queues.clone(),
            wake,
        };
        let links = wakes.into_iter().zip(&queues).map(link).collect();
        let bounds = Bounds {
            sessions_max: section.sessions_max,
            slots_max: section.slots_max,
            inner_subnet: section.inner_subnet,
            gateway_inner_address: section.gateway_address(),
            unmetered: section.unmetered.as_ref().map(|own| own.subnet),
            workers,
        };
        let shared = Arc::new(Shared {
            boot,
            started,
            identity,
            io,
            usage,
            credit,
            drops,
            ring_overflows,
            pool,
            workers: WorkerLinks::new(links),
            team,
            registry: tokio::sync::Mutex::new(Registry::new(bounds).awaiting(awaited)),
            endpoints: std::sync::Mutex::new(Endpoints::load(
                &config.runtime_dir,
                section.sessions_max as usize,
            )),
            nat_log: std::sync::Mutex::new(nat_log),
            gateway_address: gateway.v4.into(),
            rates: std::sync::Mutex::new(SessionRates::of(&section.rates)),
            shields_ipv6: section.inner_subnet6.is_some(),
        });
        let mut monitor = connection.monitor(&interfaces);
        shared.publish(monitor.snapshot().await?).await;
        let (tell, stopped) = mpsc::unbounded_channel();
        let place = |number: u32| Place {
            cpu: section.cpus.get(number as usize).copied(),
            nice: section.nice,
        };
        let parts = (0..).zip(planes).zip(queues);
        let mut workers = Vec::new();
        let program = match way {
            Way::Frames(frames) => {
                let placeholders = Arc::new(frames.placeholders);
                for (((number, plane), queues), sockets) in parts.zip(frames.sockets) {
                    let want = want.clone();
                    // A full queue only means that the packet after the next refresh asks again.
                    let resolve = Box::new(move |neighbour| {
                        let _ = want.try_send(neighbour);
                    });
                    let path = EthernetPath::new(gateway, section.wireguard_port, resolve)
                        .answering_from(uplink_addresses(&ports, gateway));
                    let io = Ethernet::new(sockets, path);
                    let worker = Worker::new(io, plane, queues, Arc::clone(&screener));
                    let kept = Arc::clone(&placeholders);
                    let (number, tell) = (WorkerNumber(number), tell.clone());
                    workers.push(spawn(worker, number, place(number.0), kept, tell)?);
                }
                Some(frames.program)
            }
            Way::Kernel(kernel) => {
                for (((number, plane), queues), kernel) in parts.zip(kernel) {
                    let worker = Worker::new(kernel, plane, queues, Arc::clone(&screener));
                    // Nobody asks for neighbours, but the queue is not to look closed.
                    let kept = want.clone();
                    let (number, tell) = (WorkerNumber(number), tell.clone());
                    workers.push(spawn(worker, number, place(number.0), kept, tell)?);
                }
                None
            }
        };
        Ok(Self {
            shared,
            monitor,
            wanted,
            handover: Arc::new(handover),
            program,
            workers,
            stopped,
        })
    }
}

/// The workers' ways to each other, if there are several.
fn seats(section: &Dataplane, wakes: &[OwnedFd]) -> Result<Vec<Seat>, RunError> {
    if wakes.len() < 2 {
        return Ok(Vec::new());
    }
    Ok(Team::seats(cloned(wakes)?, packet_bytes_max(section)))
}

/// Room for what workers have in hand, sealed or not. Who sent what is too large for the tunnel is
/// told so by its session's worker, so that such a packet fits too.
fn packet_bytes_max(section: &Dataplane) -> usize {
    let sealed_bytes = usize::from(section.inner_mtu) + PADDING_BYTES + WIREGUARD_BYTES;
    sealed_bytes.max(FRAME_DATA_BYTES)
}

/// What is shared with metering.
struct Shares {
    handover: Handover,
    usage: Arc<UsageTable>,
    credit: Arc<CreditTable>,
    /// Of each worker.
    rings: Vec<Producer<Mapping>>,
}

impl Shares {
    /// The tables that the program brings, or ordinary shared memory where there is none.
    fn new(header: Header, way: &Way) -> Result<Self, RunError> {
        let (handover, usage, credit, rings) = match way {
            Way::Frames(frames) => {
                let tables = frames.program.tables()?;
                let usage = UsageTable::map(&tables.usage, header.slots, Access::ReadWrite)?;
                let credit = CreditTable::map(&tables.credit, header.slots, Access::Read)?;
                let (handover, rings) = Handover::new(header, tables.usage, tables.credit)?;
                (handover, usage, credit, rings)
            }
            Way::Kernel(_) => Handover::in_memory(header)?,
        };
        Ok(Self {
            handover,
            usage: Arc::new(usage),
            credit: Arc::new(credit),
            rings,
        })
    }
}

/// Says why a worker ended, if it was not told to.
struct LastWord {
    why: Option<String>,
    tell: mpsc::UnboundedSender<String>,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if let Some(why) = self.why.take() {
            // Nobody listens any more only if the process is ending.
            let _ = self.tell.send(why);
        }
    }
}

/// Where and how a worker runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    /// The CPU that it is pinned to.
    pub cpu: Option<u16>,
    /// As the command of this name counts it.
    pub nice: i8,
}

impl Place {
    /// Takes it for the thread that calls this.
    fn take(self) -> io::Result<()> {
        if self.nice != 0
            && let Err(error) = setpriority_process(None, self.nice.into())
        {
            tracing::warn!(
                nice = self.nice, %error,
                "a worker runs as other programs do, and carries less when more arrives than it can \
                 carry; set LimitNICE= in the unit, or dataplane.nice = 0"
            );
        }
        self.cpu.map_or(Ok(()), pin)
    }
}

/// Starts a worker at its place. What it is to keep lives as long as it. `tell` hears why it ended, if
/// it does so by itself.
pub(crate) fn spawn<B: Backend + Send + 'static, G: Gate + Send + 'static>(
    worker: Worker<B, G>,
    number: WorkerNumber,
    place: Place,
    kept: impl Send + 'static,
    tell: mpsc::UnboundedSender<String>,
) -> Result<JoinHandle<Option<Plane<G>>>, RunError> {
    let (pinned, pinning) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(format!("worker-{}", number.0))
        .spawn(move || {
            let mut last = LastWord {
                why: Some("it panicked".to_owned()),
                tell,
            };
            let result = place.take();
            let failed = result.is_err();
            // Nobody listens any more only if the process is ending.
            let _ = pinned.send(result);
            if failed {
                last.why = None;
                return None;
            }
            let ended = worker.run_to_the_end();
            drop(kept);
            last.why = ended.as_ref().err().map(ToString::to_string);
            ended.ok()
        });
    let thread = thread.map_err(system("start a thread"))?;
    match pinning.recv() {
        Ok(Err(source)) => Err(RunError::Cpu {
            cpu: place.cpu.unwrap_or_default(),
            source,
        }),
        _ => Ok(thread),
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
    random("draw a random name").map(BootId)
}

pub(crate) fn random<const BYTES: usize>(what: &'static str) -> Result<[u8; BYTES], RunError> {
    let mut bytes = [0; BYTES];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| system(what)(io::Error::other("no randomness")))?;
    Ok(bytes)
}
