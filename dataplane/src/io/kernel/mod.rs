//! The kernel's own sockets: WireGuard over UDP, inner packets over a TUN device.
//!
//! Both sides hand over trains of packets in one call. UDP datagrams come joined (GRO) and leave
//! as a train for one peer (GSO, [`trains`]); the TUN device gives and takes super-packets with a
//! virtio-net header ([`topnet_offload`]). Between the two each packet is by itself: decided
//! about, counted and sealed or opened alone. The kernel routes: it takes the hop, answers when
//! none is left or a packet is too large, and finds neighbours; what clients may reach is
//! decided here by the same tables as for frames.
//!
//! It needs no XDP, and where a card has no XDP, or only a copying one, it carries
//! bulk TCP faster. With this process the device goes, and with it the route to the clients:
//! nothing is forwarded unpaid.

mod trains;
mod tun;
mod udp;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use quinn_udp::{BATCH_SIZE, RecvMeta};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use topnet_offload::{HEADER_BYTES, JoinLimits, Joiner, Offloaded, PARTS_MAX, VnetHeader, take};

use self::trains::{MESSAGE_BYTES_MAX, Trains};
use self::tun::Tun;
use self::udp::{Socket, send};
use super::{BURST_PACKETS, Backend, monotonic_ns};
use crate::accounting::Gate;
use crate::drops::DropReason;
use crate::forwarding::{Forwarding, Neighbour, PortIndex, RouteCache};
use crate::handshakes::Answer;
use crate::plane::{Outcome, PADDING_BYTES, Path, Plane, WIREGUARD_BYTES};
use crate::session::Endpoint;
use crate::team::Content;

/// Bytes of the longest train or super-packet.
const TRAIN_BYTES: usize = 65_536;
/// Bytes of one packet with room for its padding.
const PACKET_BYTES: usize = MESSAGE_BYTES_MAX;
/// Bytes of the largest inner packet that there is room for, sealed and padded.
pub const INNER_BYTES_MAX: usize = MESSAGE_BYTES_MAX - WIREGUARD_BYTES - PADDING_BYTES;
/// Bytes of opened packets that are kept until they are joined.
const ARENA_BYTES: usize = 1 << 20;
/// Opened packets that are kept until they are joined.
const JOINED_PACKETS_MAX: usize = 512;
/// Flows whose packets are joined at once.
const JOINED_FLOWS_MAX: usize = 32;
/// Reads of the TUN device between two looks at the sockets.
const TUN_READS_MAX: usize = 32;
/// Ports that are tried where any will do.
const PORT_TRIES_MAX: u32 = 16;

/// Sockets or a device that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The TUN device.
    #[error("cannot make the tunnel's device {name}: {source}; {mend}")]
    Tunnel {
        /// Its name.
        name: String,
        /// Why not.
        source: io::Error,
        /// What to do.
        mend: &'static str,
    },
    /// A UDP socket.
    #[error(
        "UDP port {port} (dataplane.wireguard_port): {source}; stop who has it (`ss -lunp`) or choose another"
    )]
    Socket {
        /// The port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
}

/// What the backend is told once.
#[derive(Clone, Debug)]
pub struct KernelPlan {
    /// Name of the TUN device.
    pub tunnel_interface: String,
    /// UDP port of WireGuard, at every address of this machine.
    pub wireguard_port: u16,
    /// Where peers' packets may leave.
    pub egress: Egress,
}

/// Where the kernel may forward what came through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Out of this data interface.
    Uplink(PortIndex),
    /// Wherever its routes lead: the device is a plain WireGuard interface.
    Anywhere,
}

/// UDP sockets and a TUN device.
pub struct Kernel {
    path: KernelPath,
    tun: Tun,
    ends: Ends,
    wake: OwnedFd,
    received: Box<[u8]>,
    /// Opened packets.
    arena: Box<[u8]>,
    arena_used: usize,
    joiner: Joiner,
    /// A super-packet with its header.
    read: Box<[u8]>,
    /// One of its packets.
    segment: Box<[u8]>,
    /// True if the last look at sockets and device may have left something there.
    left_something: bool,
    /// True if a device that is down ends the worker. A plain interface may be set down and up.
    down_is_fault: bool,
    /// Why the device does not work any more. Packets that it does not take are counted before,
    /// so the worker must end.
    fault: Option<io::Error>,
}

