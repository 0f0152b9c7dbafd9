//! The UDP sockets: `quinn-udp` knows trains (GRO and GSO), here is what a tunnel needs besides.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::trains::Train;
use crate::session::WORKERS_MAX;

/// Bytes of packets that the kernel is asked to keep for us while we are busy, each way.
const SOCKET_BYTES: usize = 4 << 20;
/// How long a full socket is waited for before its train is given up.
const SEND_PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// The socket for one version of IP.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Where messages arrived if the kernel does not say.
    pub(super) bound: IpAddr,
}

impl Socket {
    /// Binds `port` at every address of the version of `address`, which names none, so many times.
    /// Messages come to the socket of the worker whose session they name.
    pub(super) fn bind(address: IpAddr, port: u16, workers: usize) -> io::Result<Vec<Self>> {
        // The first finds out whether anybody else has the port; only then it is shared.
        let first = bound_socket(address, port, false)?;
        let port = first.local_addr()?.port();
        let mut sockets = vec![first];
        if workers > 1 {
            sockopt::set_socket_reuseport(&sockets[0], true)?;
            for _ in 1..workers {
                sockets.push(bound_socket(address, port, true)?);
            }
            steer(&sockets[0])?;
        }
        let sockets = sockets.into_iter();
        sockets
            .map(|socket| Self::prepare(socket, address))
            .collect()
    }

    fn prepare(socket: UdpSocket, address: IpAddr) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // The library forbids fragments, for path MTU discovery of its own. A tunnel's packets
        // must arrive over narrow paths too.
        match address {
            IpAddr::V4(_) => {
                let never = libc::IP_PMTUDISC_DONT;
                set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, never)?;
            }
            IpAddr::V6(_) => {
                let never = libc::IPV6_PMTUDISC_DONT;
                set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, never)?;
                set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)?;
            }
        }
        // Beyond the system's limit for ordinary programs where that is allowed; less is slower,
        // not wrong.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES);
        let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES);
        Ok(Self {
            socket,
            state,
            bound: address,
        })
    }

    /// Where it is bound.
    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Another handle of the same socket.
    pub(super) fn handle(&self) -> io::Result<UdpSocket> {
        self.socket.try_clone()
    }

    /// Messages of a train, at most.
    pub(super) fn messages_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Takes what there is, and returns how many buffers have a train.
    pub(super) fn receive(
        &self,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        self.state
            .recv(UdpSockRef::from(&self.socket), buffers, metas)
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut sent = self
            .state
            .try_send(UdpSockRef::from(&self.socket), transmit);
        if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            let mut fds = [PollFd::new(&self.socket, PollFlags::OUT)];
            // Ready, not yet ready or interrupted: the next try tells.
            let _ = poll(&mut fds, Some(&SEND_PATIENCE));
            sent = self
                .state
                .try_send(UdpSockRef::from(&self.socket), transmit);
        }
        sent
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends a train, and returns how many of its messages were lost.
pub(super) fn send(sockets: &[Socket], train: &Train<'_>) -> u64 {
    let messages = train.bytes.chunks(train.message_bytes);
    let same = |socket: &&Socket| socket.bound.is_ipv6() == train.endpoint.remote.is_ipv6();
    let Some(socket) = sockets.iter().find(same) else {
        return messages.len() as u64;
    };
    // Where a peer is greeted after a restart, the address it knows of ours may be of the other
    // version: then the kernel chooses.
    let may_send = |local: &IpAddr| {
        !local.is_unspecified() && local.is_ipv6() == train.endpoint.remote.is_ipv6()
    };
    let from = Some(train.endpoint.local).filter(may_send);
    let transmit = |contents, segment_size, src_ip| Transmit {
        destination: train.endpoint.remote,
        ecn: None,
        contents,
        segment_size,
        src_ip,
    };
    let lost = |error: &io::Error| {
        tracing::debug!(%error, peer = %train.endpoint.remote, "a peer is not reached");
    };
    if messages.len() > 1 {
        match socket.send(&transmit(train.bytes, Some(train.message_bytes), from)) {
            Ok(()) => return 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                lost(&error);
                return messages.len() as u64;
            }
            // A train that is refused can pass in pieces: over a path that is narrower than its
            // messages, or out of a device that cannot cut it.
            Err(_) => {}
        }
    }
    let sent = messages.map(|message| {
        let sent = socket.send(&transmit(message, None, from));
        match &sent {
            // The address that the peer wrote to last can be this machine's no more: it has moved.
            // From another one the peer learns where it is, and writes there.
            Err(error) if from.is_some() && is_not_ours(error) => {
                socket.send(&transmit(message, None, None))
            }
            _ => sent,
        }
    });
    sent.filter(|sent| sent.as_ref().inspect_err(|error| lost(error)).is_err())
        .count() as u64
}

/// True if an address to send from may be none of this machine's. What a filter refuses, or is too
/// long, is refused for that: a peer is not to learn another address by it.
fn is_not_ours(error: &io::Error) -> bool {
    // The first is what IPv4 says, of a network without a route too; the others are IPv6's.
    matches!(
        error.raw_os_error(),
        Some(libc::ENETUNREACH | libc::EINVAL | libc::EADDRNOTAVAIL)
    )
}

/// Both versions have a socket of their own, so the one for IPv6 takes IPv6 alone.
fn bound_socket(address: IpAddr, port: u16, shares: bool) -> io::Result<UdpSocket> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if shares {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    bind(&socket, &SocketAddr::new(address, port))?;
    Ok(UdpSocket::from(socket))
}

