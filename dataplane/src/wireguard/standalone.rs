//! A WireGuard interface by itself, without a provider: what `wg-quick` starts in place of
//! wireguard-go (`WG_QUICK_USERSPACE_IMPLEMENTATION`), and what a paying client runs.
//!
//! The kernel's UDP sockets and a TUN device carry the packets; key, port, mark and peers are what
//! WireGuard's tools say. The kernel decides who reaches whom, as it does for any interface.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use topnet_uapi::{DeviceStatus, Errno, Set};

use super::Since;
use super::socket::{ConfigurationSocket, Interface};
use crate::accounting::Gate;
use crate::drops::DropCounters;
use crate::error::{RunError, system};
use crate::io::{Egress, INNER_BYTES_MAX, Kernel, KernelPlan, Marks, Sockets};
use crate::link::{WorkerLink, WorkerLinks};
use crate::netlink::Connection;
use crate::operators::{InterfaceChange, Operators};
use crate::orders::{Indices, Order};
use crate::plane::{Plane, PlaneConfig};
use crate::run::{Place, random, spawn};
use crate::session::{Identity, Session, SessionCounters, WorkerNumber};
use crate::worker::{Command, Queues, Returned, Worker};

/// Peers of one interface, as many as wireguard-go takes.
const PEERS_MAX: usize = 1 << 16;
/// Places for sessions: when all are made anew, the old ones still have theirs for a moment.
const SESSIONS_MAX: u32 = 4 << 16;
/// Sessions that room is made for at once.
const SESSIONS_EXPECTED: usize = 16;
/// What fits into a path of 1,500 bytes over IPv6.
const MTU_BYTES: u32 = 1_420;
/// How often the interface is looked at for what `ip link` changed.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// An interface that stands.
pub struct Standalone {
    name: String,
    since: Since,
    links: WorkerLinks,
    state: Mutex<State>,
    /// Waits until the worker has ended.
    join: Option<Box<dyn FnOnce() + Send + Sync>>,
}

struct State {
    operators: Operators,
    indices: Indices,
    identity: Arc<Identity>,
    marks: Marks,
    mtu_bytes: usize,
}

impl Standalone {
    /// Makes the device and starts its worker, which lets packets pass that `gate` admits. It has
    /// no key, no peers, and a port that was free. What comes second tells that the worker ended,
    /// which it does when the device is removed.
    pub async fn start<G: Gate + Send + 'static>(
        name: &str,
        gate: G,
    ) -> Result<(Self, mpsc::UnboundedReceiver<String>), RunError> {
        let connection = Connection::open_quiet()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(system("make an event counter"))?;
        let plan = KernelPlan {
            tunnel_interface: name.to_owned(),
            wireguard_port: 0,
            egress: Egress::Anywhere,
        };
        let waker = wake
            .try_clone()
            .map_err(system::<io::Error>("make an event counter"))?;
        let mut opened = Kernel::open(&plan, vec![waker])?;
        let kernel = opened.remove(0);
        let marks = kernel.marks().map_err(system("share a socket"))?;
        let port = kernel.port();
        connection.set_mtu(name, MTU_BYTES).await?;
        let identity = Arc::new(nobody()?);
        let started = Instant::now();
        let plane = Plane::new(
            PlaneConfig {
                inner: None,
                inner_mtu: MTU_BYTES as usize,
                sessions_max: SESSIONS_EXPECTED,
            },
            Arc::clone(&identity),
            gate,
            Arc::<DropCounters>::default(),
            started,
        );
        let queues = Queues::default();
        let screeners_wake = wake
            .try_clone()
            .map_err(system::<io::Error>("make an event counter"))?;
        let screener = plane.screener().start(vec![screeners_wake], &[]);
        let screener = screener.map_err(system("start a thread"))?;
        let worker = Worker::new(kernel, plane, queues.clone(), screener);
        let (tell, stopped) = mpsc::unbounded_channel();
        let worker = spawn(worker, WorkerNumber::default(), Place::default(), (), tell)?;
        let mut operators = Operators::new(PEERS_MAX);
        operators.device_mut().handle_bound(port);
        let interface = Self {
            name: name.to_owned(),
            since: Since::new(started),
            links: WorkerLinks::new(vec![WorkerLink { queues, wake }]),
            state: Mutex::new(State {
                operators,
                indices: Indices::new(SESSIONS_MAX, 1),
                identity,
                marks,
                mtu_bytes: MTU_BYTES as usize,
            }),
            join: Some(Box::new(move || drop(worker.join()))),
        };
        Ok((interface, stopped))
    }

    /// Follows what is changed about the device from outside, for ever.
    pub async fn follow(&self) {
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            let mut state = self.state.lock().await;
            self.reap(&mut state);
            // A device that is gone is noticed by the worker.
            match self.look().await {
                Ok(Some(mtu_bytes)) if mtu_bytes != state.mtu_bytes => {
                    state.mtu_bytes = mtu_bytes;
                    self.set_mtu(&mut state, mtu_bytes).await;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "the interface cannot be looked at"),
            }
        }
    }

    async fn look(&self) -> Result<Option<usize>, RunError> {
        let interface = Connection::open_quiet()?.interface(&self.name).await?;
        Ok(interface.map(|interface| interface.mtu_bytes as usize))
    }

    async fn set_mtu(&self, state: &mut State, mtu_bytes: usize) {
        if mtu_bytes > INNER_BYTES_MAX {
            tracing::warn!(
                interface = self.name,
                mtu_bytes,
                "packets of more than {INNER_BYTES_MAX} bytes are dropped; lower the MTU"
            );
        }
        let mtu = Command::InnerMtu(mtu_bytes.min(INNER_BYTES_MAX));
        self.send(state, mtu).await;
    }

    async fn change(&self, set: Set) -> Result<(), Errno> {
        let mut state = self.state.lock().await;
        self.reap(&mut state);
        let device = state.operators.device();
        let had_peers = device.peers().next().is_some();
        let (port, mark) = (device.listen_port(), device.fwmark());
        // What can fail comes first: nothing of a refused request is done.
        let sockets = match set.listen_port {
            Some(other) if other != port => {
                let mark = set.fwmark.unwrap_or(mark);
                Some(Sockets::bind(other, mark).map_err(|error| refused(&error, "bind"))?)
            }
            _ => None,
        };
        let marks = sockets.as_ref().map(Sockets::marks).transpose();
        let marks = marks.map_err(|error| refused(&error, "bind"))?;
        if let (Some(mark), None) = (set.fwmark, &marks) {
            state
                .marks
                .set(mark)
                .map_err(|error| refused(&error, "mark"))?;
        }
        let State {
            operators, indices, ..
        } = &mut *state;
        let applied = match operators.apply(&set, indices) {
            Ok(applied) => applied,
            Err(full) => {
                tracing::warn!(%full, "a change is refused");
                let _ = state.marks.set(mark);
                return Err(full.errno());
            }
        };
        if let (Some(sockets), Some(marks)) = (sockets, marks) {
            state.operators.device_mut().handle_bound(sockets.port());
            state.marks = marks;
            self.send(&mut state, Command::Sockets(sockets)).await;
        }
        let mut again = false;
        for change in applied.interface {
            if let InterfaceChange::Key(key) = change {
                let identity = match &key {
                    Some(key) => Identity::new(*key.as_bytes()),
                    None => nobody().map_err(|_| Errno::IO)?,
                };
                state.identity = Arc::new(identity);
                let identity = Command::Identity(Arc::clone(&state.identity));
                self.send(&mut state, identity).await;
                again = had_peers;
            }
        }
        self.deliver(&mut state, applied.orders).await;
        if again {
            let State {
                operators, indices, ..
            } = &mut *state;
            let orders = operators.reinstall(indices);
            self.deliver(&mut state, orders).await;
        }
        Ok(())
    }

    async fn deliver(&self, state: &mut State, orders: Vec<Order>) {
        let State {
            identity, indices, ..
        } = state;
        let make = |plan, counters: Arc<SessionCounters>| {
            // Whoever was heard before may use keys that are gone.
            let was_heard = counters.handshake_ms().is_some();
            let mut session = Session::new(identity, plan);
            session.counters = counters;
            session.resume = was_heard && session.endpoint.is_some();
            session
        };
        let take = |returned| take_back(indices, returned);
        self.links.deliver(orders, make, take).await;
    }

    async fn send(&self, state: &mut State, command: Command) {
        let indices = &mut state.indices;
        self.links
            .send(WorkerNumber::default(), command, |returned| {
                take_back(indices, returned)
            })
            .await;
    }

    fn reap(&self, state: &mut State) {
        let indices = &mut state.indices;
        self.links.reap(|returned| take_back(indices, returned));
    }
}

