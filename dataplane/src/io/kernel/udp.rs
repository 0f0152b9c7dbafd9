//! The UDP sockets: `quinn-udp` knows trains (GRO and GSO), here is what a tunnel needs besides.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::trains::Train;

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
    /// Binds `port` at every address of the version of `address`, which names none.
    pub(super) fn bind(address: IpAddr, port: u16) -> io::Result<Self> {
        let socket = bound_socket(address, port)?;
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
    let transmit = |contents, segment_size| Transmit {
        destination: train.endpoint.remote,
        ecn: None,
        contents,
        segment_size,
        src_ip: Some(train.endpoint.local).filter(may_send),
    };
    let lost = |error: &io::Error| {
        tracing::debug!(%error, peer = %train.endpoint.remote, "a peer is not reached");
    };
    if messages.len() > 1 {
        match socket.send(&transmit(train.bytes, Some(train.message_bytes))) {
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
    let sent = messages.map(|message| socket.send(&transmit(message, None)));
    sent.filter(|sent| sent.as_ref().inspect_err(|error| lost(error)).is_err())
        .count() as u64
}

/// Both versions have a socket of their own, so the one for IPv6 takes IPv6 alone.
fn bound_socket(address: IpAddr, port: u16) -> io::Result<UdpSocket> {
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
