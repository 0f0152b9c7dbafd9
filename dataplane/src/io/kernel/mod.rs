//! The kernel's own sockets: WireGuard over UDP, inner packets over a TUN device.
//!
//! Both sides hand over trains of packets in one call. UDP datagrams come joined (GRO) and leave
//! as a train for one peer (GSO, [`trains`]); the TUN device gives and takes super-packets with a
//! virtio-net header ([`topnet_offload`]). Between the two each packet is by itself: decided
//! about, counted and sealed or opened alone. The kernel routes: it takes the hop, answers when
//! none is left or a packet is too large, and finds neighbours; what clients may reach is
//! decided here by the same tables as for frames.
//!
//! It works with any interface, and where a card has no XDP, or only a copying one, it carries
//! bulk TCP faster. With this process the device goes, and with it the route to the clients:
//! nothing is forwarded unpaid.

mod trains;
mod tun;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use topnet_offload::{HEADER_BYTES, JoinLimits, Joiner, Offloaded, PARTS_MAX, VnetHeader, take};

use self::trains::{Train, Trains};
use self::tun::Tun;
use super::{BURST_PACKETS, Backend, monotonic_ns};
use crate::accounting::Gate;
use crate::drops::DropReason;
use crate::forwarding::{Forwarding, Neighbour, PortIndex, RouteCache};
use crate::plane::{Outcome, PADDING_BYTES, Path, Plane};
use crate::session::Endpoint;

/// Bytes of the longest train or super-packet.
const TRAIN_BYTES: usize = 65_536;
/// Bytes of one packet with room for its padding; the tunnel's MTU is well below.
const PACKET_BYTES: usize = 2_048;
/// Bytes of opened packets that are kept until they are joined.
const ARENA_BYTES: usize = 1 << 20;
/// Opened packets that are kept until they are joined.
const JOINED_PACKETS_MAX: usize = 512;
/// Flows whose packets are joined at once.
const JOINED_FLOWS_MAX: usize = 32;
/// Reads of the TUN device between two looks at the sockets.
const TUN_READS_MAX: usize = 32;
/// Bytes of packets that the kernel keeps for us while we are busy, each way.
const SOCKET_BYTES: usize = 4 << 20;
/// How long a full socket is waited for before its train is given up.
const SEND_PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

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
    /// The data interface through which clients may reach the world.
    pub uplink: PortIndex,
}

struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Where messages arrived if the kernel does not say.
    bound: IpAddr,
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
}

/// The side towards peers.
struct Ends {
    sockets: Vec<Socket>,
    trains: Trains,
    /// Trains that no socket took.
    lost_packets: u64,
}

/// What clients may reach.
struct KernelPath {
    exits: RouteCache<(PortIndex, Neighbour)>,
    uplink: PortIndex,
}

impl Path for KernelPath {
    type Hop = ();
    const KERNEL_ROUTES: bool = true;
    const PACKET_OFFSET: usize = 0;

    fn message_offset(&self, _: &Endpoint) -> usize {
        0
    }

    fn to_world(&mut self, destination: IpAddr) -> Result<(), DropReason> {
        let (port, _) = self.exits.look(destination).hop?;
        if port == self.uplink {
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
    /// Makes the device and binds the sockets. `wake` is an event counter that ends a wait.
    pub fn new(plan: &KernelPlan, wake: OwnedFd) -> Result<Self, KernelError> {
        let tun = Tun::open(&plan.tunnel_interface)?;
        let port = plan.wireguard_port;
        let failed = |source| KernelError::Socket { port, source };
        let mut sockets = vec![Socket::bind(Ipv4Addr::UNSPECIFIED.into(), port).map_err(failed)?];
        match Socket::bind(Ipv6Addr::UNSPECIFIED.into(), port) {
            Ok(socket) => sockets.push(socket),
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            Err(error) => return Err(failed(error)),
        }
        let messages_max = sockets.iter().map(|socket| socket.state.max_gso_segments());
        let trains = Trains::new(messages_max.min().unwrap_or(1).max(1));
        Ok(Self {
            path: KernelPath {
                exits: RouteCache::new(Arc::default(), Forwarding::exit),
                uplink: plan.uplink,
            },
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
        })
    }

    /// Takes what one socket has, and returns how many messages that were.
    fn take_messages<G: Gate>(&mut self, plane: &mut Plane<G>, index: usize) -> usize {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let socket = &self.ends.sockets[index];
        let mut received = std::mem::take(&mut self.received);
        let mut chunks = received.chunks_exact_mut(TRAIN_BYTES);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let reference = UdpSockRef::from(&socket.socket);
        // Whatever the fault is, the next look or wait meets it again.
        let trains = socket
            .state
            .recv(reference, &mut buffers, &mut metas)
            .unwrap_or(0);
        let bound = socket.bound;
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
        let tun = &self.tun;
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
            }
        });
    }

    /// Takes what the device has, and returns how many packets that were.
    fn take_packets<G: Gate>(&mut self, plane: &mut Plane<G>) -> usize {
        let mut packets = Burst::default();
        for _ in 0..TUN_READS_MAX {
            let limit = HEADER_BYTES + TRAIN_BYTES;
            let Ok(Some(bytes)) = self.tun.read(&mut self.read[..limit]) else {
                break;
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
            let taken = VnetHeader::parse(header)
                .and_then(|header| take(&header, &mut rest[..arrived_bytes]));
            match taken {
                Err(_) => plane.refuse(DropReason::OuterMalformed, 1),
                Ok(Offloaded::Whole(_)) => {
                    let with_slack = arrived_bytes + PADDING_BYTES - 1;
                    ends.seal(plane, path, &mut rest[..with_slack], arrived_bytes);
                    packets.count(plane);
                }
                Ok(Offloaded::Super(mut segments)) => {
                    while let Ok(Some(bytes)) = segments.next_into(segment) {
                        ends.seal(plane, path, segment, bytes);
                        packets.count(plane);
                    }
                }
            }
        }
        packets.end(plane)
    }
}