/// First byte of WireGuard's messages that name a receiver.
const RESPONSE: u32 = 2;
const COOKIE_REPLY: u32 = 3;
const DATA: u32 = 4;
/// Where the highest byte of the receiver's index is.
const RECEIVER_AT: u32 = 7;
const RESPONSE_RECEIVER_AT: u32 = 11;
/// Bits of that byte below the worker's number.
const WORKER_SHIFT: u32 = 4;
const _: () = assert!(WORKERS_MAX == 1 << (8 - WORKER_SHIFT));

/// Has the kernel look whose session a message names, before it chooses one of the sockets that
/// share the port with this one. What names none goes where its addresses lead.
fn steer(socket: &UdpSocket) -> io::Result<()> {
    let load = |at| instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
    let skip_unless = |kind, to| instruction(JUMP_IF_EQUAL, 0, to, kind);
    let skip = |to| instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, to);
    let program = [
        load(0),
        skip_unless(RESPONSE, 2),
        load(RESPONSE_RECEIVER_AT),
        skip(3),
        instruction(JUMP_IF_EQUAL, 1, 0, DATA),
        skip_unless(COOKIE_REPLY, 3),
        load(RECEIVER_AT),
        instruction(SHIFT_RIGHT, 0, 0, WORKER_SHIFT),
        instruction(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        // No socket has this number: the kernel chooses.
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the option takes a `struct sock_fprog`; it and the instructions that it points to,
    // which are only read, outlive the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const SHIFT_RIGHT: u32 = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K;

const fn instruction(code: u32, if_true: u8, if_false: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k,
    }
}

/// Marks what a socket sends.
pub(super) fn set_mark(socket: &UdpSocket, mark: u32) -> io::Result<()> {
    // The kernel reads the bits, not a number with a sign.
    set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())
}

fn set_option(socket: &UdpSocket, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the options that are set here take a C integer, and `value` is one that outlives
    // the call.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use crate::session::{Endpoint, SessionIndex, WorkerNumber};

    const WORKERS: usize = 3;

    /// A message of this type that names a session of this worker.
    fn message(kind: u8, worker: u32) -> Vec<u8> {
        let index = SessionIndex::new(WorkerNumber(worker), 5).0 << 8 | 3;
        let mut message = vec![kind, 0, 0, 0];
        if u32::from(kind) == RESPONSE {
            message.extend(0x7777_7777u32.to_le_bytes());
        }
        message.extend(index.to_le_bytes());
        message.extend([9; 40]);
        message
    }

    /// Which of the sockets it comes to.
    fn receiver(sockets: &[Socket], to: SocketAddr, message: &[u8]) -> usize {
        let local = match to.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let sender = UdpSocket::bind((local, 0)).unwrap();
        sender.send_to(message, to).unwrap();
        let mut fds: Vec<PollFd<'_>> = sockets
            .iter()
            .map(|socket| PollFd::new(&socket.socket, PollFlags::IN))
            .collect();
        let patience = Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut fds, Some(&patience)).unwrap(), 1);
        let ready = fds.iter().position(|fd| !fd.revents().is_empty()).unwrap();
        drop(fds);
        let mut buffer = [0; 256];
        let bytes = sockets[ready].socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..bytes], message);
        ready
    }

    #[test]
    fn a_message_comes_to_the_worker_of_the_session_that_it_names() {
        let versions: [(IpAddr, IpAddr); 2] = [
            (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
            (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
        ];
        for (any, here) in versions {
            let sockets = match Socket::bind(any, 0, WORKERS) {
                // A machine without IPv6.
                Err(_) if any.is_ipv6() => continue,
                bound => bound.unwrap(),
            };
            if any.is_ipv6() && UdpSocket::bind((here, 0)).is_err() {
                continue;
            }
            let to = SocketAddr::new(here, sockets[0].port().unwrap());
            for worker in 0..WORKERS as u32 {
                for kind in [RESPONSE, COOKIE_REPLY, DATA] {
                    let message = message(kind as u8, worker);
                    let came = receiver(&sockets, to, &message);
                    assert_eq!(came, worker as usize, "type {kind}");
                }
            }
            // What names nobody, or a worker that is not there, comes to one of them.
            for stray in [message(1, 0), message(4, 15), vec![4, 0, 0], vec![1]] {
                assert!(receiver(&sockets, to, &stray) < WORKERS);
            }
        }
    }

    #[test]
    fn messages_leave_although_the_address_that_they_were_to_leave_from_is_gone() {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let patience = std::time::Duration::from_secs(5);
        receiver.set_read_timeout(Some(patience)).unwrap();
        let sockets = Socket::bind(Ipv4Addr::UNSPECIFIED.into(), 0, 1).unwrap();
        let bytes = [7; 48];
        for (local, messages) in [(Ipv4Addr::LOCALHOST, 3), ([192, 0, 2, 9].into(), 3)] {
            let train = Train {
                endpoint: Endpoint {
                    remote: receiver.local_addr().unwrap(),
                    local: local.into(),
                },
                message_bytes: bytes.len() / messages,
                bytes: &bytes,
            };
            assert_eq!(send(&sockets, &train), 0, "from {local}");
            for _ in 0..messages {
                let mut buffer = [0; 64];
                assert_eq!(receiver.recv(&mut buffer).unwrap(), train.message_bytes);
            }
        }
    }

    #[test]
    fn a_port_that_workers_share_is_nobody_else_s() {
        let any = Ipv4Addr::UNSPECIFIED.into();
        let sockets = Socket::bind(any, 0, WORKERS).unwrap();
        let port = sockets[0].port().unwrap();
        assert!(sockets.iter().all(|socket| socket.port().unwrap() == port));
        for workers in [1, WORKERS] {
            let again = Socket::bind(any, port, workers);
            assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
        drop(sockets);
        assert!(Socket::bind(any, port, 1).is_ok());
    }
}