/// UDP sockets that are bound, one for each version of IP.
#[derive(Debug)]
pub struct Sockets {
    sockets: Vec<Socket>,
    port: u16,
}

impl Sockets {
    /// Binds `port` at every address of this machine; 0 is any port that is free. The tunnel's own
    /// packets have `mark`, by which the system tells them from what is to go into the tunnel.
    pub fn bind(port: u16, mark: u32) -> io::Result<Self> {
        let mut bound = Self::bind_several(port, mark, 1)?;
        bound
            .pop()
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// The same for so many workers, which share the port.
    fn bind_several(port: u16, mark: u32, workers: usize) -> io::Result<Vec<Self>> {
        let mut tries = 0;
        loop {
            match Self::bind_once(port, mark, workers) {
                // A port that is free for one version may be taken for the other.
                Err(error)
                    if port == 0
                        && error.kind() == io::ErrorKind::AddrInUse
                        && tries < PORT_TRIES_MAX =>
                {
                    tries += 1;
                }
                bound => return bound,
            }
        }
    }

    fn bind_once(port: u16, mark: u32, workers: usize) -> io::Result<Vec<Self>> {
        let first = Socket::bind(Ipv4Addr::UNSPECIFIED.into(), port, workers)?;
        let port = first.first().map_or(Ok(port), Socket::port)?;
        let second = match Socket::bind(Ipv6Addr::UNSPECIFIED.into(), port, workers) {
            Ok(sockets) => sockets,
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut second = second.into_iter();
        let mut bound = Vec::with_capacity(workers);
        for socket in first {
            let sockets = std::iter::once(socket).chain(second.next()).collect();
            let sockets = Self { sockets, port };
            if mark != 0 {
                sockets.marks()?.set(mark)?;
            }
            bound.push(sockets);
        }
        Ok(bound)
    }

    /// What changes the mark while a worker has the sockets.
    pub fn marks(&self) -> io::Result<Marks> {
        let handles = self.sockets.iter().map(Socket::handle);
        Ok(Marks(handles.collect::<io::Result<_>>()?))
    }

    /// Where they listen.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    fn messages_max(&self) -> usize {
        let messages_max = self.sockets.iter().map(Socket::messages_max);
        messages_max.min().unwrap_or(1).max(1)
    }
}

/// The marks of sockets. They stay bound as long as this is kept.
#[derive(Debug)]
pub struct Marks(Vec<UdpSocket>);

impl Marks {
    /// Marks what the sockets send from now on; 0 is no mark.
    pub fn set(&self, mark: u32) -> io::Result<()> {
        self.0
            .iter()
            .try_for_each(|socket| udp::set_mark(socket, mark))
    }
}

/// The side towards peers.
struct Ends {
    sockets: Sockets,
    trains: Trains,
    /// Trains that no socket took.
    lost_packets: u64,
}

/// Where clients' packets leave.
struct KernelPath {
    exits: RouteCache<(PortIndex, Neighbour)>,
    egress: Egress,
}

impl Path for KernelPath {
    type Hop = ();
    const KERNEL_ROUTES: bool = true;
    const PACKET_OFFSET: usize = 0;

    fn message_offset(&self, _: &Endpoint) -> usize {
        0
    }

    fn to_world(&mut self, destination: IpAddr) -> Result<(), DropReason> {
        let Egress::Uplink(uplink) = self.egress else {
            return Ok(());
        };
        let (port, _) = self.exits.look(destination).hop?;
        if port == uplink {
            Ok(())
        } else {
            Err(DropReason::NotOurInterface)
        }
    }

    fn to_peer(&mut self, _: &Endpoint) -> Result<(), DropReason> {
        Ok(())
    }
}

impl Kernel {
    /// Makes the device and binds the sockets, for a worker for each of `wakes`, which are event
    /// counters that end a wait.
    pub fn open(plan: &KernelPlan, wakes: Vec<OwnedFd>) -> Result<Vec<Self>, KernelError> {
        let queues = Tun::open(&plan.tunnel_interface, wakes.len())?;
        let port = plan.wireguard_port;
        let failed = |source| KernelError::Socket { port, source };
        let sockets = Sockets::bind_several(port, 0, wakes.len()).map_err(failed)?;
        let parts = queues.into_iter().zip(sockets).zip(wakes);
        let kernel = |((tun, sockets), wake)| Self::new(plan, tun, sockets, wake);
        Ok(parts.map(kernel).collect())
    }