impl Backend for Kernel {
    // A look costs three system calls.
    const SPINS_MAX: u32 = 1;

    fn receive<G: Gate>(&mut self, plane: &mut Plane<G>) -> usize {
        plane.begin(monotonic_ns());
        let mut packets = 0;
        for index in 0..self.ends.sockets.len() {
            packets += self.take_messages(plane, index);
        }
        packets += self.take_packets(plane);
        self.ends.flush();
        let lost_packets = std::mem::take(&mut self.ends.lost_packets);
        if lost_packets > 0 {
            plane.refuse(DropReason::NoBuffer, lost_packets);
        }
        packets
    }

    fn tick<G: Gate>(&mut self, plane: &mut Plane<G>, place: usize) {
        let room = self.ends.trains.room();
        if let Outcome::Control { endpoint, bytes } = plane.tick(&mut self.path, place, room) {
            self.ends.add(endpoint, bytes);
        }
    }

    fn replace_forwarding<G: Gate>(
        &mut self,
        _: &mut Plane<G>,
        forwarding: Arc<Forwarding>,
    ) -> Arc<Forwarding> {
        self.path.exits.replace(forwarding)
    }

    fn flush(&mut self) {
        self.ends.flush();
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let sockets = self.ends.sockets.iter().map(|s| s.socket.as_fd());
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
            return Err(io::Error::other("the tunnel's device is gone or down"));
        }
        if !fds[0].revents().is_empty() {
            // Empties the counter; that it was empty already is no error.
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        }
        Ok(())
    }
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
        let (sockets, lost_packets) = (&self.sockets, &mut self.lost_packets);
        self.trains.add(endpoint, bytes, |train| {
            *lost_packets += send(sockets, &train);
        });
    }

    fn flush(&mut self) {
        let (sockets, lost_packets) = (&self.sockets, &mut self.lost_packets);
        self.trains.send_all(|train| {
            *lost_packets += send(sockets, &train);
        });
    }
}

/// Sends a train, and returns how many of its messages were lost.
fn send(sockets: &[Socket], train: &Train<'_>) -> u64 {
    let messages = train.bytes.chunks(train.message_bytes).len() as u64;
    let same = |socket: &&Socket| socket.bound.is_ipv6() == train.endpoint.remote.is_ipv6();
    let Some(Socket { socket, state, .. }) = sockets.iter().find(same) else {
        return messages;
    };
    // Where a peer is greeted after a restart, the address it knows of ours may be of the other
    // version: then the kernel chooses.
    let may_send = |local: &IpAddr| {
        !local.is_unspecified() && local.is_ipv6() == train.endpoint.remote.is_ipv6()
    };
    let transmit = Transmit {
        destination: train.endpoint.remote,
        ecn: None,
        contents: train.bytes,
        segment_size: (messages > 1).then_some(train.message_bytes),
        src_ip: Some(train.endpoint.local).filter(may_send),
    };
    for last in [false, true] {
        match state.try_send(UdpSockRef::from(socket), &transmit) {
            Ok(()) => return 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !last => {
                let mut fds = [PollFd::new(socket, PollFlags::OUT)];
                // Ready, not yet ready or interrupted: the next try tells.
                let _ = poll(&mut fds, Some(&SEND_PATIENCE));
            }
            Err(error) => {
                tracing::debug!(%error, peer = %train.endpoint.remote, "a peer is not reached");
                return messages;
            }
        }
    }
    messages
}

impl Socket {
    fn bind(address: IpAddr, port: u16) -> io::Result<Self> {
        let socket = bound_socket(address, port)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // The library forbids fragments, for path MTU discovery of its own. A tunnel's packets
        // must arrive over narrow paths too.
        match address {
            IpAddr::V4(_) => may_fragment(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)?,
            IpAddr::V6(_) => may_fragment(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)?,
        }
        // Beyond the system's limit for ordinary programs; less is slower, not wrong.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES);
        let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES);
        Ok(Self {
            socket,
            state,
            bound: address,
        })
    }
}

/// Both versions have a socket of their own, so the one for IPv6 takes IPv6 alone.
fn bound_socket(address: IpAddr, port: u16) -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
    let family = match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(address, port))?;
    Ok(UdpSocket::from(socket))
}

/// Lets packets be fragmented on their way (`IP_PMTUDISC_DONT`).
fn may_fragment(socket: &UdpSocket, level: i32, option: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let value = libc::IP_PMTUDISC_DONT;
    // SAFETY: the option takes a C integer, and `value` is one that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
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
