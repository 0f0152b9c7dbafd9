//! Packet input and output, whatever the kernel offers.
//!
//! A backend owns the frames. The worker never holds one: it is called with a received frame
//! and an empty one, and says whether the empty one now holds something to send. That shape
//! fits AF_XDP rings as well as sockets, and makes it impossible to leak a frame.

mod af_xdp;

pub use af_xdp::{AfXdp, AfXdpError, Bind, Binding, FRAME_DATA_BYTES, SocketHandle};

use std::io;
use std::time::Duration;

use crate::forwarding::PortIndex;

/// Packets handled between two looks at commands, clock and tables.
pub const BURST_PACKETS: usize = 64;

/// A frame to send: the first `bytes` of the buffer that the handler was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub port: PortIndex,
    /// How much of the buffer.
    pub bytes: usize,
}

/// What decides about packets.
pub trait Handler {
    /// Looks at a received frame, which it may change, and may fill `out`.
    fn handle(&mut self, port: PortIndex, frame: &mut [u8], out: &mut [u8]) -> Option<Transmit>;
    /// `packets` were lost because there was no empty frame to answer into.
    fn starved(&mut self, packets: u64);
}

/// A way to receive and send.
pub trait PacketIo {
    /// Receives up to [`BURST_PACKETS`] frames, gives each to `handler`, and returns how many.
    fn receive(&mut self, handler: &mut impl Handler) -> usize;

    /// Lets `fill` write a frame of its own accord; false if there was no empty frame.
    fn originate(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<Transmit>) -> bool;

    /// Passes everything that was handed over to the kernel.
    fn flush(&mut self);

    /// Sleeps until a frame arrives, somebody wakes the worker, or the time is over.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;
}