    fn new(plan: &KernelPlan, tun: Tun, sockets: Sockets, wake: OwnedFd) -> Self {
        let trains = Trains::new(sockets.messages_max());
        Self {
            path: KernelPath {
                exits: RouteCache::new(Arc::default(), Forwarding::exit),
                egress: plan.egress,
            },
            down_is_fault: matches!(plan.egress, Egress::Uplink(_)),
            joiner: Joiner::new(JoinLimits {
                packets_max: JOINED_PACKETS_MAX,
                flows_max: JOINED_FLOWS_MAX,
                join_udp: tun.joins_udp,
            }),
            tun,
            ends: Ends {
                sockets,
                trains,
                lost_packets: 0,
            },
            wake,
            received: vec![0; BATCH_SIZE * TRAIN_BYTES].into(),
            arena: vec![0; ARENA_BYTES].into(),
            arena_used: 0,
            read: vec![0; HEADER_BYTES + TRAIN_BYTES + PADDING_BYTES].into(),
            segment: vec![0; PACKET_BYTES].into(),
            left_something: false,
            fault: None,
        }
    }

    /// Where it listens.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.ends.sockets.port()
    }

    /// What changes the mark of its own packets while a worker has it.
    pub fn marks(&self) -> io::Result<Marks> {
        self.ends.sockets.marks()
    }

    /// Takes what one socket has, and returns how many messages that were.
    fn take_messages<G: Gate>(&mut self, plane: &mut Plane<G>, index: usize) -> usize {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let socket = &self.ends.sockets.sockets[index];
        let bound = socket.bound;
        let mut received = std::mem::take(&mut self.received);
        let mut chunks = received.chunks_exact_mut(TRAIN_BYTES);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        // Whatever the fault is, the next look or wait meets it again.
        let trains = socket.receive(&mut buffers, &mut metas).unwrap_or(0);
        self.left_something |= trains == BATCH_SIZE;
        let mut messages = Burst::default();
        for (meta, train) in metas
            .iter()
            .zip(received.chunks_exact(TRAIN_BYTES))
            .take(trains)
        {
            let endpoint = Endpoint {
                remote: meta.addr,
                local: meta.dst_ip.unwrap_or(bound),
            };
            for message in train[..meta.len].chunks(meta.stride.max(1)) {
                self.handle_message(plane, endpoint, message);
                messages.count(plane);
            }
        }
        self.received = received;
        self.write_joined(plane);
        messages.end(plane)
    }

    fn handle_message<G: Gate>(
        &mut self,
        plane: &mut Plane<G>,
        endpoint: Endpoint,
        message: &[u8],
    ) {
        if self.arena_used + message.len().max(PACKET_BYTES) > ARENA_BYTES {
            self.write_joined(plane);
        }
        let room = &mut self.arena[self.arena_used..];
        match plane.handle_message(&mut self.path, endpoint, message, room) {
            Outcome::Nothing => {}
            Outcome::ToWorld { bytes, .. } => {
                let packet = self.arena_used..self.arena_used + bytes;
                if self.joiner.add(&self.arena, packet.clone()).is_err() {
                    // Full: make room, and put the packet where an empty arena begins.
                    self.write_joined(plane);
                    self.arena.copy_within(packet, 0);
                    let again = self.joiner.add(&self.arena, 0..bytes);
                    assert!(again.is_ok(), "an empty joiner takes a packet");
                }
                self.arena_used += bytes;
            }
            Outcome::Control { endpoint, bytes }
            | Outcome::ToPeer {
                endpoint, bytes, ..
            } => {
                let answer = self.arena_used..self.arena_used + bytes;
                self.ends.trains.room()[..bytes].copy_from_slice(&self.arena[answer]);
                self.ends.add(endpoint, bytes);
            }
        }
    }

