//! The XDP program: which packets go to the data plane's sockets.
//!
//! It steers and nothing else. WireGuard's UDP port at the gateway's addresses and
//! traffic for the tunnel's inner subnets are redirected to the AF_XDP socket of the
//! queue that they came in on; every other packet goes on to the kernel, so that the
//! host stays reachable whatever the data plane does. The decision is [`classify`], one
//! value of [`Verdict`]; what follows from it is one exhaustive match in [`steer`].
//!
//! An XSKMAP entry must belong to the receiving device, so each data interface ("port")
//! has its own entry point with its own range of keys. The `usage` and `credit` tables
//! are declared here, and counted in by the worker: user space maps them, and programs
//! that count in XDP will find them in place.
#![no_std]
#![no_main]

use core::ffi::c_void;
use core::mem::size_of;
use core::ptr::NonNull;

use aya_ebpf::bindings::bpf_map_type::{
    BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_XSKMAP,
};
use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::{bpf_map_lookup_elem, bpf_redirect_map};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use topnet_ebpf_abi::{
    Address6, Credit, PORTS_MAX, QUEUES_MAX, SOCKETS_MAX, Steering, Usage, VERDICTS, Verdict,
};

/// `BPF_F_MMAPABLE`: user space maps the array's own pages.
const MMAPABLE: usize = 1 << 10;
/// Slots when the loader does not say otherwise; it always does.
const SLOTS_DEFAULT: usize = 64;

