//! The records that the XDP program, the worker and metering all see.
//!
//! Plain `repr(C)` layouts, so that the BPF program can use them
//! as map values (`BPF_F_MMAPABLE` arrays) and user space can map the same pages.
//! [`Usage`] and [`Credit`] fill one 64-byte cache line each: a writer of one never
//! slows a reader of another. Changing one of these two raises `TABLES_VERSION` in `topnet-unit`; the
//! rest is between the data plane and the program that it brings along.
#![no_std]
#![forbid(unsafe_code)]

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
    /// One: this port takes return traffic for the inner IPv6 subnet. Zero: it does not.
    pub takes_inner6: u16,
    /// Zero.
    pub reserved: u16,
    /// IPv4 network of the tunnel's inner addresses, network byte order.
    pub inner_network: u32,
    /// Netmask of `inner_network`, network byte order.
    pub inner_mask: u32,
    /// The gateway's own IPv4 address towards clients, network byte order.
    pub gateway_address: u32,
    /// IPv6 network of the tunnel's inner addresses, as in a packet.
    pub inner_network6: Address6,
    /// Netmask of `inner_network6`.
    pub inner_mask6: Address6,
    /// The gateway's own IPv6 address towards clients; zero: none.
    pub gateway_address6: Address6,
}

/// An IPv6 address as four words, each in network byte order: what a program compares at once.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address6(pub [u32; 4]);

impl Address6 {
    /// From the bytes that a packet has.
    #[must_use]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// True if the address lies in the network with this mask.
    #[inline(always)]
    #[must_use]
    pub const fn is_in(self, network: Self, mask: Self) -> bool {
        let ([a, b, c, d], [e, f, g, h], [i, j, k, l]) = (self.0, network.0, mask.0);
        a & i == e && b & j == f && c & k == g && d & l == h
    }

    /// True if it is the same address. `==` would become a call of `memcmp`, which programs in the
    /// kernel do not have.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        self.is_in(other, Self([u32::MAX; 4]))
    }

    /// True for the address of nobody.
    #[inline(always)]
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.is(Self([0; 4]))
    }
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
    /// Neither IPv4 nor IPv6: ARP, VLAN-tagged and the rest.
    NotIp = 3,
    /// A fragment for the gateway: the kernel reassembles.
    Fragment = 4,
    /// IP that is not for the worker: neighbour discovery, SSH, payments, RPC, everything else.
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
        Verdict::NotIp,
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
            Verdict::NotIp => "not_ip",
            Verdict::Fragment => "fragment",
            Verdict::Other => "other",
            Verdict::NoSocket => "no_socket",
        }
    }
}

const _: () = assert!(core::mem::size_of::<Usage>() == 64);
const _: () = assert!(core::mem::size_of::<Credit>() == 64);
const _: () = assert!(core::mem::size_of::<Steering>() == 68);
const _: () = assert!(Verdict::NoSocket as u32 + 1 == VERDICTS);
