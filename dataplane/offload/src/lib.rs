//! Splits super-packets and joins packets, as a network card's TSO, USO and GRO would.
//!
//! A TUN device with `IFF_VNET_HDR` puts a virtio-net header ([`VnetHeader`]) before each packet.
//! With the offloads `TUN_F_CSUM`, `TSO4`, `TSO6`, `TSO_ECN`, `USO4` and `USO6` the kernel hands
//! over packets whose checksum is unfinished, and *super-packets*: one pair of headers before the
//! payload of many packets. [`take`] makes complete packets of both. In the other direction
//! [`Joiner`] makes super-packets of the packets that came in one burst. Each super-packet is one
//! system call and one walk through the kernel's stack in the place of up to 64 or more.
//!
//! Invariants: what is joined can be split into the same packets again, byte for byte (but for
//! the IPv4 identification of packets that must not be fragmented, which nobody may look at:
//! RFC 6864, section 4.1), a flow's packets never overtake each other, and a checksum that was
//! wrong when its packet came is still wrong when it leaves, because it is the sender's word to
//! the receiver. Nothing here allocates after the start, panics on any bytes, or holds a socket.
//!
//! Left to others: reading and writing the device, and which packets are allowed at all.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod headers;
mod join;
mod split;
mod vnet;

pub use join::{AddError, JoinLimits, Joiner, PARTS_MAX, UDP_PARTS_MAX};
pub use split::{Offloaded, Segments, TooShort, take};
pub use vnet::{Gso, HEADER_BYTES, VnetHeader};

/// Bytes that are not what they should be: a header that contradicts itself or its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a virtio-net header that contradicts itself or its packet: drop the packet")]
pub struct Malformed;
