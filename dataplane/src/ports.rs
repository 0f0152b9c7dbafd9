//! The data interfaces: found, checked, bound to sockets and given the program.

use std::net::{IpAddr, Ipv6Addr};

use topnet_api::IoStatus;
use topnet_config::{Dataplane, Io};
use topnet_ebpf_abi::{Address6, Steering};

use crate::error::RunError;
use crate::forwarding::PortIndex;
use crate::io::{Bind, Binding, GatewayAddresses, SocketHandle};
use crate::netlink::{Connection, Interface};
use crate::packet::{IPV4_BYTES, IPV6_BYTES, UDP_BYTES};
use crate::plane::WIREGUARD_BYTES;
use crate::xdp::{Mode, Program};

/// What the tunnel adds to an inner packet: IPv4, UDP and WireGuard's header and tag.
const TUNNEL_BYTES: u32 = (IPV4_BYTES + UDP_BYTES + WIREGUARD_BYTES) as u32;
/// The same over IPv6.
const TUNNEL6_BYTES: u32 = (IPV6_BYTES + UDP_BYTES + WIREGUARD_BYTES) as u32;

/// A data interface and what it is for.
pub(crate) struct DataPort {
    pub(crate) interface: Interface,
    pub(crate) takes_clients: bool,
    pub(crate) takes_inner: bool,
}

pub(crate) async fn data_ports(
    section: &Dataplane,
    connection: &Connection,
) -> Result<Vec<DataPort>, RunError> {
    let find = async |name: &str, key: &'static str| {
        let error = |reason, mend| RunError::Interface {
            name: name.to_owned(),
            key,
            reason,
            mend,
        };
        let Some(interface) = connection.interface(name).await? else {
            return Err(error(
                "there is no such interface",
                "choose one that `ip link` lists",
            ));
        };
        if interface.mac.is_none() {
            return Err(error(
                "it is not an Ethernet interface",
                "choose one that is",
            ));
        }
        Ok(interface)
    };
    let clients = find(&section.client_interface, "client_interface").await?;
    let uplink = find(&section.uplink_interface, "uplink_interface").await?;
    let inner_bytes = u32::from(section.inner_mtu);
    for (interface, needed_bytes) in [
        (&clients, inner_bytes + TUNNEL_BYTES),
        (&uplink, inner_bytes),
    ] {
        let Interface {
            name, mtu_bytes, ..
        } = interface;
        if *mtu_bytes < needed_bytes {
            let (name, mtu_bytes) = (name.clone(), *mtu_bytes);
            return Err(RunError::Mtu {
                name,
                mtu_bytes,
                needed_bytes,
            });
        }
    }
    if clients.index == uplink.index {
        return Ok(vec![DataPort {
            interface: clients,
            takes_clients: true,
            takes_inner: true,
        }]);
    }
    Ok(vec![
        DataPort {
            interface: clients,
            takes_clients: true,
            takes_inner: false,
        },
        DataPort {
            interface: uplink,
            takes_clients: false,
            takes_inner: true,
        },
    ])
}

/// Where clients reach the gateway over frames: the first addresses of their interface.
pub(crate) fn gateway_addresses(
    section: &Dataplane,
    ports: &[DataPort],
) -> Result<GatewayAddresses, RunError> {
    let clients = ports.iter().find(|port| port.takes_clients);
    let clients = clients.map(|port| &port.interface);
    let v4 = clients.and_then(|interface| interface.addresses.first().copied());
    let v4 = v4.ok_or_else(|| RunError::Interface {
        name: section.client_interface.clone(),
        key: "client_interface",
        reason: "it has no IPv4 address that clients could reach",
        mend: "give it one: `ip address add ADDRESS/BITS dev NAME`",
    })?;
    let v6 = clients.and_then(|interface| gateway_address6(section, interface));
    Ok(GatewayAddresses { v4, v6 })
}

/// What the world outside knows the gateway by: the uplink's addresses, or else the others.
pub(crate) fn uplink_addresses(ports: &[DataPort], gateway: GatewayAddresses) -> GatewayAddresses {
    let uplink = ports.iter().find(|port| port.takes_inner);
    let interface = uplink.map(|port| &port.interface);
    let v4 = interface.and_then(|interface| interface.addresses.first());
    let v6 = interface.and_then(|interface| interface.addresses6.first());
    GatewayAddresses {
        v4: v4.copied().unwrap_or(gateway.v4),
        v6: v6.copied().or(gateway.v6),
    }
}

fn gateway_address6(section: &Dataplane, interface: &Interface) -> Option<Ipv6Addr> {
    // What comes from inside the tunnel is not believed, so nobody must be sent there.
    let inner = section.inner_network();
    let outside = |address: &&Ipv6Addr| !inner.contains(IpAddr::V6(**address));
    let address = *interface.addresses6.iter().find(outside)?;
    let mtu_bytes = interface.mtu_bytes;
    let needed_bytes = u32::from(section.inner_mtu) + TUNNEL6_BYTES;
    if mtu_bytes >= needed_bytes {
        return Some(address);
    }
    // Frames are not cut into fragments, and clients that come over IPv4 have room.
    if section.io != Io::Kernel {
        let name = &interface.name;
        tracing::warn!(
            "no client can come to {address} in frames: {name} has an MTU of {mtu_bytes}, and \
             {needed_bytes} are needed; lower dataplane.inner_mtu"
        );
    }
    None
}

