//! AF_XDP sockets (`xsk-rs`): the island of `unsafe` around frames in shared memory.
//!
//! One UMEM serves the sockets of all queues of all data interfaces. A frame is at any time in
//! exactly one place: the free list, a fill ring, a burst under work, a socket's pending list,
//! or a transmit ring until the completion ring returns it. Its descriptor moves with it, and
//! who holds the descriptor may touch the frame; that is what every `SAFETY` below rests on.

use std::ffi::CString;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::socket::{RxQueue, Socket, TxQueue};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::umem::{CompQueue, FillQueue, Umem};

use super::ethernet::SLACK_BYTES;
use super::{BURST_PACKETS, FrameIo, Handler, Transmit};
use crate::forwarding::PortIndex;

/// Places in each of a socket's four rings.
const RING_FRAMES: u32 = 2048;
/// Frames of the UMEM for each socket: its fill ring and as many to send.
const SOCKET_FRAMES: u32 = 2 * RING_FRAMES;
/// Bytes of a frame that are a packet's; the kernel keeps the first 256 of 2,048.
pub const FRAME_DATA_BYTES: usize = 1792;
/// Packets that one wake-up of the kernel sends; its default of 32 costs a call each.
const TRANSMIT_BUDGET: i32 = 256;
/// Wake-ups after one burst until what is left waits for the next.
const KICKS_MAX: usize = 4;
/// How long a bind is repeated while the kernel takes the last owner's memory apart.
const BIND_PATIENCE: Duration = Duration::from_secs(1);
const BIND_PAUSE: Duration = Duration::from_millis(20);

// From <linux/if_xdp.h>.
const XDP_OPTIONS: i32 = 8;
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
const XDP_OPTIONS_ZEROCOPY: u32 = 1;

/// A queue of an interface that shall have a socket.
#[derive(Clone, Debug)]
pub struct Binding {
    /// The data interface.
    pub port: PortIndex,
    /// Its name.
    pub interface: String,
    /// The queue.
    pub queue: u32,
}

/// How sockets are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// Without a copy where the driver can, else with one.
    Either,
    /// Without a copy, or not at all.
    ZeroCopy,
    /// With a copy.
    Copy,
}

/// A socket that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AfXdpError {
    /// The shared frames.
    #[error(
        "cannot make {frames} frames of shared memory for packets: {reason}; allow the process CAP_NET_RAW and CAP_IPC_LOCK"
    )]
    Memory {
        /// How many.
        frames: u32,
        /// Why not.
        reason: String,
    },
    /// One queue's socket.
    #[error("interface {interface}, queue {queue}: cannot bind an AF_XDP socket: {source}; {mend}")]
    Bind {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// Why not.
        source: io::Error,
        /// What to do.
        mend: &'static str,
    },
}

/// A socket's place in the XDP program's map.
#[derive(Clone, Debug)]
pub struct SocketHandle {
    /// What it is bound to.
    pub binding: Binding,
    /// True if the kernel shares the frames with the driver.
    pub zero_copy: bool,
    fd: RawFd,
}

impl AsRawFd for SocketHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

struct XskSocket {
    port: PortIndex,
    queue: u32,
    // Dropped in this order: the queues hold the socket.
    fill: FillQueue,
    completion: CompQueue,
    transmit: TxQueue,
    receive: RxQueue,
    /// Filled frames that the transmit ring has not taken yet.
    pending: Vec<FrameDesc>,
    /// Frames in the fill ring or with the driver for receiving.
    filled: u32,
    /// Frames in the transmit ring or not yet completed.
    in_flight: u32,
}

/// All sockets of one worker.
pub struct AfXdp {
    sockets: Vec<XskSocket>,
    umem: Umem,
    free: Vec<FrameDesc>,
    received: Vec<FrameDesc>,
    /// Which socket is served first, so that none starves.
    turn: usize,
    wake: OwnedFd,
}

