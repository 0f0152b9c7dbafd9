//! The records that the XDP program, the worker and metering all see.
//!
//! Plain `repr(C)` layouts without behaviour, so that the BPF program can use them
//! as map values (`BPF_F_MMAPABLE` arrays) and user space can map the same pages.
//! Every record fills one 64-byte cache line: a writer of one never slows a reader
//! of another. Changing anything here raises [`LAYOUT_VERSION`].
#![no_std]
#![forbid(unsafe_code)]

/// Version of all layouts in this crate; user space refuses any other.
pub const LAYOUT_VERSION: u32 = 1;

/// A slot's usage. Written by the fast path only, by atomic add, never reset.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Billable bytes forwarded since the table was made.
    pub bytes: u64,
    /// Packets forwarded since the table was made.
    pub packets: u64,
    /// Zero.
    pub reserved: [u64; 6],
}

/// A slot's credit. Written by metering only.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// A packet is forwarded only if `Usage::bytes` with it stays at or below this.
    pub limit_bytes: u64,
    /// The fast path publishes a unit record when `Usage::bytes` reaches this.
    pub record_at_bytes: u64,
    /// The use of the slot that this credit is for; credit of another generation is none.
    pub generation: u32,
    /// Zero: closed, nothing passes. One: open up to the limit.
    pub state: u32,
    /// Zero.
    pub reserved: [u64; 5],
}

/// [`Credit::state`]: nothing passes.
pub const CREDIT_CLOSED: u32 = 0;
/// [`Credit::state`]: packets pass up to the limit.
pub const CREDIT_OPEN: u32 = 1;

/// What the XDP program needs to know to steer; one entry, written by the data plane.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// UDP port of the WireGuard listener, host byte order.
    pub wireguard_port: u16,
    /// Prefix length of the inner subnet, 0..=32.
    pub inner_prefix_length: u16,
    /// IPv4 network of the tunnel's inner addresses, network byte order.
    pub inner_network: u32,
    /// The gateway's own IPv4 address towards clients, network byte order.
    pub gateway_address: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(core::mem::size_of::<Usage>() == 64);
const _: () = assert!(core::mem::size_of::<Credit>() == 64);
const _: () = assert!(core::mem::size_of::<Steering>() == 16);
