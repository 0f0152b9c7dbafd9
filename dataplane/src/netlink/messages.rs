//! What a route's or a neighbour's message says, in our words.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia,
};

use crate::forwarding::{Neighbour, Route, RouteTarget};
use crate::packet::MacAddress;

/// A route, and the number of its table.
pub(super) fn route(message: &RouteMessage) -> Option<(u32, Route)> {
    let header: &RouteHeader = &message.header;
    if header.tos != 0 {
        return None;
    }
    let mut network = match header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let (mut metric, mut interface, mut via) = (0, None, None);
    let mut paths: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(value) => network = address(value)?,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(value) => interface = Some(*value),
            RouteAttribute::Gateway(value) => via = address(value),
            RouteAttribute::Via(value) => via = other_version(value),
            RouteAttribute::MultiPath(value) => paths = value,
            _ => {}
        }
    }
    let target = match header.kind {
        RouteType::Unicast => match (interface, paths.first()) {
            (Some(interface), _) => RouteTarget::Forward {
                interface,
                gateway: via,
            },
            // Of several equal paths the first: one flow must not be spread over them.
            (None, Some(path)) => RouteTarget::Forward {
                interface: path.interface_index,
                gateway: path
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        RouteAttribute::Gateway(value) => address(value),
                        RouteAttribute::Via(value) => other_version(value),
                        _ => None,
                    }),
            },
            (None, None) => RouteTarget::Refuse,
        },
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            RouteTarget::Local
        }
        RouteType::Throw => RouteTarget::Throw,
        _ => RouteTarget::Refuse,
    };
    let prefix_bits = header.destination_prefix_length;
    Some((
        table,
        Route {
            network,
            prefix_bits,
            metric,
            target,
        },
    ))
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// The next router of a route whose destination is of the other version.
fn other_version(via: &RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(address) => Some((*address).into()),
        RouteVia::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// An IPv6 address at which others may reach the interface, and how well it serves; the least
/// serves best: what the whole world knows, and what nobody but the operator changes.
pub(super) fn address6(message: &AddressMessage) -> Option<((bool, bool), Ipv6Addr)> {
    let header = &message.header;
    // Temporary addresses are the machine's as a client (RFC 8981); one flag says both.
    let unusable = AddressHeaderFlags::Secondary
        | AddressHeaderFlags::Deprecated
        | AddressHeaderFlags::Dadfailed;
    if header.scope != AddressScope::Universe || header.flags.intersects(unusable) {
        return None;
    }
    let of_kind = |local: bool| {
        let mut attributes = message.attributes.iter();
        attributes.find_map(|attribute| match (attribute, local) {
            (AddressAttribute::Local(IpAddr::V6(address)), true)
            | (AddressAttribute::Address(IpAddr::V6(address)), false) => Some(*address),
            _ => None,
        })
    };
    // Where the link has two ends, the plain attribute is the other one's.
    let address = of_kind(true).or_else(|| of_kind(false))?;
    let of_router = !header.flags.contains(AddressHeaderFlags::Permanent);
    Some(((address.is_unique_local(), of_router), address))
}

/// A neighbour with a hardware address that may be used.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<(Neighbour, MacAddress)> {
    let usable = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(value)) => {
                address = Some(IpAddr::from(*value));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(value)) => {
                address = Some((*value).into());
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddress::from_slice(bytes),
            _ => {}
        }
    }
    let (true, Some(address), Some(mac)) = (usable, address, mac) else {
        return None;
    };
    Some((
        Neighbour {
            interface: message.header.ifindex,
            address,
        },
        mac,
    ))
}
