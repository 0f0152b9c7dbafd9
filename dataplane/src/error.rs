//! Why the data plane does not run: every message names the thing and the mend.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use topnet_unit::{HandoverError, SharedMemoryError};

use crate::io::{AfXdpError, KernelError};
use crate::netlink::NetlinkError;
use crate::xdp::XdpError;

/// Widest inner subnet: its addresses are a table in the worker.
pub(crate) const INNER_PREFIX_BITS_MIN: u8 = 12;

/// Why the data plane does not run (any more). Each names the thing and the mend.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No `[dataplane]`.
    #[error("{path}: there is no section [dataplane]; add it, see control/config/example.toml")]
    NoSection {
        /// The configuration.
        path: PathBuf,
    },
    /// The private key.
    #[error(
        "WireGuard key {path} (dataplane.key_file): {reason}; make one with `wg genkey > {path}`"
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An interface that cannot be used.
    #[error("interface {name} (dataplane.{key}): {reason}; {mend}")]
    Interface {
        /// Its name.
        name: String,
        /// Where it is configured.
        key: &'static str,
        /// What is wrong with it.
        reason: &'static str,
        /// What to do.
        mend: &'static str,
    },
    /// An interface whose packets are too small for the tunnel.
    #[error(
        "interface {name} carries packets of {mtu_bytes} bytes, inner packets of dataplane.inner_mtu \
         need {needed_bytes} there; raise it (`ip link set dev {name} mtu {needed_bytes}`) or lower \
         inner_mtu"
    )]
    Mtu {
        /// The interface.
        name: String,
        /// As it is.
        mtu_bytes: u32,
        /// As it should be.
        needed_bytes: u32,
    },
    /// A subnet that is too wide.
    #[error(
        "inner subnet {subnet} (dataplane.inner_subnet) is too wide; choose one of at least {INNER_PREFIX_BITS_MIN} bits"
    )]
    Subnet {
        /// As configured.
        subnet: topnet_config::Ipv4Subnet,
    },
    /// Address translation.
    #[error("address translation ([dataplane.nat]): {0}")]
    Nat(topnet_nat::ConfigError),
    /// The log of public addresses.
    #[error(
        "log of public addresses {path} (dataplane.nat.log_file): {source}; give this user the right to write there"
    )]
    NatLog {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The operator's own peers.
    #[error(
        "unmetered peers {path} (dataplane.unmetered.file): {reason}; mend the file, or move it away to begin without peers"
    )]
    Unmetered {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The WireGuard port is taken.
    #[error(
        "UDP port {port} (dataplane.wireguard_port) at {address}: {source}; stop who has it (`ss -lunp`) or choose another"
    )]
    Port {
        /// The port.
        port: u16,
        /// Where.
        address: IpAddr,
        /// Why not.
        source: io::Error,
    },
    /// A Unix socket.
    #[error(
        "socket {path}: {source}; make its directory and give this user the right to write there"
    )]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The worker's CPU.
    #[error(
        "cannot pin the worker to CPU {cpu} (dataplane.cpu): {source}; choose one that `nproc` counts, or leave the key out"
    )]
    Cpu {
        /// As configured.
        cpu: u16,
        /// Why not.
        source: io::Error,
    },
    /// The worker ended by itself.
    #[error("the worker stopped: {0}; the data interfaces are gone or down, see `ip link`")]
    Worker(String),
    /// The XDP program.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// Packet input and output.
    #[error(transparent)]
    AfXdp(#[from] AfXdpError),
    /// The kernel's sockets and the tunnel's device.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel does not forward.
    #[error("the kernel does not forward packets: {key} is {value}; set it: `sysctl -w {key}=1`")]
    NotForwarding {
        /// The setting.
        key: String,
        /// Its value.
        value: String,
    },
    /// Routes and neighbours.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The shared tables.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// Their memory.
    #[error(transparent)]
    Memory(#[from] SharedMemoryError),
    /// Something that the system always has.
    #[error("cannot {what}: {source}; the system is out of resources")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> RunError {
    move |source| RunError::System {
        what,
        source: source.into(),
    }
}