impl AfXdp {
    /// Binds a socket to each of `bindings`. `wake` is an event counter that ends a wait.
    pub fn new(
        bindings: &[Binding],
        bind: Bind,
        wake: OwnedFd,
    ) -> Result<(Self, Vec<SocketHandle>), AfXdpError> {
        let frames = SOCKET_FRAMES * bindings.len().max(1) as u32;
        let memory = |reason: &dyn std::fmt::Display| AfXdpError::Memory {
            frames,
            reason: reason.to_string(),
        };
        let ring = QueueSize::new(RING_FRAMES).map_err(|error| memory(&error))?;
        let config = UmemConfig::builder()
            .fill_queue_size(ring)
            .comp_queue_size(ring)
            .frame_headroom(0)
            .frame_size(2048.try_into().map_err(|_| memory(&"frame size"))?)
            .build()
            .map_err(|error| memory(&error))?;
        let count = NonZeroU32::new(frames).ok_or_else(|| memory(&"no frames"))?;
        let (umem, free) = Umem::new(config, count, false).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            memory(&source.unwrap_or_else(|| error.to_string()))
        })?;
        debug_assert_eq!(config.mtu() as usize, FRAME_DATA_BYTES);
        let mut this = Self {
            sockets: Vec::with_capacity(bindings.len()),
            umem,
            free,
            received: vec![FrameDesc::default(); BURST_PACKETS],
            turn: 0,
            wake,
        };
        let mut handles = Vec::new();
        for binding in bindings {
            handles.push(this.bind(binding, bind, ring)?);
        }
        this.refill();
        Ok((this, handles))
    }

    fn bind(
        &mut self,
        binding: &Binding,
        bind: Bind,
        ring: QueueSize,
    ) -> Result<SocketHandle, AfXdpError> {
        let failed = |source: io::Error| AfXdpError::Bind {
            interface: binding.interface.clone(),
            queue: binding.queue,
            mend: bind_mend(&source),
            source,
        };
        let name = CString::new(binding.interface.as_str())
            .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let interface = Interface::new(name);
        // The first socket brings the memory, and decides; the others share it and must not
        // name flags of their own.
        let mode = match bind {
            _ if !self.sockets.is_empty() => BindFlags::empty(),
            Bind::Either => BindFlags::XDP_USE_NEED_WAKEUP,
            Bind::ZeroCopy => BindFlags::XDP_USE_NEED_WAKEUP | BindFlags::XDP_ZEROCOPY,
            Bind::Copy => BindFlags::XDP_USE_NEED_WAKEUP | BindFlags::XDP_COPY,
        };
        let config = SocketConfig::builder()
            .rx_queue_size(ring)
            .tx_queue_size(ring)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(mode)
            .build();
        let deadline = Instant::now() + BIND_PATIENCE;
        let (transmit, receive, rings) = loop {
            // SAFETY: libxdp's own program is inhibited, which is the case the contract is about.
            let socket = unsafe { Socket::new(config, &self.umem, &interface, binding.queue) };
            match socket {
                Ok(socket) => break socket,
                Err(error) => {
                    let source = std::error::Error::source(&error)
                        .and_then(|source| source.downcast_ref::<io::Error>())
                        .and_then(io::Error::raw_os_error)
                        .map_or_else(
                            || io::Error::other(error.to_string()),
                            io::Error::from_raw_os_error,
                        );
                    let busy = source.raw_os_error() == Some(libc::EBUSY);
                    if !busy || Instant::now() > deadline {
                        return Err(failed(source));
                    }
                    thread::sleep(BIND_PAUSE);
                }
            }
        };
        let Some((fill, completion)) = rings else {
            return Err(failed(io::Error::other("the queue is bound twice")));
        };
        let fd = transmit.fd().as_raw_fd();
        // Older kernels do not know the option and send 32 a call, which the kicks make up for.
        let _ = set_transmit_budget(fd);
        let zero_copy = is_zero_copy(fd).map_err(failed)?;
        self.sockets.push(XskSocket {
            port: binding.port,
            queue: binding.queue,
            fill,
            completion,
            transmit,
            receive,
            pending: Vec::with_capacity(SOCKET_FRAMES as usize),
            filled: 0,
            in_flight: 0,
        });
        Ok(SocketHandle {
            binding: binding.clone(),
            zero_copy,
            fd,
        })
    }

    /// Tops every fill ring up, evenly, while frames to send with are left.
    fn refill(&mut self) {
        let share = self.free.len() / (2 * self.sockets.len()).max(1);
        for socket in &mut self.sockets {
            let room = (RING_FRAMES - socket.filled) as usize;
            let frames = room.min(share.max(BURST_PACKETS)).min(self.free.len());
            let start = self.free.len() - frames;
            // SAFETY: the descriptors come from the free list of this UMEM and leave it below,
            // so nobody touches the frames until the kernel returns them as received.
            let taken = unsafe { socket.fill.produce(&self.free[start..]) };
            // All or nothing, and the ring has room for everything that `filled` does not count.
            self.free.truncate(self.free.len() - taken);
            socket.filled += taken as u32;
        }
    }

    /// Takes back the frames that were sent.
    fn complete(&mut self) {
        for socket in &mut self.sockets {
            while socket.in_flight > 0 {
                // SAFETY: what comes back was produced by this socket's transmit ring.
                let done = unsafe { socket.completion.consume(&mut self.received) };
                if done == 0 {
                    break;
                }
                socket.in_flight -= done as u32;
                self.free.extend_from_slice(&self.received[..done]);
            }
        }
    }

    /// The socket that sends on `port`, best the one of the same queue.
    fn sender(sockets: &[XskSocket], port: PortIndex, queue: u32) -> Option<usize> {
        let on_port = |socket: &XskSocket| socket.port == port;
        sockets
            .iter()
            .position(|socket| on_port(socket) && socket.queue == queue)
            .or_else(|| sockets.iter().position(on_port))
    }
}