    /// Gives all opened packets to the kernel.
    fn write_joined<G: Gate>(&mut self, plane: &Plane<G>) {
        self.arena_used = 0;
        if self.joiner.is_empty() {
            return;
        }
        let (tun, fault, down_is_fault) = (&self.tun, &mut self.fault, self.down_is_fault);
        self.joiner.drain(&mut self.arena, |header, parts, arena| {
            let header = header.to_bytes();
            let mut slices = [IoSlice::new(&[]); PARTS_MAX + 1];
            slices[0] = IoSlice::new(&header);
            for (slice, part) in slices[1..].iter_mut().zip(parts) {
                *slice = IoSlice::new(&arena[part.clone()]);
            }
            if let Err(error) = tun.write(&slices[..=parts.len()]) {
                tracing::debug!(%error, parts = parts.len(), "the tunnel's device takes no packet");
                plane.refuse(DropReason::NoBuffer, parts.len() as u64);
                if tun::is_gone(&error) || (down_is_fault && tun::is_down(&error)) {
                    *fault = Some(error);
                }
            }
        });
    }

    /// Takes what the device has, and returns how many packets that were.
    fn take_packets<G: Gate>(&mut self, plane: &mut Plane<G>) -> usize {
        let mut packets = Burst::default();
        for read in 1..=TUN_READS_MAX {
            self.left_something |= read == TUN_READS_MAX;
            let limit = HEADER_BYTES + TRAIN_BYTES;
            let bytes = match self.tun.read(&mut self.read[..limit]) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(error) => {
                    self.fault = Some(error);
                    break;
                }
            };
            let Self {
                path,
                ends,
                read,
                segment,
                ..
            } = self;
            let Some((header, rest)) = read.split_first_chunk_mut::<HEADER_BYTES>() else {
                break;
            };
            let arrived_bytes = bytes.saturating_sub(HEADER_BYTES);
            let header = VnetHeader::parse(header);
            let segment_bytes = header.map_or(0, |header| usize::from(header.segment_bytes));
            if plane.sheds(&rest[..arrived_bytes], true, segment_bytes) {
                packets.count(plane);
                continue;
            }
            let taken = header.and_then(|header| take(&header, &mut rest[..arrived_bytes]));
            match taken {
                Err(_) => plane.refuse(DropReason::OuterMalformed, 1),
                Ok(Offloaded::Whole(_)) => {
                    let with_slack = arrived_bytes + PADDING_BYTES - 1;
                    ends.seal(plane, path, &mut rest[..with_slack], arrived_bytes);
                    packets.count(plane);
                }
                Ok(Offloaded::Super(mut segments)) => {
                    loop {
                        match segments.next_into(segment) {
                            Ok(Some(bytes)) => ends.seal(plane, path, segment, bytes),
                            Ok(None) => break,
                            // All of a train's packets but the last have one length.
                            Err(_) => {
                                plane.refuse(DropReason::TooLarge, 1);
                                break;
                            }
                        }
                        packets.count(plane);
                    }
                }
            }
        }
        packets.end(plane)
    }
}

impl Kernel {
    /// Handles what other workers passed on, and returns how many packets that were.
    fn take_parcels<G: Gate>(&mut self, plane: &mut Plane<G>) -> usize {
        let mut packets = Burst::default();
        while packets.packets < BURST_PACKETS
            && let Some(mut parcel) = plane.take_parcel()
        {
            let bytes = parcel.bytes;
            match parcel.content {
                Content::Message(endpoint) => {
                    self.handle_message(plane, endpoint, &parcel.data[..bytes]);
                }
                Content::Packet | Content::Relayed => {
                    let path = &mut self.path;
                    self.ends.seal(plane, path, &mut parcel.data, bytes);
                }
            }
            plane.give_back(parcel);
            packets.count(plane);
        }
        self.left_something |= packets.packets == BURST_PACKETS;
        if packets.packets > 0 {
            self.write_joined(plane);
        }
        packets.end(plane)
    }
}

impl Backend for Kernel {
    // A look costs three system calls.
    const SPINS_MAX: u32 = 1;

    fn receive<G: Gate>(&mut self, plane: &mut Plane<G>) -> io::Result<usize> {
        plane.begin(monotonic_ns());
        self.left_something = false;
        let mut packets = 0;
        for index in 0..self.ends.sockets.sockets.len() {
            packets += self.take_messages(plane, index);
        }
        packets += self.take_packets(plane);
        packets += self.take_parcels(plane);
        plane.looked(self.left_something);
        self.ends.flush();
        let lost_packets = std::mem::take(&mut self.ends.lost_packets);
        if lost_packets > 0 {
            plane.refuse(DropReason::NoBuffer, lost_packets);
        }
        match self.fault.take() {
            Some(error) => Err(device_error(&error)),
            None => Ok(packets),
        }
    }

