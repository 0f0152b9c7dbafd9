//! Packets in and out, whatever the kernel offers.
//!
//! A [`Backend`] is one way: it receives, asks the [`Plane`] and sends. [`Ethernet`] does so with
//! whole frames, which AF_XDP sockets ([`AfXdp`]) hand over in memory shared with the kernel;
//! [`Kernel`] with UDP sockets and a TUN device, which hand over whole trains of packets.

mod af_xdp;
mod channels;
mod ethernet;
mod kernel;

pub(crate) use channels::receive_queues;

pub use af_xdp::{AfXdp, AfXdpError, Bind, Binding, FRAME_DATA_BYTES, SocketHandle};
pub use ethernet::{Ethernet, EthernetPath, GatewayAddresses, Resolver};
pub use kernel::{Egress, INNER_BYTES_MAX, Kernel, KernelError, KernelPlan, Marks, Sockets};

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::accounting::Gate;
use crate::forwarding::{Forwarding, PortIndex};
use crate::handshakes::Answer;
use crate::plane::Plane;

/// Packets handled between two looks at commands, clock and tables.
pub const BURST_PACKETS: usize = 64;

/// A way in and out, owned by one worker.
pub trait Backend {
    /// Empty looks before the worker sleeps.
    const SPINS_MAX: u32;

    /// Receives a burst, lets `plane` decide about it, and returns how many packets there were.
    /// An error says that packets which are counted would not leave any more.
    fn receive<G: Gate>(&mut self, plane: &mut Plane<G>) -> io::Result<usize>;

    /// Lets the session at `place` of the plane do what its timers say.
    fn tick<G: Gate>(&mut self, plane: &mut Plane<G>, place: usize);

    /// Lets the plane make an answer that waits; false if there is no room for it now.
    fn answer<G: Gate>(&mut self, plane: &mut Plane<G>, answer: Answer) -> bool;

    /// Takes a new snapshot of routes and neighbours and returns the old one.
    fn replace_forwarding<G: Gate>(
        &mut self,
        plane: &mut Plane<G>,
        forwarding: Arc<Forwarding>,
    ) -> Arc<Forwarding>;

    /// Takes other sockets and returns the old ones; where there are none, those that it was given.
    fn replace_sockets(&mut self, sockets: Sockets) -> Sockets {
        sockets
    }

    /// Passes everything that was handed over to the kernel.
    fn flush(&mut self);

    /// Sleeps until a packet arrives, somebody wakes the worker, or the time is over.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;
}

/// A frame to send: the first `bytes` of the buffer that the handler was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub port: PortIndex,
    /// How much of the buffer.
    pub bytes: usize,
}

/// What decides about frames.
pub trait Handler {
    /// Looks at a received frame, the first `arrived_bytes` of `frame`, which it may change with
    /// what follows it, and may fill `out`.
    fn handle(
        &mut self,
        port: PortIndex,
        frame: &mut [u8],
        arrived_bytes: usize,
        out: &mut [u8],
    ) -> Option<Transmit>;

    /// `packets` were lost because there was no empty frame to answer into.
    fn starved(&mut self, packets: u64);
}

/// A way to receive and send frames.
///
/// It owns them. Who handles one never holds it: he is called with a received frame and an
/// empty one, and says whether the empty one now holds something to send. That makes it
/// impossible to leak a frame.
pub trait FrameIo {
    /// Receives up to [`BURST_PACKETS`] frames, gives each to `handler`, and returns how many.
    fn receive(&mut self, handler: &mut impl Handler) -> usize;

    /// Lets `fill` write a frame of its own accord; false if there was no empty frame.
    fn originate(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<Transmit>) -> bool;

    /// As [`Backend::flush`].
    fn flush(&mut self);

    /// As [`Backend::wait`].
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;
}

/// Now, as unit records tell it.
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