/// Declares a map whose definition the loader reads from BTF. Each has a type of its own:
/// the kernel refuses BTF with names like `Array<u64, 8>`, which a generic one would have.
macro_rules! map {
    ($(#[$doc:meta])* $name:ident as $export:literal: $type:ident, $kind:ident<$value:ty>, $entries:expr, $flags:expr) => {
        $(#[$doc])*
        #[repr(C)]
        struct $type {
            r#type: *const [i32; $kind as usize],
            key: *const u32,
            value: *const $value,
            max_entries: *const [i32; $entries as usize],
            map_flags: *const [i32; $flags],
        }

        // SAFETY: the fields only carry types for the loader; nobody reads them.
        unsafe impl Sync for $type {}

        #[unsafe(link_section = ".maps")]
        #[unsafe(export_name = $export)]
        static $name: $type = $type {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        };

        impl $type {
            /// The address that stands for the map in the kernel's helpers.
            #[allow(dead_code)]
            #[inline(always)]
            fn handle(&self) -> *mut c_void {
                core::ptr::from_ref(self).cast_mut().cast()
            }

            /// The value at `index`; valid while the program runs, shared with others.
            #[allow(dead_code)]
            #[inline(always)]
            fn value(&self, index: u32) -> Option<NonNull<$value>> {
                // SAFETY: the map exists as long as the program, and the key is a `u32`.
                let value =
                    unsafe { bpf_map_lookup_elem(self.handle(), (&raw const index).cast()) };
                NonNull::new(value.cast())
            }
        }
    };
}

map!(
    /// What every slot has forwarded.
    USAGE as "usage": UsageMap, BPF_MAP_TYPE_ARRAY<Usage>, SLOTS_DEFAULT, MMAPABLE
);
map!(
    /// How much every slot may forward.
    CREDIT as "credit": CreditMap, BPF_MAP_TYPE_ARRAY<Credit>, SLOTS_DEFAULT, MMAPABLE
);
map!(
    /// What to steer, by port.
    STEERING as "steering": SteeringMap, BPF_MAP_TYPE_ARRAY<Steering>, PORTS_MAX, 0
);
map!(
    /// AF_XDP sockets, by port and queue.
    SOCKETS as "sockets": SocketMap, BPF_MAP_TYPE_XSKMAP<u32>, SOCKETS_MAX, 0
);
map!(
    /// Packets by verdict, each CPU its own.
    VERDICT_COUNTS as "verdicts": VerdictMap, BPF_MAP_TYPE_PERCPU_ARRAY<u64>, VERDICTS, 0
);

/// Entry point of the first data interface.
#[xdp]
pub fn port_0(ctx: XdpContext) -> u32 {
    steer(&ctx, 0)
}

/// Entry point of the second data interface.
#[xdp]
pub fn port_1(ctx: XdpContext) -> u32 {
    steer(&ctx, 1)
}

#[inline(always)]
fn steer(ctx: &XdpContext, port: u32) -> u32 {
    let verdict = match STEERING.value(port) {
        // SAFETY: the entry stays where it is; user space writes it before it attaches us.
        Some(steering) => classify(ctx, unsafe { steering.as_ref() }),
        None => Verdict::Other,
    };
    let (verdict, action) = match verdict {
        Verdict::WireGuard | Verdict::Inner => redirect(ctx, port, verdict),
        Verdict::Malformed
        | Verdict::NotIp
        | Verdict::Fragment
        | Verdict::Other
        | Verdict::NoSocket => (verdict, xdp_action::XDP_PASS),
    };
    count(verdict);
    action
}

#[inline(always)]
fn redirect(ctx: &XdpContext, port: u32, verdict: Verdict) -> (Verdict, u32) {
    let queue = ctx.rx_queue_index();
    if queue >= QUEUES_MAX {
        return (Verdict::NoSocket, xdp_action::XDP_PASS);
    }
    let key = u64::from(port * QUEUES_MAX + queue);
    // The flags name what a missing socket means: the kernel may have the packet.
    // SAFETY: the map exists as long as the program.
    let action = unsafe { bpf_redirect_map(SOCKETS.handle(), key, xdp_action::XDP_PASS.into()) };
    if action as u32 == xdp_action::XDP_REDIRECT {
        (verdict, xdp_action::XDP_REDIRECT)
    } else {
        (Verdict::NoSocket, xdp_action::XDP_PASS)
    }
}

#[inline(always)]
fn count(verdict: Verdict) {
    if let Some(counter) = VERDICT_COUNTS.value(verdict as u32) {
        // SAFETY: the pointer is this CPU's own entry, and a program is not migrated
        // or re-entered on the same CPU while it runs from one driver's receive path.
        unsafe { *counter.as_ptr() += 1 };
    }
}

const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
const PROTOCOL_UDP: u8 = 17;
/// The extension header that a fragment of an IPv6 packet begins with.
const HEADER_FRAGMENT: u8 = 44;
/// More-fragments and the fragment offset: anything set makes it a fragment.
const FRAGMENT_MASK: u16 = 0x3fffu16.to_be();

#[repr(C, packed)]
struct Ethernet {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: u16,
}

#[repr(C, packed)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[repr(C, packed)]
struct Ipv6 {
    version_class_label: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: Address6,
    destination: Address6,
}

#[repr(C, packed)]
struct Udp {
    source: u16,
    destination: u16,
    length: u16,
    checksum: u16,
}

/// Decides what a packet is, from its headers alone.
#[inline(always)]
fn classify(ctx: &XdpContext, steering: &Steering) -> Verdict {
    let Some(ethernet) = header::<Ethernet>(ctx, 0) else {
        return Verdict::Malformed;
    };
    // SAFETY: `header` checked that the whole record lies inside the packet.
    match unsafe { (*ethernet).ethertype } {
        ETHERTYPE_IPV4 => classify_v4(ctx, steering),
        ETHERTYPE_IPV6 => classify_v6(ctx, steering),
        _ => Verdict::NotIp,
    }
}

#[inline(always)]
fn classify_v4(ctx: &XdpContext, steering: &Steering) -> Verdict {
    let Some(ip) = header::<Ipv4>(ctx, size_of::<Ethernet>()) else {
        return Verdict::Malformed;
    };
    // SAFETY: `header` checked that the whole record lies inside the packet.
    let (version_ihl, fragment, protocol, destination) = unsafe {
        (
            (*ip).version_ihl,
            (*ip).fragment,
            (*ip).protocol,
            (*ip).destination,
        )
    };
    if version_ihl >> 4 != 4 || version_ihl & 0xf < 5 {
        return Verdict::Malformed;
    }
    // A router forwards fragments as they are, so they need no ports to be steered.
    if steering.takes_inner != 0 && destination & steering.inner_mask == steering.inner_network {
        return Verdict::Inner;
    }
    if destination != steering.gateway_address
        || protocol != PROTOCOL_UDP
        || steering.wireguard_port == 0
    {
        return Verdict::Other;
    }
    if fragment & FRAGMENT_MASK != 0 {
        return Verdict::Fragment;
    }
    // Nobody sends WireGuard with IP options; a fixed offset spares us the capability that the
    // verifier asks for variable ones (CAP_PERFMON).
    if version_ihl != 0x45 {
        return Verdict::Other;
    }
    classify_udp(ctx, steering, size_of::<Ethernet>() + size_of::<Ipv4>())
}

#[inline(always)]
fn classify_v6(ctx: &XdpContext, steering: &Steering) -> Verdict {
    let Some(ip) = header::<Ipv6>(ctx, size_of::<Ethernet>()) else {
        return Verdict::Malformed;
    };
    // SAFETY: `header` checked that the whole record lies inside the packet.
    let (version_class_label, next_header, destination) = unsafe {
        (
            (*ip).version_class_label,
            (*ip).next_header,
            (*ip).destination,
        )
    };
    if u32::from_be(version_class_label) >> 28 != 6 {
        return Verdict::Malformed;
    }
    // Neighbours are asked for at multicast addresses, which are in no inner subnet.
    if steering.takes_inner6 != 0
        && destination.is_in(steering.inner_network6, steering.inner_mask6)
    {
        return Verdict::Inner;
    }
    if steering.wireguard_port == 0
        || steering.gateway_address6.is_zero()
        || !destination.is(steering.gateway_address6)
    {
        return Verdict::Other;
    }
    // Other extension headers are the kernel's: nobody sends WireGuard with them.
    match next_header {
        PROTOCOL_UDP => classify_udp(ctx, steering, size_of::<Ethernet>() + size_of::<Ipv6>()),
        HEADER_FRAGMENT => Verdict::Fragment,
        _ => Verdict::Other,
    }
}

#[inline(always)]
fn classify_udp(ctx: &XdpContext, steering: &Steering, offset: usize) -> Verdict {
    let Some(udp) = header::<Udp>(ctx, offset) else {
        return Verdict::Malformed;
    };
    // SAFETY: `header` checked that the whole record lies inside the packet.
    if unsafe { (*udp).destination } == steering.wireguard_port.to_be() {
        Verdict::WireGuard
    } else {
        Verdict::Other
    }
}

/// A pointer to `T` at `offset`, if the packet holds all of it.
#[inline(always)]
fn header<T>(ctx: &XdpContext, offset: usize) -> Option<*const T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(start as *const T)
}

/// The kernel refuses a program that can loop, so this is never reached: nothing here panics.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence the kernel checks before it allows GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