impl FrameIo for AfXdp {
    fn receive(&mut self, handler: &mut impl Handler) -> usize {
        self.complete();
        let Self {
            sockets,
            umem,
            free,
            received,
            turn,
            ..
        } = self;
        let mut handled = 0;
        for step in 0..sockets.len() {
            let index = (*turn + step) % sockets.len();
            let (port, queue) = (sockets[index].port, sockets[index].queue);
            let room = BURST_PACKETS - handled;
            // SAFETY: the queue belongs to the same UMEM as the descriptors.
            let count = unsafe { sockets[index].receive.consume(&mut received[..room]) };
            sockets[index].filled -= count as u32;
            for desc in &mut received[..count] {
                let Some(mut out) = free.pop() else {
                    handler.starved(1);
                    free.push(*desc);
                    continue;
                };
                // SAFETY: both descriptors are frames of this UMEM that we alone hold, one from
                // the receive ring, one from the free list; they are different frames, so the
                // two slices do not overlap.
                let (mut frame, mut data) =
                    unsafe { (umem.data_mut(desc), umem.data_mut(&mut out)) };
                let capacity = data.cursor().buf_len();
                data.cursor().set_pos(capacity);
                let arrived_bytes = frame.contents().len();
                frame.cursor().set_pos(arrived_bytes + SLACK_BYTES);
                let (frame, empty) = (frame.contents_mut(), data.contents_mut());
                let transmit = handler.handle(port, frame, arrived_bytes, empty);
                let target = transmit.and_then(|transmit| {
                    data.cursor().set_pos(transmit.bytes);
                    Self::sender(sockets, transmit.port, queue)
                });
                match target {
                    Some(target) => sockets[target].pending.push(out),
                    None => free.push(out),
                }
                free.push(*desc);
            }
            handled += count;
            if handled == BURST_PACKETS {
                *turn = (index + 1) % sockets.len();
                break;
            }
        }
        if handled > 0 {
            self.refill();
        }
        handled
    }

    fn originate(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<Transmit>) -> bool {
        let Some(mut out) = self.free.pop() else {
            return false;
        };
        // SAFETY: the descriptor comes from the free list of this UMEM: nobody else holds it.
        let mut data = unsafe { self.umem.data_mut(&mut out) };
        let capacity = data.cursor().buf_len();
        data.cursor().set_pos(capacity);
        let target = fill(data.contents_mut()).and_then(|transmit| {
            data.cursor().set_pos(transmit.bytes);
            Self::sender(&self.sockets, transmit.port, 0)
        });
        match target {
            Some(target) => self.sockets[target].pending.push(out),
            None => self.free.push(out),
        }
        true
    }

    fn flush(&mut self) {
        for socket in &mut self.sockets {
            if !socket.pending.is_empty() {
                let room = (RING_FRAMES - socket.in_flight) as usize;
                let frames = room.min(socket.pending.len());
                // SAFETY: pending descriptors are frames of this UMEM that nobody touches any
                // more; they leave the list below and come back by the completion ring.
                let taken = unsafe { socket.transmit.produce(&socket.pending[..frames]) };
                socket.pending.drain(..taken);
                socket.in_flight += taken as u32;
            }
            for _ in 0..KICKS_MAX {
                if socket.in_flight == 0 || socket.transmit.nb_free_exact() == RING_FRAMES {
                    break;
                }
                if socket.transmit.needs_wakeup() && socket.transmit.wakeup().is_err() {
                    // The interface went away; the next wait says so.
                    break;
                }
            }
        }
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let unsent = self.sockets.iter().any(|socket| !socket.pending.is_empty());
        let timeout = if unsent {
            Duration::from_millis(1).min(timeout)
        } else {
            timeout
        };
        let mut fds = Vec::with_capacity(self.sockets.len() + 1);
        for socket in &self.sockets {
            // SAFETY: the descriptor belongs to the socket, which outlives this call.
            let fd = unsafe { BorrowedFd::borrow_raw(socket.receive.fd().as_raw_fd()) };
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        fds.push(PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN));
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let woken = !fds[fds.len() - 1].revents().is_empty();
        drop(fds);
        if woken {
            // Empties the counter; that it was empty already is no error.
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        }
        Ok(())
    }
}

fn bind_mend(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "another process has this queue; stop it",
        Some(libc::EOPNOTSUPP) => {
            "its driver cannot share frames; set dataplane.io = \"af-xdp-copy\""
        }
        Some(libc::EPERM) => "allow the process CAP_NET_RAW, CAP_NET_ADMIN and CAP_IPC_LOCK",
        Some(libc::ENETDOWN) => "set the interface up: `ip link set dev NAME up`",
        Some(libc::ENODEV) => "choose an interface that `ip link` lists",
        _ => "look at the kernel's log with `dmesg`",
    }
}

fn set_transmit_budget(fd: RawFd) -> io::Result<()> {
    let budget = TRANSMIT_BUDGET;
    // SAFETY: the option takes a 32-bit integer, and `budget` is one that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            (&raw const budget).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn is_zero_copy(fd: RawFd) -> io::Result<bool> {
    let mut flags = 0u32;
    let mut bytes = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the option is a `struct xdp_options` of one 32-bit word, and `bytes` says that
    // there is room for exactly that.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_XDP,
            XDP_OPTIONS,
            (&raw mut flags).cast(),
            &raw mut bytes,
        )
    };
    if result == 0 {
        Ok(flags & XDP_OPTIONS_ZEROCOPY != 0)
    } else {
        Err(io::Error::last_os_error())
    }
}
