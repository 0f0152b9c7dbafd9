//! The records that the XDP program, the worker and metering all see.
//!
//! Plain `repr(C)` layouts without behaviour, so that the BPF program can use them
//! as map values (`BPF_F_MMAPABLE` arrays) and user space can map the same pages.
//! [`Usage`] and [`Credit`] fill one 64-byte cache line each: a writer of one never
//! slows a reader of another. Changing anything here raises [`LAYOUT_VERSION`].
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

/// Data interfaces that one load of the XDP program serves, one entry point each.
pub const PORTS_MAX: u32 = 2;
/// Receive queues of one interface that can have a socket.
pub const QUEUES_MAX: u32 = 64;
/// Entries of the socket map; a socket's key is `port * QUEUES_MAX + queue`.
pub const SOCKETS_MAX: u32 = PORTS_MAX * QUEUES_MAX;

/// What the XDP program needs to know to steer one port's packets; written by the data plane.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steering {
    /// UDP port of the WireGuard listener, host byte order; zero: none on this port.
    pub wireguard_port: u16,
    /// One: this port takes return traffic for the inner subnet. Zero: it does not.
    pub takes_inner: u16,
    /// IPv4 network of the tunnel's inner addresses, network byte order.
    pub inner_network: u32,
    /// Netmask of `inner_network`, network byte order.
    pub inner_mask: u32,
    /// The gateway's own IPv4 address towards clients, network byte order.
    pub gateway_address: u32,
}

/// What the XDP program decided for a packet, and the index of its counter.
///
/// The first two go to the port's socket when one is bound; all others go on to the kernel.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// WireGuard for the gateway: to the worker.
    WireGuard = 0,
    /// For an inner address: to the worker.
    Inner = 1,
    /// Too short for the headers it needs, or headers that contradict themselves.
    Malformed = 2,
    /// Not IPv4: ARP, IPv6, VLAN-tagged and the rest.
    NotIpv4 = 3,
    /// A fragment for the gateway: the kernel reassembles.
    Fragment = 4,
    /// IPv4 that is not for the worker: SSH, payments, RPC, everything else.
    Other = 5,
    /// For the worker, but no socket is bound to the queue that it came in on.
    NoSocket = 6,
}

/// Number of [`Verdict`]s, and entries of the verdict counters.
pub const VERDICTS: u32 = 7;

impl Verdict {
    /// Every verdict, in counter order.
    pub const ALL: [Verdict; VERDICTS as usize] = [
        Verdict::WireGuard,
        Verdict::Inner,
        Verdict::Malformed,
        Verdict::NotIpv4,
        Verdict::Fragment,
        Verdict::Other,
        Verdict::NoSocket,
    ];

    /// The name under which the counter is shown.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::WireGuard => "wireguard",
            Verdict::Inner => "inner",
            Verdict::Malformed => "malformed",
            Verdict::NotIpv4 => "not_ipv4",
            Verdict::Fragment => "fragment",
            Verdict::Other => "other",
            Verdict::NoSocket => "no_socket",
        }
    }
}

const _: () = assert!(core::mem::size_of::<Usage>() == 64);
const _: () = assert!(core::mem::size_of::<Credit>() == 64);
const _: () = assert!(core::mem::size_of::<Steering>() == 16);
const _: () = assert!(Verdict::NoSocket as u32 + 1 == VERDICTS);