impl Interface for Standalone {
    async fn status(&self) -> DeviceStatus {
        let mut state = self.state.lock().await;
        self.reap(&mut state);
        let since = self.since;
        state.operators.status(|peer| since.traffic(&peer.counters))
    }

    async fn apply(&self, set: Set) -> Errno {
        match self.change(set).await {
            Ok(()) => Errno::NONE,
            Err(errno) => errno,
        }
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        self.links.stop();
        if let Some(join) = self.join.take() {
            join();
        }
    }
}

/// Runs an interface until it is removed or a signal says to end. `ready` is called when `wg` finds
/// it in `directory`.
pub async fn run_interface<G: Gate + Send + 'static>(
    name: &str,
    directory: &Path,
    gate: G,
    ready: impl FnOnce(),
) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch for signals"))?;
    let (interface, mut stopped) = Standalone::start(name, gate).await?;
    let interface = Arc::new(interface);
    let socket = ConfigurationSocket::listen(directory, name);
    let socket = socket.map_err(|source| RunError::Socket {
        path: directory.join(format!("{name}.sock")),
        source,
    })?;
    ready();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(reason) = stopped.recv() => {
            tracing::info!(interface = name, reason, "the interface is gone");
        }
        () = socket.serve(Arc::clone(&interface)) => {}
        () = interface.follow() => {}
    }
    Ok(())
}

fn take_back(indices: &mut Indices, returned: Returned) {
    match returned {
        Returned::Session(session) => indices.give_back(session.plan.index),
        Returned::Sockets(sockets) => drop(sockets),
        Returned::Forwarding(_) | Returned::Reach(_) | Returned::Tap(_) | Returned::Block(..) => {}
    }
}

fn refused(error: &io::Error, what: &str) -> Errno {
    tracing::warn!(%error, what, "the interface's sockets cannot be changed");
    match error.kind() {
        io::ErrorKind::AddrInUse => Errno::ADDRESS_IN_USE,
        io::ErrorKind::PermissionDenied => Errno::NOT_PERMITTED,
        _ => Errno::IO,
    }
}

/// The identity of an interface that was given none: a key that nobody knows.
fn nobody() -> Result<Identity, RunError> {
    random("draw a key").map(Identity::new)
}
