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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_ipv6_addresses_the_one_that_lasts_is_the_first() {
        let message = |text: &str, scope, flags| {
            let mut message = AddressMessage::default();
            message.header.family = AddressFamily::Inet6;
            message.header.scope = scope;
            message.header.flags = flags;
            let address = text.parse().unwrap();
            message
                .attributes
                .push(AddressAttribute::Address(IpAddr::V6(address)));
            message
        };
        let given = AddressHeaderFlags::Permanent;
        let of_router = AddressHeaderFlags::empty();
        let world = AddressScope::Universe;
        let mut usable: Vec<_> = [
            message("fe80::1", AddressScope::Link, given),
            message("fd77::1", world, given),
            message("2001:db8::d", world, AddressHeaderFlags::Deprecated),
            message("2001:db8::f", world, given | AddressHeaderFlags::Dadfailed),
            // Temporary.
            message("2001:db8::e", world, AddressHeaderFlags::Secondary),
            message("2001:db8::2", world, of_router),
            // Nobody has answered for it yet, as just after the start.
            message("2001:db8::1", world, given | AddressHeaderFlags::Tentative),
        ]
        .iter()
        .filter_map(address6)
        .collect();
        usable.sort();
        let usable: Vec<String> = usable.iter().map(|(_, at)| at.to_string()).collect();
        assert_eq!(usable, ["2001:db8::1", "2001:db8::2", "fd77::1"]);
        // Of a link with two ends, our own.
        let mut two_ends = message("fd77::2", world, given);
        let ours = "fd77::1".parse().unwrap();
        two_ends
            .attributes
            .push(AddressAttribute::Local(IpAddr::V6(ours)));
        assert_eq!(address6(&two_ends).map(|(_, address)| address), Some(ours));
    }
}
