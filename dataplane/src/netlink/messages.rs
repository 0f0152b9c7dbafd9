//! What a route's or a neighbour's message says, in our words.

use std::net::Ipv4Addr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType,
};

use crate::forwarding::{Neighbour, Route, RouteTarget};
use crate::packet::MacAddress;

/// A route, and the number of its table.
pub(super) fn route(message: &RouteMessage) -> Option<(u32, Route)> {
    let header: &RouteHeader = &message.header;
    if header.address_family != AddressFamily::Inet || header.tos != 0 {
        return None;
    }
    let mut table = u32::from(header.table);
    let mut network = Ipv4Addr::UNSPECIFIED;
    let (mut metric, mut interface, mut via) = (0, None, None);
    let mut paths: &[RouteNextHop] = &[];
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Destination(RouteAddress::Inet(value)) => network = *value,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(value) => interface = Some(*value),
            RouteAttribute::Gateway(value) => via = gateway(value),
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
                        RouteAttribute::Gateway(value) => gateway(value),
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

fn gateway(address: &RouteAddress) -> Option<Ipv4Addr> {
    match address {
        RouteAddress::Inet(address) => Some(*address),
        _ => None,
    }
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
                address = Some(*value)
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