/// The queues of each of so many workers, which share out every interface's. There are no more
/// workers than any interface has queues: each must be able to send on all.
pub(crate) fn bindings(ports: &[DataPort], workers: u32) -> Vec<Vec<Binding>> {
    let queues = ports.iter().map(|port| port.interface.queues).min();
    let workers = workers.min(queues.unwrap_or(1)).max(1);
    let mut bindings = vec![Vec::new(); workers as usize];
    for (index, port) in (0u8..).zip(ports) {
        for queue in 0..port.interface.queues {
            bindings[(queue % workers) as usize].push(Binding {
                port: PortIndex(index),
                interface: port.interface.name.clone(),
                queue,
            });
        }
    }
    bindings
}

pub(crate) fn attach(
    program: &mut Program,
    section: &Dataplane,
    ports: &[DataPort],
    gateway: GatewayAddresses,
    sockets: &[SocketHandle],
) -> Result<(), RunError> {
    // What comes back for clients comes to the addresses that they share, or else to their own.
    let shared = section.nat.as_ref().map(|nat| nat.addresses);
    let returns = shared.unwrap_or(section.inner_subnet);
    let network = returns.network().to_bits();
    let mask = u32::MAX.checked_shl(32 - u32::from(returns.prefix_bits()));
    let mask = mask.unwrap_or_default();
    let inner6 = section.inner_subnet6;
    let mask6 = inner6.and_then(|v6| u128::MAX.checked_shl(128 - u32::from(v6.prefix_bits())));
    let as_sent = |address: Ipv6Addr| Address6::from_octets(address.octets());
    for socket in sockets {
        program.add_socket(socket)?;
    }
    for (index, port) in (0u32..).zip(ports) {
        let steering = Steering {
            wireguard_port: if port.takes_clients {
                section.wireguard_port
            } else {
                0
            },
            takes_inner: port.takes_inner.into(),
            takes_inner6: (port.takes_inner && inner6.is_some()).into(),
            reserved: 0,
            inner_network: network.to_be(),
            inner_mask: mask.to_be(),
            gateway_address: gateway.v4.to_bits().to_be(),
            inner_network6: inner6.map_or_else(Address6::default, |v6| as_sent(v6.network())),
            inner_mask6: as_sent(mask6.unwrap_or_default().into()),
            gateway_address6: gateway.v6.map_or_else(Address6::default, as_sent),
        };
        program.steer(index, steering)?;
        let Interface {
            name,
            index: interface_index,
            ..
        } = &port.interface;
        program.attach(index, name, *interface_index, mode_of(section.io))?;
    }
    Ok(())
}

/// How frames go in and out, and why so.
pub(crate) fn frames_status(
    io: Io,
    sockets: &[SocketHandle],
    interfaces: &[Interface],
    workers: u32,
    gateway: GatewayAddresses,
    besides: Option<&RunError>,
) -> IoStatus {
    let copying = sockets.iter().find(|socket| !socket.zero_copy);
    let mode = match (mode_of(io), copying) {
        (Mode::Generic, _) => "generic",
        (Mode::Native, None) => "native-zerocopy",
        (Mode::Native, Some(_)) => "native-copy",
    };
    let mut reason = match (io, copying) {
        (Io::Auto, Some(socket)) => copying_reason(socket),
        (Io::Auto, None) => "the drivers have native XDP and share frames".to_owned(),
        _ => CONFIGURED.to_owned(),
    };
    if let Some(error) = besides {
        reason = format!("{reason}; not the kernel's sockets: {error}");
    }
    let mut status = status("af_xdp", mode, reason, interfaces, workers);
    status.addresses = gateway.each().collect();
    status
}

/// How packets go in and out of the kernel's sockets, and why so.
pub(crate) fn kernel_status(reason: String, interfaces: &[Interface], workers: u32) -> IoStatus {
    status("kernel", "udp-tun", reason, interfaces, workers)
}

pub(crate) const CONFIGURED: &str = "configured (dataplane.io)";

pub(crate) fn copying_reason(socket: &SocketHandle) -> String {
    format!(
        "the driver of {} has native XDP but cannot share frames",
        socket.binding.interface
    )
}

fn status(
    backend: &str,
    mode: &str,
    reason: String,
    interfaces: &[Interface],
    workers: u32,
) -> IoStatus {
    IoStatus {
        backend: backend.to_owned(),
        mode: mode.to_owned(),
        reason,
        interfaces: interfaces
            .iter()
            .map(|interface| interface.name.clone())
            .collect(),
        workers,
        addresses: Vec::new(),
    }
}

pub(crate) fn bind_of(io: Io) -> Bind {
    match io {
        // The kernel's sockets need no frames.
        Io::Auto | Io::Kernel => Bind::Either,
        Io::AfXdpZeroCopy => Bind::ZeroCopy,
        Io::AfXdpCopy | Io::AfXdpGeneric => Bind::Copy,
    }
}

fn mode_of(io: Io) -> Mode {
    match io {
        Io::Auto | Io::Kernel | Io::AfXdpZeroCopy | Io::AfXdpCopy => Mode::Native,
        Io::AfXdpGeneric => Mode::Generic,
    }
}