    fn tick<G: Gate>(&mut self, plane: &mut Plane<G>, place: usize) {
        let room = self.ends.trains.room();
        if let Outcome::Control { endpoint, bytes } = plane.tick(&mut self.path, place, room) {
            self.ends.add(endpoint, bytes);
        }
    }

    fn answer<G: Gate>(&mut self, plane: &mut Plane<G>, answer: Answer) -> bool {
        let room = self.ends.trains.room();
        let outcome = plane.answer(&mut self.path, answer, room);
        if let Outcome::Control { endpoint, bytes } = outcome {
            self.ends.add(endpoint, bytes);
        }
        true
    }

    fn replace_forwarding<G: Gate>(
        &mut self,
        _: &mut Plane<G>,
        forwarding: Arc<Forwarding>,
    ) -> Arc<Forwarding> {
        self.path.exits.replace(forwarding)
    }

    fn replace_sockets(&mut self, sockets: Sockets) -> Sockets {
        // What is on its way leaves from where it was to leave from.
        self.ends.flush();
        self.ends.trains = Trains::new(sockets.messages_max());
        std::mem::replace(&mut self.ends.sockets, sockets)
    }

    fn flush(&mut self) {
        self.ends.flush();
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let sockets = self.ends.sockets.sockets.iter().map(AsFd::as_fd);
        let [first, second] = {
            let mut sockets = sockets;
            [sockets.next(), sockets.next()].map(|fd| fd.unwrap_or(self.wake.as_fd()))
        };
        let fds = [self.wake.as_fd(), self.tun.as_fd(), first, second];
        let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[1].revents().contains(PollFlags::ERR) {
            return Err(device_error(&io::ErrorKind::NotFound.into()));
        }
        if !fds[0].revents().is_empty() {
            // Empties the counter; that it was empty already is no error.
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        }
        Ok(())
    }
}

fn device_error(error: &io::Error) -> io::Error {
    io::Error::other(format!("the tunnel's device is gone or down ({error})"))
}

impl Ends {
    /// Seals a packet for its peer, at the end of a train.
    fn seal<G: Gate>(
        &mut self,
        plane: &mut Plane<G>,
        path: &mut KernelPath,
        packet: &mut [u8],
        arrived_bytes: usize,
    ) {
        let room = self.trains.room();
        match plane.handle_packet(path, packet, arrived_bytes, room) {
            Outcome::Control { endpoint, bytes }
            | Outcome::ToPeer {
                endpoint, bytes, ..
            } => {
                self.add(endpoint, bytes);
            }
            Outcome::Nothing | Outcome::ToWorld { .. } => {}
        }
    }

    fn add(&mut self, endpoint: Endpoint, bytes: usize) {
        let (sockets, lost_packets) = (&self.sockets.sockets, &mut self.lost_packets);
        self.trains.add(endpoint, bytes, |train| {
            *lost_packets += send(sockets, &train);
        });
    }

    fn flush(&mut self) {
        let (sockets, lost_packets) = (&self.sockets.sockets, &mut self.lost_packets);
        self.trains.send_all(|train| {
            *lost_packets += send(sockets, &train);
        });
    }
}

/// Packets since the counts were last published. A train is longer than a burst, and a look at
/// all sockets longer still; credit is to be as fresh as with frames.
#[derive(Default)]
struct Burst {
    packets: usize,
    unsettled: usize,
}

impl Burst {
    fn count<G: Gate>(&mut self, plane: &mut Plane<G>) {
        self.packets += 1;
        self.unsettled += 1;
        if self.unsettled == BURST_PACKETS {
            self.settle(plane);
        }
    }

    fn settle<G: Gate>(&mut self, plane: &mut Plane<G>) {
        plane.settle(monotonic_ns());
        self.unsettled = 0;
    }

    /// Publishes the rest, and returns how many packets there were.
    fn end<G: Gate>(mut self, plane: &mut Plane<G>) -> usize {
        if self.unsettled > 0 {
            self.settle(plane);
        }
        self.packets
    }
}
